package access

import (
	"path"
	"slices"
	"strings"

	"entrepot/oci"
)

// Public lists what of an upstream everybody may pull, without a login: patterns
// as the access file has them.
func Public(content []byte, names *oci.Names, upstream string) ([]string, error) {
	all, err := parseRules(content, names)
	if err != nil {
		return nil, err
	}
	var public []string
	for _, r := range all.list {
		if !r.everybody || r.actions&readContent == 0 {
			continue
		}
		for _, glob := range r.globs {
			host, _, _ := strings.Cut(glob, "/")
			if fits, _ := path.Match(host, upstream); fits && !slices.Contains(public, glob) { // ** is any host, too
				public = append(public, glob)
			}
		}
	}
	return public, nil
}

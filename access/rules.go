package access

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"

	"entrepot/oci"

	"go.yaml.in/yaml/v3"
)

// action is what may be done with a repository, as bits.
type action uint8

const (
	readContent  action = 1 << iota // manifests and blobs
	readMetadata                    // tags, referrers, the catalog
)

var actions = map[string]action{"content/read": readContent, "metadata/read": readMetadata}

// The actions that will be of use when this is more than a cache.
var reserved = []string{"content/write", "content/delete", "metadata/write", "metadata/delete"}

// The words that stand for more than one user.
const (
	anonymousWord     = "anonymous"
	authenticatedWord = "authenticated"
	groupPrefix       = "group:"
)

// rulesFile is the access file.
type rulesFile struct {
	Groups map[string][]string `yaml:"groups"`
	Rules  []ruleEntry         `yaml:"rules"`
	OIDC   []issuerEntry       `yaml:"oidc"`
}

type ruleEntry struct {
	Who          []string `yaml:"who"`
	Repositories []string `yaml:"repositories"`
	Actions      []string `yaml:"actions"`
}

// rules are the access file as it is used. They never change.
type rules struct {
	list     []rule
	issuers  []*issuer
	warnings []string // of patterns that may let in more than is meant
}

type rule struct {
	who           []string // as the file has it
	everybody     bool     // also who has not said who they are
	authenticated bool
	users         map[string]bool // members of the file's groups among them
	groups        []string
	globs         []string // as the file has them
	repositories  *regexp.Regexp
	actions       action
}

// goType is how the decoder names a part of the file.
var goType = regexp.MustCompile(`(field \S+) not found in type [\w.]+`)

// otherKind is how the decoder says that something of one kind stands where another is
// wanted.
var otherKind = regexp.MustCompile("cannot unmarshal !!(\\w+)(?: (`.*`))? into (\\S+)")

// yamlText says what is wrong with a file to who has written it, in one line.
func yamlText(err error) string {
	text := strings.TrimPrefix(strings.TrimPrefix(err.Error(), "yaml: "), "unmarshal errors:\n  ")
	all := strings.Split(text, "\n  ")
	for i, one := range all {
		one = goType.ReplaceAllString(one, "$1 is not known here")
		if m := otherKind.FindStringSubmatchIndex(one); m != nil {
			value := map[string]string{"seq": "a list", "map": "a mapping"}[one[m[2]:m[3]]]
			if m[4] >= 0 {
				value = one[m[4]:m[5]]
			}
			one = one[:m[0]] + "want " + kindOf(one[m[6]:m[7]]) + " here, and not " + value + one[m[1]:]
		}
		all[i] = one
	}
	return strings.Join(all, "; ")
}

// kindOf is a type of Go as who writes YAML calls it.
func kindOf(goType string) string {
	switch {
	case strings.HasPrefix(goType, "[]"):
		return "a list"
	case goType == "string":
		return "text"
	}
	return "a mapping"
}

// parseRules reads the access file. names has the upstreams that patterns may
// name.
func parseRules(content []byte, names *oci.Names) (*rules, error) {
	var file rulesFile
	d := yaml.NewDecoder(bytes.NewReader(content))
	d.KnownFields(true)
	if err := d.Decode(&file); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("not an access file: %s", yamlText(err))
	}
	if err := d.Decode(new(any)); !errors.Is(err, io.EOF) {
		return nil, errors.New("has more after its end: want one document")
	}
	r := new(rules)
	for name, members := range file.Groups {
		if err := checkGroup(name); err != nil {
			return nil, fmt.Errorf("groups: %w", err)
		}
		for _, member := range members {
			if err := checkName(member); err != nil {
				return nil, fmt.Errorf("groups: %s: %w", name, err)
			}
		}
	}
	for i, entry := range file.Rules {
		one, err := entry.compile(file.Groups, names)
		if err != nil {
			return nil, fmt.Errorf("rules: number %d: %w", i+1, err)
		}
		r.list = append(r.list, one)
	}
	for i, entry := range file.OIDC {
		one, err := entry.compile()
		if err != nil {
			return nil, fmt.Errorf("oidc: number %d: %w", i+1, err)
		}
		if slices.ContainsFunc(r.issuers, func(other *issuer) bool { return other.url == one.url }) {
			return nil, fmt.Errorf("oidc: number %d: %s is there already: want each issuer once", i+1, one.url)
		}
		r.issuers = append(r.issuers, one)
		for n, identity := range entry.Identities {
			for _, name := range slices.Sorted(maps.Keys(identity.Claims)) {
				if pattern := identity.Claims[name]; isOpenEnded(pattern) {
					r.warnings = append(r.warnings, fmt.Sprintf("oidc: number %d: identity %d: claim %s: %q also fits names that only begin so, which anybody may have registered: end the name before the *, as with / or :", i+1, n+1, name, clip(pattern, 100)))
				}
			}
		}
	}
	return r, nil
}

func checkGroup(name string) error {
	if err := checkName(name); err != nil {
		return fmt.Errorf("%q is not a group's name: want letters, digits and any of . _ @ + -", clip(name, 64))
	}
	return nil
}

func (e *ruleEntry) compile(groups map[string][]string, names *oci.Names) (r rule, err error) {
	if len(e.Who) == 0 || len(e.Repositories) == 0 {
		return rule{}, errors.New("who and repositories must both be there, and not empty")
	}
	r.who, r.globs, r.users = e.Who, e.Repositories, map[string]bool{}
	for _, who := range e.Who {
		group, isGroup := strings.CutPrefix(who, groupPrefix)
		switch {
		case who == anonymousWord:
			r.everybody = true
		case who == authenticatedWord:
			r.authenticated = true
		case isGroup:
			if err := checkGroup(group); err != nil {
				return rule{}, err
			}
			r.groups = append(r.groups, group)
			for _, member := range groups[group] {
				r.users[member] = true
			}
		default:
			if err := checkName(who); err != nil {
				return rule{}, err
			}
			r.users[who] = true
		}
	}
	if r.actions, err = parseActions(e.Actions); err != nil {
		return rule{}, err
	}
	r.repositories, err = compileGlobs(e.Repositories, names)
	return r, err
}

// parseActions: none means all that there are.
func parseActions(list []string) (all action, err error) {
	for _, name := range list {
		one, known := actions[name]
		switch {
		case slices.Contains(reserved, name):
			return 0, fmt.Errorf("action %s is reserved: this registry is a cache and takes no writes", name)
		case !known:
			return 0, fmt.Errorf("there is no action %q: want content/read (manifests and layers) or metadata/read (lists of tags, referrers, the catalog)", clip(name, 40))
		}
		all |= one
	}
	if len(list) == 0 {
		return readContent | readMetadata, nil
	}
	return all, nil
}

// compileGlobs makes one expression of patterns: * stands for anything within
// one part of a name, ** for any number of parts, at least one.
func compileGlobs(globs []string, names *oci.Names) (*regexp.Regexp, error) {
	var all []string
	for _, glob := range globs {
		if err := checkGlob(glob, names); err != nil {
			return nil, err
		}
		var b strings.Builder
		for i, part := range strings.Split(glob, "/") {
			if i > 0 {
				b.WriteByte('/')
			}
			if part == "**" {
				b.WriteString(`[^/]+(?:/[^/]+)*`)
				continue
			}
			b.WriteString(strings.ReplaceAll(regexp.QuoteMeta(part), `\*`, `[^/]*`))
		}
		all = append(all, b.String())
	}
	return regexp.Compile(`\A(?:` + strings.Join(all, "|") + `)\z`)
}

func checkGlob(glob string, names *oci.Names) error {
	host, path, _ := strings.Cut(glob, "/")
	for part := range strings.SplitSeq(glob, "/") {
		if part == "" || strings.Contains(part, "**") && part != "**" {
			return fmt.Errorf("pattern %q: want parts with one slash between them, and ** as a part of its own", clip(glob, 100))
		}
	}
	switch {
	case len(glob) > 300 || strings.Trim(glob, "abcdefghijklmnopqrstuvwxyz0123456789._-:/*[]") != "":
		return fmt.Errorf("pattern %q: want what repositories' names are made of, lower-case letters, digits and . _ - : /, with * and **", clip(glob, 100))
	case glob == "**":
		return nil
	case path == "":
		return fmt.Errorf("pattern %q: want an upstream and a repository, such as docker.io/library/*, or ** for everything", clip(glob, 100))
	case host == oci.DockerHub && !strings.Contains(path, "/") && path != "**":
		return fmt.Errorf("pattern %q: Docker Hub's names have two parts: want docker.io/library/%s", clip(glob, 100), clip(path, 60))
	case !strings.Contains(host, "*") && !slices.Contains(names.Upstreams, oci.FoldHost(host)):
		return fmt.Errorf("pattern %q: %s is not an upstream of this registry: it serves %s", clip(glob, 100), host, strings.Join(names.Upstreams, ", "))
	case oci.FoldHost(host) != host:
		return fmt.Errorf("pattern %q: %s is called %s here", clip(glob, 100), host, oci.FoldHost(host))
	}
	return nil
}

// readers are those who may read what a repository has, in the words of the file.
func (r *rules) readers(repo oci.Repository) (all []string) {
	for _, one := range r.list {
		if one.actions&readContent == 0 || !one.repositories.MatchString(repo.String()) {
			continue
		}
		for _, who := range one.who {
			if !slices.Contains(all, who) {
				all = append(all, who)
			}
		}
	}
	return all
}

// forAnonymous reports whether there is anything to see for those who have not
// said who they are.
func (r *rules) forAnonymous() bool {
	return r != nil && slices.ContainsFunc(r.list, func(one rule) bool { return one.everybody })
}

// allowed is what somebody may do with a repository.
func (r *rules) allowed(who Identity, repo oci.Repository) (may action) {
	name := repo.String()
	for i := range r.list {
		one := &r.list[i]
		if one.actions&^may != 0 && one.isFor(who) && one.repositories.MatchString(name) {
			may |= one.actions
		}
	}
	return may
}

func (r *rule) isFor(who Identity) bool {
	switch {
	case r.everybody:
		return true
	case who.Name == "":
		return false
	}
	return r.authenticated || r.users[who.Name] ||
		slices.ContainsFunc(r.groups, func(g string) bool { return slices.Contains(who.Groups, g) })
}

// issuerOf is the issuer that a token says it is from; nil for what is no token,
// or is from somebody else.
func (r *rules) issuerOf(text string) *issuer {
	if r == nil || len(r.issuers) == 0 {
		return nil
	}
	url := issuerIn(text)
	i := slices.IndexFunc(r.issuers, func(one *issuer) bool { return one.url == url })
	if i < 0 {
		return nil
	}
	return r.issuers[i]
}

// repositoryOf is the inverse of Repository.String.
func repositoryOf(name string) (oci.Repository, bool) {
	host, path, _ := strings.Cut(name, "/")
	repo, err := oci.NewRepository(host, path)
	return repo, err == nil
}

package upstream

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"entrepot/oci"
)

// Bounds on the urls of a descriptor; manifests have one or two.
const (
	maxForeignURLs = 8
	maxForeignURL  = 4 << 10
)

// Foreign returns a handle on a layer that its manifest places elsewhere (the
// urls of a descriptor, image-spec, descriptor.md), as the base layers of older
// Windows images are. It is fetched only from the hosts that the configuration
// allows, without any credentials, and wherever those redirect to within the
// bounds that redirects have. Error: Denied if none of urls is allowed.
func (c *Client) Foreign(_ context.Context, repo oci.Repository, d oci.Digest, urls []string, ask oci.Ask) (oci.Blob, error) {
	var blobs []*blob
	var refused []string
	for _, raw := range urls[:min(len(urls), maxForeignURLs)] {
		u, err := url.Parse(raw)
		switch {
		case err != nil, len(raw) > maxForeignURL, u.Hostname() == "", u.User != nil, u.Scheme != "https" && u.Scheme != "http":
			refused = append(refused, "what is no URL")
		case !slices.Contains(c.foreign, originOf(u)):
			refused = append(refused, printable(u.Scheme+"://"+u.Host))
		default:
			u.Fragment, u.RawFragment = "", ""
			blobs = append(blobs, &blob{site: c.primary, repo: repo, digest: d, ask: ask, size: -1, home: u, foreign: true})
		}
	}
	if len(blobs) == 0 {
		where := "nowhere"
		if len(refused) > 0 {
			where = strings.Join(slices.Compact(refused), ", ")
		}
		return nil, oci.Errorf(oci.Denied, "%s is a foreign layer, kept at %s, which is not among the hosts that foreign layers may come from (ENTREPOT_FOREIGN_HOSTS)", d, where)
	}
	copies := newCopies(c, blobs)
	copies.foreign = true
	return copies, nil
}

// printable cuts a stranger's host to what a message may hold.
func printable(s string) string { return strings.Trim(fmt.Sprintf("%.80q", s), `"`) }

// parseForeignHosts reads the hosts that foreign layers may come from.
func parseForeignHosts(name string, hosts []string) ([]origin, error) {
	var all []origin
	for _, host := range hosts {
		raw := host
		if !strings.Contains(raw, "://") {
			raw = "https://" + raw
		}
		u, err := url.Parse(raw)
		if err != nil || u.Hostname() == "" || u.User != nil || u.Scheme != "https" && u.Scheme != "http" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
			return nil, fmt.Errorf("upstream %s: %q is no host for foreign layers: want host[:port]", name, host)
		}
		all = append(all, originOf(u))
	}
	return all, nil
}

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
// Windows images are. It is fetched without any credentials, and only from the
// hosts that the configuration allows: a redirect has to lead to one of them, too.
// Error: Denied if none of urls is allowed; of the handle, if a redirect is not.
func (c *Client) Foreign(_ context.Context, repo oci.Repository, d oci.Digest, urls []string, ask oci.Ask) (oci.Blob, error) {
	var blobs []*blob
	var refused []string
	for _, raw := range urls[:min(len(urls), maxForeignURLs)] {
		u, err := url.Parse(raw)
		switch {
		case err != nil, len(raw) > maxForeignURL, u.Hostname() == "", u.User != nil, u.Scheme != "https" && u.Scheme != "http":
			refused = append(refused, "what is no URL")
		case !c.foreign.allow(u):
			refused = append(refused, printable(u.Scheme+"://"+u.Host))
		default:
			u.Fragment, u.RawFragment = "", ""
			blobs = append(blobs, &blob{site: c.primary, repo: repo, digest: d, ask: ask, size: -1, home: u, within: c.foreign})
		}
	}
	if len(blobs) == 0 {
		where := "nowhere"
		if len(refused) > 0 {
			where = strings.Join(slices.Compact(refused), ", ")
		}
		return nil, oci.Errorf(oci.Denied, "%s is a foreign layer, kept at %s, which is "+notForeign, d, where)
	}
	copies := newCopies(c, blobs)
	copies.foreign = true
	return copies, nil
}

// printable cuts a stranger's host to what a message may hold.
func printable(s string) string { return strings.Trim(fmt.Sprintf("%.80q", s), `"`) }

// notForeign ends the sentence about a host that is not in the list.
const notForeign = "not among the hosts that foreign layers may come from (ENTREPOT_FOREIGN_HOSTS)"

// foreignHosts are where foreign layers may come from; of a host that is *.domain
// every subdomain is meant.
type foreignHosts []origin

func (f foreignHosts) allow(u *url.URL) bool {
	if slices.Contains(f, originOf(u)) {
		return true
	}
	within := *u
	for _, domain, ok := strings.Cut(u.Host, "."); ok; _, domain, ok = strings.Cut(domain, ".") {
		within.Host = "*." + domain
		if slices.Contains(f, originOf(&within)) {
			return true
		}
	}
	return false
}

// mayLead refuses a redirect that leads out of the list.
func (f foreignHosts) mayLead(from, to *url.URL) error {
	if f == nil || f.allow(to) {
		return nil
	}
	detail := fmt.Sprintf("%s redirects a foreign layer to %s, which is "+notForeign, from.Host, printable(to.Scheme+"://"+to.Host))
	return &oci.Error{Code: oci.Denied, Detail: detail, Err: oci.ErrAstray}
}

// parseForeignHosts reads the hosts that foreign layers may come from.
func parseForeignHosts(name string, hosts []string) (foreignHosts, error) {
	var all foreignHosts
	for _, host := range hosts {
		raw := host
		if !strings.Contains(raw, "://") {
			raw = "https://" + raw
		}
		u, err := url.Parse(raw)
		if err != nil || u.Hostname() == "" || strings.Contains(strings.TrimPrefix(u.Host, "*."), "*") || u.User != nil || u.Scheme != "https" && u.Scheme != "http" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
			return nil, fmt.Errorf("upstream %s: %q is no host for foreign layers: want host[:port] or *.domain[:port]", name, host)
		}
		all = append(all, originOf(u))
	}
	return all, nil
}

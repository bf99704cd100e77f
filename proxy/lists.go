package proxy

import (
	"bytes"
	"encoding/json"
	"net/url"
	"strconv"

	"entrepot/oci"
)

// catalogPage bounds a page of the catalog, which lists every repository that
// is held; a client that asks for more, or does not say, gets a Link.
const catalogPage = 1000

// page reads n and last. Where n is missing it is -1: all that the source has.
func (x *exchange) page() (oci.Page, error) {
	page := oci.Page{N: -1, Last: x.at.query.last}
	if !x.at.query.hasN {
		return page, nil
	}
	n, err := strconv.ParseUint(x.at.query.n, 10, 31)
	if err != nil {
		return page, oci.Errorf(oci.PageInvalid, "n is no number of results: %q", clip(x.at.query.n, 40))
	}
	page.N = int(n)
	return page, nil
}

// cutPage keeps the promise of n whatever came, and never a null list.
func cutPage(list []string, more bool, n int) ([]string, bool) {
	if n >= 0 && len(list) > n {
		list, more = list[:n], true
	}
	if len(list) == 0 {
		return []string{}, false
	}
	return list, more
}

// link points to the next page of path, in the words that the client used. n
// below zero is one that the client did not say.
func (x *exchange) link(path, last string, n int) {
	u := "<" + path + "?"
	if n >= 0 {
		u += "n=" + strconv.Itoa(n) + "&"
	}
	u += "last=" + url.QueryEscape(last)
	if x.at.query.ns != "" {
		u += "&ns=" + url.QueryEscape(x.at.query.ns)
	}
	x.set("Link", u+`>; rel="next"`)
}

func (x *exchange) tags() error {
	page, err := x.page()
	if err != nil {
		return err
	}
	ask := page
	if page.N == 0 {
		ask.N = 1 // whether the repository exists is still worth an answer
	}
	list, out, err := x.pass.Source.Tags(&x.ctx, x.at.repo, ask, x.ask)
	x.learn(out)
	if err != nil {
		return err
	}
	x.tellOutcome()
	tags, more := cutPage(list.Tags, list.More, page.N)
	if more {
		x.link(x.req.Path(), tags[len(tags)-1], page.N)
	}
	return x.sendJSON(jsonType, struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{x.req.Name, tags})
}

func (x *exchange) catalog() error {
	if x.pass.Catalog == nil {
		return oci.Errorf(oci.NotFound, "this registry keeps no catalog")
	}
	page, err := x.page()
	if err != nil {
		return err
	}
	ask := page
	if ask.N < 0 || ask.N > catalogPage {
		ask.N = catalogPage
	}
	names, more, err := x.pass.Catalog.Repositories(&x.ctx, oci.Page{N: max(ask.N, 1), Last: ask.Last})
	if err != nil {
		return err
	}
	names, more = cutPage(names, more, ask.N)
	if more {
		x.link(x.req.Path(), names[len(names)-1], page.N)
	}
	return x.sendJSON(jsonType, struct {
		Repositories []string `json:"repositories"`
	}{names})
}

const imageIndex = "application/vnd.oci.image.index.v1+json"

var (
	indexType       = []string{imageIndex}
	filteredHeaders = []string{"artifactType"}
)

// referrers answers with an index, empty where nothing refers to the digest.
func (x *exchange) referrers() error {
	list, out, err := x.pass.Source.Referrers(&x.ctx, x.at.repo, x.req.Digest, x.at.query.artifactType, x.ask)
	x.learn(out)
	if err != nil {
		return err
	}
	if len(list.Manifests) > 0 || x.h.cfg.Refuse == nil {
		x.tellOutcome()
	}
	return x.sendReferrers(list.Manifests)
}

func (x *exchange) sendReferrers(manifests []oci.Referrer) error {
	if manifests == nil {
		manifests = []oci.Referrer{}
	}
	if x.at.query.artifactType != "" {
		x.Header()["Oci-Filters-Applied"] = filteredHeaders
	}
	return x.sendJSON(indexType, struct {
		SchemaVersion int            `json:"schemaVersion"`
		MediaType     string         `json:"mediaType"`
		Manifests     []oci.Referrer `json:"manifests"`
	}{2, imageIndex, manifests})
}

// sendJSON writes v without changing what strangers wrote: "<" stays "<".
func (x *exchange) sendJSON(contentType []string, v any) error {
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		x.Header().Del("Oci-Filters-Applied")
		x.Header().Del("Link")
		return err
	}
	return x.sendBytes(contentType, body.Bytes())
}

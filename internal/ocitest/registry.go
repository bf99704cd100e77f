package ocitest

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"entrepot/oci"
)

// serveRegistry is the distribution API, pull side.
func (h *Hub) serveRegistry(a *answer) {
	a.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if !a.admit() {
		return
	}
	if a.req.Method != http.MethodGet && a.req.Method != http.MethodHead {
		a.refuse(http.StatusMethodNotAllowed, "UNSUPPORTED", "the operation is unsupported")
		return
	}
	h.mu.Lock()
	known, account := h.repos[a.rec.Repo] != nil, a.rec.Account
	h.mu.Unlock()
	if a.habits.HidePrivate && !h.mayRead(account, a.rec.Repo, false) {
		known = false
	}
	switch {
	case a.rec.Kind == Ping:
		a.json(struct{}{})
	case a.rec.Kind == Other:
		http.NotFound(a, a.req)
	case !known:
		a.refuse(http.StatusNotFound, "NAME_UNKNOWN", "repository name not known to registry")
	case a.habits.RefuseHead != 0 && a.req.Method == http.MethodHead:
		a.refuse(a.habits.RefuseHead, "UNSUPPORTED", "the operation is unsupported")
	case a.rec.Kind == Manifest:
		h.serveManifest(a)
	case a.rec.Kind == BlobKind:
		h.serveBlob(a)
	case a.rec.Kind == Tags:
		h.serveTags(a)
	default:
		h.serveReferrers(a)
	}
}

// lookup finds content by tag or digest.
func (h *Hub) lookup(repo string, kind Kind, reference string) (Content, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.repos[repo]
	if r == nil {
		return Content{}, false
	}
	d, byTag := r.tags[reference]
	if kind == BlobKind || !byTag {
		var err error
		if d, err = oci.ParseDigest(reference); err != nil {
			return Content{}, false
		}
	}
	held := r.manifests
	if kind == BlobKind {
		held = r.blobs
	}
	c, ok := held[d]
	return c, ok
}

func (h *Hub) serveManifest(a *answer) {
	if !h.count(a) {
		return
	}
	c, ok := h.lookup(a.rec.Repo, Manifest, a.rec.Reference)
	if ok && a.habits.StrictAccept && !accepts(a.req.Header["Accept"], c.MediaType) {
		ok = false
	}
	if !ok {
		a.refuse(http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown")
		return
	}
	if a.habits.RedirectManifests {
		a.redirect(Manifest, c)
		return
	}
	a.manifest(c)
}

// manifest answers with a manifest, at the registry or where it redirects to.
func (a *answer) manifest(c Content) {
	a.Header().Set("Content-Type", c.MediaType)
	if a.habits.ManifestType != "" {
		a.Header().Set("Content-Type", a.habits.ManifestType)
	}
	a.Header().Set("Etag", strconv.Quote(c.Digest.String()))
	if !a.habits.OmitDigest {
		a.Header().Set("Docker-Content-Digest", c.Digest.String())
	}
	a.content(c)
}

func accepts(lines []string, mediaType string) bool {
	for _, line := range lines {
		for part := range strings.SplitSeq(line, ",") {
			kind, _, _ := strings.Cut(strings.TrimSpace(part), ";")
			if kind == mediaType || kind == "*/*" {
				return true
			}
		}
	}
	return len(lines) == 0
}

// count spends a pull where that counts and writes the quota's headers. It
// answers by itself, and reports false, when the quota is spent.
func (h *Hub) count(a *answer) bool {
	get := a.req.Method == http.MethodGet
	limit := a.habits.PullLimit
	if a.habits.Uncounted != "" && a.rec.Repo == a.habits.Uncounted {
		return true
	}
	h.mu.Lock()
	allowed := !get || limit == 0 || h.spent[a.rec.Account] < limit
	if get && allowed {
		h.spent[a.rec.Account]++
		a.rec.Counted = true
	}
	left := max(0, limit-h.spent[a.rec.Account])
	h.mu.Unlock()
	if limit == 0 {
		return true
	}
	window := a.habits.PullWindow
	if window == 0 {
		window = 6 * time.Hour
	}
	source := a.rec.Account
	if source == "" {
		source = "127.0.0.1"
	}
	a.Header()["ratelimit-limit"] = []string{fmt.Sprintf("%d;w=%d", limit, int(window.Seconds()))}
	a.Header()["ratelimit-remaining"] = []string{fmt.Sprintf("%d;w=%d", left, int(window.Seconds()))}
	a.Header()["docker-ratelimit-source"] = []string{source}
	if !allowed {
		a.Header().Set("Content-Type", "application/json")
		a.Header().Set("Content-Length", strconv.Itoa(len(quotaBody)))
		a.status(http.StatusTooManyRequests)
		a.text(quotaBody)
	}
	return allowed
}

func (h *Hub) serveBlob(a *answer) {
	c, ok := h.lookup(a.rec.Repo, BlobKind, a.rec.Reference)
	switch {
	case !ok:
		a.refuse(http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown to registry")
	case a.habits.InlineBlobs:
		if !a.habits.OmitDigest {
			a.Header().Set("Docker-Content-Digest", c.Digest.String())
		}
		a.blob(c)
	default:
		a.redirect(BlobKind, c)
	}
}

func (a *answer) blob(c Content) {
	a.Header().Set("Content-Type", "application/octet-stream")
	if a.habits.BlobType != "" {
		a.Header().Set("Content-Type", a.habits.BlobType)
	}
	a.Header().Set("Etag", strconv.Quote(c.Digest.Hex()))
	a.content(c)
}

func (h *Hub) serveTags(a *answer) {
	h.mu.Lock()
	tags := []string{}
	for tag := range h.repos[a.rec.Repo].tags {
		tags = append(tags, tag)
	}
	h.mu.Unlock()
	slices.Sort(tags)
	query := a.req.URL.Query()
	n := a.habits.TagPage
	if asked, err := strconv.Atoi(query.Get("n")); err == nil && (n == 0 || asked < n) {
		n = asked
	}
	if !a.habits.IgnorePaging {
		if last := query.Get("last"); last != "" {
			i, found := slices.BinarySearch(tags, last)
			if found {
				i++
			}
			tags = tags[i:]
		}
		if (n > 0 || query.Get("n") == "0") && len(tags) > n {
			tags = tags[:n]
			if n > 0 {
				next := url.Values{"n": {strconv.Itoa(n)}, "last": {tags[n-1]}}
				a.Header().Set("Link", fmt.Sprintf(`</v2/%s/tags/list?%s>; rel="next"`, a.rec.Repo, next.Encode()))
			}
		}
	}
	a.json(map[string]any{"name": a.rec.Repo, "tags": tags})
}

func (h *Hub) serveReferrers(a *answer) {
	if !a.habits.Referrers {
		http.Error(a, "404 page not found", http.StatusNotFound)
		return
	}
	subject, err := oci.ParseDigest(a.rec.Reference)
	if err != nil {
		a.refuse(http.StatusBadRequest, "DIGEST_INVALID", "invalid digest")
		return
	}
	h.mu.Lock()
	images := slices.Clone(h.repos[a.rec.Repo].referrers[subject])
	h.mu.Unlock()
	kind := a.req.URL.Query().Get("artifactType")
	if kind != "" {
		a.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	a.Header().Set("Content-Type", indexType)
	a.content(referrersIndex(images, kind))
}

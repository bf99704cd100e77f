package upstream

import (
	"context"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"entrepot/oci"
	"entrepot/ratelimit"
)

// Bounds on a list as a whole. A list that is longer is an error: a part of it
// would look like the whole.
const (
	maxPages     = 500
	maxPageBody  = 8 << 20
	maxListBody  = 64 << 20
	maxTags      = 500_000
	maxReferrers = 20_000
	// tagPage is the page size we ask for; ECR refuses more.
	tagPage = 1000
)

// Tags reads an upstream's whole list, page by page, then sorts it and cuts out
// the page that was asked for. Upstreams differ in the order that "last" is
// meant in, and some ignore it: without the whole list a page would silently
// lack entries. The pages that follow a first one come from the same list for a
// while, so that paging through costs no more than the list.
func (c *Client) Tags(ctx context.Context, repo oci.Repository, page oci.Page, ask oci.Ask) (oci.TagList, oci.Outcome, error) {
	if page.Last != "" && !ask.Refresh {
		if l, ok := c.recent.get(repo.Path, time.Now()); ok {
			return page.Of(l.tags), oci.Outcome{Cache: oci.Hit, Checked: l.read, Why: "the list that the page before came from"}, nil
		}
	}
	q := &question{repo: repo, ask: ask}
	tags, err := inOrder(ctx, c, q, ratelimit.List, func(ctx context.Context, q *question, s *site) ([]string, error) {
		return s.allTags(ctx, q)
	})
	if err != nil {
		return oci.TagList{}, q.failed(), fmt.Errorf("tags of %s: %w", repo, err)
	}
	list := page.Of(tags)
	if list.More {
		c.recent.put(repo.Path, tagList{tags: tags, read: time.Now()})
	}
	return list, q.outcome(), nil
}

const (
	// recentFor is how long a list serves the pages after its first.
	recentFor = 30 * time.Second
	// maxRecent bounds the tags in such lists, all together.
	maxRecent = 100_000
)

// tagList is a whole list. It is not changed once it is made.
type tagList struct {
	tags []string
	read time.Time
}

// recentLists keeps lists that somebody may be paging through.
type recentLists struct {
	mu    sync.Mutex // guards what follows
	lists map[string]tagList
	held  int // tags in them
}

func (r *recentLists) get(repo string, now time.Time) (tagList, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l, ok := r.lists[repo]
	return l, ok && now.Sub(l.read) < recentFor
}

// put makes room by forgetting all that is there: at worst a page costs its
// list again.
func (r *recentLists) put(repo string, l tagList) {
	if len(l.tags) > maxRecent {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held -= len(r.lists[repo].tags)
	if r.held+len(l.tags) > maxRecent {
		clear(r.lists)
		r.held = 0
	}
	r.lists[repo] = l
	r.held += len(l.tags)
}

func (s *site) allTags(ctx context.Context, q *question) ([]string, error) {
	start := withQuery(s.url(oci.Request{Kind: oci.TagsKind, Name: q.repo.Path}), url.Values{"n": {strconv.Itoa(tagPage)}})
	seen := map[string]bool{}
	err := s.pages(ctx, q, request{kind: TagsKind, url: start}, oci.NameUnknown, func(a *answer, body []byte) (*url.URL, error) {
		var w struct {
			Tags []string `json:"tags"`
		}
		if err := json.Unmarshal(body, &w); err != nil {
			return nil, oci.Errorf(oci.BadUpstream, "%s sent a tag list that is not JSON: %w", a.url.Host, err)
		}
		before := len(seen)
		for _, tag := range w.Tags {
			if oci.ValidTag(tag) {
				seen[tag] = true
			}
		}
		if len(seen) > maxTags {
			return nil, oci.Errorf(oci.BadUpstream, "%s lists more than %d tags", a.url.Host, maxTags)
		}
		// A full page without a link may be the end, or may come from a
		// registry that knows "last" and no links.
		if len(w.Tags) == tagPage && len(seen) > before {
			return withQuery(start, url.Values{"last": {w.Tags[tagPage-1]}}), nil
		}
		return nil, nil
	})
	if err != nil {
		return nil, err
	}
	tags := make([]string, 0, len(seen))
	for tag := range seen {
		tags = append(tags, tag)
	}
	slices.Sort(tags)
	return tags, nil
}

// Referrers asks the referrers API: Unsupported where there is none. The answer
// holds only entries of artifactType, whether upstream filters or not.
func (c *Client) Referrers(ctx context.Context, repo oci.Repository, d oci.Digest, artifactType string, ask oci.Ask) (oci.ReferrerList, oci.Outcome, error) {
	q := &question{repo: repo, ask: ask}
	manifests, err := inOrder(ctx, c, q, ratelimit.List, func(ctx context.Context, q *question, s *site) ([]oci.Referrer, error) {
		return s.allReferrers(ctx, q, d, artifactType)
	})
	if err != nil {
		return oci.ReferrerList{}, q.failed(), fmt.Errorf("referrers of %s@%s: %w", repo, d, err)
	}
	return oci.ReferrerList{Manifests: manifests}, q.outcome(), nil
}

func (s *site) allReferrers(ctx context.Context, q *question, d oci.Digest, artifactType string) ([]oci.Referrer, error) {
	u := s.url(oci.Request{Kind: oci.ReferrersKind, Name: q.repo.Path, Digest: d})
	if artifactType != "" {
		u = withQuery(u, url.Values{"artifactType": {artifactType}})
	}
	list := []oci.Referrer{}
	seen := map[oci.Digest]bool{}
	r := request{kind: ReferrersKind, url: u, accept: indexType}
	err := s.pages(ctx, q, r, oci.Unsupported, func(a *answer, body []byte) (*url.URL, error) {
		page, err := readReferrers(a, body)
		if err != nil {
			return nil, err
		}
		for _, m := range page {
			if !m.Digest.IsZero() && !seen[m.Digest] && (artifactType == "" || m.ArtifactType == artifactType) {
				seen[m.Digest] = true
				list = append(list, m)
			}
		}
		if len(list) > maxReferrers {
			return nil, oci.Errorf(oci.BadUpstream, "%s lists more than %d referrers", a.url.Host, maxReferrers)
		}
		return nil, nil
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

// indexType is what a list of referrers is (distribution-spec, "Listing
// Referrers").
const indexType = "application/vnd.oci.image.index.v1+json"

// readReferrers reads one page: an index, and nothing that only looks like an
// answer, such as a page for humans.
func readReferrers(a *answer, body []byte) ([]oci.Referrer, error) {
	var w struct {
		MediaType string         `json:"mediaType"`
		Manifests []oci.Referrer `json:"manifests"`
	}
	if err := json.Unmarshal(body, &w); err != nil {
		return nil, oci.Errorf(oci.BadUpstream, "%s sent referrers that are no index: %w", a.url.Host, err)
	}
	contentType, _, _ := mime.ParseMediaType(a.header.Get("Content-Type"))
	if contentType != indexType && w.MediaType != indexType {
		return nil, oci.Errorf(oci.BadUpstream, "%s sent referrers as %.80q, which is no index", a.url.Host, contentType)
	}
	return w.Manifests, nil
}

// pages gets a list page by page: where an answer's Link leads, or else where
// read says. unknown is what a 404 means.
func (s *site) pages(ctx context.Context, q *question, r request, unknown oci.Code, read func(*answer, []byte) (*url.URL, error)) error {
	r.method, r.class = http.MethodGet, ratelimit.List
	var total int64
	for range maxPages {
		a, body, err := s.page(ctx, q, r, unknown)
		if err != nil {
			return err
		}
		if total += int64(len(body)); total > maxListBody {
			return oci.Errorf(oci.BadUpstream, "%s sent a list of more than %d bytes", a.url.Host, maxListBody)
		}
		next, err := read(a, body)
		if err != nil {
			return err
		}
		linked, err := linkTarget(a)
		if err != nil {
			return err
		}
		if linked != nil {
			next = linked
		}
		if next == nil {
			return nil
		}
		if next.String() == r.url.String() {
			return oci.Errorf(oci.BadUpstream, "%s sent a page that links to itself", a.url.Host)
		}
		r.url = next
	}
	return oci.Errorf(oci.BadUpstream, "%s sent a list of more than %d pages", s.endpoint.Host, maxPages)
}

func (s *site) page(ctx context.Context, q *question, r request, unknown oci.Code) (*answer, []byte, error) {
	a, err := s.follow(ctx, q, r)
	if err != nil {
		return nil, nil, err
	}
	defer a.close()
	if a.status != http.StatusOK {
		return nil, nil, s.listRefusal(a, unknown)
	}
	body, err := readAll(a, maxPageBody, "page of a list")
	return a, body, err
}

// listRefusal maps what is no list. A registry without the referrers API answers
// its route as it does any unknown one; with it, it never answers 404, unless we asked
// as nobody, from whom it may hide the repository: that is then soon asked again.
func (s *site) listRefusal(a *answer, unknown oci.Code) error {
	if unknown == oci.Unsupported {
		switch a.status {
		case http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusNotImplemented:
			e := oci.Errorf(oci.Unsupported, "%s has no referrers API", a.url.Host)
			if a.without {
				e.RetryAfter = minRefusal
			}
			return e
		}
	}
	return s.refusal(a, unknown)
}

// linkTarget is the next page that an answer links to, nil if none. It has to be
// on the host that links: a registry behind a proxy that ends TLS may write the
// wrong scheme or port, so only path and query are taken.
func linkTarget(a *answer) (*url.URL, error) {
	link := nextLink(a.header)
	if link == "" {
		return nil, nil
	}
	u, err := a.url.Parse(link)
	if err != nil || u.Hostname() != a.url.Hostname() || u.User != nil {
		return nil, oci.Errorf(oci.BadUpstream, "%s links to a next page elsewhere", a.url.Host)
	}
	next := *a.url
	next.Path, next.RawPath, next.RawQuery = u.Path, u.RawPath, u.RawQuery
	return &next, nil
}

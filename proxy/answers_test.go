package proxy

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/oci"

	"github.com/google/go-cmp/cmp"
)

var (
	manifestDigest = oci.Sum(helloManifest)
	blobDigest     = oci.Sum([]byte(helloBlob))
	emptyDigest    = oci.Sum(nil)
	unknownDigest  = oci.Sum([]byte("nobody has this"))
)

func byTag() string    { return "/v2/library/hello/manifests/latest" }
func byDigest() string { return "/v2/library/hello/manifests/" + manifestDigest.String() }
func theBlob() string  { return "/v2/library/hello/blobs/" + blobDigest.String() }

// What every answer tells: design section 9.
func TestEveryAnswerTellsWhatItIs(t *testing.T) {
	for _, c := range []struct {
		name    string
		method  string
		path    string
		fault   func(*registry)
		status  int
		body    string // "" for any
		headers []string
	}{
		{"ping", "GET", "/v2/", nil, 200, "{}", []string{"Docker-Distribution-Api-Version", "registry/2.0", "Content-Type", "application/json", "Content-Length", "2"}},
		{"ping without slash", "GET", "/v2", nil, 200, "{}", nil},
		{"ping HEAD", "HEAD", "/v2/", nil, 200, "", []string{"Docker-Distribution-Api-Version", "registry/2.0", "Content-Length", "2"}},
		{"manifest by tag", "GET", byTag(), nil, 200, string(helloManifest), []string{
			"Docker-Content-Digest", manifestDigest.String(), "Content-Length", strconv.Itoa(len(helloManifest)), "Content-Type", manifestType,
			"Etag", `"` + manifestDigest.String() + `"`, "X-Entrepot-Cache", "hit", "Warning", "-", "Content-Encoding", "-",
		}},
		{"manifest by tag HEAD", "HEAD", byTag(), nil, 200, "", []string{
			"Docker-Content-Digest", manifestDigest.String(), "Content-Length", strconv.Itoa(len(helloManifest)), "Content-Type", manifestType, "X-Entrepot-Cache", "hit",
		}},
		{"manifest by digest", "GET", byDigest(), nil, 200, string(helloManifest), []string{
			"Docker-Content-Digest", manifestDigest.String(), "Content-Length", strconv.Itoa(len(helloManifest)), "Content-Type", manifestType, "X-Entrepot-Cache", "hit",
		}},
		{"manifest by digest HEAD", "HEAD", byDigest(), nil, 200, "", []string{
			"Docker-Content-Digest", manifestDigest.String(), "Content-Length", strconv.Itoa(len(helloManifest)), "Content-Type", manifestType,
		}},
		{"blob", "GET", theBlob(), nil, 200, helloBlob, []string{
			"Docker-Content-Digest", blobDigest.String(), "Content-Length", "10", "Content-Type", octetStream, "Accept-Ranges", "bytes",
			"Etag", `"` + blobDigest.String() + `"`, "X-Entrepot-Cache", "hit",
		}},
		{"blob HEAD", "HEAD", theBlob(), nil, 200, "", []string{
			"Docker-Content-Digest", blobDigest.String(), "Content-Length", "10", "Content-Type", octetStream, "Accept-Ranges", "bytes", "X-Entrepot-Cache", "hit",
		}},
		{"empty blob", "GET", "/v2/library/hello/blobs/" + emptyDigest.String(), nil, 200, "", []string{"Content-Length", "0", "Docker-Content-Digest", emptyDigest.String()}},
		{"miss", "GET", byTag(), func(g *registry) { g.outcome.Cache = oci.Miss }, 200, "", []string{"X-Entrepot-Cache", "miss", "Warning", "-"}},
		{"joined", "GET", theBlob(), func(g *registry) { g.outcome.Cache = oci.Joined }, 200, "", []string{"X-Entrepot-Cache", "joined"}},
		{"bypass", "GET", theBlob(), func(g *registry) { g.outcome.Cache = oci.Bypass }, 200, "", []string{"X-Entrepot-Cache", "bypass"}},
		{"stale", "GET", byTag(), func(g *registry) { g.outcome = oci.Outcome{Cache: oci.Stale, Why: "upstream answered 429"} }, 200, "", []string{
			"X-Entrepot-Cache", "stale", "Warning", `299 - "upstream answered 429"`,
		}},
		{"stale HEAD", "HEAD", byTag(), func(g *registry) { g.outcome = oci.Outcome{Cache: oci.Stale} }, 200, "", []string{
			"X-Entrepot-Cache", "stale", "Warning", `299 - "served from the cache: upstream could not confirm it"`,
		}},
		{"stale, why is hostile", "GET", byTag(), func(g *registry) {
			g.outcome = oci.Outcome{Cache: oci.Stale, Why: "a \"b\" \\ c\r\nSet-Cookie: x=y\x00é"}
		}, 200, "", []string{"Warning", `299 - "a \"b\" \\ c??Set-Cookie: x=y???"`, "Set-Cookie", "-"}},
		{"stale tags", "GET", "/v2/library/hello/tags/list", func(g *registry) { g.outcome = oci.Outcome{Cache: oci.Stale} }, 200, "", []string{"X-Entrepot-Cache", "stale"}},
		{"unknown cache word", "GET", byTag(), func(g *registry) { g.outcome.Cache = "" }, 200, "", []string{"X-Entrepot-Cache", "-"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := helloRegistry(t)
			if c.fault != nil {
				c.fault(g)
			}
			d := newDoor(t, g, Config{})
			got := d.do(c.method, c.path)
			if got.StatusCode != c.status || got.err != nil {
				t.Fatalf("got %s (%v) %s, want %d", got.Status, got.err, got.body, c.status)
			}
			if c.body != "" && got.body != c.body {
				t.Errorf("body: got %q, want %q", got.body, c.body)
			}
			if c.method == "HEAD" && got.body != "" {
				t.Errorf("HEAD has a body: %q", got.body)
			}
			expectHeaders(t, got.Header, c.headers...)
		})
	}
}

// Every code that a source may return: status, OCI JSON, Retry-After.
func TestEveryErrorIsOCIJSON(t *testing.T) {
	for _, c := range []struct {
		name    string
		err     error
		status  int
		code    string
		headers []string
	}{
		{"manifest unknown", oci.ErrManifestUnknown, 404, "MANIFEST_UNKNOWN", []string{"Retry-After", "-"}},
		{"name unknown", oci.ErrNameUnknown, 404, "NAME_UNKNOWN", nil},
		{"denied", oci.ErrDenied, 403, "DENIED", nil},
		{"quota", &oci.Error{Code: oci.TooManyRequests, RetryAfter: 90 * time.Second}, 429, "TOOMANYREQUESTS", []string{"Retry-After", "90"}},
		{"quota, nobody says how long", oci.ErrTooManyRequests, 429, "TOOMANYREQUESTS", []string{"Retry-After", "5"}},
		{"down", fmt.Errorf("ask: %w", oci.ErrUnavailable), 503, "UNAVAILABLE", []string{"Retry-After", "5"}},
		{"nonsense", oci.Errorf(oci.BadUpstream, "html"), 502, "UNAVAILABLE", nil},
		{"slow", oci.Errorf(oci.Timeout, "no answer"), 504, "UNAVAILABLE", nil},
		{"bug", errors.New("secret password hunter2"), 500, "UNKNOWN", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := helloRegistry(t)
			g.outcome = oci.Outcome{}
			var fail error = c.err
			only := ""
			g.before = func(_ context.Context, method string) error {
				if only == "" || method == only {
					return fail
				}
				return nil
			}
			d := newDoor(t, g, Config{})
			paths := []string{byTag(), byDigest(), theBlob(), "/v2/library/hello/tags/list", "/v2/library/hello/referrers/" + manifestDigest.String()}
			check := func(method, path string) {
				t.Helper()
				got := d.do(method, path)
				expectError(t, got, c.status, c.code)
				expectHeaders(t, got.Header, append(c.headers, "Docker-Content-Digest", "-", "Etag", "-")...)
				if strings.Contains(got.body, "hunter2") {
					t.Errorf("the cause of an internal error reached the client: %s", got.body)
				}
				if rec := d.record(); rec.Status != c.status || !errors.Is(rec.Err, c.err) {
					t.Errorf("record: got %d %v, want %d %v", rec.Status, rec.Err, c.status, c.err)
				}
			}
			for _, path := range paths {
				check("GET", path)
				check("HEAD", path)
			}
			for _, only = range []string{"Manifest", "Open"} {
				path := byTag()
				if only == "Open" {
					path = theBlob()
				}
				check("GET", path)
			}
			only = "Stat"
			check("HEAD", theBlob())
		})
	}
}

// TestNoErrorSaysWhereItIsFrom: the mark is about content, and what a client gets
// instead of it has none, whatever went wrong, whichever part of the question was
// answered before, and from where.
func TestNoErrorSaysWhereItIsFrom(t *testing.T) {
	referrers := "/v2/library/hello/referrers/" + manifestDigest.String()
	for _, refuse := range []bool{false, true} {
		g, cfg := helloRegistry(t), Config{}
		if refuse {
			cfg.Refuse = func(_ *http.Request, _ oci.Request, err error, _ http.Header) error { return err }
		}
		d := newDoor(t, g, cfg)
		for _, mark := range []oci.CacheStatus{oci.Hit, oci.Miss, oci.Stale, oci.Joined, oci.Bypass} {
			for code := oci.Internal; code <= oci.RangesRefused; code++ {
				for _, row := range []struct{ fails, method, path string }{
					{"Resolve", "GET", byTag()},
					{"Resolve", "HEAD", byTag()},
					{"Manifest", "GET", byTag()},
					{"Manifest", "GET", byDigest()},
					{"Stat", "HEAD", theBlob()},
					{"Open", "GET", theBlob()},
					{"Tags", "GET", "/v2/library/hello/tags/list"},
					{"Referrers", "GET", referrers},
				} {
					g.outcome = oci.Outcome{Cache: mark, Why: "why", Spent: 1}
					g.before = func(_ context.Context, method string) error {
						if method == row.fails {
							return &oci.Error{Code: code}
						}
						return nil
					}
					got := d.do(row.method, row.path)
					rec := d.record()
					what := fmt.Sprintf("%s %s, %s is answered %s from a %s", row.method, row.path, row.fails, code, mark)
					if isEmpty := refuse && row.path == referrers && code.Row().Status == http.StatusNotFound && code != oci.NotFound; !isEmpty && got.StatusCode < 400 {
						t.Errorf("%s: %s", what, got.Status)
					}
					if got.Header.Get("X-Entrepot-Cache") != "" || got.Header.Get("Warning") != "" || rec.Outcome.Cache != "" {
						t.Errorf("%s: marked %q, warning %q, record %+v", what, got.Header.Get("X-Entrepot-Cache"), got.Header.Get("Warning"), rec.Outcome)
					}
				}
			}
		}
	}
}

// expectError checks an answer that is an error: never HTML, never plain text.
func expectError(t *testing.T, got reply, status int, code string) {
	t.Helper()
	if got.StatusCode != status {
		t.Fatalf("got %s %s, want %d", got.Status, got.body, status)
	}
	if ct := got.Header.Get("Content-Type"); ct != "application/json" {
		t.Errorf("Content-Type: got %q", ct)
	}
	if got.Request.Method == http.MethodHead {
		if got.body != "" {
			t.Errorf("HEAD has a body: %s", got.body)
		}
		return
	}
	var body struct {
		Errors []struct{ Code, Message string }
	}
	if err := json.Unmarshal([]byte(got.body), &body); err != nil || len(body.Errors) != 1 {
		t.Fatalf("no OCI error: %q (%v)", got.body, err)
	}
	if body.Errors[0].Code != code || body.Errors[0].Message == "" {
		t.Errorf("got %+v, want code %s", body.Errors[0], code)
	}
}

func TestHeadTellsWhatGetTells(t *testing.T) {
	g := helloRegistry(t)
	d := newDoor(t, g, Config{Catalog: g})
	for _, path := range []string{
		"/v2/", byTag(), byDigest(), theBlob(), "/v2/library/hello/blobs/" + emptyDigest.String(), "/v2/library/hello/tags/list?n=1", "/v2/_catalog",
		"/v2/library/hello/referrers/" + manifestDigest.String() + "?artifactType=x", byTag() + "?ns=docker.io",
		"/v2/library/hello/manifests/none", "/v2/library/none/manifests/latest", "/v2/library/hello/blobs/" + unknownDigest.String(), "/v2/nothing",
	} {
		get, head := d.do("GET", path), d.do("HEAD", path)
		get.Header.Del("Date")
		head.Header.Del("Date")
		if get.StatusCode != head.StatusCode {
			t.Errorf("%s: GET %s, HEAD %s", path, get.Status, head.Status)
		}
		if diff := cmp.Diff(get.Header, head.Header); diff != "" {
			t.Errorf("%s: GET (-) and HEAD (+) differ:\n%s", path, diff)
		}
		if head.body != "" {
			t.Errorf("%s: HEAD has a body", path)
		}
	}
}

func TestTagAsksNoMoreThanItMust(t *testing.T) {
	resolve := "Resolve docker.io/library/hello latest"
	manifest := "Manifest docker.io/library/hello " + manifestDigest.String()
	withManifest := func(r oci.Resolved) oci.Resolved {
		r.Manifest = &oci.Manifest{Descriptor: r.Descriptor, Content: helloManifest}
		r.Size = -1
		return r
	}
	for _, c := range []struct {
		name     string
		method   string
		resolved func(oci.Resolved) oci.Resolved
		headers  []string
		status   int
		calls    []string
	}{
		{"GET", "GET", nil, nil, 200, []string{resolve, manifest}},
		{"HEAD", "HEAD", nil, nil, 200, []string{resolve}},
		{"HEAD, size unknown", "HEAD", func(r oci.Resolved) oci.Resolved { r.Size = -1; return r }, nil, 200, []string{resolve, manifest}},
		{"HEAD, type unknown", "HEAD", func(r oci.Resolved) oci.Resolved { r.MediaType = ""; return r }, nil, 200, []string{resolve, manifest}},
		{"GET, manifest came along", "GET", withManifest, nil, 200, []string{resolve}},
		{"HEAD, manifest came along", "HEAD", withManifest, nil, 200, []string{resolve}},
		{"GET, client has it", "GET", nil, []string{"If-None-Match", `"x", W/"` + manifestDigest.String() + `"`}, 304, []string{resolve}},
		{"HEAD, client has it", "HEAD", nil, []string{"If-None-Match", `*`}, 304, []string{resolve}},
		{"GET, client has another", "GET", nil, []string{"If-None-Match", `"` + blobDigest.String() + `"`}, 200, []string{resolve, manifest}},
		{"HEAD by digest", "HEAD by digest", nil, nil, 200, []string{"Resolve docker.io/library/hello " + manifestDigest.String()}},
		{"GET by digest", "GET by digest", nil, nil, 200, []string{manifest}},
		{"no-cache from just anybody", "GET", nil, []string{"Cache-Control", "no-cache"}, 200, []string{resolve, manifest}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := helloRegistry(t)
			g.resolved = c.resolved
			d := newDoor(t, g, Config{})
			method, path := c.method, byTag()
			if m, ok := strings.CutSuffix(method, " by digest"); ok {
				method, path = m, byDigest()
			}
			got := d.do(method, path, c.headers...)
			if got.StatusCode != c.status {
				t.Fatalf("got %s, want %d", got.Status, c.status)
			}
			if diff := cmp.Diff(c.calls, g.took()); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
			expectHeaders(t, got.Header, "Docker-Content-Digest", manifestDigest.String(), "Etag", `"`+manifestDigest.String()+`"`)
			if c.status == 200 {
				expectHeaders(t, got.Header, "Content-Length", strconv.Itoa(len(helloManifest)), "Content-Type", manifestType)
			} else if got.body != "" {
				t.Errorf("304 has a body: %q", got.body)
			}
		})
	}
}

func TestPingAsksNobody(t *testing.T) {
	g := helloRegistry(t)
	d := newDoor(t, g, Config{})
	d.do("GET", "/v2/?ns=docker.io")
	if calls := g.took(); len(calls) != 0 {
		t.Errorf("ping asked %q", calls)
	}
}

func TestRefreshOnlyWhereTheClientMay(t *testing.T) {
	g := helloRegistry(t)
	d := newDoor(t, g, Config{MayRefresh: func(r *http.Request, _ string) bool { return r.Header.Get("X-Who") == "operator" }})
	for _, c := range []struct {
		who, cacheControl, call string
	}{
		{"operator", "max-age=0, No-Cache", "Resolve docker.io/library/hello latest refresh"},
		{"operator", "max-age=0", "Resolve docker.io/library/hello latest"},
		{"stranger", "no-cache", "Resolve docker.io/library/hello latest"},
	} {
		d.do("HEAD", byDigest(), "X-Who", c.who, "Cache-Control", c.cacheControl)
		if calls := g.took(); strings.Contains(calls[0], "refresh") {
			t.Errorf("a digest was refreshed: %q", calls)
		}
		d.do("GET", byTag(), "X-Who", c.who, "Cache-Control", c.cacheControl)
		calls := g.took()
		if calls[0] != c.call || strings.Contains(calls[1], "refresh") {
			t.Errorf("%s with %q: got %q, want %q and a plain Manifest", c.who, c.cacheControl, calls, c.call)
		}
	}
}

func TestConditionalDigestRequests(t *testing.T) {
	d := newDoor(t, helloRegistry(t), Config{})
	for _, path := range []string{byDigest(), theBlob()} {
		digest := path[strings.LastIndexByte(path, '/')+1:]
		for _, method := range []string{"GET", "HEAD"} {
			got := d.do(method, path, "If-None-Match", `"`+digest+`"`)
			if got.StatusCode != 304 || got.body != "" {
				t.Errorf("%s %s: got %s %q, want 304", method, path, got.Status, got.body)
			}
			expectHeaders(t, got.Header, "Docker-Content-Digest", digest, "Etag", `"`+digest+`"`)
			for _, other := range []string{digest, `"` + digest, `""`, `"x"`, ""} {
				if got := d.do(method, path, "If-None-Match", other); got.StatusCode != 200 {
					t.Errorf("%s %s with If-None-Match %q: got %s, want 200", method, path, other, got.Status)
				}
			}
		}
	}
}

// The worst of the questions behind an answer is the answer's outcome.
func TestOutcomesAddUp(t *testing.T) {
	checked := time.Date(2026, 8, 1, 0, 0, 0, 0, time.UTC)
	x := &exchange{}
	x.learn(oci.Outcome{Cache: oci.Stale, Why: "upstream is down", Checked: checked, Spent: 2})
	x.learn(oci.Outcome{Cache: oci.Miss, Why: "not held", Spent: 1})
	want := oci.Outcome{Cache: oci.Stale, Why: "upstream is down", Checked: checked, Spent: 3}
	if diff := cmp.Diff(want, x.outcome); diff != "" {
		t.Errorf("stale, then miss (-want +got):\n%s", diff)
	}
	x = &exchange{}
	x.learn(oci.Outcome{Cache: oci.Hit, Why: "fresh", Checked: checked})
	x.learn(oci.Outcome{Cache: oci.Miss, Why: "not held", Spent: 1})
	want = oci.Outcome{Cache: oci.Miss, Why: "not held", Checked: checked, Spent: 1}
	if diff := cmp.Diff(want, x.outcome); diff != "" {
		t.Errorf("hit, then miss (-want +got):\n%s", diff)
	}
}

func TestManifestTypeThatIsNoneIsRefused(t *testing.T) {
	for mediaType, status := range map[string]int{
		"application/vnd.example.thing.v1+json": 200,
		"text/html":                             502,
		"application/json; charset=utf-8":       502,
		"application/":                          502,
		"":                                      502,
		"*/*":                                   502,
		"application/x\r\nSet-Cookie: a=b":      502,
		"application/" + strings.Repeat("long", 80): 502,
	} {
		g := helloRegistry(t)
		g.repo("docker.io/library/hello").addManifest(mediaType, []byte(`{}`), "odd")
		d := newDoor(t, g, Config{})
		for _, method := range []string{"GET", "HEAD"} {
			if got := d.do(method, "/v2/library/hello/manifests/odd"); got.StatusCode != status {
				t.Errorf("%s of %q: got %s, want %d", method, mediaType, got.Status, status)
			}
		}
	}
}

func TestWritesAreRefused(t *testing.T) {
	d := newDoor(t, helloRegistry(t), Config{})
	paths := []string{"/v2/", byTag(), byDigest(), theBlob(), "/v2/library/hello/blobs/uploads/", "/v2/library/hello/blobs/uploads", "/v2/library/hello/blobs/uploads/abc", "/v2/library/hello/tags/list", "/v2/_catalog", "/v2/Bad_Name/blobs/uploads/"}
	for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"} {
		for _, path := range paths {
			got := d.do(method, path)
			expectError(t, got, 405, "UNSUPPORTED")
			expectHeaders(t, got.Header, "Allow", "GET, HEAD")
		}
		expectError(t, d.do(method, "/v2/what/is/this"), 404, "NOT_FOUND")
	}
	expectError(t, d.do("GET", "/v2/library/hello/blobs/uploads/abc"), 405, "UNSUPPORTED")
	expectError(t, d.do("HEAD", "/v2/library/hello/blobs/uploads/abc"), 405, "UNSUPPORTED")
}

func TestPathsThatAreNoRoute(t *testing.T) {
	d := newDoor(t, helloRegistry(t), Config{})
	for _, row := range []struct {
		path   string
		status int
		code   string
	}{
		{"/", 404, "NOT_FOUND"},
		{"/v1/", 404, "NOT_FOUND"},
		{"/v2x", 404, "NOT_FOUND"},
		{"/healthz", 404, "NOT_FOUND"},
		{"//v2/", 404, "NOT_FOUND"},
		{"/v2//", 404, "NOT_FOUND"},
		{"/v2/../v2/", 404, "NOT_FOUND"},
		{"/v2/.", 404, "NOT_FOUND"},
		{"/v2/..", 404, "NOT_FOUND"},
		{"/v2/library//hello/tags/list", 404, "NOT_FOUND"},
		{"/v2/library/../hello/tags/list", 404, "NOT_FOUND"},
		{"/v2/library/%2e%2e/hello/tags/list", 404, "NOT_FOUND"},
		{"/v2/library/hello", 404, "NOT_FOUND"},
		{"/v2/library/hello/", 404, "NOT_FOUND"},
		{"/v2/library/hello/manifests", 404, "NOT_FOUND"},
		{"/v2/library/hello/tags/list/", 404, "NOT_FOUND"},
		{"/v2/_catalog/", 404, "NOT_FOUND"},
		{"/v2/_catalog", 404, "NOT_FOUND"},
		{"/v2/library/hello/manifests/", 404, "MANIFEST_UNKNOWN"},
		{"/v2/library/hello/manifests/-bad", 404, "MANIFEST_UNKNOWN"},
		{"/v2/Library/hello/manifests/latest", 400, "NAME_INVALID"},
		{"/v2/library/hello/manifests/sha256:abc", 400, "DIGEST_INVALID"},
		{"/v2/library/hello/blobs/md5:abc", 400, "DIGEST_INVALID"},
		{"/v2/library/hello/referrers/latest", 400, "DIGEST_INVALID"},
		{"/v2/evil.example/hello/manifests/latest", 404, "NAME_UNKNOWN"},
		{"/v2/docker.io/manifests/latest", 404, "NAME_UNKNOWN"},
		{"/v2/library/hello/manifests/latest?ns=evil.example", 404, "NAME_UNKNOWN"},
		{"/v2/library/hello/manifests/latest?ns=ghcr.io%2", 400, "NAME_INVALID"},
		{"/v2/library/hello/manifests/latest?ns=ghcr.io%0d%0aX", 404, "NAME_UNKNOWN"},
	} {
		got := d.do("GET", row.path)
		if got.StatusCode != row.status {
			t.Errorf("%s: got %s %s, want %d", row.path, got.Status, got.body, row.status)
			continue
		}
		expectError(t, got, row.status, row.code)
		if loc := got.Header.Get("Location"); loc != "" {
			t.Errorf("%s: redirected to %s", row.path, loc)
		}
	}
}

func TestNames(t *testing.T) {
	g := helloRegistry(t)
	g.repo("ghcr.io/org/app").addManifest(manifestType, []byte(`{}`), "v1")
	g.repo("localhost:5001/app").addManifest(manifestType, []byte(`{"a":1}`), "v1")
	d := newDoor(t, g, Config{})
	cases := []struct {
		path, host, repo, ns string
	}{
		{"/v2/hello/manifests/latest", "", "docker.io/library/hello", "-"},
		{"/v2/library/hello/manifests/latest", "", "docker.io/library/hello", "-"},
		{"/v2/library%2Fhello/manifests/latest", "", "docker.io/library/hello", "-"},
		{"/v2/docker.io/hello/manifests/latest", "", "docker.io/library/hello", "-"},
		{"/v2/index.docker.io/library/hello/manifests/latest", "", "docker.io/library/hello", "-"},
		{"/v2/library/hello/manifests/latest?ns=docker.io", "", "docker.io/library/hello", "docker.io"},
		{"/v2/docker.io/library/hello/manifests/latest?ns=docker.io", "", "docker.io/library/hello", "docker.io"},
		{"/v2/org/app/manifests/v1?ns=ghcr.io", "", "ghcr.io/org/app", "ghcr.io"},
		{"/v2/ghcr.io/org/app/manifests/v1", "", "ghcr.io/org/app", "-"},
		{"/v2/app/manifests/v1?ns=localhost%3A5001", "", "localhost:5001/app", "localhost:5001"},
		{"/v2/hello/manifests/latest?ns=cache.local:5000", "cache.local:5000", "docker.io/library/hello", "-"},
		{"/v2/hello/manifests/latest?ns=cache.example", "", "docker.io/library/hello", "-"},
		{"/v2/hello/manifests/latest?ns=", "", "docker.io/library/hello", "-"},
	}
	for _, c := range slices.Concat(cases, cases) { // what they mean is known the second time
		headers := []string{}
		if c.host != "" {
			headers = []string{"Host", c.host}
		}
		got := d.do("GET", c.path, headers...)
		rec := d.record()
		if got.StatusCode != 200 || rec.Repository.String() != c.repo {
			t.Errorf("%s: got %s from %s, want 200 from %s", c.path, got.Status, rec.Repository, c.repo)
		}
		expectHeaders(t, got.Header, "Oci-Namespace", c.ns)
	}
	got := d.do("GET", "/v2/library/none/manifests/latest?ns=docker.io")
	expectError(t, got, 404, "NAME_UNKNOWN")
	expectHeaders(t, got.Header, "Oci-Namespace", "docker.io")
}

func TestTags(t *testing.T) {
	g := helloRegistry(t)
	g.repo("docker.io/library/bare")
	d := newDoor(t, g, Config{})
	list := "/v2/library/hello/tags/list"
	for _, c := range []struct {
		path   string
		status int
		tags   []string
		link   string
		name   string
	}{
		{list, 200, []string{"latest", "v1", "v2"}, "-", "library/hello"},
		{list + "?n=2", 200, []string{"latest", "v1"}, `</v2/library/hello/tags/list?n=2&last=v1>; rel="next"`, "library/hello"},
		{list + "?n=2&last=v1", 200, []string{"v2"}, "-", "library/hello"},
		{list + "?n=3", 200, []string{"latest", "v1", "v2"}, "-", "library/hello"},
		{list + "?n=0", 200, []string{}, "-", "library/hello"},
		{list + "?last=zzz", 200, []string{}, "-", "library/hello"},
		{"/v2/docker.io/library/hello/tags/list?n=1", 200, []string{"latest"}, `</v2/docker.io/library/hello/tags/list?n=1&last=latest>; rel="next"`, "docker.io/library/hello"},
		{"/v2/hello/tags/list?n=1&ns=docker.io", 200, []string{"latest"}, `</v2/hello/tags/list?n=1&last=latest&ns=docker.io>; rel="next"`, "hello"},
		{"/v2/library/bare/tags/list", 200, []string{}, "-", "library/bare"},
		{list + "?n=-1", 400, nil, "-", ""},
		{list + "?n=x", 400, nil, "-", ""},
		{list + "?n=", 400, nil, "-", ""},
		{list + "?n=99999999999999999999", 400, nil, "-", ""},
		{"/v2/library/none/tags/list?n=0", 404, nil, "-", ""},
	} {
		got := d.do("GET", c.path)
		if got.StatusCode != c.status {
			t.Errorf("%s: got %s %s, want %d", c.path, got.Status, got.body, c.status)
			continue
		}
		expectHeaders(t, got.Header, "Link", c.link)
		if c.status != 200 {
			expectError(t, got, c.status, map[int]string{400: "PAGINATION_NUMBER_INVALID", 404: "NAME_UNKNOWN"}[c.status])
			continue
		}
		var body struct {
			Name string
			Tags []string
		}
		if err := json.Unmarshal([]byte(got.body), &body); err != nil {
			t.Fatal(err)
		}
		if body.Name != c.name || !slices.Equal(body.Tags, c.tags) || strings.Contains(got.body, "null") {
			t.Errorf("%s: got %s, want %s %q", c.path, got.body, c.name, c.tags)
		}
	}
}

// A source that gives more than was asked for, or a page without an end.
func TestTagsOfASloppySource(t *testing.T) {
	g := helloRegistry(t)
	g.listTags = func(oci.Page) (oci.TagList, error) { return oci.TagList{Tags: []string{"a", "b", "c"}}, nil }
	d := newDoor(t, g, Config{})
	got := d.do("GET", "/v2/library/hello/tags/list?n=2")
	expectHeaders(t, got.Header, "Link", `</v2/library/hello/tags/list?n=2&last=b>; rel="next"`)
	got = d.do("GET", "/v2/library/hello/tags/list?n=0")
	expectHeaders(t, got.Header, "Link", "-")
	g.listTags = func(oci.Page) (oci.TagList, error) { return oci.TagList{More: true}, nil }
	got = d.do("GET", "/v2/library/hello/tags/list")
	expectHeaders(t, got.Header, "Link", "-")
	g.listTags = func(oci.Page) (oci.TagList, error) { return oci.TagList{Tags: []string{"a b&c>"}, More: true}, nil }
	got = d.do("GET", "/v2/library/hello/tags/list")
	expectHeaders(t, got.Header, "Link", `</v2/library/hello/tags/list?last=a+b%26c%3E>; rel="next"`)
}

func TestPagesFollowedByLinkHoldEverything(t *testing.T) {
	g := newRegistry()
	var want []string
	for i := range 25 {
		name := fmt.Sprintf("docker.io/library/r%02d", i)
		g.repo(name)
		want = append(want, name)
	}
	d := newDoor(t, g, Config{Catalog: g})
	for _, start := range []string{"/v2/_catalog?n=7", "/v2/_catalog", "/v2/_catalog?n=1000000"} {
		var got []string
		for path := start; path != ""; {
			page := d.do("GET", path)
			var body struct{ Repositories []string }
			if err := json.Unmarshal([]byte(page.body), &body); err != nil {
				t.Fatalf("%s: %s: %v", path, page.body, err)
			}
			got = append(got, body.Repositories...)
			path = nextOf(page.Header.Get("Link"))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", start, diff)
		}
	}
	for _, call := range g.took() {
		if n := strings.Fields(call)[1]; n != "7" && n != "1000" {
			t.Errorf("the catalog was asked for a page of %s", n)
		}
	}
	if got := d.do("GET", "/v2/_catalog?n=0"); strings.TrimSpace(got.body) != `{"repositories":[]}` {
		t.Errorf("n=0: got %s", got.body)
	}
	expectError(t, d.do("GET", "/v2/_catalog?n=-2"), 400, "PAGINATION_NUMBER_INVALID")
	empty := newDoor(t, newRegistry(), Config{Catalog: newRegistry()})
	if got := empty.do("GET", "/v2/_catalog"); strings.TrimSpace(got.body) != `{"repositories":[]}` {
		t.Errorf("nothing held: got %s", got.body)
	}
}

func nextOf(link string) string {
	target, ok := strings.CutSuffix(link, `>; rel="next"`)
	if !ok {
		return ""
	}
	return strings.TrimPrefix(target, "<")
}

func TestReferrers(t *testing.T) {
	g := helloRegistry(t)
	c := g.repo("docker.io/library/hello")
	sbom := `{"mediaType":"m","digest":"` + blobDigest.String() + `","size":3,"artifactType":"application/sbom","annotations":{"a":"<b> & c"},"unknown":[1,2.50]}`
	sig := `{"mediaType":"m","digest":"` + unknownDigest.String() + `","size":3,"artifactType":"application/sig"}`
	c.addReferrer(manifestDigest, sbom)
	c.addReferrer(manifestDigest, sig)
	d := newDoor(t, g, Config{})
	path := "/v2/library/hello/referrers/"
	for _, row := range []struct {
		path, manifests, filters string
	}{
		{path + manifestDigest.String(), sbom + "," + sig, "-"},
		{path + manifestDigest.String() + "?artifactType=application%2Fsig", sig, "artifactType"},
		{path + manifestDigest.String() + "?artifactType=none", "", "artifactType"},
		{path + unknownDigest.String(), "", "-"},
	} {
		got := d.do("GET", row.path)
		want := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[` + row.manifests + `]}`
		if got.StatusCode != 200 || strings.TrimSpace(got.body) != want {
			t.Errorf("%s: got %s\n%s\nwant\n%s", row.path, got.Status, got.body, want)
		}
		expectHeaders(t, got.Header, "Content-Type", "application/vnd.oci.image.index.v1+json", "Oci-Filters-Applied", row.filters, "Content-Length", strconv.Itoa(len(got.body)))
	}
	c.referrers[emptyDigest] = []oci.Referrer{{Digest: blobDigest}} // a source's bug: no entry to give back
	got := d.do("GET", path+emptyDigest.String()+"?artifactType=")
	expectError(t, got, 500, "UNKNOWN")
}

// Request bodies on a pull mean nothing: they are read away within bounds.
func TestRequestBodyIsIgnored(t *testing.T) {
	d := newDoor(t, helloRegistry(t), Config{})
	for _, size := range []int{1, 1 << 10, 1 << 20} {
		for _, chunked := range []bool{false, true} {
			var body io.Reader = strings.NewReader(strings.Repeat("x", size))
			if chunked {
				body = io.MultiReader(body)
			}
			req, err := http.NewRequestWithContext(t.Context(), "GET", d.url+theBlob(), body)
			if err != nil {
				t.Fatal(err)
			}
			if got := d.send(req); got.StatusCode != 200 || got.body != helloBlob {
				t.Errorf("got %s %q", got.Status, got.body)
			}
		}
	}
}

// A body that never comes delays the refusal for five seconds, no longer; a pull
// with such a body is cut.
func TestRequestBodyThatNeverComes(t *testing.T) {
	for _, expect := range []string{"", "Expect: 100-continue\r\n"} {
		synctest.Test(t, func(t *testing.T) {
			g := helloRegistry(t)
			d, done := newPipeDoor(t, g, Config{})
			defer done()
			conn, err := d.client.Transport.(*http.Transport).DialContext(t.Context(), "tcp", "cache.test:80")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			start := time.Now()
			if _, err := io.WriteString(conn, "PUT "+byTag()+" HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n"+expect+"\r\n"); err != nil {
				t.Fatal(err)
			}
			br := bufio.NewReader(conn)
			resp, err := http.ReadResponse(br, nil)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != 405 || !resp.Close || time.Since(start) > 5*time.Second {
				t.Errorf("got %s after %v, close %v", resp.Status, time.Since(start), resp.Close)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			if _, err := br.ReadByte(); err != io.EOF || time.Since(start) > 6*time.Second {
				t.Errorf("connection: %v after %v, want closed", err, time.Since(start))
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		d, done := newPipeDoor(t, helloRegistry(t), Config{})
		defer done()
		conn, err := d.client.Transport.(*http.Transport).DialContext(t.Context(), "tcp", "cache.test:80")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		start := time.Now()
		if _, err := io.WriteString(conn, "GET "+byTag()+" HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if answer, err := io.ReadAll(conn); len(answer) > 0 || err != nil {
			t.Errorf("answered %q, %v", answer, err)
		}
		if rec := d.record(); !errors.Is(rec.Err, ErrClientGone) || rec.Status != StatusClientGone || time.Since(start) != 5*time.Second {
			t.Errorf("recorded %d %v after %v", rec.Status, rec.Err, time.Since(start))
		}
	})
}

// The bound on the body's arrival is none on the answer's departure.
func TestRequestBodyDoesNotCutALongAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := helloRegistry(t)
		pieces := fed(g, false, nil)
		d, done := newPipeDoor(t, g, Config{})
		defer done()
		go func() {
			for _, c := range helloBlob {
				time.Sleep(time.Minute) // synctest's clock
				pieces <- string(c)
			}
			close(pieces)
		}()
		req, err := http.NewRequestWithContext(t.Context(), "GET", d.url+theBlob(), strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		if got := d.send(req); got.body != helloBlob || got.err != nil {
			t.Errorf("got %q, %v", got.body, got.err)
		}
	})
}

// On one connection: what a cleaning router would redirect, and a request after
// a refused write with a body.
func TestRawConnection(t *testing.T) {
	d := newDoor(t, helloRegistry(t), Config{})
	conn, err := net.Dial("tcp", strings.TrimPrefix(d.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	br := bufio.NewReader(conn)
	for _, c := range []struct {
		request string
		status  int
	}{
		{"POST /v2/library/hello/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody", 405},
		{"GET /v2/library/./hello/manifests/latest HTTP/1.1\r\nHost: x\r\n\r\n", 404},
		{"GET //v2/ HTTP/1.1\r\nHost: x\r\n\r\n", 404},
		{"GET http://x/v2/ HTTP/1.1\r\nHost: x\r\n\r\n", 200},
		{"GET /v2/library/hello/manifests/latest?ns=docker.io HTTP/1.1\r\nHost: x\r\n\r\n", 200},
	} {
		if _, err := io.WriteString(conn, c.request); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatalf("%q: %v", c.request, err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		if resp.StatusCode != c.status {
			t.Errorf("%q: got %s, want %d", c.request, resp.Status, c.status)
		}
	}
}

func TestRecordTellsTheRequest(t *testing.T) {
	g := helloRegistry(t)
	g.outcome = oci.Outcome{Cache: oci.Miss, Why: "not held", Spent: 2}
	d := newDoor(t, g, Config{})
	d.do("GET", byTag(), "User-Agent", strings.Repeat("u", 300))
	got := d.record()
	if got.Duration <= 0 {
		t.Errorf("duration: %v", got.Duration)
	}
	got.Duration = 0
	want := Record{
		Method: "GET", Kind: "manifest", Client: "127.0.0.1", UserAgent: strings.Repeat("u", 200),
		Repository: oci.Repository{Host: "docker.io", Path: "library/hello"}, Reference: "latest",
		Outcome: oci.Outcome{Cache: oci.Miss, Why: "not held", Spent: 4}, Status: 200, Bytes: int64(len(helloManifest)),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for path, kind := range map[string]string{
		"/v2/": "ping", theBlob(): "blob", "/v2/library/hello/tags/list": "tags", "/v2/nothing": "none",
		"/v2/library/hello/blobs/uploads/": "upload", "/v2/library/hello/manifests/-bad": "manifest", "/v2/_catalog": "catalog",
	} {
		got := d.do("GET", path)
		rec := d.record()
		if rec.Kind != kind || rec.Bytes != int64(len(got.body)) || rec.Status != got.StatusCode {
			t.Errorf("%s: recorded %s, %d bytes, %d; want %s, %d, %d", path, rec.Kind, rec.Bytes, rec.Status, kind, len(got.body), got.StatusCode)
		}
		d.do("HEAD", path)
		if rec := d.record(); rec.Bytes != 0 {
			t.Errorf("HEAD %s: recorded %d bytes", path, rec.Bytes)
		}
	}
}

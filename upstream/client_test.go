package upstream

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"entrepot/internal/ocitest"
	"entrepot/oci"
	"entrepot/ratelimit"
)

func TestMain(m *testing.M) { ocitest.Main(m) }

var alpine = oci.Repository{Host: "docker.io", Path: "library/alpine"}

// clock is a time that a test moves.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func newClock() *clock { return &clock{at: time.Now()} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// fixed is a CA that does not change.
func fixed(pem []byte) func() ([]byte, error) { return func() ([]byte, error) { return pem, nil } }

// connect makes a client of a hub.
func connect(t *testing.T, hub *ocitest.Hub, change ...func(*Config)) *Client {
	t.Helper()
	return connectAt(t, hub.URL(), time.Now, append([]func(*Config){func(cfg *Config) { cfg.CA = fixed(hub.CA()) }}, change...)...)
}

func connectAt(t *testing.T, url string, now func() time.Time, change ...func(*Config)) *Client {
	t.Helper()
	cfg := Config{Name: "docker.io", URL: url, Limits: ratelimit.Limits{Rate: -1}}
	for _, f := range change {
		f(&cfg)
	}
	c, err := newClient(cfg, dialer{}, now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// listen starts a registry of one handler, called by the name of localhost.
func listen(t *testing.T, h http.HandlerFunc) (url string) {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return localhost(srv.URL)
}

func localhost(url string) string {
	var port int
	if _, err := fmt.Sscanf(url, "http://127.0.0.1:%d", &port); err != nil {
		panic(err)
	}
	return fmt.Sprintf("http://localhost:%d", port)
}

// saw compares the requests that the hub saw since the last look.
func saw(t *testing.T, hub *ocitest.Hub, want ...string) {
	t.Helper()
	if want == nil {
		want = []string{}
	}
	if diff := cmp.Diff(want, hub.Lines()); diff != "" {
		t.Errorf("requests that the hub saw (-want +got):\n%s", diff)
	}
	hub.Reset()
}

func wantCode(t *testing.T, err error, code oci.Code) {
	t.Helper()
	if err == nil || oci.CodeOf(err) != code {
		t.Errorf("got error %v (code %d), want code %d (%v)", err, oci.CodeOf(err), code, code.Row().Message)
	}
}

func openBlob(t *testing.T, c *Client, repo oci.Repository, d oci.Digest) oci.Blob {
	t.Helper()
	b, err := c.Blob(t.Context(), repo, d, oci.Ask{})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// read reads a stretch as a caller does: it skips to the offset that it wants.
func read(ctx context.Context, b oci.Blob, offset, length int64) ([]byte, error) {
	r, err := b.Open(ctx, offset, length)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if _, err := io.CopyN(io.Discard, r, offset-r.Offset()); err != nil {
		return nil, err
	}
	if r.Outcome().Whole && length >= 0 {
		return io.ReadAll(io.LimitReader(r, length))
	}
	return io.ReadAll(r)
}

func digestLine(s string, d oci.Digest) string {
	return fmt.Sprintf("%s@%s:%s", s, d.Algorithm(), d.Hex()[:12])
}

// recorder keeps what a client shows.
type recorder struct {
	mu       sync.Mutex
	calls    []Call
	warnings []Warning
}

func (r *recorder) attach(cfg *Config) {
	cfg.Observe = func(c Call) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.calls = append(r.calls, c)
	}
	cfg.Warn = func(w Warning) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.warnings = append(r.warnings, w)
	}
}

func (r *recorder) troubles() []Trouble {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := []Trouble{}
	for _, w := range r.warnings {
		list = append(list, w.Trouble)
	}
	return list
}

func TestConfigIsChecked(t *testing.T) {
	tests := []struct {
		name string
		cfg  Config
		want string
	}{
		{"no name", Config{}, `upstream: name_invalid: registry name "" is not a host name with an optional port`},
		{"another name of Docker Hub", Config{Name: "index.docker.io"}, "upstream index.docker.io: its name is docker.io"},
		{"no scheme", Config{Name: "a.example", URL: "a.example"}, "upstream a.example: the URL is not http(s)://host[:port][/path]"},
		{"file", Config{Name: "a.example", URL: "file:///etc/passwd"}, "upstream a.example: the URL is not http(s)://host[:port][/path]"},
		{"password", Config{Name: "a.example", URL: "https://me:secret@a.example"}, "upstream a.example: the URL holds credentials: they have settings of their own"},
		{"malformed, with a password", Config{Name: "a.example", URL: "https://me:secret@a.example:x"}, "upstream a.example: the URL is not http(s)://host[:port][/path]"},
		{"query", Config{Name: "a.example", URL: "https://a.example?x"}, "upstream a.example: the URL has a query or a fragment"},
		{"CA", Config{Name: "a.example", CA: fixed([]byte("no certificate"))}, "upstream a.example: the CA holds no certificate in PEM form"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := New(tt.cfg); err == nil || err.Error() != tt.want {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}

func TestEndpoints(t *testing.T) {
	tests := []struct{ name, url, want string }{
		{"docker.io", "", "https://registry-1.docker.io/v2/library/alpine/manifests/a"},
		{"mcr.microsoft.com", "", "https://mcr.microsoft.com/v2/library/alpine/manifests/a"},
		{"registry.example:5000", "", "https://registry.example:5000/v2/library/alpine/manifests/a"},
		{"a.example", "http://mirror.example:80/below/", "http://mirror.example:80/below/v2/library/alpine/manifests/a"},
	}
	for _, tt := range tests {
		c, err := New(Config{Name: tt.name, URL: tt.url})
		if err != nil {
			t.Fatal(err)
		}
		if got := c.primary.url(oci.Request{Kind: oci.ManifestKind, Name: "library/alpine", Tag: "a"}).String(); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
		c.Close()
	}
}

func TestSetPicksByHost(t *testing.T) {
	one := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{Auth: ocitest.NoAuth}})
	two := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{Auth: ocitest.NoAuth, PullLimit: 7}})
	image := ocitest.RandomImage(1, 100)
	one.Push("a", "t", image)
	two.Push("a", "t", image)
	set := NewSet(
		connect(t, one, func(cfg *Config) { cfg.Name = "one.example" }),
		connect(t, two, func(cfg *Config) { cfg.Name = "two.example"; cfg.Credentials = Password("me", "secret") }),
	)
	defer set.Close()
	repo := func(host string) oci.Repository { return oci.Repository{Host: host, Path: "a"} }

	if _, _, err := set.Resolve(t.Context(), repo("two.example"), "t", oci.Ask{}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := set.Manifest(t.Context(), repo("two.example"), image.Digest, oci.Ask{}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := set.Tags(t.Context(), repo("two.example"), oci.Page{N: -1}, oci.Ask{}); err != nil {
		t.Fatal(err)
	}
	_, _, err := set.Referrers(t.Context(), repo("two.example"), image.Digest, "", oci.Ask{})
	wantCode(t, err, oci.Unsupported)
	b, err := set.Blob(t.Context(), repo("two.example"), image.Blobs[0].Digest, oci.Ask{})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Stat(t.Context()); err != nil {
		t.Fatal(err)
	}
	saw(t, one)

	nowhere := repo("three.example")
	_, _, err = set.Resolve(t.Context(), nowhere, "t", oci.Ask{})
	wantCode(t, err, oci.NameUnknown)
	_, _, err = set.Manifest(t.Context(), nowhere, image.Digest, oci.Ask{})
	wantCode(t, err, oci.NameUnknown)
	_, err = set.Blob(t.Context(), nowhere, image.Digest, oci.Ask{})
	wantCode(t, err, oci.NameUnknown)
	_, _, err = set.Tags(t.Context(), nowhere, oci.Page{}, oci.Ask{})
	wantCode(t, err, oci.NameUnknown)
	_, _, err = set.Referrers(t.Context(), nowhere, image.Digest, "", oci.Ask{})
	wantCode(t, err, oci.NameUnknown)

	if set.HasCredentials("one.example") || !set.HasCredentials("two.example") || set.HasCredentials("three.example") {
		t.Error("HasCredentials mixes the upstreams up")
	}
	if q := set.Quotas(); len(q) != 1 || q[0].Upstream != "two.example" || q[0].Limit != 7 || q[0].Left != 6 {
		t.Errorf("Quotas() = %+v, want 6 of 7 left of two.example alone", q)
	}
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"entrepot/cache"
	"entrepot/internal/ocitest"
	"entrepot/oci"
	"entrepot/proxy"
	"entrepot/store"
	"entrepot/upstream"
)

// stack is the product between a client and a fake Hub, put together as serve
// does it.
type stack struct {
	t      *testing.T
	dir    string
	url    string
	client *http.Client
	cache  *cache.Cache
	disk   *store.Disk
	closer func()
}

type stackConfig struct {
	dir      string                  // empty: a fresh one
	budget   int64                   // of the data directory, in bytes; 0 for none
	cache    cache.Config            // TTL zero means an hour
	upstream upstream.Config         // for the hub; Name and URL are set
	more     map[string]*ocitest.Hub // other upstreams by name
}

func newStack(t *testing.T, hub *ocitest.Hub, cfg stackConfig) *stack {
	t.Helper()
	s := &stack{t: t, dir: cfg.dir, client: newClient(t)}
	if s.dir == "" {
		s.dir = t.TempDir()
	}
	if cfg.cache.TTL == 0 {
		cfg.cache.TTL = time.Hour
	}
	cfg.cache.Warn = func(message string, repo oci.Repository, err error) { t.Logf("warn: %s: %s: %v", message, repo, err) }
	disk, err := store.Open(t.Context(), store.Config{Dir: s.dir, Memory: 1 << 20, Budget: cfg.budget})
	if err != nil {
		t.Fatal(err)
	}
	names := &oci.Names{Default: oci.DockerHub, Upstreams: []string{oci.DockerHub}}
	cfg.upstream.Name, cfg.upstream.URL = oci.DockerHub, hub.URL()
	clients := []*upstream.Client{newUpstream(t, cfg.upstream)}
	for name, other := range cfg.more {
		names.Upstreams = append(names.Upstreams, name)
		clients = append(clients, newUpstream(t, upstream.Config{Name: name, URL: other.URL()}))
	}
	set := upstream.NewSet(clients...)
	s.disk = disk
	s.cache = cache.New(disk, set, cfg.cache)
	server := httptest.NewServer(registryHandler(proxy.New(s.cache, proxy.Config{Names: names, Catalog: s.cache}), unseen))
	s.url = server.URL
	s.closer = sync.OnceFunc(func() {
		server.CloseClientConnections()
		server.Close()
		if err := errors.Join(s.cache.Close(context.Background()), disk.Close()); err != nil {
			t.Error(err)
		}
		set.Close()
	})
	t.Cleanup(s.closer)
	return s
}

func newUpstream(t *testing.T, cfg upstream.Config) *upstream.Client {
	t.Helper()
	cfg.Limits.Rate, cfg.Limits.Burst = 1e6, 1e6
	c, err := upstream.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// get asks for a path, with headers as pairs.
func (s *stack) get(method, uri string, header ...string) (*http.Response, []byte, error) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.url+uri, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, body, err
}

// pull pulls an image as podman does, never by HEAD, and compares every byte.
func (s *stack) pull(repo, tag string, image ocitest.Image) error {
	s.t.Helper()
	for _, one := range append([]ocitest.Content{image.Content}, image.Blobs...) {
		uri := path.Join("/v2", repo, "blobs", one.Digest.String())
		if one.Digest == image.Digest {
			uri = path.Join("/v2", repo, "manifests", tag)
		}
		resp, body, err := s.get("GET", uri)
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", uri, err)
		case resp.StatusCode != http.StatusOK:
			return fmt.Errorf("%s: status %d: %s", uri, resp.StatusCode, body)
		case !bytes.Equal(body, one.Bytes()):
			return fmt.Errorf("%s: %d bytes that are not the %d pushed", uri, len(body), one.Size)
		case resp.Header.Get("Docker-Content-Digest") != one.Digest.String():
			return fmt.Errorf("%s: Docker-Content-Digest %q", uri, resp.Header.Get("Docker-Content-Digest"))
		case resp.ContentLength != one.Size:
			return fmt.Errorf("%s: Content-Length %d", uri, resp.ContentLength)
		}
	}
	return nil
}

func (s *stack) mustPull(repo, tag string, image ocitest.Image) {
	s.t.Helper()
	if err := s.pull(repo, tag, image); err != nil {
		s.t.Fatal(err)
	}
}

func wantRequests(t *testing.T, hub *ocitest.Hub, want ...string) {
	t.Helper()
	var got []string
	for _, line := range hub.Lines() {
		if !strings.HasPrefix(line, "token ") {
			got = append(got, line)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("requests that the upstream saw (-want +got):\n%s", diff)
	}
}

func TestColdPullCostsOneHeadAndOneGetEach(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	image := ocitest.RandomImage(1, 100_000)
	hub.Push("library/alpine", "latest", image)
	s := newStack(t, hub, stackConfig{})
	s.mustPull("alpine", "latest", image)
	short := func(d oci.Digest) string { return "sha256:" + d.Hex()[:12] }
	config, layer := short(image.Blobs[0].Digest), short(image.Blobs[1].Digest)
	wantRequests(t, hub,
		"registry HEAD manifest library/alpine:latest", // 401: the one challenge
		"registry HEAD manifest library/alpine:latest",
		"registry GET manifest library/alpine@"+short(image.Digest),
		"registry GET blob library/alpine@"+config, "cdn GET blob library/alpine@"+config,
		"registry GET blob library/alpine@"+layer, "cdn GET blob library/alpine@"+layer)
	if n := hub.Count(ocitest.Match{Role: ocitest.Token}); n != 1 {
		t.Errorf("%d tokens for one pull, want 1", n)
	}
	hub.Reset()
	for _, form := range []string{"alpine", "library/alpine", "docker.io/alpine", "index.docker.io/library/alpine"} {
		s.mustPull(form, "latest", image)
	}
	wantRequests(t, hub)
}

// TestWarmPullNeedsNoUpstream is the promise: if we hold it, you get it.
func TestWarmPullNeedsNoUpstream(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	image := ocitest.RandomImage(2, 3_000_000, 10)
	hub.Push("library/alpine", "latest", image)
	first := newStack(t, hub, stackConfig{})
	first.mustPull("alpine", "latest", image)
	hub.Close()
	first.mustPull("alpine", "latest", image)
	first.closer()
	// Also after a restart, and when the tag's time is up.
	second := newStack(t, hub, stackConfig{dir: first.dir, cache: cache.Config{TTL: time.Nanosecond}})
	second.mustPull("alpine", "latest", image)
	resp, _, err := second.get("HEAD", "/v2/alpine/manifests/latest")
	if err != nil || resp.Header.Get("X-Entrepot-Cache") != "stale" || !regexp.MustCompile(`^299 - "upstream cannot confirm it: localhost:\d+: it cannot be reached(; it is tried again in \d+s)?"$`).MatchString(resp.Header.Get("Warning")) {
		t.Errorf("HEAD while upstream is down: %v %v, want stale with a warning", resp, err)
	}
	resp, body, err := second.get("GET", "/v2/alpine/manifests/unknown")
	if err != nil || resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("what is not held: %v %s %v, want 503 with Retry-After", resp.StatusCode, body, err)
	}
}

func TestTenClientsAtOnceCostOneGetEach(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	image := ocitest.RandomImage(3, 2_000_000, 300_000)
	hub.Push("library/alpine", "latest", image)
	s := newStack(t, hub, stackConfig{})
	gate := hub.Gate(ocitest.Match{Role: ocitest.CDN})
	var clients sync.WaitGroup
	for range 10 {
		clients.Go(func() {
			if err := s.pull("alpine", "latest", image); err != nil {
				t.Error(err)
			}
		})
	}
	if err := gate.AwaitHeld(t.Context(), 1); err != nil {
		t.Error(err)
	}
	gate.Open()
	clients.Wait()
	if n := hub.CountedPulls(); n != 1 {
		t.Errorf("%d counted pulls, want 1", n)
	}
	for _, blob := range image.Blobs {
		if n := hub.Count(ocitest.Match{Role: ocitest.CDN, Reference: blob.Digest.String()}); n != 1 {
			t.Errorf("%d transfers of %s, want 1", n, blob.Digest)
		}
	}
}

// TestFaultsInTheMiddle: whatever happens to a body on its way, the client has
// every byte or a cut connection.
func TestFaultsInTheMiddle(t *testing.T) {
	layer := ocitest.Match{Role: ocitest.CDN, Kind: ocitest.BlobKind}
	brief := upstream.Timeouts{FirstByte: time.Second, Stall: time.Second}
	for _, row := range []struct {
		name   string
		fault  *ocitest.Fault
		habits ocitest.Habits
		waits  upstream.Timeouts
		fails  bool
		either bool // the content may be proven before or after the fault is noticed: both are right
	}{
		{name: "cut once", fault: &ocitest.Fault{Effect: ocitest.Cut(1_000_000), Times: 1}},
		{name: "cut five times", fault: &ocitest.Fault{Effect: ocitest.Cut(400_000), Times: 5}},
		{name: "cut, no ranges", fault: &ocitest.Fault{Effect: ocitest.Cut(1_000_000), Times: 1}, habits: ocitest.Habits{IgnoreRange: true}},
		{name: "stalled once", fault: &ocitest.Fault{Effect: ocitest.Stall(700_000), Times: 1}, waits: brief},
		{name: "never begun once", fault: &ocitest.Fault{Effect: ocitest.Stall(0), Times: 1}, waits: brief},
		{name: "503 once", fault: &ocitest.Fault{Effect: ocitest.Answer(503), Times: 1}},
		{name: "reset once", fault: &ocitest.Fault{Effect: ocitest.Reset(), Times: 1}},
		{name: "html 502 once", fault: &ocitest.Fault{Effect: ocitest.HTML(502), Times: 1}},
		{name: "signed URL refused once", fault: &ocitest.Fault{Effect: ocitest.Answer(403), Times: 1}},
		{name: "URLs good for one use", habits: ocitest.Habits{URLUses: 1}, fault: &ocitest.Fault{Effect: ocitest.Cut(700_000), Times: 3}},
		{name: "tokens good for two uses", habits: ocitest.Habits{TokenUses: 2}},
		{name: "chunked", habits: ocitest.Habits{Chunked: true}},
		{name: "chunked and short", habits: ocitest.Habits{Chunked: true}, fault: &ocitest.Fault{Effect: ocitest.Short(1_000_000)}, fails: true},
		{name: "corrupt always", fault: &ocitest.Fault{Effect: ocitest.Corrupt(1_500_000)}, fails: true},
		{name: "surplus", habits: ocitest.Habits{Chunked: true}, fault: &ocitest.Fault{Effect: ocitest.Surplus(100)}, either: true},
		{name: "inline", habits: ocitest.Habits{InlineBlobs: true}},
		{name: "access_token, no expires_in", habits: ocitest.Habits{TokenField: "access_token", NoExpiresIn: true}},
		{name: "manifests redirected", habits: ocitest.Habits{RedirectManifests: true}},
		{name: "no digest header", habits: ocitest.Habits{OmitDigest: true}},
		{name: "HEAD refused", habits: ocitest.Habits{RefuseHead: 405}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			hub := ocitest.NewHub(t, ocitest.Config{Habits: row.habits})
			image := ocitest.RandomImage(4, 2_000_000)
			hub.Push("library/alpine", "latest", image)
			s := newStack(t, hub, stackConfig{upstream: upstream.Config{Timeouts: row.waits}})
			if row.fault != nil {
				row.fault.Match = layer
				row.fault.Reference = image.Blobs[1].Digest.String()
				hub.Inject(row.fault)
			}
			err := s.pull("alpine", "latest", image)
			if (err != nil) != row.fails && !row.either {
				t.Fatalf("pull: %v, want failure %v", err, row.fails)
			}
			if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("a client saw %v, want a cut connection", err)
			}
			hub.ClearFaults()
			hub.Set(func(h *ocitest.Habits) { h.Chunked = false })
			// The next client is none the worse, unless it joins a fill that has
			// begun with the fault.
			for range 3 {
				if err = s.pull("alpine", "latest", image); err == nil {
					break
				}
			}
			if err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

// TestAWrongBodyIsFetchedAgainForWhoHasNoneOfIt: bytes that went out cannot be
// taken back, so that a client which has some is cut, and one that has none yet
// never learns of it.
func TestAWrongBodyIsFetchedAgainForWhoHasNoneOfIt(t *testing.T) {
	const first = 200_000
	layer := ocitest.Match{Role: ocitest.CDN, Kind: ocitest.BlobKind}
	for _, row := range []struct {
		name   string
		size   int64
		effect ocitest.Effect
		cut    bool
	}{
		{name: "short", size: 2_000_000, effect: ocitest.Short(1_000_000), cut: true},
		{name: "corrupt", size: 2_000_000, effect: ocitest.Corrupt(1_500_000), cut: true},
		{name: "surplus", size: 2_000_000, effect: ocitest.Surplus(100), cut: true},
		// Of a small blob nobody has a byte before it is proven.
		{name: "short and small", size: 60_000, effect: ocitest.Short(1000)},
		{name: "corrupt and small", size: 60_000, effect: ocitest.Corrupt(30_000)},
		{name: "surplus and small", size: 60_000, effect: ocitest.Surplus(100)},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			hub := ocitest.NewHub(t, ocitest.Config{})
			image := ocitest.RandomImage(4, row.size)
			hub.Push("library/alpine", "latest", image)
			s := newStack(t, hub, stackConfig{})
			if resp, body, err := s.get("GET", "/v2/alpine/manifests/latest"); err != nil || resp.StatusCode != http.StatusOK {
				t.Fatal(string(body), err)
			}
			blob := image.Blobs[1]
			layer := layer
			layer.Reference = blob.Digest.String()
			hub.Inject(&ocitest.Fault{Match: layer, Effect: row.effect, Times: 1})
			gate := hub.Gate(layer)
			gate.To(first)
			resp, err := s.client.Get(s.url + "/v2/alpine/blobs/" + layer.Reference)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			got := make([]byte, first/2)
			if _, err := io.ReadFull(resp.Body, got[:min(len(got), int(row.size))]); err != nil {
				t.Fatal(err)
			}
			gate.Open()
			rest, err := io.ReadAll(resp.Body)
			got = append(got[:min(len(got), int(row.size))], rest...)
			switch {
			case row.cut && !errors.Is(err, io.ErrUnexpectedEOF):
				t.Errorf("who had some of it got %d bytes and %v, want a cut connection", len(got), err)
			case !row.cut && (err != nil || !bytes.Equal(got, blob.Bytes())):
				t.Errorf("who had none of it got %d bytes and %v, want all of them", len(got), err)
			}
			if err := s.pull("alpine", "latest", image); err != nil {
				t.Errorf("the next client: %v", err)
			}
			if n := hub.Count(layer); n != 2 {
				t.Errorf("%d transfers, want the wrong one and one more", n)
			}
		})
	}
}

func TestUpstreamsAnswersReachTheClientHonestly(t *testing.T) {
	manifests := ocitest.Match{Role: ocitest.Registry, Kind: ocitest.Manifest}
	for _, row := range []struct {
		name   string
		effect ocitest.Effect
		status int
		code   string
		after  string
	}{
		{"quota", ocitest.QuotaSpent(), 429, "TOOMANYREQUESTS", ""},
		{"abuse limit", ocitest.AbuseLimit(), 429, "TOOMANYREQUESTS", "60"},
		{"denied", ocitest.Answer(403), 403, "DENIED", ""},
		{"not found", ocitest.Answer(404), 404, "MANIFEST_UNKNOWN", ""},
		{"broken", ocitest.Answer(500), 503, "UNAVAILABLE", ""},
		{"html", ocitest.HTML(502), 502, "UNAVAILABLE", ""},
		{"later", ocitest.RetryLater(503, "7"), 503, "UNAVAILABLE", "7"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			hub := ocitest.NewHub(t, ocitest.Config{})
			hub.Push("library/alpine", "latest", ocitest.RandomImage(5, 10))
			hub.Inject(&ocitest.Fault{Match: manifests, Effect: row.effect})
			s := newStack(t, hub, stackConfig{})
			resp, body, err := s.get("GET", "/v2/alpine/manifests/latest")
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != row.status || !strings.Contains(string(body), `"code":"`+row.code+`"`) || resp.Header.Get("Content-Type") != "application/json" {
				t.Errorf("status %d, %s, %s; want %d %s as JSON", resp.StatusCode, resp.Header.Get("Content-Type"), body, row.status, row.code)
			}
			after := resp.Header.Get("Retry-After")
			if row.after != "" && after != row.after || after == "" && (row.status == 429 || row.status == 503) {
				t.Errorf("Retry-After %q, want %q", after, row.after)
			}
			for _, header := range []string{"Www-Authenticate", "Location"} {
				if resp.Header.Get(header) != "" {
					t.Errorf("upstream's %s was handed on", header)
				}
			}
		})
	}
}

func TestEveryNameLeadsToItsUpstream(t *testing.T) {
	hub, mcr := ocitest.NewHub(t, ocitest.Config{}), ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{Auth: ocitest.NoAuth}})
	ours, theirs := ocitest.RandomImage(6, 1000), ocitest.RandomImage(7, 1000)
	hub.Push("library/alpine", "latest", ours)
	mcr.Push("library/alpine", "latest", theirs)
	s := newStack(t, hub, stackConfig{more: map[string]*ocitest.Hub{"mcr.microsoft.com": mcr}})
	for _, row := range []struct {
		uri, ns string
		want    ocitest.Image
	}{
		{"/v2/alpine/manifests/latest", "", ours},
		{"/v2/library/alpine/manifests/latest", "", ours},
		{"/v2/library%2Falpine/manifests/latest", "", ours},
		{"/v2/docker.io/alpine/manifests/latest", "", ours},
		{"/v2/library/alpine/manifests/latest?ns=docker.io", "docker.io", ours},
		{"/v2/docker.io/library/alpine/manifests/latest?ns=docker.io", "docker.io", ours},
		{"/v2/library/alpine/manifests/latest?ns=registry-1.docker.io", "registry-1.docker.io", ours},
		{"/v2/library/alpine/manifests/latest?ns=" + strings.TrimPrefix(s.url, "http://"), "", ours},
		{"/v2/mcr.microsoft.com/library/alpine/manifests/latest", "", theirs},
		{"/v2/library/alpine/manifests/latest?ns=mcr.microsoft.com", "mcr.microsoft.com", theirs},
	} {
		resp, body, err := s.get("GET", row.uri)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(body, row.want.Bytes()) || resp.Header.Get("OCI-Namespace") != row.ns {
			t.Errorf("%s: status %d, namespace %q, want %q: %.80s", row.uri, resp.StatusCode, resp.Header.Get("OCI-Namespace"), row.ns, body)
		}
	}
	for _, uri := range []string{"/v2/evil.example/a/manifests/latest", "/v2/library/alpine/manifests/latest?ns=evil.example"} {
		if resp, body, err := s.get("GET", uri); err != nil || resp.StatusCode != 404 || !strings.Contains(string(body), "NAME_UNKNOWN") {
			t.Errorf("%s: %v %s %v, want 404 NAME_UNKNOWN", uri, resp, body, err)
		}
	}
}

func TestRangesOfColdAndHeldBlobsAreTheSame(t *testing.T) {
	t.Parallel()
	hub := ocitest.NewHub(t, ocitest.Config{})
	image := ocitest.RandomImage(8, 3_000_000)
	hub.Push("library/alpine", "latest", image)
	layer := image.Blobs[1]
	content := layer.Bytes()
	uri := "/v2/alpine/blobs/" + layer.Digest.String()
	for _, row := range []struct {
		rang   string
		status int
		want   []byte
		cr     string
	}{
		{"bytes=0-", 206, content, "bytes 0-2999999/3000000"},
		{"bytes=100-199", 206, content[100:200], "bytes 100-199/3000000"},
		{"bytes=-10", 206, content[2999990:], "bytes 2999990-2999999/3000000"},
		{"bytes=2999999-", 206, content[2999999:], "bytes 2999999-2999999/3000000"},
		{"bytes=2000000-9999999", 206, content[2000000:], "bytes 2000000-2999999/3000000"},
		{"bytes=3000000-", 416, nil, "bytes */3000000"},
		{"apples=1-2", 200, content, ""},
	} {
		for _, known := range []bool{false, true} { // whether a manifest told the size
			s := newStack(t, hub, stackConfig{})
			if known {
				if _, _, err := s.get("GET", "/v2/alpine/manifests/latest"); err != nil {
					t.Fatal(err)
				}
			}
			for _, state := range []string{"cold", "half filled", "held"} {
				t.Log(row.rang, known, state)
				resp, body, err := s.get("GET", uri, "Range", row.rang)
				if err != nil {
					t.Fatalf("%s %s: %v", row.rang, state, err)
				}
				if resp.StatusCode != row.status || resp.Header.Get("Content-Range") != row.cr || row.want != nil && !bytes.Equal(body, row.want) {
					t.Errorf("%s, %s, size known %v: status %d, Content-Range %q, %d bytes", row.rang, state, known, resp.StatusCode, resp.Header.Get("Content-Range"), len(body))
				}
				if state == "half filled" {
					if _, body, err := s.get("GET", uri); err != nil || !bytes.Equal(body, content) {
						t.Errorf("%s: then the whole: %d bytes, %v", row.rang, len(body), err)
					}
				}
			}
			s.closer()
		}
	}
}

func TestListsOfUpstreamAndOfWhatIsHeld(t *testing.T) {
	for _, api := range []bool{true, false} {
		hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{Referrers: api}})
		image := ocitest.RandomImage(9, 10)
		desc := hub.Push("library/alpine", "v1", image)
		hub.Push("library/alpine", "v2", image)
		hub.Push("library/alpine", "", ocitest.Artifact(desc, "application/sbom", ocitest.Blob(1, 10)))
		hub.Push("library/alpine", "", ocitest.Artifact(desc, "application/sig", ocitest.Blob(2, 10)))
		s := newStack(t, hub, stackConfig{})
		resp, body, err := s.get("GET", "/v2/alpine/tags/list?n=1&last=u")
		if err != nil || strings.TrimSpace(string(body)) != `{"name":"alpine","tags":["v1"]}` || resp.Header.Get("Link") == "" {
			t.Errorf("tags: %v %s %v", resp, body, err)
		}
		referrers := "/v2/alpine/referrers/" + image.Digest.String()
		for query, want := range map[string]int{"": 2, "?artifactType=application/sbom": 1, "?artifactType=none": 0} {
			resp, body, err := s.get("GET", referrers+query)
			if err != nil || resp.StatusCode != 200 || strings.Count(string(body), `"artifactType"`) != want {
				t.Errorf("API %v: referrers%s: %v %s %v, want %d", api, query, resp.Status, body, err, want)
			}
			if filtered := resp.Header.Get("OCI-Filters-Applied"); (filtered == "artifactType") != (query != "") {
				t.Errorf("referrers%s: OCI-Filters-Applied %q", query, filtered)
			}
		}
		s.mustPull("alpine", "v1", image)
		if _, body, err := s.get("GET", "/v2/_catalog"); err != nil || strings.TrimSpace(string(body)) != `{"repositories":["docker.io/library/alpine"]}` {
			t.Errorf("catalog: %s %v", body, err)
		}
	}
}

func TestSHA512ThroughTheStack(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	image := ocitest.ImageSpec{SHA512: true, Layers: []ocitest.Content{ocitest.Blob(1, 100_000).SHA512()}}.Build()
	hub.Push("library/alpine", "latest", image)
	s := newStack(t, hub, stackConfig{})
	for range 2 {
		s.mustPull("alpine", image.Digest.String(), image)
	}
}

func TestHeadCostsAHeadAndIsAnsweredFully(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	image := ocitest.RandomImage(10, 1000)
	hub.Push("library/alpine", "latest", image)
	s := newStack(t, hub, stackConfig{})
	for range 2 {
		for _, ref := range []string{"latest", image.Digest.String()} {
			resp, _, err := s.get("HEAD", "/v2/alpine/manifests/"+ref)
			if err != nil || resp.StatusCode != 200 || resp.ContentLength != image.Size || resp.Header.Get("Docker-Content-Digest") != image.Digest.String() || resp.Header.Get("Content-Type") != image.MediaType {
				t.Errorf("HEAD %s: %v %v", ref, resp, err)
			}
		}
	}
	if n := hub.CountedPulls(); n != 0 {
		t.Errorf("HEADs cost %d counted pulls", n)
	}
	layer := image.Blobs[1]
	resp, _, err := s.get("HEAD", "/v2/alpine/blobs/"+layer.Digest.String())
	if err != nil || resp.StatusCode != 200 || resp.ContentLength != layer.Size {
		t.Errorf("HEAD of a blob: %v %v", resp, err)
	}
	resp, _, err = s.get("HEAD", "/v2/alpine/blobs/"+oci.Sum([]byte("none")).String())
	if err != nil || resp.StatusCode != 404 {
		t.Errorf("HEAD of no blob: %v %v", resp, err)
	}
	if sent := hub.Sent(ocitest.Match{Kind: ocitest.BlobKind, Method: "GET"}); sent > 1 {
		t.Errorf("HEADs moved %d bytes of blobs", sent)
	}
}

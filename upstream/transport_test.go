package upstream

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"entrepot/internal/ocitest"
	"entrepot/oci"
)

func TestTLSWithAPrivateCA(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{TLS: true})
	image := ocitest.RandomImage(1, 10_000)
	hub.Push("library/alpine", "latest", image)
	c := connect(t, hub)
	mustResolve(t, c)
	layer := image.Blobs[1]
	if got, err := read(t.Context(), openBlob(t, c, alpine, layer.Digest), 0, -1); err != nil || !bytes.Equal(got, layer.Bytes()) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	// The streams of a fill must not share one TCP connection.
	for _, r := range hub.Requests() {
		want := "HTTP/2.0"
		if r.Kind == ocitest.BlobKind {
			want = "HTTP/1.1"
		}
		if r.Proto != want {
			t.Errorf("%s came over %s, want %s", r, r.Proto, want)
		}
	}

	stranger := connect(t, hub, func(cfg *Config) { cfg.CA = nil })
	hub.Reset()
	wantCode(t, resolve(t, stranger), oci.BadUpstream)
	saw(t, hub)
}

// Whom an upstream's address, or a mirror's, is trusted for may change: for all
// connections to come, those that stand idle too, and at once, whatever was open.
func TestCAsAreReadAgain(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{TLS: true})
	hub.Push("library/alpine", "latest", ocitest.RandomImage(1, 1000))
	stranger := ocitest.NewCA().PEM
	for name, addresses := range map[string]func(*Config, func() ([]byte, error)){
		"the upstream": func(cfg *Config, ca func() ([]byte, error)) { cfg.CA = ca },
		"a mirror": func(cfg *Config, ca func() ([]byte, error)) {
			cfg.CA, cfg.Mirrors = nil, []Mirror{{URL: hub.URL(), CA: ca, First: true}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			trusted := stranger
			c := connect(t, hub, func(cfg *Config) { addresses(cfg, func() ([]byte, error) { return trusted, nil }) })
			refused := func() {
				t.Helper()
				if resolve(t, c) == nil {
					t.Error("whom nobody vouches for is believed")
				}
			}
			for range tripAfter { // until its host is not asked
				refused()
			}
			trusted = hub.CA()
			if err := c.ReloadCAs(); err != nil {
				t.Fatal(err)
			}
			for _, b := range c.Breakers() {
				if wait := time.Until(b.Next); wait > 0 {
					t.Errorf("%s is asked in %v, want at once", b.Host, wait)
				}
			}
			for end := time.Now().Add(10 * time.Second); resolve(t, c) != nil && time.Now().Before(end); {
			}
			mustResolve(t, c)
			trusted = []byte("nonsense")
			if err := c.ReloadCAs(); err == nil {
				t.Error("nonsense is taken for certificates")
			}
			mustResolve(t, c)
			trusted = stranger
			if err := c.ReloadCAs(); err != nil {
				t.Fatal(err)
			}
			refused()
		})
	}
}

func TestHTTPSIsNeverSpokenInClear(t *testing.T) {
	var seen []string
	clear := func(w http.ResponseWriter, r *http.Request) { seen = append(seen, r.Method) }
	plain := listen(t, clear)
	c := connectAt(t, strings.Replace(plain, "http://", "https://", 1), time.Now, func(cfg *Config) { cfg.Credentials = Password("me", "secret") })
	if err := resolve(t, c); oci.CodeOf(err) != oci.BadUpstream {
		t.Errorf("a plain server behind https: %v", err)
	}
	ca := ocitest.NewCA()
	answer := map[string]http.HandlerFunc{
		"redirect": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", plain+"/")
			w.WriteHeader(307)
		},
		"realm": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+plain+`/token"`)
			w.WriteHeader(401)
		},
	}
	for name, h := range answer {
		srv := httptest.NewUnstartedServer(h)
		srv.TLS = &tls.Config{Certificates: []tls.Certificate{ca.Certificate()}}
		srv.StartTLS()
		defer srv.Close()
		url := strings.Replace(srv.URL, "127.0.0.1", "localhost", 1)
		c := connectAt(t, url, time.Now, func(cfg *Config) {
			cfg.CA = fixed(ca.PEM)
			cfg.Credentials = Password("me", "secret")
		})
		if err := resolve(t, c); oci.CodeOf(err) != oci.BadUpstream || !strings.Contains(err.Error(), "in clear") {
			t.Errorf("%s: %v", name, err)
		}
		c.Close()
	}
	if len(seen) > 0 {
		t.Errorf("requests in clear: %v", seen)
	}
}

func TestWhatIsSent(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	image := ocitest.RandomImage(1, 1000)
	hub.Push("library/alpine", "latest", image)
	c := connect(t, hub, func(cfg *Config) { cfg.UserAgent = "entrepot/test" })
	mustResolve(t, c)
	if _, _, err := c.Manifest(t.Context(), alpine, image.Digest, oci.Ask{}); err != nil {
		t.Fatal(err)
	}
	if _, err := read(t.Context(), openBlob(t, c, alpine, image.Blobs[1].Digest), 5, 10); err != nil {
		t.Fatal(err)
	}
	for _, r := range hub.Requests() {
		if got := r.Header["Accept-Encoding"]; len(got) != 1 || got[0] != "identity" {
			t.Errorf("%s: Accept-Encoding %q", r, got)
		}
		if got := r.Header.Get("User-Agent"); got != "entrepot/test" {
			t.Errorf("%s: User-Agent %q", r, got)
		}
		wantAccept := ""
		if r.Kind == ocitest.Manifest {
			wantAccept = strings.Join(oci.ManifestAccept, ", ")
		}
		if got := r.Header.Get("Accept"); got != wantAccept {
			t.Errorf("%s: Accept %q", r, got)
		}
		if strings.Contains(r.URI, "ns=") {
			t.Errorf("%s: %s names a namespace", r, r.URI)
		}
		if got := r.Header.Get("Range"); (r.Kind == ocitest.BlobKind) != (got == "bytes=5-14") {
			t.Errorf("%s: Range %q", r, got)
		}
	}
}

func TestConnectionsAreUsedAgain(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	image := ocitest.RandomImage(1, 1000)
	hub.Push("library/alpine", "latest", image)
	c := connect(t, hub)
	for range 5 {
		mustResolve(t, c)
		if _, _, err := c.Manifest(t.Context(), alpine, image.Digest, oci.Ask{}); err != nil {
			t.Fatal(err)
		}
		_, _, err := c.Resolve(t.Context(), alpine, "missing", oci.Ask{})
		wantCode(t, err, oci.ManifestUnknown)
		if _, err := read(t.Context(), openBlob(t, c, alpine, image.Blobs[1].Digest), 0, -1); err != nil {
			t.Fatal(err)
		}
		if _, err := read(t.Context(), openBlob(t, c, alpine, image.Blobs[1].Digest), 5, 10); err != nil {
			t.Fatal(err)
		}
		if _, _, err := openBlob(t, c, alpine, image.Blobs[1].Digest).Stat(t.Context()); err != nil {
			t.Fatal(err)
		}
		hub.ExpireTokens()
	}
	// One for the API and one for blobs at each host.
	for role, most := range map[ocitest.Role]int{ocitest.Registry: 2, ocitest.Token: 1, ocitest.CDN: 2} {
		if n := hub.Connections(role); n > most {
			t.Errorf("%d connections to the %s, want at most %d", n, role, most)
		}
	}
}

func TestProxy(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	image := ocitest.RandomImage(1, 1000)
	hub.Push("library/alpine", "latest", image)
	var mu sync.Mutex
	proxied := map[string]int{}
	proxy := listen(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		proxied[r.URL.Host]++
		mu.Unlock()
		out := r.Clone(r.Context())
		out.RequestURI = ""
		resp, err := http.DefaultTransport.RoundTrip(out)
		if err != nil {
			w.WriteHeader(502)
			return
		}
		defer resp.Body.Close()
		maps.Copy(w.Header(), resp.Header)
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body)
	})
	proxyURL, _ := url.Parse(proxy)
	through := func(cfg *Config) { cfg.Proxy = http.ProxyURL(proxyURL) }
	c := connect(t, hub, through)
	mustResolve(t, c)
	if _, err := read(t.Context(), openBlob(t, c, alpine, image.Blobs[0].Digest), 0, -1); err != nil {
		t.Fatal(err)
	}
	if len(proxied) != 3 {
		t.Errorf("the proxy saw %v, want registry, token service and CDN", proxied)
	}

	// Private addresses are refused behind a proxy too, as far as they can be
	// told. The proxy itself may lie anywhere.
	clear(proxied)
	c = connectAt(t, "http://registry.example", time.Now, through)
	u, _ := url.Parse("http://169.254.169.254/")
	_, err := c.primary.send(t.Context(), &question{}, request{method: "GET", url: u}, login{})
	wantCode(t, err, oci.BadUpstream)
	if len(proxied) != 0 {
		t.Errorf("the proxy saw %v", proxied)
	}

	// Some hosts are excepted; those are dialled, and checked, directly.
	c = connect(t, hub, func(cfg *Config) { cfg.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil } })
	mustResolve(t, c)
	if len(proxied) != 0 {
		t.Errorf("the proxy saw %v", proxied)
	}

	c = connect(t, hub, func(cfg *Config) {
		cfg.Proxy = func(*http.Request) (*url.URL, error) { return nil, fmt.Errorf("bad proxy http://me:secret@x") }
	})
	err = resolve(t, c)
	wantCode(t, err, oci.Unavailable)
	if !errors.Is(err, errProxy) || !strings.Contains(err.Error(), errProxy.Error()) {
		t.Errorf("%v, want %v", err, errProxy)
	}
	for ; err != nil; err = errors.Unwrap(err) { // whoever logs it may log all of it
		if strings.Contains(fmt.Sprintf("%+v", err), "secret") {
			t.Errorf("%v shows the proxy's password", err)
		}
	}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://x.example", nil)
	if _, err := (&transports{proxy: func(*http.Request) (*url.URL, error) { return nil, nil }}).mustProxy(req); err == nil {
		t.Error("a request that was to be proxied may go out directly")
	}
}

// speak starts a server that answers every connection with these bytes.
func speak(t *testing.T, answer string) (url string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = http.ReadRequest(bufio.NewReader(conn))
			_, _ = io.WriteString(conn, answer)
			conn.Close()
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return localhost("http://" + ln.Addr().String())
}

func TestWhatServersSayInsteadOfHTTP(t *testing.T) {
	tests := []struct {
		name, answer string
		code         oci.Code
		after        time.Duration
	}{
		{"nothing", "", oci.Unavailable, 0},
		{"no HTTP", "SSH-2.0-OpenSSH_9.2\r\n", oci.BadUpstream, 0},
		{"broken header", "HTTP/1.1 200 OK\r\n:broken\r\n\r\n", oci.BadUpstream, 0},
		{"endless header", "HTTP/1.1 429 Too Many Requests\r\nX: " + strings.Repeat("x", maxHeaderBytes+64<<10) + "\r\n\r\n", oci.BadUpstream, 0},
		{"two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", oci.BadUpstream, 0},
		{"Docker Hub's abuse form, bare LF", "HTTP/1.1 429 Too Many Requests\nRetry-After: 60\nConnection: close\nContent-Type: text/plain\n\nToo Many Requests (HAP429)\n", oci.TooManyRequests, time.Minute},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := connectAt(t, speak(t, tt.answer), time.Now)
			_, _, err := c.Manifest(t.Context(), alpine, oci.Sum(nil), oci.Ask{})
			wantCode(t, err, tt.code)
			if got := oci.RetryAfter(err); got != tt.after {
				t.Errorf("retry after %v, want %v", got, tt.after)
			}
		})
	}
}

func TestNobodyListens(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := localhost("http://" + ln.Addr().String())
	ln.Close()
	err = resolve(t, connectAt(t, url, time.Now))
	wantCode(t, err, oci.Unavailable)
	if want := "it cannot be reached"; !strings.Contains(err.Error(), want) {
		t.Errorf("%v does not say that %s", err, want)
	}
}

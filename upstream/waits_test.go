package upstream

import (
	"context"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"entrepot/internal/ocitest"
	"entrepot/oci"
)

// Every wait on an upstream has a bound of its own, and ends at it. The times
// are the defaults.
func TestEveryWaitHasItsBound(t *testing.T) {
	var times Timeouts
	times = times.withDefaults()
	blob := ocitest.Blob(1, 1000)
	readBlob := func(c *Client) error {
		b, err := c.Blob(context.Background(), alpine, blob.Digest, oci.Ask{})
		if err == nil {
			_, err = read(context.Background(), b, 0, -1)
		}
		return err
	}
	resolveTag := func(c *Client) error {
		_, _, err := c.Resolve(context.Background(), alpine, "latest", oci.Ask{})
		return err
	}
	image := ocitest.RandomImage(1, 100)
	getManifest := func(c *Client) error {
		_, _, err := c.Manifest(context.Background(), alpine, image.Digest, oci.Ask{})
		return err
	}
	tests := []struct {
		name string
		on   ocitest.Match
		ocitest.Effect
		ask  func(*Client) error
		want time.Duration
	}{
		{"the registry's headers", ocitest.Match{Role: ocitest.Registry}, ocitest.Hang(), resolveTag, times.ResponseHeader},
		{"the token service's headers", ocitest.Match{Role: ocitest.Token}, ocitest.Hang(), resolveTag, times.ResponseHeader},
		{"the CDN's headers", ocitest.Match{Role: ocitest.CDN}, ocitest.Hang(), readBlob, times.ResponseHeader},
		{"a blob's first byte", ocitest.Match{Role: ocitest.CDN}, ocitest.Stall(0), readBlob, times.FirstByte},
		{"the bytes after it", ocitest.Match{Role: ocitest.CDN}, ocitest.Stall(700), readBlob, times.Stall},
		{"a manifest's first byte", ocitest.Match{Kind: ocitest.Manifest}, ocitest.Stall(0), getManifest, times.FirstByte},
		{"a manifest's bytes", ocitest.Match{Kind: ocitest.Manifest}, ocitest.Stall(50), getManifest, times.Stall},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			simulate(t, ocitest.Config{}, func(w *world) {
				t, hub := w.t, w.hub
				hub.PushBlob("library/alpine", blob)
				c := w.connect()
				hub.Inject(&ocitest.Fault{Match: tt.on, Effect: tt.Effect})
				took, err := timed(func() error { return tt.ask(c) })
				wantCode(t, err, oci.Timeout)
				if took != tt.want {
					t.Errorf("it took %v, want %v", took, tt.want)
				}
			})
		})
	}
}

// What has no fault of the hub: connections, handshakes, helpers, bodies that
// nobody wants.
func TestEveryOtherWaitHasItsBound(t *testing.T) {
	var times Timeouts
	times = times.withDefaults()
	never := func(ctx context.Context) { <-ctx.Done() }
	tests := []struct {
		name    string
		url     string
		dial    DialFunc
		config  func(*Config)
		handler http.HandlerFunc
		get     bool     // a manifest, not what a tag names
		code    oci.Code // 0: it works all the same
		want    time.Duration
	}{
		{
			name: "connection", code: oci.Timeout, want: times.Dial,
			dial: func(ctx context.Context, _, _ string) (net.Conn, error) { never(ctx); return nil, ctx.Err() },
		},
		{
			name: "handshake", url: "https://registry.example", code: oci.Timeout, want: times.TLS,
			dial: func(context.Context, string, string) (net.Conn, error) {
				client, server := net.Pipe()
				go func() { _, _ = io.Copy(io.Discard, server) }()
				return client, nil
			},
		},
		{
			name: "all of an exchange", code: oci.Timeout, want: times.ResponseHeader, // no word ever, but for what is no answer
			handler: func(w http.ResponseWriter, r *http.Request) {
				for pause(r.Context(), time.Second) {
					w.WriteHeader(http.StatusEarlyHints)
				}
			},
		},
		{
			name: "credentials", code: 0, want: times.Token,
			config: func(cfg *Config) {
				cfg.Credentials = func(ctx context.Context, _ oci.Repository) (authn.AuthConfig, error) {
					never(ctx)
					return authn.AuthConfig{}, ctx.Err()
				}
			},
			handler: func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") == "" && strings.HasPrefix(r.URL.Path, "/v2/") {
					w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",scope="x"`)
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				w.Header().Set("Docker-Content-Digest", oci.Sum(nil).String())
				_, _ = w.Write([]byte(`{"token":"x"}`))
			},
		},
		{
			name: "a token as a whole", code: oci.Timeout, want: times.Token,
			handler: func(w http.ResponseWriter, r *http.Request) {
				if strings.HasPrefix(r.URL.Path, "/v2/") {
					w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token"`)
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				for pause(r.Context(), 3*time.Second) { // always one more byte
					_, _ = w.Write([]byte(" "))
					w.(http.Flusher).Flush()
				}
			},
		},
		{
			name: "a manifest as a whole", get: true, code: oci.Timeout, want: times.Body,
			handler: func(w http.ResponseWriter, r *http.Request) {
				for ok := true; ok; ok = pause(r.Context(), 3*time.Second) {
					_, _ = w.Write([]byte(" "))
					w.(http.Flusher).Flush()
				}
			},
		},
		{
			name: "a refusal's body", get: true, code: oci.ManifestUnknown, want: drainTime,
			handler: func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", "1000")
				w.WriteHeader(http.StatusNotFound)
				w.(http.Flusher).Flush()
				never(r.Context())
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if tt.url == "" {
					tt.url = "http://localhost:1"
				}
				if tt.dial == nil {
					network := ocitest.NewNetwork()
					listener := network.Listen("localhost")
					srv := &http.Server{Handler: tt.handler}
					go func() { _ = srv.Serve(listener) }()
					defer srv.Close()
					tt.url, tt.dial = "http://"+listener.Addr().String(), network.DialContext
				}
				c := connectAt(t, tt.url, time.Now, func(cfg *Config) {
					cfg.Dial = tt.dial
					if tt.config != nil {
						tt.config(cfg)
					}
				})
				took, err := timed(func() error {
					if tt.get {
						_, _, err := c.Manifest(t.Context(), alpine, oci.Sum(nil), oci.Ask{})
						return err
					}
					return resolve(t, c)
				})
				if tt.code == 0 && err != nil {
					t.Error(err)
				} else if tt.code != 0 {
					wantCode(t, err, tt.code)
				}
				if took != tt.want {
					t.Errorf("it took %v, want %v (%v)", took, tt.want, err)
				}
				c.Close()
			})
		})
	}
}

// Of the questions that are on their way those are told that have been for a while, and
// that somebody waits for.
func TestWhatIsUnansweredForAWhileIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w waits
		want := func(when string, want ...Waiting) {
			t.Helper()
			if got := w.list(); !slices.Equal(got, want) {
				t.Errorf("%s: %v, want %v", when, got, want)
			}
		}
		began := time.Now()
		first, background := w.begin("b.example", oci.Ask{}), w.begin("b.example", oci.Ask{Background: true})
		time.Sleep(leastWait - 1)
		second, other := w.begin("b.example", oci.Ask{}), w.begin("a.example", oci.Ask{})
		want("at first")
		time.Sleep(time.Nanosecond)
		want("when the first has waited", Waiting{"b.example", 1, began})
		time.Sleep(leastWait)
		then := began.Add(leastWait - 1)
		want("when all have", Waiting{"a.example", 1, then}, Waiting{"b.example", 2, began})
		first()
		want("when the first is answered", Waiting{"a.example", 1, then}, Waiting{"b.example", 1, then})
		second()
		other()
		background()
		want("at the end")
	})
}

// pause reports whether it ended by itself.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

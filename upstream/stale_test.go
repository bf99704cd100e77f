package upstream

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"entrepot/internal/ocitest"
	"entrepot/oci"
)

// path is a network on the way to which something may lose its state: what was
// connected before then hears nothing any more, and new connections are well.
type path struct {
	dial  DialFunc
	epoch atomic.Int32
}

func (p *path) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := p.dial(ctx, network, addr)
	return &pathConn{conn, p, p.epoch.Load()}, err
}

func (p *path) loseState() { p.epoch.Add(1) }

type pathConn struct {
	net.Conn
	path  *path
	epoch int32
}

func (c *pathConn) Write(b []byte) (int, error) {
	if c.epoch < c.path.epoch.Load() {
		return len(b), nil // it goes nowhere
	}
	return c.Conn.Write(b)
}

// Where the path has lost its state, the connections that wait for use are all dead. One
// request finds that out; the probe, and who asks next, dial anew.
func TestDeadConnectionsAreNotUsedUpOneByOne(t *testing.T) {
	for _, row := range []struct {
		name string
		ask  func(context.Context, *Client, oci.Digest) error
	}{
		{"names", func(ctx context.Context, c *Client, _ oci.Digest) error {
			_, _, err := c.Resolve(ctx, alpine, "latest", oci.Ask{})
			return err
		}},
		{"blobs", func(ctx context.Context, c *Client, d oci.Digest) error {
			b, err := c.Blob(ctx, alpine, d, oci.Ask{})
			if err != nil {
				return err
			}
			r, err := b.Open(ctx, 0, -1)
			if err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, r)
			r.Close()
			return err
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			simulate(t, open, func(w *world) {
				way := &path{dial: w.net.DialContext}
				c := w.connect(func(cfg *Config) { cfg.Dial = way.DialContext })
				layer := ocitest.RandomImage(1, 100).Blobs[0].Digest
				w.hub.Set(func(h *ocitest.Habits) { h.Latency = time.Second }) // so that each has a connection of its own
				var crowd sync.WaitGroup
				for range 8 {
					crowd.Go(func() {
						if err := row.ask(w.t.Context(), c, layer); err != nil {
							w.t.Error(err)
						}
					})
				}
				crowd.Wait()
				w.hub.Set(func(h *ocitest.Habits) { h.Latency = 0 })
				way.loseState()
				if err := row.ask(w.t.Context(), c, layer); err == nil {
					w.t.Error("a dead connection carried it")
				}
				time.Sleep(2 * minProbeWait) // what hung is probed by itself
				if err := row.ask(w.t.Context(), c, layer); err != nil {
					w.t.Errorf("the next one: %v", err)
				}
				if s := stateOf(w.t, c, w.hub.URL()); s.State != BreakerClosed {
					w.t.Errorf("the host is well, and %+v", s)
				}
			})
		})
	}
}

// A manifest or a token that begins and stalls is no answer: what gave it is not asked
// for it again and again, though all its headers come.
func TestAnAnswerThatStallsIsNoAnswer(t *testing.T) {
	for _, row := range []struct {
		name  string
		stall func(*world) (mend func())
		ask   func(context.Context, *Client) error
	}{
		{
			"manifest",
			func(w *world) func() {
				return w.hub.Inject(&ocitest.Fault{Match: ocitest.Match{Kind: ocitest.Manifest, Method: http.MethodGet}, Effect: ocitest.Stall(5)}).Remove
			},
			func(ctx context.Context, c *Client) error {
				_, _, err := c.Manifest(ctx, alpine, ocitest.RandomImage(1, 100).Digest, oci.Ask{})
				return err
			},
		},
		{
			"token",
			func(w *world) func() {
				service, mend := stallingTokens(w)
				w.hub.Set(func(h *ocitest.Habits) { h.Auth, h.Realm = ocitest.TokenAuth, "http://"+service+"/token" })
				return func() { mend(); w.hub.Set(func(h *ocitest.Habits) { h.Auth = ocitest.NoAuth }) }
			},
			func(ctx context.Context, c *Client) error {
				_, _, err := c.Resolve(ctx, alpine, "latest", oci.Ask{})
				return err
			},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			simulate(t, open, func(w *world) {
				mend, calls := row.stall(w), 0
				c := w.connect(func(cfg *Config) {
					cfg.Observe = func(call Call) {
						if call.Method == http.MethodGet {
							calls++
						}
					}
				})
				for range 60 { // ten minutes, and what they wait
					if err := row.ask(w.t.Context(), c); err == nil {
						w.t.Fatal("it came")
					}
					time.Sleep(10 * time.Second)
				}
				if calls > 30 { // by the end one in two minutes: a probe's answer, then one who tries
					w.t.Errorf("%d requests in ten minutes", calls)
				}
				mend()
				time.Sleep(2 * maxPartWait)
				_ = row.ask(w.t.Context(), c)
				if err := row.ask(w.t.Context(), c); err != nil {
					w.t.Errorf("after the mend: %v", err)
				}
			})
		})
	}
}

// stallingTokens is a token service that begins its answers, and ends them once it is
// mended.
func stallingTokens(w *world) (host string, mend func()) {
	mended := make(chan struct{})
	host = w.serve("token.example", func(w http.ResponseWriter, _ *http.Request, ended <-chan struct{}) {
		_, _ = io.WriteString(w, "{")
		_ = http.NewResponseController(w).Flush()
		select {
		case <-mended:
			_, _ = io.WriteString(w, `"token":"x"}`)
		case <-ended:
		}
	})
	return host, func() { close(mended) }
}

// An answer that comes slowly, as long as something comes, is none that hangs: nothing
// is kept from its host, nor are the connections to it given up.
func TestWhatDripsIsWell(t *testing.T) {
	for name, ask := range map[string]func(context.Context, *Client) error{
		"a list": func(ctx context.Context, c *Client) error {
			_, _, err := c.Tags(ctx, alpine, oci.Page{}, oci.Ask{})
			return err
		},
		"an error": func(ctx context.Context, c *Client) error {
			_, _, err := c.Resolve(ctx, alpine, "missing", oci.Ask{})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, open, func(w *world) {
				host, dials := drippingServer(w), atomic.Int32{}
				c := connectAt(w.t, "http://"+host, time.Now, func(cfg *Config) {
					cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
						dials.Add(1)
						return w.net.DialContext(ctx, network, addr)
					}
				})
				crowd := func() {
					var all sync.WaitGroup
					for range 8 {
						all.Go(func() {
							if err := resolve(w.t, c); err != nil {
								w.t.Error(err)
							}
						})
					}
					all.Wait()
				}
				crowd()
				if err := ask(w.t.Context(), c); err == nil {
					w.t.Error("it came")
				}
				before := dials.Load()
				crowd()
				if n := dials.Load() - before; n > 1 { // its own was given up
					w.t.Errorf("%d connections were dialled anew", n)
				}
				if err := ask(w.t.Context(), c); oci.CodeOf(err) == oci.Unavailable {
					w.t.Errorf("it is not asked for again: %v", err)
				}
			})
		})
	}
}

// drippingServer has every tag but missing, of which it takes for ever to say so, as to
// list them.
func drippingServer(w *world) (host string) {
	return w.serve("registry.example", func(w http.ResponseWriter, r *http.Request, ended <-chan struct{}) {
		switch path := r.URL.Path; {
		case strings.HasSuffix(path, "/missing") && r.Method == http.MethodHead, !strings.HasSuffix(path, "/list") && !strings.HasSuffix(path, "/missing"):
			time.Sleep(time.Second)
			w.Header().Set("Docker-Content-Digest", oci.Sum(nil).String())
			if strings.HasSuffix(path, "/missing") {
				w.WriteHeader(http.StatusMethodNotAllowed)
			}
			return
		case strings.HasSuffix(path, "/missing"):
			w.WriteHeader(http.StatusNotFound)
		}
		for {
			_, _ = io.WriteString(w, " ")
			_ = http.NewResponseController(w).Flush()
			select {
			case <-time.After(500 * time.Millisecond):
			case <-r.Context().Done():
				return
			case <-ended:
				return
			}
		}
	})
}

// serve answers under a name until the test ends, as answers that go on have to, too.
func (w *world) serve(name string, answer func(w http.ResponseWriter, r *http.Request, ended <-chan struct{})) (host string) {
	l, ended, served := w.net.Listen(name), make(chan struct{}), make(chan struct{})
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { answer(w, r, ended) })}
	go func() { defer close(served); _ = server.Serve(l) }()
	w.t.Cleanup(func() { close(ended); _ = server.Close(); <-served })
	return l.Addr().String()
}

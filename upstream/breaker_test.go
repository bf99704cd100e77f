package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/internal/ocitest"
	"entrepot/oci"
)

// world is where a simulated test takes place.
type world struct {
	t   *testing.T // of the bubble
	hub *ocitest.Hub
	net *ocitest.Network
}

// simulate runs a test in a bubble, where time passes when everybody waits,
// with a hub on a network in memory.
func simulate(t *testing.T, cfg ocitest.Config, f func(*world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		cfg.Network = ocitest.NewNetwork()
		w := &world{t: t, hub: ocitest.NewHub(t, cfg), net: cfg.Network}
		w.hub.Push("library/alpine", "latest", ocitest.RandomImage(1, 100))
		f(w)
	})
}

func (w *world) connect(change ...func(*Config)) *Client {
	w.t.Helper()
	return connect(w.t, w.hub, append([]func(*Config){func(c *Config) { c.Dial = w.net.DialContext }}, change...)...)
}

// client is what most tests begin with.
func (w *world) client() (*testing.T, *ocitest.Hub, *Client) {
	w.t.Helper()
	return w.t, w.hub, w.connect()
}

var open = ocitest.Config{Habits: ocitest.Habits{Auth: ocitest.NoAuth}}

// stateOf is the state of one host's breaker.
func stateOf(t *testing.T, c *Client, hostURL string) Breaker {
	t.Helper()
	u, err := url.Parse(hostURL)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range c.Breakers() {
		if b.Host == u.Host {
			return b
		}
	}
	return Breaker{State: BreakerClosed}
}

// timed tells how long a question took, in the bubble's time.
func timed(f func() error) (time.Duration, error) {
	start := time.Now()
	err := f()
	return time.Since(start), err
}

// A connection that is closed instead of an answer is not the end of anything.
func TestAClosedConnectionIsNoEnd(t *testing.T) {
	simulate(t, open, func(w *world) {
		t, hub, c := w.client()
		mustResolve(t, c)
		hub.Inject(&ocitest.Fault{Effect: ocitest.Reset()})
		if err := resolve(t, c); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("got %v, want an error that is not io.EOF", err)
		}
		b, err := c.Blob(t.Context(), alpine, ocitest.RandomImage(1, 100).Blobs[0].Digest, oci.Ask{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Open(t.Context(), 0, -1); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("got %v, want an error that is not io.EOF", err)
		}
	})
}

// Whatever way a host fails, ten thousand requests cost it a handful, and none
// but the first few takes any time. What recovers is found by itself.
func TestAnOutageCostsAHandfulOfProbes(t *testing.T) {
	answer := func(status int) func(*ocitest.Hub) { return inject(ocitest.Answer(status)) }
	tests := []struct {
		name  string
		down  func(*ocitest.Hub)
		first int // requests until it is noticed
	}{
		{"black hole", inject(ocitest.Hang()), 1},
		{"reset", inject(ocitest.Reset()), tripAfter},
		{"500", answer(500), tripAfter},
		{"502", answer(502), tripAfter},
		{"503", answer(503), tripAfter},
		{"504", answer(504), tripAfter},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			simulate(t, open, func(w *world) {
				t, hub, c := w.client()
				mustResolve(t, c)
				hub.Reset()
				tt.down(hub)
				for range tt.first {
					took, err := timed(func() error { return resolve(t, c) })
					if err == nil || took > c.cfg.Timeouts.headers() {
						t.Fatalf("while it is down: %v after %v", err, took)
					}
				}
				for range 10_000 { // in ten minutes
					took, err := timed(func() error { return resolve(t, c) })
					if oci.CodeOf(err) != oci.Unavailable || took != 0 {
						t.Fatalf("got %v after %v, want Unavailable at once", err, took)
					}
					if after := oci.RetryAfter(err); after <= 0 || after > maxPartWait+probeGrace {
						t.Fatalf("retry after %v", after)
					}
					time.Sleep(60 * time.Millisecond)
				}
				if n := len(hub.Requests()); n < 15 || n > 45 {
					t.Errorf("the host saw %d requests in ten minutes, want a probe every 30 s", n)
				}
				hub.ClearFaults()
				err := resolve(t, c)
				time.Sleep(oci.RetryAfter(err)) // what it says is true
				if err := resolve(t, c); err != nil {
					t.Errorf("after the time it named: %v", err)
				}
				if s := stateOf(t, c, hub.URL()); s.State != BreakerClosed || s.Err != nil {
					t.Errorf("%+v after it is well", s)
				}
			})
		})
	}
}

func inject(e ocitest.Effect) func(*ocitest.Hub) {
	return func(hub *ocitest.Hub) { hub.Inject(&ocitest.Fault{Effect: e}) }
}

func TestNobodyIsDialledWhileABreakerIsOpen(t *testing.T) {
	for name, refuse := range map[string]func(context.Context) error{
		"refused": func(context.Context) error {
			return &net.OpError{Op: "dial", Err: errors.New("connection refused")}
		},
		"no such host": func(context.Context) error { return &net.DNSError{IsNotFound: true} },
		"no answer":    func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var dials atomic.Int32
				c := connectAt(t, "https://registry.example", time.Now, func(cfg *Config) {
					cfg.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
						dials.Add(1)
						return nil, refuse(ctx)
					}
				})
				for range tripAfter {
					if err := resolve(t, c); err == nil {
						t.Fatal("no error")
					}
				}
				before := dials.Load()
				for range 1000 {
					wantCode(t, resolve(t, c), oci.Unavailable)
				}
				if n := dials.Load(); n != before {
					t.Errorf("%d dials while the breaker is open", n-before)
				}
			})
		})
	}
}

// What is no failure of the host never opens its breaker.
func TestWhatOpensNoBreaker(t *testing.T) {
	effects := map[string]ocitest.Effect{
		"429": ocitest.QuotaSpent(), "abuse": ocitest.AbuseLimit(), "501": ocitest.Answer(501), "page": ocitest.HTML(200),
	}
	for _, status := range []int{400, 401, 403, 404, 405, 408, 410, 418, 451} {
		effects[fmt.Sprint(status)] = ocitest.Answer(status)
	}
	for name, effect := range effects {
		t.Run(name, func(t *testing.T) {
			simulate(t, open, func(w *world) {
				t, hub, c := w.client()
				inject(effect)(hub)
				for range 10 * tripAfter {
					_ = resolve(t, c)
				}
				if s := stateOf(t, c, hub.URL()); s.State != BreakerClosed || s.Failures != 0 {
					t.Errorf("%+v", s)
				}
			})
		})
	}
	t.Run("failures between successes", func(t *testing.T) {
		simulate(t, open, func(w *world) {
			t, hub, c := w.client()
			for range 10 {
				hub.Inject(&ocitest.Fault{Effect: ocitest.Answer(500), Times: tripAfter - 1})
				for range tripAfter - 1 {
					wantCode(t, resolve(t, c), oci.Unavailable)
				}
				mustResolve(t, c)
			}
		})
	})
	t.Run("callers that leave", func(t *testing.T) {
		simulate(t, open, func(w *world) {
			t, hub, c := w.client()
			hang := hub.Inject(&ocitest.Fault{Effect: ocitest.Hang()})
			for i := range 10 * tripAfter {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				if i%2 == 0 {
					time.AfterFunc(500*time.Millisecond, cancel)
				}
				if _, _, err := c.Resolve(ctx, alpine, "latest", oci.Ask{}); err == nil {
					t.Error("no error")
				}
				cancel()
			}
			hang.Release()
			mustResolve(t, c)
		})
	})
	t.Run("together", func(t *testing.T) {
		simulate(t, open, func(w *world) {
			t, hub, c := w.client()
			hub.Set(func(h *ocitest.Habits) { h.Latency = time.Second })
			hub.Inject(&ocitest.Fault{Effect: ocitest.Reset(), Times: 10})
			var wg sync.WaitGroup
			for range 10 {
				wg.Go(func() { wantCode(t, resolve(t, c), oci.Unavailable) })
			}
			wg.Wait()
			mustResolve(t, c)
		})
	})
	t.Run("one silent question among others that are answered", func(t *testing.T) {
		simulate(t, open, func(w *world) {
			t, hub, c := w.client()
			hub.Inject(&ocitest.Fault{Match: ocitest.Match{Kind: ocitest.Tags}, Effect: ocitest.Hang()})
			var wg sync.WaitGroup
			wg.Go(func() {
				_, _, err := c.Tags(t.Context(), alpine, oci.Page{N: -1}, oci.Ask{})
				wantCode(t, err, oci.Timeout)
			})
			time.Sleep(time.Second)
			mustResolve(t, c)
			wg.Wait()
			mustResolve(t, c)
		})
	})
}

// The registry, the token service and where blobs are have breakers of their
// own: what needs only those that are well goes on.
func TestEachHostHasItsOwnBreaker(t *testing.T) {
	simulate(t, ocitest.Config{}, func(w *world) {
		t, hub := w.t, w.hub
		blob := ocitest.Blob(1, 1000)
		hub.PushBlob("library/alpine", blob)
		var rec recorder
		c := w.connect(rec.attach)
		mustResolve(t, c)
		hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.CDN}, Effect: ocitest.Hang()})
		_, err := read(t.Context(), openBlob(t, c, alpine, blob.Digest), 0, -1)
		wantCode(t, err, oci.Timeout)
		for range 10 {
			took, err := timed(func() error {
				_, err := read(t.Context(), openBlob(t, c, alpine, blob.Digest), 0, -1)
				return err
			})
			if oci.CodeOf(err) != oci.Unavailable || took != 0 {
				t.Errorf("a blob while the CDN is silent: %v after %v", err, took)
			}
		}
		mustResolve(t, c)
		time.Sleep(c.cfg.Timeouts.headers()) // the CDN is silent about all else, too
		states := c.Breakers()
		if len(states) != 2 || stateOf(t, c, hub.CDNURL()).State == BreakerClosed || stateOf(t, c, hub.URL()).State != BreakerClosed {
			t.Errorf("%+v", states)
		}
		hub.ClearFaults()
		time.Sleep(maxProbeWait)
		if _, err := read(t.Context(), openBlob(t, c, alpine, blob.Digest), 0, -1); err != nil {
			t.Error(err)
		}
		if got := fmt.Sprint(rec.troubles()); got != fmt.Sprint([]Trouble{HostDown, HostUp}) {
			t.Errorf("warnings %v", got)
		}
		for _, r := range hub.Requests() {
			if r.Role == ocitest.CDN && r.Method == http.MethodHead && r.Header.Get("Authorization") != "" {
				t.Error("a probe brings a credential")
			}
		}
	})
}

// What answers 5xx by itself, be it a repository, a manifest or a blob, is left
// alone by itself. Nothing else is, whatever else is asked for meanwhile.
func TestWhatIsBrokenByItselfTakesNothingElseAway(t *testing.T) {
	image, good, bad := ocitest.RandomImage(1, 100), ocitest.Blob(1, 1000), ocitest.Blob(2, 1000)
	other := oci.Repository{Host: "docker.io", Path: "library/other"}
	pull := func(ctx context.Context, c *Client, repo oci.Repository, d oci.Digest) error {
		b, err := c.Blob(ctx, repo, d, oci.Ask{})
		if err == nil {
			_, err = read(ctx, b, 0, -1)
		}
		return err
	}
	latest := func(ctx context.Context, c *Client) error {
		_, _, err := c.Resolve(ctx, alpine, "latest", oci.Ask{})
		return err
	}
	tests := []struct {
		name   string
		habits ocitest.Habits
		broken ocitest.Match
		bad    func(context.Context, *Client) error
		good   func(context.Context, *Client) error
	}{
		{
			"a repository", open.Habits,
			ocitest.Match{Repo: "library/other"},
			func(ctx context.Context, c *Client) error {
				_, _, err := c.Resolve(ctx, other, "latest", oci.Ask{})
				return err
			}, latest,
		},
		{
			"all of a repository", open.Habits,
			ocitest.Match{Repo: "library/other"},
			func(ctx context.Context, c *Client) error {
				_, _, _ = c.Resolve(ctx, other, "latest", oci.Ask{})
				_, _, _ = c.Tags(ctx, other, oci.Page{N: -1}, oci.Ask{})
				return pull(ctx, c, other, good.Digest)
			}, latest,
		},
		{
			"a repository's token",
			ocitest.Habits{},
			ocitest.Match{Role: ocitest.Token, Repo: "library/other"},
			func(ctx context.Context, c *Client) error {
				_, _, err := c.Resolve(ctx, other, "latest", oci.Ask{})
				return err
			},
			func(ctx context.Context, c *Client) error {
				_, _, err := c.Resolve(ctx, alpine, "latest", oci.Ask{Refresh: true})
				return err
			},
		},
		{
			"a tag", open.Habits,
			ocitest.Match{Repo: "library/alpine", Kind: ocitest.Tags},
			func(ctx context.Context, c *Client) error {
				_, _, err := c.Tags(ctx, alpine, oci.Page{N: -1}, oci.Ask{})
				return err
			}, latest,
		},
		{
			"a blob at the CDN",
			ocitest.Habits{},
			ocitest.Match{Role: ocitest.CDN, Reference: bad.Digest.String()},
			func(ctx context.Context, c *Client) error { return pull(ctx, c, alpine, bad.Digest) },
			func(ctx context.Context, c *Client) error { return pull(ctx, c, alpine, good.Digest) },
		},
	}
	for _, tt := range tests {
		for _, every := range []time.Duration{time.Second, 10 * time.Second, 15 * time.Second} {
			t.Run(fmt.Sprint(tt.name, " every ", every), func(t *testing.T) {
				simulate(t, ocitest.Config{Habits: tt.habits}, func(w *world) {
					t, hub := w.t, w.hub
					hub.Push(other.Path, "latest", image)
					for _, b := range []ocitest.Content{good, bad} {
						hub.PushBlob(alpine.Path, b)
						hub.PushBlob(other.Path, b)
					}
					c := w.connect()
					hub.Inject(&ocitest.Fault{Match: tt.broken, Effect: ocitest.Answer(500)})
					asked := 0
					for range 100 {
						for range 5 {
							if err := tt.bad(t.Context(), c); err == nil || !oci.IsRetryable(err) {
								t.Fatalf("what is broken: %v", err)
							}
							asked++
							time.Sleep(every / 5)
						}
						if err := tt.good(t.Context(), c); err != nil {
							t.Fatalf("what is well, after %d questions for what is not: %v", asked, err)
						}
					}
					if n := hub.Count(tt.broken); n > asked/2 {
						t.Errorf("what is broken was asked for %d times for %d questions", n, asked)
					}
				})
			})
		}
	}
}

// A repository that is busy, and says for how long, is left alone for that, or for
// as long as we bear it; whatever else its host has is not, and an operator can
// have it asked at once.
func TestWhatIsBusyTakesNothingElseAway(t *testing.T) {
	for _, says := range []struct {
		text string
		want time.Duration
	}{{"30", 30 * time.Second}, {"600", 10 * time.Minute}, {"86400", idleProbeWait}} {
		simulate(t, open, func(w *world) {
			t, hub, c := w.client()
			ask := func(path string) error { return resolveAt(t, c, path) }
			busy := hub.Inject(&ocitest.Fault{Match: ocitest.Match{Repo: "library/busy"}, Effect: ocitest.RetryLater(503, says.text)})
			wantCode(t, ask("library/busy"), oci.Unavailable)
			mustResolve(t, c)
			if all := c.Breakers(); !slices.ContainsFunc(all, func(b Breaker) bool {
				return b.Part != "" && b.State == BreakerOpen && b.Err != nil && time.Until(b.Next) >= says.want
			}) {
				t.Errorf("%s: nobody sees it in %+v", says.text, all)
			}
			hub.Reset()
			for range 10 {
				if after := oci.RetryAfter(ask("library/busy")); after > says.want+probeGrace || after < says.want-2*time.Second {
					t.Errorf("%s: retry after %v, want %v", says.text, after, says.want)
				}
				mustResolve(t, c)
				time.Sleep(100 * time.Millisecond)
			}
			if n := hub.Count(ocitest.Match{Repo: "library/busy"}); n != 0 {
				t.Errorf("%s: it was asked %d times meanwhile", says.text, n)
			}
			busy.Remove()
			c.Forget(t.Context(), alpine)
			wantCode(t, ask("library/busy"), oci.Unavailable)
			c.Forget(t.Context(), oci.Repository{Host: alpine.Host, Path: "library/busy"})
			if err := ask("library/busy"); oci.CodeOf(err) == oci.Unavailable {
				t.Errorf("%s: refused although its refusals were forgotten: %v", says.text, err)
			}
		})
	}
}

// Many repositories have their tokens at one path: each tells which it is of.
func TestPartsTellTheirRepository(t *testing.T) {
	simulate(t, ocitest.Config{}, func(w *world) {
		t, c := w.t, w.connect()
		w.hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.Token}, Effect: ocitest.Hang()})
		want := []string{"library/a", "library/b", "library/c"}
		var asked sync.WaitGroup
		for _, path := range want {
			asked.Go(func() { _ = resolveAt(t, c, path) })
		}
		asked.Wait()
		var got []string
		for _, b := range c.Breakers() {
			if b.Part == "/token" {
				got = append(got, b.Repo)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("of %v, want %v", got, want)
		}
	})
}

// Where several repositories fail, or several blobs of a CDN, so does their host.
// It opens again for whatever is found to be well, however broken the others stay.
func TestSeveralBrokenOnesAreAHost(t *testing.T) {
	simulate(t, open, func(w *world) {
		t, hub, c := w.client()
		ask := func(path string) error { return resolveAt(t, c, path) }
		var broken []*ocitest.Fault
		for _, path := range []string{"library/a", "library/b", "library/c"} {
			broken = append(broken, hub.Inject(&ocitest.Fault{Match: ocitest.Match{Repo: path}, Effect: ocitest.Answer(500)}))
		}
		for _, f := range broken {
			wantCode(t, ask(f.Match.Repo), oci.Unavailable)
		}
		if s := stateOf(t, c, hub.URL()); s.State != BreakerOpen {
			t.Fatalf("%+v after three repositories failed", s)
		}
		hub.Reset()
		wantCode(t, ask("library/a"), oci.Unavailable) // which is known to fail
		saw(t, hub)
		if err := ask("library/alpine"); err != nil {
			t.Errorf("what is well: %v", err)
		}
		if s := stateOf(t, c, hub.URL()); s.State != BreakerClosed {
			t.Fatalf("%+v after a repository answered", s)
		}
		refused := 0
		for range 300 { // and stays open for it, once each is known by itself
			for _, f := range broken {
				_ = ask(f.Match.Repo)
			}
			if ask("library/alpine") != nil {
				refused++
			}
			time.Sleep(time.Second)
		}
		if refused > 10 {
			t.Errorf("what is well was refused %d times of 300 beside what is not", refused)
		}
	})
	simulate(t, ocitest.Config{}, func(w *world) {
		t, hub, c := w.client()
		hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.CDN}, Effect: ocitest.Answer(500)})
		for i := range tripAfter {
			blob := ocitest.Blob(uint64(i), 1000)
			hub.PushBlob("library/alpine", blob)
			if _, err := read(t.Context(), openBlob(t, c, alpine, blob.Digest), 0, -1); err == nil {
				t.Fatal("no error")
			}
		}
		if s := stateOf(t, c, hub.CDNURL()); s.State != BreakerOpen {
			t.Errorf("%+v after several blobs failed", s)
		}
	})
}

// However many repositories answer 5xx, or hang, and whatever the rhythm, for an
// hour or so, those that are well are had, each of them for the first time, and
// nobody is told of an outage again and again.
func TestBrokenRepositoriesRefuseNoOther(t *testing.T) {
	for _, tt := range []struct {
		effect        string
		broken        int
		every, others time.Duration
		auth          ocitest.Auth // if it is wanted, a probe is no proof
	}{
		{"500", 2, 90 * time.Second, 5 * time.Minute, ocitest.NoAuth},
		{"500", 2, 30 * time.Second, 67 * time.Second, ocitest.NoAuth},
		{"500", 3, 5 * time.Second, 7 * time.Second, ocitest.NoAuth},
		{"500", 6, time.Second, 3 * time.Second, ocitest.TokenAuth},
		{"500", 6, 3 * time.Minute, 67 * time.Second, ocitest.TokenAuth},
		{"500", 6, 20 * time.Minute, 5 * time.Minute, ocitest.TokenAuth},
		{"500", 10, time.Second, 20 * time.Second, ocitest.NoAuth},
		{"busy", 6, 30 * time.Second, 67 * time.Second, ocitest.TokenAuth},
		{"busy", 10, 5 * time.Minute, 301 * time.Second, ocitest.NoAuth},
		{"hang", 1, 30 * time.Second, 67 * time.Second, ocitest.NoAuth},
		{"hang", 1, 5 * time.Minute, 301 * time.Second, ocitest.TokenAuth},
		{"hang", 2, 90 * time.Second, 20 * time.Minute, ocitest.NoAuth},
		{"hang", 6, 5 * time.Second, 67 * time.Second, ocitest.TokenAuth},
	} {
		t.Run(fmt.Sprint(tt), func(t *testing.T) {
			simulate(t, ocitest.Config{Habits: ocitest.Habits{Auth: tt.auth}}, func(w *world) {
				t, hub := w.t, w.hub
				var rec recorder
				c := w.connect(rec.attach)
				ask := func(path, tag string) error {
					_, _, err := c.Resolve(t.Context(), oci.Repository{Host: alpine.Host, Path: path}, tag, oci.Ask{})
					return err
				}
				n := min(max(50, int(time.Hour/tt.others)), 300)
				image := ocitest.RandomImage(1, 100)
				for i := range n {
					hub.Push(fmt.Sprint("library/well", i), "latest", image)
				}
				effect := map[string]ocitest.Effect{"500": ocitest.Answer(500), "busy": ocitest.RetryLater(503, "600"), "hang": ocitest.Hang()}[tt.effect]
				var asking sync.WaitGroup
				for i := range tt.broken {
					path := fmt.Sprint("library/broken", i)
					hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.Registry, Repo: path}, Effect: effect})
					asking.Go(func() {
						time.Sleep(time.Duration(i) * 100 * time.Millisecond)
						start := time.Now()
						for k := 0; time.Since(start) < time.Duration(n)*tt.others; k++ {
							_ = ask(path, fmt.Sprint("tag", k%3))
							time.Sleep(tt.every)
						}
					})
				}
				refused := 0
				for i := range n {
					time.Sleep(tt.others)
					if ask(fmt.Sprint("library/well", i), "latest") != nil {
						refused++
					}
				}
				asking.Wait()
				if refused > 0 {
					t.Errorf("%d of %d were refused", refused, n)
				}
				if told := rec.troubles(); len(told) > 4 {
					t.Errorf("an operator is told of %v", told)
				}
			})
		})
	}
}

func TestBreakersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreakers(func(context.Context, *url.URL) (outcome, time.Duration, error) { return failed, 0, errStalled }, func(string, error) {})
		defer b.close()
		own := &url.URL{Scheme: "https", Host: "own.example"}
		fail := func(u *url.URL) {
			for range tripAfter {
				b.note(target{url: u}, time.Now(), failed, 0, errStalled)
			}
		}
		fail(own)
		for i := range 3 * maxBreakers {
			time.Sleep(time.Millisecond)
			u := &url.URL{Scheme: "https", Host: fmt.Sprintf("cdn%d.example", i)}
			if b.admit(t.Context(), target{url: own}) == nil {
				t.Fatal("a host that is wanted was forgotten")
			}
			if i%2 == 0 {
				fail(u)
			} else {
				b.note(target{url: u}, time.Now(), answered, 0, nil)
			}
		}
		if n := len(b.known); n > maxBreakers {
			t.Errorf("%d hosts are remembered, want at most %d", n, maxBreakers)
		}
	})
}

// Of too many, what is not asked just now is kept before what is, however long ago
// it was wanted, and what was wanted last before what was not.
func TestWhatIsOpenIsForgottenLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreakers(func(context.Context, *url.URL) (outcome, time.Duration, error) { return erred, 0, errStalled }, func(string, error) {})
		defer b.close()
		at := func(repo, path string) target {
			return target{url: &url.URL{Scheme: "https", Host: "own.example", Path: path}, repo: repo}
		}
		fail := func(at target, times int) {
			for range times {
				b.note(at, time.Now(), erred, 0, errStalled)
				time.Sleep(time.Millisecond)
			}
		}
		const broken, last = maxBreakers / 4, 3*maxBreakers - 1
		for i := range broken {
			fail(at("broken", fmt.Sprint("/broken", i)), tripAfter)
		}
		fail(at("suspect", "/early"), 1)
		for i := range last + 1 {
			fail(at("suspect", fmt.Sprint("/", i)), 1)
		}
		if n := len(b.known); n > maxBreakers {
			t.Errorf("%d are remembered, want at most %d", n, maxBreakers)
		}
		for i := range broken {
			if b.known[at("broken", fmt.Sprint("/broken", i)).path()] == nil {
				t.Fatal("what is open was forgotten before what is not")
			}
		}
		if b.known[at("suspect", "/early").path()] != nil || b.known[at("suspect", fmt.Sprint("/", last)).path()] == nil {
			t.Error("what failed last was forgotten before what failed first")
		}
	})
}

// What counts against a host is news of it, and no more than one word for what fails
// together.
func TestWhatCountsAgainstAHost(t *testing.T) {
	const ago = 10 * time.Second // when what takes its time began
	type step struct {
		path    string // the repository's first part is its name
		outcome outcome
		took    time.Duration
		wait    time.Duration // before
	}
	for _, tt := range []struct {
		name  string
		steps []step
		open  bool
	}{
		{"two repositories", []step{{path: "a"}, {path: "b"}}, false},
		{"three", []step{{path: "a"}, {path: "b"}, {path: "c"}}, true},
		{"one of them twice", []step{{path: "a"}, {path: "b"}, {path: "a"}}, false},
		{"other parts of them", []step{{path: "a"}, {path: "b"}, {path: "a/2"}, {path: "b/2"}, {path: "a/3"}}, false},
		{"one was answered between", []step{{path: "a"}, {path: "b"}, {path: "d", outcome: answered}, {path: "c"}, {path: "a"}, {path: "b"}}, false},
		{"they were answered themselves", []step{{path: "a"}, {path: "b"}, {path: "a", outcome: answered}, {path: "b", outcome: answered}, {path: "a"}, {path: "b"}, {path: "c"}}, true},
		{"one of them long ago", []step{{path: "a"}, {path: "d", outcome: answered}, {path: "b", wait: suspectFor + time.Minute}, {path: "c"}, {path: "a"}}, true},
		{"three at once", []step{{path: "a", took: ago}, {path: "b", took: ago}, {path: "c", took: ago}}, false},
		{"no connection", []step{{path: "a", outcome: silent, took: ago}}, true},
		{"no connection, beside an answer", []step{{path: "b", outcome: answered, wait: ago}, {path: "a", outcome: silent, took: 2 * ago}}, false},
		{"no answer", []step{{path: "a", outcome: hung, took: ago}}, true},
		{"no answer, beside one", []step{{path: "b", outcome: answered, wait: ago}, {path: "a", outcome: hung, took: 2 * ago}}, false},
		{"no answer of what is known to give none", []step{{path: "a", outcome: hung, took: ago}, {path: "b", outcome: answered}, {path: "a", outcome: hung}}, false},
		{"no answer of what was answered with 500", []step{{path: "a"}, {path: "a", outcome: hung, wait: ago}}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBreakers(func(ctx context.Context, _ *url.URL) (outcome, time.Duration, error) {
					<-ctx.Done()
					return unsaid, 0, ctx.Err()
				}, func(string, error) {})
				defer b.close()
				for _, s := range tt.steps {
					time.Sleep(s.wait + time.Millisecond)
					repo, _, _ := strings.Cut(s.path, "/")
					o := s.outcome
					if o == unsaid {
						o = erred
					}
					b.note(target{url: &url.URL{Scheme: "https", Host: "a.example", Path: "/" + s.path}, repo: repo}, time.Now().Add(-s.took), o, 0, errStalled)
				}
				if got := b.isOpen("a.example"); got != tt.open {
					t.Errorf("open: %v, want %v", got, tt.open)
				}
			})
		})
	}
}

// What clients read of an outage names the host and what is wrong, no more.
func TestWhatAClientReadsOfAnOutage(t *testing.T) {
	simulate(t, open, func(w *world) {
		t, hub, c := w.client()
		inject(ocitest.Answer(503))(hub)
		for range tripAfter {
			wantCode(t, resolve(t, c), oci.Unavailable)
		}
		err := resolve(t, c)
		e, _ := errors.AsType[*oci.Error](err)
		_, host, _ := strings.Cut(hub.URL(), "//")
		if want := host + " answers 503; it is tried again in "; e == nil || !strings.HasPrefix(e.Detail, want) {
			t.Errorf("got %v, want %s...", err, want)
		}
	})
}

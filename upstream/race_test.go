package upstream

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"entrepot/internal/ocitest"
	"entrepot/oci"
	"entrepot/ratelimit"
)

// questionsOf are one question of each kind.
func questionsOf(image ocitest.Image) map[string]func(context.Context, *Client) error {
	return map[string]func(context.Context, *Client) error{
		"tag": func(ctx context.Context, c *Client) error {
			_, _, err := c.Resolve(ctx, alpine, "latest", oci.Ask{})
			return err
		},
		"manifest": func(ctx context.Context, c *Client) error {
			_, _, err := c.Manifest(ctx, alpine, image.Digest, oci.Ask{})
			return err
		},
		"tags": func(ctx context.Context, c *Client) error {
			_, _, err := c.Tags(ctx, alpine, oci.Page{N: -1}, oci.Ask{})
			return err
		},
		"size of a blob": func(ctx context.Context, c *Client) error {
			b, err := c.Blob(ctx, alpine, image.Blobs[0].Digest, oci.Ask{})
			if err == nil {
				_, _, err = b.Stat(ctx)
			}
			return err
		},
		"blob": func(ctx context.Context, c *Client) error {
			b, err := c.Blob(ctx, alpine, image.Blobs[0].Digest, oci.Ask{})
			if err == nil {
				_, err = read(ctx, b, 0, -1)
			}
			return err
		},
	}
}

// However addresses say nothing, and however many of them, the last one is asked
// within half of the time that the client has, and their breakers learn of it.
func TestAddressesThatSayNothingLeaveTimeForTheLast(t *testing.T) {
	image := ocitest.RandomImage(1, 100)
	for how, row := range map[string]struct {
		habits ocitest.Habits
		on     ocitest.Match
		effect ocitest.Effect // none: no connection comes about
		learnt bool
	}{
		"no connection": {habits: open.Habits, learnt: true},
		"no answer":     {habits: open.Habits, effect: ocitest.Hang(), learnt: true},
		"no token":      {on: ocitest.Match{Role: ocitest.Token}, effect: ocitest.Hang()},
		"no first byte": {habits: open.Habits, on: ocitest.Match{Method: "GET"}, effect: ocitest.Stall(0)},
	} {
		for what, ask := range questionsOf(image) {
			if how == "no first byte" && (what == "tag" || what == "size of a blob") {
				continue
			}
			for _, answer := range []time.Duration{15 * time.Second, 3 * time.Second} {
				t.Run(how+", "+what+", "+answer.String(), func(t *testing.T) {
					simulate(t, open, func(w *world) {
						t := w.t
						hubs := []*ocitest.Hub{w.another(row.habits), w.another(row.habits), w.another(row.habits)}
						for _, h := range hubs {
							h.Push("library/alpine", "latest", image)
							if row.effect.Do != "" {
								h.Inject(&ocitest.Fault{Match: row.on, Effect: row.effect})
							}
						}
						c := w.connect(mirroredAt(hubs...), first, func(cfg *Config) {
							cfg.Timeouts.Answer = answer
							cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
								if row.effect.Do == "" && isOneOf(hubs, addr) {
									<-ctx.Done()
									return nil, ctx.Err()
								}
								return w.net.DialContext(ctx, network, addr)
							}
						})
						took, err := timed(func() error { return ask(t.Context(), c) })
						if err != nil || took > answer/2 {
							t.Errorf("it took %v, %v, want %v at most", took, err, answer/2)
						}
						took, err = timed(func() error { return ask(t.Context(), c) })
						if err != nil || took > 0 {
							t.Errorf("the next time it takes %v, %v", took, err)
						}
						time.Sleep(answer)
						for _, h := range hubs {
							if state := stateOf(t, c, h.URL()).State; row.learnt && state == BreakerClosed {
								t.Errorf("the breaker of %s is %s", h.URL(), state)
							}
						}
					})
				})
			}
		}
	}
}

func isOneOf(hubs []*ocitest.Hub, addr string) bool {
	for _, h := range hubs {
		if strings.HasSuffix(h.URL(), addr) {
			return true
		}
	}
	return false
}

// A single address has its share of the client's time, too, so that its breaker
// learns before the client has gone.
func TestWaitsAreShorterThanTheClients(t *testing.T) {
	simulate(t, open, func(w *world) {
		t, hub := w.t, w.hub
		hub.Inject(&ocitest.Fault{Effect: ocitest.Hang()})
		c := w.connect(func(cfg *Config) { cfg.Timeouts.Answer = 3 * time.Second })
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		took, err := timed(func() error { _, _, err := c.Resolve(ctx, alpine, "latest", oci.Ask{}); return err })
		if wantCode(t, err, oci.Timeout); took != 2*time.Second {
			t.Errorf("it took %v, want 2s", took)
		}
		if state := stateOf(t, c, hub.URL()).State; state == BreakerClosed {
			t.Error("the breaker has not learnt of it")
		}
	})
}

// The first that answers is it, though another was asked meanwhile; an address that
// is merely slow to answer is not held to be down.
func TestAnAnswerIsAwaitedThoughAnotherIsAsked(t *testing.T) {
	image := ocitest.RandomImage(1, 100)
	simulate(t, open, func(w *world) {
		t, hub := w.t, w.hub
		mirror := w.another(open.Habits)
		for _, h := range []*ocitest.Hub{hub, mirror} {
			h.Push("library/alpine", "latest", image)
		}
		hub.Set(func(h *ocitest.Habits) { h.Latency = 3 * time.Second })
		mirror.Set(func(h *ocitest.Habits) { h.Latency = 1500 * time.Millisecond })
		c := w.connect(mirroredAt(mirror), first)
		for range 3 {
			took, err := timed(func() error { return resolve(t, c) })
			if err != nil || took != 1500*time.Millisecond {
				t.Errorf("it took %v, %v", took, err)
			}
			if n := mirror.Count(ocitest.Match{}); n != 1 {
				t.Errorf("the mirror was asked %d times", n)
			}
			mirror.Reset()
			time.Sleep(ailingAfterSilence)
		}
		for _, h := range []*ocitest.Hub{hub, mirror} {
			if b := stateOf(t, c, h.URL()); b.State != BreakerClosed || b.Failures > 0 {
				t.Errorf("it is held to be down: %+v", b)
			}
		}
		hub.Reset()
		took, err := timed(func() error { return questionsOf(image)["manifest"](t.Context(), c) })
		if err != nil || took != 1500*time.Millisecond {
			t.Errorf("a manifest took %v, %v", took, err)
		}
		saw(t, hub) // which may count it
	})
}

// That the primary has nothing, or gives it to nobody, is said by it for those that
// stand before it, too, once they have answered: one that is slow, or was a moment ago,
// and has what nobody else has, is waited for.
func TestThePrimarysNoWaitsForThoseBeforeIt(t *testing.T) {
	image := ocitest.RandomImage(1, 100)
	other := oci.Repository{Host: alpine.Host, Path: "library/other"}
	for _, no := range []int{401, 403, 404} {
		for what, ask := range questionsOf(image) {
			t.Run(fmt.Sprintf("%d, %s", no, what), func(t *testing.T) {
				simulate(t, open, func(w *world) {
					t, hub := w.t, w.hub
					mirror := w.another(ocitest.Habits{Auth: ocitest.NoAuth, InlineBlobs: true, Latency: 3500 * time.Millisecond})
					mirror.Push("library/alpine", "latest", image)
					for _, h := range []*ocitest.Hub{hub, mirror} {
						h.Push(other.Path, "latest", image)
					}
					hub.Inject(&ocitest.Fault{Match: ocitest.Match{Repo: "library/alpine"}, Effect: ocitest.Answer(no)})
					for when, before := range map[string]func(*Client){
						"slow": func(*Client) {},
						"slow a moment ago": func(c *Client) {
							if _, _, err := c.Resolve(t.Context(), other, "latest", oci.Ask{}); err != nil {
								t.Error(err)
							}
						},
					} {
						c := w.connect(mirroredAt(mirror), first)
						before(c)
						for range 3 {
							took, err := timed(func() error { return ask(t.Context(), c) })
							if err != nil || took != 3500*time.Millisecond {
								t.Errorf("%s: it took %v, %v", when, took, err)
							}
						}
						_, _, err := c.Resolve(t.Context(), alpine, "missing", oci.Ask{})
						if oci.IsRetryable(err) || !isLack(err) {
							t.Errorf("%s: of what nobody has it is said %v", when, err)
						}
					}
				})
			})
		}
	}
}

// After the primary's no nobody is waited for that it would not have been, had the
// primary been quick, and nobody asked who cannot be asked now.
func TestWhoIsNotWaitedForAfterThePrimarysNo(t *testing.T) {
	for name, row := range map[string]struct {
		config  func(*Config)
		prepare func(hub, mirror *ocitest.Hub, c *Client)
		want    time.Duration
	}{
		"who stands behind it": {
			func(*Config) {},
			func(hub, mirror *ocitest.Hub, _ *Client) {
				hub.Set(func(h *ocitest.Habits) { h.Latency = 1500 * time.Millisecond })
				mirror.Inject(&ocitest.Fault{Effect: ocitest.Hang()})
			}, 1500 * time.Millisecond,
		},
		"who asked to be left alone": {
			first,
			func(_, mirror *ocitest.Hub, c *Client) {
				mirror.Inject(&ocitest.Fault{Effect: ocitest.RetryLater(429, "5")})
				_, _, _ = c.Resolve(context.Background(), alpine, "latest", oci.Ask{})
			}, 0,
		},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, open, func(w *world) {
				mirror := w.another(open.Habits)
				c := w.connect(mirroredAt(mirror), row.config)
				row.prepare(w.hub, mirror, c)
				took, err := timed(func() error {
					_, _, err := c.Resolve(w.t.Context(), alpine, "missing", oci.Ask{})
					return err
				})
				if wantCode(w.t, err, oci.ManifestUnknown); took != row.want {
					w.t.Errorf("it took %v, want %v", took, row.want)
				}
			})
		})
	}
}

// An address that answers late is asked after the others for half a minute, whatever it
// answers then, and whether that was of use: who asks next does not wait for it again.
func TestALateAnswerIsNoCure(t *testing.T) {
	image := ocitest.RandomImage(1, 100)
	for name, row := range map[string]struct {
		fault *ocitest.Fault // of the address that is late
		other time.Duration  // that the other takes at first
	}{
		"an answer that lost":             {},
		"a body that broke":               {fault: &ocitest.Fault{Match: ocitest.Match{Method: "GET"}, Effect: ocitest.Cut(10)}},
		"an answer that nobody else gave": {other: 6 * time.Second},
	} {
		for _, what := range []string{"tag", "manifest", "blob"} {
			t.Run(name+", "+what, func(t *testing.T) {
				simulate(t, open, func(w *world) {
					t, hub := w.t, w.hub
					mirror := w.another(ocitest.Habits{Auth: ocitest.NoAuth, InlineBlobs: true, Latency: 4 * time.Second})
					for _, h := range []*ocitest.Hub{hub, mirror} {
						h.Push("library/alpine", "latest", image)
					}
					if row.fault != nil {
						mirror.Inject(row.fault)
					}
					hub.Set(func(h *ocitest.Habits) { h.InlineBlobs, h.Latency = true, row.other })
					c := w.connect(mirroredAt(mirror), first)
					ask := func() time.Duration {
						t.Helper()
						took, err := timed(func() error { return questionsOf(image)[what](t.Context(), c) })
						if err != nil {
							t.Error(err)
						}
						return took
					}
					if took := ask(); took == 0 {
						t.Error("it took no time")
					}
					hub.Set(func(h *ocitest.Habits) { h.Latency = 0 })
					for range 5 {
						time.Sleep(5 * time.Second)
						if took := ask(); took > 0 {
							t.Errorf("later it took %v", took)
						}
					}
					time.Sleep(ailingAfterSilence - 20*time.Second)
					mirror.Reset()
					if ask(); mirror.Count(ocitest.Match{}) == 0 {
						t.Error("after half a minute it is not asked first")
					}
				})
			})
		}
	}
}

// What lost asks for nothing more: only the request that is on its way by then goes on.
func TestWhatLostAsksForNothingMore(t *testing.T) {
	image := ocitest.RandomImage(1, 100)
	for name, row := range map[string]struct {
		habits  ocitest.Habits
		prepare func(w *world, c *Client)
		saw     []string
	}{
		"its turn has not come": {
			habits: open.Habits,
			prepare: func(w *world, c *Client) {
				c.primary.limiter = ratelimit.New(ratelimit.Limits{Rate: 0.2, Burst: 1})
				if _, err := c.primary.resolve(w.t.Context(), &question{repo: alpine}, "latest"); err != nil {
					w.t.Error(err)
				}
			},
		},
		"its token has not come": {
			prepare: func(w *world, _ *Client) {
				hang := w.hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.Token}, Effect: ocitest.Hang()})
				time.AfterFunc(5*time.Second, hang.Remove)
			},
			saw: []string{digestLine("registry GET manifest library/alpine", image.Digest), "token GET token library/alpine"},
		},
		"it was told to get one": {
			habits: ocitest.Habits{Latency: time.Second},
			saw:    []string{digestLine("registry GET manifest library/alpine", image.Digest)},
		},
		"it was answered": {
			habits: ocitest.Habits{Auth: ocitest.NoAuth, Latency: time.Second},
			saw:    []string{digestLine("registry GET manifest library/alpine", image.Digest)},
		},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, ocitest.Config{Habits: row.habits}, func(w *world) {
				t, hub := w.t, w.hub
				mirror := w.another(ocitest.Habits{Auth: ocitest.NoAuth, Latency: 3500 * time.Millisecond})
				mirror.Push("library/alpine", "latest", image)
				c := w.connect(mirroredAt(mirror), first)
				if row.prepare != nil {
					row.prepare(w, c)
				}
				hub.Reset()
				took, err := timed(func() error { return questionsOf(image)["manifest"](t.Context(), c) })
				if err != nil || took != 3500*time.Millisecond {
					t.Errorf("it took %v, %v", took, err)
				}
				time.Sleep(20 * time.Second)
				saw(t, hub, row.saw...)
			})
		})
	}
}

// However many wait behind those that a mute address does not answer, for a connection
// or for their turn: all have the next address asked when those have.
func TestACrowdBehindAMuteAddress(t *testing.T) {
	const crowd = 150
	image := ocitest.RandomImage(1, 100)
	for _, limits := range []ratelimit.Limits{{Rate: -1}, {Rate: 10, Burst: 5}} {
		for what, ask := range questionsOf(image) {
			t.Run(fmt.Sprintf("at %v a second, %s", limits.Rate, what), func(t *testing.T) {
				simulate(t, open, func(w *world) {
					mirror := w.another(open.Habits)
					mirror.Inject(&ocitest.Fault{Effect: ocitest.Hang()})
					w.hub.Push("library/alpine", "latest", image)
					c := w.connect(mirroredAt(mirror), first)
					c.sites[0].limiter = ratelimit.New(limits)
					patience := time.Second
					if what == "manifest" || what == "blob" {
						patience *= 3
					}
					var all sync.WaitGroup
					for range crowd {
						all.Go(func() {
							took, err := timed(func() error { return ask(w.t.Context(), c) })
							if err != nil || took > patience*5/4 {
								w.t.Errorf("it took %v, %v", took, err)
							}
						})
					}
					all.Wait()
				})
			})
		}
	}
}

// An address all of whose connections are busy is not waited for longer than one that
// is silent, and is not held to be silent for that.
func TestABusyAddressIsNotSilent(t *testing.T) {
	simulate(t, open, func(w *world) {
		t, hub := w.t, w.hub
		mirror := w.another(ocitest.Habits{Auth: ocitest.NoAuth, Latency: 900 * time.Millisecond})
		mirror.Push("library/alpine", "latest", ocitest.RandomImage(1, 100))
		c := w.connect(mirroredAt(mirror), first, func(cfg *Config) { cfg.Limits.Requests = 1 })
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				if took, err := timed(func() error { return resolve(t, c) }); err != nil || took > time.Second {
					t.Errorf("it took %v, %v", took, err)
				}
			})
		}
		all.Wait()
		time.Sleep(time.Second)
		hub.Reset()
		mustResolve(t, c)
		saw(t, hub)
	})
}

// Who waits for leave to ask an address has nothing against it.
func TestAQueueIsNoSilence(t *testing.T) {
	simulate(t, open, func(w *world) {
		t, hub := w.t, w.hub
		mirror := w.another(open.Habits)
		mirror.Push("library/alpine", "latest", ocitest.RandomImage(1, 100))
		c := w.connect(mirroredAt(mirror), first, func(cfg *Config) { cfg.Limits = ratelimit.Limits{Rate: 0.2, Burst: 1} })
		for range 2 {
			mustResolve(t, c)
		}
		saw(t, hub)
		saw(t, mirror, headLatest, headLatest)
	})
}

// Who leaves takes with him what was asked for him alone, and nothing of that is left
// when the Client is closed.
func TestWhoLeavesALosingRace(t *testing.T) {
	simulate(t, open, func(w *world) {
		t, hub := w.t, w.hub
		mirror := w.another(open.Habits)
		for _, h := range []*ocitest.Hub{hub, mirror} {
			h.Inject(&ocitest.Fault{Effect: ocitest.Hang()})
		}
		c := w.connect(mirroredAt(mirror))
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, _, err := c.Resolve(ctx, alpine, "latest", oci.Ask{})
		wantCode(t, err, oci.Timeout)
		time.Sleep(time.Minute)
		for _, h := range []*ocitest.Hub{hub, mirror} {
			if b := stateOf(t, c, h.URL()); b.State != BreakerClosed || b.Failures > 0 {
				t.Errorf("who left has said %+v", b)
			}
		}
		hub.ClearFaults()
		mirror.ClearFaults()
		hub.Inject(&ocitest.Fault{Effect: ocitest.Hang()})
		mirror.Push("library/alpine", "latest", ocitest.RandomImage(1, 100))
		mustResolve(t, c)
		if took, _ := timed(func() error { c.Close(); return nil }); took != 0 {
			t.Errorf("closing took %v", took)
		}
	})
}

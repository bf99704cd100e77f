package upstream

import (
	"bytes"
	"context"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"entrepot/internal/ocitest"
	"entrepot/oci"
)

// pull reads a blob as a cache does: after a failure it goes on at the byte reached.
func pull(ctx context.Context, b oci.Blob) (got []byte, failures int) {
	for failures < 100 {
		r, err := b.Open(ctx, int64(len(got)), -1)
		if err != nil {
			failures++
			continue
		}
		part, err := io.ReadAll(r)
		r.Close()
		if got = append(got, part...); err == nil {
			return got, failures
		}
		failures++
	}
	return got, failures
}

// mirrored is a hub with a mirror that is asked first, and a blob that both have.
func mirrored(w *world, blob ocitest.Content, change ...func(*Config)) (mirror *ocitest.Hub, c *Client) {
	mirror = w.another(open.Habits)
	for _, h := range []*ocitest.Hub{w.hub, mirror} {
		h.Push("library/alpine", "latest", ocitest.RandomImage(1, 100))
		h.PushBlob("library/alpine", blob)
	}
	return mirror, w.connect(append([]func(*Config){mirroredAt(mirror), first}, change...)...)
}

func rate(bytesPerSecond int64) func(*ocitest.Habits) {
	return func(h *ocitest.Habits) { h.Rate = bytesPerSecond }
}

// A body that comes bit by bit is left for an address that may be faster, and what is
// asked for next goes there, too, for a while.
func TestASlowAddressIsLeft(t *testing.T) {
	blob := ocitest.Blob(7, 4<<20)
	simulate(t, open, func(w *world) {
		t, hub := w.t, w.hub
		var shown recorder
		mirror, c := mirrored(w, blob, shown.attach)
		mirror.Set(rate(2000))
		began := time.Now()
		got, failures := pull(t.Context(), openBlob(t, c, alpine, blob.Digest))
		if took := time.Since(began); !bytes.Equal(got, blob.Bytes()) || failures != 1 || took > LeastOver+2*time.Second {
			t.Errorf("%d bytes after %v and %d failures", len(got), took, failures)
		}
		mirror.Set(rate(0))
		mirror.Reset()
		mustResolve(t, c)
		saw(t, mirror)
		if b := stateOf(t, c, mirror.URL()); b.Why != HostSlow || time.Until(b.Behind) > slowFor || !slices.Contains(shown.troubles(), HostSlow) {
			t.Errorf("shown are %+v, and warnings of %q", b, shown.troubles())
		}
		if b := stateOf(t, c, hub.URL()); b.Why != "" || !b.Behind.IsZero() {
			t.Errorf("of the other, %+v", b)
		}
		time.Sleep(slowFor)
		mustResolve(t, c)
		saw(t, mirror, headLatest)
	})
}

// Where everything is slow, what is asked does not change again and again; where one
// address is slow and the other slower, the one stays.
func TestWhereAllIsSlow(t *testing.T) {
	const slow = 20_000
	blob := ocitest.Blob(7, 4<<20)
	for name, row := range map[string]struct {
		mirror, hub int64
		changes     int
	}{
		"both": {slow, slow, 1}, "the second more so": {slow, slow / 4, 2}, "the first more so": {slow / 4, slow, 1},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, open, func(w *world) {
				t, hub := w.t, w.hub
				mirror, c := mirrored(w, blob)
				mirror.Set(rate(row.mirror))
				hub.Set(rate(row.hub))
				began := time.Now()
				got, failures := pull(t.Context(), openBlob(t, c, alpine, blob.Digest))
				took, best := time.Since(began), time.Duration(len(got)/slow)*time.Second
				if !bytes.Equal(got, blob.Bytes()) || failures != row.changes || took > best+2*LeastOver {
					t.Errorf("%d bytes after %v and %d failures, want %v and %d", len(got), took, failures, best, row.changes)
				}
			})
		})
	}
}

// A body that stalls is left for another address after a quarter of the wait for its next
// byte, and what is asked for after that does not wait for it again.
func TestAStalledBodyIsLeftSoon(t *testing.T) {
	blob, next := ocitest.Blob(7, 4<<20), ocitest.Blob(8, 4<<20)
	for _, stall := range []time.Duration{0, time.Second} {
		t.Run(stall.String(), func(t *testing.T) {
			simulate(t, open, func(w *world) {
				t, hub := w.t, w.hub
				var shown recorder
				mirror, c := mirrored(w, blob, shown.attach, func(cfg *Config) { cfg.Timeouts.Stall = stall })
				hub.PushBlob("library/alpine", next)
				mirror.PushBlob("library/alpine", next)
				mirror.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.CDN}, Effect: ocitest.Stall(1 << 20)})
				began := time.Now()
				if got, failures := pull(t.Context(), openBlob(t, c, alpine, blob.Digest)); !bytes.Equal(got, blob.Bytes()) || failures != 1 {
					t.Errorf("%d bytes, %d failures", len(got), failures)
				}
				if took, want := time.Since(began), c.cfg.Timeouts.Stall/4; took != want || want > 5*time.Second {
					t.Errorf("it took %v, want %v", took, want)
				}
				if b := stateOf(t, c, mirror.URL()); b.Why != HostSlow || !slices.Equal(shown.troubles(), []Trouble{HostSlow}) {
					t.Errorf("shown are %+v, and warnings of %q", b, shown.troubles())
				}
				mirror.Reset()
				time.Sleep(slowFor - c.cfg.Timeouts.Stall)
				began = time.Now()
				pull(t.Context(), openBlob(t, c, alpine, next.Digest))
				if took := time.Since(began); took > 0 {
					t.Errorf("the next blob took %v", took)
				}
				saw(t, mirror)
			})
		})
	}
}

// Where nobody else may go on, a body has all of the wait for its next byte, and where
// all stall there is one change.
func TestWhereAStalledBodyIsWaitedFor(t *testing.T) {
	blob := ocitest.Blob(7, 100_000)
	stall := func(hub *ocitest.Hub) {
		hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.CDN}, Effect: ocitest.Stall(30_000), Times: 1})
	}
	for name, row := range map[string]struct {
		other    func(w *world, mirror *ocitest.Hub, c *Client)
		failures int
		waits    int // quarters of the wait for the next byte
	}{
		"the other does not have it": {func(_ *world, mirror *ocitest.Hub, _ *Client) {
			mirror.Inject(&ocitest.Fault{Match: ocitest.Match{Kind: ocitest.BlobKind}, Effect: ocitest.Answer(404)})
		}, 1, 4},
		"the other says nothing": {func(w *world, mirror *ocitest.Hub, c *Client) {
			mirror.Inject(&ocitest.Fault{Effect: ocitest.Hang()})
			mustResolve(w.t, c)
		}, 1, 4},
		"the other stalls, too": {func(_ *world, mirror *ocitest.Hub, _ *Client) { stall(mirror) }, 2, 1 + 4},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, open, func(w *world) {
				mirror, c := mirrored(w, blob)
				row.other(w, mirror, c)
				stall(w.hub)
				began := time.Now()
				got, failures := pull(w.t.Context(), openBlob(w.t, c, alpine, blob.Digest))
				if !bytes.Equal(got, blob.Bytes()) || failures != row.failures {
					w.t.Errorf("%d bytes, %d failures", len(got), failures)
				}
				if took, want := time.Since(began), time.Duration(row.waits)*c.cfg.Timeouts.Stall/4; took != want {
					w.t.Errorf("it took %v, want %v", took, want)
				}
			})
		})
	}
}

// Who does not read what is there is not slow, and neither is an address by the time
// that nobody else can be asked.
func TestWhatIsNoSlowness(t *testing.T) {
	blob := ocitest.Blob(7, 3<<20)
	onlySlow := map[string]func(*world) (*Client, *ocitest.Hub){
		"the only address": func(w *world) (*Client, *ocitest.Hub) {
			w.hub.PushBlob("library/alpine", blob)
			return w.connect(), w.hub
		},
		"the other does not have it": func(w *world) (*Client, *ocitest.Hub) {
			w.hub.PushBlob("library/alpine", blob)
			return w.connect(mirroredAt(w.another(open.Habits)), first), w.hub
		},
		"the other is down": func(w *world) (*Client, *ocitest.Hub) {
			mirror, c := mirrored(w, blob)
			mirror.Inject(&ocitest.Fault{Effect: ocitest.Hang()})
			mustResolve(w.t, c)
			time.Sleep(10 * time.Second)
			return c, w.hub
		},
	}
	for name, world1 := range onlySlow {
		t.Run(name, func(t *testing.T) {
			simulate(t, open, func(w *world) {
				c, hub := world1(w)
				hub.Set(rate(20_000))
				if got, failures := pull(w.t.Context(), openBlob(w.t, c, alpine, blob.Digest)); !bytes.Equal(got, blob.Bytes()) || failures > 0 {
					w.t.Errorf("%d bytes, %d failures", len(got), failures)
				}
			})
		})
	}
	t.Run("a slow reader", func(t *testing.T) {
		simulate(t, open, func(w *world) {
			mirror, c := mirrored(w, blob)
			r, err := openBlob(w.t, c, alpine, blob.Digest).Open(w.t.Context(), 0, -1)
			if err != nil {
				w.t.Fatal(err)
			}
			defer r.Close()
			if from := "http://" + r.Outcome().From; from != mirror.URL() {
				w.t.Errorf("it comes from %s", from)
			}
			buf := make([]byte, 10_000)
			for ; err == nil; time.Sleep(5 * time.Second) {
				_, err = r.Read(buf)
			}
			if err != io.EOF {
				w.t.Error(err)
			}
		})
	})
}

// An address that gave wrong bytes is asked last for a while, whatever else it
// answers, and operators see which it is.
func TestWhoGaveWrongBytesIsAskedLast(t *testing.T) {
	image, blob := ocitest.RandomImage(1, 100), ocitest.Blob(7, 1000)
	for name, lie := range map[string]func(*world, *Client, *ocitest.Hub){
		"a blob": func(w *world, c *Client, mirror *ocitest.Hub) {
			mirror.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.CDN}, Effect: ocitest.Corrupt(10), Times: 1})
			b := openBlob(w.t, c, alpine, blob.Digest)
			if got, failures := pull(w.t.Context(), b); failures > 0 || bytes.Equal(got, blob.Bytes()) {
				w.t.Errorf("%d bytes, %d failures", len(got), failures)
			}
			b.(oci.Doubtful).Wrong()
		},
		"a manifest": func(w *world, c *Client, mirror *ocitest.Hub) {
			mirror.Inject(&ocitest.Fault{Match: ocitest.Match{Kind: ocitest.Manifest, Method: "GET"}, Effect: ocitest.Corrupt(10), Times: 1})
			if _, _, err := c.Manifest(w.t.Context(), alpine, image.Digest, oci.Ask{}); err != nil {
				w.t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, open, func(w *world) {
				t, hub := w.t, w.hub
				var shown recorder
				mirror, c := mirrored(w, blob, shown.attach)
				mustResolve(t, c)
				lie(w, c, mirror)
				if b := stateOf(t, c, mirror.URL()); b.Why != WrongBytes || time.Until(b.Behind) != wrongFor {
					t.Errorf("shown is %+v", b)
				}
				if !slices.Equal(shown.troubles(), []Trouble{WrongBytes}) || shown.warnings[0].Host != stateOf(t, c, mirror.URL()).Host {
					t.Errorf("warnings: %+v", shown.warnings)
				}
				mirror.Reset()
				time.Sleep(wrongFor - time.Minute)
				if err := everything(t.Context(), c, image); err != nil {
					t.Error(err)
				}
				saw(t, mirror)
				fault := hub.Inject(&ocitest.Fault{Effect: ocitest.Answer(500)})
				mustResolve(t, c)
				saw(t, mirror, headLatest) // its answer changes nothing
				fault.Remove()
				time.Sleep(30 * time.Second)
				mustResolve(t, c)
				saw(t, mirror)
				time.Sleep(time.Minute)
				mustResolve(t, c)
				saw(t, mirror, headLatest)
			})
		})
	}
}

// Of bytes that came from several addresses nobody knows who had the wrong ones: each of
// the next handles gives those of one address, until they are right, or one has lied.
func TestMixedBytesAreFetchedFromOneAddress(t *testing.T) {
	right, wrong := ocitest.Blob(7, 100_000), ocitest.Blob(8, 100_000)
	wrong.Digest = right.Digest
	bodies := ocitest.Match{Role: ocitest.CDN}
	for name, row := range map[string]struct {
		first, second ocitest.Content // that the addresses have; the first cuts each body
		fails         bool            // the first, when it is to go on by itself
		want          []string        // where the bytes of each handle come from
	}{
		"the second lies":                      {right, wrong, false, []string{"both, wrong", "first, right"}},
		"the first lies":                       {wrong, right, false, []string{"both, wrong", "first, wrong", "second, right"}},
		"both lie":                             {wrong, wrong, false, []string{"both, wrong", "first, wrong", "second, wrong", "first, wrong"}},
		"the second lies, and the first fails": {right, wrong, true, []string{"both, wrong", "first, part", "second, wrong"}},
		"the first lies, and fails":            {wrong, right, true, []string{"both, wrong", "first, part", "second, right"}},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, open, func(w *world) {
				t, second := w.t, w.hub
				first, c := mirrored(w, row.first)
				second.PushBlob("library/alpine", row.second)
				first.Inject(&ocitest.Fault{Match: bodies, Effect: ocitest.Cut(30_000)})
				var lied []string
				for n, want := range row.want {
					if n == 1 && row.fails {
						first.ClearFaults()
						first.Inject(&ocitest.Fault{Match: bodies, Effect: ocitest.Answer(404), Skip: 1})
						first.Inject(&ocitest.Fault{Match: bodies, Effect: ocitest.Cut(30_000)})
					}
					first.Reset()
					second.Reset()
					b := openBlob(t, c, alpine, right.Digest)
					body, _ := pull(t.Context(), b)
					got := whose(first.Count(bodies) > 0, second.Count(bodies) > 0) + ", " + judge(body, right)
					if got != want {
						t.Errorf("handle %d: %s, want %s", n, got, want)
					}
					if !strings.HasSuffix(got, "wrong") {
						continue
					}
					if b.(oci.Doubtful).Wrong(); !strings.HasPrefix(got, "both") {
						lied = append(lied, got)
					}
					for name, h := range map[string]*ocitest.Hub{"first": first, "second": second} {
						if b := stateOf(t, c, h.URL()); (b.Why == WrongBytes) != slices.Contains(lied, name+", wrong") {
							t.Errorf("after handle %d, %s: %+v", n, name, b)
						}
					}
				}
			})
		})
	}
}

func whose(first, second bool) string {
	switch {
	case first && second:
		return "both"
	case first:
		return "first"
	}
	return "second"
}

func judge(got []byte, want ocitest.Content) string {
	switch {
	case bytes.Equal(got, want.Bytes()):
		return "right"
	case len(got) < len(want.Bytes()):
		return "part"
	}
	return "wrong"
}

// After a try at one address the next is there, too, whether it goes on with what was
// kept or begins anew, unless that address has failed, or is slow.
func TestATryAtOneAddressGoesOnThere(t *testing.T) {
	blob := ocitest.Blob(7, 100_000)
	bodies := ocitest.Match{Role: ocitest.CDN}
	simulate(t, open, func(w *world) {
		t, second := w.t, w.hub
		first, c := mirrored(w, blob)
		cut := first.Inject(&ocitest.Fault{Match: bodies, Effect: ocitest.Cut(30_000)})
		mixed := openBlob(t, c, alpine, blob.Digest)
		pull(t.Context(), mixed)
		mixed.(oci.Doubtful).Wrong()
		cut.Remove()
		for n, step := range []struct {
			offset, length int64
			before         func()
			from           *ocitest.Hub
		}{
			{0, 20_000, nil, first},
			{20_000, 20_000, nil, first},
			{0, 20_000, nil, first},
			{20_000, 20_000, func() { first.Inject(&ocitest.Fault{Match: bodies, Effect: ocitest.Answer(404)}) }, second},
			{0, 20_000, first.ClearFaults, second},
			{20_000, 20_000, func() { time.Sleep(ailingAfterFailure); c.primary.isSlow(0, true) }, first},
		} {
			if step.before != nil {
				step.before()
			}
			r, err := openBlob(t, c, alpine, blob.Digest).Open(t.Context(), step.offset, step.length)
			if err != nil {
				t.Fatal(err)
			}
			if from := "http://" + r.Outcome().From; from != step.from.URL() {
				t.Errorf("step %d: it comes from %s, want %s", n, from, step.from.URL())
			}
			if _, err := io.Copy(io.Discard, r); err != nil {
				t.Error(err)
			}
			r.Close()
		}
		time.Sleep(mixedFor + time.Second)
		first.ClearFaults()
		first.Inject(&ocitest.Fault{Match: bodies, Effect: ocitest.Cut(30_000)})
		second.Reset()
		if pull(t.Context(), openBlob(t, c, alpine, blob.Digest)); second.Count(bodies) == 0 {
			t.Error("after an hour what is cut does not go on elsewhere")
		}
	})
	var m mixtures
	for i := range 3 * maxMixed {
		m.add(ocitest.Blob(uint64(i), 8).Digest)
	}
	if n := len(m.byDigest); n > maxMixed {
		t.Errorf("%d blobs are remembered, want at most %d", n, maxMixed)
	}
}

// Of a repository that a mirror does not have, and another address has, the others are
// asked first for a minute; not of its other repositories.
func TestAMirrorThatLacksARepositoryIsAskedAfterTheOthers(t *testing.T) {
	other := oci.Repository{Host: alpine.Host, Path: "library/other"}
	image := ocitest.RandomImage(2, 100)
	for name, habits := range map[string]ocitest.Habits{"404": open.Habits, "401": {}} {
		t.Run(name, func(t *testing.T) {
			simulate(t, open, func(w *world) {
				t, hub := w.t, w.hub
				hub.Push(other.Path, "latest", image)
				hub.Push("library/alpine", "latest", image)
				mirror := w.another(habits)
				mirror.Push("library/alpine", "latest", image)
				c := w.connect(mirroredAt(mirror), first)
				ask := func(what oci.Ask) int {
					t.Helper()
					mirror.Reset()
					if _, _, err := c.Resolve(t.Context(), other, "latest", what); err != nil {
						t.Error(err)
					}
					if _, _, err := c.Manifest(t.Context(), other, image.Digest, oci.Ask{}); err != nil {
						t.Error(err)
					}
					for _, layer := range image.Blobs {
						if got, failures := pull(t.Context(), openBlob(t, c, other, layer.Digest)); failures > 0 || !bytes.Equal(got, layer.Bytes()) {
							t.Errorf("%d bytes, %d failures", len(got), failures)
						}
					}
					return mirror.Count(ocitest.Match{Role: ocitest.Registry, Repo: other.Path})
				}
				once := ask(oci.Ask{})
				if once == 0 || once > 2 { // a challenge, and what came of it
					t.Errorf("the mirror was asked %d times", once)
				}
				if n := ask(oci.Ask{}); n != 0 {
					t.Errorf("the mirror was asked %d times again", n)
				}
				mustResolve(t, c)
				if n := mirror.Count(ocitest.Match{Repo: "library/alpine", Role: ocitest.Registry}); n == 0 {
					t.Error("the mirror was not asked for what it has")
				}
				if n := ask(oci.Ask{Refresh: true}); n == 0 {
					t.Error("the mirror was not asked though all was to be asked anew")
				}
				c.Forget(t.Context(), other)
				if n := ask(oci.Ask{}); n == 0 {
					t.Error("the mirror was not asked though all was forgotten")
				}
				time.Sleep(lacksFor)
				if n := ask(oci.Ask{}); n == 0 {
					t.Error("the mirror was not asked after a minute")
				}
			})
		})
	}
	var s site
	for i := range 3 * maxLacking {
		s.lacked(oci.Repository{Path: string(rune('a' + i))})
	}
	if n := len(s.standing.lacks); n > maxLacking {
		t.Errorf("%d repositories are remembered, want at most %d", n, maxLacking)
	}
}

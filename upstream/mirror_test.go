package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"entrepot/internal/ocitest"
	"entrepot/oci"
)

// another starts a second hub on the world's network.
func (w *world) another(habits ocitest.Habits) *ocitest.Hub {
	w.t.Helper()
	return ocitest.NewHub(w.t, ocitest.Config{Habits: habits, Network: w.net})
}

func mirroredAt(hubs ...*ocitest.Hub) func(*Config) {
	return func(cfg *Config) {
		for _, hub := range hubs {
			cfg.Mirrors = append(cfg.Mirrors, Mirror{URL: hub.URL()})
		}
	}
}

func first(cfg *Config) {
	for i := range cfg.Mirrors {
		cfg.Mirrors[i].First = true
	}
}

// everything asks one question of each kind, and returns the first error.
func everything(ctx context.Context, c *Client, image ocitest.Image) error {
	_, _, errR := c.Resolve(ctx, alpine, "latest", oci.Ask{})
	_, _, errM := c.Manifest(ctx, alpine, image.Digest, oci.Ask{})
	_, _, errT := c.Tags(ctx, alpine, oci.Page{N: -1}, oci.Ask{})
	b, err := c.Blob(ctx, alpine, image.Blobs[0].Digest, oci.Ask{})
	if err != nil {
		return err
	}
	_, _, errS := b.Stat(ctx)
	got, errB := read(ctx, b, 0, -1)
	if errB == nil && !bytes.Equal(got, image.Blobs[0].Bytes()) {
		errB = errors.New("other bytes")
	}
	return errors.Join(errR, errM, errT, errS, errB)
}

func TestAMirrorServesWhileThePrimaryCannot(t *testing.T) {
	image := ocitest.RandomImage(1, 100)
	for name, effect := range map[string]ocitest.Effect{
		"black hole": ocitest.Hang(), "reset": ocitest.Reset(), "500": ocitest.Answer(500), "503": ocitest.RetryLater(503, "30"),
		"429": ocitest.QuotaSpent(), "abuse": ocitest.AbuseLimit(), "nonsense": ocitest.HTML(200),
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, open, func(w *world) {
				t, hub := w.t, w.hub
				mirror := w.another(ocitest.Habits{Auth: ocitest.NoAuth})
				mirror.Push("library/alpine", "latest", image)
				c := w.connect(mirroredAt(mirror))
				if err := everything(t.Context(), c, image); err != nil {
					t.Fatal(err)
				}
				saw(t, mirror) // while the primary is well it has all questions
				fault := hub.Inject(&ocitest.Fault{Effect: effect})
				for range 3 {
					if err := everything(t.Context(), c, image); err != nil {
						t.Errorf("with the primary in trouble: %v", err)
					}
				}
				_, out, err := c.Resolve(t.Context(), alpine, "latest", oci.Ask{})
				if err != nil || !strings.HasPrefix(out.Why, "from mirror localhost:") {
					t.Errorf("%+v, %v; want that it tells of the mirror", out, err)
				}
				took, err := timed(func() error { return everything(t.Context(), c, image) })
				if err != nil || took > time.Second {
					t.Errorf("once the trouble is known it takes %v, %v", took, err)
				}
				// What the mirror does not have is not missing for that.
				_, _, err = c.Resolve(t.Context(), alpine, "missing", oci.Ask{})
				if err == nil || oci.IsUnknown(err) {
					t.Errorf("what the mirror lacks: %v, want the primary's trouble", err)
				}
				fault.Remove()
				time.Sleep(10 * time.Minute)
				mirror.Reset()
				if err := everything(t.Context(), c, image); err != nil {
					t.Error(err)
				}
				saw(t, mirror)
			})
		})
	}
}

// Whose turn it is after trouble: a stall keeps questions from a site for 5 minutes, a
// failure for 5 s, which ends with the first answer that it gives; a limit keeps away
// what it limits alone.
func TestWhoFailedIsAskedAfterTheOthers(t *testing.T) {
	image := ocitest.RandomImage(1, 100)
	manifests := ocitest.Match{Role: ocitest.Registry, Kind: ocitest.Manifest}
	for name, trouble := range map[string]func(*world, *Client, *ocitest.Hub) time.Duration{
		"a stall": func(w *world, c *Client, _ *ocitest.Hub) time.Duration {
			stall := w.hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.CDN}, Effect: ocitest.Stall(10)})
			_, err := read(w.t.Context(), openBlob(w.t, c, alpine, image.Blobs[0].Digest), 0, -1)
			wantCode(w.t, err, oci.Timeout)
			stall.Remove()
			return slowFor
		},
		"a failure": func(w *world, c *Client, _ *ocitest.Hub) time.Duration {
			w.hub.Inject(&ocitest.Fault{Match: manifests, Effect: ocitest.Answer(500), Times: 1})
			mustResolve(w.t, c)
			return ailingAfterFailure
		},
		"a failure, and an answer": func(w *world, c *Client, mirror *ocitest.Hub) time.Duration {
			w.hub.Inject(&ocitest.Fault{Match: manifests, Effect: ocitest.Answer(500), Times: 1})
			mustResolve(w.t, c)
			mirror.Inject(&ocitest.Fault{Match: manifests, Effect: ocitest.Answer(404), Times: 1})
			mustResolve(w.t, c)
			return 0
		},
		"a spent quota": func(w *world, c *Client, _ *ocitest.Hub) time.Duration {
			w.hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.Registry, Kind: ocitest.Manifest, Method: "GET"}, Effect: ocitest.QuotaSpent(), Times: 1})
			if _, _, err := c.Manifest(w.t.Context(), alpine, image.Digest, oci.Ask{}); err != nil {
				w.t.Error(err)
			}
			return 0
		},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, open, func(w *world) {
				t, hub := w.t, w.hub
				mirror := w.another(ocitest.Habits{Auth: ocitest.NoAuth})
				for _, h := range []*ocitest.Hub{hub, mirror} {
					h.Push("library/alpine", "latest", image)
				}
				c := w.connect(mirroredAt(mirror))
				mustResolve(t, c)
				after := trouble(w, c, mirror)
				mirror.Reset()
				if after > 0 {
					time.Sleep(after - time.Second)
					mustResolve(t, c)
					saw(t, mirror, headLatest)
					time.Sleep(time.Second)
				}
				mustResolve(t, c)
				saw(t, mirror)
			})
		})
	}
}

// That there is none is only the primary's to say.
func TestOnlyThePrimarysNoIsFinal(t *testing.T) {
	simulate(t, open, func(w *world) {
		t, hub := w.t, w.hub
		image := ocitest.RandomImage(1, 100)
		empty, full := w.another(ocitest.Habits{Auth: ocitest.NoAuth}), w.another(ocitest.Habits{Auth: ocitest.NoAuth})
		full.Push("library/alpine", "latest", image)
		full.Push("library/alpine", "extra", image)

		c := w.connect(mirroredAt(full))
		_, _, err := c.Resolve(t.Context(), alpine, "extra", oci.Ask{})
		wantCode(t, err, oci.ManifestUnknown)
		saw(t, full)

		c = w.connect(mirroredAt(empty, full), first)
		if err := everything(t.Context(), c, image); err != nil {
			t.Error(err)
		}
		if n := len(hub.Requests()); n != 1 {
			t.Errorf("the primary saw %d requests, want the one before", n)
		}
		_, _, err = c.Resolve(t.Context(), alpine, "missing", oci.Ask{})
		wantCode(t, err, oci.ManifestUnknown)
		_, err = read(t.Context(), openBlob(t, c, alpine, oci.Sum(nil)), 0, -1)
		wantCode(t, err, oci.BlobUnknown)
		_, _, err = openBlob(t, c, alpine, oci.Sum(nil)).Stat(t.Context())
		wantCode(t, err, oci.BlobUnknown)
		_, _, err = c.Referrers(t.Context(), alpine, image.Digest, "", oci.Ask{})
		wantCode(t, err, oci.Unsupported)
		if n := len(empty.Requests()) * len(full.Requests()); n == 0 {
			t.Error("the mirrors were not asked first")
		}
		hub.Set(func(h *ocitest.Habits) { h.Referrers = true })
		if _, _, err = c.Referrers(t.Context(), alpine, image.Digest, "", oci.Ask{}); err != nil {
			t.Errorf("referrers, which the primary alone has: %v", err)
		}
	})
}

// Where all addresses want us to come again, we are to come when the first of them may
// have an answer; what else the primary says counts alone.
func TestWhoIsToldToComeAgainIsToldTheSoonest(t *testing.T) {
	limited := func(after string) *ocitest.Effect {
		e := ocitest.RetryLater(http.StatusTooManyRequests, after)
		return &e
	}
	busy, missing, broken := ocitest.RetryLater(503, "10"), ocitest.Answer(404), ocitest.Answer(500)
	for name, row := range map[string]struct {
		primary, mirror *ocitest.Effect
		code            oci.Code
		after           time.Duration
	}{
		"the mirror sooner":       {limited("600"), limited("15"), oci.TooManyRequests, 15 * time.Second},
		"the primary sooner":      {limited("15"), limited("600"), oci.TooManyRequests, 15 * time.Second},
		"the mirror is busy":      {limited("600"), &busy, oci.TooManyRequests, 600 * time.Second},
		"the mirror has no time":  {limited("600"), &broken, oci.TooManyRequests, 600 * time.Second},
		"the mirror lacks it":     {limited("600"), &missing, oci.TooManyRequests, 600 * time.Second},
		"the primary lacks it":    {&missing, limited("15"), oci.ManifestUnknown, 0},
		"the mirror is down":      {limited("600"), nil, oci.TooManyRequests, 600 * time.Second},
		"the primary has no time": {&broken, limited("15"), oci.Unavailable, 0},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, open, func(w *world) {
				t, mirror := w.t, w.another(ocitest.Habits{Auth: ocitest.NoAuth})
				c := w.connect(mirroredAt(mirror))
				w.hub.Inject(&ocitest.Fault{Effect: *row.primary})
				if row.mirror == nil {
					mirror.Close()
				} else {
					mirror.Inject(&ocitest.Fault{Effect: *row.mirror})
				}
				d := oci.Sum(nil)
				for what, ask := range map[string]func() error{
					"a manifest": func() error {
						_, _, err := c.Manifest(t.Context(), alpine, d, oci.Ask{})
						return err
					},
					"a blob": func() error {
						_, _, err := openBlob(t, c, alpine, d).Stat(t.Context())
						return err
					},
				} {
					if row.mirror == nil {
						for range tripAfter {
							_ = ask()
						}
					}
					err := ask()
					code := oci.CodeOf(err)
					if code == oci.BlobUnknown {
						code = oci.ManifestUnknown
					}
					if code != row.code || oci.RetryAfter(err) != row.after {
						t.Errorf("%s: %v, come again in %v", what, err, oci.RetryAfter(err))
					}
				}
			})
		})
	}
}

// A body that breaks is the caller's to go on with, and goes on elsewhere.
func TestAMirrorInTheMiddleOfABlob(t *testing.T) {
	const size = 100_000
	blob := ocitest.Blob(7, size)
	for name, effect := range map[string]ocitest.Effect{"cut": ocitest.Cut(30_000), "stall": ocitest.Stall(30_000), "short": ocitest.Short(70_000)} {
		t.Run(name, func(t *testing.T) {
			simulate(t, open, func(w *world) {
				t, hub := w.t, w.hub
				mirror := w.another(ocitest.Habits{Auth: ocitest.NoAuth})
				hub.PushBlob("library/alpine", blob)
				mirror.PushBlob("library/alpine", blob)
				c := w.connect(mirroredAt(mirror))
				b := openBlob(t, c, alpine, blob.Digest)
				if d, _, err := b.Stat(t.Context()); err != nil || d.Size != size {
					t.Fatalf("%+v, %v", d, err)
				}
				hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.CDN}, Effect: effect})
				var got []byte
				for tries := 0; len(got) < size; tries++ {
					if tries == 2 {
						t.Fatalf("%d of %d bytes after two tries", len(got), size)
					}
					r, err := b.Open(t.Context(), int64(len(got)), -1)
					if err != nil {
						if name == "short" { // which contradicts the size before a byte came
							continue
						}
						t.Fatal(err)
					}
					part, _ := io.ReadAll(r)
					r.Close()
					got = append(got, part...)
				}
				if !bytes.Equal(got, blob.Bytes()) {
					t.Error("other bytes")
				}
				if n := mirror.Count(ocitest.Match{Role: ocitest.CDN}); n != 1 {
					t.Errorf("the mirror was asked %d times, want once", n)
				}
			})
		})
	}
}

// What the primary has, and its CDN has lost, is in trouble and not missing: a mirror
// is asked, and while none has it that is what is said.
func TestWhatACDNHasLostComesFromAMirror(t *testing.T) {
	for _, status := range []int{403, 404, 410} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			simulate(t, open, func(w *world) {
				t, hub := w.t, w.hub
				blob := ocitest.Blob(7, 1000)
				mirror := w.another(ocitest.Habits{Auth: ocitest.NoAuth})
				hub.PushBlob("library/alpine", blob)
				hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.CDN}, Effect: ocitest.Answer(status)})
				c := w.connect(mirroredAt(mirror))
				_, err := read(t.Context(), openBlob(t, c, alpine, blob.Digest), 0, -1)
				wantCode(t, err, oci.BadUpstream)
				mirror.PushBlob("library/alpine", blob)
				if _, _, err := openBlob(t, c, alpine, blob.Digest).Stat(t.Context()); err != nil {
					t.Error(err)
				}
				if got, err := read(t.Context(), openBlob(t, c, alpine, blob.Digest), 0, -1); err != nil || !bytes.Equal(got, blob.Bytes()) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
			})
		})
	}
}

// A blob that is asked for again, or a part of it, comes from where it came from
// before: elsewhere only if that was wrong.
func TestOnlyWhatWasWrongIsFetchedElsewhere(t *testing.T) {
	blob := ocitest.Blob(7, 100_000)
	bodies := ocitest.Match{Role: ocitest.CDN}
	for name, wrong := range map[string]bool{"right": false, "wrong": true} {
		t.Run(name, func(t *testing.T) {
			simulate(t, open, func(w *world) {
				t := w.t
				mirror, c := mirrored(w, blob)
				asked, left := mirror, w.hub
				if wrong {
					asked, left = w.hub, mirror
					mirror.Inject(&ocitest.Fault{Match: bodies, Effect: ocitest.Corrupt(10)})
				}
				b := openBlob(t, c, alpine, blob.Digest)
				got, err := read(t.Context(), b, 0, -1)
				if err != nil || bytes.Equal(got, blob.Bytes()) == wrong {
					t.Errorf("the first copy: %d bytes, %v", len(got), err)
				}
				if wrong {
					b.(oci.Doubtful).Wrong()
				}
				mirror.Reset()
				for n, part := range []struct{ offset, length int64 }{{0, 100_000}, {0, 1000}, {40_000, 1000}, {99_000, 1000}} {
					got, err := read(t.Context(), openBlob(t, c, alpine, blob.Digest), part.offset, part.length)
					if err != nil || !bytes.Equal(got, blob.Bytes()[part.offset:part.offset+part.length]) {
						t.Errorf("%+v: %d bytes, %v", part, len(got), err)
					}
					if asked := asked.Count(bodies); asked != n+1 {
						t.Errorf("%d reads were %d requests to who is to be asked", n+1, asked)
					}
				}
				saw(t, left)
			})
		})
	}
}

// Two places that differ in a blob's size are not to be mixed.
func TestSizesMustAgree(t *testing.T) {
	simulate(t, open, func(w *world) {
		t, hub := w.t, w.hub
		right := ocitest.Blob(7, 1000)
		wrong := ocitest.Blob(8, 2000)
		wrong.Digest = right.Digest
		mirror := w.another(ocitest.Habits{Auth: ocitest.NoAuth})
		hub.PushBlob("library/alpine", right)
		mirror.PushBlob("library/alpine", wrong)
		c := w.connect(mirroredAt(mirror))
		b := openBlob(t, c, alpine, right.Digest)
		if _, err := read(t.Context(), b, 0, 10); err != nil {
			t.Fatal(err)
		}
		hub.Inject(&ocitest.Fault{Effect: ocitest.Answer(500)})
		_, err := read(t.Context(), b, 10, 10)
		wantCode(t, err, oci.Unavailable) // the primary's: the mirror's is no use
		if got := b.Descriptor().Size; got != 1000 {
			t.Errorf("size %d", got)
		}
		hub.ClearFaults()
		c = w.connect(mirroredAt(mirror), first)
		b = openBlob(t, c, alpine, right.Digest)
		if _, err := read(t.Context(), b, 0, 10); err != nil {
			t.Fatal(err)
		}
		mirror.Inject(&ocitest.Fault{Effect: ocitest.Answer(500)})
		_, err = read(t.Context(), b, 10, 10)
		wantCode(t, err, oci.BadUpstream)
		if _, err := read(t.Context(), b, 10, 10); err != nil || b.Descriptor().Size != 1000 {
			t.Errorf("what the primary says does not count: %v, size %d", err, b.Descriptor().Size)
		}
	})
}

// Two addresses at one host are counted as one there: of an account's quota it is told
// once, as it was seen last.
func TestAddressesOfOneHostHaveOneQuota(t *testing.T) {
	simulate(t, ocitest.Config{}, func(w *world) {
		t := w.t
		metered := &meteredRegistry{}
		w.net = meter(t, metered)
		c := connectAt(t, metered.url, time.Now, func(cfg *Config) {
			cfg.Dial = w.net.DialContext
			cfg.Mirrors = []Mirror{{URL: metered.url + "/mirror"}}
		})
		for i, s := range c.sites {
			for range i + 1 {
				if _, err := s.getManifest(t.Context(), &question{repo: alpine}, oci.Request{Kind: oci.ManifestKind, Name: alpine.Path, Tag: "v1"}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
			}
		}
		if q := c.Quotas(); len(q) != 1 || q[0].Left != pullLimit-3 {
			t.Errorf("quotas: %+v", q)
		}
	})
}

// Each address has its own login, or none.
func TestMirrorsHaveTheirOwnLogins(t *testing.T) {
	for _, auth := range []ocitest.Auth{ocitest.TokenAuth, ocitest.BasicAuth} {
		t.Run("auth "+string(auth), func(t *testing.T) {
			simulate(t, ocitest.Config{Habits: ocitest.Habits{Auth: auth}}, func(w *world) {
				t, hub := w.t, w.hub
				image := ocitest.RandomImage(1, 100)
				own, public := w.another(ocitest.Habits{Auth: auth}), w.another(ocitest.Habits{Auth: auth})
				for _, h := range []*ocitest.Hub{hub, own, public} {
					h.AddUser("me", "secret")
					h.AddUser("other", "mirrors")
					h.Push("library/alpine", "latest", image)
				}
				hub.Private("library/alpine", "me")
				own.Private("library/alpine", "other")
				c := w.connect(func(cfg *Config) {
					cfg.Credentials = Password("me", "secret")
					cfg.Mirrors = []Mirror{
						{URL: public.URL(), First: true},
						{URL: own.URL(), Credentials: Password("other", "mirrors"), First: true},
					}
				})
				down := func(h *ocitest.Hub) func() {
					return h.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.Registry, Kind: ocitest.Manifest}, Effect: ocitest.Answer(404)}).Remove
				}
				mustResolve(t, c)
				undo := down(public)
				mustResolve(t, c)
				down(own)
				mustResolve(t, c)
				undo()
				mustResolve(t, c)
				for name, h := range map[string]*ocitest.Hub{"me": hub, "other": own, "": public} {
					for _, r := range h.Requests() {
						header := r.Header.Get("Authorization")
						if r.Account != "" && r.Account != name || name == "" && strings.HasPrefix(header, "Basic ") {
							t.Errorf("the hub of %q saw %s of %q", name, r, r.Account)
						}
					}
				}
				if !c.HasCredentials() {
					t.Error("HasCredentials says no")
				}
			})
		})
	}
}

// With the primary's quota spent, its mirrors are asked at once.
func TestMirrorsSpareASpentQuota(t *testing.T) {
	simulate(t, ocitest.Config{Habits: ocitest.Habits{PullLimit: 1}}, func(w *world) {
		t, hub := w.t, w.hub
		image := ocitest.RandomImage(1, 100)
		hub.AddUser("me", "secret")
		mirror := w.another(ocitest.Habits{Auth: ocitest.NoAuth})
		mirror.Push("library/alpine", "latest", image)
		c := w.connect(mirroredAt(mirror), func(cfg *Config) { cfg.Credentials = Password("me", "secret") })
		get := func(ask oci.Ask) {
			t.Helper()
			took, err := timed(func() error {
				_, _, err := c.Manifest(t.Context(), alpine, image.Digest, ask)
				return err
			})
			if err != nil || took != 0 {
				t.Errorf("%v after %v", err, took)
			}
		}
		get(oci.Ask{})
		get(oci.Ask{}) // the primary's refusal, then the mirror
		hub.Reset()
		for range 5 {
			get(oci.Ask{})
			get(oci.Ask{Background: true})
		}
		saw(t, hub)
		quotas := c.Quotas()
		if len(quotas) != 1 || quotas[0].Account != "me" || !strings.HasSuffix(hub.URL(), quotas[0].Host) {
			t.Errorf("%+v", quotas)
		}
	})
}

// A HEAD tells for how long what it found is not to be had by who can do without,
// unless a mirror has it, and whether others may.
func TestAHeadTellsWhatTheQuotaWithholds(t *testing.T) {
	for _, row := range []struct {
		name     string
		pulls    int // of 10, of which the last is kept
		ask      oci.Ask
		mirrored bool
		withheld bool
		reserved bool
	}{
		{"enough is left", 8, oci.Ask{Held: true}, false, false, false},
		{"what is left is kept", 9, oci.Ask{Held: true}, false, true, true},
		{"it is spent", 10, oci.Ask{Held: true}, false, true, false},
		{"it was refused", 11, oci.Ask{Held: true}, false, true, false},
		{"to who holds nothing", 11, oci.Ask{}, false, false, false},
		{"a mirror has it", 11, oci.Ask{Held: true}, true, false, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			simulate(t, ocitest.Config{Habits: ocitest.Habits{PullLimit: 10}}, func(w *world) {
				t := w.t
				image := ocitest.RandomImage(1, 100)
				w.hub.Push("library/alpine", "latest", image)
				pulling := w.connect()
				for range row.pulls {
					_, _, _ = pulling.Manifest(t.Context(), alpine, image.Digest, oci.Ask{})
				}
				var mirrors []*ocitest.Hub
				if row.mirrored {
					mirrors = append(mirrors, w.another(ocitest.Habits{Auth: ocitest.NoAuth}))
				}
				c := w.connect(mirroredAt(mirrors...))
				_, out, err := c.Resolve(t.Context(), alpine, "latest", row.ask)
				if err != nil || (out.Withheld > 0) != row.withheld || out.Withheld > time.Hour || out.Reserved != row.reserved {
					t.Errorf("withheld for %v, reserved %v, %v, want %v, %v", out.Withheld, out.Reserved, err, row.withheld, row.reserved)
				}
			})
		})
	}
}

func TestMirrorConfigIsChecked(t *testing.T) {
	for want, cfg := range map[string]Config{
		"upstream a.example: a mirror has no URL":                                                                  {Mirrors: []Mirror{{}}},
		"upstream a.example: the URL is not http(s)://host[:port][/path]":                                          {Mirrors: []Mirror{{URL: "mirror"}}},
		"upstream a.example: the CA holds no certificate in PEM form":                                              {Mirrors: []Mirror{{URL: "https://m.example", CA: fixed([]byte("x"))}}},
		`upstream a.example: "a b" is no host for foreign layers: want host[:port] or *.domain[:port]`:             {ForeignHosts: []string{"a b"}},
		`upstream a.example: "https://h/path" is no host for foreign layers: want host[:port] or *.domain[:port]`:  {ForeignHosts: []string{"https://h/path"}},
		`upstream a.example: "ftp://h" is no host for foreign layers: want host[:port] or *.domain[:port]`:         {ForeignHosts: []string{"ftp://h"}},
		`upstream a.example: "https://me:pw@h" is no host for foreign layers: want host[:port] or *.domain[:port]`: {ForeignHosts: []string{"https://me:pw@h"}},
		`upstream a.example: "*" is no host for foreign layers: want host[:port] or *.domain[:port]`:               {ForeignHosts: []string{"*"}},
		`upstream a.example: "a.*.h" is no host for foreign layers: want host[:port] or *.domain[:port]`:           {ForeignHosts: []string{"a.*.h"}},
	} {
		cfg.Name = "a.example"
		if _, err := New(cfg); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestForeignLayers(t *testing.T) {
	simulate(t, ocitest.Config{}, func(w *world) {
		t, hub := w.t, w.hub
		hub.AddUser("me", "secret")
		layer := ocitest.Blob(9, 5000)
		place := w.another(ocitest.Habits{Auth: ocitest.NoAuth}) // redirects to its CDN
		place.PushBlob("windows/servercore", layer)
		at := func(hub *ocitest.Hub, repo string) string {
			return hub.URL() + "/v2/" + repo + "/blobs/" + layer.Digest.String()
		}
		c := w.connect(func(cfg *Config) {
			cfg.Credentials = Password("me", "secret")
			cfg.ForeignHosts = []string{place.URL(), place.CDNURL(), hub.URL(), "layers.example"}
		})
		mustResolve(t, c)
		hub.Reset()
		foreign := func(urls ...string) (oci.Blob, error) {
			return c.Foreign(t.Context(), alpine, layer.Digest, urls, oci.Ask{})
		}
		b, err := foreign("https://elsewhere.example/x", at(place, "gone/x"), at(place, "windows/servercore"))
		if err != nil {
			t.Fatal(err)
		}
		if d, _, err := b.Stat(t.Context()); err != nil || d.Size != 5000 || d.Digest != layer.Digest {
			t.Errorf("%+v, %v", d, err)
		}
		for _, from := range []int64{0, 1000} {
			if got, err := read(t.Context(), b, from, -1); err != nil || !bytes.Equal(got, layer.Bytes()[from:]) {
				t.Errorf("from %d: %d bytes, %v", from, len(got), err)
			}
		}
		for _, r := range place.Requests() {
			if r.Header.Get("Authorization") != "" {
				t.Errorf("%s brings a credential", r)
			}
		}
		saw(t, hub)

		// A place that is the registry itself is told as little.
		b, err = foreign(at(hub, "library/alpine"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = read(t.Context(), b, 0, -1)
		wantCode(t, err, oci.Denied)
		for _, r := range hub.Requests() {
			if r.Header.Get("Authorization") != "" || r.Role != ocitest.Registry {
				t.Errorf("%s", r)
			}
		}

		// Trouble at one place is not that there is none.
		b, err = foreign(at(place, "windows/servercore"), at(place, "gone/x"))
		if err != nil {
			t.Fatal(err)
		}
		place.Inject(&ocitest.Fault{Match: ocitest.Match{Repo: "windows/servercore"}, Effect: ocitest.Answer(503), Times: 1})
		_, err = read(t.Context(), b, 0, -1)
		wantCode(t, err, oci.Unavailable)
		b, err = foreign(at(place, "gone/x"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = read(t.Context(), b, 0, -1)
		wantCode(t, err, oci.BlobUnknown)
	})
}

// TestForeignLayersAreRedirectedWithinTheList: what is not in it is not asked,
// whoever leads there.
func TestForeignLayersAreRedirectedWithinTheList(t *testing.T) {
	layer := ocitest.Blob(9, 5000)
	for _, row := range []struct {
		name    string
		allowed func(place, cdn string) []string
		refused bool
	}{
		{"each by its name", func(place, cdn string) []string { return []string{place, cdn} }, false},
		{"only the one that the manifest names", func(place, _ string) []string { return []string{place} }, true},
		{"another scheme", func(place, cdn string) []string { return []string{place, strings.Replace(cdn, "http:", "https:", 1)} }, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			simulate(t, ocitest.Config{}, func(w *world) {
				place := w.another(ocitest.Habits{Auth: ocitest.NoAuth}) // redirects to its CDN
				place.PushBlob("windows/servercore", layer)
				c := w.connect(func(cfg *Config) { cfg.ForeignHosts = row.allowed(place.URL(), place.CDNURL()) })
				urls := []string{place.URL() + "/v2/gone/x/blobs/" + layer.Digest.String(), place.URL() + "/v2/windows/servercore/blobs/" + layer.Digest.String()}
				b, err := c.Foreign(w.t.Context(), alpine, layer.Digest, urls, oci.Ask{})
				if err != nil {
					t.Fatal(err)
				}
				got, err := read(w.t.Context(), b, 0, -1)
				_, _, statErr := b.Stat(w.t.Context())
				if !row.refused {
					if err != nil || statErr != nil || !bytes.Equal(got, layer.Bytes()) {
						t.Errorf("%d bytes, %v, %v", len(got), err, statErr)
					}
					return
				}
				for _, err := range []error{err, statErr} {
					wantCode(t, err, oci.Denied)
					if text := fmt.Sprint(err); !strings.Contains(text, place.CDNURL()) || !strings.Contains(text, "ENTREPOT_FOREIGN_HOSTS") {
						t.Errorf("the refusal is %s", text)
					}
				}
				if n := place.Count(ocitest.Match{Role: ocitest.CDN}); n > 0 {
					t.Errorf("%d requests where nobody may go", n)
				}
			})
		})
	}
}

func TestForeignHosts(t *testing.T) {
	list, err := parseForeignHosts("a.example", []string{"one.example", "*.data.example", "http://*.clear.example:81"})
	if err != nil {
		t.Fatal(err)
	}
	for raw, want := range map[string]bool{
		"https://one.example/x":           true,
		"https://ONE.example:443/x":       true,
		"https://sub.one.example/x":       false,
		"https://west.data.example/x":     true,
		"https://a.b.data.example/x":      true,
		"https://data.example/x":          false,
		"https://evildata.example/x":      false,
		"https://west.data.example:444/x": false,
		"http://west.data.example/x":      false,
		"https://west.data.example.evil":  false,
		"http://x.clear.example:81/":      true,
		"https://x.clear.example:81/":     false,
		"https://[::1]/x":                 false,
	} {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		if got := list.allow(u); got != want {
			t.Errorf("%s: %t, want %t", raw, got, want)
		}
	}
}

func TestForeignLayersFromElsewhereAreRefused(t *testing.T) {
	c := connectAt(t, "https://registry.example", time.Now, func(cfg *Config) {
		cfg.ForeignHosts = []string{"layers.example", "169.254.169.254", "other.example:8443"}
	})
	set := NewSet(c)
	for url, shown := range map[string]string{
		"https://evil.example/x?sig=hidden":    "https://evil.example",
		"http://layers.example/x":              "http://layers.example",
		"https://layers.example:444/x":         "https://layers.example:444",
		"https://other.example/x":              "https://other.example",
		"https://me:hidden@layers.example/x":   "what is no URL",
		"file:///etc/passwd":                   "what is no URL",
		"https://layers.example.evil/x":        "https://layers.example.evil",
		"//layers.example/x":                   "what is no URL",
		"https://":                             "what is no URL",
		"https://layers.example/" + long(5000): "what is no URL",
		"https://" + long(5000) + ".example/":  "what is no URL",
	} {
		_, err := set.Foreign(t.Context(), alpine, oci.Sum(nil), []string{url}, oci.Ask{})
		wantCode(t, err, oci.Denied)
		if text := fmt.Sprint(err); !strings.Contains(text, shown) || strings.Contains(text, "hidden") || len(text) > 500 {
			t.Errorf("%s: %.600s", url, text)
		}
	}
	_, err := set.Foreign(t.Context(), alpine, oci.Sum(nil), nil, oci.Ask{})
	wantCode(t, err, oci.Denied)
	_, err = set.Foreign(t.Context(), oci.Repository{Host: "unknown.example", Path: "x"}, oci.Sum(nil), nil, oci.Ask{})
	wantCode(t, err, oci.NameUnknown)

	// A host that is allowed may not lie just anywhere, and a hundred places
	// are not tried.
	b, err := set.Foreign(t.Context(), alpine, oci.Sum(nil), []string{"https://169.254.169.254/latest/meta-data"}, oci.Ask{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = read(t.Context(), b, 0, -1)
	wantCode(t, err, oci.BadUpstream)
	many := make([]string, 100)
	for i := range many {
		many[i] = fmt.Sprintf("https://layers.example/%d", i)
	}
	b, err = set.Foreign(t.Context(), alpine, oci.Sum(nil), many, oci.Ask{})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(b.(*copies).blobs); n > maxForeignURLs {
		t.Errorf("%d places are tried", n)
	}
}

func long(n int) string { return strings.Repeat("a", n) }

package upstream

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/internal/ocitest"
	"entrepot/oci"
	"entrepot/ratelimit"
)

// Probes cost no quota, and wait longer each time up to a bound.
func TestProbes(t *testing.T) {
	simulate(t, ocitest.Config{Habits: ocitest.Habits{Auth: ocitest.NoAuth, PullLimit: 100}}, func(w *world) {
		t, hub := w.t, w.hub
		image := ocitest.RandomImage(1, 100)
		c := w.connect()
		inject(ocitest.Reset())(hub)
		get := func() error {
			_, _, err := c.Manifest(t.Context(), alpine, image.Digest, oci.Ask{})
			return err
		}
		for range tripAfter {
			wantCode(t, get(), oci.Unavailable)
		}
		for want := minProbeWait; want < 2*maxProbeWait; want *= 2 {
			s := stateOf(t, c, hub.URL())
			wait := time.Until(s.Next)
			if want := min(want, maxProbeWait); s.State != BreakerOpen || wait < want || wait > min(want+want/4, maxProbeWait) {
				t.Errorf("the next probe is in %v, want %v and a quarter at most; %+v", wait, want, s)
			}
			wantCode(t, get(), oci.Unavailable)
			time.Sleep(wait)
			synctest.Wait()
		}
		if s := stateOf(t, c, hub.URL()); s.Refused != 6 || s.Since.IsZero() || s.Err == nil || s.Failures != tripAfter+6 {
			t.Errorf("%+v", s)
		}
		for _, r := range hub.Requests()[tripAfter:] {
			if r.Method != http.MethodHead || r.Counted {
				t.Errorf("a probe is %s, counted %v", r, r.Counted)
			}
		}
	})
}

// What a transfer that was cut goes on with is probed often while somebody waits for
// it, so that he gets the rest soon after it can be had, and as usual before and after.
func TestWhatWasCutIsProbedOften(t *testing.T) {
	for name, ask := range map[string]oci.Ask{"a client": {}, "the background": {Background: true}} {
		t.Run(name, func(t *testing.T) {
			simulate(t, open, func(w *world) {
				t, hub, c := w.client()
				blob := ocitest.Blob(7, 1000)
				hub.PushBlob("library/alpine", blob)
				b, err := c.Blob(t.Context(), alpine, blob.Digest, ask)
				if err != nil {
					t.Fatal(err)
				}
				goOn := func() error { _, err := read(t.Context(), b, 10, 10); return err }
				if err := goOn(); err != nil {
					t.Fatal(err)
				}
				inject(ocitest.Reset())(hub)
				for start := time.Now(); time.Since(start) < 2*time.Minute; time.Sleep(time.Second) {
					_ = resolve(t, c)
				}
				wantCode(t, goOn(), oci.Unavailable) // at the CDN: from then on the registry is asked again
				var longest time.Duration
				for range 15 {
					wantCode(t, goOn(), oci.Unavailable)
					longest = max(longest, time.Until(stateOf(t, c, hub.URL()).Next))
					time.Sleep(8 * time.Second)
				}
				if often := longest <= maxCutWait; often != !ask.Background {
					t.Errorf("probes are up to %v apart", longest)
				}
				time.Sleep(2 * maxProbeWait)
				if s := stateOf(t, c, hub.URL()); s.Next.Sub(s.Failed) < maxProbeWait {
					t.Errorf("when nobody waits any more the next probe is %v after the last", s.Next.Sub(s.Failed))
				}
				wantCode(t, goOn(), oci.Unavailable)
				hub.ClearFaults()
				time.Sleep(oci.RetryAfter(goOn()))
				if err := goOn(); err != nil {
					t.Errorf("after the time that it named: %v", err)
				}
			})
		})
	}
}

// A probe that is held up leaves others out, and the RetryAfter of those tells
// when it will have ended.
func TestOneProbeAtATime(t *testing.T) {
	simulate(t, open, func(w *world) {
		t, hub, c := w.client()
		hang := hub.Inject(&ocitest.Fault{Effect: ocitest.Hang()})
		wantCode(t, resolve(t, c), oci.Timeout)
		time.Sleep(2 * time.Second)
		if s := stateOf(t, c, hub.URL()); s.State != BreakerProbing {
			t.Fatalf("%+v, want a probe", s)
		}
		hub.Reset()
		for range 100 {
			err := resolve(t, c)
			wantCode(t, err, oci.Unavailable)
			if after := oci.RetryAfter(err); after < 7*time.Second || after > 10*time.Second {
				t.Fatalf("retry after %v, want what is left of the 10 s that the last one took", after)
			}
		}
		if n := len(hub.Requests()); n != 0 {
			t.Errorf("%d requests beside the probe", n)
		}
		hang.Release()
		synctest.Wait()
		if s := stateOf(t, c, hub.URL()); s.State != BreakerClosed {
			t.Errorf("%+v after the probe was answered", s)
		}
		time.Sleep(minProbeWait + probeGrace) // what hung is probed by itself
		mustResolve(t, c)
	})
}

// A host that is well for probes and fails all else is asked ever less.
func TestAHostThatIsWellForProbesAlone(t *testing.T) {
	simulate(t, open, func(w *world) {
		t, hub, c := w.client()
		hub.Inject(&ocitest.Fault{Match: ocitest.Match{Method: http.MethodGet}, Effect: ocitest.Answer(503)})
		for range 600 {
			_, _, err := c.Tags(t.Context(), alpine, oci.Page{N: -1}, oci.Ask{})
			wantCode(t, err, oci.Unavailable)
			time.Sleep(time.Second)
		}
		if n := len(hub.Requests()); n > 120 {
			t.Errorf("%d requests in ten minutes", n)
		}
	})
}

func TestARetryAfterHoldsForProbes(t *testing.T) {
	simulate(t, open, func(w *world) {
		t, hub := w.t, w.hub
		c := w.connect(func(cfg *Config) { cfg.Limits.Wait = time.Nanosecond })
		hub.Inject(&ocitest.Fault{Effect: ocitest.RetryLater(503, "120")})
		_ = resolve(t, c)
		hub.Reset()
		for range 119 {
			wantCode(t, resolve(t, c), oci.Unavailable)
			time.Sleep(time.Second)
		}
		saw(t, hub)
	})
	simulate(t, open, func(w *world) {
		t, hub, c := w.client()
		hub.Inject(&ocitest.Fault{Effect: ocitest.Answer(500), Times: tripAfter})
		hub.Inject(&ocitest.Fault{Effect: ocitest.RetryLater(503, "120")})
		for range tripAfter {
			wantCode(t, resolve(t, c), oci.Unavailable)
		}
		time.Sleep(2 * time.Second) // a probe is told to wait
		hub.Reset()
		err := resolve(t, c)
		if after := oci.RetryAfter(err); after < 110*time.Second || after > 121*time.Second {
			t.Errorf("retry after %v, want what the host said", after)
		}
		time.Sleep(110 * time.Second)
		saw(t, hub)
	})
}

// That no more HEADs are wanted keeps no host down that is well again: what a probe
// asks is not what was refused, and pulls may be sent.
func TestAPauseOfHeadsKeepsNoHostDown(t *testing.T) {
	simulate(t, open, func(w *world) {
		t, hub, c := w.client()
		head := ocitest.Match{Method: http.MethodHead}
		refused := ocitest.Effect{
			Do: "answer", Status: http.StatusTooManyRequests,
			Header: http.Header{"Ratelimit-Remaining": {"0;w=3600"}, "Retry-After": {"3600"}},
		}
		pull := func() error {
			_, _, err := c.Manifest(t.Context(), alpine, ocitest.RandomImage(1, 100).Digest, oci.Ask{})
			return err
		}
		hub.Inject(&ocitest.Fault{Match: head, Effect: refused})
		wantCode(t, resolve(t, c), oci.TooManyRequests)
		for outage := range 2 { // what its probes are told in the first holds none in the second
			hub.ClearFaults()
			down := hub.Inject(&ocitest.Fault{Effect: ocitest.Reset()})
			hub.Inject(&ocitest.Fault{Match: head, Effect: refused})
			for range tripAfter {
				wantCode(t, pull(), oci.Unavailable)
			}
			time.Sleep(10 * time.Second)
			down.Remove()
			err := pull()
			wantCode(t, err, oci.Unavailable)
			time.Sleep(oci.RetryAfter(err))
			if err := pull(); err != nil {
				t.Errorf("once it is up after outage %d: %v, told to come in %v", outage, err, oci.RetryAfter(err))
			}
		}
		wantCode(t, resolve(t, c), oci.TooManyRequests)
	})
}

// However long nobody asks, the first who does again waits for no black hole:
// its host is known to be one, by a probe now and then. That it is well again is
// found out as soon as anybody asks. A host that we were led to is forgotten.
func TestAnOutageOutlivesAQuietDay(t *testing.T) {
	simulate(t, open, func(w *world) {
		t, hub, c := w.client()
		inject(ocitest.Hang())(hub)
		wantCode(t, resolve(t, c), oci.Timeout)
		for range 3 {
			time.Sleep(24 * time.Hour)
			if took, err := timed(func() error { return resolve(t, c) }); took != 0 || oci.CodeOf(err) != oci.Unavailable {
				t.Errorf("after a quiet day: %v after %v, want Unavailable at once", err, took)
			}
		}
		// Half a minute's for the hour after each question, and then four an hour.
		if n := len(hub.Requests()); n > 3*(24*4+130) {
			t.Errorf("%d requests in three days", n)
		}
		time.Sleep(3 * time.Hour)
		hub.ClearFaults()
		err := resolve(t, c)
		if err != nil && oci.RetryAfter(err) > 20*time.Second {
			t.Errorf("after a quiet hour it is tried again in %v", oci.RetryAfter(err))
		}
		time.Sleep(oci.RetryAfter(err))
		mustResolve(t, c)
	})
	simulate(t, ocitest.Config{}, func(w *world) {
		t, hub, c := w.client()
		hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.CDN, Method: http.MethodHead}, Effect: ocitest.Answer(503), Times: 1})
		hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.CDN}, Effect: ocitest.Hang()})
		for i := range 2 { // of which the first has it doubted alone
			blob := ocitest.Blob(uint64(i), 1000)
			hub.PushBlob("library/alpine", blob)
			_, err := read(t.Context(), openBlob(t, c, alpine, blob.Digest), 0, -1)
			wantCode(t, err, oci.Timeout)
			synctest.Wait()
		}
		time.Sleep(unwantedFor + 2*idleProbeWait)
		hub.Reset()
		time.Sleep(unwantedFor)
		saw(t, hub)
		if s := stateOf(t, c, hub.CDNURL()); s.State != BreakerClosed {
			t.Errorf("%+v", s)
		}
	})
}

// That its host was down and is up again is no reason to disturb what is busy.
func TestWhatIsBusyRestsThroughAnOutage(t *testing.T) {
	simulate(t, open, func(w *world) {
		t, hub, c := w.client()
		busy := ocitest.Match{Repo: "library/busy"}
		hub.Inject(&ocitest.Fault{Match: busy, Effect: ocitest.RetryLater(503, "600")})
		wantCode(t, resolveAt(t, c, "library/busy"), oci.Unavailable)
		down := hub.Inject(&ocitest.Fault{Effect: ocitest.Reset()})
		for range tripAfter {
			_ = resolve(t, c)
		}
		if s := stateOf(t, c, hub.URL()); s.State != BreakerOpen {
			t.Fatalf("%+v, want an outage", s)
		}
		down.Remove()
		hub.Reset()
		time.Sleep(20 * time.Second)
		mustResolve(t, c)
		for _, b := range c.Breakers() {
			if b.Part != "" && time.Until(b.Next) < 9*time.Minute {
				t.Errorf("%+v, want its next probe after its rest", b)
			}
		}
		time.Sleep(20 * time.Second)
		wantCode(t, resolveAt(t, c, "library/busy"), oci.Unavailable)
		if n := hub.Count(busy); n != 0 {
			t.Errorf("it was asked %d times while it rests", n)
		}
	})
}

// What asked for rest gets it while its host is down, too, and does not keep its host
// down for that long: whatever else is wanted of it is probed.
func TestWhatIsBusyKeepsNoHostDown(t *testing.T) {
	simulate(t, open, func(w *world) {
		t, hub, c := w.client()
		paths := []string{"library/a", "library/b", "library/c"}
		for _, path := range paths {
			hub.Inject(&ocitest.Fault{Match: ocitest.Match{Repo: path}, Effect: ocitest.RetryLater(503, "600")})
		}
		for _, path := range paths {
			wantCode(t, resolveAt(t, c, path), oci.Unavailable)
		}
		reset := hub.Inject(&ocitest.Fault{Effect: ocitest.Reset()}) // a trial tells that it is not its parts alone
		wantCode(t, resolve(t, c), oci.Unavailable)
		reset.Remove()
		if s := stateOf(t, c, hub.URL()); s.State != BreakerOpen {
			t.Fatalf("%+v, want an outage", s)
		}
		hub.Reset()
		for range 60 {
			for _, path := range paths {
				err := resolveAt(t, c, path)
				if after := oci.RetryAfter(err); oci.CodeOf(err) != oci.Unavailable || after < 9*time.Minute {
					t.Fatalf("%s: %v, retry after %v", path, err, after)
				}
			}
			time.Sleep(100 * time.Millisecond)
		}
		saw(t, hub)
		err := resolve(t, c)
		if after := oci.RetryAfter(resolveAt(t, c, paths[0])); after < 9*time.Minute {
			t.Errorf("what is busy is to come again in %v, with its host", after)
		}
		time.Sleep(oci.RetryAfter(err))
		mustResolve(t, c)
		for _, path := range paths {
			if n := hub.Count(ocitest.Match{Repo: path}); n > 0 {
				t.Errorf("%s was asked %d times while it rests", path, n)
			}
		}
		time.Sleep(10 * time.Minute)
		hub.ClearFaults()
		for _, path := range paths {
			if err := resolveAt(t, c, path); oci.CodeOf(err) == oci.Unavailable {
				t.Errorf("%s after its rest: %v", path, err)
			}
		}
	})
}

// What a 429 asked for holds, whatever an operator wants to know.
func TestForgettingKeepsPauses(t *testing.T) {
	for name, effect := range map[string]ocitest.Effect{"abuse": ocitest.RetryLater(429, "86400"), "quota": ocitest.QuotaSpent()} {
		t.Run(name, func(t *testing.T) {
			simulate(t, open, func(w *world) {
				t, hub := w.t, w.hub
				c := w.connect(func(cfg *Config) { cfg.Limits.Wait = time.Nanosecond })
				inject(effect)(hub)
				wantCode(t, resolve(t, c), oci.TooManyRequests)
				hub.Reset()
				for range 10 {
					c.Forget(t.Context(), alpine)
					wantCode(t, resolve(t, c), oci.TooManyRequests)
				}
				saw(t, hub)
			})
		})
	}
}

// An operator who asks finds out whether a host is down still, by one probe that is
// waited for; not by one after the other where each takes long.
func TestForgettingProbesAHostOnce(t *testing.T) {
	for name, effect := range map[string]ocitest.Effect{"reset": ocitest.Reset(), "black hole": ocitest.Hang()} {
		t.Run(name, func(t *testing.T) {
			simulate(t, open, func(w *world) {
				t, hub, c := w.client()
				inject(effect)(hub)
				for range tripAfter {
					_ = resolve(t, c)
				}
				time.Sleep(24 * time.Hour)
				hub.Reset()
				var took time.Duration
				for range 100 {
					once, _ := timed(func() error { c.Forget(t.Context(), alpine); return nil })
					took += once
				}
				if n := len(hub.Requests()); took > c.cfg.Timeouts.headers() || n < 1 || n > 100 {
					t.Errorf("a hundred questions of an operator took %v, and %d requests", took, n)
				}
				hub.ClearFaults()
				time.Sleep(c.cfg.Timeouts.headers())
				c.Forget(t.Context(), alpine)
				mustResolve(t, c)
			})
		})
	}
}

// An operator who leaves waits for no black hole. Its probe goes on.
func TestForgettingEndsWithWhoAsks(t *testing.T) {
	simulate(t, open, func(w *world) {
		t, hub, c := w.client()
		hang := hub.Inject(&ocitest.Fault{Effect: ocitest.Hang()})
		wantCode(t, resolve(t, c), oci.Timeout)
		time.Sleep(24 * time.Hour)
		hub.Reset()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for _, want := range []time.Duration{time.Second, 0} {
			if took, _ := timed(func() error { c.Forget(ctx, alpine); return nil }); took != want {
				t.Errorf("it took %v, want %v", took, want)
			}
		}
		if s, n := stateOf(t, c, hub.URL()), len(hub.Requests()); s.State != BreakerProbing || n != 1 {
			t.Errorf("%+v, %d requests, want one probe on its way", s, n)
		}
		hang.Release()
		synctest.Wait()
		mustResolve(t, c)
	})
}

// While a host is down its probes are for its parts too, which are looked at again
// as soon as it is up.
func TestPartsOfWhatIsDownAreNotProbed(t *testing.T) {
	simulate(t, open, func(w *world) {
		t, hub, c := w.client()
		down := hub.Inject(&ocitest.Fault{Effect: ocitest.Answer(503)})
		repo := oci.Repository{Host: "docker.io", Path: "library/alpine"}
		ask := func(i int) error {
			at := repo
			at.Path += strconv.Itoa(i % 10)
			_, _, err := c.Resolve(t.Context(), at, "latest", oci.Ask{})
			return err
		}
		for i := range 10 { // each of them is known to fail, and the host as well
			for range tripAfter {
				wantCode(t, ask(i), oci.Unavailable)
			}
		}
		hub.Reset()
		for i := range 3600 {
			wantCode(t, ask(i), oci.Unavailable)
			time.Sleep(time.Second)
		}
		if n := len(hub.Requests()); n > 2*60+10 {
			t.Errorf("%d requests in an hour, want those of one probe at a time", n)
		}
		if all := c.Breakers(); !slices.ContainsFunc(all, func(b Breaker) bool { return b.Part != "" }) {
			t.Errorf("what fails by itself, and is wanted, is not remembered: %+v", all)
		}
		down.Remove()
		time.Sleep(maxProbeWait + 2*minProbeWait)
		synctest.Wait()
		for i := range 10 {
			if err := ask(i); oci.CodeOf(err) == oci.Unavailable {
				t.Errorf("it is up, but %v", err)
			}
		}
	})
}

// What failed by itself is looked at again as soon as its host is up.
func TestPartsAreProbedOnceTheirHostIsUp(t *testing.T) {
	simulate(t, open, func(w *world) {
		t, hub, c := w.client()
		hub.Push("library/broken", "latest", ocitest.RandomImage(2, 100))
		broken := hub.Inject(&ocitest.Fault{Match: ocitest.Match{Repo: "library/broken"}, Effect: ocitest.Answer(500)})
		for range tripAfter {
			wantCode(t, resolveAt(t, c, "library/broken"), oci.Unavailable)
		}
		down := hub.Inject(&ocitest.Fault{Effect: ocitest.Reset()})
		for range tripAfter {
			wantCode(t, resolve(t, c), oci.Unavailable)
		}
		time.Sleep(20 * time.Second) // by when its own probe was left to those of its host
		broken.Remove()
		down.Remove()
		for stateOf(t, c, hub.URL()).State != BreakerClosed {
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(minProbeWait + 100*time.Millisecond)
		if err := resolveAt(t, c, "library/broken"); err != nil {
			t.Errorf("a second after its host: %v", err)
		}
	})
	simulate(t, open, func(w *world) { // which a trial finds
		t, hub, c := w.client()
		down := hub.Inject(&ocitest.Fault{Effect: ocitest.Answer(500)})
		for range tripAfter {
			wantCode(t, resolve(t, c), oci.Unavailable)
		}
		for i := range tripAfter - 1 {
			wantCode(t, resolveAt(t, c, fmt.Sprint("library/other", i)), oci.Unavailable)
		}
		time.Sleep(20 * time.Second)
		wantCode(t, resolve(t, c), oci.Unavailable)
		down.Remove()
		if err := resolveAt(t, c, "library/new"); oci.CodeOf(err) == oci.Unavailable {
			t.Fatal(err)
		}
		time.Sleep(minProbeWait + 100*time.Millisecond)
		mustResolve(t, c)
	})
}

// There is one trial at a time.
func TestOneTrialAtATime(t *testing.T) {
	simulate(t, open, func(w *world) {
		t, hub, c := w.client()
		inject(ocitest.Answer(500))(hub)
		for i := range tripAfter {
			wantCode(t, resolveAt(t, c, fmt.Sprint("library/broken", i)), oci.Unavailable)
		}
		hub.ClearFaults()
		hub.Set(func(h *ocitest.Habits) { h.Latency = 500 * time.Millisecond })
		hub.Reset()
		var asking sync.WaitGroup
		for i := range 10 {
			asking.Go(func() { _ = resolveAt(t, c, fmt.Sprint("library/other", i)) })
		}
		asking.Wait()
		if n := len(hub.Requests()); n != 1 {
			t.Errorf("%d requests at once, want a trial", n)
		}
	})
}

// A trial that finds more trouble than 5xx is the last one until a probe was answered,
// but for one that hangs, as a single repository may.
func TestATrialTellsWhetherThereAreMore(t *testing.T) {
	simulate(t, open, func(w *world) {
		t, hub, c := w.client()
		for i := range tripAfter {
			path := fmt.Sprint("library/broken", i)
			hub.Inject(&ocitest.Fault{Match: ocitest.Match{Repo: path}, Effect: ocitest.Answer(500)})
			wantCode(t, resolveAt(t, c, path), oci.Unavailable)
		}
		slow := ocitest.Match{Repo: "library/slow"}
		hub.Inject(&ocitest.Fault{Match: slow, Effect: ocitest.Hang()})
		wantCode(t, resolveAt(t, c, "library/slow"), oci.Timeout)
		if s := stateOf(t, c, hub.URL()); s.State == BreakerClosed {
			t.Fatalf("%+v, want an outage", s)
		}
		mustResolve(t, c)
	})
	simulate(t, open, func(w *world) {
		t, hub, c := w.client()
		down := hub.Inject(&ocitest.Fault{Effect: ocitest.Answer(500)})
		for i := range tripAfter {
			wantCode(t, resolveAt(t, c, fmt.Sprint("library/broken", i)), oci.Unavailable)
		}
		down.Remove()
		inject(ocitest.Reset())(hub)
		hub.Reset()
		for i := range 50 {
			_ = resolveAt(t, c, fmt.Sprint("library/other", i))
		}
		if n := len(hub.Requests()); n > 2 {
			t.Errorf("%d requests, want a trial", n)
		}
	})
	simulate(t, open, func(w *world) { // a probe tells it, too
		t, hub, c := w.client()
		down := hub.Inject(&ocitest.Fault{Effect: ocitest.Answer(500)})
		for i := range tripAfter {
			wantCode(t, resolveAt(t, c, fmt.Sprint("library/broken", i)), oci.Unavailable)
		}
		down.Remove()
		inject(ocitest.Reset())(hub)
		time.Sleep(2 * minProbeWait)
		hub.Reset()
		wantCode(t, resolveAt(t, c, "library/other"), oci.Unavailable)
		saw(t, hub)
	})
}

// A probe that fails when others have been answered says nothing any more.
func TestALateProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		b := newBreakers(func(context.Context, *url.URL) (outcome, time.Duration, error) {
			<-release
			return failed, 0, errStalled
		}, func(string, error) {})
		defer b.close()
		at := target{url: &url.URL{Scheme: "https", Host: "a.example", Path: "/"}}
		for range tripAfter {
			b.note(at, time.Now(), failed, 0, errStalled)
			time.Sleep(time.Millisecond)
		}
		time.Sleep(2 * minProbeWait)
		b.note(at, time.Now(), answered, 0, nil)
		close(release)
		synctest.Wait()
		if s := b.state("a.example", "a.example"); len(s) != 1 || s[0].State != BreakerClosed || s[0].Failures != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// That a part of a host fails, or does so no more, is no news of the host.
func TestNobodyIsToldOfParts(t *testing.T) {
	simulate(t, open, func(w *world) {
		t, hub := w.t, w.hub
		var rec recorder
		c := w.connect(rec.attach)
		hub.Push("library/broken", "latest", ocitest.RandomImage(2, 100))
		broken := hub.Inject(&ocitest.Fault{Match: ocitest.Match{Repo: "library/broken"}, Effect: ocitest.Answer(500)})
		for range 2 * tripAfter {
			wantCode(t, resolveAt(t, c, "library/broken"), oci.Unavailable)
		}
		broken.Remove()
		time.Sleep(2 * minProbeWait)
		if err := resolveAt(t, c, "library/broken"); err != nil {
			t.Error(err)
		}
		if told := rec.troubles(); len(told) > 0 {
			t.Errorf("an operator is told of %v", told)
		}
	})
}

// Probes take what is wanted in turn, what is new first, by the URL that it was last
// asked for with; what rests is passed over.
func TestWhatIsProbedInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreakers(nil, nil)
		at := func(name, query string) target {
			return target{url: &url.URL{Scheme: "https", Host: "a.example", Path: "/" + name, RawQuery: query}, repo: name}
		}
		br := &breaker{scope: scope{host: "a.example"}, open: true}
		next := func() string {
			t, ok := b.nextLocked(br)
			if !ok {
				return "none"
			}
			return strings.TrimSuffix(t.url.Path[1:]+"?"+t.url.RawQuery, "?")
		}
		wants := func(want ...string) {
			t.Helper()
			var got []string
			for range want {
				got = append(got, next())
			}
			if !slices.Equal(got, want) {
				t.Errorf("probed %v, want %v", got, want)
			}
		}
		wants("none")
		for _, name := range []string{"a", "b", "c"} {
			br.wish(at(name, "1"))
		}
		wants("c?1", "b?1", "a?1", "c?1")
		br.wish(at("a", "2"))
		br.wish(at("d", "1"))
		wants("d?1", "b?1", "a?2", "c?1", "d?1")
		b.atLocked(at("a", "").path()).rests = time.Now().Add(time.Minute)
		wants("b?1", "c?1", "d?1", "b?1")
		time.Sleep(time.Minute)
		wants("a?2", "c?1")
		br.doubt = true
		wants("d?1", "d?1")
		br.doubt = false
		for i := range 2 * maxWishes {
			br.wish(at(strconv.Itoa(i), ""))
		}
		if n := len(br.wishes); n != maxWishes {
			t.Errorf("%d are probed in turn, want %d", n, maxWishes)
		}
		wants("15", "14")
	})
}

// How long a host was down before is no matter once it has answered.
func TestAnAnswerEndsTheBackoff(t *testing.T) {
	simulate(t, open, func(w *world) {
		t, hub, c := w.client()
		outage := func() time.Duration {
			t.Helper()
			down := hub.Inject(&ocitest.Fault{Effect: ocitest.Reset()})
			defer down.Remove()
			for range tripAfter {
				wantCode(t, resolve(t, c), oci.Unavailable)
			}
			next := time.Until(stateOf(t, c, hub.URL()).Next)
			time.Sleep(10 * time.Minute)
			return next
		}
		outage()
		time.Sleep(maxProbeWait)
		mustResolve(t, c)
		if next := outage(); next > 2*minProbeWait {
			t.Errorf("the first probe of a new outage is in %v", next)
		}
	})
}

// Requests that were under way when their host was given up are no trials that there
// were too many of.
func TestWhatWasUnderWayHoldsNoTrialUp(t *testing.T) {
	simulate(t, open, func(w *world) {
		t, hub := w.t, w.hub
		c := w.connect(func(cfg *Config) { cfg.Limits.Requests = 100 })
		down := hub.Inject(&ocitest.Fault{Effect: ocitest.Answer(500)})
		hub.Set(func(h *ocitest.Habits) { h.Latency = time.Second })
		var asking sync.WaitGroup
		for i := range 60 {
			asking.Go(func() {
				time.Sleep(time.Duration(i) * 50 * time.Millisecond)
				_ = resolveAt(t, c, fmt.Sprint("library/broken", i))
			})
		}
		asking.Wait()
		down.Remove()
		time.Sleep(trialWait)
		mustResolve(t, c)
	})
}

// What failed by itself, and nobody wants any more, is not probed. Whoever wants it
// again asks for it, and one failure has it refused again; one answer ends all that.
func TestWhatNobodyWantsIsNotProbed(t *testing.T) {
	simulate(t, open, func(w *world) {
		t, hub, c := w.client()
		hub.Push("library/broken", "latest", ocitest.RandomImage(2, 100))
		match := ocitest.Match{Repo: "library/broken"}
		broken := hub.Inject(&ocitest.Fault{Match: match, Effect: ocitest.Answer(500)})
		ask := func(n int) {
			t.Helper()
			hub.Reset()
			for range 10 {
				wantCode(t, resolveAt(t, c, "library/broken"), oci.Unavailable)
			}
			if got := hub.Count(match); got != n {
				t.Errorf("ten questions cost %d requests, want %d", got, n)
			}
		}
		ask(tripAfter)
		time.Sleep(3 * unwantedPartFor)
		if n := hub.Count(match); n > 10 {
			t.Errorf("%d requests for what was last wanted three minutes ago", n)
		}
		hub.Reset()
		time.Sleep(30 * time.Minute)
		saw(t, hub)
		ask(1)
		broken.Remove()
		time.Sleep(3 * unwantedPartFor)
		if err := resolveAt(t, c, "library/broken"); err != nil {
			t.Fatal(err)
		}
		hub.Inject(&ocitest.Fault{Match: match, Effect: ocitest.Answer(500)})
		ask(tripAfter)
	})
}

// A host one of whose repositories hangs is asked for something else before it
// counts as down, and nobody is told if it answers that.
func TestADoubtedHostIsAskedForSomethingElse(t *testing.T) {
	for _, known := range []string{"", "library/alpine", "library/slow"} { // what was answered last
		simulate(t, open, func(w *world) {
			t, hub := w.t, w.hub
			var rec recorder
			c := w.connect(rec.attach)
			hub.Push("library/slow", "latest", ocitest.RandomImage(2, 100))
			if known != "" {
				if err := resolveAt(t, c, known); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(time.Minute)
			hub.Inject(&ocitest.Fault{Match: ocitest.Match{Repo: "library/slow"}, Effect: ocitest.Hang()})
			hub.Reset()
			slow := func() error {
				_, _, err := c.Resolve(t.Context(), oci.Repository{Host: "docker.io", Path: "library/slow"}, "latest", oci.Ask{})
				return err
			}
			wantCode(t, slow(), oci.Timeout)
			synctest.Wait()
			mustResolve(t, c)
			if took, err := timed(slow); oci.CodeOf(err) != oci.Unavailable || took != 0 {
				t.Errorf("what hangs, again: %v after %v, want Unavailable at once", err, took)
			}
			if got := rec.troubles(); len(got) > 0 {
				t.Errorf("warnings %v", got)
			}
			other := "/v2/"
			if known == "library/alpine" {
				other = "/v2/library/alpine/manifests/latest"
			}
			if r := hub.Requests()[1]; r.Method != http.MethodHead || r.URI != other {
				t.Errorf("the probe is %s, want HEAD %s", r, other)
			}
		})
	}
}

// Who asks a host just when it is doubted waits for what comes of that, for what is left of
// a second; not who would be refused by it, too, or has something that can be served.
func TestADoubtIsWaitedForAMoment(t *testing.T) {
	const latency = 300 * time.Millisecond
	for name, row := range map[string]struct {
		hangs ocitest.Match
		path  string
		ask   oci.Ask
		after time.Duration // the doubt arose
		leave time.Duration // 0: who asks stays
		fails bool
		took  time.Duration
	}{
		"of one that is well":               {hangs: ocitest.Match{Repo: "library/slow"}, path: "library/alpine", took: 2 * latency},
		"while that is found out":           {hangs: ocitest.Match{Repo: "library/slow"}, path: "library/alpine", after: latency / 3, took: 2*latency - latency/3},
		"for what hangs":                    {hangs: ocitest.Match{Repo: "library/slow"}, path: "library/slow", fails: true},
		"for what is held":                  {hangs: ocitest.Match{Repo: "library/slow"}, path: "library/alpine", ask: oci.Ask{Held: true}, fails: true},
		"of one that hangs for all":         {path: "library/alpine", fails: true, took: doubtWait},
		"of one that hangs for all, later":  {path: "library/alpine", fails: true, after: doubtWait / 2, took: doubtWait / 2},
		"of one that has for a second":      {path: "library/alpine", fails: true, after: doubtWait},
		"of one that hangs, and who leaves": {path: "library/alpine", fails: true, leave: latency, took: latency},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, open, func(w *world) {
				t, hub, c := w.client()
				hub.Set(func(h *ocitest.Habits) { h.Latency = latency })
				hub.Inject(&ocitest.Fault{Match: row.hangs, Effect: ocitest.Hang()})
				wantCode(t, resolveAt(t, c, "library/slow"), oci.Timeout)
				time.Sleep(row.after)
				ctx := t.Context()
				if row.leave > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, row.leave)
					defer cancel()
				}
				took, err := timed(func() error {
					_, _, err := c.Resolve(ctx, oci.Repository{Host: alpine.Host, Path: row.path}, "latest", row.ask)
					return err
				})
				if (err != nil) != row.fails || took != row.took {
					t.Errorf("%v after %v, want %v", err, took, row.took)
				}
			})
		})
	}
}

// A host one of whose repositories hangs does not hang for everything if it answers
// something else with 5xx. That counts as any other does: the third opens its breaker.
func TestADoubtedHostThatAnswers5xxIsNotMute(t *testing.T) {
	for failed := range tripAfter { // other repositories, before
		t.Run(strconv.Itoa(failed), func(t *testing.T) {
			simulate(t, open, func(w *world) {
				t, hub := w.t, w.hub
				var rec recorder
				c := w.connect(rec.attach)
				mustResolve(t, c)
				hub.Push("library/other", "latest", ocitest.RandomImage(2, 100))
				fail := func(path string) {
					t.Helper()
					hub.Inject(&ocitest.Fault{Match: ocitest.Match{Repo: path}, Effect: ocitest.Answer(503)})
					wantCode(t, resolveAt(t, c, path), oci.Unavailable)
				}
				for i := range failed {
					fail(fmt.Sprint("library/broken", i))
				}
				hub.Inject(&ocitest.Fault{Match: ocitest.Match{Repo: "library/slow"}, Effect: ocitest.Hang()})
				hub.Inject(&ocitest.Fault{Match: ocitest.Match{Repo: "library/alpine"}, Effect: ocitest.Answer(503)})
				wantCode(t, resolveAt(t, c, "library/slow"), oci.Timeout)
				synctest.Wait()
				if n := hub.Count(ocitest.Match{Repo: "library/alpine"}); n != 2 {
					t.Fatalf("what was well was asked for %d times, want a probe", n)
				}
				for ; failed < tripAfter-1; failed++ {
					if s := stateOf(t, c, hub.URL()); s.State != BreakerClosed || s.Failures != failed+1 {
						t.Errorf("%+v, want a host that failed %d times", s, failed+1)
					}
					if got := rec.troubles(); len(got) > 0 {
						t.Errorf("warnings %v", got)
					}
					fail(fmt.Sprint("library/worse", failed))
				}
				if s := stateOf(t, c, hub.URL()); s.State != BreakerOpen {
					t.Errorf("%+v, want an outage", s)
				}
				if got := rec.troubles(); !slices.Equal(got, []Trouble{HostDown}) {
					t.Errorf("warnings %v", got)
				}
				if took, err := timed(func() error { return resolveAt(t, c, "library/slow") }); oci.CodeOf(err) != oci.Unavailable || took != 0 {
					t.Errorf("what hangs, again: %v after %v, want Unavailable at once", err, took)
				}
				if err := resolveAt(t, c, "library/other"); err != nil {
					t.Errorf("as a trial: %v", err)
				}
			})
		})
	}
}

// What was well and is busy now is not what tells whether its host hangs.
func TestWhatIsBusyResolvesNoDoubt(t *testing.T) {
	simulate(t, open, func(w *world) {
		t, hub, c := w.client()
		mustResolve(t, c)
		hub.Inject(&ocitest.Fault{Match: ocitest.Match{Repo: "library/alpine"}, Effect: ocitest.RetryLater(503, "600")})
		for _, path := range []string{"library/slow", "library/slower"} {
			hub.Inject(&ocitest.Fault{Match: ocitest.Match{Repo: path}, Effect: ocitest.Hang()})
			wantCode(t, resolveAt(t, c, path), oci.Timeout)
			synctest.Wait()
			if s := stateOf(t, c, hub.URL()); s.State != BreakerClosed {
				t.Errorf("%+v though only %s hangs", s, path)
			}
		}
		if n := hub.Count(ocitest.Match{Repo: "library/alpine"}); n != 2 {
			t.Errorf("what is busy was asked for %d times, want once before it was", n)
		}
	})
}

// A host's root is no part of the repository that hangs.
func TestARootThatAnswers5xxIsHeldAgainstNoRepository(t *testing.T) {
	simulate(t, open, func(w *world) {
		t, hub, c := w.client()
		mustResolve(t, c)
		ask := func(tag string) error {
			_, _, err := c.Resolve(t.Context(), alpine, tag, oci.Ask{})
			return err
		}
		hub.Inject(&ocitest.Fault{Match: ocitest.Match{Reference: "slow"}, Effect: ocitest.Hang()})
		hub.Inject(&ocitest.Fault{Match: ocitest.Match{Reference: "broken"}, Effect: ocitest.Answer(503)})
		hub.Inject(&ocitest.Fault{Match: ocitest.Match{Kind: ocitest.Ping}, Effect: ocitest.Answer(503)})
		wantCode(t, ask("slow"), oci.Timeout)
		synctest.Wait()
		wantCode(t, ask("broken"), oci.Unavailable)
		mustResolve(t, c)
	})
}

// While all of a host answers 5xx, what was not asked for before costs a request
// a second at most, however many want it at once, and its end is found at once.
func TestAnOutageOfEverythingIsTriedNowAndThen(t *testing.T) {
	simulate(t, open, func(w *world) {
		t, hub, c := w.client()
		down := hub.Inject(&ocitest.Fault{Effect: ocitest.Answer(503)})
		const seconds, each = 100, 20
		for i := range seconds * each {
			_, _, err := c.Resolve(t.Context(), oci.Repository{Host: "docker.io", Path: fmt.Sprint("library/r", i)}, "latest", oci.Ask{})
			wantCode(t, err, oci.Unavailable)
			time.Sleep(time.Second / each)
		}
		if n := len(hub.Requests()); n < seconds/2 || n > seconds+20 {
			t.Errorf("%d requests in %d s", n, seconds)
		}
		down.Remove()
		time.Sleep(trialWait)
		mustResolve(t, c)
	})
}

func TestCloseEndsAProbe(t *testing.T) {
	simulate(t, open, func(w *world) {
		t, hub, c := w.client()
		inject(ocitest.Hang())(hub)
		wantCode(t, resolve(t, c), oci.Timeout)
		time.Sleep(2 * time.Second)
		if took, _ := timed(func() error { c.Close(); return nil }); took != 0 {
			t.Errorf("Close took %v", took)
		}
	})
}

// A crowd waits for connections that a repository which hangs has taken. When that is
// given up a probe tells that the host is well, whoever waits for a connection, and the
// crowd is served; and the probes of what hangs, which has many parts, keep nobody from it.
func TestADoubtBehindACrowdIsResolved(t *testing.T) {
	const connections = 8
	for _, crowd := range []int{3, 40} {
		simulate(t, ocitest.Config{}, func(w *world) {
			t, hub := w.t, w.hub
			slow := oci.Repository{Host: "docker.io", Path: "library/slow"}
			for i := range crowd {
				hub.Push(fmt.Sprint("library/a", i), "latest", ocitest.RandomImage(1, 100))
			}
			hub.Set(func(h *ocitest.Habits) { h.Auth = ocitest.NoAuth })
			c := w.connect(func(cfg *Config) { cfg.Limits = ratelimit.Limits{Rate: -1, Requests: connections} })
			hub.Inject(&ocitest.Fault{Match: ocitest.Match{Repo: slow.Path}, Effect: ocitest.Hang()})
			var asking sync.WaitGroup
			hang := func(round int) {
				for i := range connections {
					asking.Go(func() { _, _, _ = c.Resolve(t.Context(), slow, fmt.Sprint(round, "-", i), oci.Ask{}) })
				}
			}
			hang(0)
			time.Sleep(3 * time.Second)
			for i := range crowd {
				asking.Go(func() {
					took, err := timed(func() error { return resolveAt(t, c, fmt.Sprint("library/a", i)) })
					if err != nil || took > c.cfg.Timeouts.ResponseHeader-2*time.Second {
						t.Errorf("one of %d: %v after %v", crowd, err, took)
					}
				})
			}
			asking.Wait()
			for range 60 {
				time.Sleep(time.Second)
				if took, err := timed(func() error { return resolveAt(t, c, "library/a0") }); err != nil || took > 0 {
					t.Errorf("later: %v after %v", err, took)
				}
			}
		})
	}
}

// Of the parts of a host that hang only a few are probed at a time, however many there
// are: each probe may hang as well.
func TestFewPartsAreProbedAtATime(t *testing.T) {
	simulate(t, ocitest.Config{}, func(w *world) {
		t, hub := w.t, w.hub
		slow := ocitest.Match{Repo: "library/slow"}
		hub.Set(func(h *ocitest.Habits) { h.Auth = ocitest.NoAuth })
		c := w.connect()
		mustResolve(t, c)
		hub.Inject(&ocitest.Fault{Match: slow, Effect: ocitest.Hang()})
		var asking sync.WaitGroup
		for i := range 30 {
			asking.Go(func() {
				_, _, _ = c.Resolve(t.Context(), oci.Repository{Host: "docker.io", Path: slow.Repo}, fmt.Sprint(i), oci.Ask{})
			})
		}
		asking.Wait()
		hub.Reset()
		time.Sleep(c.cfg.Timeouts.ResponseHeader - time.Second)
		if n := hub.Count(slow); n == 0 || n > maxPartProbes {
			t.Errorf("%d probes hang at once, want %d at most", n, maxPartProbes)
		}
	})
}

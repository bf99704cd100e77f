package warm_test

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/internal/ocitest"
	"entrepot/oci"
	"entrepot/warm"
)

// events collects what a list tells.
type events struct {
	mu  sync.Mutex // guards all
	all []warm.Event
}

func (e *events) tell(one warm.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, one)
}

// kinds are the kinds told since the last time, of one image.
func (e *events) kinds(im warm.Image) []warm.Kind {
	e.mu.Lock()
	defer e.mu.Unlock()
	var kinds []warm.Kind
	for _, one := range e.all {
		if one.Image == im {
			kinds = append(kinds, one.Kind)
		}
	}
	e.all = nil
	return kinds
}

// wantEntry looks at one image of a list.
func wantEntry(t *testing.T, l *warm.List, im warm.Image, want warm.Status) warm.Entry {
	t.Helper()
	for _, e := range l.Entries() {
		if e.Image == im {
			if e.Status != want {
				t.Errorf("%s is %s (%v), want %s", im, e.Status, e.Err, want)
			}
			return e
		}
	}
	t.Errorf("%s is not on the list", im)
	return warm.Entry{}
}

// resolve is a client's question, which must be answered at once.
func (w *world) resolve(im warm.Image) (oci.Digest, oci.CacheStatus) {
	w.t.Helper()
	began := time.Now()
	res, out, err := w.cache.Resolve(w.t.Context(), im.Repository, im.Reference, oci.Ask{})
	if err != nil || time.Since(began) > 0 {
		w.t.Fatalf("a client's question for %s: %v after %v", im, err, time.Since(began))
	}
	return res.Digest, out.Cache
}

// In a day a list costs a HEAD for each image each time that a fifth of its TTL
// is left, and no GET; clients' own questions cost nothing.
func TestAListCostsOneHeadPerTTL(t *testing.T) {
	simulate(t, ocitest.Habits{}, func(w *world) {
		w.cfg.TTL = 20 * time.Minute
		w.restart()
		images := []warm.Image{hubImage("library/a", "1"), hubImage("library/b", "1"), hubImage("library/c", "1")}
		for i, im := range images {
			w.hub.Push(im.Repository.Path, im.Reference, on("amd64", uint64(i), 1000))
		}
		var told events
		l, stop := w.list(warm.Config{Tell: told.tell}, images...)
		defer stop()
		synctest.Wait()
		for _, im := range images {
			wantEntry(w.t, l, im, warm.Warm)
			if kinds := told.kinds(im); len(kinds) > 0 && !slices.Equal(kinds, []warm.Kind{warm.Fetched}) {
				w.t.Errorf("%s: told %v", im, kinds)
			}
		}
		w.hub.Reset()
		for range 24 * 20 {
			time.Sleep(3 * time.Minute)
			synctest.Wait()
			for _, im := range images {
				if _, how := w.resolve(im); how != oci.Hit {
					w.t.Fatalf("a client's question for %s is a %s, want a hit", im, how)
				}
			}
		}
		if n, most := w.answeredHeads(), 3*24*60/16; n > most || n < most-3 {
			w.t.Errorf("%d HEADs in a day, want %d", n, most)
		}
		if told := told.all; len(told) > 0 {
			w.t.Errorf("told %v", told)
		}
		if got := l.Totals(); got.Images[warm.Warm] != 3 || time.Since(got.Checked) > 20*time.Minute {
			w.t.Errorf("totals %+v", got)
		}

		// An interval of one's own, and a restart in the middle of it.
		stop()
		w.restart()
		w.hub.Reset()
		_, stop = w.list(warm.Config{Every: time.Hour}, images...)
		synctest.Wait()
		w.wantHeads(0) // what is known is believed
		time.Sleep(time.Hour + time.Minute)
		synctest.Wait()
		w.wantHeads(3)
		time.Sleep(10 * time.Hour)
		synctest.Wait()
		w.wantHeads(30)
		stop()
	})
}

// wantHeads expects HEADs that the registry answered, and nothing else.
func (w *world) wantHeads(n int) {
	w.t.Helper()
	if got := w.answeredHeads(); got != n {
		w.t.Errorf("%d HEADs, want %d", got, n)
	}
	w.hub.Reset()
}

// answeredHeads counts the HEADs that the registry answered. It expects nothing
// else.
func (w *world) answeredHeads() (heads int) {
	w.t.Helper()
	for _, r := range w.hub.Requests() {
		switch {
		case r.Role != ocitest.Registry || r.Status == http.StatusUnauthorized: // a token's life is short
		case r.Method == http.MethodHead:
			heads++
		default:
			w.t.Errorf("the registry was asked for %s", r)
		}
	}
	return heads
}

// A tag that moves has its new image here before the old one's time is over.
func TestAMovedTagIsFetchedInTime(t *testing.T) {
	simulate(t, ocitest.Habits{}, func(w *world) {
		im := hubImage("library/alpine", "latest")
		shared := on("amd64", 1, 1000, 2000)
		w.hub.Push("library/alpine", "latest", shared)
		var told events
		l, stop := w.list(warm.Config{Tell: told.tell}, im)
		defer stop()
		synctest.Wait()
		w.login("library/alpine")
		next := on("amd64", 1, 1000, 3000) // one layer is the old one's
		w.hub.Push("library/alpine", "latest", next)
		told.kinds(im)
		time.Sleep(4 * time.Minute)
		synctest.Wait()
		var want []string
		for _, line := range append(gets("library/alpine", next), "HEAD manifest library/alpine:latest") {
			if line != "GET blob library/alpine@"+short(next.Blobs[1].Digest) {
				want = append(want, line)
			}
		}
		w.wantAsked(want...)
		if d, how := w.resolve(im); d != next.Digest || how != oci.Hit {
			w.t.Errorf("a client gets %s as a %s, want %s as a hit", d, how, next.Digest)
		}
		if e := wantEntry(w.t, l, im, warm.Warm); e.Digest != next.Digest || e.Bytes == 0 {
			w.t.Errorf("the entry: %+v", e)
		}
		if kinds := told.kinds(im); !slices.Equal(kinds, []warm.Kind{warm.Fetched}) {
			w.t.Errorf("told %v, want that it was fetched", kinds)
		}
	})
}

// While its upstream is down a list says so once, and goes on by itself.
func TestAListSurvivesAnOutage(t *testing.T) {
	simulate(t, ocitest.Habits{}, func(w *world) {
		held, never := hubImage("library/held", "1"), hubImage("library/never", "1")
		w.hub.Push("library/held", "1", on("amd64", 1, 1000))
		w.hub.Push("library/never", "1", on("amd64", 2, 1000))
		var told events
		_, stop := w.list(warm.Config{Tell: told.tell}, held)
		synctest.Wait()
		stop()
		down := w.hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.Registry}, Effect: ocitest.Answer(502)})
		told.kinds(held)
		l, stop := w.list(warm.Config{Tell: told.tell}, held, never)
		defer stop()
		time.Sleep(12 * time.Hour)
		synctest.Wait()
		if e := wantEntry(w.t, l, held, warm.Stale); e.Err == nil {
			w.t.Error("it does not say why")
		}
		wantEntry(w.t, l, never, warm.Failed)
		w.resolve(held)
		if n := w.hub.Count(ocitest.Match{Role: ocitest.Registry, Kind: ocitest.Manifest}); n > 2*60*12+20 { // the breaker's probes are two a minute
			w.t.Errorf("%d questions in twelve hours of outage", n)
		}
		down.Remove()
		time.Sleep(20 * time.Minute)
		synctest.Wait()
		wantEntry(w.t, l, held, warm.Warm)
		wantEntry(w.t, l, never, warm.Warm)
		told.mu.Lock()
		defer told.mu.Unlock()
		var got []string
		for _, one := range told.all {
			got = append(got, fmt.Sprint(one.Kind, one.Image.Repository.Path))
		}
		slices.Sort(got)
		if want := []string{fmt.Sprint(warm.ListRead, ""), fmt.Sprint(warm.Fetched, "library/never"), fmt.Sprint(warm.Troubled, "library/held"), fmt.Sprint(warm.Troubled, "library/never"), fmt.Sprint(warm.Recovered, "library/held")}; !slices.Equal(got, want) {
			w.t.Errorf("told %q, want %q", got, want)
		}
	})
}

// When its upstream may be asked again stands beside why an image is stale, and not in it.
func TestAnEntrySaysWhyWithoutATime(t *testing.T) {
	simulate(t, ocitest.Habits{}, func(w *world) {
		held := hubImage("library/held", "1")
		w.hub.Push("library/held", "1", on("amd64", 1, 1000))
		_, stop := w.list(warm.Config{}, held)
		synctest.Wait()
		stop()
		w.hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.Registry}, Effect: ocitest.RetryLater(http.StatusTooManyRequests, "3600")})
		for _, path := range []string{"other", "another"} { // of which the second is not asked for
			_, _, _ = w.cache.Resolve(w.t.Context(), hubImage("library/"+path, "1").Repository, "1", oci.Ask{})
		}
		time.Sleep(20 * time.Minute)
		l, stop := w.list(warm.Config{}, held)
		defer stop()
		synctest.Wait()
		e := wantEntry(w.t, l, held, warm.Stale)
		if why := oci.LastingWhy(e.Err); !strings.Contains(e.Err.Error(), ": the next request is in ") || !strings.HasSuffix(why, " asked us to wait") {
			w.t.Errorf("why: %v; at any time: %s", e.Err, why)
		}
	})
}

// Why an image is not here tells a mistake in the list from what passes by itself.
func TestWhyAnImageIsNotHere(t *testing.T) {
	simulate(t, ocitest.Habits{}, func(w *world) {
		w.hub.Push("library/limited", "1", on("amd64", 1, 1000))
		w.hub.Push("library/broken", "1", on("amd64", 2, 1000))
		w.hub.Push("library/denied", "1", on("amd64", 3, 1000))
		w.hub.Push("library/other", "1", ocitest.Index(on("arm64", 4, 1000)))
		for path, effect := range map[string]ocitest.Effect{"limited": ocitest.QuotaSpent(), "broken": ocitest.Answer(http.StatusBadGateway), "denied": ocitest.Answer(http.StatusForbidden)} {
			w.hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.Registry, Repo: "library/" + path, Kind: ocitest.Manifest}, Effect: effect})
		}
		want := map[string]warm.Status{
			"nosuch": warm.Missing, "denied": warm.Missing, "other": warm.Missing, "limited": warm.Waiting, "broken": warm.Failed,
		}
		var images []warm.Image
		for path := range want {
			images = append(images, hubImage("library/"+path, "1"))
		}
		l, stop := w.list(warm.Config{Platforms: platforms(w.t, "linux/amd64")}, images...)
		defer stop()
		time.Sleep(time.Minute)
		synctest.Wait()
		for path, status := range want {
			wantEntry(w.t, l, hubImage("library/"+path, "1"), status)
		}
	})
}

// A list that a quota does not suffice for comes window by window, and spends
// nothing of what is kept for clients.
func TestAListComesWindowByWindow(t *testing.T) {
	simulate(t, ocitest.Habits{PullLimit: 10}, func(w *world) {
		var images []warm.Image
		for i := range 20 {
			im := hubImage("library/app", fmt.Sprint(i))
			w.hub.Push("library/app", im.Reference, on("amd64", uint64(i), 10))
			images = append(images, im)
		}
		l, stop := w.list(warm.Config{Every: time.Hour}, images...)
		defer stop()
		for window, want := range []int{9, 18, 20} {
			time.Sleep(time.Hour)
			synctest.Wait()
			if got := l.Totals().Images[warm.Warm]; got != want {
				w.t.Errorf("window %d: %d of 20 are warm, want %d", window, got, want)
			}
			if got := l.Totals().Images[warm.Waiting]; got != 20-want {
				w.t.Errorf("window %d: %d of 20 wait for it, want %d", window, got, 20-want)
			}
			if got := w.hub.CountedPulls(); got != want {
				w.t.Errorf("window %d: %d counted pulls so far, want %d", window, got, want)
			}
			time.Sleep(5 * time.Hour)
			w.hub.RefillQuota()
		}
	})
}

// A quota that is there before its time, which the HEADs of other images tell, is
// spent on what waits for it, and until then nobody asks for that.
func TestAListNoticesThatAQuotaIsThereAgain(t *testing.T) {
	simulate(t, ocitest.Habits{PullLimit: 10}, func(w *world) {
		w.cfg.TTL = leastTTL
		w.restart()
		var images []warm.Image
		for i := range 20 {
			im := hubImage("library/app"+fmt.Sprint(i), "1")
			w.hub.Push(im.Repository.Path, "1", on("amd64", uint64(i), 10))
			images = append(images, im)
		}
		l, stop := w.list(warm.Config{}, images...)
		defer stop()
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		for round, want := range []int{9, 18, 20} {
			if got := l.Totals().Images; got[warm.Warm] != want || got[warm.Waiting] != 20-want {
				w.t.Errorf("round %d: %v, want %d warm and the others waiting", round, got, want)
			}
			w.hub.Reset()
			time.Sleep(5 * time.Minute)
			synctest.Wait()
			for _, e := range l.Entries() {
				if n := w.hub.Count(ocitest.Match{Role: ocitest.Registry, Repo: e.Image.Repository.Path}); e.Status == warm.Waiting && n > 1 {
					w.t.Errorf("round %d: %s, which waits, is asked for %d times", round, e.Image, n)
				}
			}
			w.hub.RefillQuota()
			time.Sleep(leastTTL + 10*time.Second)
			synctest.Wait()
		}
	})
}

// leastTTL has a list check each tag as often as it ever does.
const leastTTL = 30 * time.Second

func TestContentComesInItsWindow(t *testing.T) {
	simulate(t, ocitest.Habits{}, func(w *world) {
		im := hubImage("library/alpine", "latest")
		w.hub.Push("library/alpine", "latest", on("amd64", 1, 1000))
		now := time.Now()
		opens := now.Add(3 * time.Hour)
		window, err := warm.ParseWindow(opens.Format("15:04") + "-" + opens.Add(time.Hour).Format("15:04"))
		if err != nil {
			w.t.Fatal(err)
		}
		l, stop := w.list(warm.Config{Window: window}, im)
		defer stop()
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		wantEntry(w.t, l, im, warm.Deferred)
		if n := w.hub.Count(ocitest.Match{Role: ocitest.Registry, Method: "GET"}); n != 0 {
			w.t.Errorf("%d GETs before the window opens", n)
		}
		time.Sleep(time.Hour + time.Minute)
		synctest.Wait()
		wantEntry(w.t, l, im, warm.Warm)
	})
}

// What is held is warm, whether the window is open or not, and looking costs nothing.
func TestWhatIsHeldNeedsNoWindow(t *testing.T) {
	simulate(t, ocitest.Habits{}, func(w *world) {
		held, part := hubImage("library/held", "1"), hubImage("library/part", "1")
		w.hub.Push("library/held", "1", on("amd64", 1, 1000))
		w.hub.Push("library/part", "1", on("amd64", 2, 1000, 2000))
		for _, im := range []warm.Image{held, part} {
			if _, err := w.puller.Pull(w.t.Context(), im, warm.Platforms{}, 0, new(warm.Progress)); err != nil {
				w.t.Fatal(err)
			}
		}
		synctest.Wait()
		w.loseBlob(on("amd64", 2, 1000, 2000).Blobs[1].Digest)
		opens := time.Now().Add(20 * time.Hour)
		window, err := warm.ParseWindow(opens.Format("15:04") + "-" + opens.Add(time.Hour).Format("15:04"))
		if err != nil {
			w.t.Fatal(err)
		}
		w.hub.Reset()
		l, stop := w.list(warm.Config{Window: window}, held, part)
		defer stop()
		for range 2 {
			time.Sleep(7 * time.Hour)
			synctest.Wait()
			if e := wantEntry(w.t, l, held, warm.Warm); e.Digest != on("amd64", 1, 1000).Digest || e.Bytes < 1000 {
				w.t.Errorf("what is held: %+v", e)
			}
			wantEntry(w.t, l, part, warm.Deferred)
			if n := w.hub.Count(ocitest.Match{Role: ocitest.Registry, Method: "GET"}); n != 0 {
				w.t.Errorf("%d GETs before the window opens", n)
			}
		}
		time.Sleep(8 * time.Hour)
		synctest.Wait()
		wantEntry(w.t, l, part, warm.Warm)
	})
}

func TestAListIsReadAgain(t *testing.T) {
	simulate(t, ocitest.Habits{}, func(w *world) {
		one, other := hubImage("library/one", "1"), hubImage("library/other", "1")
		w.hub.Push("library/one", "1", on("amd64", 1, 10))
		w.hub.Push("library/other", "1", on("amd64", 2, 10))
		var mu sync.Mutex
		var list []warm.Image
		var bad error
		set := func(err error, images ...warm.Image) {
			mu.Lock()
			defer mu.Unlock()
			list, bad = images, err
		}
		var told events
		set(nil, one)
		l, stop := w.list(warm.Config{Tell: told.tell, Images: func() ([]warm.Image, error) {
			mu.Lock()
			defer mu.Unlock()
			return list, bad
		}})
		defer stop()
		synctest.Wait()
		set(nil, other)
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if got := l.Entries(); len(got) != 1 || got[0].Image != other || got[0].Status != warm.Warm {
			w.t.Errorf("after a change: %+v", got)
		}
		set(errors.New("the file is gone"))
		time.Sleep(time.Hour)
		synctest.Wait()
		wantEntry(w.t, l, other, warm.Warm) // the last list counts
		if err := l.Totals().Err; err == nil || err.Error() != "the file is gone" {
			w.t.Errorf("it is said to have failed with %v", err)
		}
		set(errors.New("line 2 is no image"), one)
		time.Sleep(11 * time.Second)
		synctest.Wait()
		wantEntry(w.t, l, one, warm.Warm) // the others count
		if l.Totals().Err == nil || len(l.Entries()) != 1 {
			w.t.Errorf("of a list with a slip of the pen: %+v", l.Entries())
		}
		set(nil, other)
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if err := l.Totals().Err; err != nil {
			w.t.Errorf("a list that can be read again: %v", err)
		}
		if got, want := told.kinds(warm.Image{}), []warm.Kind{warm.ListRead, warm.ListRead, warm.ListFailed, warm.ListRead, warm.ListRead}; !slices.Equal(got, want) {
			w.t.Errorf("told %v, want %v", got, want)
		}
	})
}

// What was evicted comes again, though not at once: a list larger than the disk
// would go in a circle.
func TestWhatIsLostComesAgain(t *testing.T) {
	simulate(t, ocitest.Habits{}, func(w *world) {
		im := hubImage("library/alpine", "latest")
		image := on("amd64", 1, 1000)
		w.hub.Push("library/alpine", "latest", image)
		l, stop := w.list(warm.Config{}, im)
		defer stop()
		synctest.Wait()
		w.loseBlob(image.Blobs[1].Digest)
		w.hub.Reset()
		time.Sleep(3 * time.Minute) // the next check is in four
		synctest.Wait()
		wantEntry(w.t, l, im, warm.Evicted)
		layer := ocitest.Match{Role: ocitest.Registry, Reference: image.Blobs[1].Digest.String()}
		time.Sleep(5 * time.Hour)
		synctest.Wait()
		if n := w.hub.Count(layer); n != 0 {
			w.t.Errorf("asked for %d times within hours", n)
		}
		wantEntry(w.t, l, im, warm.Evicted)
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if n := w.hub.Count(layer); n != 1 {
			w.t.Errorf("asked for %d times after hours, want once", n)
		}
		wantEntry(w.t, l, im, warm.Warm)
	})
}

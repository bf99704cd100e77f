package warm_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/internal/ocitest"
	"entrepot/oci"
	"entrepot/warm"
)

// between stands before a cache, and answers otherwise where it has a function.
type between struct {
	oci.Source
	resolve  func() error                // asked first
	manifest func(context.Context) error // likewise
	blob     func(oci.Blob) oci.Blob
}

func (b *between) Resolve(ctx context.Context, repo oci.Repository, tag string, ask oci.Ask) (oci.Resolved, oci.Outcome, error) {
	if b.resolve != nil {
		if err := b.resolve(); err != nil {
			return oci.Resolved{}, oci.Outcome{}, err
		}
	}
	return b.Source.Resolve(ctx, repo, tag, ask)
}

func (b *between) Manifest(ctx context.Context, repo oci.Repository, d oci.Digest, ask oci.Ask) (oci.Manifest, oci.Outcome, error) {
	if b.manifest != nil {
		if err := b.manifest(ctx); err != nil {
			return oci.Manifest{}, oci.Outcome{}, err
		}
	}
	return b.Source.Manifest(ctx, repo, d, ask)
}

func (b *between) Blob(ctx context.Context, repo oci.Repository, d oci.Digest, ask oci.Ask) (oci.Blob, error) {
	blob, err := b.Source.Blob(ctx, repo, d, ask)
	if err == nil && b.blob != nil {
		blob = b.blob(blob)
	}
	return blob, err
}

// bypassed is a blob that is passed on, and not kept.
type bypassed struct {
	oci.Blob
	proves bool // unless it is read to its end
}

func (b bypassed) Open(ctx context.Context, offset, length int64) (oci.Reader, error) {
	r, err := b.Blob.Open(ctx, offset, length)
	return bypassedReader{r, b.proves}, err
}

type bypassedReader struct {
	oci.Reader
	proves bool
}

func (r bypassedReader) Outcome() oci.Outcome {
	return oci.Outcome{Cache: oci.Bypass, Why: "no room", Proves: r.proves}
}

// What was passed on and not kept is not here.
func TestWhatIsNotKeptIsNotWarm(t *testing.T) {
	simulate(t, ocitest.Habits{}, func(w *world) {
		w.hub.Push("library/alpine", "1", on("amd64", 1, 1000))
		pull := func(proves bool) (warm.Result, error) {
			puller := warm.NewPuller(&between{Source: w.cache, blob: func(b oci.Blob) oci.Blob { return bypassed{b, proves} }}, 1)
			return puller.Pull(w.t.Context(), hubImage("library/alpine", "1"), platforms(w.t, "all"), 0, new(warm.Progress))
		}
		if _, err := pull(false); err == nil || !strings.Contains(err.Error(), "no room") {
			w.t.Errorf("it is taken for warm: %v", err)
		}
		// What is held for another, and has to be read for that, is.
		if res, err := pull(true); err != nil || res.Fetched < 1000 {
			w.t.Errorf("what is proven by being read: %+v, %v", res, err)
		}
	})
}

// What is on its way for others is waited for, by a list from turn to turn.
func TestWhatIsOnItsWayForOthersIsWaitedFor(t *testing.T) {
	simulate(t, ocitest.Habits{}, func(w *world) {
		im := hubImage("library/alpine", "1")
		w.hub.Push("library/alpine", "1", on("amd64", 1, 1000))
		var there atomic.Bool
		src := &between{Source: w.cache, blob: func(b oci.Blob) oci.Blob {
			if there.Load() {
				return b
			}
			return onItsWay{b}
		}}
		w.puller = warm.NewPuller(src, 4)
		l, stop := w.list(warm.Config{}, im)
		defer stop()
		synctest.Wait()
		wantEntry(w.t, l, im, warm.Waiting)
		pulled := make(chan error, 1)
		go func() {
			_, err := w.puller.Pull(w.t.Context(), im, warm.Platforms{}, time.Hour, new(warm.Progress))
			pulled <- err
		}()
		time.Sleep(10 * time.Minute)
		there.Store(true)
		if err := <-pulled; err != nil {
			w.t.Error(err)
		}
		time.Sleep(15 * time.Minute)
		synctest.Wait()
		wantEntry(w.t, l, im, warm.Warm)
	})
}

// onItsWay is a blob that others are filling.
type onItsWay struct{ oci.Blob }

func (onItsWay) Open(context.Context, int64, int64) (oci.Reader, error) {
	return nil, &oci.Error{Code: oci.Unavailable, Detail: "another upstream is filling it", Err: oci.ErrFilling}
}

// An image that upstream asks to come back for later is asked for no earlier.
func TestAListComesBackWhenItIsTold(t *testing.T) {
	simulate(t, ocitest.Habits{}, func(w *world) {
		const later = 3 * time.Hour
		im := hubImage("library/alpine", "1")
		var asked atomic.Int64
		src := &between{Source: w.cache, resolve: func() error {
			asked.Add(1)
			return &oci.Error{Code: oci.TooManyRequests, RetryAfter: later}
		}}
		l := warm.NewList(warm.Config{
			Source: src, Puller: warm.NewPuller(src, 1), Images: func() ([]warm.Image, error) { return []warm.Image{im}, nil },
			Known: func(oci.Repository, string) (time.Time, time.Duration, bool) { return time.Time{}, 0, false },
		})
		ctx, cancel := context.WithCancel(w.t.Context())
		done := make(chan struct{})
		go func() {
			l.Run(ctx)
			close(done)
		}()
		time.Sleep(later - time.Minute)
		synctest.Wait()
		before := asked.Load()
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		cancel()
		<-done
		if before != 1 || asked.Load() != 2 {
			w.t.Errorf("asked %d times before it is time, and %d in all; want 1 and 2", before, asked.Load())
		}
	})
}

// A long list takes the line to itself no more than two images do.
func TestAListFetchesTwoAtOnce(t *testing.T) {
	simulate(t, ocitest.Habits{}, func(w *world) {
		var images []warm.Image
		for i := range 8 {
			im := hubImage("library/app", fmt.Sprint(i))
			w.hub.Push("library/app", im.Reference, on("amd64", uint64(i), 10))
			images = append(images, im)
		}
		var mu sync.Mutex // guards both
		running, most := 0, 0
		count := func(n int) {
			mu.Lock()
			defer mu.Unlock()
			running += n
			most = max(most, running)
		}
		src := &between{Source: w.cache, manifest: func(ctx context.Context) error {
			count(1)
			defer count(-1)
			time.Sleep(time.Second)
			return ctx.Err()
		}}
		l := warm.NewList(warm.Config{
			Source: src, Puller: warm.NewPuller(src, 4), Images: func() ([]warm.Image, error) { return images, nil }, Every: time.Hour,
			Known: func(repo oci.Repository, tag string) (time.Time, time.Duration, bool) {
				rec := w.cache.Record(repo, tag)
				if rec == nil {
					return time.Time{}, 0, false
				}
				return rec.Checked, rec.TTL, true
			},
		})
		ctx, cancel := context.WithCancel(w.t.Context())
		done := make(chan struct{})
		go func() {
			l.Run(ctx)
			close(done)
		}()
		time.Sleep(time.Minute)
		synctest.Wait()
		cancel()
		<-done
		if l.Totals().Images[warm.Warm] != len(images) || most != 2 {
			w.t.Errorf("%d of %d are warm, %d at once; want 2", l.Totals().Images[warm.Warm], len(images), most)
		}
	})
}

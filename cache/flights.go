package cache

import (
	"context"
	"maps"
	"strings"
	"sync"
	"time"

	"entrepot/oci"
)

// flights merges equal questions: the first asks, the others wait for its
// answer. The question goes on though everybody who waits has left.
type flights[T any] struct {
	mu      sync.Mutex // guards running
	running map[string]*flight[T]
}

type flight[T any] struct {
	ask   oci.Ask
	done  chan struct{} // closed when value and err are set
	value T
	err   error
}

// givesWay reports a question that may be refused what is kept for who asks now.
func (f *flight[T]) givesWay(to oci.Ask) bool {
	return f.ask.Background && !to.Background || f.ask.Held && !to.Held
}

// backgroundWait is how long one who waits himself reads along with a question
// for which nobody does: that gives way to others, perhaps for long.
const backgroundWait = time.Second

// do answers key by work, run on c's own life with a bound. first says that this
// call started it. A caller whose ctx ends gets ctx's error; the flight goes on.
// A question in the background, or of somebody whom it serves to have what is held,
// is asked again for the first for whom it is otherwise, if it is refused what is
// kept for him; one in the background, if it is held up as well.
func do[T any](ctx context.Context, c *Cache, fs *flights[T], key string, ask oci.Ask, bound time.Duration, work func(context.Context) (T, error)) (value T, first bool, err error) {
	f, first := fs.join(ctx, c, key, nil, ask, bound, work)
	for f != nil && f.givesWay(ask) {
		settled, err := f.settles(ctx, ask)
		if err != nil {
			return value, false, err
		}
		if settled {
			return f.value, false, f.err
		}
		f, first = fs.join(ctx, c, key, f, ask, bound, work)
	}
	if f == nil {
		return value, false, errClosed
	}
	select {
	case <-f.done:
		return f.value, first, f.err
	case <-ctx.Done():
		return value, first, context.Cause(ctx)
	}
}

// settles waits for a flight that gives way, and reports whether its answer is one
// for who asks now, too.
func (f *flight[T]) settles(ctx context.Context, ask oci.Ask) (bool, error) {
	var heldUp <-chan time.Time
	if f.ask.Background && !ask.Background {
		moment := time.NewTimer(backgroundWait)
		defer moment.Stop()
		heldUp = moment.C
	}
	select {
	case <-f.done:
		return oci.CodeOf(f.err) != oci.TooManyRequests, nil
	case <-heldUp:
		return false, nil
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
}

// join finds the flight of a question, unless that is not to be joined, or
// starts one, whose span is that of ctx alone. It returns nil when the cache is
// closing.
func (fs *flights[T]) join(ctx context.Context, c *Cache, key string, not *flight[T], ask oci.Ask, bound time.Duration, work func(context.Context) (T, error)) (f *flight[T], first bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f := fs.running[key]; f != nil && f != not {
		return f, false
	}
	f = &flight[T]{ask: ask, done: make(chan struct{})}
	if fs.running == nil {
		fs.running = make(map[string]*flight[T])
	}
	life := oci.CarrySpan(ctx, c.ctx)
	started := c.spawn(func() {
		bounded, cancel := context.WithTimeout(life, bound)
		defer cancel()
		f.value, f.err = work(bounded)
		fs.mu.Lock()
		if fs.running[key] == f {
			delete(fs.running, key)
		}
		fs.mu.Unlock()
		close(f.done)
	})
	if !started {
		return nil, false
	}
	fs.running[key] = f
	return f, true
}

// failures remembers, in bounded memory, until when not to ask again.
type failures struct {
	mu    sync.Mutex // guards until
	until map[string]failure
}

type failure struct {
	at    time.Time
	pause time.Duration // that ends then
	login string        // that was refused
	err   error
}

const maxFailures = 4096

func (fs *failures) put(key string, pause time.Duration, login string, err error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if len(fs.until) >= maxFailures {
		maps.DeleteFunc(fs.until, func(_ string, f failure) bool { return time.Since(f.at) >= hopelessFor })
	}
	if fs.until == nil || len(fs.until) >= maxFailures {
		fs.until = make(map[string]failure) // forgetting costs one more question each
	}
	fs.until[key] = failure{time.Now().Add(pause), pause, login, err}
}

// grow is the pause after one more failure in a row by which a manifest was of no use:
// twice the last, which ended no longer ago than the longest lasts, or the least. Two that
// were on their way at the same time are one.
func (fs *failures) grow(key string, least, most time.Duration) time.Duration {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	switch last, ok := fs.until[key]; {
	case !ok || wordOf(last.err) != Spoilt || time.Since(last.at) >= most:
		return min(least, most)
	case time.Now().Before(last.at):
		return min(last.pause, most)
	default:
		return min(max(least, 2*last.pause), most)
	}
}

// get returns when the question may be asked again, and why not before, to which
// login; zero if it may be asked now.
func (fs *failures) get(key string, now time.Time) (retry time.Time, login string, err error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f, ok := fs.until[key]
	if !ok || !now.Before(f.at) { // how long it was is of use to grow
		return time.Time{}, "", nil
	}
	return f.at, f.login, f.err
}

func (fs *failures) clear() {
	fs.mu.Lock()
	fs.until = nil
	fs.mu.Unlock()
}

// forgetOf drops what is remembered of a repository's tags and digests.
func (fs *failures) forgetOf(repo oci.Repository) {
	name := repo.String()
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for key := range fs.until {
		if rest, ok := strings.CutPrefix(key, name); ok && (rest == "" || strings.IndexByte(":@ ", rest[0]) >= 0) {
			delete(fs.until, key)
		}
	}
}

func (fs *failures) forget(key string) {
	fs.mu.Lock()
	delete(fs.until, key)
	fs.mu.Unlock()
}

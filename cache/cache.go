// Package cache is an oci.Source that remembers another. What is addressed by
// digest it keeps for good; what a tag names it checks now and then; what it
// does not hold it fetches once, however many ask. It knows nothing of HTTP.
//
// Start with Cache.Resolve for tags, Cache.Manifest for manifests and
// Cache.Blob for blobs; fill.go is how a blob arrives.
package cache

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"entrepot/oci"
	"entrepot/store"
)

// Config holds what the owner of a cache may choose. The zero value of each
// field means the default.
type Config struct {
	TTL     time.Duration   // how long a checked tag is served without asking; 0 checks each time
	Rules   []Rule          // TTLs of tags that match; the first that does counts
	Offline bool            // never contact an upstream
	Without map[string]bool // upstreams that are never contacted

	// Private says that not all content is for every client: some upstream is
	// asked with credentials, or clients have rights. A digest that a manifest
	// merely lists is then confirmed by upstream before it is served from bytes
	// that came by another way.
	Private bool

	CheckWait   time.Duration   // how long a held tag waits for its check before it is served stale; 0 means 2 s
	RetryAfter  time.Duration   // how long a failed check is not repeated where upstream does not say; 0 means 30 s
	Remember    time.Duration   // how long a 404 or 403 is repeated without asking; 0 means 30 s, below 0 not at all
	DropDeleted map[string]bool // upstreams whose tags are not served any more once they are deleted there
	MaxManifest int64           // bytes; 0 means oci.MaxManifest

	// Login names, without telling it, what an upstream is signed in to with for
	// a repository. A refusal is remembered for that credential alone, so that a
	// changed one is tried at once. nil: credentials do not change.
	Login func(context.Context, oci.Repository) string

	Streams         int   // upstream transfers at once for one big blob; 0 means 4
	StreamThreshold int64 // size in bytes from which a blob is big; 0 means 32 MiB
	MaxOrphans      int   // fills per upstream that go on without a reader; 0 means 8
	Prefetch        int   // layers at once that are filled before a client asks for them; 0 means 4, below 0 none
	// Linger is how long a fill that nobody reads and nobody wants whole keeps its
	// file open for the next piece; 0 means 10 s.
	Linger    time.Duration
	MaxBypass int // transfers at once that are not kept; 0 means 64

	// Warn is told what an operator should know; nil drops it.
	Warn func(message string, repo oci.Repository, err error)
}

func (c Config) withDefaults() Config {
	setDefault(&c.CheckWait, 2*time.Second)
	setDefault(&c.RetryAfter, 30*time.Second)
	setDefault(&c.Remember, 30*time.Second)
	setDefault(&c.MaxManifest, oci.MaxManifest)
	setDefault(&c.Streams, 4)
	setDefault(&c.StreamThreshold, 32<<20)
	setDefault(&c.MaxOrphans, 8)
	setDefault(&c.Prefetch, 4)
	setDefault(&c.Linger, 10*time.Second)
	setDefault(&c.MaxBypass, 64)
	if c.Login == nil {
		c.Login = func(context.Context, oci.Repository) string { return "" }
	}
	if c.Warn == nil {
		c.Warn = func(string, oci.Repository, error) {}
	}
	return c
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Cache remembers an upstream Source on a Disk. It is safe for concurrent use.
type Cache struct {
	disk     *store.Disk
	upstream oci.Source
	cfg      Config

	ctx    context.Context //nolint:containedctx // the life of work that outlives the request that began it
	cancel context.CancelFunc
	work   sync.WaitGroup // everything that runs on ctx

	mu     sync.Mutex // guards closed, and that no work begins after it is set
	closed bool

	checks    flights[resolution] // HEADs, by repository and reference
	manifests flights[fetched]    // by repository and digest
	stats     flights[resolution] // HEADs of blobs, by repository and digest
	lists     flights[tagPage]    // by repository and page
	referrers flights[referrerPage]
	failures  failures // questions not to be asked again yet, by the same keys
	noAPI     failures // repositories without a referrers API
	mutes     mutes
	kept      keptLists // of referrers
	unkept    failures  // blobs that the disk would not take, by digest
	doubts    doubts

	unrecorded      stopgap[unrecorded]   // by repository:tag
	unkeptManifests stopgap[oci.Manifest] // by repository and digest

	fills    fills
	debts    debts
	extras   extras
	prefetch prefetch
	foreign  foreignLayers
	looks    flights[struct{}] // for foreign layers, by repository
	relays   relays
	joined   atomic.Uint64
}

// New makes a cache of upstream on disk. Close it before the disk.
func New(disk *store.Disk, upstream oci.Source, cfg Config) *Cache {
	cfg = cfg.withDefaults()
	c := &Cache{
		disk:     disk,
		upstream: upstream,
		cfg:      cfg,
		relays:   relays{most: cfg.MaxBypass, running: make(map[string][]*relay)},
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.fills.running = make(map[oci.Digest]*fill)
	if cfg.Prefetch > 0 {
		c.prefetch.slots, c.prefetch.ahead = make(chan struct{}, cfg.Prefetch), make(chan struct{}, maxAhead)
	}
	return c
}

// errClosed cuts what still runs when the cache closes.
var errClosed error = &oci.Error{Code: oci.Unavailable, Detail: "the cache is shutting down"}

// Close stops all fills, keeping their spans, and waits until they have ended
// or ctx has.
func (c *Cache) Close(ctx context.Context) error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	done := make(chan struct{})
	go func() {
		c.work.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return errors.Join(errors.New("some fills did not stop in time"), ctx.Err())
	}
}

// spawn begins work that Close waits for, unless the cache is closing.
func (c *Cache) spawn(work func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.work.Go(work)
	}
	return !c.closed
}

// without reports that an upstream is not to be contacted.
func (c *Cache) without(host string) bool { return c.cfg.Offline || c.cfg.Without[host] }

// ladder decides what clients get of an upstream's content.
func (c *Cache) ladder(host string) Ladder {
	l := Ladder{DropDeleted: c.cfg.DropDeleted[host], CheckWait: c.cfg.CheckWait, Pause: c.cfg.RetryAfter, Remember: c.cfg.Remember}
	if host == foreignHost {
		l.Astray = max(astrayFor, l.Remember)
	}
	return l
}

// unasked is what an upstream has said before it is asked.
func (c *Cache) unasked(host string) Said {
	if c.without(host) {
		return Offline
	}
	return Unasked
}

// decide finds the rung of a question that is not asked yet: by what is held, then
// by what upstream said of it a moment ago, which is returned beside it. An Error
// without one is for want of an upstream that may be asked.
func (c *Cache) decide(ctx context.Context, repo oci.Repository, key func() string, facts Case) (Rung, error) {
	facts.Said = c.unasked(repo.Host)
	r := c.ladder(repo.Host).Climb(facts)
	if r.Serve != Ask && r.Serve != Confirm {
		return r, nil
	}
	asked := key()
	facts.Mute = c.mutes.is(repo.Host, asked)
	again, failed := c.refusal(ctx, &c.failures, repo, asked)
	if failed == nil {
		return c.ladder(repo.Host).Climb(facts), nil
	}
	facts.Said, facts.Remembered = saidBy(failed), true
	r = c.ladder(repo.Host).Climb(facts)
	switch {
	case r.Serve == Ask, r.Serve == Confirm:
		failed = nil
	case facts.Said == Spoilt:
		failed = &shunned{failed, time.Until(again)}
	}
	return r, failed
}

// shunned is why something that was of no use is not asked for, and when it will be.
type shunned struct {
	err  error // that it was told
	wait time.Duration
}

func (s *shunned) Error() string { return s.err.Error() }

// Unwrap is what clients are told.
func (s *shunned) Unwrap() error {
	when := fmt.Sprintf("; it is asked for again in %v", max(s.wait.Round(time.Second), time.Second))
	return &oci.Error{
		Code: oci.CodeOf(s.err), Detail: strings.TrimSuffix(oci.Reason(s.err), oci.When(s.err)) + when, When: when,
		RetryAfter: s.wait, Err: s.err,
	}
}

// longestSpoilt is the longest that a manifest which came to nothing is left alone. What
// stalled or broke off may do so of what lies between, which mends.
func longestSpoilt(err error) time.Duration {
	if oci.CodeOf(err) == oci.Timeout || isBroken(err) {
		return stalledFor
	}
	return hopelessFor
}

// refusal returns when a question about repo may be asked again after it failed,
// and why not before; zero if it may be asked now.
func (c *Cache) refusal(ctx context.Context, of *failures, repo oci.Repository, key string) (time.Time, error) {
	retry, login, err := of.get(key, time.Now())
	if err != nil && saidBy(err).isOfLogin() && login != c.cfg.Login(ctx, repo) {
		of.forget(key)
		return time.Time{}, nil
	}
	return retry, err
}

// noteFailure finds the rung of a question about repo that failed, and remembers
// for how long it is not to be asked again.
func (c *Cache) noteFailure(ctx context.Context, repo oci.Repository, key string, facts Case, err error) Rung {
	facts.Said, facts.Retry = saidBy(err), oci.RetryAfter(err)
	r := c.ladder(repo.Host).Climb(facts)
	if r.Again > 0 {
		login := ""
		if facts.Said.isOfLogin() {
			login = c.cfg.Login(ctx, repo)
		}
		if r.Grows {
			r.Again = c.failures.grow(key, r.Again, longestSpoilt(err))
		}
		c.failures.put(key, r.Again, login, err)
		if facts.Said == NoAPI && facts.Kind == ReferrersKind {
			c.noAPI.put(repo.String(), r.Again, login, err)
		}
	}
	return r
}

// Forget drops what is remembered of failed questions, so that the next are
// asked.
func (c *Cache) Forget() {
	c.failures.clear()
	c.noAPI.clear()
	c.unkept.clear()
	c.doubts.hasten(nil)
}

// ForgetOf is Forget for one repository.
func (c *Cache) ForgetOf(repo oci.Repository) {
	c.failures.forgetOf(repo)
	c.failures.forgetOf(elsewhereOf(repo))
	c.noAPI.forgetOf(repo)
	c.doubts.hasten(&repo)
}

// ForgetReferrers drops what is kept of the lists of a repository's referrers, of
// which something was deleted: what they tell may be of that.
func (c *Cache) ForgetReferrers(repo oci.Repository) { c.kept.forgetOf(repo) }

// Record is what a tag was found to name, when that was last confirmed, and for
// how long it is believed; nil if nothing is known of it. It asks nobody.
func (c *Cache) Record(repo oci.Repository, tag string) *Record {
	rec, err := c.record(repo, tag)
	if err != nil {
		return nil
	}
	return &Record{resolved(&rec).Descriptor, rec.Checked, c.cfg.ttlOf(repo, tag)}
}

// Record is what is known of a tag.
type Record struct {
	oci.Descriptor
	Checked time.Time
	TTL     time.Duration
}

// offline is the answer to what only upstream could tell.
func offline(what string) error {
	return oci.Errorf(oci.Unavailable, "%s is not held, and %w", what, oci.ErrOffline)
}

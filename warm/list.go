package warm

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"entrepot/oci"
)

// Config says what a List keeps warm, and how.
type Config struct {
	Source oci.Source
	Puller *Puller // of the same Source
	// Images reads the list. It is asked again and again. An error that comes with
	// images is about others, which are left out; after one that comes alone the last
	// list counts.
	Images    func() ([]Image, error)
	Platforms Platforms
	// Every is how often a tag is checked; 0 is before what is known of it counts
	// as old.
	Every  time.Duration
	Window Window // when layers may be fetched; checks go on always
	// Known tells what is recorded of a tag, without asking anybody: when it was
	// last confirmed, and for how long that is believed.
	Known func(repo oci.Repository, tag string) (checked time.Time, ttl time.Duration, found bool)
	// Held reports whether content is here, and may be served under repo, without asking
	// anybody. It may be nil: what has come is taken to be here.
	Held func(repo oci.Repository, d oci.Digest) bool
	// Withheld is how long the limits of a repository's upstream are known to keep
	// back what nobody waits for; 0: it may be asked. It asks nobody, and may be nil.
	Withheld func(ctx context.Context, repo oci.Repository) time.Duration
	Tell     func(Event) // is told what an operator should know; may be nil
}

// Event is one thing that happened to a list or to one of its images.
type Event struct {
	Kind   Kind
	Image  Image // zero where it is about the list
	Result Result
	Took   time.Duration
	Images int // on the list
	Err    error
}

// Kind is what happened.
type Kind int

// The kinds.
const (
	ListRead   Kind = iota // a list was read that differs from the last one; Err says what was left out
	ListFailed             // it could not be read: the last one counts
	Fetched                // something of an image came, and it is whole
	Troubled               // an image could not be checked, or not be fetched: once until it succeeds
	Recovered              // it could again
)

// Entry is how an image of the list is.
type Entry struct {
	Image   Image
	Status  Status
	Digest  oci.Digest // that it named when it was last looked through
	Bytes   int64      // of all that it consists of, for the platforms that are wanted
	Skipped int        // layers that are had elsewhere, and there alone
	Absent  []string   // platforms that are wanted, and that it is not for
	Checked time.Time  // when its name was last confirmed; zero if it was not since the start
	Next    time.Time  // when it is looked at again
	Err     error      // why it is not warm
	State   State      // while it is being fetched
}

// Status is an Entry in a word.
type Status string

// The words.
const (
	Pending  Status = "pending"  // nobody has looked yet
	Fetching Status = "fetching" // it is on its way, or waits for its turn
	Warm     Status = "warm"     // it is all here
	Deferred Status = "deferred" // it will be fetched when the window opens
	Evicted  Status = "evicted"  // it was all here, and something of it made room for other content since
	Stale    Status = "stale"    // it is all here, and may be old: upstream did not confirm it
	Missing  Status = "missing"  // it is not all here: upstream has no such image, or not for us
	Waiting  Status = "waiting"  // it is not all here: a quota, or another limit, keeps it back, or it is on its way for others
	Failed   Status = "failed"   // it is not all here: it could not be had, since an upstream is down, say
)

// without is the status of an image that is not all here, by why.
func without(err error) Status {
	switch code := oci.CodeOf(err); {
	case oci.IsUnknown(err), code == oci.Denied:
		return Missing
	case code == oci.TooManyRequests, errors.Is(err, oci.ErrFilling):
		return Waiting
	}
	return Failed
}

// The pace of a list.
const (
	maxChecks    = 4 // names asked about at once
	maxFetches   = 2 // images on their way at once
	maxTurns     = 64
	leastPause   = 30 * time.Second
	mostPause    = 15 * time.Minute // after a failure, unless upstream names a longer one
	longestPause = 6 * time.Hour
	// lookEvery is how often an image is looked through though its name stands
	// for the same: something of it may have been evicted. (At each check it would
	// never be, and a list larger than the disk be fetched in a circle.)
	lookEvery = 6 * time.Hour
	// countEvery is how often it is looked whether something was evicted.
	countEvery = time.Minute
	// maxCounted is of how many images that is looked at a time, those first of which it
	// was longest ago.
	maxCounted = 500
	// rereadEvery is how late a change of the list is noticed at most, and that a
	// quota is there again.
	rereadEvery = 10 * time.Second
	// maxHastened is how many images are looked at sooner for that at once: it may
	// be enough for the first of them alone.
	maxHastened = 16
	// MaxImages bounds a list.
	MaxImages = 10_000
)

// List keeps images warm: what they name is confirmed in time, what that leads
// to is fetched.
type List struct {
	cfg     Config
	wake    chan struct{} // has one element where Run is to look again
	fetches chan struct{} // places
	work    sync.WaitGroup

	mu       sync.Mutex // guards what follows
	entries  map[Image]*entry
	checking int   // entries whose name is being asked about
	turns    int   // entries that are busy
	readErr  error // why the list, or some of it, could not be read, as it was told
	partial  bool  // readErr is about some of it
	total    Totals
}

// entry is an image of the list. busy owns it: nobody else changes it then, but
// for being taken off.
type entry struct {
	Entry
	busy     bool
	looked   time.Time    // when it was last found whole; zero if something is missing
	parts    []oci.Digest // of it that were there then
	ended    time.Time    // its last turn
	counted  time.Time    // when it was last looked whether all of it is here still
	pause    time.Duration
	progress *Progress
}

// Totals are what a List has done, and has to do.
type Totals struct {
	Images  map[Status]int
	Checked time.Time // when a name was last confirmed
	Fetched int64     // bytes
	Err     error     // why the list, or some of it, cannot be read
	Partial bool      // it is about some of it, and the rest counts
}

// NewList makes a list that Run works on.
func NewList(cfg Config) *List {
	if cfg.Tell == nil {
		cfg.Tell = func(Event) {}
	}
	if cfg.Withheld == nil {
		cfg.Withheld = func(context.Context, oci.Repository) time.Duration { return mostPause }
	}
	return &List{cfg: cfg, wake: make(chan struct{}, 1), fetches: make(chan struct{}, maxFetches), entries: map[Image]*entry{}}
}

// Run works until ctx ends, and returns when nothing of it runs any more.
func (l *List) Run(ctx context.Context) {
	defer l.work.Wait()
	var read, counted time.Time
	for ctx.Err() == nil {
		if now := time.Now(); now.Sub(counted) >= countEvery {
			l.count()
			counted = now
		}
		if now := time.Now(); now.Sub(read) >= rereadEvery {
			l.reread()
			l.hasten(ctx)
			read = now
		}
		timer := time.NewTimer(min(l.begin(ctx), rereadEvery))
		select {
		case <-timer.C:
		case <-l.wake:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// reread takes over a list that has changed.
func (l *List) reread() {
	images, err := l.cfg.Images()
	if err != nil && len(images) == 0 {
		l.mu.Lock()
		isNews := l.readErr == nil || l.readErr.Error() != err.Error()
		l.readErr, l.partial = err, false
		n := len(l.entries)
		l.mu.Unlock()
		if isNews {
			l.cfg.Tell(Event{Kind: ListFailed, Images: n, Err: err})
		}
		return
	}
	if l.take(images[:min(len(images), MaxImages)], err) {
		l.cfg.Tell(Event{Kind: ListRead, Images: len(images), Err: err})
	}
}

// take makes entries of images, and reports whether they are others than before, or
// others were left out, for err.
func (l *List) take(images []Image, err error) (changed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	changed = (l.readErr == nil) != (err == nil) || err != nil && l.readErr.Error() != err.Error()
	l.readErr, l.partial = err, err != nil
	wanted := make(map[Image]bool, len(images))
	for _, im := range images {
		wanted[im] = true
		if l.entries[im] == nil {
			l.entries[im] = &entry{Entry: Entry{Image: im, Status: Pending}}
			changed = true
		}
	}
	for im := range l.entries {
		if !wanted[im] {
			delete(l.entries, im) // one that is busy ends by itself
			changed = true
		}
	}
	return changed
}

// hasten brings forward the turns of images that wait for a quota which is there
// again: that may be long before the time that they were told, and answers to other
// questions tell it.
func (l *List) hasten(ctx context.Context) {
	now, withheld, sooner := time.Now(), map[oci.Repository]bool{}, []*entry{}
	for _, e := range l.waiting(now) {
		repo := e.Image.Repository
		if _, known := withheld[repo]; !known {
			withheld[repo] = l.cfg.Withheld(ctx, repo) > 0
		}
		if !withheld[repo] {
			sooner = append(sooner, e)
		}
		if len(sooner) == maxHastened {
			break
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range sooner { // none of them is busy: turns begin in this goroutine alone
		e.Next = now
	}
}

// count looks whether what was whole still is. Of what has only just come the last
// bytes may be on their way to the disk.
func (l *List) count() { l.countEnded(time.Now().Add(-countEvery), maxCounted) }

// Recount does so at once, of all images: for who has removed something.
func (l *List) Recount() { l.countEnded(time.Now(), MaxImages) }

// countEnded looks at so many images at most whose last turn had ended by a time.
func (l *List) countEnded(by time.Time, most int) {
	type whole struct {
		*entry
		endedAt, countedAt time.Time
		parts              []oci.Digest
	}
	var all []whole
	l.mu.Lock()
	for _, e := range l.entries {
		if !e.busy && !e.looked.IsZero() && !e.ended.After(by) && e.Status != Deferred {
			all = append(all, whole{e, e.ended, e.counted, e.parts})
		}
	}
	l.mu.Unlock()
	slices.SortStableFunc(all, func(a, b whole) int { return a.countedAt.Compare(b.countedAt) })
	for _, w := range all[:min(len(all), most)] {
		held := l.holds(w.Image.Repository, w.parts)
		l.mu.Lock()
		if !w.busy && w.ended.Equal(w.endedAt) { // no turn has begun meanwhile
			w.Status, w.counted = statusOf(w.Err, held, true), time.Now()
		}
		l.mu.Unlock()
	}
}

// holds reports whether all that an image consists of is here.
func (l *List) holds(repo oci.Repository, parts []oci.Digest) bool {
	return l.cfg.Held == nil || !slices.ContainsFunc(parts, func(d oci.Digest) bool { return !l.cfg.Held(repo, d) })
}

// statusOf is how an image is after a turn that ended with err: all of it is held, and
// was when it was last looked through.
func statusOf(err error, held, was bool) Status {
	switch {
	case err != nil && held && was:
		return Stale
	case err != nil:
		return without(err)
	case !held:
		return Evicted
	}
	return Warm
}

// waiting are the entries that wait for a limit and may be looked at again, the one
// that is due next first.
func (l *List) waiting(now time.Time) []*entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []*entry
	for _, e := range l.entries {
		if !e.busy && e.Status == Waiting && e.Next.After(now) && now.Sub(e.ended) >= leastPause {
			all = append(all, e)
		}
	}
	slices.SortFunc(all, func(a, b *entry) int { return a.Next.Compare(b.Next) })
	return all
}

// begin starts what is due, as far as there is room, and returns how long it is
// until the next is.
func (l *List) begin(ctx context.Context) time.Duration {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	var due []*entry
	wait := rereadEvery
	for _, e := range l.entries {
		switch left := e.Next.Sub(now); {
		case e.busy:
		case left <= 0:
			due = append(due, e)
		default:
			wait = min(wait, left)
		}
	}
	slices.SortFunc(due, func(a, b *entry) int { return a.Next.Compare(b.Next) })
	for _, e := range due[:min(len(due), maxChecks-l.checking, maxTurns-l.turns)] {
		l.checking++
		l.turns++
		e.busy = true
		l.work.Go(func() { l.turn(ctx, e) })
	}
	return wait
}

// turn looks at one image.
func (l *List) turn(ctx context.Context, e *entry) {
	began := time.Now()
	digest, checked, err := l.check(ctx, e.Image)
	l.change(func() {
		l.checking--
		if !checked.IsZero() {
			e.Checked = checked
			if checked.After(l.total.Checked) {
				l.total.Checked = checked
			}
		}
	})
	var res Result
	closed := time.Duration(0) // for so long nothing may be fetched
	switch whole := !e.looked.IsZero() && e.Digest == digest && began.Sub(e.looked) < lookEvery; {
	case digest.IsZero(), whole:
	default:
		var pulled error
		if closed = l.cfg.Window.wait(began); closed == 0 {
			res, pulled = l.pull(ctx, e, digest)
		} else if seen, missing := l.look(ctx, e, digest); missing == nil {
			res, closed = seen, 0
		}
		if pulled != nil {
			err = pulled
		}
	}
	if ctx.Err() == nil {
		l.end(e, digest, res, closed, err, time.Since(began))
	}
}

// look is what is here of an image, if that is all of it.
func (l *List) look(ctx context.Context, e *entry, digest oci.Digest) (Result, error) {
	if l.cfg.Held == nil {
		return Result{}, errNotHeld
	}
	skipped := 0
	if e.Digest == digest {
		skipped = e.Skipped
	}
	held := func(d oci.Digest) bool { return l.cfg.Held(e.Image.Repository, d) }
	return look(ctx, l.cfg.Source, e.Image.Repository, digest, l.cfg.Platforms, held, skipped)
}

// check finds out what an image names: from what is known of it if that is not
// about to count as old. What is held and cannot be confirmed comes with an
// error.
func (l *List) check(ctx context.Context, im Image) (d oci.Digest, checked time.Time, err error) {
	if im.isDigest() {
		d, err = oci.ParseDigest(im.Reference)
		return d, time.Time{}, err
	}
	due, found := l.due(im)
	named, out, err := l.cfg.Source.Resolve(ctx, im.Repository, im.Reference, ask(found && !due.After(time.Now())))
	switch {
	case err != nil:
		return oci.Digest{}, time.Time{}, err
	case out.Cache == oci.Stale:
		return named.Digest, time.Time{}, &oci.Error{Code: oci.Unavailable, Detail: out.Why, When: out.When}
	}
	return named.Digest, out.Checked, nil
}

// due is when a tag that is held is to be checked: when a fifth of the time is
// left for which it is believed.
func (l *List) due(im Image) (at time.Time, found bool) {
	checked, ttl, found := l.cfg.Known(im.Repository, im.Reference)
	every := l.cfg.Every
	if every == 0 {
		every = max(ttl/5*4, leastPause)
	}
	return checked.Add(every), found
}

// pull fetches what is missing of an image. It does not wait for an upstream: the
// image's next turn comes when that may be asked again.
func (l *List) pull(ctx context.Context, e *entry, digest oci.Digest) (Result, error) {
	progress := new(Progress)
	l.change(func() { e.progress, e.Status = progress, Fetching })
	select {
	case l.fetches <- struct{}{}:
		defer func() { <-l.fetches }()
	case <-ctx.Done():
		return Result{}, context.Cause(ctx)
	}
	return l.cfg.Puller.run(e.Image, l.cfg.Platforms, 0, progress).pull(ctx, digest)
}

// end notes what came of a turn, and when the next is.
func (l *List) end(e *entry, digest oci.Digest, res Result, closed time.Duration, err error, took time.Duration) {
	now := time.Now()
	next := l.next(e.Image, now)
	wasBad := e.Err != nil
	held := !res.Digest.IsZero() || l.holds(e.Image.Repository, e.parts) // the last bytes of what came may be on their way to the disk
	l.change(func() {
		l.turns--
		l.total.Fetched += res.Fetched
		e.busy, e.progress, e.Err, e.ended = false, nil, err, now
		switch {
		case !res.Digest.IsZero(): // it was looked through
			e.Digest, e.Bytes, e.Skipped, e.looked, e.parts = digest, res.Bytes, res.Skipped, now, res.parts
			e.Absent = res.Absent
			if !res.whole {
				e.looked = time.Time{}
			}
		case !digest.IsZero() && digest != e.Digest:
			e.looked = time.Time{}
		}
		switch {
		case err != nil:
			e.Status = statusOf(err, held, !e.looked.IsZero())
			e.pause = min(max(leastPause, 2*e.pause), mostPause)
			e.Next = now.Add(min(max(e.pause, oci.RetryAfter(err)), longestPause))
			return
		case closed > 0:
			e.Status, e.Next = Deferred, earlier(next, now.Add(closed))
		default:
			e.Status, e.Next = statusOf(nil, held, true), next
		}
		e.pause = 0
	})
	event := Event{Image: e.Image, Result: res, Took: took, Err: err}
	switch {
	case err != nil && !wasBad:
		event.Kind = Troubled
	case err == nil && res.Fetched > 0:
		event.Kind = Fetched
	case err == nil && wasBad:
		event.Kind = Recovered
	default:
		return
	}
	l.cfg.Tell(event)
}

// next is the next turn of an image with which all is well.
func (l *List) next(im Image, now time.Time) time.Time {
	at := now.Add(lookEvery)
	if due, found := l.due(im); found && !im.isDigest() {
		at = earlier(at, due)
	}
	if soonest := now.Add(leastPause); at.Before(soonest) { // a tag that is never believed, or cannot be asked for
		at = soonest
	}
	return at
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// change changes entries, and has Run look again.
func (l *List) change(f func()) {
	l.mu.Lock()
	f()
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Entries are the images of the list, by name.
func (l *List) Entries() []Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]Entry, 0, len(l.entries))
	for _, e := range l.entries {
		one := e.Entry
		if e.progress != nil {
			one.State = e.progress.Now()
		}
		all = append(all, one)
	}
	slices.SortFunc(all, func(a, b Entry) int { return cmp.Compare(a.Image.String(), b.Image.String()) })
	return all
}

// Totals counts the images by status.
func (l *List) Totals() Totals {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.total
	t.Err, t.Partial = l.readErr, l.partial
	t.Images = map[Status]int{Pending: 0, Fetching: 0, Warm: 0, Deferred: 0, Evicted: 0, Stale: 0, Missing: 0, Waiting: 0, Failed: 0}
	for _, e := range l.entries {
		t.Images[e.Status]++
	}
	return t
}

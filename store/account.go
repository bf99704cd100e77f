package store

import (
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"strings"
	"sync"
	"time"

	"entrepot/oci"
)

// ErrCannotKeep is what every reason has in common for which content cannot be
// kept although upstream may well deliver it: it can still be passed through.
var ErrCannotKeep = errors.New("cannot be kept")

// The reasons not to keep content. Each is an ErrCannotKeep.
var (
	// ErrNoRoom: the budget, or the space to leave free, is used up, and nothing
	// that may be evicted is left. It may be otherwise in a moment.
	ErrNoRoom = fmt.Errorf("no room in the data directory: %w", ErrCannotKeep)
	// ErrTooLarge: it would not fit if nothing else were held.
	ErrTooLarge = fmt.Errorf("larger than the data directory may become: %w", ErrCannotKeep)
	// ErrDisk: the disk failed (ENOSPC, EIO, EROFS, a short write), not upstream.
	ErrDisk = fmt.Errorf("the disk failed: %w", ErrCannotKeep)
)

// Headroom is disk space not to use up: bytes, or a fraction of the file system.
// If both are set they add up; the zero value is none.
type Headroom struct {
	Bytes    int64
	Fraction float64
}

// of is what to leave free of a file system; nothing of one whose size is not
// known.
func (h Headroom) of(total int64) int64 {
	if total <= 0 {
		return 0
	}
	return h.Bytes + int64(h.Fraction*float64(total))
}

// minBudget is the least that a budget may be: below it the 256 directories of
// blobs and a few records would be all that fits.
const minBudget = 4 << 20

// roomWait bounds how long a write waits for the sweep to make room.
const roomWait = 5 * time.Second

// account knows what the data directory takes on disk, in allocated blocks, and
// gives out what it still may take: whoever is about to make it larger takes
// room first. What it says is never less than the truth as long as nobody else
// copies files in, and is made exact by each walk.
//
// Three amounts add up: what lies there (settled), what is being written
// (writing: open fills and temporary files, charged before each write), and an
// estimate of how far directories grew since the last walk (names).
type account struct {
	budget int64 // 0 for none
	limit  int64 // of what may be taken; the rest is for what is found out only afterwards
	high   int64 // a sweep begins
	low    int64 // and ends

	shares   map[owner]float64 // of the budget; not changed after the start
	sharing  map[owner]string  // the upstreams that have shares
	headroom Headroom
	space    func() (total, free int64, err error)

	// places order changes of a directory against the walk that counts it. A
	// change holds its directory's place shared while it happens and is booked;
	// the walk holds it alone while it reads the directory. They are held across
	// system calls on purpose, which is why there are many: a cold directory of
	// some thousand files takes the walk long enough to notice. Nobody holds two.
	places [64]sync.RWMutex
	seed   maphash.Seed

	mu      sync.Mutex // guards the fields below
	settled int64
	writing int64
	names   int64
	fills   map[oci.Digest]int64 // open, by what each was promised: the walk leaves their files to writing
	walk    *walk                // the one that runs; nil if none does
	owners  map[owner]int64      // bytes by who filled them, as of the last walk and since

	total, free int64 // of the file system, when last asked
	spent       int64 // taken since then

	wanted  int64         // room that writers wait for
	begun   uint64        // sweeps
	done    uint64        // the last sweep that ended
	futile  time.Time     // until then nobody need ask for another: the last one got stuck
	changed chan struct{} // closed when waiting writers should look again
	poke    chan struct{} // wakes the keeper

	pass   int64         // more than this held: the state should say so
	passed chan struct{} // tells the keeper
}

func newAccount(cfg Config) (*account, error) {
	a := &account{
		budget: cfg.Budget, headroom: cfg.MinFree, space: cfg.space,
		shares: make(map[owner]float64), sharing: make(map[owner]string), seed: maphash.MakeSeed(), fills: make(map[oci.Digest]int64), owners: make(map[owner]int64),
		changed: make(chan struct{}), poke: make(chan struct{}, 1), pass: math.MaxInt64, passed: make(chan struct{}, 1),
	}
	if cfg.Budget != 0 && cfg.Budget < minBudget {
		return nil, fmt.Errorf("a budget of %d bytes holds next to nothing: give it %d or more, or 0 for no cap", cfg.Budget, minBudget)
	}
	a.limit = cfg.Budget - cfg.Budget/64 - 32<<10
	a.high = cfg.Budget - cfg.Budget/32
	a.low = cfg.Budget - cfg.Budget/16
	for upstream, share := range cfg.Shares {
		if share <= 0 || share > 1 {
			return nil, fmt.Errorf("a share of %v for %s: want a fraction of the budget, above 0 and at most 1", share, upstream)
		}
		a.shares[ownerOf(upstream)], a.sharing[ownerOf(upstream)] = share, upstream
	}
	a.look()
	return a, nil
}

// place is the lock that orders changes of a directory.
func (a *account) place(dir string) *sync.RWMutex {
	return &a.places[maphash.String(a.seed, dir)%uint64(len(a.places))]
}

func (a *account) held() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.heldLocked()
}

func (a *account) heldLocked() int64 { return a.settled + a.writing + a.names }

// fits reports whether n bytes would fit if nothing else were held.
func (a *account) fits(n int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.budget > 0 && (n > a.limit || blocks(n) > a.limit) {
		return false
	}
	return a.total == 0 || n <= a.total-a.headroom.of(a.total)
}

// look asks the file system how much is free.
func (a *account) look() {
	total, free, err := a.space()
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		total, free = 0, 0 // unknown: only the budget decides
	}
	a.total, a.free, a.spent = total, free, 0
}

// tight reports that the headroom is touched: nothing new may begin.
func (a *account) tight() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.shortLocked() > 0
}

// shortLocked is how many bytes are missing from the headroom.
func (a *account) shortLocked() int64 {
	headroom := a.headroom.of(a.total)
	if headroom == 0 {
		return 0
	}
	return headroom - (a.free - a.spent)
}

// take charges n bytes if there is room for them. reserve is for records, which
// are small: they may use part of what others must leave.
func (a *account) take(n int64, reserve bool) error {
	a.mu.Lock()
	headroom := a.headroom.of(a.total)
	stale := headroom > 0 && a.spent > headroom/16
	a.mu.Unlock()
	if stale {
		a.look()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.takeLocked(n, reserve)
}

// takeForState is take for what the keeper writes: of the headroom it may use
// all, since there is no other way to know later how much of it we gave back.
func (a *account) takeForState(n int64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.overLocked(n, true); err != nil {
		return err
	}
	a.chargeLocked(n)
	return nil
}

func (a *account) takeLocked(n int64, reserve bool) error {
	if err := a.overLocked(n, reserve); err != nil {
		return err
	}
	// What is under way may use half of the headroom before it is cut off.
	if short := a.shortLocked(); short > 0 && short+n > a.headroom.of(a.total)/2 {
		return fmt.Errorf("%w: %d bytes are free on the disk", ErrNoRoom, max(0, a.free-a.spent))
	}
	a.chargeLocked(n)
	return nil
}

// overLocked is an errFull if n bytes more are too many for the budget.
func (a *account) overLocked(n int64, reserve bool) error {
	limit := a.limit
	if reserve {
		limit += a.budget / 128
	}
	if a.budget > 0 && a.heldLocked()+n > limit {
		a.pokeLocked()
		return fmt.Errorf("%w: %d of %d bytes are held", errFull, a.heldLocked(), a.budget)
	}
	return nil
}

func (a *account) chargeLocked(n int64) {
	a.writing += n
	a.spent += n
	if a.budget > 0 && a.heldLocked() > a.high {
		a.pokeLocked()
	}
	if a.heldLocked() > a.pass {
		select {
		case a.passed <- struct{}{}:
		default:
		}
	}
}

// tellAbove has the keeper told once more than n bytes are held.
func (a *account) tellAbove(n int64) {
	a.mu.Lock()
	a.pass = n
	a.mu.Unlock()
}

// errFull: the budget is used up until something is evicted.
var errFull = fmt.Errorf("%w: the budget is used up", ErrNoRoom)

// room takes n bytes as take does, waiting for a sweep if it must: until a whole
// sweep has not helped, and no longer than roomWait.
func (a *account) room(n int64, reserve bool) error {
	err := a.take(n, reserve)
	if !errors.Is(err, errFull) {
		return err
	}
	a.mu.Lock()
	a.wanted += n
	mine := a.begun + 1
	switch {
	case a.done == 0:
		mine = 1 // there is only a guess, which the first walk corrects
	case time.Now().Before(a.futile):
		mine = 0
	}
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		a.wanted -= n
		a.mu.Unlock()
	}()
	timer := time.NewTimer(roomWait)
	defer timer.Stop()
	for {
		a.mu.Lock()
		err := a.takeLocked(n, reserve)
		changed, over := a.changed, a.done >= mine
		a.mu.Unlock()
		if !errors.Is(err, errFull) || over {
			return err
		}
		select {
		case <-changed:
		case <-timer.C:
			return err
		}
	}
}

// give returns n bytes that were taken.
func (a *account) give(n int64) {
	a.mu.Lock()
	a.writing -= n
	a.spent -= n
	a.wakeLocked()
	a.mu.Unlock()
}

// correct books a difference that was found out afterwards; it cannot be refused.
func (a *account) correct(n int64) {
	a.mu.Lock()
	a.writing += n
	if n < 0 {
		a.wakeLocked()
	} else if a.budget > 0 && a.heldLocked() > a.high {
		a.pokeLocked()
	}
	a.mu.Unlock()
}

// wakeLocked has waiting writers look again.
func (a *account) wakeLocked() {
	if a.wanted > 0 {
		close(a.changed)
		a.changed = make(chan struct{})
	}
}

// pokeLocked has the keeper look whether to sweep.
func (a *account) pokeLocked() {
	if time.Now().Before(a.futile) {
		return
	}
	select {
	case a.poke <- struct{}{}:
	default:
	}
}

// book records that what lies in dir has changed by n bytes. The caller holds
// dir's place.
func (a *account) book(dir string, n int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.settled += n
	if a.walk != nil && a.walk.counted(dir) {
		a.walk.total += n
	}
	if n < 0 {
		a.wakeLocked()
	}
}

// bookName records that a directory got an entry more. Directories do not
// shrink, so nothing takes this back but a walk.
func (a *account) bookName(name string) {
	a.mu.Lock()
	a.names += 2 * int64(len(name)-strings.LastIndexByte(name, '/')+8) // an entry, in a directory that is half full
	a.mu.Unlock()
}

// bookDir records that a directory of n bytes was made. The caller holds
// parent's place.
func (a *account) bookDir(parent, dir string, n int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.settled += n
	if w := a.walk; w != nil && w.counted(parent) {
		w.fresh[dir] = true // the walk has not seen it and will not
		w.total += n
	}
}

// own books bytes on the one that filled them.
func (a *account) own(o owner, n int64) {
	a.mu.Lock()
	a.owners[o] += n
	a.mu.Unlock()
}

// openFill notes that dg's fill is open, and charges the n bytes that it has.
func (a *account) openFill(dg oci.Digest, n int64) {
	a.mu.Lock()
	a.fills[dg] = 0
	a.writing += n
	a.mu.Unlock()
}

// promise keeps n bytes of the budget for dg's fill, which is open: of fills that
// do not fit together those are held that came first. Nothing is charged or evicted
// for it, since a size is only announced. ErrNoRoom if others were promised too much.
func (a *account) promise(dg oci.Digest, n int64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	others := -a.fills[dg]
	for _, promised := range a.fills {
		others += promised
	}
	if a.budget > 0 && others+blocks(n) > a.limit {
		return fmt.Errorf("%w: %d of %d bytes are promised to others", ErrNoRoom, others, a.budget)
	}
	a.fills[dg] = blocks(n)
	return nil
}

// closeFill takes back the n bytes that dg's fill is charged.
func (a *account) closeFill(dg oci.Digest, n int64) {
	a.mu.Lock()
	delete(a.fills, dg)
	a.writing -= n
	a.wakeLocked()
	a.mu.Unlock()
}

// beginSweep reports how many bytes a sweep should free, as far as we know, and
// whether it is due.
func (a *account) beginSweep() (need int64, due bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.begun++
	return a.excessLocked()
}

// excess is how many bytes lie above the low mark, with those that are waited
// for, and whether that is reason to begin a sweep.
func (a *account) excess() (need int64, due bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.excessLocked()
}

func (a *account) excessLocked() (need int64, due bool) {
	if a.budget == 0 {
		return 0, false
	}
	sum := a.heldLocked() + a.wanted
	return sum - a.low, sum > a.high || a.wanted > 0
}

// endSweep lets waiting writers see what it brought. After one that got stuck the
// next may begin only after a rest: what is protected does not change by being
// looked at.
func (a *account) endSweep(rest time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.done = a.begun
	a.futile = time.Now().Add(rest)
	a.wakeLocked()
}

// short is how many bytes are missing from the headroom, beside what is free
// and what the headroom is.
func (a *account) short() (short, free, headroom int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.shortLocked(), a.free - a.spent, a.headroom.of(a.total)
}

// used is what the file system holds, ours or not.
func (a *account) used() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.total - a.free
}

// size is that of the file system; 0 if unknown.
func (a *account) size() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.total
}

// filling is what is being written.
func (a *account) filling() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.writing
}

// aims are how many bytes a sweep looks for: need in all, of which those above
// their share come from the upstreams that have one.
func (a *account) aims(need int64) aims {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := aims{bytes: need, count: maxCandidates}
	for o, share := range a.shares {
		if over := a.owners[o] - int64(share*float64(a.budget)); over > 0 && a.budget > 0 {
			if out.over == nil {
				out.over = make(map[owner]int64)
			}
			out.over[o] = min(over, need)
		}
	}
	return out
}

func (a *account) stats() Stats {
	a.mu.Lock()
	defer a.mu.Unlock()
	return Stats{Held: a.heldLocked(), Budget: a.budget, Free: max(0, a.free-a.spent)}
}

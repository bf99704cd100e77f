// Package store keeps bytes by digest on disk: one gate that proves them, files
// that are still filling, a memory tier for the small and hot, and beside them
// the records of what repositories hold. The file system is its only database.
// It knows nothing of upstreams or freshness.
//
// Start with Disk; Fill is a blob on its way in.
package store

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"entrepot/oci"
)

// Config says where and how to keep things.
type Config struct {
	Dir      string        // the data directory; made if missing
	Memory   int64         // bytes of the memory tier; 0 turns it off
	LockWait time.Duration // how long to wait for another holder; 0 means 30 s

	// Budget is the hard cap on what everything below Dir takes on disk, in
	// allocated bytes: at least 4 MiB, or 0 for none.
	Budget int64
	// MinFree is disk space to leave to others: nothing new is taken in once it
	// is touched, and content is evicted while that brings it back.
	MinFree Headroom
	// Shares are fractions of Budget, by upstream. Nothing is kept free for them:
	// an upstream that holds more than its share merely loses content first.
	Shares map[string]float64
	// Upstreams are those that can be asked: of others it is not remembered that they
	// are away. nil: any.
	Upstreams []string
	// Offline are those that are not asked, by the settings: nothing that they gave is
	// evicted.
	Offline []string

	// Unlocked goes on where the file system has no usable lock. Two processes
	// on one directory then corrupt each other's fills.
	Unlocked bool
	// ScrubRate is how many bytes a second are hashed in the background to find
	// damage; 0 turns that off.
	ScrubRate int64

	// Warn is told what an operator should know; nil drops it.
	Warn func(message string, err error)

	// Faults, when set, may fail a file operation by name (see the Op
	// constants) before it happens. For tests.
	Faults func(op Op, name string) error

	space func() (total, free int64, err error) // of the file system; tests have their own
}

// Op names a file operation that can fail.
type Op string

// The operations that a fault can be put into.
const (
	OpCreate Op = "create"
	OpWrite  Op = "write"
	OpSync   Op = "sync"
	OpRename Op = "rename"
	OpRemove Op = "remove"
	OpRead   Op = "read" // of blobs and fills
)

// ShortWrite is a fault of OpWrite on a fill: only so many bytes are written.
type ShortWrite int

func (n ShortWrite) Error() string { return fmt.Sprintf("short write of %d bytes", int(n)) }

// version is the format of the data directory that this program writes.
const version = "1"

// Disk is a data directory. It is safe for concurrent use.
type Disk struct {
	root   *os.Root
	dir    string
	faults func(Op, string) error
	tested bool // faults may say something: hits do not make names up to ask it
	warn   func(string, error)
	lock   *os.File
	memory *memory

	markers *recent[string, Marker]
	recall  *recall
	tags    *recent[string, Tag]
	proofs  *recent[oci.Digest, proof]
	derived *recent[oci.Repository, struct{}] // whose markers were derived not long ago

	session   string // begins the names of our temporary files
	temporary atomic.Uint64

	account *account
	inUse   *inUse
	walking chan struct{} // holds one token while a walk runs
	counted chan struct{} // closed when the first walk is over

	deriving chan struct{} // holds one token while markers are derived

	away away

	pinned  atomic.Pointer[map[uint64]bool] // digests in brief; as of the last sweep or change of pins
	pinning sync.Mutex                      // held to work pinned out

	relief   relief // the keeper's
	saidHeld int64  // the keeper's: what the state says

	damaged      atomic.Int64 // files dropped because they were not what they should be
	evicted      atomic.Int64
	evictedBytes atomic.Int64

	proving proving

	life   context.Context //nolint:containedctx // of background work; ends with cancel
	cancel context.CancelFunc
	work   sync.WaitGroup // background work that Close waits for
}

// Open takes a data directory into use. It refuses a directory of another
// format, and one that another process holds. Waiting for that one ends with
// ctx, which what is opened does not depend on.
func Open(ctx context.Context, cfg Config) (*Disk, error) {
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	root, err := os.OpenRoot(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	d := &Disk{
		root: root, dir: cfg.Dir, faults: cfg.Faults, tested: cfg.Faults != nil, warn: cfg.Warn, session: "." + rand.Text() + ".",
		inUse: newInUse(), walking: make(chan struct{}, 1), counted: make(chan struct{}),
		deriving: make(chan struct{}, 1),
	}
	if d.faults == nil {
		d.faults = func(Op, string) error { return nil }
	}
	if d.warn == nil {
		d.warn = func(string, error) {}
	}
	if cfg.space == nil {
		cfg.space = func() (total, free int64, err error) { return Space(cfg.Dir) }
	}
	if err := d.open(ctx, cfg); err != nil {
		_ = d.release()
		return nil, fmt.Errorf("data directory %s: %w", cfg.Dir, err)
	}
	return d, nil
}

func (d *Disk) open(ctx context.Context, cfg Config) error {
	if err := d.takeLock(ctx, cfg); err != nil {
		return err
	}
	if err := d.unlessBroken(d.checkVersion()); err != nil {
		return err
	}
	var err error
	if d.account, err = newAccount(cfg); err != nil {
		return err
	}
	if err := d.loadHeld(); err != nil {
		return err
	}
	for _, dir := range []string{blobsDir, fillsDir, reposDir, pinsDir, stateDir} {
		if err := d.unlessBroken(d.makeDir(dir)); err != nil { // whatever the budget says
			return err
		}
	}
	d.saveHeld(false) // what it said may have been exact
	d.loadRelief()
	d.loadAway(&cfg)
	if err := d.unlessBroken(d.sweepFills()); err != nil {
		return err
	}
	if d.memory, err = newMemory(cfg.Memory); err != nil {
		return err
	}
	d.markers, d.recall = newRecent[string, Marker](16<<10, recheck, maphash.String), newRecall()
	d.tags = newRecent[string, Tag](16<<10, recheck, maphash.String)
	d.derived = newRecent[oci.Repository, struct{}](1<<10, deriveEvery, maphash.Comparable)
	d.proofs = newRecent[oci.Digest, proof](4<<10, 24*time.Hour, maphash.Comparable)
	d.proving.places, d.proving.running = make(chan struct{}, maxProving), make(map[oci.Digest]*hashing)
	d.life, d.cancel = context.WithCancel(context.Background())
	d.work.Go(func() { d.keep(d.life) })
	if cfg.ScrubRate > 0 {
		d.work.Go(func() { d.scrub(d.life, cfg.ScrubRate) })
	}
	return nil
}

// unlessBroken is nil instead of an error that a full disk, or one that takes
// nothing more, makes: what is held is served all the same, and what is written
// later can be written again.
func (d *Disk) unlessBroken(err error) error {
	if !IsBroken(err) {
		return err
	}
	d.warn("the data directory cannot be written: what it holds is served, all else is passed through", err)
	return nil
}

// IsBroken reports an error of a disk that is full, damaged or mounted to be read
// only, as opposed to one of its permissions.
func IsBroken(err error) bool {
	return slices.ContainsFunc([]error{syscall.ENOSPC, syscall.EDQUOT, syscall.EIO, syscall.EROFS}, func(one error) bool { return errors.Is(err, one) })
}

func (d *Disk) makeDir(name string) error {
	if err := d.faults(OpCreate, name); err != nil {
		return err
	}
	return d.root.MkdirAll(name, 0o755)
}

// Close ends background work and gives the directory back.
func (d *Disk) Close() error {
	d.proving.close()
	d.cancel()
	d.work.Wait()
	d.saveAway()
	d.saveHeld(d.isCounted())
	d.memory.close()
	return d.release()
}

func (d *Disk) release() error {
	var err error
	if d.lock != nil {
		if err = d.root.Remove("lock"); errors.Is(err, fs.ErrNotExist) || IsBroken(err) {
			err = nil // somebody tidied up, or nobody can: the next one writes its own name
		}
		err = errors.Join(err, d.lock.Close())
	}
	return errors.Join(err, d.root.Close())
}

// takeLock holds the directory itself by flock, so that the lock goes with the
// process however it ends; the file named lock only tells people who holds it.
func (d *Disk) takeLock(ctx context.Context, cfg Config) error {
	dir, err := d.root.Open(".")
	if err != nil {
		return err
	}
	wait := cfg.LockWait
	if wait == 0 {
		wait = 30 * time.Second
	}
	err = flock(ctx, dir, wait)
	switch {
	case ctx.Err() != nil:
		_ = dir.Close()
		return ctx.Err()
	case errors.Is(err, syscall.EWOULDBLOCK):
		_ = dir.Close()
		return fmt.Errorf("another process holds it: %s; stop it or choose another directory", d.holder())
	case err != nil && !cfg.Unlocked:
		_ = dir.Close()
		return fmt.Errorf("the file system cannot lock (%w); choose another directory", err)
	}
	d.lock = dir
	return d.unlessBroken(d.writeHolder())
}

func (d *Disk) writeHolder() error {
	if err := d.faults(OpCreate, "lock"); err != nil {
		return err
	}
	return d.root.WriteFile("lock", []byte(fmt.Sprintf("pid %d on %s\n", os.Getpid(), hostname())), 0o644)
}

// lockInterval is how often a lock that another process has is tried again.
const lockInterval = 100 * time.Millisecond

// flock locks dir, and waits so long for another process to let go. The error is
// EWOULDBLOCK if it does not.
func flock(ctx context.Context, dir *os.File, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	again := time.NewTicker(min(lockInterval, wait))
	defer again.Stop()
	for {
		err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-again.C:
		}
	}
}

func (d *Disk) holder() string {
	b, err := d.root.ReadFile("lock")
	if err != nil {
		return "it does not say which"
	}
	return strings.TrimSpace(string(b))
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "an unnamed host"
	}
	return name
}

func (d *Disk) checkVersion() error {
	b, err := d.root.ReadFile("VERSION")
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(b) == 0 { // empty: whoever made it was killed
		return d.writeVersion()
	}
	if err != nil {
		return err
	}
	if got := strings.TrimSpace(string(b)); got != version {
		return fmt.Errorf("has format version %q, this program reads and writes %q: use the program that made it, or an empty directory", got, version)
	}
	return nil
}

// writeVersion makes the file in one step: half of one would keep the next
// process out.
func (d *Disk) writeVersion() error {
	if err := d.faults(OpCreate, "VERSION"); err != nil {
		return err
	}
	tmp := d.session + "version"
	f, err := d.root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.WriteString(f, version+"\n")
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = d.root.Rename(tmp, "VERSION")
	}
	if err != nil {
		_ = d.root.Remove(tmp)
	}
	return err
}

// The layout. Temporary files start with a dot.
const (
	blobsDir = "blobs"
	fillsDir = "fills"
	reposDir = "repos"
	pinsDir  = "pins"
	stateDir = "state"
)

func blobName(d oci.Digest) string {
	return path.Join(blobsDir, d.Algorithm(), d.Hex()[:2], d.Hex())
}

func fillName(d oci.Digest) string { return path.Join(fillsDir, d.Algorithm(), d.Hex()) }

// readFile reads a small file, refusing one that is larger than limit.
func (d *Disk) readFile(name string, limit int64) ([]byte, error) {
	f, err := d.openToRead(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, cmp.Or(err, fmt.Errorf("%s is not a regular file", name))
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", name, limit)
	}
	return b, err
}

// readDir lists a directory by name; one that is not there is empty.
func (d *Disk) readDir(dir string) ([]fs.DirEntry, error) {
	entries, err := fs.ReadDir(d.root.FS(), dir)
	if isGone(err) {
		return nil, nil
	}
	return entries, err
}

// Stats is what the data directory holds.
type Stats struct {
	Held    int64 // allocated bytes: never less than the truth, exact after each walk
	Budget  int64 // the cap on Held; 0 for none
	Free    int64 // bytes free on the disk, as of a few seconds ago
	Memory  int64 // bytes in the memory tier
	Damaged int64 // files dropped so far because they were not what they should be
	Evicted int64 // blobs and fills evicted so far

	EvictedBytes int64
}

// Stats reports without touching the disk.
func (d *Disk) Stats() Stats {
	s := d.account.stats()
	s.Memory, s.Damaged = d.memory.held(), d.damaged.Load()
	s.Evicted, s.EvictedBytes = d.evicted.Load(), d.evictedBytes.Load()
	return s
}

package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"entrepot/oci"
)

// ErrMismatch says that the bytes of a fill are whole and not what its digest
// names.
var ErrMismatch = errors.New("the bytes are not what the digest names")

// ErrSizeChanged says that two answers disagree about a blob's size.
var ErrSizeChanged = errors.New("upstream changed its mind about the size")

// ErrSurplus says that upstream sent bytes beyond the size it announced.
var ErrSurplus = errors.New("upstream sent more bytes than it announced")

var errGivenUp = errors.New("the fill was given up")

// smallBlob is the size up to which readers of the whole wait for the proof
// before their first byte: it costs them nothing that they would notice, and a
// wrong body can then be fetched again without any reader having seen it.
const smallBlob = 64 << 10

// Fill is one blob on its way in: a sparse file, the spans of it that have
// landed, and the readers that follow. Streams write into it at any offset, at
// once; it becomes content through Commit, the gate, and in no other way.
//
// Whoever got the Fill from Disk.Fill closes it; readers stay valid after that.
type Fill struct {
	disk    *Disk
	digest  oci.Digest
	resumed oci.Repository // whose unproven bytes it began with; zero if with none
	origin  oci.Repository // the repository it comes from; its upstream is the only one whose unproven bytes it mixes
	round   *atomic.Int64  // grows each time bytes were found wrong and dropped; shared with the fills that had the file before

	mu       sync.Mutex // guards the fields below; never held across I/O
	file     *os.File
	name     string // of file, as long as it has one
	charged  int64  // on the account, at least what file takes on disk; 0 once it is closed or kept
	blocks   Spans  // the whole blocks that charged pays for
	refs     int    // the owner and the readers; the last one closes file
	size     int64  // -1 until an answer's headers told
	landed   Spans
	came     time.Time // when the last of them did; zero if none has since it began
	synced   Spans     // as recorded on disk
	hash     hash.Hash // of the first hashed bytes
	hashed   int64
	hashing  bool // somebody works on hash with mu released
	proven   bool
	err      error       // final, when it cannot be finished
	sick     error       // a sync failed, or reading back: what the disk holds is not to be trusted again
	cut      bool        // somebody made the file shorter: it may lack bytes that were hashed in hand
	checked  fs.FileInfo // what file looked like when it was found to hold what was hashed; Commit's alone
	changed  chan struct{}
	recorded time.Time // when spans were last put on record
}

// Fill starts the fill of a blob from a repository's upstream, or resumes the
// one on disk from its recorded spans. There must be one Fill of a digest at a
// time; that is the caller's to see to.
func (d *Disk) Fill(dg oci.Digest, origin oci.Repository) (*Fill, error) {
	f := &Fill{disk: d, digest: dg, origin: origin, name: fillName(dg), refs: 1, size: -1, hash: dg.Hash(), recorded: time.Now()}
	if d.account.tight() {
		return nil, fmt.Errorf("fill %s: %w: too little is free on the disk to begin", dg, ErrNoRoom)
	}
	d.inUse.hold(dg)
	rec, err := d.readSpans(dg)
	resume := err == nil && rec.Upstream == origin.Host && rec.fits(d) && !d.inUse.isLoose(dg)
	if !resume {
		err = f.clearAway()
	}
	if err == nil {
		err = f.openFile()
	}
	if err != nil {
		d.inUse.release(dg)
		return nil, fmt.Errorf("fill %s: %w", dg, onDisk(err))
	}
	f.round = d.inUse.beginFill(dg, !resume)
	if resume {
		f.size, f.landed, f.synced = rec.Size, rec.Spans, slices.Clone(rec.Spans)
		f.resumed = oci.Repository{Host: rec.Upstream, Path: rec.Repository}
		for _, s := range rec.Spans {
			f.blocks = f.blocks.Add(wholeBlocks(s))
		}
		_ = f.stretch(rec.Size) // or writes will tell
	}
	return f, nil
}

// clearAway removes what an earlier fill left. It is not written over: readers of
// that one may still have to read back what they gave out.
func (f *Fill) clearAway() error {
	f.disk.dropSpans(f.digest)
	if _, err := f.disk.remove(f.name); err != nil && !isGone(err) {
		return err
	}
	return nil
}

// openFile opens the fill's file, and moves what it takes on disk from what lies
// there to what is being written.
func (f *Fill) openFile() error {
	d, dir := f.disk, path.Dir(f.name)
	if err := d.mkdirAll(dir); err != nil {
		return err
	}
	place := d.account.place(dir)
	place.RLock()
	defer place.RUnlock()
	old, err := d.root.Lstat(f.name)
	if err == nil && !old.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", f.name)
	}
	if err := d.faults(OpCreate, f.name); err != nil {
		return err
	}
	if old != nil && old.Mode().Perm() == proofMode { // a crash came between the proof's mode and its name
		if err := d.root.Chmod(f.name, 0o644); err != nil {
			return err
		}
	}
	file, err := d.root.OpenFile(f.name, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		return errors.Join(err, file.Close())
	}
	if old != nil {
		d.account.book(dir, -allocated(old))
	} else {
		d.account.bookName(f.name)
	}
	f.file, f.charged = file, allocated(info)
	d.account.openFill(f.digest, f.charged)
	return nil
}

// SetSize tells the blob's size, from the headers of an upstream answer: nothing
// smaller than a true answer makes us decide about room. ErrSizeChanged if an
// earlier answer said otherwise, ErrTooLarge if the blob can never be kept.
func (f *Fill) SetSize(n int64) error {
	if !f.disk.account.fits(n) {
		return fmt.Errorf("fill %s: %d bytes: %w", f.digest, n, ErrTooLarge)
	}
	f.mu.Lock()
	known, landed := f.size, f.landed
	switch {
	case known >= 0 && known != n:
		f.mu.Unlock()
		return fmt.Errorf("%d bytes, then %d: %w", known, n, ErrSizeChanged)
	case known >= 0:
		f.mu.Unlock()
		return nil
	case len(landed) > 0 && landed[len(landed)-1].End > n:
		f.mu.Unlock()
		return ErrSurplus
	}
	f.size = n
	f.wakeLocked()
	f.mu.Unlock()
	return f.stretch(n)
}

// Reserve keeps room in the budget for all of the blob until f is closed, once the
// size is known. ErrNoRoom if what is open already was promised too much of it.
func (f *Fill) Reserve() error {
	n := f.Size()
	if n < 0 {
		return nil
	}
	if err := f.disk.account.promise(f.digest, n); err != nil {
		return fmt.Errorf("fill %s: %w", f.digest, err)
	}
	return nil
}

// stretch gives the file its final length at once, which costs no block: a file
// system that sees a file grow (XFS) allocates far ahead of its end.
func (f *Fill) stretch(n int64) error {
	if err := f.file.Truncate(n); err != nil {
		return fmt.Errorf("fill %s: %w", f.digest, onDisk(err))
	}
	return nil
}

// Size is the blob's size; -1 while unknown.
func (f *Fill) Size() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.size
}

// Gap is the first run of absent bytes inside within; empty if there is none.
func (f *Fill) Gap(within Span) Span {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.landed.Gap(within)
}

// Landed is the number of bytes that are present.
func (f *Fill) Landed() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.landed.Total()
}

// Came is when bytes landed last; zero if none has since it began.
func (f *Fill) Came() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.came
}

// Proven reports whether the bytes have been found to be what the digest names,
// though they may not be in their place yet.
func (f *Fill) Proven() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.proven
}

// Resumed is the repository under whose name the bytes came that the fill began
// with; zero if it began with none.
func (f *Fill) Resumed() oci.Repository { return f.resumed }

// WriteAt puts bytes from upstream where they belong and wakes the readers that
// wait for them. They are charged first: where there is no room it waits some
// seconds for eviction, then fails with ErrNoRoom. ErrDisk if the disk fails:
// with both, the fill may be given up and the blob passed through. ErrSurplus if
// the bytes lie beyond the size. Streams may call it at once, for spans that do
// not overlap.
func (f *Fill) WriteAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	surplus := f.size >= 0 && off+int64(len(p)) > f.size
	last := off+int64(len(p)) == f.size
	f.mu.Unlock()
	if surplus {
		return 0, ErrSurplus
	}
	if last { // it gives the file its length, whatever has been done to that
		f.noticeCut()
	}
	if err := f.charge(Span{off, off + int64(len(p))}); err != nil {
		return 0, err
	}
	err := f.disk.faults(OpWrite, f.name)
	if short, ok := errors.AsType[ShortWrite](err); ok {
		p = p[:min(len(p), int(short))]
	} else if err != nil {
		return 0, onDisk(err)
	}
	n, werr := f.file.WriteAt(p, off)
	if !f.land(p[:n], off) {
		return 0, ErrSurplus
	}
	return n, onDisk(cmp.Or(werr, err))
}

// charge takes room for the blocks that s touches and nobody paid for yet.
func (f *Fill) charge(s Span) error {
	s = wholeBlocks(s)
	f.mu.Lock()
	var missing Spans
	for rest := s; ; {
		gap := f.blocks.Gap(rest)
		if gap.Len() == 0 {
			break
		}
		missing = append(missing, gap)
		rest.Start = gap.End
	}
	n := missing.Total()
	f.blocks = f.blocks.Add(s)
	f.charged += n
	f.mu.Unlock()
	if n == 0 {
		return nil
	}
	err := f.disk.account.room(n, false)
	if err != nil {
		f.mu.Lock()
		f.charged -= n
		for _, gap := range missing {
			f.blocks = f.blocks.Remove(gap)
		}
		f.mu.Unlock()
		return fmt.Errorf("fill %s: %w", f.digest, err)
	}
	return nil
}

// wholeBlocks is s with the rest of the blocks at its ends.
func wholeBlocks(s Span) Span {
	return Span{s.Start - s.Start%blockSize, blocks(s.End)}
}

// reconcile corrects what is charged by what the file takes on disk, which
// includes what the file system needs to find its blocks. Downwards only if
// nobody writes.
func (f *Fill) reconcile(quiet bool) {
	info, err := f.file.Stat()
	if err != nil {
		return
	}
	f.mu.Lock()
	diff := allocated(info) - f.charged
	if f.charged == 0 || diff < 0 && !quiet {
		diff = 0
	}
	f.charged += diff
	f.mu.Unlock()
	if diff != 0 {
		f.disk.account.correct(diff)
	}
}

// land publishes bytes that are in the file, and hashes them while they are in
// hand if they are the next in order; Follow catches up on the others. It reports
// false, and publishes nothing, if the size has meanwhile been told and they lie
// beyond it.
func (f *Fill) land(p []byte, off int64) bool {
	f.mu.Lock()
	if f.size >= 0 && off+int64(len(p)) > f.size {
		f.mu.Unlock()
		return false
	}
	f.landed, f.came = f.landed.Add(Span{off, off + int64(len(p))}), time.Now()
	inOrder := off == f.hashed && !f.hashing
	f.hashing = f.hashing || inOrder
	f.wakeLocked()
	f.mu.Unlock()
	startWriteback(f.file, off, int64(len(p)))
	if !inOrder {
		return true
	}
	f.hash.Write(p)
	f.mu.Lock()
	f.hashed += int64(len(p))
	f.hashing = false
	f.wakeLocked()
	f.mu.Unlock()
	return true
}

// Follow keeps the hash up with the bytes that landed and records spans now and
// then, also while no more land, until every byte is hashed or ctx ends.
func (f *Fill) Follow(ctx context.Context) error {
	again := time.NewTicker(recordEvery)
	defer again.Stop()
	for {
		done, err := f.catchUp(ctx)
		if err != nil || done {
			return err
		}
		f.checkpoint(false)
		f.mu.Lock()
		changed := f.changedLocked()
		idle := f.landed.Reach(f.hashed) == f.hashed || f.hashing
		done = f.size >= 0 && f.hashed == f.size
		f.mu.Unlock()
		if !idle || done {
			continue
		}
		select {
		case <-changed:
		case <-again.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// catchUp hashes, from the file, what landed out of order.
func (f *Fill) catchUp(ctx context.Context) (done bool, err error) {
	var buf []byte
	for {
		f.mu.Lock()
		from, to := f.hashed, f.landed.Reach(f.hashed)
		done = f.size >= 0 && f.hashed == f.size
		if done || from == to || f.hashing {
			f.mu.Unlock()
			return done, nil
		}
		f.hashing = true
		f.mu.Unlock()
		if buf == nil {
			buf = make([]byte, 256<<10)
		}
		n, err := f.readAt(buf[:min(int64(len(buf)), to-from)], from)
		if int64(n) == to-from && errors.Is(err, io.EOF) {
			err = nil
		}
		f.hash.Write(buf[:n])
		f.mu.Lock()
		f.hashed += int64(n)
		f.hashing = false
		if err != nil {
			f.sick = err // or the next fill would end here too
		}
		f.wakeLocked()
		f.mu.Unlock()
		if err != nil {
			return false, fmt.Errorf("read back %s: %w", f.digest, onDisk(err))
		}
		if err := ctx.Err(); err != nil {
			return false, err
		}
	}
}

func (f *Fill) readAt(p []byte, off int64) (int, error) {
	if err := f.disk.readFault(f.digest, fillName); err != nil {
		return 0, err
	}
	return f.file.ReadAt(p, off)
}

// Commit is the gate. Every byte must be hashed. If they are what the digest
// names, and nobody has altered the file, readers get the last byte at once, and
// the file is synced and renamed to its place: an error then means that it could
// not be kept, not that it was wrong. If they are not, every byte is dropped,
// readers that got any are cut, and ErrMismatch comes back: the fill is empty and
// may be tried again.
func (f *Fill) Commit() error {
	f.mu.Lock()
	if f.size < 0 || f.hashed != f.size {
		f.mu.Unlock()
		return fmt.Errorf("commit %s: %d of %d bytes are hashed", f.digest, f.hashed, f.size)
	}
	if !f.digest.Matches(f.hash) {
		f.mu.Unlock()
		return errors.Join(fmt.Errorf("fill %s: %w", f.digest, ErrMismatch), f.Reset())
	}
	f.mu.Unlock()
	if err := f.checkFile(); err != nil {
		return errors.Join(fmt.Errorf("fill %s: %w: %w", f.digest, ErrMismatch, err), f.Reset())
	}
	f.mu.Lock()
	f.proven = true
	f.wakeLocked()
	f.mu.Unlock()
	if err := f.keep(); err != nil {
		return fmt.Errorf("keep %s: %w", f.digest, err)
	}
	return nil
}

func (f *Fill) keep() error {
	f.mu.Lock()
	sick := f.sick
	f.mu.Unlock()
	if sick != nil {
		return onDisk(sick)
	}
	if err := f.disk.sync(f.file, f.name); err != nil {
		return onDisk(err)
	}
	if err := f.checkAgain(); err != nil {
		return onDisk(err)
	}
	if err := f.file.Chmod(proofMode); err != nil {
		return onDisk(err)
	}
	to := blobName(f.digest)
	if err := f.disk.rename(f.name, to, allocated(f.checked)); err != nil {
		return onDisk(err)
	}
	f.mu.Lock()
	charged := f.charged
	f.name, f.charged = to, 0
	f.mu.Unlock()
	h := hint{owner: ownerOf(f.origin.Host), uses: 1}
	if now, err := f.file.Stat(); err == nil && now.ModTime().Equal(f.checked.ModTime()) { // or it is hashed before its first answer
		f.disk.mark(f.file, f.digest, h)
		f.disk.remember(f.digest, f.file)
	}
	f.disk.account.own(h.owner, allocated(f.checked))
	f.disk.account.closeFill(f.digest, charged)
	f.disk.dropSpans(f.digest)
	return nil
}

// Reset drops every byte. Readers that got some are cut. No stream may be
// writing.
func (f *Fill) Reset() error {
	f.disk.dropSpans(f.digest)
	f.mu.Lock()
	f.size, f.landed, f.synced = -1, nil, nil
	f.hash, f.hashed = f.digest.Hash(), 0
	f.blocks, f.cut = nil, false
	f.round.Add(1) // before the bytes go: who misses them must not take that for the disk's failure
	f.wakeLocked()
	f.mu.Unlock()
	err := f.file.Truncate(0)
	f.reconcile(true)
	return err
}

// Fail ends the fill: readers are cut with err. What landed stays on disk for
// the next one.
func (f *Fill) Fail(err error) {
	if errors.Is(err, io.EOF) {
		err = notTheEnd{err}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.proven && f.err == nil {
		f.err = err
		f.wakeLocked()
	}
}

// notTheEnd is an error that came of an io.EOF, as that of a connection does
// which was closed instead of answered. To a reader, who would take it for the
// end of the blob, it is none.
type notTheEnd struct{ error }

func (e notTheEnd) Is(target error) bool { return target != io.EOF && errors.Is(e.error, target) }
func (e notTheEnd) As(target any) bool   { return errors.As(e.error, target) }

// Close gives the fill up, and fails it if it is not proven. Unless it was kept,
// its spans are recorded so that another Fill can go on from them; without any
// worth recording its file is removed.
func (f *Fill) Close() error {
	f.Fail(errGivenUp)
	f.mu.Lock()
	kept := f.name == blobName(f.digest)
	worth := f.size >= minRecorded && len(f.landed) > 0 && !f.proven && f.sick == nil
	f.mu.Unlock()
	if kept {
		return f.unref()
	}
	if worth {
		f.checkpoint(true)
	} else {
		f.disk.dropSpans(f.digest)
	}
	f.mu.Lock()
	loose := f.refs > 1 && !slices.Equal(f.synced, f.landed)
	f.mu.Unlock()
	if loose {
		f.disk.inUse.setLoose(f.digest)
	}
	return errors.Join(f.putAway(worth), f.unref())
}

// putAway leaves the file to lie idle, or removes it.
func (f *Fill) putAway(worth bool) (err error) {
	a, dir := f.disk.account, path.Dir(f.name)
	place := a.place(dir)
	place.RLock()
	defer place.RUnlock()
	if !worth {
		if err = f.disk.faults(OpRemove, f.name); err == nil {
			err = f.disk.root.Remove(f.name)
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	stamp := hint{owner: ownerOf(f.origin.Host), uses: 1}.stamp(time.Now())
	_ = f.disk.root.Chtimes(f.name, stamp, stamp) // only advice
	if info, err := f.disk.root.Lstat(f.name); err == nil {
		a.book(dir, allocated(info))
	}
	f.mu.Lock()
	charged := f.charged
	f.charged = 0
	f.mu.Unlock()
	a.closeFill(f.digest, charged)
	return err
}

func (f *Fill) unref() error {
	f.mu.Lock()
	f.refs--
	last := f.refs == 0
	f.mu.Unlock()
	if !last {
		return nil
	}
	f.disk.inUse.release(f.digest)
	return f.file.Close()
}

func (f *Fill) wakeLocked() {
	if f.changed != nil {
		close(f.changed)
		f.changed = nil
	}
}

// changedLocked is closed at the next change.
func (f *Fill) changedLocked() <-chan struct{} {
	if f.changed == nil {
		f.changed = make(chan struct{})
	}
	return f.changed
}

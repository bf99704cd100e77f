package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
)

// step is how far a reader that follows a fill goes in one piece: larger steps
// cost more processor time and lag, smaller ones more system calls.
const step = 256 << 10

// FillReader reads a stretch of a fill, following it as bytes land.
type FillReader struct {
	fill  *Fill
	done  <-chan struct{} // the reader's caller has left
	cause func() error

	pos   atomic.Int64 // the next byte it wants; streams look at it
	end   int64        // -1 for a read to the end
	round int64        // of the fill, whose bytes it got; guarded by the fill's lock
	got   atomic.Bool  // it gave out bytes
	own   *os.File     // a descriptor with an offset of its own, for WriteTo

	// Starved is called each time that r begins to wait for a byte, if it is not
	// nil. It must not block.
	Starved func()
}

// Open reads length bytes from offset, or to the end if length is negative;
// a read to the end holds the last byte back until the whole is proven (and
// every byte of a small blob). It does not wait. ctx ends the reader.
func (f *Fill) Open(ctx context.Context, offset, length int64) *FillReader {
	r := &FillReader{fill: f, done: ctx.Done(), cause: func() error { return context.Cause(ctx) }, end: -1}
	r.pos.Store(offset)
	if length >= 0 {
		r.end = offset + length
	}
	f.mu.Lock()
	f.refs++
	r.round = f.round.Load()
	f.mu.Unlock()
	return r
}

// Wait returns once the next byte is there, with nil, or the end or an error is
// reached: io.EOF after the last byte.
func (r *FillReader) Wait() error {
	_, err := r.available()
	return err
}

// Wants is the span that r still has to read; End is -1 for "to the end". It
// wants nothing any more if it is about to be cut.
func (r *FillReader) Wants() (want Span, ok bool) {
	r.fill.mu.Lock()
	cut := r.cutLocked()
	r.fill.mu.Unlock()
	return Span{r.pos.Load(), r.end}, !cut
}

// AwaitsProof reports that r's next byte is there, and goes out only when the whole
// is proven.
func (r *FillReader) AwaitsProof() bool {
	f, pos := r.fill, r.pos.Load()
	f.mu.Lock()
	defer f.mu.Unlock()
	reach := f.landed.Reach(pos)
	return r.end < 0 && !f.proven && f.size >= 0 && reach > pos && f.unprovenLimitLocked(reach) <= pos
}

// cutLocked says that r gave out bytes that were found wrong.
func (r *FillReader) cutLocked() bool { return r.round != r.fill.round.Load() && r.got.Load() }

// isOutdated reports that the bytes were dropped since r last looked: that they
// cannot be read is no failure of the disk, and available says what it means.
func (r *FillReader) isOutdated() bool {
	r.fill.mu.Lock()
	defer r.fill.mu.Unlock()
	return r.round != r.fill.round.Load()
}

// available waits for bytes and returns how many can be read at once.
func (r *FillReader) available() (int64, error) {
	f := r.fill
	for {
		f.mu.Lock()
		n, err := r.availableLocked()
		if n > 0 || err != nil {
			f.mu.Unlock()
			return n, err
		}
		changed := f.changedLocked()
		f.mu.Unlock()
		if r.Starved != nil {
			r.Starved()
		}
		select {
		case <-changed:
		case <-r.done:
			return 0, r.cause()
		}
	}
}

// availableLocked returns 0 and no error while the next byte is not there.
func (r *FillReader) availableLocked() (int64, error) {
	f, pos := r.fill, r.pos.Load()
	if f.err != nil {
		return 0, f.err
	}
	if r.cutLocked() {
		return 0, fmt.Errorf("fill %s: %w", f.digest, ErrMismatch)
	}
	r.round = f.round.Load()
	end := r.end
	if f.size >= 0 && (end < 0 || end > f.size) {
		end = f.size
	}
	whole := r.end < 0
	if end >= 0 && pos >= end && (!whole || f.proven || end > 0) {
		return 0, io.EOF // an empty blob ends only when it is proven to be empty
	}
	reach := f.landed.Reach(pos)
	if end >= 0 {
		reach = min(reach, end)
	}
	if whole && !f.proven {
		reach = min(reach, f.unprovenLimitLocked(reach))
	}
	return max(0, reach-pos), nil
}

// unprovenLimitLocked is where a reader of the whole stops until the proof: one
// byte before the end, which may be any byte while the size is unknown.
func (f *Fill) unprovenLimitLocked(reach int64) int64 {
	switch {
	case f.size < 0:
		return reach - 1
	case f.size <= smallBlob:
		return 0
	}
	return f.size - 1
}

func (r *FillReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := r.available()
	if err != nil {
		return 0, err
	}
	m, err := r.fill.readAt(p[:min(int64(len(p)), n)], r.pos.Load())
	r.advance(int64(m))
	if err != nil && (m == 0 || !errors.Is(err, io.EOF)) {
		if m == 0 && r.isOutdated() {
			return r.Read(p)
		}
		return m, fmt.Errorf("read %s: %w", r.fill.digest, onDisk(noEOF(err)))
	}
	return m, nil
}

// WriteTo hands present spans to w piece by piece from a descriptor of its own,
// so that a TCP connection can have the kernel send them. ErrDisk is the file's
// failure, or the fill's; any other error is the fill's or w's.
func (r *FillReader) WriteTo(w io.Writer) (written int64, err error) {
	if err := r.openOwn(); err != nil {
		return io.Copy(w, struct{ io.Reader }{r})
	}
	for {
		n, err := r.available()
		if errors.Is(err, io.EOF) {
			return written, nil
		}
		if err != nil {
			return written, err
		}
		if err := r.fill.disk.readFault(r.fill.digest, fillName); err != nil {
			return written, onDisk(err)
		}
		m, err := io.CopyN(w, r.own, min(n, step))
		r.advance(m)
		written += m
		if (errors.Is(err, io.EOF) || isRead(err)) && r.isOutdated() {
			continue
		}
		if errors.Is(err, io.EOF) || isRead(err) {
			return written, onDisk(noEOF(err))
		}
		if err != nil {
			return written, err
		}
	}
}

// openOwn opens the fill's file anew. Its name changes once, when it is kept.
func (r *FillReader) openOwn() (err error) {
	f := r.fill
	for range 2 {
		f.mu.Lock()
		name := f.name
		f.mu.Unlock()
		if r.own, err = f.disk.openToRead(name); err == nil {
			break
		}
	}
	if err != nil {
		return err
	}
	if !sameFile(r.own, f.file) { // removed and replaced under our feet
		return errors.Join(os.ErrNotExist, r.own.Close())
	}
	_, err = r.own.Seek(r.pos.Load(), io.SeekStart)
	return err
}

func sameFile(a, b *os.File) bool {
	ai, aerr := a.Stat()
	bi, berr := b.Stat()
	return aerr == nil && berr == nil && os.SameFile(ai, bi)
}

func (r *FillReader) advance(n int64) {
	if n > 0 {
		r.got.Store(true)
		r.pos.Add(n)
	}
}

// Pos is the offset of the next byte.
func (r *FillReader) Pos() int64 { return r.pos.Load() }

// CopyBack writes the bytes from offset from up to Pos to w, as r has given them
// out or might have, if all of them are there. They stay so when the fill has
// failed, also while another one goes on with its file: ErrMismatch once they were
// found wrong and dropped.
func (r *FillReader) CopyBack(w io.Writer, from int64) error {
	f, pos := r.fill, r.pos.Load()
	if from >= pos {
		return nil
	}
	if err := r.has(from, pos); err != nil {
		return err
	}
	if err := f.disk.readFault(f.digest, fillName); err != nil {
		return onDisk(err)
	}
	if n, err := io.Copy(w, io.NewSectionReader(f.file, from, pos-from)); err != nil || n < pos-from {
		return onDisk(noEOF(cmp.Or(err, io.EOF)))
	}
	return r.has(from, pos) // they may have changed meanwhile
}

// has is nil if the bytes that r saw in a span are in the file. Whoever goes on
// with the file writes where nothing is on record, and has a file of his own if
// the readers before him have more than that.
func (r *FillReader) has(from, to int64) error {
	f := r.fill
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case r.round != f.round.Load():
		return fmt.Errorf("fill %s: %w", f.digest, ErrMismatch)
	case f.landed.Reach(from) < to:
		return fmt.Errorf("fill %s: some bytes before %d are not there", f.digest, to)
	}
	return nil
}

// Close ends the reading.
func (r *FillReader) Close() error {
	var err error
	if r.own != nil {
		err = r.own.Close()
	}
	return errors.Join(err, r.fill.unref())
}

// noEOF keeps a file that is shorter than its spans from looking like an end.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

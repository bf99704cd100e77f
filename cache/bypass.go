package cache

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"entrepot/oci"
	"entrepot/store"
)

// given is what somebody who goes past the disk has of the bytes before.
type given struct {
	from     int64                                 // the client has all from here on
	copyBack func(w io.Writer, offset int64) error // the bytes from offset on, as they are on disk
}

// openBypass streams a blob through without keeping it, together with others who
// want it now. has is nil if the client has nothing yet.
func (b *blob) openBypass(ctx context.Context, offset, length int64, why string, has *given) (oci.Reader, error) {
	r, err := b.startBypass(ctx, offset, length, why, has)
	if err != nil {
		return nil, err
	}
	return r, nil
}

// openProof streams what is held, but not for this repository, which gets a right to it
// once all of it has come from where its own manifest places it.
func (b *blob) openProof(ctx context.Context, offset, length int64) (oci.Reader, error) {
	r, err := b.startBypass(ctx, offset, length, "held for another repository", nil)
	if err != nil {
		return nil, err
	}
	r.outcome.Proves = r.hash != nil
	return r, nil
}

func (b *blob) startBypass(ctx context.Context, offset, length int64, why string, has *given) (*bypassReader, error) {
	r := &bypassReader{blob: b, offset: offset, patched: has != nil}
	from := offset
	if length < 0 { // to prove a read to the end, all of it must pass through the hash
		r.hash, r.dg = b.dg.Hash(), b.dg
		if offset > 0 && (has == nil || has.copyBack(r.hash, 0) != nil) {
			r.hash.Reset()
			from = 0
		}
	}
	var err error
	if r.src, err = b.followPast(ctx, from, length, has != nil || b.failed); err != nil {
		return nil, err
	}
	if err := r.skipTo(from, has); err != nil {
		return nil, errors.Join(err, r.src.Close())
	}
	r.outcome = oci.Outcome{Cache: oci.Bypass, Checked: time.Now(), Why: why, Debt: b.c.debts.of(b.dg)}
	return r, nil
}

// proven notes that all the bytes came from where repo's own manifest places
// them. (What upstream says of its own needs no such proof.)
func (b *blob) proven() {
	if size, err := b.c.disk.Size(b.dg); err == nil && b.isElsewhere() {
		b.markProven(size)
	}
}

// skipTo drops what comes before the offset, which the hash must see: as upstream
// sends it, but as the client was given it where it was.
func (r *bypassReader) skipTo(from int64, has *given) error {
	unseen := r.offset
	if has != nil {
		unseen = max(from, has.from)
	}
	err := r.discard(unseen-from, r.fetch)
	if err == nil && r.hash != nil && unseen < r.offset {
		if err := has.copyBack(r.hash, unseen); err != nil {
			return fmt.Errorf("what the client has cannot be proven: %w", err)
		}
		err = r.discard(r.offset-unseen, r.src.Read)
	}
	return err
}

func (r *bypassReader) discard(n int64, read readerFunc) error {
	if _, err := io.CopyN(io.Discard, read, n); err != nil {
		return fmt.Errorf("skip to offset %d: %w", r.offset, unexpected(err))
	}
	return nil
}

// bypassReader passes upstream's bytes on. On a read to the end it gives out the
// last byte only when all of them make the digest.
type bypassReader struct {
	blob    *blob
	src     *follower
	offset  int64
	outcome oci.Outcome
	patched bool // it goes on what the client had from disk

	dg     oci.Digest
	hash   hash.Hash // nil for a read that cannot complete a copy
	last   [1]byte   // the byte that is held back
	holds  bool      // there is one
	proven bool
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// fetch reads from upstream through the hash.
func (r *bypassReader) fetch(p []byte) (int, error) {
	n, err := r.src.Read(p)
	if r.hash != nil {
		r.hash.Write(p[:n])
	}
	return n, err
}

func (r *bypassReader) Read(p []byte) (int, error) {
	switch {
	case len(p) == 0:
		return 0, nil
	case r.hash == nil:
		return r.readStretch(p)
	case r.proven:
		return 0, io.EOF
	}
	for {
		n, err := r.readWhole(p)
		if n > 0 || err != nil {
			return n, err
		}
	}
}

func (r *bypassReader) readStretch(p []byte) (int, error) {
	n, err := r.fetch(p)
	if errors.Is(err, io.EOF) && r.src.end > r.src.at {
		err = io.ErrUnexpectedEOF // the blob ends before the stretch
	}
	return n, err
}

// readWhole puts what it reads behind the byte held back and holds the new last
// one. It may have nothing to give out.
func (r *bypassReader) readWhole(p []byte) (int, error) {
	held := 0
	if r.holds {
		held = copy(p, r.last[:])
	}
	into := p[held:]
	if len(into) == 0 {
		into = r.last[:]
	}
	n, err := r.fetch(into)
	switch {
	case errors.Is(err, io.EOF):
		if !r.dg.Matches(r.hash) {
			return 0, r.wrong()
		}
		r.blob.proven()
		r.blob.c.doubts.settle(membership{r.blob.repo, r.blob.dg})
		r.proven = true
		if held == 0 {
			return 0, io.EOF
		}
		return held, nil
	case n == 0 || err != nil:
		return 0, err
	}
	r.last[0], r.holds = into[n-1], true
	return held + n - 1, nil
}

// wrong is the error of bytes that do not make the digest. Those that the client had
// from disk may be to blame for it.
func (r *bypassReader) wrong() error {
	err := &oci.Error{Code: oci.BadUpstream, Detail: fmt.Sprintf("upstream's bytes are not what %s names", r.dg), Err: store.ErrMismatch}
	if !r.patched {
		r.src.doubt()
		r.blob.noteFailure(DigestKind, err)
	}
	return err
}

func (r *bypassReader) Close() error  { return r.src.Close() }
func (r *bypassReader) Offset() int64 { return r.offset }
func (r *bypassReader) Size() int64   { return r.src.size() }

// Outcome counts what it has cost so far.
func (r *bypassReader) Outcome() oci.Outcome {
	out := r.outcome
	out.Spent += r.src.spent()
	return out
}

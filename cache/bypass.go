package cache

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"

	"entrepot/oci"
)

// given is what somebody who goes past the disk has of the bytes before.
type given struct {
	from     int64                                 // the client has all from here on
	copyBack func(w io.Writer, offset int64) error // the bytes from offset on, as they are on disk
}

// openBypass streams a blob through without keeping it. The number of such
// transfers is bounded: each is a copy of its own on the line from upstream.
// has is nil if the client has nothing yet.
func (b *blob) openBypass(ctx context.Context, offset, length int64, why string, has *given) (oci.Reader, error) {
	select {
	case b.c.bypasses <- struct{}{}:
	default:
		return nil, oci.Errorf(oci.Unavailable, "%s cannot be kept, and %d transfers that are not kept are running already", b.dg, cap(b.c.bypasses))
	}
	r, err := b.startBypass(ctx, offset, length, has)
	if err != nil {
		<-b.c.bypasses
		return nil, err
	}
	r.outcome.Cache, r.outcome.Why = oci.Bypass, why
	return r, nil
}

func (b *blob) startBypass(ctx context.Context, offset, length int64, has *given) (*bypassReader, error) {
	up, err := b.remote(ctx, b.ask)
	if err != nil {
		return nil, err
	}
	r := &bypassReader{offset: offset, end: length, release: sync.OnceFunc(func() { <-b.c.bypasses })}
	from := offset
	if length < 0 { // to prove a read to the end, all of it must pass through the hash
		r.hash, r.dg = b.dg.Hash(), b.dg
		r.prove = b.proven
		if offset > 0 && (has == nil || has.copyBack(r.hash, 0) != nil) {
			r.hash.Reset()
			from = 0
		}
	}
	if r.src, err = up.Open(ctx, from, length); err != nil {
		return nil, err
	}
	r.outcome = r.src.Outcome()
	if err := r.skipTo(from, has); err != nil {
		return nil, errors.Join(err, r.src.Close())
	}
	return r, nil
}

// proven notes that all the bytes came from where repo's own manifest places
// them. (What upstream says of its own needs no such proof.)
func (b *blob) proven() {
	if size, err := b.c.disk.Size(b.dg); err == nil && b.isElsewhere() {
		b.markProven(size)
	}
}

// skipTo drops what comes before from, which the hash has seen or need not see,
// and then what comes before the offset, which it must: as upstream sends it,
// but as the client was given it where it was.
func (r *bypassReader) skipTo(from int64, has *given) error {
	unseen := r.offset
	if has != nil {
		unseen = max(from, has.from)
	}
	err := r.discard(from-r.src.Offset(), r.src.Read)
	if err == nil {
		err = r.discard(unseen-from, r.fetch)
	}
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
	src     oci.Reader
	offset  int64
	outcome oci.Outcome
	release func()

	end    int64  // bytes still to give out; negative for a read to the end
	prove  func() // called when all of it has made the digest
	dg     oci.Digest
	hash   hash.Hash // nil for a read that cannot complete a copy
	last   []byte    // the byte that is held back
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
	if len(p) == 0 {
		return 0, nil
	}
	if r.hash == nil {
		return r.readStretch(p)
	}
	if r.proven {
		n := copy(p, r.last)
		r.last = r.last[n:]
		if n == 0 {
			return 0, io.EOF
		}
		return n, nil
	}
	return r.readWhole(p)
}

func (r *bypassReader) readStretch(p []byte) (int, error) {
	if r.end == 0 {
		return 0, io.EOF
	}
	n, err := r.fetch(p[:min(int64(len(p)), r.end)])
	r.end -= int64(n)
	if errors.Is(err, io.EOF) && r.end > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// readWhole puts what it reads behind the byte held back and holds the new last
// one.
func (r *bypassReader) readWhole(p []byte) (int, error) {
	buf := make([]byte, len(p))
	n, err := r.fetch(buf)
	pending := append(r.last, buf[:n]...)
	if errors.Is(err, io.EOF) {
		if !r.dg.Matches(r.hash) {
			return 0, oci.Errorf(oci.BadUpstream, "upstream's bytes are not what %s names", r.dg)
		}
		r.prove()
		r.proven, r.last = true, pending
		return r.Read(p)
	}
	if err != nil {
		return 0, err
	}
	if len(pending) == 0 {
		return 0, nil
	}
	m := copy(p, pending[:len(pending)-1])
	r.last = append([]byte(nil), pending[m:]...)
	return m, nil
}

func (r *bypassReader) Close() error {
	r.release()
	return r.src.Close()
}

func (r *bypassReader) Offset() int64        { return r.offset }
func (r *bypassReader) Size() int64          { return r.src.Size() }
func (r *bypassReader) Outcome() oci.Outcome { return r.outcome }

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

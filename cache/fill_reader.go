package cache

import (
	"context"
	"errors"
	"io"
	"sync"

	"entrepot/oci"
	"entrepot/store"
)

// fillReader reads a fill for one request. When the disk cannot take the rest,
// it goes on with what upstream sends, past the disk.
type fillReader struct {
	*store.FillReader
	fill           *fill
	blob           *blob
	ctx            context.Context //nolint:containedctx // the request's: the reader lives in it
	offset, length int64
	chunks         int64 // guarded by the fill's lock: where the last of those begins that read chunks with it
	chunk          int64 // likewise: how far behind the nearest of them begins; 0 without one
	outcome        oci.Outcome
	past           oci.Reader // set once the disk gave up
	parting        sync.Once  // from the fill
	closing        sync.Once
}

func (r *fillReader) Offset() int64 { return r.offset }
func (r *fillReader) Size() int64   { return r.fill.file.Size() }

// Outcome counts, for the one who started the fill, what it has cost so far.
func (r *fillReader) Outcome() oci.Outcome {
	out := r.outcome
	if out.Cache == oci.Miss {
		out.Spent += int(r.fill.spent.Load())
	}
	return out
}

func (r *fillReader) Read(p []byte) (int, error) {
	if r.past != nil {
		return r.past.Read(p)
	}
	n, err := r.FillReader.Read(p)
	switch {
	case !isDisk(err):
		return n, err
	case n > 0:
		return n, nil // the next time it fails at once
	}
	if err := r.goPast(err); err != nil {
		return 0, err
	}
	return r.past.Read(p)
}

// isDisk reports a failure that a reader can get past by asking upstream.
func isDisk(err error) bool {
	return errors.Is(err, errCannotKeep) || errors.Is(err, store.ErrDisk)
}

// WriteTo lets the kernel send what is on disk.
func (r *fillReader) WriteTo(w io.Writer) (int64, error) {
	var n int64
	if r.past == nil {
		var err error
		if n, err = r.FillReader.WriteTo(w); !isDisk(err) {
			return n, err
		}
		if err := r.goPast(err); err != nil {
			return n, err
		}
	}
	m, err := io.Copy(w, struct{ io.Reader }{r.past})
	return n + m, err
}

// goPast opens the rest at upstream. What r gave out is proven with it: if that
// cannot be read back, upstream's bytes would be proven instead of those, so r is
// cut.
func (r *fillReader) goPast(why error) (err error) {
	left := r.length
	if left >= 0 {
		left -= r.Pos() - r.offset
	}
	r.fill.leave(r)
	r.past, err = r.blob.openBypass(r.ctx, r.Pos(), left, why.Error(), &given{r.offset, r.CopyBack})
	return errors.Join(err, r.part()) // its file may take up space though it has no name any more
}

// part takes the reader off the fill, which goes on.
func (r *fillReader) part() (err error) {
	r.parting.Do(func() {
		r.fill.leave(r)
		err = r.FillReader.Close()
	})
	return err
}

// Close gives the reader back. Where nobody waits for the bytes, and all were read, it
// returns when they are in place: they were fetched for that.
func (r *fillReader) Close() (err error) {
	r.closing.Do(func() {
		isAll := r.past == nil && r.Pos() == r.Size()
		err = r.part()
		if r.past != nil {
			err = errors.Join(err, r.past.Close())
		}
		if isAll && r.blob.ask.Background {
			_ = r.fill.awaitEnd(r.ctx)
		}
	})
	return err
}

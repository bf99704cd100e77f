package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"entrepot/oci"
	"entrepot/store"
)

// resumer reads a stretch of a blob from upstream. Where the transfer breaks
// another goes on at the byte reached, as often and as patiently as a fill's.
// Read never returns bytes together with an error, and io.EOF at the stretch's
// or the blob's end only, as far as upstream tells where that is.
type resumer struct {
	blob     *blob
	ctx      context.Context //nolint:containedctx // its owner's: the transfers live in it
	at, end  int64           // the next byte, and the stretch's end or forever
	size     int64           // of the blob; -1 until an answer told
	begun    bool            // the client has the headers: giving up would cut it
	progress bool            // bytes came since the last failure
	tried    time.Time       // when the last transfer began
	retries  retries
	up       oci.Blob
	src      oci.Reader // nil between two transfers
	spent    int        // requests to upstream
	debt     *oci.Debt
}

// resume reads length bytes from at, or to the end if length is negative. It
// returns when upstream has begun to answer.
func (b *blob) resume(ctx context.Context, at, length int64, begun bool) (*resumer, error) {
	r := &resumer{blob: b, ctx: ctx, at: at, end: forever, size: -1, begun: begun, debt: b.c.debtOf(b.dg, b.ask)}
	if length >= 0 {
		r.end = at + length
	}
	return r, r.ensure()
}

// ensure opens transfers until one stands at the byte reached.
func (r *resumer) ensure() error {
	for r.src == nil {
		if err := r.open(); err == nil {
			return nil
		} else if err := r.pause(err); err != nil {
			return err
		}
	}
	return nil
}

func (r *resumer) open() (err error) {
	r.tried = time.Now()
	if r.up == nil {
		if r.up, err = r.blob.remote(r.ctx, r.blob.ask); err != nil {
			return err
		}
	}
	length := int64(-1)
	if r.end != forever {
		length = r.end - r.at
	}
	src, err := r.up.Open(r.ctx, r.at, length)
	if err != nil {
		r.spent++ // at least
		return err
	}
	r.spent += src.Outcome().Spent
	r.blob.c.spoke(r.blob.place().Host, src.Outcome(), nil)
	if err := r.align(src); err != nil {
		return errors.Join(err, src.Close())
	}
	r.src = src
	return nil
}

// align skips what upstream sends from before the byte reached.
func (r *resumer) align(src oci.Reader) error {
	switch n := src.Size(); {
	case r.size >= 0 && n >= 0 && n != r.size:
		return fmt.Errorf("%d bytes, then %d: %w", r.size, n, store.ErrSizeChanged)
	case n >= 0:
		r.size = n
	}
	n, err := io.CopyN(io.Discard, src, r.at-src.Offset())
	r.debt.Owe(n)
	if err != nil {
		return fmt.Errorf("skip to offset %d: %w", r.at, unexpected(err))
	}
	return nil
}

// pause waits before the next try, or returns the error that ends it all.
func (r *resumer) pause(err error) error {
	if r.ctx.Err() != nil {
		return err
	}
	wait, err := r.retries.judge(err, r.tried, r.progress, r.begun)
	if err != nil {
		return err
	}
	r.progress = false
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-r.ctx.Done():
		return context.Cause(r.ctx)
	}
}

// isComplete reports that no more is to come.
func (r *resumer) isComplete() bool {
	return r.at >= r.end || r.size >= 0 && r.at >= r.size
}

func (r *resumer) Read(p []byte) (int, error) {
	for {
		if r.at >= r.end {
			return 0, io.EOF
		}
		if err := r.ensure(); err != nil {
			return 0, err
		}
		n, err := r.src.Read(p[:min(int64(len(p)), r.end-r.at)])
		if n > 0 {
			r.at += int64(n)
			r.debt.Owe(int64(n))
			r.progress, r.begun = true, true
			return n, nil // the error comes again
		}
		switch {
		case err == nil:
			continue
		case r.isComplete(), errors.Is(err, io.EOF) && r.size < 0 && r.end == forever:
			return 0, io.EOF // whether these are the bytes only their digest tells
		}
		err = errors.Join(unexpected(err), r.src.Close())
		r.src = nil
		if err := r.pause(err); err != nil {
			return 0, err
		}
	}
}

func (r *resumer) Close() error {
	if r.src == nil {
		return nil
	}
	return r.src.Close()
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

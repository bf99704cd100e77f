package store

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"

	"entrepot/oci"
)

// proof is a file that was known to be right, as it was then. While it looks the
// same it need not be hashed again, though no marker may tell its size.
type proof struct{ file fs.FileInfo }

// isUnchanged reports that two looks saw the same file, which nobody wrote to,
// nor changed the mode, times or links of, in between. A number alone tells no
// file: it is given out again as soon as its file is removed.
func isUnchanged(before, after fs.FileInfo) bool {
	was, _ := changeTime(before)
	is, _ := changeTime(after)
	return os.SameFile(before, after) && before.Size() == after.Size() && before.ModTime().Equal(after.ModTime()) && was.Equal(is)
}

const (
	// ahead is how far in the future the time of a proven file is set, at most;
	// at least it is a second less.
	ahead = 2 * time.Second
	// behind is how far the kernel's clock, which sets the change time, may be
	// behind ours, at most: a tick or two.
	behind = 100 * time.Millisecond
)

// isOurs reports that we were the last to change a file, or its inode, and that it
// was right then: its time has a hint in it, and lies after the time of that
// change. What is written, and what is copied with the times of another file (cp
// -a, rsync -a, tar), is changed when it says or later, and nobody can choose
// when an inode changed. A link or a chown undoes the mark, and costs one hash.
func isOurs(info fs.FileInfo) bool {
	changed, ok := changeTime(info)
	if !ok || hintOf(info.ModTime()) == (hint{}) {
		return false
	}
	lead := info.ModTime().Sub(changed)
	return lead > 0 && lead <= ahead+behind
}

// mark sets the time of a blob's file that is known to be right. It is the last
// thing to be done to the file. Losing this says that the content was used
// longer ago than it was, and may cost a hash.
func (d *Disk) mark(f *os.File, dg oci.Digest, h hint) {
	_ = setTimes(f, d.root, blobName(dg), h.proving(time.Now()))
}

// maxProving bounds how many large files are hashed at once before they are
// served.
const maxProving = 4

// proving are the large files that are being hashed before their first answer.
type proving struct {
	places  chan struct{}
	mu      sync.Mutex // guards what follows
	closed  bool       // nothing may begin any more
	running map[oci.Digest]*hashing
}

func (p *proving) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
}

// hashing is one of them.
type hashing struct {
	done chan struct{} // closed when the others are set
	file fs.FileInfo
	err  error
}

// proveOnce hashes a file once for all who want it meanwhile. It goes on when
// they have left: one that takes longer than a client waits would otherwise be
// hashed for each, and served to none.
func (d *Disk) proveOnce(ctx context.Context, dg oci.Digest, info fs.FileInfo) error {
	p := &d.proving
	p.mu.Lock()
	h := p.running[dg]
	switch {
	case h != nil:
	case p.closed:
		p.mu.Unlock()
		return fmt.Errorf("hash %s: the data directory is being closed: %w", dg, context.Canceled)
	default:
		h = &hashing{done: make(chan struct{})}
		p.running[dg] = h
		d.work.Go(func() {
			h.file, h.err = d.proveAlone(dg)
			p.mu.Lock()
			delete(p.running, dg)
			p.mu.Unlock()
			close(h.done)
		})
	}
	p.mu.Unlock()
	select {
	case <-h.done:
	case <-ctx.Done():
		return fmt.Errorf("hash %s: %w", dg, context.Cause(ctx))
	}
	if h.err == nil && !os.SameFile(h.file, info) {
		return fmt.Errorf("%s was replaced: %w", dg, ErrNotHeld)
	}
	return h.err
}

// proveAlone proves what is under a digest's name, when there is a place for it.
func (d *Disk) proveAlone(dg oci.Digest) (fs.FileInfo, error) {
	select {
	case d.proving.places <- struct{}{}:
		defer func() { <-d.proving.places }()
	case <-d.life.Done():
		return nil, d.life.Err()
	}
	f, info, err := d.openFile(dg)
	if err != nil {
		return nil, err
	}
	defer f.done()
	return info, d.prove(d.life, dg, f, info)
}

// maxProofs bounds how often a file is hashed that changes meanwhile. Once is
// usual: somebody uses it, and we set its time.
const maxProofs = 3

// prove hashes a file that is open at its start. One that is right is marked, so
// that it need not be hashed again; one that is not is dropped, unless somebody
// may still be copying it.
func (d *Disk) prove(ctx context.Context, dg oci.Digest, f *openBlob, info fs.FileInfo) error {
	for range maxProofs {
		h := dg.Hash()
		if _, err := io.Copy(h, contextReader{ctx, f}); err != nil {
			if ctx.Err() != nil {
				return fmt.Errorf("read %s: %w", dg, err)
			}
			return d.lose(dg, info, err)
		}
		if !dg.Matches(h) {
			if justWritten(info) {
				return fmt.Errorf("%s is being copied in: %w", dg, ErrNotHeld)
			}
			return d.unread(blobName(dg), d.drop(dg, info, fmt.Sprintf("its %d bytes are something else", info.Size())))
		}
		if d.approve(dg, f.File, info, true) {
			return nil
		}
		var err error
		if info, err = f.Stat(); err == nil {
			_, err = f.Seek(0, io.SeekStart)
		}
		if err != nil {
			return d.unread(blobName(dg), err)
		}
	}
	return fmt.Errorf("%s changes while it is read: %w", dg, ErrNotHeld)
}

// approve remembers that a file was hashed and found right, unless it has changed
// since before. Where that is a use of it its time says so, and with that, after a
// restart, that it is right.
func (d *Disk) approve(dg oci.Digest, f *os.File, before fs.FileInfo, used bool) bool {
	if now, err := f.Stat(); err != nil || !isUnchanged(before, now) {
		return false
	}
	// Best effort: without the marks the file is hashed again after a restart.
	if before.Mode().Perm() != proofMode {
		_ = f.Chmod(proofMode)
	}
	if used {
		d.mark(f, dg, hintOf(before.ModTime()).again(time.Since(before.ModTime())))
	}
	d.remember(dg, f)
	return true
}

// remember notes how a file that is right looks now.
func (d *Disk) remember(dg oci.Digest, f *os.File) {
	if info, err := f.Stat(); err == nil {
		d.proofs.put(dg, proof{info})
	}
}

// contextReader stops a long read when nobody waits for it any more.
type contextReader struct {
	ctx context.Context //nolint:containedctx // of the one call that makes it
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

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

// proof is a file that was hashed by us, and the size it had.
type proof struct {
	file fs.FileInfo
	size int64
}

// known reports that this very file was hashed not long ago, and is as long as
// it was then: that no marker tells its size must not cost a hash each time.
func (d *Disk) known(dg oci.Digest, info fs.FileInfo) bool {
	p, ok := d.proofs.get(dg)
	return ok && p.size == info.Size() && os.SameFile(p.file, info)
}

// stampedWithin bounds how long after a file's time the last change to its inode
// may lie where both are our doing: the stamp is set first, up to a second early,
// and the rename that may follow waits for directories to be made.
const stampedWithin = 10 * time.Second

// isOurs reports that a file's time has a hint in it, and that nobody touched the
// inode since we set that. Copies show it, and those that keep mode and times (cp
// -a, rsync -a, tar): theirs were set later than they say, and nobody can choose
// when an inode changed. A link or a chown looks the same and costs one hash.
func isOurs(info fs.FileInfo) bool {
	changed, ok := changeTime(info)
	if !ok || hintOf(info.ModTime()) == (hint{}) {
		return false
	}
	after := changed.Sub(info.ModTime())
	return after > -time.Second && after < stampedWithin // the kernel's clock is a tick behind ours
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

// prove hashes a file that is open at its start. One that is right is marked, so
// that it need not be hashed again; one that is not is dropped, unless somebody
// may still be copying it.
func (d *Disk) prove(ctx context.Context, dg oci.Digest, f *openBlob, info fs.FileInfo) error {
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
	// Best effort: without the marks the file is hashed again after a restart.
	_ = d.root.Chmod(blobName(dg), proofMode)
	d.stamp(dg, hintOf(info.ModTime()), time.Now()) // whoever has it hashed uses it
	d.proofs.put(dg, proof{info, info.Size()})
	return nil
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

package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"syscall"
	"time"

	"entrepot/oci"
)

const (
	// scrubEvery is how long after the begin of a scrub the next one begins.
	scrubEvery = 7 * 24 * time.Hour
	// scrubSave is how often the scrub notes how far it is.
	scrubSave = 30 * time.Second
	// stateScrub is its file below state/.
	stateScrub = "scrub"
	// maxDropped bounds how many digests a report names.
	maxDropped = 1000
)

// scrubState says how far the scrub has come.
type scrubState struct {
	Began time.Time  `json:"began"`
	After oci.Digest `json:"after,omitzero"` // the last one looked at; zero when the scrub is done
}

func parseScrubState(b []byte) (scrubState, error) {
	var s scrubState
	err := json.Unmarshal(b, &s)
	return s, err
}

// Verified is what hashing content again has found so far.
type Verified struct {
	Files, Bytes int64
	Total        int64        // bytes to look at, as far as known
	Damaged      int64        // files that were not what their names say; they were dropped
	Unreadable   int64        // files that could be neither read nor dropped
	Dropped      []oci.Digest // the first thousand of the damaged
}

// Verify hashes everything that is held, as fast as the disk gives it, and drops
// what is damaged: the next request fetches it again. progress, if not nil, is
// called now and then.
func (d *Disk) Verify(ctx context.Context, progress func(Verified)) (Verified, error) {
	if progress == nil {
		progress = func(Verified) {}
	}
	var v Verified
	if err := d.count(ctx, func(e entry) {
		if _, ok := digestAt(blobsDir, e); ok {
			v.Total += e.size
		}
	}); err != nil {
		return v, err
	}
	told := int64(0)
	err := d.verify(ctx, oci.Digest{}, &v, func(int64) error {
		if v.Bytes-told >= 8<<20 {
			told = v.Bytes
			progress(v)
		}
		return ctx.Err()
	}, func(oci.Digest) {})
	progress(v)
	return v, err
}

// scrub hashes what is held in the background, at rate bytes a second, and goes
// on after a restart where it was.
func (d *Disk) scrub(ctx context.Context, rate int64) {
	for ctx.Err() == nil {
		var s scrubState
		if b, err := d.readFile(path.Join(stateDir, stateScrub), maxRecord); err == nil {
			s, _ = parseScrubState(b) // damaged: begin anew
		}
		if s.Began.After(time.Now()) { // by a clock that was wrong
			s.Began = time.Time{}
		}
		if wait := time.Until(s.Began.Add(scrubEvery)); s.After.IsZero() && wait > 0 {
			_ = sleep(ctx, wait)
			continue
		}
		if s.After.IsZero() {
			s.Began = time.Now().UTC()
		}
		d.scrubOnce(ctx, rate, &s)
	}
}

func (d *Disk) scrubOnce(ctx context.Context, rate int64, s *scrubState) {
	var v Verified
	saved := time.Now()
	due := time.Now()
	pace := func(n int64) error {
		due = due.Add(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
		return sleep(ctx, time.Until(due))
	}
	err := d.verify(ctx, s.After, &v, pace, func(dg oci.Digest) {
		s.After = dg
		if time.Since(saved) >= scrubSave {
			saved = time.Now()
			_ = d.saveState(stateScrub, s) // or some of it is done twice
		}
	})
	if err == nil {
		s.After = oci.Digest{}
	}
	_ = d.saveState(stateScrub, s)
}

// verify checks what lies after a digest, in order. pace is told of the bytes
// read and may hold it up, or end it by an error; at is told of each file done.
func (d *Disk) verify(ctx context.Context, after oci.Digest, v *Verified, pace func(int64) error, at func(oci.Digest)) error {
	return d.eachBlob(ctx, after, func(dg oci.Digest) error {
		n, err := d.check(dg, func(n int64) error {
			v.Bytes += n
			return pace(n)
		})
		v.Files++
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, errDamaged):
			v.Damaged++
			if len(v.Dropped) < maxDropped {
				v.Dropped = append(v.Dropped, dg)
			}
		case errors.Is(err, ErrNotHeld): // evicted meanwhile
			v.Files--
		case err != nil:
			v.Unreadable++
			d.warn("held content cannot be read", fmt.Errorf("%s, after %d bytes: %w", dg, n, err))
		}
		at(dg)
		return nil
	})
}

// eachBlob visits what is held, in the order of the names, directory by
// directory. Its memory is that of one directory.
func (d *Disk) eachBlob(ctx context.Context, after oci.Digest, visit func(oci.Digest) error) error {
	algorithms, err := d.readDir(blobsDir)
	if err != nil {
		return err
	}
	for _, algorithm := range algorithms {
		buckets, err := d.readDir(path.Join(blobsDir, algorithm.Name()))
		if err != nil && !isGone(err) {
			return err
		}
		for _, bucket := range buckets {
			if err := d.eachBlobIn(ctx, path.Join(blobsDir, algorithm.Name(), bucket.Name()), after, visit); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

func (d *Disk) eachBlobIn(ctx context.Context, dir string, after oci.Digest, visit func(oci.Digest) error) error {
	if !after.IsZero() && dir < path.Dir(blobName(after)) {
		return nil
	}
	f, err := d.root.Open(dir)
	if err != nil {
		return nil // gone, or a file that is none of ours
	}
	names, _ := f.Readdirnames(-1)
	_ = f.Close()
	slices.Sort(names)
	for _, name := range names {
		dg, ok := digestAt(blobsDir, entry{dir: dir, name: name})
		if !ok || dg.String() <= after.String() {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := visit(dg); err != nil {
			return err
		}
	}
	return nil
}

// errDamaged is an ErrNotHeld that says why: check dropped it.
var errDamaged = fmt.Errorf("damaged: %w", ErrNotHeld)

// check hashes one blob from the disk and drops it if it is damaged. It does not
// hold the blob: what is evicted meanwhile is read to its end all the same.
func (d *Disk) check(dg oci.Digest, pace func(int64) error) (n int64, err error) {
	f, err := d.openToRead(blobName(dg))
	if err != nil {
		return 0, notHeld(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%w: %w", errDamaged, d.drop(dg, info, "it is not a regular file"))
	}
	h := dg.Hash()
	buf := make([]byte, min(256<<10, info.Size()+1))
	for {
		m, err := f.Read(buf)
		if ferr := d.faults(OpRead, blobName(dg)); ferr != nil {
			err = ferr
		}
		h.Write(buf[:m])
		n += int64(m)
		switch {
		case errors.Is(err, io.EOF):
			return n, d.judged(dg, f, info, dg.Matches(h))
		case errors.Is(err, syscall.EIO): // the sector is gone: so is the content
			return n, d.dropDamaged(dg, info, err.Error())
		case err != nil:
			return n, err
		}
		if time.Since(info.ModTime()) > touchEvery { // what is in use may stay in the page cache
			dropCached(f, n-int64(m), int64(m))
		}
		if err := pace(int64(m)); err != nil {
			return n, err
		}
	}
}

// judged deals with a file that was hashed whole.
func (d *Disk) judged(dg oci.Digest, f *os.File, info fs.FileInfo, right bool) error {
	gated := info.Mode().Perm() == proofMode
	switch {
	case right:
		if !gated || !isOurs(info) { // copied in by somebody: we need not hash it again. Its time, the last use, stays
			d.approve(dg, f, info, false)
		}
		return nil
	case !gated && justWritten(info):
		return nil // being copied in
	}
	return d.dropDamaged(dg, info, "its bytes have changed on disk")
}

func (d *Disk) dropDamaged(dg oci.Digest, info fs.FileInfo, why string) error {
	err := d.drop(dg, info, why)
	if !errors.Is(err, ErrNotHeld) {
		return err
	}
	return fmt.Errorf("%w: %w", errDamaged, err)
}

// sleep waits, unless ctx ends first.
func sleep(ctx context.Context, wait time.Duration) error {
	if wait <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

package store

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// Bytes are hashed while they are in hand, so that the file that becomes content
// is looked at once more: somebody may have cut it, or copied another one over
// it, in between. Both leave it too short, or with a hole, since what comes next
// is written where it belongs. Where that is in doubt the file is hashed.

// ErrAltered says, beside ErrMismatch, that it is not upstream that had the wrong
// bytes: somebody changed the file of a fill.
var ErrAltered = errors.New("the file was altered while it was filled")

// noticeCut looks whether the file has the length that stretch gave it.
func (f *Fill) noticeCut() {
	info, err := f.file.Stat()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cut = f.cut || err == nil && info.Size() < f.size
}

// checkFile finds out whether the file holds the bytes that were hashed.
func (f *Fill) checkFile() error {
	f.mu.Lock()
	size, cut := f.size, f.cut
	f.mu.Unlock()
	info, err := f.file.Stat()
	if err != nil {
		return err
	}
	if cut || info.Size() != size || hasHole(f.file, size) {
		return f.reread()
	}
	f.checked = info
	return nil
}

// checkAgain finds out, after the sync, whether the file still holds what it did
// when it was checked, and still has its name. Where a sync sets times (NFS) that
// costs a hash.
func (f *Fill) checkAgain() error {
	info, err := f.file.Stat()
	if err == nil && !isUnchanged(f.checked, info) {
		err = f.reread()
	}
	if err != nil {
		return err
	}
	f.checked, err = f.file.Stat() // it may take other blocks now
	if err != nil {
		return err
	}
	named, err := f.disk.root.Lstat(f.name)
	if err != nil {
		return err
	}
	if !os.SameFile(named, f.checked) {
		return fmt.Errorf("%s is another one: %w", f.name, ErrAltered)
	}
	return nil
}

// reread hashes the file. ErrAltered if it is not what the digest names.
func (f *Fill) reread() error {
	before, err := f.file.Stat()
	if err != nil {
		return err
	}
	h := f.digest.Hash()
	if _, err := io.Copy(h, io.NewSectionReader(fillBytes{f}, 0, before.Size())); err != nil {
		return fmt.Errorf("read it again: %w", noEOF(err))
	}
	f.checked, err = f.file.Stat()
	if err == nil && (!f.digest.Matches(h) || !isUnchanged(before, f.checked)) {
		err = ErrAltered
	}
	return err
}

// fillBytes reads a fill's file, with the faults that are put into that.
type fillBytes struct{ fill *Fill }

func (b fillBytes) ReadAt(p []byte, off int64) (int, error) { return b.fill.readAt(p, off) }

// hasHole reports that some of a file of n bytes was never written. File systems
// that cannot tell say that all was; some make holes of zeros.
func hasHole(f *os.File, n int64) bool {
	if n == 0 {
		return false
	}
	hole, err := f.Seek(0, seekHole)
	return err == nil && hole < n
}

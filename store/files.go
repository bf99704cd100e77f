package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"syscall"
	"time"

	"entrepot/oci"
)

// Everything that makes the data directory larger or smaller goes through this
// file or through Fill: each change is booked on the account.

// create opens a new file for writing and reading, with the directories above
// it. What it will hold must have been charged.
func (d *Disk) create(name string, flag int) (*os.File, error) {
	if err := d.faults(OpCreate, name); err != nil {
		return nil, err
	}
	var f *os.File
	err := d.inDir(name, func() (err error) {
		f, err = d.root.OpenFile(name, os.O_RDWR|os.O_CREATE|flag, 0o644)
		return err
	})
	return f, err
}

// openToRead opens a file to be read. It does not wait for what is none, such as
// a named pipe that nobody writes to: the caller has to look.
func (d *Disk) openToRead(name string) (*os.File, error) {
	return d.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
}

// inDir does something with name and, if a directory above is missing, makes it
// and tries again. Somebody may be removing empty ones, so it does so twice.
func (d *Disk) inDir(name string, do func() error) error {
	err := do()
	for range 2 {
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err = d.mkdirAll(path.Dir(name)); err == nil {
			err = do()
		}
	}
	return err
}

// mkdirAll makes a directory and those above it.
func (d *Disk) mkdirAll(dir string) error {
	if _, err := d.root.Lstat(dir); err == nil || dir == "." {
		return nil
	}
	parent := path.Dir(dir)
	err := d.mkdir(parent, dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err = d.mkdirAll(parent); err == nil {
			err = d.mkdir(parent, dir)
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

func (d *Disk) mkdir(parent, dir string) error {
	if err := d.account.room(blocks(1), true); err != nil {
		return err
	}
	defer d.account.give(blocks(1))
	place := d.account.place(parent)
	place.RLock()
	defer place.RUnlock()
	if err := d.root.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if info, err := d.root.Lstat(dir); err == nil {
		d.account.bookDir(parent, dir, allocated(info))
	}
	return nil
}

// rename moves a file that takes n bytes on disk, and was charged for them, to
// its name, making the directories above it.
func (d *Disk) rename(from, to string, n int64) error {
	if err := d.faults(OpRename, to); err != nil {
		return err
	}
	if _, err := d.root.Lstat(from); err != nil { // removed under our feet: no directory is missing
		return err
	}
	return d.inDir(to, func() error {
		dir := path.Dir(to)
		place := d.account.place(dir)
		place.RLock()
		defer place.RUnlock()
		old, err := d.root.Lstat(to)
		isNew := err != nil
		if err := d.root.Rename(from, to); err != nil {
			return err
		}
		if isNew {
			d.account.bookName(to)
		} else {
			n -= allocated(old)
		}
		d.account.book(dir, n)
		return nil
	})
}

// remove removes a file and returns how many bytes that gave back.
func (d *Disk) remove(name string) (freed int64, err error) {
	if err := d.faults(OpRemove, name); err != nil {
		return 0, err
	}
	dir := path.Dir(name)
	place := d.account.place(dir)
	place.RLock()
	defer place.RUnlock()
	info, err := d.root.Lstat(name)
	if err != nil {
		return 0, err
	}
	if err := d.root.Remove(name); err != nil {
		return 0, err
	}
	freed = allocated(info)
	d.account.book(dir, -freed)
	return freed, nil
}

// removeEmpty removes a directory, and those above it up to but not including
// top, as far as they are empty.
func (d *Disk) removeEmpty(dir, top string) {
	for ; dir != top && dir != "." && dir != "/"; dir = path.Dir(dir) {
		if err := d.rmdir(dir); err != nil {
			return // the usual end: it is not empty
		}
	}
}

// rmdir removes an empty directory. It is booked where its own size was: in
// itself, not in the directory above.
func (d *Disk) rmdir(dir string) error {
	if err := d.faults(OpRemove, dir); err != nil {
		return err
	}
	place := d.account.place(dir)
	place.RLock()
	defer place.RUnlock()
	info, err := d.root.Lstat(dir)
	if err == nil {
		err = d.root.Remove(dir)
	}
	if err == nil {
		d.account.book(dir, -allocated(info))
	}
	return err
}

// written says how writeFile writes.
type written struct {
	mode  fs.FileMode
	sync  bool      // it survives a crash of the machine
	large bool      // it leaves the reserve to records
	hurry bool      // it does not wait for room, nor leave any free; for the keeper, who makes it
	stamp time.Time // its file time, set last of all; zero for now
}

// record is how small records are written that can be had again.
var record = written{mode: 0o644} //nolint:gochecknoglobals // a table

// writeFile replaces a small file in one step. Without sync a crash may leave
// the old file, never a torn one that is read as good: every reader of such
// files checks what it reads.
func (d *Disk) writeFile(name string, content []byte, how written) error {
	n := blocks(int64(len(content)))
	take := d.account.room
	if how.hurry {
		take = func(n int64, _ bool) error { return d.account.takeForState(n) }
	}
	err := take(n, !how.large)
	if err != nil {
		return err
	}
	defer d.account.give(n)
	tmp := path.Join(path.Dir(name), d.session+strconv.FormatUint(d.temporary.Add(1), 36))
	f, err := d.create(tmp, os.O_EXCL)
	if err != nil {
		return onDisk(err)
	}
	defer f.Close() // what it may fail with, a sync has told before
	n, err = d.writeAside(f, name, content, how)
	if err == nil {
		err = d.rename(tmp, name, n)
	}
	if err != nil {
		_ = d.root.Remove(tmp)
		return onDisk(err)
	}
	if !how.stamp.IsZero() {
		_ = setTimes(f, d.root, name, how.stamp) // only advice
	}
	return nil
}

// writeAside writes a temporary file for name and returns what it takes on disk.
func (d *Disk) writeAside(f *os.File, name string, content []byte, how written) (n int64, err error) {
	if err := d.faults(OpWrite, name); err != nil {
		return 0, err
	}
	if err := f.Truncate(int64(len(content))); err != nil { // see Fill.stretch
		return 0, err
	}
	if _, err := f.Write(content); err != nil {
		return 0, err
	}
	if how.sync {
		if err := d.sync(f, name); err != nil {
			return 0, err
		}
	}
	if err := f.Chmod(how.mode); err != nil {
		return 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return allocated(info), nil
}

// readFault is a fault put into reading a blob or a fill.
func (d *Disk) readFault(dg oci.Digest, nameOf func(oci.Digest) string) error {
	if !d.tested {
		return nil
	}
	return d.faults(OpRead, nameOf(dg))
}

// unread is what it means that something held cannot be read: it is as good as
// not held, since upstream may well have it.
func (d *Disk) unread(name string, err error) error {
	if isGone(err) || errors.Is(err, ErrNotHeld) {
		return notHeld(err)
	}
	err = onDisk(err)
	d.warn("what is held cannot be read", fmt.Errorf("%s: %w", name, err))
	return fmt.Errorf("%s: %w: %w", name, ErrNotHeld, err)
}

func (d *Disk) sync(f *os.File, name string) error {
	if err := d.faults(OpSync, name); err != nil {
		return err
	}
	return f.Sync()
}

// syncDir makes what was removed from a directory stay so. Where the directory
// went with it, that is done to the one above.
func (d *Disk) syncDir(dir string) error {
	f, err := d.root.Open(dir)
	for isGone(err) && dir != "." {
		dir = path.Dir(dir)
		f, err = d.root.Open(dir)
	}
	if err != nil {
		return onDisk(err)
	}
	return onDisk(errors.Join(d.sync(f, dir), f.Close()))
}

// onDisk marks an error as the disk's, unless it says already why something
// cannot be kept.
func onDisk(err error) error {
	if err == nil || errors.Is(err, ErrCannotKeep) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrDisk, err)
}

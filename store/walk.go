package store

import (
	"context"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// walk goes once through the data directory, in a fixed order: a directory, then
// what is below it by name. It counts what lies there while others change it:
// a change in a directory that was counted is booked on the walk's total too,
// one in a directory still to come is not, for the walk will find it.
type walk struct {
	visit func(entry) // told of each file, soon after it was looked at; may be nil

	// Guarded by the account's lock.
	started bool
	cursor  string          // the directory counted last
	fresh   map[string]bool // directories made below counted ones: the walk does not know them
	total   int64
	owners  map[owner]int64
	names   int64 // the account's when the walk began
}

// entry is a file that a walk came by.
type entry struct {
	dir, name string
	size      int64 // bytes
	blocks    int64 // allocated bytes
	when      time.Time
	mode      fs.FileMode
}

func (e entry) path() string { return e.dir + "/" + e.name }

// counted reports whether the walk has been in dir. The account's lock is held.
func (w *walk) counted(dir string) bool {
	return w.fresh[dir] || w.started && !walkedAfter(dir, w.cursor)
}

// walkedAfter reports whether a walk comes to directory a after b.
func walkedAfter(a, b string) bool {
	switch {
	case a == "." || a == b:
		return false
	case b == ".":
		return true
	}
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return b[i] == '/' || a[i] != '/' && a[i] > b[i]
		}
	}
	return len(a) > len(b)
}

// count walks the data directory, corrects the account by what it finds, and
// tells visit of each file. One walk runs at a time. If ctx ends first nothing
// is corrected and its error comes back.
func (d *Disk) count(ctx context.Context, visit func(entry)) error {
	select {
	case d.walking <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-d.walking }()
	a := d.account
	w := &walk{visit: visit, fresh: make(map[string]bool), owners: make(map[owner]int64)}
	a.mu.Lock()
	w.names = a.names
	a.walk = w
	a.mu.Unlock()
	d.countBelow(ctx, w, ".")
	a.mu.Lock()
	defer a.mu.Unlock()
	a.walk = nil
	if err := ctx.Err(); err != nil {
		return err
	}
	a.settled, a.owners = w.total, w.owners
	a.names -= w.names
	a.wakeLocked()
	return nil
}

func (d *Disk) countBelow(ctx context.Context, w *walk, dir string) {
	if ctx.Err() != nil {
		return
	}
	for _, sub := range d.countDir(w, dir) {
		d.countBelow(ctx, w, path.Join(dir, sub))
	}
}

// countDir counts one directory and returns the names of those below it. What
// cannot be read, or is removed meanwhile, counts as nothing.
func (d *Disk) countDir(w *walk, dir string) (below []string) {
	files, below := d.countLocked(w, dir)
	if w.visit != nil {
		for _, e := range files {
			w.visit(e)
		}
	}
	return below
}

// countLocked does so with the directory's place to itself, and returns the
// files if somebody wants to see them.
func (d *Disk) countLocked(w *walk, dir string) (files []entry, below []string) {
	place := d.account.place(dir)
	place.Lock()
	defer place.Unlock()
	if !d.account.enter(w, dir) {
		return nil, nil
	}
	f, err := d.root.Open(dir)
	if err != nil {
		return nil, nil
	}
	defer f.Close()
	total := int64(0)
	if info, err := f.Stat(); err == nil {
		total = allocated(info)
	}
	owners := make(map[owner]int64)
	names, _ := f.Readdirnames(-1)
	fd := int(f.Fd())
	for _, name := range names {
		e, err := statEntry(fd, dir, name)
		switch {
		case err != nil:
			continue
		case e.mode.IsDir():
			below = append(below, name)
			continue
		case d.leaveOut(e):
			continue
		}
		total += e.blocks
		if strings.HasPrefix(dir, blobsDir+"/") {
			owners[hintOf(e.when).owner] += e.blocks
		}
		if w.visit != nil {
			files = append(files, e)
		}
	}
	slices.Sort(below)
	d.account.addCounted(w, total, owners)
	return files, below
}

// enter notes that the walk is in dir; false if dir came into being behind it.
func (a *account) enter(w *walk, dir string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if w.fresh[dir] {
		return false
	}
	w.started, w.cursor = true, dir
	return true
}

// addCounted adds what a directory holds to the walk's totals.
func (a *account) addCounted(w *walk, total int64, owners map[owner]int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w.total += total
	for o, n := range owners {
		w.owners[o] += n
	}
}

// ourTemporary is how our temporary files are named: those of others (rsync's
// begin with a dot too) are not ours to judge.
var ourTemporary = regexp.MustCompile(`^\.[A-Z2-7]{26}\.[0-9a-z]+$`)

// leaveOut says that the walk need not count a file: what is being written is
// charged already, and what an earlier process left half-written is removed.
func (d *Disk) leaveOut(e entry) bool {
	if e.name[0] == '.' && ourTemporary.MatchString(e.name) {
		return strings.HasPrefix(e.name, d.session) || d.root.Remove(e.path()) == nil
	}
	dg, ok := digestAt(fillsDir, e)
	if !ok {
		return false
	}
	d.account.mu.Lock()
	defer d.account.mu.Unlock()
	_, open := d.account.fills[dg]
	return open
}

// statEntry looks at one file of an open directory: on a million files this
// costs a third of what going through their paths does.
func statEntry(dir int, at, name string) (entry, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return entry{}, err
	}
	mode := fs.FileMode(st.Mode & 0o777) //nolint:unconvert // narrower elsewhere than on Linux
	switch uint32(st.Mode) & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		mode |= fs.ModeDir
	default:
		mode |= fs.ModeIrregular
	}
	allocated := int64(st.Blocks) * 512 //nolint:unconvert // narrower elsewhere than on Linux
	return entry{at, name, st.Size, allocated, time.Unix(st.Mtim.Unix()), mode}, nil
}

// allocated is what a file takes on disk.
func allocated(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return blocks(info.Size())
}

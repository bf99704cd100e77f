package cache

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"entrepot/oci"
	"entrepot/store"
)

// unreadable is a disk of which the reading of one directory fails once so many
// pieces have been read; below zero it does not.
type unreadable struct {
	below string
	stuck bool // nothing can be removed either

	mu    sync.Mutex // guards after
	after int
}

func (u *unreadable) set(after int) {
	u.mu.Lock()
	u.after = after
	u.mu.Unlock()
}

func (u *unreadable) fail(op store.Op, name string) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	below := strings.HasPrefix(name, u.below+"/")
	switch {
	case !below || u.after < 0:
	case op == store.OpRead && u.after == 0, op == store.OpRemove && u.stuck:
		return syscall.EIO
	case op == store.OpRead:
		u.after--
	}
	return nil
}

func openUnreadable(t *testing.T, dir string, s oci.Source, u *unreadable) *Cache {
	t.Helper()
	disk, err := store.Open(t.Context(), store.Config{Dir: dir, Faults: u.fail})
	if err != nil {
		t.Fatal(err)
	}
	c := New(disk, s, Config{})
	t.Cleanup(func() { closeCache(t, c) })
	return c
}

// TestHeldContentThatCannotBeRead: what upstream can serve does not fail for the
// sake of a sector, whether its file can be dropped or not.
func TestHeldContentThatCannotBeRead(t *testing.T) {
	for _, row := range []struct {
		name           string
		size           int
		offset, length int64
		after          int // pieces that can be read
		stuck, writeTo bool
	}{
		{name: "small", size: 1000, length: -1},
		{name: "small and stuck", size: 1000, length: -1, stuck: true},
		{name: "at once", size: mib, length: -1},
		{name: "in the middle", size: mib, length: -1, after: 3},
		{name: "in the middle, stuck", size: mib, length: -1, after: 3, stuck: true},
		{name: "a range", size: mib, offset: 1000, length: 500_000, after: 3},
		{name: "an open range", size: mib, offset: 1000, length: -1, after: 3},
		{name: "by the kernel", size: mib, length: -1, writeTo: true},
		{name: "by the kernel, stuck", size: mib, length: -1, writeTo: true, stuck: true},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newSource()
			content := pattern(1, row.size)
			d := s.pushBlob(alpine, content)
			u := &unreadable{below: "blobs", after: -1, stuck: row.stuck}
			c := openUnreadable(t, t.TempDir(), s, u)
			mustRead(t, c, alpine, d, content)
			awaitNoFills(c)
			want := content[row.offset:]
			if row.length >= 0 {
				want = want[:row.length]
			}
			u.set(row.after)
			b, err := c.Blob(t.Context(), alpine, d, oci.Ask{})
			if err != nil {
				t.Fatal(err)
			}
			r, err := b.Open(t.Context(), row.offset, row.length)
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			if row.writeTo {
				_, err = r.(io.WriterTo).WriteTo(&got)
			} else {
				_, err = io.Copy(&got, struct{ io.Reader }{r})
			}
			if err = errors.Join(err, r.Close()); err != nil || !bytes.Equal(got.Bytes(), want) {
				t.Errorf("%d bytes of %d, %v", got.Len(), len(want), err)
			}
			u.set(-1)
			mustRead(t, c, alpine, d, content)
		})
	}
}

// TestFillThatCannotBeReadBack: neither its readers nor the next ones fail, and
// what could not be read is fetched anew.
func TestFillThatCannotBeReadBack(t *testing.T) {
	s := newSource()
	content := pattern(1, 8*mib)
	d := s.pushBlob(alpine, content)
	u := &unreadable{below: "fills", after: -1}
	dir := t.TempDir()
	c := openUnreadable(t, dir, s, u)
	s.body = func(_ int, c []byte, off int64) io.Reader { return cutAfter(bytes.NewReader(c[off:]), 6*mib-off) }
	if _, _, err := read(t.Context(), c, alpine, d, 0, 5*mib); err != nil {
		t.Fatal(err)
	}
	closeCache(t, c)
	s.body = nil
	c = openUnreadable(t, dir, s, u)
	u.set(0)
	for range 2 {
		mustRead(t, c, alpine, d, content)
	}
	closeCache(t, c)
	u.set(-1)
	c = openUnreadable(t, dir, s, u)
	mustRead(t, c, alpine, d, content)
}

// TestUnprovenBytesGetNoProvenEnd: who was given bytes of a fill that can neither
// be proven nor read back is cut, whatever upstream sends by then.
func TestUnprovenBytesGetNoProvenEnd(t *testing.T) {
	s := newSource()
	content := pattern(1, 8*mib)
	d := s.pushBlob(alpine, content)
	u := &unreadable{below: "fills", after: -1}
	c := openUnreadable(t, t.TempDir(), s, u)
	read, mended := make(chan struct{}), false
	s.body = func(_ int, c []byte, off int64) io.Reader {
		if mended {
			return bytes.NewReader(c[off:])
		}
		return io.MultiReader(bytes.NewReader(pattern(2, 2*mib)), readerFunc(func([]byte) (int, error) {
			<-read
			return 0, io.ErrUnexpectedEOF
		}))
	}
	r := mustOpen(t, c, alpine, d, 0)
	defer r.Close()
	if _, err := io.CopyN(io.Discard, r, mib); err != nil {
		t.Fatal(err)
	}
	mended = true
	u.set(0)
	n, err := io.Copy(io.Discard, struct{ io.Reader }{r})
	close(read)
	if err == nil {
		t.Errorf("behind a megabyte of wrong bytes came %d more and a regular end", n)
	}
}

// TestRecordsThatCannotBeRead are as good as none.
func TestRecordsThatCannotBeRead(t *testing.T) {
	s := newSource()
	m := s.pushImage(alpine, "latest", pattern(1, 1000))
	dir := t.TempDir()
	c := openCache(t, dir, s, Config{})
	pull := func() {
		t.Helper()
		if got, _, err := c.Resolve(t.Context(), alpine, "latest", oci.Ask{}); err != nil || got.Digest != m.Digest {
			t.Errorf("%v, %v", got.Digest, err)
		}
		if _, _, err := c.Manifest(t.Context(), alpine, m.Digest, oci.Ask{}); err != nil {
			t.Error(err)
		}
		mustRead(t, c, alpine, oci.Sum(pattern(1, 1000)), pattern(1, 1000))
	}
	pull()
	closeCache(t, c)
	err := filepath.WalkDir(dir, func(name string, e os.DirEntry, err error) error {
		if rel, _ := filepath.Rel(dir, name); err != nil || e.IsDir() || !strings.HasPrefix(rel, "repos/") && !strings.HasPrefix(rel, "blobs/") {
			return err
		}
		return errors.Join(os.Remove(name), os.Symlink(filepath.Base(name), name)) // which leads to itself
	})
	if err != nil {
		t.Fatal(err)
	}
	c = openCache(t, dir, s, Config{})
	pull()
}

// TestOpenRangeGoesPastTheDisk: a client that has bytes from the middle of a
// fill gets the rest, proven together with those, whether the beginning is on
// disk or not.
func TestOpenRangeGoesPastTheDisk(t *testing.T) {
	for _, row := range []struct {
		name  string
		first func([]byte) // what happens to the bytes that it is given first
		want  bool         // it gets all of it
	}{
		{name: "right", first: func([]byte) {}, want: true},
		{name: "wrong", first: func(b []byte) { b[0] ^= 1 }},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newSource()
			content := pattern(1, 8*mib)
			d := s.pushBlob(alpine, content)
			full := make(chan struct{})
			disk, err := store.Open(t.Context(), store.Config{Dir: t.TempDir(), Faults: func(op store.Op, _ string) error {
				select {
				case <-full:
					if op == store.OpWrite {
						return syscall.ENOSPC
					}
				default:
				}
				return nil
			}})
			if err != nil {
				t.Fatal(err)
			}
			c := New(disk, s, Config{})
			defer closeCache(t, c)
			const offset = 5 * mib
			s.body = func(_ int, b []byte, off int64) io.Reader {
				if off < offset {
					return bytes.NewReader(b[off:])
				}
				first := bytes.Clone(b[off : off+mib])
				row.first(first)
				return io.MultiReader(bytes.NewReader(first), readerFunc(func([]byte) (int, error) {
					<-full
					return 0, io.EOF
				}))
			}
			r := mustOpen(t, c, alpine, d, offset)
			defer r.Close()
			got := bytes.Buffer{}
			if _, err := io.CopyN(&got, r, mib); err != nil {
				t.Fatal(err)
			}
			close(full)
			_, err = io.Copy(&got, struct{ io.Reader }{r})
			if whole := err == nil && bytes.Equal(got.Bytes(), content[offset:]); whole != row.want || !row.want && !saidWrong(err) {
				t.Errorf("%d bytes of %d, %v", got.Len(), len(content)-offset, err)
			}
		})
	}
}

package cache

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/oci"
	"entrepot/store"
)

// tooSmall makes a cache that can keep no blob of 5 MiB.
func tooSmall(t *testing.T, s *source, cfg Config) *Cache {
	t.Helper()
	return openCacheOf(t, store.Config{Dir: t.TempDir(), Budget: 4 * mib}, s, cfg)
}

// TestPastTheDiskABrokenTransferGoesOn, at the byte reached, for each way to read.
func TestPastTheDiskABrokenTransferGoesOn(t *testing.T) {
	content := pattern(1, 5*mib)
	for _, tc := range []struct {
		name           string
		offset, length int64
		noRanges       bool
		noSize         bool
	}{
		{"whole", 0, -1, false, false},
		{"to the end", mib + 1, -1, false, false},
		{"stretch", mib + 1, 2 * mib, false, false},
		{"whole, no ranges", 0, -1, true, false},
		{"stretch, no ranges", mib + 1, 2 * mib, true, false},
		{"whole, size not told", 0, -1, false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource()
				d := s.pushBlob(alpine, content)
				c := tooSmall(t, s, Config{})
				defer closeCache(t, c)
				mustRead(t, c, alpine, d, content)
				cuts := 0
				s.set(func() {
					s.noRanges, s.noSize, s.moved = tc.noRanges, tc.noSize, 0
					s.body = func(_ int, c []byte, off int64) io.Reader {
						if cuts++; cuts > 3 {
							return bytes.NewReader(c[off:])
						}
						return cutAfter(bytes.NewReader(c[off:]), int64(cuts)*mib/2)
					}
				})
				got, out, err := read(t.Context(), c, alpine, d, tc.offset, tc.length)
				want := content[tc.offset:]
				if tc.length >= 0 {
					want = want[:tc.length]
				}
				if err != nil || !bytes.Equal(got, want) || out.Cache != oci.Bypass {
					t.Fatalf("%d of %d bytes as %s, %v", len(got), len(want), out.Cache, err)
				}
				if out.Spent < 3 {
					t.Errorf("%d requests are said to have been made", out.Spent)
				}
				if moved := s.bytesMoved(); !tc.noRanges && moved > int64(len(content))*105/100 {
					t.Errorf("%d bytes moved for %d", moved, len(want))
				}
			})
		})
	}
}

// TestPastTheDiskReadingTakesNoMemory: clients are many.
func TestPastTheDiskReadingTakesNoMemory(t *testing.T) {
	s := newSource()
	content := pattern(1, 5*mib)
	d := s.pushBlob(alpine, content)
	c := tooSmall(t, s, Config{})
	mustRead(t, c, alpine, d, content)
	r := mustOpen(t, c, alpine, d, 0)
	defer r.Close()
	buf := make([]byte, 4096)
	n := testing.AllocsPerRun(500, func() {
		if _, err := r.Read(buf); err != nil {
			t.Error(err)
		}
	})
	if n >= 1 {
		t.Errorf("%v allocations a read, want none", n)
	}
}

// TestPastTheDiskEveryBufferWillDo: the byte that is held back is neither lost
// nor given out before its time, whatever the reads' sizes.
func TestPastTheDiskEveryBufferWillDo(t *testing.T) {
	for _, size := range []int{0, 1, 2, 3, 10} {
		for _, step := range []int{1, 2, 3, 64} {
			content := pattern(size+1, size)
			s := newSource()
			b := &blob{c: newCache(t, s, Config{}), repo: alpine, dg: s.pushBlob(alpine, content), marker: store.Marker{Size: -1}}
			r, err := b.openBypass(t.Context(), 0, -1, "a test", nil)
			if err != nil {
				t.Fatal(err)
			}
			var got []byte
			for p := make([]byte, step); err == nil; {
				var n int
				n, err = r.Read(p)
				got = append(got, p[:n]...)
			}
			if err != io.EOF || !bytes.Equal(got, content) {
				t.Errorf("%d bytes in steps of %d: %d came, %v", size, step, len(got), err)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// readSlowly reads a blob, of which it takes n bytes each while.
func readSlowly(ctx context.Context, c *Cache, d oci.Digest, n int, while time.Duration) ([]byte, error) {
	r, err := openBlob(ctx, c, alpine, d, oci.Ask{}, 0, -1)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	got := make([]byte, 0, 5*mib)
	for p := make([]byte, n); ; time.Sleep(while) {
		m, err := r.Read(p)
		got = append(got, p[:m]...)
		if err != nil {
			if err == io.EOF {
				err = nil
			}
			return got, err
		}
	}
}

// steady gives out bytes at a rate.
type steady struct{ r io.Reader }

func (s steady) Read(p []byte) (int, error) {
	time.Sleep(10 * time.Millisecond)
	return s.r.Read(p[:min(len(p), 64<<10)])
}

// TestPastTheDiskReadersShare: who comes together is served by one transfer, and
// who cannot keep up goes on by himself without holding up the others.
func TestPastTheDiskReadersShare(t *testing.T) {
	content := pattern(1, 5*mib)
	for _, tc := range []struct {
		name       string
		most       int
		fast, slow int
		transfers  int64
	}{
		{"at once", 0, 20, 0, 1},
		{"more than there are places for", 1, 10, 0, 1},
		{"two slow among them", 0, 5, 2, 3},
		{"slow ones, and one place", 1, 5, 2, 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource()
				d := s.pushBlob(alpine, content)
				c := tooSmall(t, s, Config{MaxBypass: tc.most})
				defer closeCache(t, c)
				mustRead(t, c, alpine, d, content)
				s.set(func() {
					s.moved = 0
					s.body = func(_ int, c []byte, off int64) io.Reader { return steady{bytes.NewReader(c[off:])} }
				})
				var all sync.WaitGroup
				began := time.Now()
				for i := range tc.fast + tc.slow {
					all.Go(func() {
						n, while, bound := 64<<10, time.Duration(0), 2*time.Second
						if i >= tc.fast {
							n, while, bound = 32<<10, 100*time.Millisecond, time.Hour
						}
						got, err := readSlowly(t.Context(), c, d, n, while)
						if err != nil || !bytes.Equal(got, content) {
							t.Errorf("%d bytes, %v", len(got), err)
						}
						if took := time.Since(began); took > bound {
							t.Errorf("took %v", took)
						}
					})
				}
				all.Wait()
				if moved := s.bytesMoved(); moved > tc.transfers*int64(len(content)) {
					t.Errorf("%d readers cost %.1f transfers, want %d at most", tc.fast+tc.slow, float64(moved)/float64(len(content)), tc.transfers)
				}
			})
		})
	}
}

// TestPastTheDiskUpstreamIsToldOfItsWrongBytes, by who has had all of one transfer.
func TestPastTheDiskUpstreamIsToldOfItsWrongBytes(t *testing.T) {
	content := pattern(1, 5*mib)
	for name, row := range map[string]struct {
		wrong bool
		from  int64
		slow  int // who go on in a transfer of their own
		told  int
	}{
		"right":                  {false, 0, 0, 0},
		"wrong":                  {true, 0, 0, 1},
		"wrong, read to the end": {true, mib, 0, 1},
		"and one is put out":     {true, 0, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource()
				d := s.pushBlob(alpine, content)
				c := tooSmall(t, s, Config{})
				defer closeCache(t, c)
				mustRead(t, c, alpine, d, content)
				s.set(func() {
					s.body = func(_ int, c []byte, off int64) io.Reader {
						if row.wrong {
							c = make([]byte, len(c))
						}
						return steady{bytes.NewReader(c[off:])}
					}
				})
				var all sync.WaitGroup
				for range row.slow {
					all.Go(func() {
						if _, err := readSlowly(t.Context(), c, d, 32<<10, 100*time.Millisecond); !isWrong(err) {
							t.Error(err)
						}
					})
				}
				if _, _, err := read(t.Context(), c, alpine, d, row.from, -1); isWrong(err) != row.wrong {
					t.Error(err)
				}
				all.Wait()
				if s.doubted != row.told {
					t.Errorf("told %d times, want %d", s.doubted, row.told)
				}
			})
		})
	}
}

// TestPastTheDiskThereAreSoManyPlaces: who finds none waits for one, and is told
// when that takes too long.
func TestPastTheDiskThereAreSoManyPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		one, two := pattern(1, 5*mib), pattern(2, 5*mib)
		d, other := s.pushBlob(alpine, one), s.pushBlob(alpine, two)
		c := tooSmall(t, s, Config{MaxBypass: 1})
		defer closeCache(t, c)
		r := mustOpen(t, c, alpine, d, 0)
		_, _, err := read(t.Context(), c, alpine, other, 0, -1)
		wantCode(t, err, oci.Unavailable)
		time.AfterFunc(placeWait/2, func() { _ = r.Close() })
		mustRead(t, c, alpine, other, two)
	})
}

// TestPastTheDiskThoughAnotherFillHasBegun: what readers of a fill that failed have
// got is proven with the rest, whatever the next fill of the blob does meanwhile.
func TestPastTheDiskThoughAnotherFillHasBegun(t *testing.T) {
	elsewhere := oci.Repository{Host: "ghcr.io", Path: "library/alpine"}
	for _, row := range []struct {
		name     string
		size     int
		offset   int64
		refused  store.Op // what the disk refuses, beside writing, while the first fill ends
		noRecord bool     // the record is deleted before the next fill
		next     oci.Repository
		wrong    bool // the first fill's bytes are, as the next one's are not
	}{
		{name: "not worth a record", size: 3 * mib, next: alpine},
		{name: "on record", size: 5 * mib, next: alpine},
		{name: "an open range", size: 5 * mib, offset: 2 * mib, next: alpine},
		{name: "record deleted", size: 5 * mib, noRecord: true, next: alpine},
		{name: "no record could be made", size: 5 * mib, refused: store.OpSync, next: alpine},
		{name: "from another upstream", size: 5 * mib, next: elsewhere},
		{name: "wrong", size: 5 * mib, noRecord: true, next: alpine, wrong: true},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, dir := newSource(), t.TempDir()
				content := pattern(1, row.size)
				d := s.pushBlob(alpine, content)
				s.pushBlob(elsewhere, content)
				var full atomic.Bool
				c := openCacheOf(t, store.Config{Dir: dir, Faults: func(op store.Op, name string) error {
					if full.Load() && filepath.Dir(name) == "fills/sha256" && filepath.Ext(name) == "" && (op == store.OpWrite || op == row.refused) {
						return syscall.ENOSPC
					}
					return nil
				}}, s, Config{})
				defer closeCache(t, c)

				more, again := make(chan struct{}), make(chan struct{})
				s.body = func(_ int, b []byte, off int64) io.Reader {
					first := bytes.Clone(b[off : off+mib])
					if row.wrong {
						first[1] ^= 1
					}
					return io.MultiReader(bytes.NewReader(first), after(more), bytes.NewReader(b[off+mib:]))
				}
				one, got := mustOpen(t, c, alpine, d, row.offset), make([]byte, mib)
				defer one.Close()
				if _, err := io.ReadFull(one, got); err != nil {
					t.Fatal(err)
				}
				full.Store(true)
				close(more)
				awaitNoFills(c)
				if _, out, err := read(t.Context(), c, alpine, d, 0, 1000); err != nil || out.Cache != oci.Bypass {
					t.Errorf("who came next was served as %s, %v", out.Cache, err)
				}
				full.Store(false)
				c.Forget() // or a minute later
				if row.noRecord {
					if err := os.Remove(filepath.Join(dir, "fills", "sha256", d.Hex()+".spans")); err != nil {
						t.Fatal(err)
					}
				}
				s.set(func() {
					s.body = func(_ int, b []byte, off int64) io.Reader {
						return io.MultiReader(bytes.NewReader(b[off:off+1]), after(again), bytes.NewReader(b[off+1:]))
					}
				})
				two := mustOpen(t, c, row.next, d, 0)
				defer two.Close()
				synctest.Wait()
				if row.wrong {
					close(again)
					awaitNoFills(c)
				} else {
					time.AfterFunc(time.Second, func() { close(again) })
				}
				rest, err := io.ReadAll(one)
				whole := err == nil && bytes.Equal(append(got, rest...), content[row.offset:])
				if whole == row.wrong || row.wrong && !saidWrong(err) {
					t.Errorf("%d bytes, %v", len(got)+len(rest), err)
				}
				if got, err := io.ReadAll(two); err != nil || !bytes.Equal(got, content) {
					t.Errorf("the next fill's reader got %d bytes, %v", len(got), err)
				}
			})
		})
	}
}

// after is an empty body that ends when ch is closed.
func after(ch <-chan struct{}) io.Reader {
	return readerFunc(func([]byte) (int, error) {
		<-ch
		return 0, io.EOF
	})
}

// TestFillsThatDoNotFitTogether: as many are held as there is room for, and the
// others go past the disk from their first byte on.
func TestFillsThatDoNotFitTogether(t *testing.T) {
	const readers = 4
	for _, row := range []struct {
		name        string
		blobs, size int
		held        int
	}{
		{"two, each more than half", 2, 5 * mib, 1},
		{"six, two of which fit", 6, 3 * mib, 2},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource()
				s.body = func(_ int, c []byte, off int64) io.Reader { return steady{bytes.NewReader(c[off:])} }
				contents := make(map[oci.Digest][]byte)
				for i := range row.blobs {
					content := pattern(i+1, row.size)
					contents[s.pushBlob(alpine, content)] = content
				}
				c := openCacheOf(t, store.Config{Dir: t.TempDir(), Budget: 8 * mib}, s, Config{})
				defer closeCache(t, c)
				var all sync.WaitGroup
				for d, content := range contents {
					for range readers {
						all.Go(func() {
							if got, err := readSlowly(t.Context(), c, d, 64<<10, 0); err != nil || !bytes.Equal(got, content) {
								t.Errorf("%d bytes, %v", len(got), err)
							}
						})
					}
				}
				all.Wait()
				awaitNoFills(c)
				if moved, once := s.bytesMoved(), int64(row.blobs*row.size); moved > once*105/100 {
					t.Errorf("%.2f times the bytes were moved", float64(moved)/float64(once))
				}
				held := 0
				for d := range contents {
					if _, err := c.disk.Size(d); err == nil {
						held++
					}
				}
				if held < row.held {
					t.Errorf("%d are held, want %d", held, row.held)
				}
			})
		})
	}
}

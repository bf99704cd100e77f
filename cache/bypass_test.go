package cache

import (
	"bytes"
	"context"
	"io"
	"testing"
	"testing/synctest"

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
	b, err := c.Blob(t.Context(), alpine, d, oci.Ask{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := b.Open(context.Background(), 0, -1)
	if err != nil {
		t.Fatal(err)
	}
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

package cache

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/oci"
	"entrepot/store"
)

// TestHeadOfWhatIsTooLargeHarmsNoPull: a HEAD may be the first to learn that a
// blob cannot be kept, while a GET waits for its first byte.
func TestHeadOfWhatIsTooLargeHarmsNoPull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		content := pattern(1, 5*mib)
		d := s.pushBlob(alpine, content)
		disk, err := store.Open(t.Context(), store.Config{Dir: t.TempDir(), Budget: 4 * mib})
		if err != nil {
			t.Fatal(err)
		}
		c := New(disk, s, Config{})
		defer closeCache(t, c)
		s.delay = time.Second // of the GET
		var pull sync.WaitGroup
		pull.Go(func() {
			if out := mustRead(t, c, alpine, d, content); out.Cache != oci.Bypass {
				t.Errorf("outcome %s, want bypass", out.Cache)
			}
		})
		synctest.Wait()
		s.set(func() { s.delay = 0 })
		b, err := c.Blob(t.Context(), alpine, d, oci.Ask{})
		if err != nil {
			t.Fatal(err)
		}
		if desc, _, err := b.Stat(t.Context()); err != nil || desc.Size != int64(len(content)) {
			t.Errorf("HEAD: %d bytes, %v", desc.Size, err)
		}
		pull.Wait()
	})
}

// TestLastFailureOfAWrongBodyIsForgotten: several streams fail when a body is
// found to be wrong. One that does so last of all must not cost the second try.
func TestLastFailureOfAWrongBodyIsForgotten(t *testing.T) {
	s := newSource()
	content := pattern(1, 100_000)
	b := &blob{c: newCache(t, s, Config{}), repo: alpine, dg: s.pushBlob(alpine, content), marker: store.Marker{Size: -1}}
	f := b.c.newFill(b)
	f.whole = true
	if !f.begin() {
		t.Fatal(f.err)
	}
	f.failed = fmt.Errorf("a stream of the first try: %w", store.ErrSurplus)
	err := f.bring(context.Background())
	if f.end(err); err != nil {
		t.Errorf("second try: %v", err)
	}
}

// TestSecondTryAfterAWrongSize: what the first answer said of the size is
// forgotten with its bytes, unless a client was told it: its headers are out.
func TestSecondTryAfterAWrongSize(t *testing.T) {
	content := pattern(1, 100_000)
	size := int64(len(content))
	for _, row := range []struct {
		name        string
		told, first int64 // a client by HEAD; by upstream's first answer
		kept        bool
	}{
		{"too large", -1, size + 1, true},
		{"too small", -1, size - 1, true},
		{"told a client too, who can have no other", size + 1, size + 1, false},
		{"right, and told a client", size, size, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource()
				b := &blob{c: newCache(t, s, Config{}), repo: alpine, dg: s.pushBlob(alpine, content), marker: store.Marker{Size: -1}}
				defer closeCache(t, b.c)
				s.body = func(call int, c []byte, off int64) io.Reader {
					if call > 1 {
						return bytes.NewReader(c[off:])
					}
					if row.told >= 0 {
						b.c.fills.tellSize(b.dg, alpine.Host, row.told)
					}
					return bytes.NewReader(make([]byte, size+1)[off:])
				}
				s.sizeOnce = row.first
				f, _ := b.c.joinOrStart(t.Context(), b)
				f.wantWhole()
				<-f.done
				if _, err := b.c.disk.Size(b.dg); (err == nil) != row.kept {
					t.Errorf("kept: %v, want %v", err, row.kept)
				}
			})
		})
	}
}

// TestUpstreamIsToldOfItsWrongBytes: only upstream knows which of its addresses gave
// them. Of bytes that were here before, or that somebody has altered here, it is told
// nothing.
func TestUpstreamIsToldOfItsWrongBytes(t *testing.T) {
	content := pattern(1, 100_000)
	for name, row := range map[string]struct {
		had   int64 // bytes that are wrong, from an earlier fill
		wrong bool  // those that upstream gives
		told  bool
	}{
		"all are upstream's":          {0, true, true},
		"some stood here before":      {1000, false, false},
		"some of them stood before":   {1000, true, false},
		"they are what was asked for": {0, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSource()
			b := &blob{c: newCache(t, s, Config{}), repo: alpine, dg: s.pushBlob(alpine, content), marker: store.Marker{Size: -1}}
			f := b.c.newFill(b)
			f.whole = true
			if !f.begin() {
				t.Fatal(f.err)
			}
			if _, err := f.file.WriteAt(make([]byte, row.had), 0); err != nil {
				t.Fatal(err)
			}
			if row.wrong {
				s.body = func(_ int, c []byte, off int64) io.Reader { return bytes.NewReader(make([]byte, len(c))[off:]) }
			}
			err := f.bring(t.Context())
			if isWrong(err) != (row.wrong || row.had > 0) {
				t.Errorf("it came to %v", err)
			}
			f.end(err)
			if told := s.doubted > 0; told != row.told {
				t.Errorf("told: %v, want %v", told, row.told)
			}
		})
	}
}

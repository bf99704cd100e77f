package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/oci"
	"entrepot/store"
)

const mib = 1 << 20

func TestManyReadersOneTransfer(t *testing.T) {
	s := newSource()
	content := pattern(1, 3*mib)
	d := s.pushBlob(alpine, content)
	open := make(chan int64)
	s.body = func(_ int, c []byte, off int64) io.Reader { return &gated{r: bytes.NewReader(c[off:]), open: open} }
	c := newCache(t, s, Config{})
	var wg sync.WaitGroup
	outcomes := make(chan oci.CacheStatus, 10)
	for range 10 {
		wg.Go(func() {
			got, out, err := read(t.Context(), c, alpine, d, 0, -1)
			if err != nil || !bytes.Equal(got, content) {
				t.Errorf("read: %d bytes, %v", len(got), err)
			}
			outcomes <- out.Cache
		})
	}
	open <- 100 // every reader waits for the first byte of one transfer
	close(open)
	wg.Wait()
	close(outcomes)
	count := map[oci.CacheStatus]int{}
	for o := range outcomes {
		count[o]++
	}
	if count[oci.Miss] > 1 || count[oci.Miss]+count[oci.Joined]+count[oci.Hit] != 10 {
		t.Errorf("outcomes %v, want one miss at most and the rest joined or hit", count)
	}
	wantAsked(t, s, fmt.Sprintf("GET library/alpine blob %s 0+%d", d, near))
	if out := mustRead(t, c, alpine, d, content); out.Cache != oci.Hit {
		t.Errorf("a later reader got %s, want hit", out.Cache)
	}
}

func TestReaderGetsBytesAsTheyLand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		content := pattern(2, mib)
		d := s.pushBlob(alpine, content)
		open := make(chan int64)
		s.body = func(_ int, c []byte, off int64) io.Reader { return &gated{r: bytes.NewReader(c[off:]), open: open} }
		c := newCache(t, s, Config{})
		defer closeCache(t, c)
		first := openReader(t, c, d, 0, -1, func() { open <- 1 })
		late := openReader(t, c, d, 0, -1, nil)
		buf := make([]byte, 4096)
		for _, r := range []oci.Reader{first, late} {
			if n, err := r.Read(buf); n != 1 || err != nil {
				t.Fatalf("read %d bytes, %v, want the one that landed", n, err)
			}
		}
		// The last byte stays back until the proof, though it has landed.
		go func() { open <- mib - 2 }()
		got := 1
		for got < mib-1 {
			n, err := first.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			got += n
		}
		close(open)
		if n, err := first.Read(buf); n != 1 || err != nil {
			t.Fatalf("the last byte: %d, %v", n, err)
		}
		if n, err := first.Read(buf); n != 0 || !errors.Is(err, io.EOF) {
			t.Fatalf("the end: %d, %v", n, err)
		}
		_ = first.Close()
		_ = late.Close()
	})
}

// openReader opens a blob while feed lets bytes pass.
func openReader(t *testing.T, c *Cache, d oci.Digest, offset, length int64, feed func()) oci.Reader {
	t.Helper()
	b, err := c.Blob(t.Context(), alpine, d, oci.Ask{})
	if err != nil {
		t.Fatal(err)
	}
	if feed != nil {
		go feed()
	}
	r, err := b.Open(t.Context(), offset, length)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestSlowReaderSlowsNobody: it has what it did not read from the file, later.
func TestSlowReaderSlowsNobody(t *testing.T) {
	s := newSource()
	content := pattern(41, 3*mib)
	d := s.pushBlob(alpine, content)
	open := make(chan int64)
	s.body = func(_ int, c []byte, off int64) io.Reader { return &gated{r: bytes.NewReader(c[off:]), open: open} }
	c := newCache(t, s, Config{})
	slow := openReader(t, c, d, 0, -1, func() { open <- 1; close(open) })
	mustRead(t, c, alpine, d, content)
	awaitNoFills(c)
	if _, err := c.disk.Size(d); err != nil {
		t.Errorf("while one reader has not begun to read: %v, want the blob kept", err)
	}
	if got, err := io.ReadAll(slow); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the slow reader got %d bytes, %v", len(got), err)
	}
	_ = slow.Close()
	if n := len(s.questions()); n != 1 {
		t.Errorf("upstream was asked %d times, want once", n)
	}
}

// TestRepositoriesShareAFill: one transfer, and one HEAD for each further
// repository where its right to the blob is not known.
func TestRepositoriesShareAFill(t *testing.T) {
	for _, private := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := newSource()
			content := pattern(42, 2*mib)
			d := s.pushBlob(alpine, content)
			s.pushBlob(secret, content)
			s.pushImage(mallory, "latest", content)
			other := s.pushImage(mallory, "2", content, pattern(43, 10))
			open := make(chan int64)
			s.body = func(_ int, c []byte, off int64) io.Reader { return &gated{r: bytes.NewReader(c[off:]), open: open} }
			c := newCache(t, s, Config{Private: private, Prefetch: -1})
			defer closeCache(t, c)
			if _, _, err := c.Manifest(t.Context(), mallory, other.Digest, oci.Ask{}); err != nil {
				t.Fatal(err)
			}
			s.set(func() { s.asked = nil })
			first := openReader(t, c, d, 0, -1, func() { open <- 1 })
			var readers sync.WaitGroup
			for _, repo := range []oci.Repository{alpine, secret, secret, mallory, mallory} {
				readers.Go(func() { mustRead(t, c, repo, d, content) })
			}
			synctest.Wait()
			close(open)
			readers.Wait()
			_ = first.Close()
			heads, gets := 0, 0
			for _, q := range s.questions() {
				if strings.HasPrefix(q, "HEAD ") {
					heads++
				} else {
					gets++
				}
			}
			want := map[bool]int{false: 1, true: 2}[private] // a manifest of mallory's lists it
			if gets != 1 || heads != want {
				t.Errorf("private %v: %d transfers and %d HEADs, want 1 and %d: %q", private, gets, heads, want, s.questions())
			}
		})
	}
}

func TestFillGoesOnWithoutItsReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		content := pattern(3, 2*mib)
		d := s.pushBlob(alpine, content)
		open := make(chan int64)
		s.body = func(_ int, c []byte, off int64) io.Reader { return &gated{r: bytes.NewReader(c[off:]), open: open} }
		c := newCache(t, s, Config{})
		defer closeCache(t, c)
		r := openReader(t, c, d, 0, -1, func() { open <- 10 })
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		close(open)
		synctest.Wait()
		if out := mustRead(t, c, alpine, d, content); out.Cache != oci.Hit {
			t.Errorf("after its only reader left the blob is %s, want hit", out.Cache)
		}
		if n := len(s.questions()); n != 1 {
			t.Errorf("upstream was asked %d times, want once", n)
		}
	})
}

func TestOnlySoManyFillsRunWithoutReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		gates := []chan int64{make(chan int64), make(chan int64), make(chan int64)}
		s.body = func(call int, c []byte, off int64) io.Reader {
			return &gated{r: bytes.NewReader(c[off:]), open: gates[call-1]}
		}
		c := newCache(t, s, Config{MaxOrphans: 1})
		defer closeCache(t, c)
		var blobs []oci.Digest
		for i, gate := range gates {
			d := s.pushBlob(alpine, pattern(i, 5*mib))
			blobs = append(blobs, d)
			r := openReader(t, c, d, 0, -1, func() { gate <- 4 * mib })
			synctest.Wait()
			_ = r.Close()
		}
		synctest.Wait()
		if n := c.fills.orphans("docker.io"); n != 1 {
			t.Errorf("%d fills run without readers, want 1", n)
		}
		for _, gate := range gates {
			close(gate)
		}
		time.Sleep(2 * c.cfg.Linger) // the paused ones are put away
		synctest.Wait()
		if n := c.Stats().Fills; n != 0 {
			t.Errorf("%d fills are left, want none", n)
		}
		// What the paused ones had is not fetched again.
		s.set(func() { s.body, s.moved = nil, 0 })
		for i, d := range blobs {
			mustRead(t, c, alpine, d, pattern(i, 5*mib))
		}
		if moved := s.bytesMoved(); moved > 2*mib {
			t.Errorf("%d bytes were fetched, want at most the %d that two had not", moved, 2*mib)
		}
	})
}

func TestWrongBytesNeverComplete(t *testing.T) {
	for _, size := range []int{1, 1000, smallest + 1, 3 * mib} {
		s := newSource()
		content := pattern(4, size)
		d := s.pushBlob(alpine, content)
		s.body = func(_ int, c []byte, off int64) io.Reader {
			bad := bytes.Clone(c[off:])
			bad[len(bad)/2] ^= 1
			return bytes.NewReader(bad)
		}
		c := newCache(t, s, Config{})
		got, _, err := read(t.Context(), c, alpine, d, 0, -1)
		if err == nil || len(got) >= size {
			t.Errorf("size %d: a reader got %d bytes and %v, want fewer and an error", size, len(got), err)
		}
		awaitNoFills(c)
		if _, err := c.disk.Size(d); !errors.Is(err, store.ErrNotHeld) {
			t.Errorf("size %d: wrong bytes became content", size)
		}
		if n := len(s.questions()); n != 2 {
			t.Errorf("size %d: upstream was asked %d times, want twice: %q", size, n, s.questions())
		}
		s.set(func() { s.body = nil })
		mustRead(t, c, alpine, d, content)
		closeCache(t, c)
	}
}

const smallest = 64 << 10

// awaitNoFills waits for the ends of fills whose readers have been cut.
func awaitNoFills(c *Cache) {
	for {
		c.fills.mu.Lock()
		var one *fill
		for _, f := range c.fills.running {
			one = f
		}
		c.fills.mu.Unlock()
		if one == nil {
			return
		}
		<-one.done
	}
}

func TestOneWrongBodyOfASmallBlobGoesUnnoticed(t *testing.T) {
	s := newSource()
	content := pattern(5, 2000)
	d := s.pushBlob(alpine, content)
	s.body = func(call int, c []byte, off int64) io.Reader {
		if call == 1 {
			return bytes.NewReader(make([]byte, len(c)))
		}
		return bytes.NewReader(c[off:])
	}
	mustRead(t, newCache(t, s, Config{}), alpine, d, content)
}

func TestSurplusBytesNeverComplete(t *testing.T) {
	s := newSource()
	s.noSize = true
	content := pattern(6, 100_000)
	d := s.pushBlob(alpine, content)
	s.body = func(_ int, c []byte, off int64) io.Reader {
		return bytes.NewReader(append(bytes.Clone(c[off:]), "and more"...))
	}
	c := newCache(t, s, Config{})
	if got, _, err := read(t.Context(), c, alpine, d, 0, -1); err == nil {
		t.Errorf("a reader got %d bytes and a clean end", len(got))
	}
	if _, err := c.disk.Size(d); !errors.Is(err, store.ErrNotHeld) {
		t.Error("surplus bytes became content")
	}
}

// TestBrokenTransfersGoOnFromTheByteReached: however often, as long as something
// comes in between.
func TestBrokenTransfersGoOnFromTheByteReached(t *testing.T) {
	for cuts, after := range map[int]int64{5: mib, 2 * patience: 256 << 10} {
		synctest.Test(t, func(t *testing.T) {
			s := newSource()
			content := pattern(7, 6*mib)
			d := s.pushBlob(alpine, content)
			s.body = func(call int, c []byte, off int64) io.Reader {
				if call <= cuts {
					return cutAfter(bytes.NewReader(c[off:]), after)
				}
				return bytes.NewReader(c[off:])
			}
			c := newCache(t, s, Config{})
			defer closeCache(t, c)
			mustRead(t, c, alpine, d, content)
			if moved := s.bytesMoved(); moved > int64(len(content))*105/100 {
				t.Errorf("%d cuts: %d bytes for a blob of %d, want at most 5 %% more", cuts, moved, len(content))
			}
		})
	}
}

// paced gives a piece every 10 ms, and breaks while away is true.
type paced struct {
	r    io.Reader
	away func() bool
}

func (p *paced) Read(b []byte) (int, error) {
	time.Sleep(10 * time.Millisecond)
	if p.away() {
		return 0, errCut
	}
	return p.r.Read(b[:min(len(b), 64<<10)])
}

// TestPatienceIsAMatterOfTimeNotOfStreams: an upstream that goes away in the middle of
// a blob cuts all its streams at one moment, and refuses all that follow. They are as
// patient as one would be.
func TestPatienceIsAMatterOfTimeNotOfStreams(t *testing.T) {
	content := pattern(7, 52*mib) // 8 MiB, and three segments
	for _, streams := range []int{1, 4} {
		for away, survives := range map[time.Duration]bool{20 * time.Second: true, 28 * time.Second: true, 40 * time.Second: false} {
			t.Run(fmt.Sprintf("%d streams, away for %v", streams, away), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newSource()
					d := s.pushBlob(alpine, content)
					from := time.Now().Add(time.Second)
					gone := func() bool { return !time.Now().Before(from) && time.Now().Before(from.Add(away)) }
					s.body = func(_ int, c []byte, off int64) io.Reader { return &paced{bytes.NewReader(c[off:]), gone} }
					time.AfterFunc(time.Until(from), func() { s.set(func() { s.down = errDown }) })
					time.AfterFunc(time.Until(from)+away, func() { s.set(func() { s.down = nil }) })
					c := newCache(t, s, Config{Streams: streams, StreamThreshold: 4 * mib})
					defer closeCache(t, c)
					if survives {
						mustRead(t, c, alpine, d, content)
						return
					}
					if got, _, err := read(t.Context(), c, alpine, d, 0, -1); !isCut(err) || len(got) == 0 {
						t.Errorf("a reader got %d bytes and %v, want a cut", len(got), err)
					}
					if waited := time.Since(from); waited < 25*time.Second || waited > 35*time.Second {
						t.Errorf("it was cut after %v, want about half a minute", waited)
					}
					time.Sleep(away)
				})
			})
		}
	}
}

// TestWhatIsSentAgainIsNoProgress: an upstream without ranges sends all again, and
// breaks where it broke.
func TestWhatIsSentAgainIsNoProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		s.noRanges = true
		d := s.pushBlob(alpine, pattern(8, 6*mib))
		s.body = func(_ int, c []byte, _ int64) io.Reader { return cutAfter(bytes.NewReader(c), mib) }
		c := newCache(t, s, Config{})
		defer closeCache(t, c)
		if got, _, err := read(t.Context(), c, alpine, d, 0, -1); !isCut(err) || len(got) != mib {
			t.Errorf("a reader got %d bytes and %v, want what landed and a cut", len(got), err)
		}
		if n := len(s.questions()); n != patience && n != patience+1 { // a second stream of the first moment fails as one with the first
			t.Errorf("it was asked %d times, want %d", n, patience)
		}
	})
}

func TestHopelessTransferCutsAndResumesLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		content := pattern(8, 6*mib)
		d := s.pushBlob(alpine, content)
		s.body = func(call int, c []byte, off int64) io.Reader {
			if call == 1 {
				return cutAfter(bytes.NewReader(c[off:]), 5*mib)
			}
			return broken{}
		}
		c := newCache(t, s, Config{})
		defer closeCache(t, c)
		got, _, err := read(t.Context(), c, alpine, d, 0, -1)
		if !isCut(err) || len(got) != 5*mib {
			t.Errorf("a reader got %d bytes and %v, want what landed and a cut", len(got), err)
		}
		synctest.Wait()
		s.set(func() { s.body = nil })
		before := s.bytesMoved()
		mustRead(t, c, alpine, d, content)
		if moved := s.bytesMoved() - before; moved != mib {
			t.Errorf("the next request moved %d bytes, want the missing %d", moved, mib)
		}
	})
}

func TestRestartResumesFromRecordedSpans(t *testing.T) {
	s := newSource()
	content := pattern(9, 8*mib)
	d := s.pushBlob(alpine, content)
	dir := t.TempDir()
	open := make(chan int64, 1)
	s.body = func(_ int, c []byte, off int64) io.Reader { return &gated{r: bytes.NewReader(c[off:]), open: open} }
	first := openCache(t, dir, s, Config{})
	open <- 6 * mib
	r := openReader(t, first, d, 0, -1, nil)
	if _, err := io.CopyN(io.Discard, r, 6*mib); err != nil {
		t.Fatal(err)
	}
	closeCache(t, first)
	if _, err := r.Read(make([]byte, 1)); !isCut(err) {
		t.Errorf("a reader at shutdown got %v, want a cut", err)
	}
	_ = r.Close()
	s.set(func() { s.body, s.moved = nil, 0 })
	mustRead(t, openCache(t, dir, s, Config{}), alpine, d, content)
	if moved := s.bytesMoved(); moved != 2*mib {
		t.Errorf("after a restart %d bytes were fetched, want the missing %d", moved, 2*mib)
	}
}

func TestRangeOnColdBlobFetchesAWindow(t *testing.T) {
	s := newSource()
	content := pattern(10, 20*mib)
	d := s.pushBlob(alpine, content)
	c := newCache(t, s, Config{})
	for _, off := range []int64{19*mib + 5, 3 * mib, 3*mib + 256<<10, 11 * mib} {
		got, _, err := read(t.Context(), c, alpine, d, off, 256<<10)
		if err != nil || !bytes.Equal(got, content[off:off+256<<10]) {
			t.Fatalf("range at %d: %d bytes, %v", off, len(got), err)
		}
	}
	if moved := s.bytesMoved(); moved > 4*256<<10*11/10+3*window {
		t.Errorf("%d bytes were fetched for four reads of 256 KiB, two of them neighbours", moved)
	}
	mustRead(t, c, alpine, d, content)
	if moved := s.bytesMoved(); moved > int64(len(content))*101/100 {
		t.Errorf("the whole cost %d bytes, want %d", moved, len(content))
	}
}

func TestRangeBeyondTheEndHarmsNobody(t *testing.T) {
	s := newSource()
	content := pattern(11, 100_000)
	d := s.pushBlob(alpine, content)
	c := newCache(t, s, Config{})
	for range 2 { // cold, then held
		_, _, err := read(t.Context(), c, alpine, d, 1<<40, -1)
		wantCode(t, err, oci.RangeInvalid)
		mustRead(t, c, alpine, d, content)
	}
}

// TestBigBlobComesInSeveralStreams: whether a manifest told its size, or the
// first answer does.
func TestBigBlobComesInSeveralStreams(t *testing.T) {
	content := pattern(12, 2*segment+mib)
	for _, hinted := range []bool{true, false} {
		s := newSource()
		m := s.pushImage(alpine, "latest", content)
		d := oci.Sum(content)
		var mu sync.Mutex
		var running, most int
		together := make(chan struct{})
		s.body = func(_ int, c []byte, off int64) io.Reader {
			mu.Lock()
			running++
			most = max(most, running)
			if running == 3 {
				close(together)
			}
			mu.Unlock()
			return io.MultiReader(waiting(together), bytes.NewReader(c[off:]))
		}
		c := newCache(t, s, Config{Streams: 3, StreamThreshold: 32 * mib})
		if hinted {
			if _, _, err := c.Manifest(t.Context(), alpine, m.Digest, oci.Ask{}); err != nil {
				t.Fatal(err)
			}
		}
		mustRead(t, c, alpine, d, content)
		if most < 3 {
			t.Errorf("size known before %v: %d streams at once, want 3", hinted, most)
		}
		if moved := s.bytesMoved(); moved != int64(len(content)) {
			t.Errorf("size known before %v: %d bytes moved for a blob of %d", hinted, moved, len(content))
		}
	}
}

// waiting has no bytes, and ends when it is closed.
type waiting chan struct{}

func (w waiting) Read([]byte) (int, error) {
	<-w
	return 0, io.EOF
}

// TestUpstreamWithoutRangesSendsABlobOnce: the first answer to a range tells, and
// is used as it is.
func TestUpstreamWithoutRangesSendsABlobOnce(t *testing.T) {
	all := pattern(40, segment+mib)
	for _, row := range []struct {
		size      int
		hinted    bool
		transfers int
	}{
		{segment + mib, true, 1},
		{segment + mib, false, 1},
		{10 * mib, true, 2}, // all of it is asked for at once, and only a second stream tells
	} {
		synctest.Test(t, func(t *testing.T) {
			s := newSource()
			s.noRanges = true
			content := all[:row.size]
			m := s.pushImage(alpine, "latest", content)
			c := newCache(t, s, Config{StreamThreshold: 12 * mib})
			defer closeCache(t, c)
			if row.hinted {
				if _, _, err := c.Manifest(t.Context(), alpine, m.Digest, oci.Ask{}); err != nil {
					t.Fatal(err)
				}
			}
			asked := len(s.questions())
			var readers sync.WaitGroup
			for _, offset := range []int64{0, 9 * mib} { // one of them far ahead of the stream
				readers.Go(func() {
					got, _, err := read(t.Context(), c, alpine, oci.Sum(content), offset, -1)
					if err != nil || !bytes.Equal(got, content[offset:]) {
						t.Errorf("from %d: %d bytes, %v", offset, len(got), err)
					}
				})
			}
			readers.Wait()
			if n, moved := len(s.questions())-asked, s.bytesMoved(); n > row.transfers || moved != int64(len(content)) {
				t.Errorf("%+v: %d bytes in %d transfers", row, moved, n)
			}
		})
	}
}

func TestUpstreamWithoutRangesStillResumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		s.noRanges = true
		content := pattern(13, 3*mib)
		m := s.pushImage(alpine, "latest", content)
		s.body = func(call int, c []byte, off int64) io.Reader {
			if call == 2 {
				return cutAfter(bytes.NewReader(c), mib)
			}
			return bytes.NewReader(c)
		}
		c := newCache(t, s, Config{StreamThreshold: 2 * mib})
		defer closeCache(t, c)
		if _, _, err := c.Manifest(t.Context(), alpine, m.Digest, oci.Ask{}); err != nil {
			t.Fatal(err)
		}
		got, _, err := read(t.Context(), c, alpine, oci.Sum(content), 2*mib, 1000)
		if err != nil || !bytes.Equal(got, content[2*mib:2*mib+1000]) {
			t.Fatalf("range: %d bytes, %v", len(got), err)
		}
		mustRead(t, c, alpine, oci.Sum(content), content)
	})
}

func TestEmptyBlob(t *testing.T) {
	for _, row := range []struct {
		noSize, noRanges bool
		questions        int
	}{
		{false, false, 2}, // that there is no byte, and how many there are
		{true, false, 2},
		{false, true, 1},
		{true, true, 1},
	} {
		for range 20 { // the second may come while the first is being kept
			s := newSource()
			s.noSize, s.noRanges = row.noSize, row.noRanges
			d := s.pushBlob(alpine, nil)
			c := newCache(t, s, Config{})
			mustRead(t, c, alpine, d, nil)
			mustRead(t, c, alpine, d, nil)
			if n := len(s.questions()); n != row.questions {
				t.Errorf("%+v: upstream was asked %d times: %q", row, n, s.questions())
			}
		}
	}
}

// TestBlobOfUnknownSize: its end is where upstream has no more of it.
func TestBlobOfUnknownSize(t *testing.T) {
	all := pattern(15, near+5)
	for _, row := range []struct {
		size     int
		noRanges bool
	}{{300_000, true}, {300_000, false}, {near, false}, {near + 5, false}} {
		synctest.Test(t, func(t *testing.T) {
			s := newSource()
			s.noSize, s.noRanges = true, row.noRanges
			content := all[:row.size]
			d := s.pushBlob(alpine, content)
			c := newCache(t, s, Config{})
			defer closeCache(t, c)
			mustRead(t, c, alpine, d, content)
			if out := mustRead(t, c, alpine, d, content); out.Cache != oci.Hit {
				t.Errorf("the second read is %s, want hit", out.Cache)
			}
			if moved := s.bytesMoved(); moved != int64(row.size) {
				t.Errorf("%+v: %d bytes moved: %q", row, moved, s.questions())
			}
		})
	}
}

func TestSHA512Blob(t *testing.T) {
	s := newSource()
	content := pattern(16, 100_000)
	h := sha512Of(content)
	s.blobs[alpine.String()+"@"+h.String()] = content
	c := newCache(t, s, Config{})
	mustRead(t, c, alpine, h, content)
	if out := mustRead(t, c, alpine, h, content); out.Cache != oci.Hit {
		t.Errorf("the second read is %s, want hit", out.Cache)
	}
}

func TestFailureBeforeTheFirstByteIsToldHonestly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, tc := range []struct {
			err  *oci.Error
			want oci.Code
		}{
			{&oci.Error{Code: oci.BlobUnknown}, oci.BlobUnknown},
			{&oci.Error{Code: oci.Denied}, oci.Denied},
			{&oci.Error{Code: oci.TooManyRequests, RetryAfter: time.Minute}, oci.TooManyRequests},
			{&oci.Error{Code: oci.Unavailable}, oci.Unavailable},
			{&oci.Error{Code: oci.Unavailable, RetryAfter: 10 * time.Second}, oci.Unavailable}, // by an open breaker
		} {
			s := newSource()
			d := s.pushBlob(alpine, pattern(17, 10))
			s.down = tc.err
			c := newCache(t, s, Config{})
			began := time.Now()
			_, _, err := read(t.Context(), c, alpine, d, 0, -1)
			wantCode(t, err, tc.want)
			if waited := time.Since(began); waited > 2*time.Second {
				t.Errorf("%v: told after %v", tc.err, waited)
			}
			closeCache(t, c)
		}
	})
}

// TestASmallBlobThatComesSlowly: it is given out as a whole, so that its client may wait
// in vain although bytes come. He is told so, and the fill goes on.
func TestASmallBlobThatComesSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		content := pattern(18, 60_000)
		d := s.pushBlob(alpine, content)
		open := make(chan int64, 1)
		s.body = func(_ int, c []byte, off int64) io.Reader { return &gated{r: bytes.NewReader(c[off:]), open: open} }
		c := newCache(t, s, Config{})
		defer closeCache(t, c)
		for came, want := range []string{"", "upstream has not sent all of it within 15s: 15000 of 60000 bytes have come"} {
			if came > 0 {
				open <- 15_000
			}
			ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
			_, _, err := read(ctx, c, alpine, d, 0, -1)
			cancel()
			var e *oci.Error
			if !errors.Is(err, context.DeadlineExceeded) || errors.As(err, &e) != (want != "") || e != nil && (e.Code != oci.Timeout || e.Detail != want) {
				t.Errorf("after %d pieces: %v, want %q", came, err, want)
			}
		}
		close(open)
		mustRead(t, c, alpine, d, content)
	})
}

func TestWaitingReaderLeavesWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		d := s.pushBlob(alpine, pattern(18, mib))
		open := make(chan int64)
		s.body = func(_ int, c []byte, off int64) io.Reader { return &gated{r: bytes.NewReader(c[off:]), open: open} }
		c := newCache(t, s, Config{})
		defer closeCache(t, c)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, _, err := read(ctx, c, alpine, d, 0, -1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the context's end", err)
		}
		close(open)
	})
}

func TestDiskThatCannotTakeItPassesThrough(t *testing.T) {
	s := newSource()
	content := pattern(19, 200_000)
	d := s.pushBlob(alpine, content)
	disk, err := store.Open(t.Context(), store.Config{Dir: t.TempDir(), Faults: func(op store.Op, name string) error {
		if op == store.OpCreate && filepath.Dir(filepath.Dir(name)) == "fills" {
			return errors.New("no space left on device")
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	c := New(disk, s, Config{})
	defer closeCache(t, c)
	for range 2 {
		if out := mustRead(t, c, alpine, d, content); out.Cache != oci.Bypass {
			t.Errorf("outcome %s, want bypass", out.Cache)
		}
	}
	got, _, err := read(t.Context(), c, alpine, d, 1000, 500)
	if err != nil || !bytes.Equal(got, content[1000:1500]) {
		t.Errorf("range: %d bytes, %v", len(got), err)
	}
	if got, _, err = read(t.Context(), c, alpine, d, 1000, -1); err != nil || !bytes.Equal(got, content[1000:]) {
		t.Errorf("open range: %d bytes, %v", len(got), err)
	}
	s.set(func() {
		s.body = func(_ int, c []byte, off int64) io.Reader { return bytes.NewReader(make([]byte, int64(len(c))-off)) }
	})
	if got, _, err := read(t.Context(), c, alpine, d, 0, -1); err == nil || len(got) >= len(content) {
		t.Errorf("wrong bytes passed through: %d, %v", len(got), err)
	}
}

// TestDiskThatFillsUpInTheMiddle: a pull that upstream can serve does not fail.
func TestDiskThatFillsUpInTheMiddle(t *testing.T) {
	for _, length := range []int64{-1, 2*mib + 5} {
		s := newSource()
		content := pattern(20, 3*mib)
		d := s.pushBlob(alpine, content)
		var written int
		disk, err := store.Open(t.Context(), store.Config{Dir: t.TempDir(), Faults: func(op store.Op, name string) error {
			if op == store.OpWrite && filepath.Dir(filepath.Dir(name)) == "fills" {
				if written++; written > 3 {
					return errors.New("no space left on device")
				}
			}
			return nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		c := New(disk, s, Config{})
		want := content
		if length >= 0 {
			want = content[:length]
		}
		got, _, err := read(t.Context(), c, alpine, d, 0, length)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("length %d: %d bytes, %v", length, len(got), err)
		}
		if moved := s.bytesMoved(); moved > int64(len(content))+mib {
			t.Errorf("length %d: %d bytes moved: the prefix was fetched again", length, moved)
		}
		closeCache(t, c)
	}
}

func TestPrefetchFollowsTheFirstLayer(t *testing.T) {
	for _, slots := range []int{0, -1} {
		synctest.Test(t, func(t *testing.T) {
			s := newSource()
			layers := [][]byte{pattern(1, 1000), pattern(2, 2000), pattern(3, 3000)}
			m := s.pushImage(alpine, "latest", layers...)
			c := newCache(t, s, Config{Prefetch: slots})
			defer closeCache(t, c)
			if _, _, err := c.Manifest(t.Context(), alpine, m.Digest, oci.Ask{}); err != nil {
				t.Fatal(err)
			}
			links, _ := oci.ParseLinks(m.Content)
			if _, _, err := read(t.Context(), c, alpine, links.Config.Digest, 0, -1); err != nil {
				t.Fatal(err)
			}
			if _, _, err := readAs(t.Context(), c, alpine, oci.Sum(layers[2]), oci.Ask{Ranged: true}, 0, -1); err != nil {
				t.Fatal(err)
			}
			if _, _, err := read(t.Context(), c, alpine, oci.Sum(layers[2]), 100, 10); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if n := len(s.questions()); n != 3 {
				t.Errorf("a manifest, a config and ranges led to %d questions: %q", n, s.questions())
			}
			mustRead(t, c, alpine, oci.Sum(layers[0]), layers[0])
			synctest.Wait()
			s.set(func() { s.asked = nil })
			want := 0
			if slots < 0 {
				want = 1 // the range was all of another one
			}
			for _, l := range layers {
				mustRead(t, c, alpine, oci.Sum(l), l)
			}
			if n := len(s.questions()); n != want {
				t.Errorf("prefetch %d: the other layers cost %d questions, want %d", slots, n, want)
			}
		})
	}
}

// TestAFailureIsJudgedBeforeAnotherStreamStarts: a stream may fail between a look at
// failures and one at what is to be started.
func TestAFailureIsJudgedBeforeAnotherStreamStarts(t *testing.T) {
	s := newSource()
	b := &blob{c: newCache(t, s, Config{}), repo: alpine, dg: s.pushBlob(alpine, pattern(1, 100_000)), marker: store.Marker{Size: -1}}
	f := b.c.newFill(b)
	f.whole = true
	if !f.begin() {
		t.Fatal(f.err)
	}
	f.failed = &oci.Error{Code: oci.BlobUnknown}
	var work sync.WaitGroup
	_, err := (&transfer{fill: f, work: &work}).schedule(t.Context())
	work.Wait()
	if f.end(err); err != nil || len(s.questions()) > 0 {
		t.Errorf("%v, and upstream was asked: %q", err, s.questions())
	}
}

// TestOpenRangesThatAreClosedEarly: who reads a little from somewhere on, the
// start too, gets a window, who reads on gets more and more, and who reads to the end has the blob
// proven.
func TestOpenRangesThatAreClosedEarly(t *testing.T) {
	const size, piece = 96 * mib, 256 << 10
	for _, tc := range []struct {
		name         string
		read, stride int64
		times        int
		most         int64 // bytes from upstream
	}{
		{"isolated pieces", piece, 5 * mib, 15, 15 * window},
		{"a piece before the end", piece, size - 512<<10, 2, 3 * window},
		{"a few windows", 6 * mib, 10 * mib, 2, 2 * 9 * mib},
		{"to the end", size, size - 2*mib, 2, size},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource()
				content := pattern(5, size)
				d := s.pushBlob(alpine, content)
				c := newCache(t, s, Config{Prefetch: -1})
				defer closeCache(t, c)
				for i := range tc.times {
					offset := int64(i) * tc.stride
					want := content[offset:min(offset+tc.read, size)]
					b, err := c.Blob(t.Context(), alpine, d, oci.Ask{Ranged: true})
					if err != nil {
						t.Fatal(err)
					}
					r, err := b.Open(t.Context(), offset, -1)
					if err != nil {
						t.Fatal(err)
					}
					got := make([]byte, len(want))
					if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, want) {
						t.Errorf("at %d: %v", offset, err)
					}
					synctest.Wait()
					if err := r.Close(); err != nil {
						t.Error(err)
					}
					synctest.Wait()
				}
				if moved := s.bytesMoved(); moved > tc.most {
					t.Errorf("%d bytes came from upstream, want %d at most", moved, tc.most)
				}
			})
		})
	}
}

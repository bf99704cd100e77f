package cache

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"entrepot/oci"
	"entrepot/store"
)

var (
	modelSeed  = flag.Uint64("model.seed", 0, "seed of the random schedule; 0 for a new one")
	modelSteps = flag.Int("model.steps", 100, "steps of the random schedule")
)

// world is a cache under a random schedule, beside the model that it is held
// against: the model is the source's content, which never changes.
type world struct {
	t      *testing.T
	rng    *rand.Rand
	dir    string
	budget int64
	source *source
	cache  *Cache
	blobs  []oci.Digest
	bytes  map[oci.Digest][]byte
	repos  []oci.Repository

	mu      sync.Mutex          // guards what follows
	faulty  int                 // of a hundred bodies so many are bad
	full    bool                // the disk refuses what is written to fills
	worn    int                 // of a hundred pieces of files so many cannot be read: no reason for anything to fail that has no bytes yet
	spoilt  map[spot]bool       // what bad bodies had in them
	cut     map[oci.Digest]bool // fills that were cut under the cache
	closing bool
	pulls   sync.WaitGroup
}

// spot is a byte that upstream sent wrong.
type spot struct {
	blob oci.Digest
	at   int64
}

// TestRandomScheduleAgainstModel runs readers, ranges, leaving clients, broken
// and wrong bodies, full and worn disks, deletions, truncations and restarts in random
// order. Whatever happens, a reader gets the right bytes, or an error before
// the end of them; and without faults it gets them all.
func TestRandomScheduleAgainstModel(t *testing.T) {
	for _, budget := range []int64{0, 14 * mib} {
		t.Run(fmt.Sprintf("budget %d", budget), func(t *testing.T) { runSchedule(t, budget) })
	}
}

func runSchedule(t *testing.T, budget int64) {
	t.Helper()
	seed := *modelSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-model.seed %d -model.steps %d", seed, *modelSteps)
	w := newWorld(t, seed, budget)
	defer func() { closeCache(t, w.cache) }()
	steps := []struct {
		weight int
		run    func()
	}{
		{40, w.readSome},
		{8, w.readAndLeave},
		{6, w.setFaults},
		{3, w.setFull},
		{3, w.setWorn},
		{4, w.deleteSomething},
		{3, w.truncateSomething},
		{3, w.truncateFills},
		{2, w.restart},
		{2, w.pulls.Wait},
	}
	total := 0
	for _, s := range steps {
		total += s.weight
	}
	for range *modelSteps {
		n := w.rng.IntN(total)
		for _, s := range steps {
			if n -= s.weight; n < 0 {
				s.run()
				break
			}
		}
	}
	w.pulls.Wait()
	w.calm()
	awaitNoFills(w.cache)
	for _, d := range w.blobs {
		got, _, err := read(t.Context(), w.cache, alpine, d, 0, -1)
		w.check(d, 0, -1, got, err)
		if err != nil { // it got what a bad body had left on disk, which is gone now
			mustRead(t, w.cache, alpine, d, w.bytes[d])
		}
	}
}

func newWorld(t *testing.T, seed uint64, budget int64) *world {
	t.Helper()
	w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 2)), dir: t.TempDir(), budget: budget, source: newSource(), bytes: map[oci.Digest][]byte{}, spoilt: map[spot]bool{}, cut: map[oci.Digest]bool{}}
	w.repos = []oci.Repository{alpine, mallory, secret, {Host: "ghcr.io", Path: "library/alpine"}}
	for i, size := range []int{0, 1, 1000, smallBlobSize + 1, 300_000, 5 * mib, 9*mib + 13} {
		b := pattern(i+100, size)
		var d oci.Digest
		for _, repo := range w.repos {
			d = w.source.pushBlob(repo, b)
		}
		w.blobs = append(w.blobs, d)
		w.bytes[d] = b
	}
	w.source.body = w.body
	w.open()
	return w
}

const smallBlobSize = 64 << 10

func (w *world) open() {
	disk, err := store.Open(w.t.Context(), store.Config{Dir: w.dir, Memory: 1 << 20, Budget: w.budget, Faults: w.disk})
	if err != nil {
		w.t.Fatal(err)
	}
	w.cache = New(disk, w.source, Config{StreamThreshold: 4 * mib, Streams: 3, TTL: time.Hour, Linger: 5 * time.Millisecond})
}

func (w *world) disk(op store.Op, name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.full && (op == store.OpWrite || op == store.OpCreate) && filepath.Dir(filepath.Dir(name)) == "fills" {
		return errors.New("no space left on device")
	}
	if op == store.OpRead && rand.IntN(100) < w.worn {
		return syscall.EIO
	}
	return nil
}

// body is what upstream sends: mostly right.
func (w *world) body(_ int, content []byte, offset int64) io.Reader {
	w.mu.Lock()
	defer w.mu.Unlock()
	bad, kind := rand.IntN(100) < w.faulty, rand.IntN(3)
	rest := content[offset:]
	if !bad || len(rest) == 0 {
		return bytes.NewReader(rest)
	}
	at := rand.IntN(len(rest))
	switch kind {
	case 0:
		return cutAfter(bytes.NewReader(rest), int64(at))
	case 1:
		return bytes.NewReader(rest[:at])
	}
	wrong := bytes.Clone(rest)
	wrong[at] ^= 1
	w.spoilt[spot{oci.Sum(content), offset + int64(at)}] = true
	return bytes.NewReader(wrong)
}

func (w *world) pick() (oci.Repository, oci.Digest) {
	return w.repos[w.rng.IntN(len(w.repos))], w.blobs[w.rng.IntN(len(w.blobs))]
}

// readSome has a few clients read a blob, or stretches of it, at once.
func (w *world) readSome() {
	repo, d := w.pick()
	content, c := w.bytes[d], w.cache
	for range 1 + w.rng.IntN(4) {
		offset, length := int64(0), int64(-1)
		if len(content) > 1 && w.rng.IntN(2) == 0 {
			offset = w.rng.Int64N(int64(len(content)))
			if w.rng.IntN(2) == 0 {
				length = 1 + w.rng.Int64N(int64(len(content))-offset)
			}
		}
		w.pulls.Go(func() {
			got, _, err := read(context.Background(), c, repo, d, offset, length)
			w.check(d, offset, length, got, err)
		})
	}
}

// check holds what a client got against the model.
func (w *world) check(d oci.Digest, offset, length int64, got []byte, err error) {
	want := w.bytes[d][offset:]
	if length >= 0 {
		want = want[:min(length, int64(len(want)))]
	}
	if err == nil && bytes.Equal(got, want) {
		return
	}
	what := fmt.Sprintf("%s from %d, %d: %d of %d bytes, %v", d, offset, length, len(got), len(want), err)
	switch explicit := length >= 0; {
	case err == nil && !explicit:
		w.t.Errorf("a clean end of something else: %s", what)
	case len(got) >= len(want) && len(want) > 0 && !explicit:
		w.t.Errorf("every byte, and then an error: %s", what)
	case len(got) > 0 && errors.Is(err, store.ErrDisk):
		// What it got could not be read back to be proven: a cut is all it can have.
	case len(got) > 0 && saidWrong(err) && w.wasSpoilt(d):
		// It got what a bad body had left on disk.
	case err == nil && explicit && w.isOnlySpoilt(d, offset, got, want):
		// Likewise, and a range passes as it lands.
	case w.wasCut(d) && (err != nil || explicit):
		// Likewise of what was cut while it came in.
	case w.wellBehaved():
		w.t.Errorf("failed though nothing was wrong: %s", what)
	}
}

// wellBehaved reports that nothing has been wrong since the last restart.
func (w *world) wellBehaved() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.faulty == 0 && !w.closing && !w.full
}

// saidWrong: the bytes were found not to be what the digest names.
func saidWrong(err error) bool {
	coded, ok := errors.AsType[*oci.Error](err)
	return errors.Is(err, store.ErrMismatch) || ok && coded.Code == oci.BadUpstream
}

func (w *world) wasSpoilt(d oci.Digest) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for s := range w.spoilt {
		if s.blob == d {
			return true
		}
	}
	return false
}

// isOnlySpoilt reports that got, from offset on, is want but for what upstream
// sent wrong.
func (w *world) isOnlySpoilt(d oci.Digest, offset int64, got, want []byte) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range got {
		if got[i] != want[i] && !w.spoilt[spot{d, offset + int64(i)}] {
			return false
		}
	}
	return len(got) == len(want)
}

// readAndLeave starts a read and goes away in the middle.
func (w *world) readAndLeave() {
	repo, d := w.pick()
	c, n := w.cache, w.rng.Int64N(int64(len(w.bytes[d]))+1)
	w.pulls.Go(func() {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		b, err := c.Blob(ctx, repo, d, oci.Ask{})
		if err != nil {
			return
		}
		r, err := b.Open(ctx, 0, -1)
		if err != nil {
			return
		}
		defer r.Close()
		_, _ = io.CopyN(io.Discard, r, n)
	})
}

// setFaults changes how bad upstream is, when nobody reads: a failure can then
// be told from one that had no reason.
func (w *world) setFaults() {
	w.pulls.Wait()
	awaitNoReaders(w.cache)
	w.mu.Lock()
	w.faulty = []int{0, 0, 0, 10, 40}[w.rng.IntN(5)]
	w.mu.Unlock()
}

func (w *world) setFull() {
	w.pulls.Wait()
	w.mu.Lock()
	w.full = w.rng.IntN(2) == 0
	w.mu.Unlock()
	w.cache.unkept.clear() // as after the minute for which the disk is left alone
}

func (w *world) setWorn() {
	w.mu.Lock()
	w.worn = []int{0, 0, 2, 20}[w.rng.IntN(4)]
	w.mu.Unlock()
}

func (w *world) calm() {
	w.mu.Lock()
	w.faulty, w.full, w.worn = 0, false, 0
	w.mu.Unlock()
}

// awaitNoReaders waits until what runs has ended: with faults gone, fills that
// began with them may still be failing.
func awaitNoReaders(c *Cache) {
	c.fills.mu.Lock()
	var all []*fill
	for _, f := range c.fills.running {
		all = append(all, f)
	}
	c.fills.mu.Unlock()
	for _, f := range all {
		f.mu.Lock()
		whole := f.whole
		f.mu.Unlock()
		if whole {
			<-f.done
		}
	}
}

// files lists what lies in the data directory.
func (w *world) files() (names []string) {
	_ = filepath.WalkDir(w.dir, func(name string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && filepath.Base(name) != "lock" && filepath.Base(name) != "VERSION" {
			names = append(names, name)
		}
		return nil
	})
	return names
}

// deleteSomething removes a file, or everything of a kind, under our feet.
func (w *world) deleteSomething() {
	if w.rng.IntN(4) == 0 {
		_ = os.RemoveAll(filepath.Join(w.dir, []string{"blobs", "repos", "blobs/sha256"}[w.rng.IntN(3)]))
		return
	}
	if names := w.files(); len(names) > 0 {
		_ = os.Remove(names[w.rng.IntN(len(names))])
	}
}

// truncateSomething cuts a held file short while nobody reads it.
func (w *world) truncateSomething() {
	w.pulls.Wait()
	awaitNoFills(w.cache)
	_ = filepath.WalkDir(filepath.Join(w.dir, "blobs"), func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return nil
		}
		if info, err := e.Info(); err == nil && info.Size() > 0 && w.rng.IntN(2) == 0 {
			_ = os.Chmod(name, 0o644)
			_ = os.Truncate(name, w.rng.Int64N(info.Size()))
			_ = os.Chmod(name, 0o444)
		}
		return nil
	})
}

// truncateFills cuts what is on its way in, whoever reads it.
func (w *world) truncateFills() {
	for _, d := range w.blobs {
		name := filepath.Join(w.dir, "fills", d.Algorithm(), d.Hex())
		info, err := os.Stat(name)
		if err != nil || info.Size() == 0 {
			continue
		}
		w.mu.Lock()
		w.cut[d] = true
		w.mu.Unlock()
		_ = os.Truncate(name, w.rng.Int64N(info.Size()))
	}
}

func (w *world) wasCut(d oci.Digest) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cut[d]
}

// restart closes the cache while it works, and opens it again.
func (w *world) restart() {
	w.setClosing(true)
	closeCache(w.t, w.cache)
	w.pulls.Wait()
	w.open()
	w.setClosing(false)
}

func (w *world) setClosing(closing bool) {
	w.mu.Lock()
	w.closing = closing
	w.mu.Unlock()
}

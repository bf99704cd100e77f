package store

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
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"entrepot/oci"
)

var (
	modelSeed   = flag.Uint64("model.seed", 0, "seed of the model test; 0 draws one")
	modelRounds = flag.Int("model.rounds", 4, "rounds of the model test, each from one opening of the store to its end or crash")
	modelSteps  = flag.Int("model.steps", 30, "steps of each of its workers in a round")
)

var errCrashed = errors.New("the machine is off")

// model runs a store under a random schedule beside what must be true of it:
// what is held is right, what is pinned stays, the budget holds, and the account
// never says less than the disk.
type model struct {
	t      *testing.T
	dir    string
	budget int64
	blobs  [][]byte
	names  []oci.Digest

	world sync.RWMutex // held shared by each step, alone to measure
	busy  []sync.Mutex // one for each blob: the caller's duty of one fill at a time
	off   atomic.Bool  // after a crash nothing changes on disk any more
	fuse  atomic.Int64 // operations until a crash; below zero: none
	d     *Disk

	mu       sync.Mutex // guards the fields below
	pinned   map[int]bool
	finished int // fills that were kept
	served   int // reads that were hits
}

func TestModel(t *testing.T) {
	t.Parallel()
	seed := *modelSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-model.seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	m := &model{t: t, dir: t.TempDir(), budget: 16 << 20, pinned: make(map[int]bool)}
	for i := range 40 {
		n := rng.IntN(900_000)
		switch i % 8 {
		case 0:
			n = minRecorded + rng.IntN(mib)
		case 1:
			n = rng.IntN(3000)
		}
		m.blobs = append(m.blobs, content(i, n))
		m.names = append(m.names, oci.Sum(m.blobs[i]))
	}
	m.busy = make([]sync.Mutex, len(m.blobs))
	for round := range *modelRounds {
		m.round(round, rng)
	}
	if m.finished == 0 || m.served == 0 {
		t.Errorf("%d fills were kept and %d reads were hits: the schedule tests nothing", m.finished, m.served)
	}
}

// round opens the store, lets workers loose on it, and closes it or lets it
// crash.
func (m *model) round(round int, rng *rand.Rand) {
	m.off.Store(false)
	m.fuse.Store(-1)
	if round%2 == 1 {
		m.fuse.Store(200 + rng.Int64N(1500))
	}
	d, err := Open(context.Background(), Config{Dir: m.dir, Memory: 1 << 20, LockWait: time.Nanosecond, Budget: m.budget, ScrubRate: 20 << 20, Faults: m.fault})
	if err != nil {
		m.t.Fatalf("round %d: %v", round, err)
	}
	m.d = d
	ctx, cancel := context.WithCancel(m.t.Context())
	var workers, watcher sync.WaitGroup
	for range 4 {
		own := rand.New(rand.NewPCG(rng.Uint64(), 1))
		workers.Go(func() {
			for range *modelSteps {
				m.step(ctx, own)
			}
		})
	}
	watcher.Go(func() {
		for sleep(ctx, 20*time.Millisecond) == nil {
			m.measure(round)
		}
	})
	workers.Wait()
	cancel()
	watcher.Wait()
	m.measure(round)
	if err := d.Close(); err != nil {
		m.t.Errorf("round %d: close: %v", round, err)
	}
	m.inspect(round)
}

// fault fails everything once the machine is off.
func (m *model) fault(Op, string) error {
	if m.fuse.Load() >= 0 && m.fuse.Add(-1) < 0 {
		m.off.Store(true)
	}
	if m.off.Load() {
		return errCrashed
	}
	return nil
}

// measure stops the world and holds the account against the disk.
func (m *model) measure(round int) {
	m.world.Lock()
	defer m.world.Unlock()
	said := m.d.account.held()
	used := du(m.t, m.dir)
	if used > m.budget {
		m.t.Errorf("round %d: %d bytes are used, the budget is %d", round, used, m.budget)
	}
	if m.d.isCounted() && !m.off.Load() && said+16<<10 < used {
		m.t.Errorf("round %d: the account says %d, the directory takes %d", round, said, used)
	}
}

// inspect opens the store anew and holds all that is in it against the
// reference.
func (m *model) inspect(round int) {
	m.off.Store(false)
	m.fuse.Store(-1)
	d, err := Open(context.Background(), Config{Dir: m.dir, LockWait: time.Nanosecond, Budget: m.budget})
	if err != nil {
		m.t.Fatalf("round %d: %v", round, err)
	}
	<-d.counted
	if said, used := d.account.held(), du(m.t, m.dir); said < used || said > used+64<<10 {
		m.t.Errorf("round %d, opened again: the account says %d, the directory takes %d", round, said, used)
	}
	for i, dg := range m.names {
		got, err := readAll(m.t, d, dg, int64(len(m.blobs[i])))
		switch {
		case err == nil && !bytes.Equal(got, m.blobs[i]):
			m.t.Errorf("round %d: blob %d is wrong", round, i)
		case err != nil && !errors.Is(err, ErrNotHeld):
			m.t.Errorf("round %d: blob %d: %v", round, i, err)
		case err != nil && m.pinned[i]:
			m.t.Errorf("round %d: blob %d was pinned and is gone", round, i)
		}
	}
	err = fs.WalkDir(os.DirFS(m.dir), ".", func(name string, e fs.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(e.Name(), ".") && name != "." {
			m.t.Errorf("round %d: %s was left", round, name)
		}
		return err
	})
	if err := errors.Join(err, d.Close()); err != nil {
		m.t.Errorf("round %d: %v", round, err)
	}
}

func (m *model) step(ctx context.Context, rng *rand.Rand) {
	m.world.RLock()
	defer m.world.RUnlock()
	i := min(rng.IntN(len(m.blobs)), rng.IntN(len(m.blobs))) // some more often than others
	var err error
	switch rng.IntN(20) {
	case 0, 1, 2, 3, 4, 5:
		err = m.read(ctx, rng, i)
	case 6, 7, 8, 9, 10, 11:
		err = m.fill(ctx, rng, i)
	case 12:
		if len(m.blobs[i]) <= maxInMemory {
			err = m.d.PutFrom(m.names[i], m.blobs[i], "docker.io")
		}
	case 13:
		err = m.d.Mark(busybox, m.names[i], Marker{State: Named, Size: int64(len(m.blobs[i]))})
	case 14:
		err = m.d.PutTag(busybox, fmt.Sprintf("t%d", i), Tag{Digest: m.names[i]})
	case 15:
		err = m.pin(ctx, i)
	case 16, 17:
		m.vandalise(rng, i)
	case 18:
		_, err = m.d.DryRun(ctx, 3)
	case 19:
		_, err = m.d.Prune(ctx, Pruning{Unused: time.Duration(rng.IntN(2)) * time.Hour})
	}
	if err != nil && !errors.Is(err, errCrashed) && !errors.Is(err, ErrCannotKeep) && !errors.Is(err, ErrNotHeld) {
		m.t.Errorf("blob %d: %v", i, err)
	}
}

// read may miss, but never gives wrong bytes.
func (m *model) read(ctx context.Context, rng *rand.Rand, i int) error {
	want := m.blobs[i]
	c, err := m.d.Open(ctx, m.names[i], int64(len(want)))
	if err != nil {
		return err
	}
	from := rng.IntN(len(want) + 1)
	to := from + rng.IntN(len(want)-from+1)
	s, err := c.Section(int64(from), int64(to-from))
	if err != nil {
		return err
	}
	defer s.Close()
	got, err := io.ReadAll(s)
	if !bytes.Equal(got, want[from:min(to, from+len(got))]) {
		m.t.Errorf("blob %d, %d to %d: wrong bytes", i, from, to)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) { // cut under our feet
		return nil
	}
	if err == nil {
		m.mu.Lock()
		m.served++
		m.mu.Unlock()
	}
	return err
}

// fill brings a blob in, in pieces of any order, some of it or all, right or
// wrong, while somebody reads along.
func (m *model) fill(ctx context.Context, rng *rand.Rand, i int) error {
	if !m.busy[i].TryLock() {
		return nil
	}
	defer m.busy[i].Unlock()
	want, wrong := m.blobs[i], rng.IntN(10) == 0 && len(m.blobs[i]) > 0
	upstream := []string{"docker.io", "ghcr.io"}[rng.IntN(2)]
	f, err := m.d.Fill(m.names[i], oci.Repository{Host: upstream, Path: "a"})
	if err != nil {
		return err
	}
	reader, cancel := context.WithCancel(ctx)
	var reading sync.WaitGroup
	r := f.Open(reader, 0, -1)
	reading.Go(func() { m.follow(r, i) })
	err = m.pour(ctx, rng, f, want, wrong)
	cancel()
	reading.Wait()
	return errors.Join(err, f.Close())
}

func (m *model) pour(ctx context.Context, rng *rand.Rand, f *Fill, want []byte, wrong bool) error {
	if err := f.SetSize(int64(len(want))); err != nil {
		return err
	}
	var pieces []Span
	for at := int64(0); at < int64(len(want)); {
		gap := f.Gap(Span{at, min(int64(len(want)), at+1+rng.Int64N(400_000))})
		if gap.Len() > 0 {
			pieces = append(pieces, gap)
		}
		at = gap.End
	}
	rng.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
	whole := rng.IntN(3) > 0
	if !whole {
		pieces = pieces[:len(pieces)/2]
	}
	for _, p := range pieces {
		b := want[p.Start:p.End]
		if wrong {
			b = bytes.Clone(b)
			b[0] ^= 1
		}
		if _, err := f.WriteAt(b, p.Start); err != nil {
			return err
		}
	}
	if !whole {
		return nil
	}
	if err := f.Follow(ctx); err != nil {
		return err
	}
	err := f.Commit()
	switch {
	case errors.Is(err, ErrMismatch): // by this fill's bytes, or unproven ones of an earlier one
		return nil
	case err == nil && wrong && len(pieces) > 0:
		m.t.Error("wrong bytes passed the gate")
	case err == nil:
		m.mu.Lock()
		m.finished++
		m.mu.Unlock()
	}
	return err
}

// follow reads a fill to its end: what completes is right.
func (m *model) follow(r *FillReader, i int) {
	defer r.Close()
	got, err := io.ReadAll(r)
	if err == nil && !bytes.Equal(got, m.blobs[i]) {
		m.t.Errorf("blob %d: a reader of the fill got the whole, and it is wrong", i)
	}
}

// pin protects a blob if it is held; few are, or nothing else would fit.
func (m *model) pin(ctx context.Context, i int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	reference := m.names[i].String()
	if m.pinned[i] {
		delete(m.pinned, i)
		err := m.d.Unpin(ctx, busybox, reference)
		if err != nil {
			m.pinned[i] = m.off.Load()
		}
		return err
	}
	if len(m.pinned) >= 3 || len(m.blobs[i]) > mib {
		return nil
	}
	if err := m.d.Pin(ctx, busybox, reference); err != nil {
		return err
	}
	if info, err := m.d.root.Lstat(blobName(m.names[i])); err == nil && info.Size() == int64(len(m.blobs[i])) {
		m.pinned[i] = true
		return nil
	}
	return m.d.Unpin(ctx, busybox, reference)
}

// vandalise is somebody else in the data directory, who spares only pins.
func (m *model) vandalise(rng *rand.Rand, i int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	name := blobFile(m.dir, m.names[i])
	switch rng.IntN(10) {
	case 0, 1, 2:
		if !m.pinned[i] {
			_ = os.Remove(name)
		}
	case 3, 4:
		if !m.pinned[i] {
			_ = errors.Join(os.Chmod(name, 0o644), os.Truncate(name, int64(len(m.blobs[i])/2)), os.Chmod(name, 0o444))
		}
	case 5:
		_ = os.RemoveAll(filepath.Join(m.dir, fillsDir))
	case 6:
		_ = os.RemoveAll(filepath.Join(m.dir, reposDir))
	case 7:
		_ = os.RemoveAll(filepath.Join(m.dir, stateDir))
	case 8, 9: // a fill that runs, or lies idle
		_ = os.Truncate(filepath.Join(m.dir, fillName(m.names[i])), rng.Int64N(int64(len(m.blobs[i])+1)))
	}
}

package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/oci"
)

// du is what everything below dir takes on disk.
func du(t testing.TB, dir string) (total int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil // removed meanwhile
		}
		if info, err := e.Info(); err == nil {
			total += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return total
}

// openBudget opens a data directory with a budget.
func openBudget(t testing.TB, dir string, budget int64, change func(*Config)) *Disk {
	t.Helper()
	cfg := Config{Dir: dir, Memory: 1 << 20, LockWait: time.Nanosecond, Budget: budget}
	if change != nil {
		change(&cfg)
	}
	d, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	return d
}

// put makes content of n bytes held, last used some time ago.
func put(t testing.TB, d *Disk, seed, n int, upstream string, age time.Duration) oci.Digest {
	t.Helper()
	b := content(seed, n)
	dg := oci.Sum(b)
	if err := d.PutFrom(dg, b, upstream); err != nil {
		t.Fatal(err)
	}
	use(t, d, dg, age)
	return dg
}

// use sets how long ago content was last used.
func use(t testing.TB, d *Disk, dg oci.Digest, age time.Duration) {
	t.Helper()
	info, err := d.root.Lstat(blobName(dg))
	if err != nil {
		t.Fatal(err)
	}
	stamp := hintOf(info.ModTime()).stamp(time.Now().Add(-age))
	if err := d.root.Chtimes(blobName(dg), stamp, stamp); err != nil {
		t.Fatal(err)
	}
}

// churn changes d in every way that it can be changed.
func churn(t *testing.T, d *Disk, rng *rand.Rand, steps int) {
	t.Helper()
	for range steps {
		seed := rng.IntN(40)
		b := content(seed, 1000+seed*seed*300)
		dg := oci.Sum(b)
		repo := oci.Repository{Host: "docker.io", Path: fmt.Sprintf("library/r%d", rng.IntN(30))}
		var err error
		switch rng.IntN(8) {
		case 0:
			err = d.PutFrom(dg, b, "docker.io")
		case 1:
			err = d.Mark(repo, dg, Marker{State: Proven, Size: int64(len(b))})
		case 2:
			err = d.PutTag(repo, fmt.Sprintf("t%d", rng.IntN(9)), Tag{Digest: dg})
		case 3:
			if d.inUse.claim(dg) {
				_, err = d.remove(blobName(dg))
				d.inUse.unclaim(dg)
			}
		default:
			err = churnFill(d, rng, dg, b)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrNoRoom) {
			t.Error(err)
		}
	}
}

// churnFill writes some of a fill, or all of it. One goroutine at a time has a
// digest.
func churnFill(d *Disk, rng *rand.Rand, dg oci.Digest, b []byte) error {
	if _, busy := churning.LoadOrStore(dg, true); busy {
		return nil
	}
	defer churning.Delete(dg)
	f, err := d.Fill(dg, busybox)
	if err != nil {
		return err
	}
	whole := rng.IntN(2) == 0
	if err = f.SetSize(int64(len(b))); err == nil {
		for at := 0; at < len(b) && err == nil; at += 50_000 {
			if whole || rng.IntN(2) == 0 {
				_, err = f.WriteAt(b[at:min(at+50_000, len(b))], int64(at))
			}
		}
	}
	if err == nil && whole {
		if err = f.Follow(context.Background()); err == nil {
			err = f.Commit()
		}
	}
	return errors.Join(err, f.Close())
}

var churning sync.Map

// TestWalkCountsWhileThingsChange: what a walk finds must be right whatever
// happens before, behind and under it.
func TestWalkCountsWhileThingsChange(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	dir := t.TempDir()
	d := openBudget(t, dir, 0, nil)
	<-d.counted
	ctx, cancel := context.WithCancel(t.Context())
	var work, walks sync.WaitGroup
	for part := range 4 {
		work.Go(func() { churn(t, d, rand.New(rand.NewPCG(seed, uint64(part))), 80) })
	}
	walks.Go(func() {
		for ctx.Err() == nil {
			_ = d.count(ctx, nil)
		}
	})
	work.Wait()
	cancel()
	walks.Wait()
	a := d.account
	if got, want := a.settled, du(t, dir); got != want || a.writing != 0 {
		t.Errorf("after %d names' worth: settled %d, writing %d; the directory takes %d", a.names, got, a.writing, want)
	}
	if err := d.count(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if got, want := a.held(), du(t, dir); got != want {
		t.Errorf("after a walk in peace: held %d, the directory takes %d", got, want)
	}
	closeDisk(t, d)
	d = openBudget(t, dir, 0, nil)
	if got, want := d.account.held(), du(t, dir); got < want || got > want+64<<10 {
		t.Errorf("before the first walk: held %d, the directory takes %d", got, want)
	}
}

// TestBudgetHoldsAtEveryStep measures the directory before each operation of a
// busy store that is always full.
func TestBudgetHoldsAtEveryStep(t *testing.T) {
	t.Parallel()
	const budget = 6 << 20
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	dir := t.TempDir()
	var mu sync.Mutex // guards most
	most := int64(0)
	d := openBudget(t, dir, budget, func(cfg *Config) {
		cfg.Faults = func(Op, string) error {
			mu.Lock()
			defer mu.Unlock()
			most = max(most, du(t, dir))
			return nil
		}
	})
	rng := rand.New(rand.NewPCG(seed, 1))
	<-d.counted
	for i := 0; i < 40 || i < 400 && d.Stats().Evicted < 10; i++ {
		b := content(i, 1+rng.IntN(700_000))
		if rng.IntN(3) == 0 {
			b = b[:1+len(b)/100]
		}
		if err := churnFill(d, rng, oci.Sum(b), b); err != nil && !errors.Is(err, ErrNoRoom) {
			t.Fatal(err)
		}
		if err := d.Mark(busybox, oci.Sum(b), Marker{State: Proven}); err != nil && !errors.Is(err, ErrNoRoom) {
			t.Fatal(err)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if most > budget {
		t.Errorf("at most %d bytes were used, the budget is %d", most, budget)
	}
	if most < budget*8/10 {
		t.Errorf("at most %d bytes were used of a budget of %d: the test does not fill it", most, budget)
	}
	if d.Stats().Evicted == 0 {
		t.Error("nothing was evicted")
	}
}

func TestWhatCannotBeKeptSaysWhy(t *testing.T) {
	broken := errors.New("injected")
	fail := map[Op]error{}
	d := openBudget(t, t.TempDir(), 8<<20, func(cfg *Config) {
		cfg.Faults = func(op Op, _ string) error { return fail[op] }
	})
	<-d.counted
	dg := oci.Sum([]byte("x"))
	f, err := d.Fill(dg, busybox)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		op   Op
		err  error
		do   func() error
		want error
	}{
		{"a blob larger than the budget", "", nil, func() error { return f.SetSize(8 << 20) }, ErrTooLarge},
		{"an absurd size", "", nil, func() error { return f.SetSize(1<<63 - 1) }, ErrTooLarge},
		{"a write that fails", OpWrite, broken, func() error { _, err := f.WriteAt([]byte("x"), 0); return err }, ErrDisk},
		{"a full disk", OpWrite, syscall.ENOSPC, func() error { _, err := f.WriteAt([]byte("x"), 0); return err }, ErrDisk},
		{"a short write", OpWrite, ShortWrite(1), func() error { _, err := f.WriteAt([]byte("xy"), 0); return err }, ErrDisk},
		{"a file that cannot be made", OpCreate, syscall.EROFS, func() error { _, err := d.Fill(oci.Sum([]byte("y")), busybox); return err }, ErrDisk},
		{"a manifest that cannot be synced", OpSync, syscall.EIO, func() error { return d.Put(dg, []byte("x")) }, ErrDisk},
		{"a marker that cannot be written", OpRename, syscall.EIO, func() error { return d.Mark(busybox, dg, Marker{State: Named}) }, ErrDisk},
	} {
		clear(fail)
		fail[tc.op] = tc.err
		err := tc.do()
		if !errors.Is(err, tc.want) || !errors.Is(err, ErrCannotKeep) || tc.err != nil && !errors.Is(err, tc.err) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
	clear(fail)
	if n := f.Landed(); n != 1 {
		t.Errorf("%d bytes landed, want the one before the short write ended", n)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// TestNoRoomIsSaidSoon: what is open is not evicted, so that nothing is left to
// make room with; the writer is told so in bounded time, and finds room again
// once something is closed.
func TestNoRoomIsSaidSoon(t *testing.T) {
	d := openBudget(t, t.TempDir(), 4<<20, nil)
	<-d.counted
	first, err := d.Fill(oci.Sum(nil), busybox)
	if err != nil {
		t.Fatal(err)
	}
	b := content(1, 100_000)
	var full int64
	for full = 0; err == nil; full += int64(len(b)) {
		_, err = first.WriteAt(b, full)
	}
	if !errors.Is(err, ErrNoRoom) || full < 3<<20 {
		t.Fatalf("after %d bytes: %v, want no room", full, err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := d.Fill(oci.Sum([]byte("second")), busybox)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if _, err := second.WriteAt(b, 0); err != nil {
		t.Errorf("after the other was closed: %v", err)
	}
}

// TestRoomIsForWhoReservedItFirst: until that one has ended.
func TestRoomIsForWhoReservedItFirst(t *testing.T) {
	d := openBudget(t, t.TempDir(), 8*mib, nil)
	begin := func(seed int, size int64) *Fill {
		f, err := d.Fill(oci.Sum(content(seed, 10)), busybox)
		if err == nil {
			err = f.SetSize(size)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	first, second, third := begin(1, 5*mib), begin(2, 5*mib), begin(3, 2*mib)
	for range 2 { // it is the same room
		if err := first.Reserve(); err != nil {
			t.Errorf("the first: %v", err)
		}
	}
	if err := second.Reserve(); !errors.Is(err, ErrNoRoom) {
		t.Errorf("the second: %v, want %v", err, ErrNoRoom)
	}
	if err := third.Reserve(); err != nil {
		t.Errorf("what fits beside the first: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := second.Reserve(); err != nil {
		t.Errorf("once the first has ended: %v", err)
	}
}

func TestHostileSizesEvictNothing(t *testing.T) {
	d := openBudget(t, t.TempDir(), 8<<20, nil)
	<-d.counted
	for i := range 20 {
		put(t, d, i, 300_000, "docker.io", time.Hour)
	}
	for i := range 50 {
		dg := oci.Sum([]byte{byte(i)})
		if err := d.Mark(busybox, dg, Marker{State: Named, Size: 1 << 60}); err != nil {
			t.Fatal(err)
		}
		f, err := d.Fill(dg, busybox)
		if err != nil {
			t.Fatal(err)
		}
		_ = f.SetSize(7 << 20) // by a header that lies
		_ = f.Reserve()
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if n := d.Stats().Evicted; n != 0 {
		t.Errorf("%d blobs were evicted for bytes that never came", n)
	}
}

// disk is a file system of which tests say what is free.
type disk struct {
	mu          sync.Mutex
	total, free int64
}

func (s *disk) space() (total, free int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total, s.free, nil
}

func (s *disk) set(free int64) {
	s.mu.Lock()
	s.free = free
	s.mu.Unlock()
}

func TestHeadroomStopsNewFillsFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fsys := &disk{total: 1 << 30, free: 1 << 29}
		d := openBudget(t, t.TempDir(), 0, func(cfg *Config) {
			cfg.space, cfg.MinFree = fsys.space, Headroom{Fraction: 0.1}
		})
		defer closeDisk(t, d)
		running, err := d.Fill(oci.Sum([]byte("running")), busybox)
		if err != nil {
			t.Fatal(err)
		}
		defer running.Close()
		fsys.set(100 << 20) // of 107 MB to leave free
		time.Sleep(2 * lookEvery)
		if _, err := d.Fill(oci.Sum(nil), busybox); !errors.Is(err, ErrNoRoom) {
			t.Errorf("a new fill: %v, want no room", err)
		}
		if _, err := running.WriteAt(content(1, 1000), 0); err != nil {
			t.Errorf("a running fill: %v", err)
		}
		fsys.set(40 << 20)
		time.Sleep(2 * lookEvery)
		if _, err := running.WriteAt(content(1, 1000), 8000); !errors.Is(err, ErrNoRoom) {
			t.Errorf("a running fill where half of the headroom is gone: %v, want no room", err)
		}
		fsys.set(1 << 29)
		time.Sleep(2 * lookEvery)
		if _, err := running.WriteAt(content(1, 1000), 8000); err != nil {
			t.Errorf("once there is space again: %v", err)
		}
	})
}

// TestHeadroomEvictsOnlyWhatHelps: half of what is held at most, and nothing
// more once evicting has not brought space back.
func TestHeadroomEvictsOnlyWhatHelps(t *testing.T) {
	for _, helps := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			fsys := &disk{total: 100 << 20, free: 50 << 20}
			d := openBudget(t, t.TempDir(), 0, func(cfg *Config) {
				cfg.space, cfg.MinFree = fsys.space, Headroom{Bytes: 20 << 20}
			})
			defer closeDisk(t, d)
			for i := range 40 {
				put(t, d, i, 100_000, "docker.io", time.Hour)
			}
			<-d.counted
			before := d.Stats().Held
			fsys.set(19 << 20)
			for range 100 {
				time.Sleep(lookEvery)
				synctest.Wait()
				if helps {
					fsys.set(min(20<<20, 19<<20+d.Stats().EvictedBytes/10)) // others go on using it up
				}
			}
			left := d.Stats().Held
			if left < before/2 {
				t.Errorf("helps %v: %d of %d bytes are left, less than half", helps, left, before)
			}
			if n := d.Stats().Evicted; n == 0 || !helps && n > 25 {
				t.Errorf("helps %v: %d blobs were evicted", helps, n)
			}
		})
	}
}

// TestHeadroomNeverTakesMoreThanHalf: not bit by bit either, nor over restarts.
// What comes when there is space again may go by half as well, and so may all
// that is left a week later.
func TestHeadroomNeverTakesMoreThanHalf(t *testing.T) {
	open := func(t *testing.T, dir string, fsys *disk) *Disk {
		t.Helper()
		d := openBudget(t, dir, 0, func(cfg *Config) {
			cfg.space, cfg.MinFree = fsys.space, Headroom{Bytes: 20 << 20}
		})
		<-d.counted
		return d
	}
	look := func() {
		time.Sleep(lookEvery)
		synctest.Wait()
	}
	for _, row := range []struct {
		name     string
		restarts bool
		rounds   int
		free     func(round int, evicted int64) int64
	}{
		{"somebody takes a little again and again", false, 40, func(round int, evicted int64) int64 {
			return 20<<20 - int64(round)*(300<<10) + evicted
		}},
		{"and we are restarted", true, 12, func(round int, evicted int64) int64 {
			return 20<<20 - int64(round)*(1<<20) + evicted
		}},
		{"restarted on a disk that is full", true, 5, func(int, int64) int64 { return 1 << 20 }},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fsys, dir := &disk{total: 100 << 20, free: 50 << 20}, t.TempDir()
				d := open(t, dir, fsys)
				defer func() { closeDisk(t, d) }()
				for i := range 40 {
					put(t, d, i, 100_000, "docker.io", time.Hour)
				}
				before, evicted := d.Stats().Held, int64(0)
				for round := range row.rounds {
					for range 4 {
						fsys.set(row.free(round+1, evicted+d.Stats().EvictedBytes))
						look()
					}
					if row.restarts {
						evicted += d.Stats().EvictedBytes
						closeDisk(t, d)
						d = open(t, dir, fsys)
					}
				}
				if left := d.Stats().Held; left < before/2 || left > before*2/3 {
					t.Fatalf("%d of %d bytes are left, want about half", left, before)
				}
				fsys.set(50 << 20)
				look()
				for i := range 50 {
					put(t, d, 100+i, 100_000, "docker.io", time.Hour)
				}
				more := d.Stats().Held
				fsys.set(1 << 20)
				look()
				look()
				if left := d.Stats().Held; left < more/2 || left > more*2/3 {
					t.Errorf("of what came since, %d of %d bytes are left, want about half", left, more)
				}
				fsys.set(50 << 20)
				time.Sleep(reliefForgets)
				more = d.Stats().Held
				fsys.set(1 << 20)
				look()
				look()
				if left := d.Stats().Held; left < more/2 || left > more*2/3 {
					t.Errorf("a week later, %d of %d bytes are left, want about half", left, more)
				}
			})
		})
	}
}

// TestAfterAKillNeverLessIsGuessedThanIsHeld: whatever came since the last clean
// end, which said it to the byte.
func TestAfterAKillNeverLessIsGuessedThanIsHeld(t *testing.T) {
	for _, budget := range []int64{0, 64 << 20} {
		synctest.Test(t, func(t *testing.T) {
			dir := t.TempDir()
			said := func() int64 {
				b, err := os.ReadFile(filepath.Join(dir, stateDir, stateHeld))
				if err != nil {
					t.Fatal(err)
				}
				s, err := parseHeldState(b)
				if err != nil {
					t.Fatal(err)
				}
				return s.Held
			}
			d := openBudget(t, dir, budget, nil)
			put(t, d, 1, 1<<20, "docker.io", time.Hour)
			<-d.counted
			closeDisk(t, d)
			if exact, held := said(), du(t, dir); exact > held+64<<10 {
				t.Errorf("after a clean end it says %d, and %d are held", exact, held)
			}
			d = openBudget(t, dir, budget, nil)
			defer closeDisk(t, d)
			for i := range 80 { // all within the first five seconds
				put(t, d, 10+i, 1<<20, "docker.io", time.Hour)
				synctest.Wait()
				if guess, held := said(), d.Stats().Held; guess < held || budget > 0 && guess > budget {
					t.Fatalf("budget %d: a kill now would leave %d bytes, and the state says %d", budget, held, guess)
				}
			}
		})
	}
}

func TestSillyBudgetsAreRefused(t *testing.T) {
	for _, cfg := range []Config{
		{Budget: 1000},
		{Budget: 1 << 30, Shares: map[string]float64{"docker.io": 1.5}},
		{Budget: -1},
		{Budget: 1 << 30, Shares: map[string]float64{"docker.io": 0}},
	} {
		cfg.Dir = t.TempDir()
		if d, err := Open(t.Context(), cfg); err == nil {
			t.Errorf("%+v was accepted", cfg)
			closeDisk(t, d)
		}
	}
}

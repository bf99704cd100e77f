package store

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"entrepot/oci"
)

// force evicts need bytes, as a sweep would choose them.
func force(t *testing.T, d *Disk, need int64) {
	t.Helper()
	found, err := d.candidates(t.Context(), d.account.aims(need), nil)
	if err != nil {
		t.Fatal(err)
	}
	d.evictAll(t.Context(), found, need, math.MaxInt64)
}

func isHeld(d *Disk, dg oci.Digest) bool {
	_, err := d.Size(dg)
	return err == nil
}

func TestOldUnusedAndLargeGoFirst(t *testing.T) {
	d := openDisk(t, t.TempDir(), nil)
	<-d.counted
	const day = 24 * time.Hour
	var (
		old      = put(t, d, 1, 300_000, "docker.io", 30*day)
		large    = put(t, d, 2, 3_000_000, "docker.io", 20*day)
		small    = put(t, d, 3, 60_000, "docker.io", 12*day)
		fresh    = put(t, d, 4, 300_000, "docker.io", day)
		regular  = put(t, d, 5, 300_000, "docker.io", 12*day)
		manifest = put(t, d, 6, 3_000, "docker.io", 200*day)
		order    = []oci.Digest{large, old, small, fresh, regular, manifest}
		upcoming []oci.Digest
	)
	for range 5 { // used again and again, a day apart
		use(t, d, regular, day)
		d.touchNow(t, regular)
	}
	use(t, d, regular, 12*day)
	victims, err := d.DryRun(t.Context(), 4)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range victims {
		upcoming = append(upcoming, v.Digest)
		if v.Why == "" || v.Bytes == 0 || v.LastUse.IsZero() {
			t.Errorf("a victim that does not say why: %+v", v)
		}
	}
	if !slices.Equal(upcoming, order[:4]) {
		t.Errorf("dry run: %v, want %v", upcoming, order[:4])
	}
	for i, dg := range order {
		if !isHeld(d, dg) {
			t.Fatalf("%d went before its time", i)
		}
		force(t, d, 1)
		if isHeld(d, dg) {
			t.Fatalf("%d is still there", i)
		}
	}
}

// touchNow uses content through the front door.
func (d *Disk) touchNow(t *testing.T, dg oci.Digest) {
	t.Helper()
	d.memory.drop(dg)
	if c, err := d.Open(t.Context(), dg, -1); err != nil {
		t.Fatal(err)
	} else if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestUsesAreCountedAfterPausesAndSurviveRestarts(t *testing.T) {
	dir := t.TempDir()
	d := openDisk(t, dir, nil)
	dg := put(t, d, 1, 500_000, "ghcr.io", 0)
	for range 10 {
		d.touchNow(t, dg) // at once: one use
	}
	for range 3 {
		use(t, d, dg, time.Hour)
		d.touchNow(t, dg)
	}
	closeDisk(t, d)
	d = openDisk(t, dir, nil)
	info, err := d.root.Lstat(blobName(dg))
	if err != nil {
		t.Fatal(err)
	}
	if h := hintOf(info.ModTime()); h != (hint{ownerOf("ghcr.io"), 4}) {
		t.Errorf("%+v, want four uses", h)
	}
	use(t, d, dg, 15*24*time.Hour)
	d.touchNow(t, dg)
	info, _ = d.root.Lstat(blobName(dg))
	if h := hintOf(info.ModTime()); h.uses != 2 {
		t.Errorf("after two weeks: %d uses, want 4/4+1", h.uses)
	}
}

func FuzzHint(f *testing.F) {
	f.Add(int64(0), uint16(3), uint8(1))
	f.Add(int64(123456789), uint16(65535), uint8(255))
	f.Fuzz(func(t *testing.T, nanos int64, o uint16, uses uint8) {
		when := time.Unix(1_700_000_000, nanos)
		h := hintOf(when)
		if h != (hint{}) && !h.stamp(when).Equal(when) {
			t.Errorf("%d nanoseconds read as %+v and written as %d", when.Nanosecond(), h, h.stamp(when).Nanosecond())
		}
		h = hint{owner(o), max(1, uses)}
		if got := hintOf(h.stamp(when)); got != h || h.stamp(when).After(when) || when.Sub(h.stamp(when)) > time.Second {
			t.Errorf("%+v written and read as %+v", h, got)
		}
	})
}

func TestWhatIsReadIsNotEvicted(t *testing.T) {
	d := openDisk(t, t.TempDir(), nil)
	<-d.counted
	dg := put(t, d, 1, 500_000, "docker.io", time.Hour)
	d.memory.drop(dg)
	c, err := d.Open(t.Context(), dg, -1)
	if err != nil {
		t.Fatal(err)
	}
	force(t, d, 1<<30)
	if !isHeld(d, dg) {
		t.Error("evicted while it was open")
	}
	s, err := c.Section(0, c.Size())
	if err != nil {
		t.Fatal(err)
	}
	force(t, d, 1<<30)
	if b, err := io.ReadAll(s); err != nil || oci.Sum(b) != dg || !isHeld(d, dg) {
		t.Errorf("read %d bytes, %v", len(b), err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	force(t, d, 1<<30)
	if isHeld(d, dg) {
		t.Error("not evicted after it was closed")
	}
	if len(d.inUse.holders)+len(d.inUse.claims) > 0 {
		t.Errorf("something is in use for ever: %+v", d.inUse.holders)
	}
}

// TestWhatIsOpenedOrPinnedMeanwhileIsNotEvicted: after it was found to be
// evictable, and before it goes; and what is open already is not even found.
func TestWhatIsOpenedOrPinnedMeanwhileIsNotEvicted(t *testing.T) {
	d := openDisk(t, t.TempDir(), nil)
	<-d.counted
	dg := put(t, d, 1, 5000, "docker.io", time.Hour)
	find := func() []candidate {
		t.Helper()
		found, err := d.candidates(t.Context(), aims{bytes: 1 << 30, count: 10}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	found := find()
	if len(found) != 1 {
		t.Fatalf("%d candidates, want 1", len(found))
	}
	d.inUse.hold(dg)
	if n, _ := d.evict(found[0]); n != 0 || !isHeld(d, dg) {
		t.Errorf("opened meanwhile: %d bytes were evicted", n)
	}
	if open := find(); len(open) != 0 {
		t.Errorf("open, and found: %+v", open)
	}
	d.inUse.release(dg)
	if err := d.Pin(t.Context(), busybox, dg.String()); err != nil {
		t.Fatal(err)
	}
	if n, _ := d.evict(found[0]); n != 0 || !isHeld(d, dg) {
		t.Errorf("pinned meanwhile: %d bytes were evicted", n)
	}
	if err := d.Unpin(t.Context(), busybox, dg.String()); err != nil {
		t.Fatal(err)
	}
	if n, _ := d.evict(found[0]); n == 0 || isHeld(d, dg) {
		t.Error("not evicted when nothing is in the way")
	}
}

func TestEvictionForgetsBytesNotMembership(t *testing.T) {
	d := openDisk(t, t.TempDir(), nil)
	<-d.counted
	dg := put(t, d, 1, 1000, "docker.io", time.Hour)
	if err := d.Mark(busybox, dg, Marker{State: Proven, Size: 1000}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Read(t.Context(), dg, 1<<20); err != nil {
		t.Fatal(err)
	}
	use(t, d, dg, time.Hour)
	force(t, d, 1<<30)
	if _, err := d.Read(t.Context(), dg, 1<<20); !errors.Is(err, ErrNotHeld) {
		t.Errorf("after eviction: %v, want not held, in memory neither", err)
	}
	if m, err := d.Marker(busybox, dg); err != nil || m.State != Proven {
		t.Errorf("membership: %+v, %v", m, err)
	}
}

func TestIdleFillsAreEvictedOpenOnesNot(t *testing.T) {
	dir := t.TempDir()
	d := openDisk(t, dir, nil)
	<-d.counted
	b := content(1, 5*mib)
	part := func() *Fill {
		f, err := d.Fill(oci.Sum(b), busybox)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.SetSize(int64(len(b))); err != nil {
			t.Fatal(err)
		}
		return f
	}
	f := part()
	if _, err := f.WriteAt(b[:mib], 0); err != nil {
		t.Fatal(err)
	}
	force(t, d, 1<<30)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if f = part(); f.Landed() != mib {
		t.Fatalf("%d bytes of an open fill are left", f.Landed())
	}
	r := f.Open(t.Context(), 0, 10)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	force(t, d, 1<<30)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if f = part(); f.Landed() != mib {
		t.Fatalf("%d bytes of a fill that was read are left", f.Landed())
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	before := du(t, dir)
	force(t, d, 1<<30)
	if after := du(t, dir); before-after < mib {
		t.Errorf("evicting an idle fill freed %d bytes", before-after)
	}
	f = part()
	if f.Landed() != 0 {
		t.Error("an evicted fill came back")
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestSharesLoseFirst(t *testing.T) {
	const budget = 64 << 20
	d := openBudget(t, t.TempDir(), budget, func(cfg *Config) {
		cfg.Shares = map[string]float64{"ghcr.io": 0.01, "quay.io": 0.5}
	})
	<-d.counted
	var greedy, modest, other []oci.Digest
	for i := range 8 {
		greedy = append(greedy, put(t, d, i, 200_000, "ghcr.io", time.Hour))
		modest = append(modest, put(t, d, 100+i, 200_000, "quay.io", 2*time.Hour))
		other = append(other, put(t, d, 200+i, 200_000, "docker.io", 3*time.Hour))
	}
	left := func(dgs []oci.Digest) (n int) {
		for _, dg := range dgs {
			if isHeld(d, dg) {
				n++
			}
		}
		return n
	}
	victims, err := d.DryRun(t.Context(), 8)
	if err != nil || len(victims) != 8 || victims[0].Upstream != "ghcr.io" || !strings.Contains(victims[0].Why, "share") || strings.Contains(victims[7].Why, "share") {
		t.Errorf("dry run: %+v, %v", victims, err)
	}
	force(t, d, 1_000_000)
	if g, m, o := left(greedy), left(modest), left(other); g != 3 || m != 8 || o != 8 {
		t.Errorf("%d of the one above its share are left, %d and %d of the others", g, m, o)
	}
	force(t, d, 500_000) // 1 % are 671,088 bytes: within its share now
	if g, m, o := left(greedy), left(modest), left(other); g != 3 || m != 8 || o != 5 {
		t.Errorf("then: %d, %d, %d", g, m, o)
	}
}

func TestContentOfUnreachableUpstreamsStays(t *testing.T) {
	d := openDisk(t, t.TempDir(), nil)
	<-d.counted
	away := put(t, d, 1, 500_000, "docker.io", 1000*time.Hour)
	near := put(t, d, 2, 500_000, "ghcr.io", time.Hour)
	d.SetAway("docker.io", Silent, time.Now().Add(time.Hour))
	force(t, d, 1<<30)
	if !isHeld(d, away) || isHeld(d, near) {
		t.Errorf("unreachable held %v, reachable held %v", isHeld(d, away), isHeld(d, near))
	}
	d.SetAway("docker.io", Silent, time.Time{})
	found, err := d.candidates(t.Context(), d.account.aims(1<<30), nil)
	if err != nil {
		t.Fatal(err)
	}
	d.SetAway("docker.io", Silent, time.Now().Add(time.Hour)) // in the middle of a sweep
	d.evictAll(t.Context(), found, 1<<30, math.MaxInt64)
	if !isHeld(d, away) {
		t.Error("evicted by a sweep that had begun before its upstream was lost")
	}
	d.SetAway("docker.io", Silent, time.Time{})
	force(t, d, 1<<30)
	if isHeld(d, away) {
		t.Error("still there after its upstream came back")
	}
}

// TestPileAgreesWithSorting: the bounded heap finds what sorting everything
// would.
func TestPileAgreesWithSorting(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for range 300 {
		var all []candidate
		for range rng.IntN(60) {
			all = append(all, candidate{score: float64(rng.IntN(1000)) + rng.Float64(), entry: entry{blocks: 1 + rng.Int64N(100)}})
		}
		p := &pile{need: 1 + rng.Int64N(2000), most: 1 + rng.IntN(40)}
		spilled := 0
		p.spill = func(candidate) { spilled++ }
		for _, c := range all {
			p.add(c)
		}
		slices.SortFunc(all, func(a, b candidate) int { return cmp.Compare(b.score, a.score) })
		want, total := 0, int64(0)
		for want < min(len(all), p.most) && total < p.need {
			total += all[want].blocks
			want++
		}
		if got := p.sorted(); !slices.EqualFunc(got, all[:want], func(a, b candidate) bool { return a.score == b.score }) {
			t.Fatalf("need %d, most %d: kept %d, want %d", p.need, p.most, len(got), want)
		}
		if spilled != len(all)-want {
			t.Fatalf("%d fell off, want %d", spilled, len(all)-want)
		}
	}
}

func TestEvictionUnderLoadServesOnlyRightBytes(t *testing.T) {
	t.Parallel()
	d := openBudget(t, t.TempDir(), 6<<20, func(cfg *Config) { cfg.Memory = 0 })
	<-d.counted
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer cancel()
		for i := range 60 {
			b := content(i%40, 300_000)
			if err := d.PutFrom(oci.Sum(b), b, "docker.io"); err != nil && !errors.Is(err, ErrNoRoom) {
				t.Error(err)
			}
		}
	}()
	for i := 0; ctx.Err() == nil; i++ {
		b := content(i%40, 300_000)
		got, err := readAll(t, d, oci.Sum(b), int64(len(b)))
		if err != nil && !errors.Is(err, ErrNotHeld) || err == nil && !bytes.Equal(got, b) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	}
	<-done
	if d.Stats().Evicted == 0 {
		t.Error("nothing was evicted")
	}
}

// TestEvictionThatFailsIsNotCounted: a disk that removes nothing frees nothing,
// and whoever needs room is told so.
func TestEvictionThatFailsIsNotCounted(t *testing.T) {
	dir := t.TempDir()
	var readOnly atomic.Bool
	d := openBudget(t, dir, 4<<20, func(cfg *Config) {
		cfg.Faults = func(op Op, _ string) error {
			if op == OpRemove && readOnly.Load() {
				return syscall.EROFS
			}
			return nil
		}
	})
	<-d.counted
	for i := range 10 {
		put(t, d, i, 300_000, "docker.io", time.Hour)
	}
	readOnly.Store(true)
	var err error
	for i := 10; err == nil && i < 30; i++ {
		b := content(i, 300_000)
		err = d.PutFrom(oci.Sum(b), b, "docker.io")
	}
	if !errors.Is(err, ErrNoRoom) {
		t.Errorf("put: %v, want no room", err)
	}
	if held, used := d.account.held(), du(t, dir); d.Stats().Evicted != 0 || held < used {
		t.Errorf("%d evicted, held %d, the directory takes %d", d.Stats().Evicted, held, used)
	}
}

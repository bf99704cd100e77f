package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/oci"
)

// damage alters held content in the middle, as a rotting disk would.
func damage(t *testing.T, dir string, dg oci.Digest) {
	t.Helper()
	name := blobFile(dir, dg)
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := errors.Join(os.Chmod(name, 0o644), os.WriteFile(name, b, 0o600), os.Chmod(name, 0o444), os.Chtimes(name, info.ModTime(), info.ModTime())); err != nil {
		t.Fatal(err)
	}
}

func TestVerifyDropsWhatIsDamaged(t *testing.T) {
	dir := t.TempDir()
	unreadable := oci.Sum(content(3, 300_000))
	var warned []string
	d := openBudget(t, dir, 0, func(cfg *Config) {
		cfg.Faults = func(op Op, name string) error {
			if op == OpRead && name == blobName(unreadable) {
				return syscall.EIO
			}
			return nil
		}
		cfg.Warn = func(message string, _ error) { warned = append(warned, message) }
	})
	<-d.counted
	var good []oci.Digest
	for i := range 6 {
		dg := put(t, d, i, 100_000*i, "docker.io", time.Hour)
		switch {
		case i == 4:
			damage(t, dir, dg)
		case dg != unreadable:
			good = append(good, dg)
		}
	}
	copied := content(50, 400_000)
	writeAged(t, blobFile(dir, oci.Sum(copied)), copied, 0o644, time.Hour)
	coming := content(51, 400_000)
	writeAged(t, blobFile(dir, oci.Sum(coming)), coming[:1000], 0o644, 0)
	good = append(good, oci.Sum(copied), oci.Sum(coming))
	calls := 0
	v, err := d.Verify(t.Context(), func(Verified) { calls++ })
	if err != nil {
		t.Fatal(err)
	}
	want := []oci.Digest{oci.Sum(content(4, 400_000)), unreadable}
	slices.SortFunc(want, func(a, b oci.Digest) int { return bytes.Compare([]byte(a.String()), []byte(b.String())) })
	if v.Files != 8 || v.Damaged != 2 || !slices.Equal(v.Dropped, want) || v.Total != 1_901_000 || v.Bytes != 1_901_000-300_000+256<<10 && v.Bytes < 1_600_000 {
		t.Errorf("%+v, want two damaged", v)
	}
	if n := heldOf(d, good); n != len(good) || heldOf(d, want) != 0 {
		t.Errorf("%d of %d good ones are left, %d of the bad", n, len(good), heldOf(d, want))
	}
	if calls == 0 || len(warned) != 2 || d.Stats().Damaged != 2 {
		t.Errorf("%d calls of progress, warnings %q, %+v", calls, warned, d.Stats())
	}
	if info, err := os.Stat(blobFile(dir, oci.Sum(copied))); err != nil || info.Mode().Perm() != proofMode {
		t.Errorf("what was copied in is not marked as proven: %v", err)
	}
}

func TestVerifyEndsWithItsContext(t *testing.T) {
	d := openDisk(t, t.TempDir(), nil)
	put(t, d, 1, 300_000, "", 0)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Verify(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("verify: %v", err)
	}
}

// TestScrubIsSlowAndGoesOn: it keeps to its rate, goes on after a restart where
// it was, and rests when it is through.
func TestScrubIsSlowAndGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		const files, size, rate = 20, 100_000, 10_000
		var mu sync.Mutex // guards read
		read := map[string]int{}
		open := func(rate int64) *Disk {
			d, err := Open(t.Context(), Config{Dir: dir, ScrubRate: rate, Faults: func(op Op, name string) error {
				if op == OpRead {
					mu.Lock()
					defer mu.Unlock()
					read[name]++
				}
				return nil
			}})
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		seen := func() int {
			mu.Lock()
			defer mu.Unlock()
			return len(read)
		}
		d := open(0)
		var last oci.Digest
		for i := range files {
			if dg := put(t, d, i, size, "docker.io", time.Hour); dg.String() > last.String() {
				last = dg
			}
		}
		closeDisk(t, d)
		damage(t, dir, last)
		began := time.Now()
		d = open(rate)
		time.Sleep(55 * time.Second)
		synctest.Wait()
		if n := seen(); n < 5 || n > 7 {
			t.Errorf("%d files were read in 55 s at one in 10 s", n)
		}
		closeDisk(t, d)
		clear(read)
		d = open(rate)
		time.Sleep(files*size/rate*time.Second - time.Since(began) + time.Minute)
		synctest.Wait()
		if n := seen(); n < files-7 || n > files-5 {
			t.Errorf("after a restart %d files were read, want those that were left", n)
		}
		if isHeld(d, last) {
			t.Error("the damaged one is still there")
		}
		clear(read)
		time.Sleep(5 * 24 * time.Hour)
		if n := seen(); n > 0 {
			t.Errorf("%d files were read again within the week", n)
		}
		time.Sleep(3 * 24 * time.Hour)
		synctest.Wait()
		if n := seen(); n != files-1 {
			t.Errorf("%d files were read a week later, want all", n)
		}
		closeDisk(t, d)
	})
}

func FuzzState(f *testing.F) {
	f.Add([]byte(`{"began":"2026-01-02T03:04:05Z","after":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}`))
	f.Add([]byte(`{"held":123}`))
	f.Add([]byte(`{"floor":123,"short":"2026-01-02T03:04:05Z"}`))
	f.Add([]byte(`{"version":2,"upstreams":[{"name":"docker.io","silent":"2026-01-02T03:04:00Z","spent":"2026-01-02T03:04:05+01:00"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parseAwayState(b); err == nil && slices.ContainsFunc(s.Upstreams, func(u awayUpstream) bool { return u.Name == "" }) {
			t.Errorf("%q: nobody is away", b)
		}
		if s, err := parseHeldState(b); err == nil && s.Held < 0 {
			t.Errorf("%q: %d bytes held", b, s.Held)
		}
		if s, err := parseReliefState(b); err == nil && s.Floor < 0 {
			t.Errorf("%q: %d bytes must stay", b, s.Floor)
		}
		s, err := parseScrubState(b)
		if err != nil {
			return
		}
		if !s.After.IsZero() {
			if _, err := oci.ParseDigest(s.After.String()); err != nil {
				t.Errorf("%q: %v", b, err)
			}
		}
		again, err := json.Marshal(s)
		if err != nil {
			return // a year that JSON has no form for
		}
		if s2, err := parseScrubState(again); err != nil || s2.After != s.After || !s2.Began.Equal(s.Began) {
			t.Errorf("%q became %+v, then %+v: %v", b, s, s2, err)
		}
	})
}

func TestStateIsSafeToDeleteAndToDamage(t *testing.T) {
	for _, spoil := range []func(dir string) error{
		func(dir string) error { return os.RemoveAll(dir) },
		func(dir string) error {
			return errors.Join(os.WriteFile(path.Join(dir, stateHeld), []byte("{torn"), 0o644), os.WriteFile(path.Join(dir, stateScrub), []byte("[]"), 0o644))
		},
		func(dir string) error { return os.WriteFile(path.Join(dir, stateHeld), []byte(`{"held":-5}`), 0o644) },
	} {
		dir := t.TempDir()
		d := openBudget(t, dir, 8<<20, nil)
		dg := put(t, d, 1, 500_000, "docker.io", 0)
		closeDisk(t, d)
		if err := spoil(path.Join(dir, stateDir)); err != nil {
			t.Fatal(err)
		}
		d = openBudget(t, dir, 8<<20, func(cfg *Config) { cfg.ScrubRate = 1 << 30 })
		if held := d.Stats().Held; held < 500_000 {
			t.Errorf("before the walk: held %d", held)
		}
		<-d.counted
		if want, held := du(t, dir), d.account.held(); held < want || held > want+64<<10 || !isHeld(d, dg) {
			t.Errorf("held %d, the directory takes %d", held, want)
		}
		closeDisk(t, d)
	}
}

package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/oci"
)

func TestSecondHolderIsRefusedByName(t *testing.T) {
	dir := t.TempDir()
	first := openDisk(t, dir, nil)
	_, err := Open(t.Context(), Config{Dir: dir, LockWait: time.Nanosecond})
	if err == nil || !strings.Contains(err.Error(), "pid ") {
		t.Errorf("second open: %v, want a refusal that names the holder", err)
	}
	closeDisk(t, first)
	openDisk(t, dir, nil)
}

// Who ends the program does not want to wait for a directory any longer.
func TestWaitingForTheDirectoryCanBeEnded(t *testing.T) {
	dir := t.TempDir()
	openDisk(t, dir, nil)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if d, err := Open(ctx, Config{Dir: dir, LockWait: time.Hour}); !errors.Is(err, context.Canceled) {
		t.Errorf("open: %v, %v; want the end of the wait", d, err)
	}
}

func TestALockFileThatWentAwayIsNoTrouble(t *testing.T) {
	dir := t.TempDir()
	d := openDisk(t, dir, nil)
	if err := os.Remove(filepath.Join(dir, "lock")); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

// A disk that takes nothing more, for whatever reason, is no reason not to start:
// what is held is served, new or not, and the rest is not kept.
func TestADiskThatTakesNothingStarts(t *testing.T) {
	for _, broken := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EIO} {
		for _, state := range []string{"new", "held", "after a kill"} {
			t.Run(broken.Error()+" "+state, func(t *testing.T) {
				dir, content := t.TempDir(), []byte("held")
				if state != "new" {
					d := openDisk(t, dir, nil)
					if err := d.Put(oci.Sum(content), content); err != nil {
						t.Fatal(err)
					}
					closeDisk(t, d)
				}
				if state == "after a kill" { // what is in the way cannot be removed
					writeAged(t, filepath.Join(dir, fillsDir, "sha256", "rest"), []byte("x"), 0o600, 0)
				}
				told := 0
				d, err := Open(t.Context(), Config{
					Dir: dir, Memory: 1 << 20, Warn: func(string, error) { told++ },
					Faults: func(op Op, name string) error {
						if op == OpRead {
							return nil
						}
						return fmt.Errorf("%s %s: %w", op, name, broken)
					},
				})
				if err != nil {
					t.Fatal(err)
				}
				if told == 0 {
					t.Error("nobody hears of it")
				}
				if got, err := readAll(t, d, oci.Sum(content), -1); state != "new" && (err != nil || !bytes.Equal(got, content)) {
					t.Errorf("read %q, %v", got, err)
				}
				if err := d.Put(oci.Sum([]byte("new")), []byte("new")); !errors.Is(err, ErrDisk) {
					t.Errorf("put: %v, want %v", err, ErrDisk)
				}
				if err := d.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			})
		}
	}
	if _, err := Open(t.Context(), Config{Dir: t.TempDir(), Faults: func(Op, string) error { return syscall.EACCES }}); !errors.Is(err, syscall.EACCES) {
		t.Errorf("open: %v, want a refusal where we may not write", err)
	}
}

func TestForeignFormatIsRefused(t *testing.T) {
	dir := t.TempDir()
	writeAged(t, filepath.Join(dir, "VERSION"), []byte("2\n"), 0o644, 0)
	if _, err := Open(t.Context(), Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), `"2"`) {
		t.Errorf("open: %v, want a refusal that names the version", err)
	}
}

func TestGateRefusesWrongBytes(t *testing.T) {
	d := openDisk(t, t.TempDir(), nil)
	dg := oci.Sum([]byte("right"))
	if err := d.Put(dg, []byte("wrong")); oci.CodeOf(err) != oci.DigestInvalid {
		t.Errorf("put: %v, want a digest error", err)
	}
	if _, err := d.Size(dg); !errors.Is(err, ErrNotHeld) {
		t.Errorf("size: %v, want not held", err)
	}
}

// TestFilesUnderOurFeet puts every kind of file where content belongs.
func TestFilesUnderOurFeet(t *testing.T) {
	small, large := content(1, 1000), content(2, maxInMemory+1000)
	for _, good := range [][]byte{small, large} {
		bad := bytes.Clone(good)
		bad[len(bad)/2] ^= 1
		for _, tc := range []struct {
			name    string
			file    []byte
			mode    os.FileMode
			age     time.Duration
			want    int64
			hit     bool
			dropped bool
		}{
			{"ours", good, 0o444, time.Hour, int64(len(good)), true, false},
			{"copied in", good, 0o644, time.Hour, -1, true, false},
			{"copied in just now", good, 0o644, 0, int64(len(good)), true, false},
			{"copied in from the future", good, 0o644, -time.Hour, -1, true, false},
			{"something else copied in", bad, 0o644, time.Hour, -1, false, true},
			{"being copied in", good[:500], 0o644, 0, int64(len(good)), false, false},
			{"being copied in, size unknown", good[:500], 0o644, 0, -1, false, false},
			{"copied in and cut", good[:500], 0o644, time.Hour, int64(len(good)), false, true},
			{"ours and cut", good[:500], 0o444, time.Hour, int64(len(good)), false, true},
			{"empty", nil, 0o444, time.Hour, int64(len(good)), false, true},
			{"ours, the expected size is wrong", good, 0o444, time.Hour, 3, true, false},
		} {
			dir := t.TempDir()
			d := openDisk(t, dir, nil)
			dg := oci.Sum(good)
			writeAged(t, blobFile(dir, dg), tc.file, tc.mode, tc.age)
			got, err := readAll(t, d, dg, tc.want)
			if hit := err == nil && bytes.Equal(got, good); hit != tc.hit || err != nil && !errors.Is(err, ErrNotHeld) {
				t.Errorf("%s (%d bytes): hit %v, want %v: %v", tc.name, len(good), hit, tc.hit, err)
			}
			_, err = os.Stat(blobFile(dir, dg))
			if dropped := errors.Is(err, os.ErrNotExist); dropped != tc.dropped {
				t.Errorf("%s (%d bytes): dropped %v, want %v", tc.name, len(good), dropped, tc.dropped)
			}
			closeDisk(t, d)
		}
	}
}

func TestAlteredFileIsFoundWhenItIsReadIntoMemory(t *testing.T) {
	dir := t.TempDir()
	d := openDisk(t, dir, nil)
	good := content(1, 1000)
	dg := oci.Sum(good)
	bad := bytes.Clone(good)
	bad[0] ^= 1
	writeAged(t, blobFile(dir, dg), bad, 0o444, time.Hour)
	if _, err := d.Read(t.Context(), dg, 1<<20); !errors.Is(err, ErrNotHeld) {
		t.Errorf("read: %v, want not held", err)
	}
	if err := d.Put(dg, good); err != nil {
		t.Fatal(err)
	}
	if got, err := d.Read(t.Context(), dg, 1<<20); err != nil || !bytes.Equal(got, good) {
		t.Errorf("after a new put: %v", err)
	}
}

// TestCopiedFileIsHashedOnce: for all who ask at once, and to its end though they
// leave.
func TestCopiedFileIsHashedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		b := content(1, mib)
		dg := oci.Sum(b)
		var reads atomic.Int64
		open := make(chan struct{})
		d := openDisk(t, dir, func(op Op, _ string) error {
			if op == OpRead {
				reads.Add(1)
				<-open
			}
			return nil
		})
		defer closeDisk(t, d)
		writeAged(t, blobFile(dir, dg), b, 0o644, time.Hour)
		ctx, leave := context.WithCancel(t.Context())
		var asking sync.WaitGroup
		for range 10 {
			asking.Go(func() {
				if c, err := d.Open(ctx, dg, mib); !errors.Is(err, context.Canceled) {
					t.Errorf("%v, %v; want to have left", c, err)
				}
			})
		}
		synctest.Wait()
		leave()
		asking.Wait()
		if n := reads.Load(); n != 1 {
			t.Errorf("%d of those who ask hash it, want 1", n)
		}
		close(open)
		synctest.Wait()
		before := reads.Load()
		c, err := d.Open(t.Context(), dg, mib)
		if err != nil {
			t.Fatal(err)
		}
		if n := reads.Load(); n != before {
			t.Errorf("what was hashed for nobody is hashed again")
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestCopiesThatKeepModeAndTimesAreHashed: as cp -a, rsync -a and tar make them.
// What we wrote ourselves, or hashed once, costs no hash after a restart.
func TestCopiesThatKeepModeAndTimesAreHashed(t *testing.T) {
	good := content(2, maxInMemory+1000)
	bad := bytes.Clone(good)
	bad[len(bad)/2] ^= 1
	dg, size := oci.Sum(good), int64(len(good))
	hinted := hint{owner: ownerOf("docker.io"), uses: 3}
	copied := func(b []byte, when func(time.Time) time.Time, age time.Duration) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			t.Helper()
			writeAged(t, blobFile(dir, dg), b, proofMode, 0)
			at := when(time.Now().Add(-age))
			if err := os.Chtimes(blobFile(dir, dg), at, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	plain := func(t time.Time) time.Time { return t.Truncate(time.Second) }
	ours := func(t *testing.T, dir string, age time.Duration) {
		t.Helper()
		d := openDisk(t, dir, nil)
		if err := d.PutFrom(dg, good, "docker.io"); err != nil {
			t.Fatal(err)
		}
		if age != 0 { // it is used after a pause
			f, info, err := d.openFile(dg)
			if err != nil {
				t.Fatal(err)
			}
			d.touch(f.File, dg, lastUsed{info, time.Now().Add(-age)})
			f.done()
		}
		closeDisk(t, d)
	}
	for _, row := range []struct {
		name    string
		prepare func(*testing.T, string)
		held    bool
		hashed  bool
	}{
		{"cp, a bit wrong", copied(bad, plain, 0), false, true},
		{"tar, a bit wrong", copied(bad, plain, time.Hour), false, true},
		{"rsync -a, a bit wrong", copied(bad, hinted.stamp, time.Hour), false, true},
		{"cp --preserve=mode, at a time that looks like a hint", copied(bad, hinted.stamp, 0), false, true},
		{"rsync -a, right", copied(good, hinted.stamp, time.Hour), true, true},
		{"a time that is a little ahead, and no hint", copied(bad, plain, -1900*time.Millisecond), false, true},
		{"rsync -a, by a clock that is ahead", copied(bad, hinted.stamp, -time.Hour), false, true},
		{"ours", func(t *testing.T, dir string) { t.Helper(); ours(t, dir, 0) }, true, false},
		{"ours, and its mode was changed", func(t *testing.T, dir string) {
			t.Helper()
			ours(t, dir, 0)
			if err := os.Chmod(blobFile(dir, dg), 0o644); err != nil {
				t.Fatal(err)
			}
		}, true, true},
		{"ours, and used", func(t *testing.T, dir string) { t.Helper(); ours(t, dir, time.Hour) }, true, false},
		{"ours, and used by a clock that was ahead", func(t *testing.T, dir string) { t.Helper(); ours(t, dir, -time.Hour) }, true, false},
		{"filled", func(t *testing.T, dir string) {
			t.Helper()
			d := openDisk(t, dir, nil)
			f, err := d.Fill(dg, busybox)
			if err != nil {
				t.Fatal(err)
			}
			if err := fillAll(t, f, good); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			closeDisk(t, d)
		}, true, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			row.prepare(t, dir)
			for life := range 2 {
				var hashed atomic.Bool
				d := openDisk(t, dir, func(op Op, _ string) error {
					if op == OpRead {
						hashed.Store(true)
					}
					return nil
				})
				c, err := d.Open(t.Context(), dg, size)
				if held := err == nil; held != row.held || hashed.Load() != (row.hashed && life == 0) {
					t.Errorf("life %d: held %v (%v), hashed %v; want %v, %v", life, held, err, hashed.Load(), row.held, row.hashed && life == 0)
				}
				if err == nil {
					_ = c.Close()
				}
				closeDisk(t, d)
				if !row.held {
					break // dropped, or a copy in progress
				}
			}
		})
	}
}

// TestWhatWasProvenIsHashedOnceItIsTouched: a file that this very process filled,
// or hashed, is not the one that lies there now, though it has its number, its
// mode, its size, or its times.
func TestWhatWasProvenIsHashedOnceItIsTouched(t *testing.T) {
	good := content(2, maxInMemory+1000)
	bad := bytes.Clone(good)
	bad[len(bad)/2] ^= 1
	dg := oci.Sum(good)
	size := int64(len(good))
	for come, bring := range map[string]func(*testing.T, *Disk, string){
		"filled": func(t *testing.T, d *Disk, _ string) {
			t.Helper()
			f, err := d.Fill(dg, busybox)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(fillAll(t, f, good), f.Close()); err != nil {
				t.Fatal(err)
			}
		},
		"put": func(t *testing.T, d *Disk, _ string) {
			t.Helper()
			if err := d.PutFrom(dg, good, "docker.io"); err != nil {
				t.Fatal(err)
			}
		},
		"copied in and hashed": func(t *testing.T, _ *Disk, dir string) {
			t.Helper()
			writeAged(t, blobFile(dir, dg), good, 0o644, time.Hour)
		},
		"hashed by the scrub": func(t *testing.T, d *Disk, dir string) {
			t.Helper()
			writeAged(t, blobFile(dir, dg), good, 0o644, time.Hour)
			if v, err := d.Verify(t.Context(), nil); err != nil || v.Damaged != 0 {
				t.Fatal(v, err)
			}
		},
	} {
		for name, change := range map[string]func(name string, info os.FileInfo) error{
			"written over": func(name string, _ os.FileInfo) error { return os.WriteFile(name, bad, 0) },
			"written over, its times kept": func(name string, info os.FileInfo) error {
				return errors.Join(os.WriteFile(name, bad, 0), os.Chtimes(name, info.ModTime(), info.ModTime()))
			},
			"altered": func(name string, _ os.FileInfo) error {
				f, err := os.OpenFile(name, os.O_WRONLY, 0)
				if err != nil {
					return err
				}
				_, err = f.WriteAt([]byte{good[7] ^ 1}, 7)
				return errors.Join(err, f.Close())
			},
			"removed, and another one put there": func(name string, _ os.FileInfo) error {
				return errors.Join(os.Remove(name), os.WriteFile(name, bad, proofMode))
			},
		} {
			t.Run(come+", "+name, func(t *testing.T) {
				dir := t.TempDir()
				d := openDisk(t, dir, nil)
				for range 5 { // a number that became free need not be given out at once
					bring(t, d, dir)
					if _, err := readAll(t, d, dg, size); err != nil {
						t.Fatal(err)
					}
					info, err := os.Stat(blobFile(dir, dg))
					if err != nil {
						t.Fatal(err)
					}
					if err := change(blobFile(dir, dg), info); err != nil {
						t.Fatal(err)
					}
					if _, err := readAll(t, d, dg, size); !errors.Is(err, ErrNotHeld) {
						t.Errorf("%v, want that it is not held", err)
					}
					if err := os.Remove(blobFile(dir, dg)); err != nil && !errors.Is(err, os.ErrNotExist) {
						t.Fatal(err)
					}
				}
			})
		}
	}
}

// TestNamedPipes: whoever opens one that nobody writes to waits for ever.
func TestNamedPipes(t *testing.T) {
	b := content(1, mib)
	dg := oci.Sum(b)
	for name, tc := range map[string]struct {
		at  string
		try func(*Disk) error
	}{
		"blob": {blobName(dg), func(d *Disk) error {
			_, err := d.Open(t.Context(), dg, mib)
			return err
		}},
		"blob, verified": {blobName(dg), func(d *Disk) error {
			v, err := d.Verify(t.Context(), nil)
			if v.Damaged != 1 {
				err = errors.Join(err, fmt.Errorf("%+v", v))
			}
			return errors.Join(ErrNotHeld, err)
		}},
		"tag": {tagName(busybox, "latest"), func(d *Disk) error {
			_, err := d.Tag(busybox, "latest")
			return err
		}},
		"marker": {markerName(busybox, dg), func(d *Disk) error {
			_, err := d.Marker(busybox, dg)
			return err
		}},
		"spans": {fillName(dg) + spansSuffix, func(d *Disk) error {
			f, err := d.Fill(dg, busybox)
			if err == nil {
				err = errors.Join(ErrNotHeld, fillAll(t, f, b), f.Close())
			}
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			d := openDisk(t, dir, nil)
			<-d.counted
			at := filepath.Join(dir, tc.at)
			if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), syscall.Mkfifo(at, 0o444)); err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- tc.try(d) }()
			select {
			case err := <-done:
				if !errors.Is(err, ErrNotHeld) || errors.Is(err, ErrDisk) && name == "blob" {
					t.Errorf("%v, want that it is not held", err)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("it hangs")
			}
		})
	}
}

// lastUsed is a file with another time.
type lastUsed struct {
	fs.FileInfo
	at time.Time
}

func (l lastUsed) ModTime() time.Time { return l.at }

func TestLinksOutOfTheDataDirectoryLeadNowhere(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	secret := content(3, 1000)
	writeAged(t, outside, secret, 0o444, time.Hour)
	dir := t.TempDir()
	d := openDisk(t, dir, nil)
	dg := oci.Sum(secret)
	name := blobFile(dir, dg)
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.Symlink(outside, name)); err != nil {
		t.Fatal(err)
	}
	if got, err := readAll(t, d, dg, -1); err == nil {
		t.Errorf("a link out of the data directory was served: %d bytes", len(got))
	}
}

// A directory that is a link would have records and content written where it
// leads.
func TestLinkedDirectoriesAreNotWrittenThrough(t *testing.T) {
	for _, name := range []string{"repos/docker.io", "blobs/sha256", "fills/sha256"} {
		t.Run(name, func(t *testing.T) {
			outside, dir := t.TempDir(), t.TempDir()
			d := openDisk(t, dir, nil)
			inside := filepath.Join(dir, name)
			if err := errors.Join(os.RemoveAll(inside), os.MkdirAll(filepath.Dir(inside), 0o755), os.Symlink(outside, inside)); err != nil {
				t.Fatal(err)
			}
			c := content(3, 1000)
			_ = d.Put(oci.Sum(c), c)
			_ = d.Mark(busybox, oci.Sum(c), Marker{Size: 1000, State: Proven})
			_ = d.PutTag(busybox, "1", Tag{Digest: oci.Sum(c), Size: 1000})
			if f, err := d.Fill(oci.Sum([]byte("other")), busybox); err == nil {
				_, _ = f.WriteAt([]byte("other"), 0)
				_ = f.Close()
			}
			if found, err := os.ReadDir(outside); err != nil || len(found) != 0 {
				t.Errorf("outside lies %v (%v)", found, err)
			}
		})
	}
}

func TestTagRecords(t *testing.T) {
	dir := t.TempDir()
	d := openDisk(t, dir, nil)
	rec := Tag{Digest: oci.Sum([]byte("x")), MediaType: "m", Size: 7, Checked: time.Unix(1, 0).UTC(), Changed: time.Unix(2, 0).UTC()}
	if err := d.PutTag(busybox, "Latest", rec); err != nil {
		t.Fatal(err)
	}
	closeDisk(t, d)
	d = openDisk(t, dir, nil)
	rec.Repository, rec.Tag = busybox.String(), "Latest"
	if got, err := d.Tag(busybox, "Latest"); err != nil || got != rec {
		t.Errorf("got %+v %v, want %+v", got, err, rec)
	}
	// A disk that folds case gives Latest's record for latest.
	from, to := filepath.Join(dir, tagName(busybox, "Latest")), filepath.Join(dir, tagName(busybox, "latest"))
	if err := os.Link(from, to); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Tag(busybox, "latest"); !errors.Is(err, ErrNotHeld) {
		t.Errorf("another tag's record: %v, want not held", err)
	}
	writeAged(t, filepath.Join(dir, tagName(busybox, "torn")), []byte(`{"repository":"doc`), 0o644, 0)
	if _, err := d.Tag(busybox, "torn"); !errors.Is(err, ErrNotHeld) {
		t.Errorf("a torn record: %v, want not held", err)
	}
	if tags, err := d.Tags(busybox); err != nil || strings.Join(tags, " ") != "Latest latest torn" {
		t.Errorf("tags %v %v", tags, err)
	}
}

func TestDeletedRecordIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		d := openDisk(t, dir, nil)
		defer closeDisk(t, d)
		dg := oci.Sum([]byte("x"))
		if err := errors.Join(d.PutTag(busybox, "latest", Tag{Digest: dg}), d.Mark(busybox, dg, Marker{State: Proven})); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(filepath.Join(dir, reposDir)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(recheck + time.Second)
		if _, err := d.Tag(busybox, "latest"); !errors.Is(err, ErrNotHeld) {
			t.Errorf("tag: %v, want not held", err)
		}
		if _, err := d.Marker(busybox, dg); !errors.Is(err, ErrNotHeld) {
			t.Errorf("marker: %v, want not held", err)
		}
	})
}

func TestProvenMarkerIsNeverReplacedByNamed(t *testing.T) {
	d := openDisk(t, t.TempDir(), nil)
	dg := oci.Sum([]byte("x"))
	for _, m := range []Marker{{State: Named, Size: 1}, {State: Proven, Size: 2}, {State: Named, Size: 3}} {
		if err := d.Mark(busybox, dg, m); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := d.Marker(busybox, dg); err != nil || got != (Marker{State: Proven, Size: 2}) {
		t.Errorf("got %+v %v, want the proven one", got, err)
	}
}

func TestLeftoversAreCleaned(t *testing.T) {
	dir := t.TempDir()
	closeDisk(t, openDisk(t, dir, nil))
	left := []string{
		"blobs/sha256/ab/.ABCDEFGHIJKLMNOPQRSTUVWXYZ.3", "repos/docker.io/library/x/_tags/.ABCDEFGHIJKLMNOPQRSTUVWXYZ.1f",
		"fills/sha256/0123", "fills/sha256/4567.spans", "fills/sha256/.89ab.spans.2",
	}
	others := filepath.Join(dir, "blobs/sha256/ab/.abcdef.Xy12Zt") // rsync's, on its way in
	writeAged(t, others, []byte("x"), 0o644, 0)
	for _, name := range left {
		writeAged(t, filepath.Join(dir, name), []byte("x"), 0o644, time.Hour)
	}
	d := openDisk(t, dir, nil)
	<-d.counted
	for _, name := range left {
		if _, err := os.Stat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s was left: %v", name, err)
		}
	}
	if _, err := os.Stat(others); err != nil {
		t.Errorf("somebody else's temporary file: %v", err)
	}
}

func TestHeldIsCountedInBlocks(t *testing.T) {
	dir := t.TempDir()
	d := openDisk(t, dir, nil)
	b := content(1, 100_000)
	if err := d.Put(oci.Sum(b), b); err != nil {
		t.Fatal(err)
	}
	<-d.counted
	if held := d.Stats().Held; held < 100_000 || held > 200_000 {
		t.Errorf("held %d, want a little more than 100000", held)
	}
	closeDisk(t, d)
	d = openDisk(t, dir, nil)
	<-d.counted
	if held := d.Stats().Held; held < 100_000 || held > 200_000 {
		t.Errorf("held after a restart %d, want a little more than 100000", held)
	}
}

func FuzzRecords(f *testing.F) {
	f.Add([]byte(`{"digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":9,"spans":[{"start":0,"end":4},{"start":5,"end":9}]}`))
	f.Add([]byte(`{"repository":"docker.io/a","tag":"b","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":-1}`))
	f.Add([]byte(`{"mediaType":"x","size":3,"state":"proven"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if rec, err := parseFillRecord(b); err == nil {
			if rec.Size < 0 || rec.Digest.IsZero() || rec.Spans.check(rec.Size) != nil {
				t.Errorf("bad fill record accepted: %+v", rec)
			}
			if rec.Spans.Total() > rec.Size {
				t.Errorf("more bytes than the size: %+v", rec)
			}
		}
		if rec, err := parseTag(b); err == nil && (rec.Digest.IsZero() || rec.Size < -1 || rec.Former != nil && rec.Former.Digest.IsZero()) {
			t.Errorf("bad tag accepted: %+v", rec)
		}
		if m, err := parseMarker(b); err == nil && (m.State != Named && m.State != Proven || m.Size < -1) {
			t.Errorf("bad marker accepted: %+v", m)
		}
	})
}

package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/oci"
)

const mib = 1 << 20

// fillAll brings content in as one stream does, and passes it through the gate.
func fillAll(t *testing.T, f *Fill, b []byte) error {
	t.Helper()
	if err := f.SetSize(int64(len(b))); err != nil {
		return err
	}
	for {
		gap := f.Gap(Span{0, int64(len(b))})
		if gap.Len() == 0 {
			break
		}
		end := min(gap.End, gap.Start+mib)
		if _, err := f.WriteAt(b[gap.Start:end], gap.Start); err != nil {
			return err
		}
		f.checkpoint(true)
	}
	if err := f.Follow(t.Context()); err != nil {
		return err
	}
	return f.Commit()
}

func TestFillInAnyOrder(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	d := openDisk(t, t.TempDir(), nil)
	b := content(1, 3*mib+17)
	dg := oci.Sum(b)
	f, err := d.Fill(dg, busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.SetSize(int64(len(b))); err != nil {
		t.Fatal(err)
	}
	var pieces []Span
	for at := int64(0); at < int64(len(b)); {
		end := min(int64(len(b)), at+1+rng.Int64N(200_000))
		pieces = append(pieces, Span{at, end})
		at = end
	}
	rng.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
	var work sync.WaitGroup
	followed := make(chan error, 1)
	work.Go(func() { followed <- f.Follow(t.Context()) })
	for part := range 4 {
		work.Go(func() {
			for i := part; i < len(pieces); i += 4 {
				if _, err := f.WriteAt(b[pieces[i].Start:pieces[i].End], pieces[i].Start); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 3 {
		off := rng.Int64N(int64(len(b)))
		r := f.Open(t.Context(), off, -1)
		work.Go(func() {
			defer r.Close()
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, b[off:]) {
				t.Errorf("reader at %d: %d bytes, %v", off, len(got), err)
			}
		})
		w := f.Open(t.Context(), off, 1000)
		work.Go(func() {
			defer w.Close()
			var buf bytes.Buffer
			if _, err := w.WriteTo(&buf); err != nil || !bytes.Equal(buf.Bytes(), b[off:min(off+1000, int64(len(b)))]) {
				t.Errorf("range at %d: %d bytes, %v", off, buf.Len(), err)
			}
		})
	}
	if err := <-followed; err != nil {
		t.Fatal(err)
	}
	if err := f.Commit(); err != nil {
		t.Fatal(err)
	}
	work.Wait()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := readAll(t, d, dg, int64(len(b))); err != nil || !bytes.Equal(got, b) {
		t.Errorf("held: %d bytes, %v", len(got), err)
	}
}

func TestMismatchDropsEveryByte(t *testing.T) {
	dir := t.TempDir()
	d := openDisk(t, dir, nil)
	b := content(1, 5*mib)
	bad := bytes.Clone(b)
	bad[4*mib] ^= 1
	f, err := d.Fill(oci.Sum(b), busybox)
	if err != nil {
		t.Fatal(err)
	}
	fresh, used := f.Open(t.Context(), 0, -1), f.Open(t.Context(), 0, -1)
	defer fresh.Close()
	defer used.Close()
	if err := f.SetSize(int64(len(b))); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(bad[:10], 0); err != nil {
		t.Fatal(err)
	}
	if n, err := used.Read(make([]byte, 10)); n != 10 || err != nil {
		t.Fatal(n, err)
	}
	if err := fillAll(t, f, bad); !errors.Is(err, ErrMismatch) {
		t.Fatalf("commit of wrong bytes: %v", err)
	}
	if n := f.Landed(); n != 0 {
		t.Errorf("%d wrong bytes are left", n)
	}
	if rec, err := d.readSpans(oci.Sum(b)); err == nil {
		t.Errorf("wrong bytes are on record: %v", rec.Spans)
	}
	if _, err := used.Read(make([]byte, 10)); !errors.Is(err, ErrMismatch) {
		t.Errorf("a reader that got wrong bytes: %v, want a cut", err)
	}
	if err := fillAll(t, f, b); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(fresh); err != nil || !bytes.Equal(got, b) {
		t.Errorf("a reader that got none: %d bytes, %v", len(got), err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// An upstream that closes the connection instead of answering fails with what
// comes of io.EOF. No reader may take that for the blob's end.
func TestAFailureIsNeverTheEnd(t *testing.T) {
	d := openDisk(t, t.TempDir(), nil)
	f, err := d.Fill(oci.Sum([]byte("never comes")), busybox)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cause := &oci.Error{Code: oci.Unavailable, Err: io.EOF}
	f.Fail(fmt.Errorf("closed: %w", cause))
	for name, read := range map[string]func(*FillReader) error{
		"Wait":    func(r *FillReader) error { return r.Wait() },
		"Read":    func(r *FillReader) error { _, err := r.Read(make([]byte, 1)); return err },
		"WriteTo": func(r *FillReader) error { _, err := r.WriteTo(io.Discard); return err },
	} {
		r := f.Open(t.Context(), 0, -1)
		if err := read(r); err == nil || errors.Is(err, io.EOF) || oci.CodeOf(err) != oci.Unavailable {
			t.Errorf("%s: %v (code %s), want why it failed, and no end", name, err, oci.CodeOf(err))
		}
		r.Close()
	}
}

func TestSurplusAndChangedSizeAreRefused(t *testing.T) {
	d := openDisk(t, t.TempDir(), nil)
	f, err := d.Fill(oci.Sum(nil), busybox)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.SetSize(10); err != nil {
		t.Fatal(err)
	}
	if err := f.SetSize(11); !errors.Is(err, ErrSizeChanged) {
		t.Errorf("another size: %v", err)
	}
	if _, err := f.WriteAt(make([]byte, 11), 0); !errors.Is(err, ErrSurplus) {
		t.Errorf("surplus: %v", err)
	}
}

// TestSizeToldDuringAWrite: bytes on their way to the disk do not slip past a size
// that is told meanwhile. A fill with more of them than its size has no end.
func TestSizeToldDuringAWrite(t *testing.T) {
	b := content(1, 1000)
	var f *Fill
	d := openDisk(t, t.TempDir(), func(op Op, _ string) error {
		if op == OpWrite && f != nil {
			return f.SetSize(900)
		}
		return nil
	})
	defer closeDisk(t, d)
	f, err := d.Fill(oci.Sum(b), busybox)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := f.WriteAt(b, 0); n != 0 || !errors.Is(err, ErrSurplus) || f.Landed() != 0 {
		t.Errorf("%d bytes written, %d landed, %v; want a surplus", n, f.Landed(), err)
	}
	if err := errors.Join(f.Reset(), fillAll(t, f, b[:900])); !errors.Is(err, ErrMismatch) {
		t.Errorf("afterwards: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// TestFailingDiskNeverKeeps injects each failure by name. Readers get the whole,
// since it is proven, and nothing is kept.
func TestFailingDiskNeverKeeps(t *testing.T) {
	broken := errors.New("injected")
	for _, op := range []Op{OpSync, OpRename} {
		d := openDisk(t, t.TempDir(), func(o Op, name string) error {
			if o == op {
				return broken
			}
			return nil
		})
		b := content(1, 5*mib)
		f, err := d.Fill(oci.Sum(b), busybox)
		if err != nil {
			t.Fatal(err)
		}
		r := f.Open(t.Context(), 0, -1)
		if err := fillAll(t, f, b); !errors.Is(err, broken) {
			t.Errorf("%s: commit: %v", op, err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, b) {
			t.Errorf("%s: a reader got %d bytes, %v", op, len(got), err)
		}
		_ = r.Close()
		if _, err := d.Size(oci.Sum(b)); !errors.Is(err, ErrNotHeld) {
			t.Errorf("%s: kept all the same", op)
		}
		closeDisk(t, d)
	}
}

// TestCrashAtEveryStep copies the directory before each operation of a fill, as
// a crash would leave it, and goes on from every copy: what is held must be
// right, and the fill must come to its end.
func TestCrashAtEveryStep(t *testing.T) {
	t.Parallel()
	b := content(1, 5*mib)
	dg := oci.Sum(b)
	dir, crashes := t.TempDir(), t.TempDir()
	var copies []string
	d := openDisk(t, dir, func(Op, string) error {
		to := filepath.Join(crashes, string(rune('a'+len(copies))))
		copies = append(copies, to)
		return os.CopyFS(to, os.DirFS(dir))
	})
	f, err := d.Fill(dg, busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := fillAll(t, f, b); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if len(copies) < 10 {
		t.Fatalf("only %d steps were seen", len(copies))
	}
	resumed := false
	for _, at := range copies {
		d := openDisk(t, at, nil)
		if got, err := readAll(t, d, dg, int64(len(b))); err == nil && !bytes.Equal(got, b) {
			t.Fatalf("%s: wrong bytes are held", at)
		}
		f, err := d.Fill(dg, busybox)
		if err != nil {
			t.Fatal(err)
		}
		resumed = resumed || f.Landed() > 0
		if err := fillAll(t, f, b); err != nil {
			t.Errorf("%s: %v", at, err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if got, err := readAll(t, d, dg, int64(len(b))); err != nil || !bytes.Equal(got, b) {
			t.Errorf("%s: %d bytes, %v", at, len(got), err)
		}
		closeDisk(t, d)
	}
	if !resumed {
		t.Error("no copy was resumed from its spans")
	}
}

func TestSpansOfAnotherUpstreamAreNotUsed(t *testing.T) {
	d := openDisk(t, t.TempDir(), nil)
	b := content(1, 6*mib)
	part := func(repo oci.Repository) *Fill {
		f, err := d.Fill(oci.Sum(b), repo)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	f := part(busybox)
	if err := f.SetSize(int64(len(b))); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(b[:5*mib], 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f = part(oci.Repository{Host: "docker.io", Path: "other/repository"})
	if n := f.Landed(); n != 5*mib {
		t.Errorf("the same upstream finds %d bytes, want %d", n, 5*mib)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f = part(oci.Repository{Host: "ghcr.io", Path: "library/busybox"})
	if n := f.Landed(); n != 0 {
		t.Errorf("another upstream finds %d unproven bytes, want none", n)
	}
	_ = f.Close()
}

// TestFillThatCrashedBeforeItsRename: whoever is not root cannot write to a file
// of the proof's mode.
func TestFillThatCrashedBeforeItsRename(t *testing.T) {
	dir := t.TempDir()
	d := openDisk(t, dir, nil)
	b := content(1, 5*mib)
	f, err := d.Fill(oci.Sum(b), busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.SetSize(int64(len(b))); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, fillName(oci.Sum(b)))
	if err := os.Chmod(name, proofMode); err != nil {
		t.Fatal(err)
	}
	if f, err = d.Fill(oci.Sum(b), busybox); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o644 || f.Landed() != int64(len(b)) {
		t.Errorf("resumed with %d bytes in a file of mode %v, %v", f.Landed(), info.Mode(), err)
	}
	if err := fillAll(t, f, b); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// TestFillCutUnderOurFeet: a file that is shorter than its record says begins
// anew, and nothing of the old one is left behind the new end.
func TestFillCutUnderOurFeet(t *testing.T) {
	dir := t.TempDir()
	d := openDisk(t, dir, nil)
	b := content(1, 6*mib)
	f, err := d.Fill(oci.Sum(b), busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.SetSize(int64(len(b))); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(b[:5*mib], 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, fillName(oci.Sum(b)))
	if err := os.Truncate(name, 3*mib); err != nil {
		t.Fatal(err)
	}
	if f, err = d.Fill(oci.Sum(b), busybox); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(name); err != nil || info.Size() != 0 || f.Landed() != 0 || f.Size() != -1 {
		t.Errorf("%d bytes landed, the file has %d, %v", f.Landed(), info.Size(), err)
	}
	if err := errors.Join(fillAll(t, f, b), f.Close()); err != nil {
		t.Error(err)
	}
}

// TestWhatLandedIsRecordedThoughNothingFollows: a stalled transfer does not keep
// what it brought from being found again.
func TestWhatLandedIsRecordedThoughNothingFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := openDisk(t, t.TempDir(), nil)
		defer closeDisk(t, d)
		b := content(1, 6*mib)
		dg := oci.Sum(b)
		f, err := d.Fill(dg, busybox)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.SetSize(int64(len(b))); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		followed := make(chan error)
		go func() { followed <- f.Follow(ctx) }()
		if _, err := f.WriteAt(b[:mib], 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * recordEvery)
		synctest.Wait()
		if rec, err := d.readSpans(dg); err != nil || !slices.Equal(rec.Spans, Spans{{0, mib}}) {
			t.Errorf("on record: %+v, %v", rec.Spans, err)
		}
		cancel()
		if err := <-followed; !errors.Is(err, context.Canceled) {
			t.Errorf("follow: %v", err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestFollowEndsWithItsContext(t *testing.T) {
	d := openDisk(t, t.TempDir(), nil)
	f, err := d.Fill(oci.Sum(nil), busybox)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Follow(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("follow: %v", err)
	}
}

// TestCrashAtEveryStepOfRecords: at every step a tag is what it was or what it
// becomes, a manifest is whole or not there, and a pin protects or is not there.
func TestCrashAtEveryStepOfRecords(t *testing.T) {
	t.Parallel()
	dir, crashes := t.TempDir(), t.TempDir()
	old, young := content(1, 3000), content(2, 4000)
	tag := func(b []byte) Tag { return Tag{Digest: oci.Sum(b), MediaType: manifestType, Size: int64(len(b))} }
	type crash struct {
		dir  string
		step string
	}
	var copies []crash
	step := ""
	d := openDisk(t, dir, func(Op, string) error {
		if step == "" {
			return nil
		}
		to := filepath.Join(crashes, fmt.Sprint(len(copies)))
		copies = append(copies, crash{to, step})
		return os.CopyFS(to, os.DirFS(dir))
	})
	<-d.counted
	for _, one := range []struct {
		name string
		do   func() error
	}{
		{"put", func() error { return d.PutFrom(oci.Sum(old), old, "docker.io") }},
		{"mark", func() error {
			return d.Mark(busybox, oci.Sum(old), Marker{MediaType: manifestType, Size: 3000, State: Proven})
		}},
		{"tag", func() error { return d.PutTag(busybox, "latest", tag(old)) }},
		{"pin", func() error { return d.Pin(t.Context(), busybox, "latest") }},
		{"put the next", func() error { return d.PutFrom(oci.Sum(young), young, "docker.io") }},
		{"move", func() error { return d.PutTag(busybox, "latest", tag(young)) }},
		{"unpin", func() error { return d.Unpin(t.Context(), busybox, "latest") }},
		{"remove", func() error { return d.RemoveTag(t.Context(), busybox, "latest") }},
	} {
		step = one.name
		if err := one.do(); err != nil {
			t.Fatalf("%s: %v", step, err)
		}
	}
	step = ""
	seen := map[string]int{}
	for _, at := range copies {
		d := openDisk(t, at.dir, nil)
		<-d.counted
		for _, b := range [][]byte{old, young} {
			if got, err := readAll(t, d, oci.Sum(b), int64(len(b))); err == nil && !bytes.Equal(got, b) || err != nil && !errors.Is(err, ErrNotHeld) {
				t.Errorf("during %s: %d bytes of %d, %v", at.step, len(got), len(b), err)
			}
		}
		rec, err := d.Tag(busybox, "latest")
		pins, perr := d.Pins(t.Context())
		if perr != nil {
			t.Errorf("during %s: pins: %v", at.step, perr)
		}
		state := fmt.Sprintf("old %v, young %v, pinned %v", rec.Digest == oci.Sum(old), rec.Digest == oci.Sum(young), len(pins) > 0)
		seen[state]++
		var possible []string
		switch at.step {
		case "put", "mark", "tag":
			possible = []string{"old false, young false, pinned false"}
		case "pin":
			possible = []string{"old true, young false, pinned false"}
		case "put the next", "move":
			possible = []string{"old true, young false, pinned true"}
		case "unpin":
			possible = []string{"old false, young true, pinned true", "old false, young true, pinned false"}
		case "remove":
			possible = []string{"old false, young true, pinned false", "old false, young false, pinned false"}
		}
		if !slices.Contains(possible, state) {
			t.Errorf("during %s: %s (%v)", at.step, state, err)
		}
		closeDisk(t, d)
		for _, left := range []string{"pins", "repos", "blobs"} { // temporary files are swept away
			_ = filepath.WalkDir(filepath.Join(at.dir, left), func(name string, e os.DirEntry, err error) error {
				if err == nil && !e.IsDir() && e.Name()[0] == '.' {
					t.Errorf("during %s: %s is left", at.step, name)
				}
				return nil
			})
		}
	}
	if len(seen) != 5 {
		t.Errorf("the steps were seen in these states: %v", seen)
	}
}

// TestReaderCopiesBackOnlyItsOwnBytes: those that it was given, also when its fill
// has ended and another writes something else in their place, until that one has
// found them wrong.
func TestReaderCopiesBackOnlyItsOwnBytes(t *testing.T) {
	for _, row := range []struct {
		name    string
		size    int
		crowded bool // there is no room for a new record when the fill ends
		resumes bool
	}{
		{name: "not worth a record", size: 2 * mib},
		{name: "no room for a new record", size: 5 * mib, crowded: true},
		{name: "on record", size: 5 * mib, resumes: true},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const budget = 64 * mib
				d := openBudget(t, t.TempDir(), budget, nil)
				defer closeDisk(t, d)
				b := content(1, row.size)
				begin := func() *Fill {
					f, err := d.Fill(oci.Sum(b), busybox)
					if err == nil {
						err = f.SetSize(int64(len(b)))
					}
					if err != nil {
						t.Fatal(err)
					}
					return f
				}
				write := func(f *Fill, p []byte, off int64) {
					if _, err := f.WriteAt(p, off); err != nil {
						t.Fatal(err)
					}
				}
				f := begin()
				write(f, b[:1000], 0)
				f.checkpoint(true)
				write(f, b[mib:mib+1000], mib)
				r := f.Open(t.Context(), mib, -1)
				defer r.Close()
				if _, err := io.ReadFull(r, make([]byte, 500)); err != nil {
					t.Fatal(err)
				}
				if err := r.CopyBack(io.Discard, 0); err == nil {
					t.Error("bytes that never came were copied back")
				}
				want := func(when string) {
					t.Helper()
					var w bytes.Buffer
					if err := r.CopyBack(&w, mib); err != nil || !bytes.Equal(w.Bytes(), b[mib:mib+500]) {
						t.Errorf("%s: %d bytes, %v", when, w.Len(), err)
					}
				}
				if row.crowded {
					d.account.correct(budget)
				}
				if err := f.Close(); err != nil {
					t.Fatal(err)
				}
				if row.crowded {
					d.account.correct(-budget)
				}
				want("its fill has ended")
				next := begin()
				defer next.Close()
				want("another has begun")
				if next.Landed() > 0 != row.resumes {
					t.Errorf("the next fill begins with %d bytes", next.Landed())
				}
				gap := next.Gap(Span{mib, int64(len(b))})
				write(next, make([]byte, 1000), gap.Start)
				want("another has written")
				if err := next.Reset(); err != nil {
					t.Fatal(err)
				}
				if !row.resumes {
					want("another has found its own bytes wrong")
				} else if err := r.CopyBack(io.Discard, mib); !errors.Is(err, ErrMismatch) {
					t.Errorf("bytes that were dropped were copied back: %v", err)
				}
			})
		})
	}
}

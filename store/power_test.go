package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"entrepot/oci"
)

// power is a disk whose power may be cut before each operation: names stay, and
// of files only what was synced. That is the worst that a file system does.
type power struct {
	t   *testing.T
	dir string

	during func(name string) // told of a sync, when what it covers is settled

	mu      sync.Mutex // guards the fields below
	synced  map[uint64][]byte
	content map[string][]byte // that blobs and fills should have, by hex digest
	cuts    int
	failed  map[string]bool
}

func (p *power) operate(op Op, name string) error {
	p.mu.Lock()
	p.cut()
	if op == OpSync {
		p.sync(name)
	}
	during := p.during
	p.mu.Unlock()
	if op == OpSync && during != nil {
		during(name)
	}
	return nil
}

func number(name string) uint64 {
	info, err := os.Lstat(name)
	if err != nil {
		return 0
	}
	return info.Sys().(*syscall.Stat_t).Ino
}

// sync keeps what a file has now: a fill under its own name, all others under a
// temporary one beside theirs.
func (p *power) sync(name string) {
	at := filepath.Join(p.dir, name)
	files := []string{at}
	if !strings.HasPrefix(name, fillsDir) || strings.HasSuffix(name, spansSuffix) {
		files, _ = filepath.Glob(filepath.Join(filepath.Dir(at), ".*"))
	}
	for _, file := range files {
		if b, err := os.ReadFile(file); err == nil {
			p.synced[number(file)] = b
		}
	}
}

// cut looks what would be there after a power cut.
func (p *power) cut() {
	p.cuts++
	_ = filepath.WalkDir(p.dir, func(at string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || strings.HasPrefix(e.Name(), ".") {
			return nil
		}
		name, _ := filepath.Rel(p.dir, at)
		if problem := p.problem(name, p.synced[number(at)]); problem != "" && !p.failed[name+problem] {
			p.failed[name+problem] = true
			p.t.Errorf("after a power cut %s %s", name, problem)
		}
		return nil
	})
}

func (p *power) problem(name string, left []byte) string {
	hex, isRecord := strings.CutSuffix(filepath.Base(name), spansSuffix)
	switch {
	case strings.HasPrefix(name, blobsDir) && !bytes.Equal(left, p.content[hex]):
		return "stands for other bytes"
	case strings.Contains(name, tagsDir) && strings.HasPrefix(name, reposDir):
		if _, err := parseTag(left); err != nil {
			return "is lost: " + err.Error()
		}
	case strings.HasPrefix(name, fillsDir) && isRecord:
		rec, err := parseFillRecord(left)
		if err != nil {
			return "is lost: " + err.Error()
		}
		fill := number(filepath.Join(p.dir, fillName(rec.Digest)))
		if fill == 0 { // it is content already, and the record means nothing
			return ""
		}
		file := p.synced[fill]
		for _, s := range rec.Spans {
			if int64(len(file)) < s.End || !bytes.Equal(file[s.Start:s.End], p.content[hex][s.Start:s.End]) {
				return fmt.Sprintf("tells of bytes that are not there: %v", s)
			}
		}
	}
	return ""
}

// TestWhatIsSyncedOutlivesAPowerCut cuts the power before each operation: names
// of content stand for all of it, records of spans for what is there, and a tag
// is what it was or what it becomes.
func TestWhatIsSyncedOutlivesAPowerCut(t *testing.T) {
	b, small := content(1, 6*mib), content(2, 3000)
	dg := oci.Sum(b)
	dir := t.TempDir()
	p := &power{
		t: t, dir: dir, synced: map[uint64][]byte{}, failed: map[string]bool{},
		content: map[string][]byte{dg.Hex(): b, oci.Sum(small).Hex(): small},
	}
	d := openDisk(t, dir, p.operate)
	<-d.counted
	f, err := d.Fill(dg, busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.SetSize(int64(len(b))); err != nil {
		t.Fatal(err)
	}
	late := false
	p.during = func(name string) { // bytes that come while those before are synced are not among them
		if name == fillName(dg) && !late {
			late = true
			if _, err := f.WriteAt(b[mib:2*mib], mib); err != nil {
				t.Error(err)
			}
		}
	}
	if _, err := f.WriteAt(b[:mib], 0); err != nil {
		t.Fatal(err)
	}
	f.checkpoint(true)
	if err := errors.Join(fillAll(t, f, b), f.Close()); err != nil {
		t.Fatal(err)
	}
	unrecorded := content(3, mib)
	p.mu.Lock()
	p.content[oci.Sum(unrecorded).Hex()] = unrecorded
	p.mu.Unlock()
	if f, err = d.Fill(oci.Sum(unrecorded), busybox); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(fillAll(t, f, unrecorded), f.Close()); err != nil {
		t.Fatal(err)
	}
	if err := d.PutFrom(oci.Sum(small), small, "docker.io"); err != nil {
		t.Fatal(err)
	}
	for _, rec := range []Tag{{Digest: oci.Sum(small)}, {Digest: oci.Sum(small), Size: 3000}, {Digest: dg}} {
		if err := d.PutTag(busybox, "latest", rec); err != nil {
			t.Fatal(err)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut()
	if !late || p.cuts < 20 {
		t.Errorf("the power was cut %d times, and bytes came late: %v", p.cuts, late)
	}
}

// TestOneFailedSyncIsNotForgotten: the kernel tells of lost bytes once, and says
// yes to the next sync.
func TestOneFailedSyncIsNotForgotten(t *testing.T) {
	b := content(1, 6*mib)
	dg := oci.Sum(b)
	for _, whole := range []bool{true, false} {
		failed, armed := false, false
		d := openDisk(t, t.TempDir(), func(op Op, name string) error {
			if op == OpSync && name == fillName(dg) && armed && !failed {
				failed = true
				return syscall.EIO
			}
			return nil
		})
		f, err := d.Fill(dg, busybox)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.SetSize(int64(len(b))); err != nil {
			t.Fatal(err)
		}
		for at := int64(0); at < 4*mib; at += 2 * mib { // the first is on record by the time that the second fails
			if _, err := f.WriteAt(b[at:at+2*mib], at); err != nil {
				t.Fatal(err)
			}
			f.checkpoint(true)
			armed = true
		}
		if whole {
			if err := fillAll(t, f, b); !errors.Is(err, ErrDisk) {
				t.Errorf("commit: %v, want %v", err, ErrDisk)
			}
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if _, err := d.Size(dg); !errors.Is(err, ErrNotHeld) || !failed {
			t.Errorf("it is kept all the same: %v; a sync failed: %v", err, failed)
		}
		again, err := d.Fill(dg, busybox)
		if err != nil {
			t.Fatal(err)
		}
		if n := again.Landed(); n != 0 {
			t.Errorf("whole %v: the next fill trusts %d bytes of it", whole, n)
		}
		if err := again.Close(); err != nil {
			t.Error(err)
		}
	}
}

package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"entrepot/oci"
)

// A fill's spans are recorded only after the bytes they tell of are synced, so
// that after a crash the record is true. minRecorded spares small blobs the
// effort: fetching them again costs less.
const (
	minRecorded   = 4 << 20
	recordEvery   = 2 * time.Second
	recordBytes   = 64 << 20
	maxSpansFile  = 16 << 20
	spansSuffix   = ".spans"
	writebackStep = 8 << 20
)

// fillRecord is the .spans file beside a fill's bytes.
type fillRecord struct {
	Digest     oci.Digest `json:"digest"`
	Size       int64      `json:"size"`
	Upstream   string     `json:"upstream"`
	Repository string     `json:"repository"`
	Spans      Spans      `json:"spans"`
}

func parseFillRecord(b []byte) (fillRecord, error) {
	var rec fillRecord
	if err := json.Unmarshal(b, &rec); err != nil {
		return fillRecord{}, err
	}
	if rec.Digest.IsZero() || rec.Size < 0 {
		return fillRecord{}, errors.New("no digest or no size")
	}
	return rec, rec.Spans.check(rec.Size)
}

// fits reports whether the fill's file is there, and long enough to hold what the
// record says.
func (rec fillRecord) fits(d *Disk) bool {
	info, err := d.root.Lstat(fillName(rec.Digest))
	n := len(rec.Spans)
	return err == nil && info.Mode().IsRegular() && (n == 0 || info.Size() >= rec.Spans[n-1].End)
}

func (d *Disk) readSpans(dg oci.Digest) (fillRecord, error) {
	b, err := d.readFile(fillName(dg)+spansSuffix, maxSpansFile)
	if err != nil {
		return fillRecord{}, err
	}
	rec, err := parseFillRecord(b)
	if err == nil && rec.Digest != dg {
		err = fmt.Errorf("record is of %s", rec.Digest)
	}
	return rec, err
}

// dropSpans removes the record first of all: bytes without one mean nothing.
func (d *Disk) dropSpans(dg oci.Digest) { _, _ = d.remove(fillName(dg) + spansSuffix) }

// checkpoint syncs the bytes that landed and then records them, if it is time
// to or if last says that there will be no other. A failed sync makes the fill
// sick: the kernel may have dropped the bytes and would not say so again.
func (f *Fill) checkpoint(last bool) {
	f.mu.Lock()
	rec := fillRecord{f.digest, f.size, f.origin.Host, f.origin.Path, slices.Clone(f.landed)}
	fresh := rec.Spans.Total() - f.synced.Total()
	due := last || fresh >= recordBytes || time.Since(f.recorded) >= recordEvery && rec.Spans.Total() < rec.Size
	if rec.Size < minRecorded || fresh == 0 || !due || f.sick != nil {
		f.mu.Unlock()
		return
	}
	f.recorded = time.Now()
	f.mu.Unlock()
	f.reconcile(false)
	err := f.disk.sync(f.file, f.name)
	if err == nil {
		err = f.disk.putSpans(rec)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if errors.Is(err, ErrNoRoom) {
		return // the bytes are synced all the same, only nothing tells of them yet
	}
	if err != nil {
		f.sick = fmt.Errorf("record fill %s: %w", f.digest, err)
		return
	}
	f.synced = rec.Spans
}

func (d *Disk) putSpans(rec fillRecord) error {
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	stamp := hint{owner: ownerOf(rec.Upstream), uses: 1}.stamp(time.Now()) // lasts, as that of the bytes does not: each write sets it
	return d.writeFile(fillName(rec.Digest)+spansSuffix, b, written{mode: 0o644, sync: true, stamp: stamp})
}

// sweepFills removes what a crash left of fills that cannot be resumed. What can
// be is its upstream's again, as if the fill had been closed.
func (d *Disk) sweepFills() error {
	return fs.WalkDir(d.root.FS(), fillsDir, func(name string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // it could not be made
			return nil
		case err != nil || e.IsDir():
			return err
		}
		twin, isRecord := strings.CutSuffix(name, spansSuffix)
		if !isRecord {
			twin = name + spansSuffix
		}
		if other, err := d.root.Lstat(twin); err == nil && !strings.HasPrefix(e.Name(), ".") {
			if !isRecord {
				d.lendHint(name, e, hintOf(other.ModTime()))
			}
			return nil
		}
		_, err = d.remove(name)
		return err
	})
}

// lendHint gives a file that has no hint of the same owner another one's. A time
// that a write has set looks like a hint once in sixty times. It is only advice.
func (d *Disk) lendHint(name string, e fs.DirEntry, h hint) {
	info, err := e.Info()
	if err != nil || hintOf(info.ModTime()).owner == h.owner || h.owner == 0 {
		return
	}
	stamp := h.stamp(info.ModTime())
	_ = d.root.Chtimes(name, stamp, stamp)
}

package store

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"entrepot/oci"
)

func TestInventory(t *testing.T) {
	d := openDisk(t, t.TempDir(), nil)
	<-d.counted
	other := oci.Repository{Host: "ghcr.io", Path: "a/b"}
	latest, byDigest := pushImage(t, d, busybox, "latest", 1), pushImage(t, d, busybox, "gone", 2)
	pushImage(t, d, other, "v1", 3)
	if err := errors.Join(d.RemoveTag(t.Context(), busybox, "gone"), d.Pin(t.Context(), busybox, "latest")); err != nil {
		t.Fatal(err)
	}
	// The second platform's parts were never pulled.
	for _, dg := range append(latest.blobs[3:], latest.children[1]) {
		d.memory.drop(dg)
		if _, err := d.remove(blobName(dg)); err != nil {
			t.Fatal(err)
		}
	}
	images, err := d.Images(t.Context(), busybox)
	if err != nil || len(images) != 2 {
		t.Fatalf("%d images, want a tag and a manifest without one: %+v, %v", len(images), images, err)
	}
	tagged, loose := images[0], images[1]
	if tagged.Tag != "latest" || tagged.Digest != latest.index || !tagged.Pinned || tagged.LastUse.IsZero() || tagged.Checked.IsZero() || tagged.Held < 60_500 || tagged.Held > 62_000 {
		t.Errorf("%+v", tagged)
	}
	if p := tagged.Platforms; len(p) != 2 || p[0].Architecture != "amd64" || p[0].Size != p[0].Held || p[0].Size < 60_500 || p[1].Architecture != "arm64" || p[1].Size != -1 || p[1].Held != 0 {
		t.Errorf("platforms %+v", p)
	}
	if loose.Tag != "" || loose.Digest != byDigest.index || loose.Pinned || len(loose.Platforms) != 2 {
		t.Errorf("%+v", loose)
	}
	var holdings []Holding
	if err := d.Holdings(t.Context(), func(h Holding) error {
		holdings = append(holdings, h)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(holdings) != 2 || holdings[0].Repository != busybox || holdings[0].Tags != 1 || holdings[0].Blobs != 14 || !holdings[0].Pinned || holdings[1].Repository != other || holdings[1].Bytes < 121_000 || holdings[1].Pinned {
		t.Errorf("%+v", holdings)
	}
}

func TestImageWithoutIndexTellsItsPlatform(t *testing.T) {
	d := openDisk(t, t.TempDir(), nil)
	config := []byte(`{"architecture":"riscv64","os":"linux"}`)
	layer := content(1, 5000)
	m := []byte(`{"schemaVersion":2,"mediaType":"` + manifestType + `","config":{"digest":"` + oci.Sum(config).String() + `","size":39},"layers":[{"digest":"` + oci.Sum(layer).String() + `","size":5000}]}`)
	for _, b := range [][]byte{config, layer, m} {
		if err := d.PutFrom(oci.Sum(b), b, "docker.io"); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.PutTag(busybox, "x", Tag{Digest: oci.Sum(m), MediaType: manifestType}); err != nil {
		t.Fatal(err)
	}
	images, err := d.Images(t.Context(), busybox)
	if err != nil || len(images) != 1 || len(images[0].Platforms) != 1 {
		t.Fatalf("%+v %v", images, err)
	}
	if p := images[0].Platforms[0]; p.Architecture != "riscv64" || p.OS != "linux" || p.Size != int64(5039+len(m)) || p.Held != p.Size {
		t.Errorf("%+v", p)
	}
}

func TestUsageTellsWhoFilledWhat(t *testing.T) {
	dir := t.TempDir()
	d := openBudget(t, dir, 64<<20, func(cfg *Config) { cfg.Shares = map[string]float64{"quay.io": 0.25} })
	pushImage(t, d, busybox, "latest", 1)
	pinned := put(t, d, 50, 100_000, "ghcr.io", 0)
	put(t, d, 51, 10_000, "", 0)
	if err := d.Pin(t.Context(), busybox, pinned.String()); err != nil {
		t.Fatal(err)
	}
	f, err := d.Fill(oci.Sum(nil), oci.Repository{Host: "ghcr.io", Path: "a/b"})
	if err == nil {
		err = f.SetSize(5 * mib)
	}
	if err == nil {
		_, err = f.WriteAt(content(1, mib), 0)
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	files := 0
	u, err := d.Usage(t.Context(), func(n int) { files = n })
	if err != nil {
		t.Fatal(err)
	}
	if u.Held != du(t, dir) || u.Budget != 64<<20 || u.Pinned != blocks(100_000) || files < 20 || u.Disk == 0 || u.Free == 0 {
		t.Errorf("%+v, %d files; the directory takes %d", u, files, du(t, dir))
	}
	byName := map[string]UpstreamUsage{}
	for _, up := range u.Upstreams {
		byName[up.Upstream] = up
	}
	if up := byName["docker.io"]; up.Blobs != 9 || up.Tags != 1 || up.Repositories != 1 || up.BlobBytes < 120_000 || up.Records < 9*blockSize {
		t.Errorf("docker.io: %+v", up)
	}
	if up := byName["quay.io"]; up.Share != 0.25 || up.Blobs != 0 {
		t.Errorf("quay.io: %+v", up)
	}
	nobody := byName[""] // ghcr.io has no records here, so that we do not know its name
	if nobody.Fills != 1 || nobody.Blobs != 2 {
		t.Errorf("%+v", u.Upstreams)
	}
}

// TestUsageAfterAKill: what had arrived of a blob is still known to be its
// upstream's.
func TestUsageAfterAKill(t *testing.T) {
	dir, killed := t.TempDir(), t.TempDir()
	d := openDisk(t, dir, nil)
	pushImage(t, d, busybox, "latest", 1)
	b := content(1, 5*mib)
	f, err := d.Fill(oci.Sum(b), busybox)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.SetSize(int64(len(b))); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(b[:mib], 0); err != nil {
		t.Fatal(err)
	}
	f.checkpoint(true)
	if _, err := f.WriteAt(b[mib:2*mib], mib); err != nil { // which is not on record
		t.Fatal(err)
	}
	if err := errors.Join(os.CopyFS(killed, os.DirFS(dir)), copyTimes(dir, killed)); err != nil {
		t.Fatal(err)
	}
	written := filepath.Join(killed, filepath.FromSlash(f.name))
	for _, at := range []time.Time{
		time.Now().Truncate(time.Second),               // that a write has set
		hint{owner: 12345, uses: 77}.stamp(time.Now()), // likewise, and it looks like a hint
	} {
		if err := os.Chtimes(written, at, at); err != nil {
			t.Fatal(err)
		}
		d := openDisk(t, killed, nil)
		u, err := d.Usage(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(u.Upstreams) != 1 || u.Upstreams[0].Upstream != "docker.io" || u.Upstreams[0].Fills != 1 || u.Upstreams[0].FillBytes < mib {
			t.Errorf("%s: %+v", at, u.Upstreams)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// copyTimes gives the files of a copy the times of its original.
func copyTimes(from, to string) error {
	return fs.WalkDir(os.DirFS(from), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		return os.Chtimes(filepath.Join(to, name), info.ModTime(), info.ModTime())
	})
}

// asSaid compares what removing came to with what was said of it before.
func asSaid(t *testing.T, could, did error) error {
	t.Helper()
	if (could == nil) != (did == nil) || did != nil && (errors.Is(could, ErrPinned) != errors.Is(did, ErrPinned) || errors.Is(could, ErrNotHeld) != errors.Is(did, ErrNotHeld)) {
		t.Errorf("%v, but it was said: %v", did, could)
	}
	return did
}

func TestRemovedRepositoriesAreForgottenAndPruned(t *testing.T) {
	dir := t.TempDir()
	d := openDisk(t, dir, nil)
	<-d.counted
	removeTag := func(tag string) error {
		could := d.CanRemoveTag(t.Context(), busybox, tag)
		return asSaid(t, could, d.RemoveTag(t.Context(), busybox, tag))
	}
	removeAll := func() error {
		could := d.CanRemoveRepository(t.Context(), busybox)
		return asSaid(t, could, d.RemoveRepository(t.Context(), busybox))
	}
	parent := oci.Repository{Host: "docker.io", Path: "library"}
	mine, both := pushImage(t, d, busybox, "latest", 1), pushImage(t, d, busybox, "shared", 2)
	pushImage(t, d, parent, "shared", 2)
	for _, dg := range append(mine.all(), both.all()...) {
		use(t, d, dg, 2*time.Hour)
	}
	if err := d.Pin(t.Context(), busybox, "latest"); err != nil {
		t.Fatal(err)
	}
	if err := removeTag("latest"); !errors.Is(err, ErrPinned) {
		t.Errorf("remove a pinned tag: %v", err)
	}
	if err := removeAll(); !errors.Is(err, ErrPinned) {
		t.Errorf("remove a repository with a pin: %v", err)
	}
	if err := errors.Join(d.Unpin(t.Context(), busybox, "latest"), removeAll()); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Tag(busybox, "latest"); !errors.Is(err, ErrNotHeld) {
		t.Errorf("tag: %v", err)
	}
	if _, err := d.Marker(busybox, mine.index); !errors.Is(err, ErrNotHeld) {
		t.Errorf("marker: %v", err)
	}
	if err := removeAll(); !errors.Is(err, ErrNotHeld) {
		t.Errorf("remove it again: %v", err)
	}
	if err := removeTag("latest"); !errors.Is(err, ErrNotHeld) {
		t.Errorf("remove its tag again: %v", err)
	}
	if names, _, err := d.Repositories("", -1); err != nil || len(names) != 1 || names[0] != parent.String() {
		t.Errorf("repositories: %q, %v", names, err)
	}
	if _, err := os.Stat(filepath.Join(dir, repoDir(busybox))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an empty directory is left: %v", err)
	}
	if n := heldOf(d, mine.all()); n != 9 {
		t.Errorf("content went with the records: %d are left", n)
	}
	last := 0.0
	p, err := d.Prune(t.Context(), Pruning{Progress: func(done float64) { last = done }})
	if err != nil || p.Blobs != 9 || p.Bytes < 120_000 || last != 1 {
		t.Errorf("%+v, %v, progress %v", p, err, last)
	}
	if a, b := heldOf(d, mine.all()), heldOf(d, both.all()); a != 0 || b != 9 {
		t.Errorf("%d of what nobody has is left, %d of what another repository has", a, b)
	}
	if got, want := d.account.settled, du(t, dir); got != want {
		t.Errorf("settled %d, the directory takes %d", got, want)
	}
}

func TestPruneRemovesWhatWasNotUsedForLong(t *testing.T) {
	dir := t.TempDir()
	d := openDisk(t, dir, nil)
	<-d.counted
	old, fresh := pushImage(t, d, busybox, "old", 1), pushImage(t, d, busybox, "new", 2)
	grow(t, d, dir, old, 100*time.Hour)
	var would []Prunable
	dry, err := d.Prune(t.Context(), Pruning{Unused: 50 * time.Hour, Would: func(v Prunable) { would = append(would, v) }})
	if err != nil || len(would) != 18 || heldOf(d, old.all()) != 9 {
		t.Errorf("a dry run tells of %d things, %v, and leaves %d", len(would), err, heldOf(d, old.all()))
	}
	p, err := d.Prune(t.Context(), Pruning{Unused: 50 * time.Hour})
	if p != dry {
		t.Errorf("%+v was removed, %+v was foretold", p, dry)
	}
	if err != nil || p.Blobs != 9 || p.Records != 9 {
		t.Errorf("%+v, %v", p, err)
	}
	if a, b := heldOf(d, old.all()), heldOf(d, fresh.all()); a != 0 || b != 9 {
		t.Errorf("%d of the old, %d of the new are left", a, b)
	}
}

// TestPruneTellsWhatCouldNotBeRemoved: and removes the rest.
func TestPruneTellsWhatCouldNotBeRemoved(t *testing.T) {
	for _, row := range []struct {
		stays          string // begins the names of what the disk does not remove
		failed         int
		blobs, records int // removed
	}{
		{"", 9, 0, 0}, {"blobs/", 9, 0, 0}, {"repos/", 9, 9, 0}, {"nothing", 0, 9, 9},
	} {
		dir := t.TempDir()
		var readOnly atomic.Bool
		d := openDisk(t, dir, func(op Op, name string) error {
			if op == OpRemove && readOnly.Load() && strings.HasPrefix(name, row.stays) {
				return syscall.EROFS
			}
			return nil
		})
		<-d.counted
		grow(t, d, dir, pushImage(t, d, busybox, "old", 1), 100*time.Hour)
		readOnly.Store(true)
		p, err := d.Prune(t.Context(), Pruning{Unused: 50 * time.Hour})
		if p.Blobs != row.blobs || p.Records != row.records {
			t.Errorf("%q stays: %+v was removed", row.stays, p)
		}
		if row.failed == 0 {
			if err != nil {
				t.Error(err)
			}
		} else if !errors.Is(err, syscall.EROFS) || !strings.HasPrefix(err.Error(), strconv.Itoa(row.failed)+" could not be removed") {
			t.Errorf("%q stays: %v", row.stays, err)
		}
	}
}

// grow has an image's content and markers be as old as that.
func grow(t *testing.T, d *Disk, dir string, image pushed, old time.Duration) {
	t.Helper()
	for _, dg := range image.all() {
		use(t, d, dg, old)
		when := time.Now().Add(-old)
		if err := os.Chtimes(filepath.Join(dir, markerName(busybox, dg)), when, when); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPruneBelievesManifestsWhereMarkersAreLost: a crash may take markers, and
// prune must not take the content after them.
func TestPruneBelievesManifestsWhereMarkersAreLost(t *testing.T) {
	dir := t.TempDir()
	d := openDisk(t, dir, nil)
	image := pushImage(t, d, busybox, "latest", 1)
	for _, dg := range image.all() {
		use(t, d, dg, 100*time.Hour)
	}
	closeDisk(t, d)
	loseMarkers(t, dir, busybox)
	d = openDisk(t, dir, nil)
	if p, err := d.Prune(t.Context(), Pruning{}); err != nil || p.Blobs != 0 {
		t.Errorf("%+v, %v", p, err)
	}
}

// TestMarkersDoNotUseUpTheBudget: they outlive content, but not for ever.
func TestMarkersDoNotUseUpTheBudget(t *testing.T) {
	dir := t.TempDir()
	const budget = 8 << 20
	d := openBudget(t, dir, budget, nil)
	<-d.counted
	for i := range 2000 {
		err := d.Mark(busybox, oci.Sum([]byte{byte(i), byte(i >> 8)}), Marker{State: Named, Size: 1})
		if err != nil && !errors.Is(err, ErrNoRoom) {
			t.Fatal(err)
		}
	}
	b := content(1, 3*mib)
	f, err := d.Fill(oci.Sum(b), busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := fillAll(t, f, b); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if got, err := readAll(t, d, oci.Sum(b), int64(len(b))); err != nil || !bytes.Equal(got, b) {
		t.Errorf("a blob that fits was not kept: %v", err)
	}
	if n := du(t, dir); n > budget {
		t.Errorf("%d bytes are used", n)
	}
}

func TestOneManifestIsForgottenWithWhatItAloneLeadsTo(t *testing.T) {
	d := openDisk(t, t.TempDir(), nil)
	<-d.counted
	one, other := pushImage(t, d, busybox, "one", 1), pushImage(t, d, busybox, "other", 2)
	// A second index shares a platform with the first.
	shared := []byte(`{"schemaVersion":2,"mediaType":"` + indexType + `","manifests":[{"mediaType":"` + manifestType + `","digest":"` + one.children[0].String() + `","size":1}]}`)
	index := oci.Sum(shared)
	if err := errors.Join(d.Put(index, shared), d.Mark(busybox, index, Marker{MediaType: indexType, Size: int64(len(shared)), State: Proven})); err != nil {
		t.Fatal(err)
	}
	remove := func(dg oci.Digest) error {
		could := d.CanRemoveManifest(t.Context(), busybox, dg)
		return asSaid(t, could, d.RemoveManifest(t.Context(), busybox, dg))
	}
	for _, dg := range []oci.Digest{one.index, one.children[1], other.children[0]} {
		if led, ok := errors.AsType[LedTo](remove(dg)); !ok || led.By != busybox.String()+":one" && led.By != busybox.String()+":other" {
			t.Errorf("a manifest that a tag leads to: %v", led)
		}
	}
	if err := remove(one.blobs[0]); !errors.Is(err, ErrNotHeld) {
		t.Errorf("a blob: %v", err)
	}
	if err := errors.Join(d.CanRemoveTag(t.Context(), busybox, "one"), d.RemoveTag(t.Context(), busybox, "one"), d.Pin(t.Context(), busybox, one.index.String())); err != nil {
		t.Fatal(err)
	}
	for _, dg := range []oci.Digest{one.index, one.children[1]} {
		if err := remove(dg); !errors.Is(err, ErrPinned) {
			t.Errorf("what is pinned: %v", err)
		}
	}
	if err := d.Unpin(t.Context(), busybox, one.index.String()); err != nil {
		t.Fatal(err)
	}
	if led, ok := errors.AsType[LedTo](remove(one.children[0])); !ok {
		t.Errorf("a manifest that an index leads to: %v", led)
	}
	if err := remove(one.index); err != nil {
		t.Fatal(err)
	}
	// Its second platform is nobody's now; the first is the other index's.
	for i, dg := range one.all() {
		_, err := d.Marker(busybox, dg)
		if kept := i == 1 || i >= 3 && i < 6; kept != (err == nil) {
			t.Errorf("part %d: %v", i, err)
		}
	}
	if err := remove(one.index); !errors.Is(err, ErrNotHeld) {
		t.Errorf("again: %v", err)
	}
	for _, dg := range one.all() {
		use(t, d, dg, 2*time.Hour)
	}
	if p, err := d.Prune(t.Context(), Pruning{}); err != nil || p.Blobs != 5 {
		t.Errorf("pruned %+v, %v, want the index, and one platform's manifest, config and layers", p, err)
	}
	if images, err := d.Images(t.Context(), busybox); err != nil || len(images) != 2 || images[0].Tag != "other" || images[1].Digest != index {
		t.Errorf("%+v, %v", images, err)
	}
	if err := remove(index); err != nil {
		t.Fatal(err)
	}
	if n := heldOf(d, other.all()); n != 9 {
		t.Errorf("%d of another image are held, want all 9", n)
	}
}

// TestDroppedTagStaysDropped: also where a pin protects what it named, and the
// directory that it was in is synced.
func TestDroppedTagStaysDropped(t *testing.T) {
	for _, others := range []int{0, 1} {
		var synced []string
		d := openDisk(t, t.TempDir(), func(op Op, name string) error {
			if op == OpSync {
				synced = append(synced, name)
			}
			return nil
		})
		<-d.counted
		rec := Tag{Digest: oci.Sum([]byte("content")), Size: 7, Checked: time.Now()}
		for i := range 1 + others {
			if err := d.PutTag(busybox, strconv.Itoa(i), rec); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.Pin(t.Context(), busybox, "0"); err != nil {
			t.Fatal(err)
		}
		synced = nil
		if err := d.DropTag(busybox, "0"); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Tag(busybox, "0"); !errors.Is(err, ErrNotHeld) {
			t.Errorf("beside %d others: %v, want that it is not held", others, err)
		}
		if len(synced) != 1 {
			t.Errorf("beside %d others: %q was synced, want one directory", others, synced)
		}
		if err := d.DropTag(busybox, "0"); !errors.Is(err, ErrNotHeld) {
			t.Errorf("a second time: %v", err)
		}
	}
}

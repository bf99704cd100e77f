package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"entrepot/oci"
)

const (
	indexType    = "application/vnd.oci.image.index.v1+json"
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	layerType    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// pushed is an image that is held: an index of two platforms.
type pushed struct {
	index    oci.Digest
	children []oci.Digest
	blobs    []oci.Digest
}

func (p pushed) all() []oci.Digest {
	return slices.Concat([]oci.Digest{p.index}, p.children, p.blobs)
}

type wire struct {
	MediaType string         `json:"mediaType"`
	Digest    oci.Digest     `json:"digest"`
	Size      int            `json:"size"`
	Platform  map[string]any `json:"platform,omitempty"`
}

// pushImage makes an image held under a tag, as a pull through the cache would.
func pushImage(t testing.TB, d *Disk, repo oci.Repository, tag string, seed int) pushed {
	t.Helper()
	var p pushed
	var children []wire
	keep := func(b []byte, mediaType string, state State) wire {
		dg := oci.Sum(b)
		err := errors.Join(d.PutFrom(dg, b, repo.Host), d.Mark(repo, dg, Marker{MediaType: mediaType, Size: int64(len(b)), State: state}))
		if err != nil {
			t.Fatal(err)
		}
		return wire{MediaType: mediaType, Digest: dg, Size: len(b)}
	}
	encode := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for i, arch := range []string{"amd64", "arm64"} {
		config := keep(content(seed*100+i*10, 500), "application/vnd.oci.image.config.v1+json", Named)
		layers := []wire{keep(content(seed*100+i*10+1, 20_000), layerType, Proven), keep(content(seed*100+i*10+2, 40_000), layerType, Proven)}
		p.blobs = append(p.blobs, config.Digest, layers[0].Digest, layers[1].Digest)
		m := keep(encode(map[string]any{"schemaVersion": 2, "mediaType": manifestType, "config": config, "layers": layers}), manifestType, Proven)
		m.Platform = map[string]any{"os": "linux", "architecture": arch}
		p.children = append(p.children, m.Digest)
		children = append(children, m)
	}
	index := keep(encode(map[string]any{"schemaVersion": 2, "mediaType": indexType, "manifests": children}), indexType, Proven)
	p.index = index.Digest
	now := time.Now().UTC().Truncate(time.Second)
	if err := d.PutTag(repo, tag, Tag{Digest: p.index, MediaType: indexType, Size: int64(index.Size), Checked: now, Changed: now}); err != nil {
		t.Fatal(err)
	}
	return p
}

func heldOf(d *Disk, dgs []oci.Digest) (n int) {
	for _, dg := range dgs {
		if isHeld(d, dg) {
			n++
		}
	}
	return n
}

func TestPinnedImagesStay(t *testing.T) {
	dir := t.TempDir()
	d := openDisk(t, dir, nil)
	<-d.counted
	other := oci.Repository{Host: "ghcr.io", Path: "a/b"}
	byTag, byDigest, free := pushImage(t, d, busybox, "latest", 1), pushImage(t, d, other, "v1", 2), pushImage(t, d, other, "v2", 3)
	if err := errors.Join(d.Pin(t.Context(), busybox, "latest"), d.Pin(t.Context(), other, byDigest.children[0].String())); err != nil {
		t.Fatal(err)
	}
	closeDisk(t, d)
	d = openDisk(t, dir, nil)
	force(t, d, 1<<30)
	want := []oci.Digest{byDigest.children[0], byDigest.blobs[0], byDigest.blobs[1], byDigest.blobs[2]}
	if a, b, c := heldOf(d, byTag.all()), heldOf(d, byDigest.all()), heldOf(d, free.all()); a != 9 || b != 4 || heldOf(d, want) != 4 || c != 0 {
		t.Errorf("%d of a pinned tag's image, %d of a pinned platform's, %d of an image that is not pinned are left", a, b, c)
	}
	pins, err := d.Pins(t.Context())
	if err != nil || len(pins) != 2 || pins[0].Reference != "latest" || pins[0].Digest != byTag.index || pins[0].Missing != 0 || pins[0].Held < 120_000 || pins[1].Digest != want[0] {
		t.Errorf("pins: %+v, %v", pins, err)
	}
	moved := pushImage(t, d, busybox, "latest", 4)
	force(t, d, 1<<30)
	if a, b := heldOf(d, byTag.all()), heldOf(d, moved.all()); a != 0 || b != 9 {
		t.Errorf("after the tag moved: %d of the old image, %d of the new one are left", a, b)
	}
	if err := d.Unpin(t.Context(), busybox, "latest"); err != nil {
		t.Fatal(err)
	}
	force(t, d, 1<<30)
	if n := heldOf(d, moved.all()); n != 0 {
		t.Errorf("after unpin %d are left", n)
	}
	if err := d.Unpin(t.Context(), busybox, "latest"); !errors.Is(err, ErrNotHeld) {
		t.Errorf("unpin twice: %v", err)
	}
}

func TestPinsMadeByHandAndPinsOfWhatIsNotHeld(t *testing.T) {
	dir := t.TempDir()
	d := openDisk(t, dir, nil)
	image := pushImage(t, d, busybox, "v1", 1)
	writeAged(t, filepath.Join(dir, "pins/docker.io/library/busybox/_tags/v1"), nil, 0o644, 0)
	writeAged(t, filepath.Join(dir, "pins/docker.io/library/busybox/_content/sha256", oci.Sum([]byte("not there")).Hex()), []byte("{torn"), 0o644, 0)
	writeAged(t, filepath.Join(dir, "pins/README"), []byte("not a pin"), 0o644, 0)
	pins, err := d.Pins(t.Context())
	if err != nil || len(pins) != 2 {
		t.Fatalf("pins: %+v, %v", pins, err)
	}
	if pins[0].Missing != 1 || pins[0].Held != 0 || pins[1].Missing != 0 {
		t.Errorf("pins: %+v", pins)
	}
	force(t, d, 1<<30)
	if n := heldOf(d, image.all()); n != 9 {
		t.Errorf("%d are left of an image that was pinned by hand", n)
	}
	for _, reference := range []string{"", "../up", "a/b", "sha256:short"} {
		if err := d.Pin(t.Context(), busybox, reference); err == nil {
			t.Errorf("%q was pinned", reference)
		}
	}
}

// TestUnreadablePinsStopEviction: whoever cannot tell what is pinned must not
// evict.
func TestUnreadablePinsStopEviction(t *testing.T) {
	dir := t.TempDir()
	d := openDisk(t, dir, nil)
	dg := put(t, d, 1, 1000, "docker.io", time.Hour)
	if err := os.RemoveAll(filepath.Join(dir, pinsDir)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/", filepath.Join(dir, pinsDir)); err != nil {
		t.Fatal(err)
	}
	if found, err := d.candidates(t.Context(), aims{bytes: 1, count: 10}, nil); err == nil || len(found) > 0 {
		t.Errorf("candidates: %v, %v", found, err)
	}
	if !isHeld(d, dg) {
		t.Error("it was evicted")
	}
}

func TestHostileManifestPinsABoundedNumber(t *testing.T) {
	d := openDisk(t, t.TempDir(), nil)
	var b bytes.Buffer
	b.WriteString(`{"schemaVersion":2,"manifests":[`)
	for i := range 2 * maxImage {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"digest":"%s","size":1}`, oci.Sum(fmt.Append(nil, i)))
	}
	b.WriteString(`]}`)
	dg := oci.Sum(b.Bytes())
	if err := errors.Join(d.Put(dg, b.Bytes()), d.Pin(t.Context(), busybox, dg.String())); err != nil {
		t.Fatal(err)
	}
	if n := len(*d.pinned.Load()); n > maxImage || n < maxImage/2 {
		t.Errorf("%d digests are protected", n)
	}
}

func FuzzPin(f *testing.F) {
	f.Add("pins/docker.io/library/a/_tags/latest", []byte(`{"repository":"docker.io/library/a","reference":"Latest","since":"2026-01-02T03:04:05Z"}`))
	f.Add("pins/docker.io/a/_content/sha256/e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", []byte(nil))
	f.Add("pins/../_tags/x", []byte(`{`))
	f.Fuzz(func(t *testing.T, name string, b []byte) {
		p, err := parsePin(name, b)
		if err != nil {
			return
		}
		if _, err := oci.ParseRepository(p.Repository.String()); err != nil {
			t.Errorf("%q: %v", name, err)
		}
		again, err := parsePin(pinName(p.Repository, p.Reference), nil)
		if err != nil || again.Repository != p.Repository || again.Reference != p.Reference {
			t.Errorf("%q is %+v, which lies at another place: %+v %v", name, p, again, err)
		}
	})
}

// TestPinnedTagProtectsTheImageBefore: until what the tag has moved to is whole, that
// is what is served when upstream is away.
func TestPinnedTagProtectsTheImageBefore(t *testing.T) {
	d := openDisk(t, t.TempDir(), nil)
	before := pushImage(t, d, busybox, "latest", 1)
	rec := Tag{Digest: oci.Sum([]byte("on its way")), Former: &Former{Digest: before.index, MediaType: indexType}}
	if err := errors.Join(d.PutTag(busybox, "latest", rec), d.Pin(t.Context(), busybox, "latest")); err != nil {
		t.Fatal(err)
	}
	force(t, d, 1<<30)
	if n := heldOf(d, before.all()); n != 9 {
		t.Errorf("%d of 9 are left", n)
	}
	if err := d.RemoveManifest(t.Context(), busybox, before.index); !errors.As(err, new(LedTo)) && !errors.Is(err, ErrPinned) {
		t.Errorf("it can be removed: %v", err)
	}
}

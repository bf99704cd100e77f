package cache

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/oci"
)

// abroad is a source whose manifests may place layers elsewhere. What is there
// is a blob of the repository abroad/<url>.
type abroad struct {
	*source
	deny   bool
	astray bool // what leads there is refused on the way
}

func (s *abroad) Foreign(_ context.Context, _ oci.Repository, d oci.Digest, urls []string, _ oci.Ask) (oci.Blob, error) {
	if s.deny {
		return nil, oci.Errorf(oci.Denied, "%s is kept where nothing is fetched from", d)
	}
	if s.astray {
		_ = s.note("GET %s, and no further", urls[0])
		return nil, &oci.Error{Code: oci.BadUpstream, Detail: "it leads where nobody goes", Err: oci.ErrAstray}
	}
	return &sourceBlob{s.source, oci.Repository{Host: "abroad", Path: urls[0]}, d}, nil
}

// place puts what a URL answers with when it is asked for d.
func (s *abroad) place(url string, d oci.Digest, content []byte) {
	s.set(func() { s.blobs["abroad/"+url+"@"+d.String()] = content })
}

const (
	foreignType = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
	layerURL    = "https://layers.example/base"
)

// pushForeign pushes an image whose first layer is elsewhere, before its own.
func (s *abroad) pushForeign(repo oci.Repository, tag string, d oci.Digest, size int, own ...[]byte) oci.Manifest {
	layers := []any{map[string]any{"mediaType": foreignType, "digest": d, "size": size, "urls": []string{layerURL}}}
	for _, l := range own {
		layers = append(layers, map[string]any{"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "digest": s.pushBlob(repo, l), "size": len(l)})
	}
	content, _ := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json", "layers": layers,
	})
	var m oci.Manifest
	s.set(func() {
		m = s.pushManifest(repo, tag, content, "application/vnd.docker.distribution.manifest.v2+json")
	})
	return m
}

func (s *abroad) manifest(t *testing.T, c *Cache, repo oci.Repository, m oci.Manifest) {
	t.Helper()
	if _, _, err := c.Manifest(t.Context(), repo, m.Digest, oci.Ask{}); err != nil {
		t.Fatal(err)
	}
}

// TestForeignLayer: the registry is asked first, then one transfer from where
// the manifest says serves everybody, and it is kept.
func TestForeignLayer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &abroad{source: newSource()}
		layer := pattern(40, 3*mib)
		d := oci.Sum(layer)
		m := s.pushForeign(alpine, "latest", d, len(layer))
		s.place(layerURL, d, layer)
		dir := t.TempDir()
		c := openCache(t, dir, s, Config{TTL: time.Hour})
		s.manifest(t, c, alpine, m)
		s.set(func() { s.asked = nil })

		b, err := c.Blob(t.Context(), alpine, d, oci.Ask{})
		if err != nil {
			t.Fatal(err)
		}
		if desc, _, err := b.Stat(t.Context()); err != nil || desc.Size != int64(len(layer)) {
			t.Errorf("HEAD: %+v %v, want %d bytes", desc, err, len(layer))
		}
		wantAsked(t, s.source, "HEAD library/alpine blob "+d.String(), "HEAD "+layerURL+" blob "+d.String())

		var readers sync.WaitGroup
		for i := range 20 {
			readers.Go(func() {
				from := int64(i) * 1000
				got, _, err := read(t.Context(), c, alpine, d, from, -1)
				if err != nil || !bytes.Equal(got, layer[from:]) {
					t.Errorf("from %d: %d bytes, %v", from, len(got), err)
				}
			})
		}
		readers.Wait()
		if n := s.bytesMoved(); n != int64(len(layer)) {
			t.Errorf("20 readers moved %d bytes, want the %d of one transfer", n, len(layer))
		}
		closeCache(t, c)

		s.set(func() { s.asked = nil })
		c = openCache(t, dir, s, Config{Offline: true})
		defer closeCache(t, c)
		if out := mustRead(t, c, alpine, d, layer); out.Cache != oci.Hit {
			t.Errorf("after a restart it is a %s", out.Cache)
		}
		wantAsked(t, s.source)
	})
}

// TestForeignLayerThatTheRegistryHas: it is taken from there, and no URL asked.
func TestForeignLayerThatTheRegistryHas(t *testing.T) {
	s := &abroad{source: newSource(), deny: true}
	layer := pattern(41, 1000)
	d := s.pushBlob(alpine, layer)
	m := s.pushForeign(alpine, "latest", d, len(layer))
	c := newCache(t, s, Config{})
	s.manifest(t, c, alpine, m)
	mustRead(t, c, alpine, d, layer)
	for _, q := range s.questions() {
		if strings.Contains(q, layerURL) {
			t.Errorf("asked %s", q)
		}
	}
}

// TestForeignLayerWhileOurLoginIsRefused: that the registry does not have it is not its
// word then, but where the manifest places it everybody may look.
func TestForeignLayerWhileOurLoginIsRefused(t *testing.T) {
	s := &abroad{source: newSource()}
	layer := pattern(43, 1000)
	d := oci.Sum(layer)
	m := s.pushForeign(alpine, "latest", d, len(layer))
	s.place(layerURL, d, layer)
	c := newCache(t, s, Config{})
	s.manifest(t, c, alpine, m)
	s.set(func() { s.nobody = true })
	mustRead(t, c, alpine, d, layer)
	_, _, err := read(t.Context(), c, alpine, oci.Sum([]byte("a layer of its own")), 0, -1)
	wantCode(t, err, oci.Denied)
}

func TestForeignLayerThatMayNotBeFetched(t *testing.T) {
	s := &abroad{source: newSource(), deny: true}
	layer := pattern(42, 1000)
	d := oci.Sum(layer)
	m := s.pushForeign(alpine, "latest", d, len(layer))
	s.place(layerURL, d, layer)
	c := newCache(t, s, Config{})
	s.manifest(t, c, alpine, m)
	for range 3 {
		_, _, err := read(t.Context(), c, alpine, d, 0, -1)
		wantCode(t, err, oci.Denied)
	}
	b, err := c.Blob(t.Context(), alpine, d, oci.Ask{})
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = b.Stat(t.Context())
	wantCode(t, err, oci.Denied)
	if n := len(s.questions()); n != 2 {
		t.Errorf("asked %q, want the manifest and the layer once", s.questions())
	}
}

// TestForeignLayerAfterACrash: what the manifest said of it is read again.
func TestForeignLayerAfterACrash(t *testing.T) {
	s := &abroad{source: newSource()}
	layer := pattern(43, 1000)
	d := oci.Sum(layer)
	s.pushForeign(alpine, "latest", d, len(layer))
	s.place(layerURL, d, layer)
	dir := t.TempDir()
	c := openCache(t, dir, s, Config{TTL: time.Hour})
	if _, err := pull(t.Context(), c, alpine, "latest"); err != nil {
		t.Fatal(err)
	}
	mustRead(t, c, alpine, d, layer)
	awaitNoFills(c)
	closeCache(t, c)
	for _, lost := range []string{ // the layer too, as if it had never come
		filepath.Join(dir, "blobs", "sha256", d.Hex()[:2], d.Hex()),
		filepath.Join(dir, "repos", "docker.io", "library", "alpine", "_content", "sha256", d.Hex()[:2], d.Hex()),
	} {
		if err := os.Remove(lost); err != nil {
			t.Fatal(err)
		}
	}
	c = openCache(t, dir, s, Config{TTL: time.Hour})
	mustRead(t, c, alpine, d, layer)
	_, _, err := read(t.Context(), c, alpine, oci.Sum([]byte("unheard of")), 0, -1)
	wantCode(t, err, oci.BlobUnknown)
}

func TestWrongForeignLayerNeverCompletes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &abroad{source: newSource()}
		layer := pattern(44, 100_000)
		d := oci.Sum(layer)
		m := s.pushForeign(alpine, "latest", d, len(layer))
		s.place(layerURL, d, pattern(45, len(layer)))
		c := newCache(t, s, Config{})
		defer closeCache(t, c)
		s.manifest(t, c, alpine, m)
		if got, _, err := read(t.Context(), c, alpine, d, 0, -1); err == nil || len(got) == len(layer) {
			t.Errorf("%d bytes, %v, want a cut", len(got), err)
		}
		s.place(layerURL, d, layer)
		time.Sleep(time.Hour)
		mustRead(t, c, alpine, d, layer)
	})
}

// TestAForeignPlaceThatFailsIsLeftAlone: whatever is asked of the layer meanwhile,
// also where the bytes are here under another repository's name.
func TestAForeignPlaceThatFailsIsLeftAlone(t *testing.T) {
	layer := pattern(49, 100_000)
	d := oci.Sum(layer)
	for _, row := range []struct {
		name  string
		fails func(s *abroad)
		mends func(s *abroad)
		code  oci.Code
		alone time.Duration
		costs int // requests there
	}{
		{"404", func(*abroad) {}, func(s *abroad) { s.place(layerURL, d, layer) }, oci.BlobUnknown, 30 * time.Second, 1},
		{"wrong bytes", func(s *abroad) { s.place(layerURL, d, pattern(50, len(layer))) }, func(s *abroad) { s.place(layerURL, d, layer) }, oci.BadUpstream, astrayFor, 2},
		{"astray", func(s *abroad) { s.astray = true }, func(s *abroad) { s.astray = false; s.place(layerURL, d, layer) }, oci.BadUpstream, astrayFor, 1},
	} {
		for _, held := range []bool{false, true} {
			t.Run(row.name+map[bool]string{true: ", held for another"}[held], func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := &abroad{source: newSource()}
					row.fails(s)
					c := newCache(t, s, Config{TTL: time.Hour, Private: held})
					defer closeCache(t, c)
					if held {
						s.pushImage(secret, "latest", layer)
						if _, err := pull(t.Context(), c, secret, "latest"); err != nil {
							t.Fatal(err)
						}
					}
					s.manifest(t, c, mallory, s.pushForeign(mallory, "latest", d, len(layer)))
					ask := func() {
						t.Helper()
						if got, _, err := read(t.Context(), c, mallory, d, 0, -1); err == nil || len(got) == len(layer) {
							t.Errorf("%d bytes, %v", len(got), err)
						}
						awaitNoFills(c)
						_, _, err := read(t.Context(), c, mallory, d, 0, 1000)
						wantCode(t, err, row.code)
						b, err := c.Blob(t.Context(), mallory, d, oci.Ask{})
						if err != nil {
							t.Fatal(err)
						}
						_, _, err = b.Stat(t.Context())
						wantCode(t, err, row.code)
					}
					there := func() (n int) {
						for _, q := range s.questions() {
							if strings.Contains(q, layerURL) {
								n++
							}
						}
						return n
					}
					costs := row.costs
					if held { // it goes past the disk, which tries no second time
						costs = 1
					}
					ask()
					time.Sleep(row.alone - time.Second)
					ask()
					if n := there(); n != costs {
						t.Errorf("%d requests there within %v, want %d: %q", n, row.alone, costs, s.questions())
					}
					time.Sleep(2 * time.Second)
					ask()
					if n := there(); n != 2*costs {
						t.Errorf("%d requests there after %v, want %d", n, row.alone, 2*costs)
					}
					row.mends(s)
					c.ForgetOf(mallory)
					mustRead(t, c, mallory, d, layer)
				})
			})
		}
	}
}

// TestForeignLayersOfOneImageAfterARestart: who asks while the manifests are
// looked through for their places waits for that.
func TestForeignLayersOfOneImageAfterARestart(t *testing.T) {
	s := &abroad{source: newSource()}
	layer := pattern(51, 1000)
	d := oci.Sum(layer)
	s.place(layerURL, d, layer)
	dir := t.TempDir()
	c := openCache(t, dir, s, Config{TTL: time.Hour})
	s.manifest(t, c, alpine, s.pushForeign(alpine, "latest", d, len(layer)))
	closeCache(t, c)
	c = openCache(t, dir, s, Config{TTL: time.Hour})
	defer closeCache(t, c)
	looking, look, found := make(chan struct{}), make(chan struct{}), make(chan bool)
	go func() {
		_, _, err := do(t.Context(), c, &c.looks, alpine.String(), oci.Ask{}, time.Minute, func(ctx context.Context) (struct{}, error) {
			c.foreign.mayLook(alpine)
			close(looking)
			<-look
			c.lookElsewhere(ctx, alpine)
			return struct{}{}, nil
		})
		found <- err == nil
	}()
	<-looking
	go func() {
		_, ok := c.elsewhere(t.Context(), alpine, d)
		found <- ok
	}()
	select {
	case <-found:
		t.Error("who asks meanwhile is told that there is no place")
	default:
	}
	close(look)
	for range 2 {
		if !<-found {
			t.Error("the place was not found")
		}
	}
}

// TestUrlsGiveNoRight: whoever may push a manifest chooses its urls, so they are
// no way to bytes that came for another repository, and what they answer with
// does not spoil them.
func TestUrlsGiveNoRight(t *testing.T) {
	layer := pattern(46, 8*mib)
	d := oci.Sum(layer)
	wrong := pattern(47, len(layer))
	for _, tc := range []struct {
		name    string
		prepare func(t *testing.T, s *abroad, dir string) (*Cache, func())
	}{
		{"held", func(t *testing.T, s *abroad, dir string) (*Cache, func()) {
			t.Helper()
			c := openCache(t, dir, s, Config{TTL: time.Hour, Private: true})
			if _, err := pull(t.Context(), c, secret, "latest"); err != nil {
				t.Fatal(err)
			}
			return c, func() {}
		}},
		{"on its way", func(t *testing.T, s *abroad, dir string) (*Cache, func()) {
			t.Helper()
			c := openCache(t, dir, s, Config{TTL: time.Hour, Private: true})
			return c, begin(t, s, c, d)
		}},
		{"begun before a restart", func(t *testing.T, s *abroad, dir string) (*Cache, func()) {
			t.Helper()
			c := openCache(t, dir, s, Config{TTL: time.Hour, Private: true})
			begin(t, s, c, d)
			closeCache(t, c)
			s.set(func() { s.body = nil })
			return openCache(t, dir, s, Config{TTL: time.Hour, Private: true}), func() {}
		}},
		{"asked for before it came", func(t *testing.T, s *abroad, dir string) (*Cache, func()) {
			t.Helper()
			c := openCache(t, dir, s, Config{TTL: time.Hour, Private: true})
			claim := s.pushForeign(mallory, "early", d, len(layer))
			s.manifest(t, c, mallory, claim)
			got, _, err := read(t.Context(), c, mallory, d, 0, -1)
			if err == nil || len(got) == len(layer) {
				t.Errorf("wrong bytes complete: %d, %v", len(got), err)
			}
			awaitNoFills(c)
			if _, err := pull(t.Context(), c, secret, "latest"); err != nil {
				t.Fatal(err)
			}
			return c, func() {}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := &abroad{source: newSource()}
			s.pushImage(secret, "latest", layer)
			s.place(layerURL, d, wrong)
			c, goOn := tc.prepare(t, s, t.TempDir())
			claim := s.pushForeign(mallory, "latest", d, len(layer))
			s.manifest(t, c, mallory, claim)
			for range 2 {
				for _, length := range []int64{-1, 5000} {
					got, _, err := read(t.Context(), c, mallory, d, 0, length)
					if bytes.Contains(layer, got[:min(len(got), 1000)]) && len(got) > 0 || err == nil && length < 0 {
						t.Errorf("length %d: %d bytes went out, %v", length, len(got), err)
					}
				}
			}
			goOn()
			c.Forget()
			if got, _, err := read(t.Context(), c, secret, d, 0, -1); err != nil || !bytes.Equal(got, layer) {
				t.Errorf("the rightful repository: %d bytes, %v", len(got), err)
			}
		})
	}
}

// begin has the rightful repository read part of the layer, the rest of which
// comes only once it may go on.
func begin(t *testing.T, s *abroad, c *Cache, d oci.Digest) (goOn func()) {
	t.Helper()
	open := make(chan int64, 1)
	open <- 6 * mib
	s.set(func() {
		s.body = func(_ int, c []byte, off int64) io.Reader {
			if oci.Sum(c) != d {
				return bytes.NewReader(c[off:])
			}
			return &gated{r: bytes.NewReader(c[off:]), open: open}
		}
	})
	r := mustOpen(t, c, secret, d, 0)
	if _, err := io.CopyN(io.Discard, r, 6*mib); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return func() { close(open) }
}

// TestForeignLayerOfTwoRepositories: where credentials are used, each proves its
// right by the bytes, once.
func TestForeignLayerOfTwoRepositories(t *testing.T) {
	s := &abroad{source: newSource()}
	layer := pattern(48, 100_000)
	d := oci.Sum(layer)
	s.place(layerURL, d, layer)
	c := newCache(t, s, Config{TTL: time.Hour, Private: true})
	var marks []oci.CacheStatus
	for _, repo := range []oci.Repository{secret, mallory} {
		s.manifest(t, c, repo, s.pushForeign(repo, "latest", d, len(layer)))
		for range 2 {
			marks = append(marks, mustRead(t, c, repo, d, layer).Cache)
			awaitNoFills(c)
		}
	}
	if want := []oci.CacheStatus{oci.Miss, oci.Hit, oci.Bypass, oci.Hit}; !slices.Equal(marks, want) {
		t.Errorf("answers are %q, want %q", marks, want)
	}
}

// TestAMoveToWhatIsElsewhereAndNotGivenKeepsTheImage, over checks of the tag, though all
// else of the new one is here.
func TestAMoveToWhatIsElsewhereAndNotGivenKeepsTheImage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &abroad{source: newSource()}
		old := s.pushImage(alpine, "latest", pattern(1, 10))
		c := newCache(t, s, Config{TTL: time.Hour, Prefetch: -1})
		defer closeCache(t, c)
		if _, err := pull(t.Context(), c, alpine, "latest"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Hour)
		layer, own := pattern(2, 10), pattern(3, 10)
		next := s.pushForeign(alpine, "latest", oci.Sum(layer), len(layer), own)
		s.place(layerURL, oci.Sum(layer), layer)
		if _, _, err := c.Resolve(t.Context(), alpine, "latest", oci.Ask{}); err != nil {
			t.Fatal(err)
		}
		s.manifest(t, c, alpine, next)
		b, err := c.Blob(t.Context(), alpine, oci.Sum(layer), oci.Ask{})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := b.Stat(t.Context()); err != nil {
			t.Fatal(err)
		}
		if res, _, err := c.Resolve(t.Context(), alpine, "latest", oci.Ask{}); err != nil || res.Digest != next.Digest {
			t.Errorf("%s, %v, want the new one, which is there, if not at the registry", res.Digest, err)
		}
		s.set(func() { delete(s.blobs, "abroad/"+layerURL+"@"+oci.Sum(layer).String()) })
		for range 3 {
			if _, err := pull(t.Context(), c, alpine, "latest"); err == nil && c.Record(alpine, "latest").Digest != next.Digest {
				t.Fatal("it has not moved")
			}
			mustRead(t, c, alpine, oci.Sum(own), own)
			res, out, err := c.Resolve(t.Context(), alpine, "latest", oci.Ask{})
			if err != nil || res.Digest != old.Digest || out.Cache != oci.Stale {
				t.Errorf("%s as %s, %v, want the old one as stale", res.Digest, out.Cache, err)
			}
			time.Sleep(2 * time.Hour)
		}
		s.place(layerURL, oci.Sum(layer), layer)
		time.Sleep(time.Hour)
		_, _ = pull(t.Context(), c, alpine, "latest")
		time.Sleep(time.Minute)
		if res, _, err := c.Resolve(t.Context(), alpine, "latest", oci.Ask{}); err != nil || res.Digest != next.Digest {
			t.Errorf("%s, %v, want the new one", res.Digest, err)
		}
	})
}

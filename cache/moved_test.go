package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/oci"
	"entrepot/store"
)

// pushIndex pushes an index of one image for linux/amd64, and an attestation that
// nobody pulls.
func (s *source) pushIndex(repo oci.Repository, tag string, layer []byte) oci.Manifest {
	child := s.pushImage(repo, tag+"-amd64", layer)
	content := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[`+
		`{"mediaType":%q,"digest":%q,"size":%d,"platform":{"os":"unknown","architecture":"unknown"}},`+
		`{"mediaType":%[2]q,"digest":%[5]q,"size":%[6]d,"platform":{"os":"linux","architecture":"amd64"}}]}`,
		ociIndex, child.MediaType, oci.Sum(append([]byte("who built "), layer...)), 10, child.Digest, child.Size)
	return s.pushManifest(repo, tag, content, ociIndex)
}

const ociIndex = "application/vnd.oci.image.index.v1+json"

// pullImage pulls what a digest leads to, of an index for one platform.
func pullImage(ctx context.Context, c *Cache, d oci.Digest) error {
	m, _, err := c.Manifest(ctx, alpine, d, oci.Ask{})
	if err != nil {
		return err
	}
	links, err := oci.ParseLinks(m.Content)
	for _, child := range links.Manifests {
		if child.Platform.Runs() {
			err = errors.Join(err, pullImage(ctx, c, child.Digest))
		}
	}
	for _, b := range links.Blobs() {
		_, _, readErr := read(ctx, c, alpine, b.Digest, 0, -1)
		err = errors.Join(err, readErr)
	}
	return err
}

// movingTag is a tag whose image is held whole, and the image that it has moved to.
type movingTag struct {
	t      *testing.T
	s      *source
	c      *Cache
	dir    string
	old    oci.Manifest
	next   oci.Manifest
	layers int
	push   func(repo oci.Repository, tag string, layer []byte) oci.Manifest
}

// moving runs f with a tag whose old image was pulled, checked an hour ago at least.
func moving(t *testing.T, index bool, cfg Config, f func(*movingTag)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		tag := &movingTag{t: t, s: s, dir: t.TempDir()}
		tag.push = func(repo oci.Repository, name string, layer []byte) oci.Manifest {
			return s.pushImage(repo, name, layer)
		}
		if index {
			tag.push = s.pushIndex
		}
		tag.old = tag.move()
		cfg.Prefetch = -1
		tag.c = openCacheOf(t, store.Config{Dir: tag.dir}, s, cfg) // nothing is in memory
		defer func() { closeCache(t, tag.c) }()
		tag.is(tag.old, oci.Miss)
		tag.mustPull(tag.old)
		time.Sleep(2 * time.Hour)
		tag.next = tag.move()
		f(tag)
	})
}

// move has the tag name another image.
func (m *movingTag) move() (moved oci.Manifest) {
	m.layers++
	m.s.set(func() { moved = m.push(alpine, "latest", pattern(m.layers, 10)) })
	return moved
}

// is fails unless a client is told of an image.
func (m *movingTag) is(want oci.Manifest, mark oci.CacheStatus) oci.Outcome {
	m.t.Helper()
	res, out, err := m.c.Resolve(m.t.Context(), alpine, "latest", oci.Ask{})
	if err != nil || res.Digest != want.Digest || out.Cache != mark {
		m.t.Fatalf("it is %s as %s (%s), %v, want %s as %s", res.Digest, out.Cache, out.Why, err, want.Digest, mark)
	}
	return out
}

func (m *movingTag) mustPull(image oci.Manifest) {
	m.t.Helper()
	if err := pullImage(m.t.Context(), m.c, image.Digest); err != nil {
		m.t.Fatal(err)
	}
}

// waitsFor fails unless a client is told of an image before long.
func (m *movingTag) waitsFor(want oci.Manifest) {
	m.t.Helper()
	for range 100 {
		res, _, err := m.c.Resolve(m.t.Context(), alpine, "latest", oci.Ask{})
		if err != nil {
			m.t.Fatal(err)
		}
		if res.Digest == want.Digest {
			return
		}
		time.Sleep(10 * time.Second)
	}
	m.t.Fatalf("it is not %s after %v", want.Digest, 100*10*time.Second)
}

// loses has upstream miss the layer of an image, and a client notice.
func (m *movingTag) loses(image oci.Manifest) (layer []byte) {
	m.t.Helper()
	layer = pattern(m.layers, 10)
	m.s.set(func() { delete(m.s.blobs, alpine.String()+"@"+oci.Sum(layer).String()) })
	if err := pullImage(m.t.Context(), m.c, image.Digest); err == nil {
		m.t.Fatal("it is here")
	}
	return layer
}

// reopen has the cache on another disk of the same directory.
func (m *movingTag) reopen(on store.Config) {
	closeCache(m.t, m.c)
	m.c = openCacheOf(m.t, on, m.s, Config{TTL: time.Hour, Prefetch: -1})
}

// nextIs has the tag moved to an image of a layer, of which a client is told.
func (m *movingTag) nextIs(layer []byte) {
	m.t.Helper()
	m.s.set(func() { m.next = m.push(alpine, "latest", layer) })
	m.is(m.next, oci.Miss)
}

// isExplainedAs fails unless a pull is said to get an image; muted is Explain's.
func (m *movingTag) isExplainedAs(want oci.Manifest, muted bool) {
	m.t.Helper()
	if x, err := m.c.Explain(m.t.Context(), alpine, "latest", muted); err != nil || x.Digest != want.Digest {
		m.t.Errorf("a pull is said to get %s, %v, want %s", x.Digest, err, want.Digest)
	}
}

// asks fails unless f asks upstream this, besides what is asked of blobs.
func (m *movingTag) asks(f func(), want ...string) {
	m.t.Helper()
	m.s.set(func() { m.s.asked = nil })
	f()
	wantAsked(m.t, m.s, want...)
}

// TestAMovedTagKeepsItsImage that is whole, until another one is: a client that only
// looks has the tag moved, and what it names then can be had from upstream alone.
func TestAMovedTagKeepsItsImage(t *testing.T) {
	for _, index := range []bool{false, true} {
		for _, tc := range []struct {
			name string
			do   func(*movingTag)
		}{
			{"upstream goes away, and comes back", func(m *movingTag) {
				m.is(m.next, oci.Miss)
				m.s.set(func() { m.s.down = errDown })
				time.Sleep(2 * time.Hour)
				out := m.is(m.old, oci.Stale)
				if age := time.Since(out.Checked); age < 4*time.Hour {
					m.t.Errorf("that was confirmed %v ago, want when it was still the one", age)
				}
				m.mustPull(m.old)
				m.s.set(func() { m.s.down = nil })
				time.Sleep(time.Minute)
				m.is(m.next, oci.Hit)
				m.mustPull(m.next)
				time.Sleep(2 * time.Hour)
				m.is(m.next, oci.Hit)
				if rec, _ := m.c.disk.Tag(alpine, "latest"); rec.Former != nil {
					m.t.Errorf("it keeps %s, though what it names is whole", rec.Former.Digest)
				}
				m.s.set(func() { m.s.down = errDown })
				time.Sleep(2 * time.Hour)
				m.is(m.next, oci.Stale)
			}},
			{"the old one is still being pulled", func(m *movingTag) {
				layer := blobFile(m.dir, oci.Sum(pattern(1, 10)))
				if err := os.Rename(layer, layer+"-later"); err != nil {
					m.t.Fatal(err)
				}
				m.is(m.next, oci.Miss)
				if err := os.Rename(layer+"-later", layer); err != nil {
					m.t.Fatal(err)
				}
				m.s.set(func() { m.s.down = errDown })
				time.Sleep(2 * time.Hour)
				m.is(m.old, oci.Stale)
			}},
			{"the old one is evicted", func(m *movingTag) {
				m.is(m.next, oci.Miss)
				if err := os.Remove(blobFile(m.dir, oci.Sum(pattern(1, 10)))); err != nil {
					m.t.Fatal(err)
				}
				m.s.set(func() { m.s.down = errDown })
				time.Sleep(2 * time.Hour)
				m.is(m.next, oci.Stale)
			}},
			{"over a restart", func(m *movingTag) {
				m.is(m.next, oci.Miss)
				closeCache(m.t, m.c)
				m.c = openCache(m.t, m.dir, m.s, Config{TTL: time.Hour, Offline: true})
				m.is(m.old, oci.Hit)
				m.mustPull(m.old)
			}},
			{"it moves on", func(m *movingTag) {
				for range 3 {
					m.is(m.next, oci.Miss)
					m.next = m.move()
					time.Sleep(2 * time.Hour)
				}
				m.s.set(func() { m.s.down = errDown })
				m.is(m.old, oci.Stale)
			}},
			{"it moves back", func(m *movingTag) {
				m.is(m.next, oci.Miss)
				m.s.set(func() { m.s.tags[alpine.String()+":latest"] = m.old.Digest })
				time.Sleep(2 * time.Hour)
				m.is(m.old, oci.Miss)
				m.s.set(func() { m.s.down = errDown })
				time.Sleep(2 * time.Hour)
				m.is(m.old, oci.Stale)
			}},
			{"the new one is pulled in part", func(m *movingTag) {
				m.is(m.next, oci.Miss)
				m.s.set(func() { m.s.down = errDown })
				if err := pullImage(m.t.Context(), m.c, m.next.Digest); err == nil {
					m.t.Fatal("it is here")
				}
				m.asks(func() { m.is(m.old, oci.Stale) }) // though the tag was confirmed a moment ago
				m.isExplainedAs(m.old, false)
				time.Sleep(2 * time.Hour)
				m.is(m.old, oci.Stale)
				m.s.set(func() { m.s.down = nil })
				m.waitsFor(m.next)
				m.mustPull(m.next)
			}},
			{"a part of the new one is missing, and its tag is confirmed again", func(m *movingTag) {
				m.is(m.next, oci.Miss)
				layer := m.loses(m.next)
				for range 3 {
					m.s.set(func() { m.push(alpine, "other", pattern(50, 10)) })
					if _, _, err := m.c.Resolve(m.t.Context(), alpine, "other", oci.Ask{Refresh: true}); err != nil {
						m.t.Error(err)
					}
					m.is(m.old, oci.Stale)
					m.mustPull(m.old)
					time.Sleep(2 * time.Hour)
				}
				m.s.set(func() { m.s.blobs[alpine.String()+"@"+oci.Sum(layer).String()] = layer })
				m.waitsFor(m.next)
				m.mustPull(m.next)
			}},
			{"a part of the new one is missing, and who forces a check is told so", func(m *movingTag) {
				m.is(m.next, oci.Miss)
				layer := m.loses(m.next)
				if res, out, err := m.c.Resolve(m.t.Context(), alpine, "latest", oci.Ask{Refresh: true}); err != nil || res.Digest != m.next.Digest || out.Cache != oci.Hit {
					m.t.Errorf("%s as %s, %v", res.Digest, out.Cache, err)
				}
				m.is(m.old, oci.Stale)
				m.s.set(func() { m.s.blobs[alpine.String()+"@"+oci.Sum(layer).String()] = layer })
				m.is(m.old, oci.Stale)
				synctest.Wait()
				m.is(m.old, oci.Stale)
				m.c.ForgetOf(alpine)
				m.is(m.old, oci.Stale) // and it is tried again at once
				synctest.Wait()
				m.is(m.next, oci.Hit)
			}},
			{"what is missing is tried again and again, more and more rarely", func(m *movingTag) {
				m.is(m.next, oci.Miss)
				layer := m.loses(m.next)
				m.s.set(func() { m.s.asked = nil })
				for range 60 * 6 {
					m.is(m.old, oci.Stale)
					time.Sleep(10 * time.Second)
				}
				n := 0
				for _, q := range m.s.questions() {
					if strings.Contains(q, oci.Sum(layer).String()) {
						n++
					}
				}
				if n != 7 { // after 30 s, 1 min, 2, 4 and 8, then each quarter of an hour
					m.t.Errorf("it was tried %d times in an hour", n)
				}
			}},
			{"what was missing has come, and the disk takes its time", func(m *movingTag) {
				m.reopen(store.Config{Dir: m.dir, Faults: func(_ store.Op, name string) error {
					if filepath.Dir(name) == "fills/sha256" {
						time.Sleep(10 * time.Millisecond)
					}
					return nil
				}})
				m.is(m.next, oci.Miss)
				layer := m.loses(m.next)
				m.is(m.old, oci.Stale)
				m.s.set(func() { m.s.pushBlob(alpine, layer) })
				m.c.ForgetOf(alpine)
				if instead, why := m.c.Retry(m.t.Context(), alpine, "latest"); why != nil || !m.c.doubts.none() {
					m.t.Errorf("clients get %s, since %v; a doubt is left: %v", instead, why, !m.c.doubts.none())
				}
				m.is(m.next, oci.Hit)
			}},
			{"a part of the new one is missing, and it moves on", func(m *movingTag) {
				m.is(m.next, oci.Miss)
				m.loses(m.next)
				m.is(m.old, oci.Stale)
				m.next = m.move()
				time.Sleep(2 * time.Hour)
				m.is(m.next, oci.Miss)
				m.mustPull(m.next)
			}},
			{"a client asks for what no manifest names", func(m *movingTag) {
				m.is(m.next, oci.Miss)
				if _, _, err := read(m.t.Context(), m.c, alpine, oci.Sum([]byte("nothing")), 0, -1); err == nil {
					m.t.Error("it is there")
				}
				if _, _, err := m.c.Manifest(m.t.Context(), alpine, oci.Sum([]byte("nothing else")), oci.Ask{}); err == nil {
					m.t.Error("it is there")
				}
				if m.is(m.next, oci.Hit); !m.c.doubts.none() {
					m.t.Error("it is remembered")
				}
			}},
			{"what is fetched ahead fails", func(m *movingTag) {
				m.is(m.next, oci.Miss)
				m.s.set(func() { m.s.down = errDown })
				b, err := m.c.Blob(m.t.Context(), alpine, oci.Sum(pattern(m.layers, 10)), oci.Ask{Background: true})
				if err != nil {
					m.t.Fatal(err)
				}
				if _, err := b.Open(m.t.Context(), 0, -1); err == nil {
					m.t.Error("it is here")
				}
				m.is(m.next, oci.Hit)
			}},
			{"a part of the new one is missing, and the background is told so", func(m *movingTag) {
				m.is(m.next, oci.Miss)
				m.loses(m.next)
				m.is(m.old, oci.Stale)
				if res, out, err := m.c.Resolve(m.t.Context(), alpine, "latest", oci.Ask{Background: true}); err != nil || res.Digest != m.next.Digest || out.Cache != oci.Hit {
					m.t.Errorf("%s as %s, %v, want the new one, or nobody will fetch it", res.Digest, out.Cache, err)
				}
			}},
			{"a manifest is missing, and the disk does not take it once it comes", func(m *movingTag) {
				var full atomic.Bool
				m.reopen(store.Config{Dir: m.dir, Faults: func(op store.Op, _ string) error {
					if full.Load() && op == store.OpWrite {
						return syscall.ENOSPC
					}
					return nil
				}})
				m.is(m.next, oci.Miss)
				links, _ := oci.ParseLinks(m.next.Content)
				if len(links.Manifests) == 0 {
					return
				}
				m.s.set(func() { m.s.down = errDown })
				if err := pullImage(m.t.Context(), m.c, m.next.Digest); err == nil {
					m.t.Error("it is here")
				}
				m.is(m.old, oci.Stale)
				m.s.set(func() { m.s.down = nil })
				full.Store(true)
				time.Sleep(40 * time.Second)
				m.is(m.old, oci.Stale)
				synctest.Wait()
				m.is(m.next, oci.Hit)
			}},
			{"what is missing comes past the disk", func(m *movingTag) {
				m.reopen(store.Config{Dir: m.dir, Budget: 4 * mib})
				m.nextIs(pattern(60, 5*mib))
				m.mustPull(m.next)
				m.s.set(func() { m.s.down = errDown })
				if err := pullImage(m.t.Context(), m.c, m.next.Digest); err == nil {
					m.t.Error("it is here")
				}
				m.is(m.old, oci.Stale)
				m.s.set(func() { m.s.down = nil })
				time.Sleep(40 * time.Second)
				m.is(m.old, oci.Stale)
				synctest.Wait()
				m.is(m.next, oci.Hit)
			}},
			{"too many ask at once", func(m *movingTag) {
				m.is(m.next, oci.Miss)
				m.s.set(func() { m.s.down = &oci.Error{Code: oci.TooManyRequests, Err: oci.ErrCrowded} })
				if err := pullImage(m.t.Context(), m.c, m.next.Digest); err == nil {
					m.t.Fatal("it is here")
				}
				m.is(m.next, oci.Hit)
				time.Sleep(2 * time.Hour) // and the tag is not checked either
				m.is(m.next, oci.Stale)
				m.is(m.next, oci.Stale)
				m.isExplainedAs(m.next, false)
			}},
			{"the disk does not take the new one", func(m *movingTag) {
				m.reopen(store.Config{Dir: m.dir, Budget: 4 * mib})
				m.nextIs(pattern(60, 5*mib))
				m.mustPull(m.next)
				for range 3 {
					m.is(m.next, oci.Hit)
					m.mustPull(m.next)
				}
			}},
			{"a client leaves what the disk does not take", func(m *movingTag) {
				m.reopen(store.Config{Dir: m.dir, Budget: 4 * mib})
				layer := pattern(60, 5*mib)
				m.nextIs(layer)
				_, _, _ = m.c.Manifest(m.t.Context(), alpine, m.next.Digest, oci.Ask{})
				links, _ := oci.ParseLinks(m.next.Content)
				for _, child := range links.Manifests {
					_, _, _ = m.c.Manifest(m.t.Context(), alpine, child.Digest, oci.Ask{})
				}
				b, err := m.c.Blob(m.t.Context(), alpine, oci.Sum(layer), oci.Ask{})
				if err != nil {
					m.t.Fatal(err)
				}
				r, err := b.Open(m.t.Context(), 0, -1)
				if err != nil {
					m.t.Fatal(err)
				}
				if err := r.Close(); err != nil {
					m.t.Error(err)
				}
				synctest.Wait()
				m.is(m.next, oci.Hit)
			}},
			{"a layer of the new one is not what its digest names", func(m *movingTag) {
				m.is(m.next, oci.Miss)
				m.s.set(func() {
					m.s.body = func(_ int, content []byte, off int64) io.Reader {
						return bytes.NewReader(make([]byte, len(content))[off:])
					}
				})
				if err := pullImage(m.t.Context(), m.c, m.next.Digest); err == nil {
					m.t.Fatal("it is here")
				}
				m.is(m.old, oci.Stale)
				m.s.set(func() { m.s.body = nil })
				m.waitsFor(m.next)
			}},
			{"the old one is pulled in part", func(m *movingTag) {
				links, _ := oci.ParseLinks(m.old.Content)
				for _, child := range links.Manifests {
					_ = os.Remove(blobFile(m.dir, child.Digest))
				}
				if len(links.Layers) > 0 {
					_ = os.Remove(blobFile(m.dir, links.Layers[0].Digest))
				}
				m.is(m.next, oci.Miss)
				m.s.set(func() { m.s.down = errDown })
				time.Sleep(2 * time.Hour)
				m.is(m.next, oci.Stale)
			}},
			{"the quota is spent, and a platform is here", func(m *movingTag) {
				m.is(m.next, oci.Miss)
				links, _ := oci.ParseLinks(m.next.Content)
				for _, child := range links.Manifests {
					_, _, _ = m.c.Manifest(m.t.Context(), alpine, child.Digest, oci.Ask{})
				}
				m.s.set(func() { m.s.withheld = 10 * time.Minute })
				time.Sleep(2 * time.Hour)
				m.is(m.next, oci.Hit)
			}},
			{"the clock was wrong", func(m *movingTag) {
				rec, err := m.c.disk.Tag(alpine, "latest")
				if rec.Checked = time.Now().Add(time.Hour); errors.Join(err, m.c.disk.PutTag(alpine, "latest", rec)) != nil {
					m.t.Fatal(err)
				}
				m.is(m.next, oci.Miss)
				m.is(m.next, oci.Hit)
			}},
			{"the quota is spent", func(m *movingTag) {
				m.is(m.next, oci.Miss)
				m.s.set(func() { m.s.withheld = 10 * time.Minute })
				time.Sleep(2 * time.Hour)
				if !index { // what is left to get is counted by nobody
					m.is(m.next, oci.Hit)
					return
				}
				m.is(m.old, oci.Stale)
				m.asks(func() { m.is(m.old, oci.Stale) })
				m.s.set(func() { m.s.withheld = 0 })
				time.Sleep(20 * time.Minute)
				m.is(m.next, oci.Hit)
			}},
		} {
			t.Run(fmt.Sprintf("%s, index %t", tc.name, index), func(t *testing.T) {
				moving(t, index, Config{TTL: time.Hour}, tc.do)
			})
		}
	}
}

func blobFile(dir string, d oci.Digest) string {
	return filepath.Join(dir, "blobs", d.Algorithm(), d.Hex()[:2], d.Hex())
}

// TestAMoveThatTheDiskDoesNotTake is no reason to let go of what is there, nor to ask
// for it again and again: not until it is due, or the disk takes it.
func TestAMoveThatTheDiskDoesNotTake(t *testing.T) {
	moving(t, false, Config{TTL: time.Hour}, func(m *movingTag) {
		shard := filepath.Dir(blobFile(m.dir, m.next.Digest))
		if err := os.WriteFile(shard, nil, 0o600); err != nil { // where its directory would be
			m.t.Fatal(err)
		}
		m.asks(func() { m.is(m.next, oci.Miss) }, "HEAD library/alpine latest", "GET library/alpine manifest "+m.next.Digest.String())
		m.asks(func() {
			for range 3 {
				m.is(m.next, oci.Hit)
				got, out, err := m.c.Manifest(m.t.Context(), alpine, m.next.Digest, oci.Ask{})
				if err != nil || string(got.Content) != string(m.next.Content) || out.Cache != oci.Hit {
					m.t.Errorf("its manifest is a %s, %v", out.Cache, err)
				}
			}
		})
		time.Sleep(2 * time.Hour)
		m.s.set(func() { m.s.down = errDown })
		m.is(m.old, oci.Stale)
		m.s.set(func() { m.s.down = nil })
		time.Sleep(time.Minute)
		m.asks(func() { m.is(m.next, oci.Miss) }, "HEAD library/alpine latest", "GET library/alpine manifest "+m.next.Digest.String())
		if err := os.Remove(shard); err != nil {
			m.t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		m.mustPull(m.next)
		synctest.Wait()
		if _, err := os.Stat(blobFile(m.dir, m.next.Digest)); err != nil {
			m.t.Errorf("the disk is well, and not tried again: %v", err)
		}
	})
}

// TestAMoveThatOnePlatformHasKeepsTheImageOfTheOthers, whoever pulls first.
func TestAMoveThatOnePlatformHasKeepsTheImageOfTheOthers(t *testing.T) {
	for _, first := range []string{"amd64", "arm64"} {
		synctest.Test(t, func(t *testing.T) {
			s := newSource()
			platforms := map[string]oci.Manifest{}
			push := func(n int) oci.Manifest {
				children := []string{}
				for i, platform := range []string{"amd64", "arm64"} {
					m := s.pushImage(alpine, platform, pattern(n+i, 10))
					platforms[platform] = m
					children = append(children, fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d,"platform":{"os":"linux","architecture":%q}}`, m.MediaType, m.Digest, m.Size, platform))
				}
				return s.pushManifest(alpine, "latest", fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, ociIndex, strings.Join(children, ",")), ociIndex)
			}
			c := newCache(t, s, Config{TTL: time.Minute, Prefetch: -1})
			defer closeCache(t, c)
			is := func(want oci.Manifest) {
				t.Helper()
				res, out, err := c.Resolve(t.Context(), alpine, "latest", oci.Ask{})
				if err != nil || res.Digest != want.Digest {
					t.Errorf("it is %s as %s, %v, want %s", res.Digest, out.Cache, err, want.Digest)
				}
			}
			old := push(1)
			is(old)
			if err := pullImage(t.Context(), c, old.Digest); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour)
			next, lost := push(11), oci.Sum(pattern(11, 10))
			delete(s.blobs, alpine.String()+"@"+lost.String())
			is(next)
			_, _, _ = c.Manifest(t.Context(), alpine, next.Digest, oci.Ask{})
			second := map[string]string{"amd64": "arm64", "arm64": "amd64"}[first]
			for _, platform := range []string{first, second} {
				if err := pullImage(t.Context(), c, platforms[platform].Digest); (err == nil) != (platform == "arm64") {
					t.Errorf("%s: %v", platform, err)
				}
				time.Sleep(10 * time.Second)
			}
			for range 5 {
				is(old)
				time.Sleep(time.Hour)
			}
			s.set(func() { s.pushBlob(alpine, pattern(11, 10)) })
			is(old)
			synctest.Wait()
			is(next)
		})
	}
}

// TestAMoveToWhatIsAnothersKeepsTheImage, where not all is for everybody: that its layers
// are here for another repository does not make the new one whole.
func TestAMoveToWhatIsAnothersKeepsTheImage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := newCache(t, s, Config{TTL: time.Minute, Prefetch: -1, Private: true})
		defer closeCache(t, c)
		pullTag := func(repo oci.Repository) error {
			_, err := pull(t.Context(), c, repo, "latest")
			return err
		}
		old := s.pushImage(alpine, "latest", pattern(1, 10))
		other := oci.Repository{Host: "docker.io", Path: "library/other"}
		s.pushImage(other, "latest", pattern(2, 10))
		if err := errors.Join(pullTag(alpine), pullTag(other)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		next := s.pushImage(alpine, "latest", pattern(2, 10))
		delete(s.blobs, alpine.String()+"@"+oci.Sum(pattern(2, 10)).String())
		if err := pullTag(alpine); err == nil {
			t.Error("it is given what is another's")
		}
		for range 5 {
			if err := pullTag(alpine); err != nil {
				t.Error(err)
			}
			if res, _, err := c.Resolve(t.Context(), alpine, "latest", oci.Ask{}); err != nil || res.Digest != old.Digest {
				t.Errorf("it is %s, %v, want the old one", res.Digest, err)
			}
			time.Sleep(time.Hour)
		}
		s.set(func() { s.pushBlob(alpine, pattern(2, 10)) })
		_ = pullTag(alpine)
		synctest.Wait()
		if res, _, err := c.Resolve(t.Context(), alpine, "latest", oci.Ask{}); err != nil || res.Digest != next.Digest {
			t.Errorf("it is %s, %v, want the new one", res.Digest, err)
		}
	})
}

// slowSource is a source whose GETs of one manifest wait.
type slowSource struct {
	*source
	digest oci.Digest
	wait   time.Duration
}

func (s *slowSource) Manifest(ctx context.Context, repo oci.Repository, d oci.Digest, ask oci.Ask) (oci.Manifest, oci.Outcome, error) {
	if d == s.digest {
		time.Sleep(s.wait)
	}
	return s.source.Manifest(ctx, repo, d, ask)
}

// slowlyMoving runs f with a tag that was pulled and has moved to a manifest that takes
// its time.
func slowlyMoving(t *testing.T, f func(t *testing.T, c *Cache, s *slowSource)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &slowSource{source: newSource(), wait: 10 * time.Second}
		s.pushImage(alpine, "latest", pattern(1, 10))
		c := newCache(t, s, Config{TTL: time.Hour})
		defer closeCache(t, c)
		if _, err := pull(t.Context(), c, alpine, "latest"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Hour)
		s.digest = s.pushImage(alpine, "latest", pattern(2, 10)).Digest
		f(t, c, s)
	})
}

// TestAnOvertakenCheckMovesNoTag: what upstream said earlier is not recorded over what
// it said later, and what was removed meanwhile stays so.
func TestAnOvertakenCheckMovesNoTag(t *testing.T) {
	for name, meanwhile := range map[string]func(t *testing.T, c *Cache, s *source) (want oci.Digest){
		"another check": func(t *testing.T, c *Cache, s *source) oci.Digest {
			t.Helper()
			var last oci.Manifest
			s.set(func() { last = s.pushImage(alpine, "latest", pattern(3, 10)) })
			if res, _, err := c.Resolve(t.Context(), alpine, "latest", oci.Ask{Refresh: true}); err != nil || res.Digest != last.Digest {
				t.Errorf("%s, %v, want the last", res.Digest, err)
			}
			return last.Digest
		},
		"removed": func(t *testing.T, c *Cache, _ *source) oci.Digest {
			t.Helper()
			if err := c.disk.RemoveTag(t.Context(), alpine, "latest"); err != nil {
				t.Error(err)
			}
			return oci.Digest{}
		},
	} {
		t.Run(name, func(t *testing.T) {
			slowlyMoving(t, func(t *testing.T, c *Cache, s *slowSource) {
				t.Helper()
				_, out, err := c.Resolve(t.Context(), alpine, "latest", oci.Ask{Background: true}) // goes on behind it
				if err != nil || out.Cache != oci.Stale {
					t.Fatal(out, err)
				}
				want := meanwhile(t, c, s.source)
				time.Sleep(time.Minute)
				if rec, _ := c.record(alpine, "latest"); rec.Digest != want {
					t.Errorf("it names %s, want %s", rec.Digest, want)
				}
			})
		})
	}
}

// TestATagIsCheckedWhenUpstreamSaysSo: not when what it has moved to has come.
func TestATagIsCheckedWhenUpstreamSaysSo(t *testing.T) {
	slowlyMoving(t, func(t *testing.T, c *Cache, s *slowSource) {
		t.Helper()
		asked := time.Now()
		if _, _, err := c.Resolve(t.Context(), alpine, "latest", oci.Ask{Refresh: true}); err != nil {
			t.Fatal(err)
		}
		if rec := c.Record(alpine, "latest"); !rec.Checked.Equal(asked) || rec.Digest != s.digest {
			t.Errorf("%s, checked at %s, want at %s", rec.Digest, rec.Checked, asked)
		}
	})
}

// TestAManifestThatIsTooLargeCostsNoPull, since HEAD tells of its size: neither where
// a tag has moved to it, nor where nothing is held.
func TestAManifestThatIsTooLargeCostsNoPull(t *testing.T) {
	moving(t, false, Config{TTL: time.Hour, MaxManifest: 1000}, func(m *movingTag) {
		m.s.set(func() {
			content := strings.Replace(string(m.next.Content), "{", "{"+strings.Repeat(" ", 1000), 1)
			m.next = m.s.pushManifest(alpine, "latest", []byte(content), m.next.MediaType)
			m.s.pushManifest(alpine, "other", []byte(content+" "), m.next.MediaType)
		})
		m.asks(func() {
			if out := m.is(m.old, oci.Stale); !strings.Contains(out.Why, "more than the 1000") {
				m.t.Errorf("it says %q", out.Why)
			}
		}, "HEAD library/alpine latest")
		m.asks(func() {
			for range 3 {
				_, err := pull(m.t.Context(), m.c, alpine, "other")
				wantCode(m.t, err, oci.BadUpstream)
			}
		}, "HEAD library/alpine other")
	})
}

// A manifest that is given and is of no use may cost a pull each time: it is asked for
// more and more rarely, whoever wants it, until it is forced or comes.
func TestWhatIsOfNoUseIsAskedForMoreAndMoreRarely(t *testing.T) {
	for _, row := range []struct {
		name  string
		err   error
		tries int           // in an hour
		most  time.Duration // until the next, by then
	}{
		{"another", oci.Errorf(oci.BadUpstream, "it is another"), 10, 15 * time.Minute},           // after 10, 20 … 640 s
		{"stalled", oci.Errorf(oci.Timeout, "the answer stalled"), 16, 5 * time.Minute},           // after 10, 20 … 160 s, then each 5 min
		{"cut", &oci.Error{Code: oci.BadUpstream, Err: io.ErrUnexpectedEOF}, 16, 5 * time.Minute}, // likewise
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource()
				image := s.pushImage(alpine, "latest", pattern(1, 10))
				c := newCache(t, s, Config{Prefetch: -1})
				defer closeCache(t, c)
				s.spent = fmt.Errorf("%w: %w", oci.ErrSpoilt, row.err)
				ask := func() error {
					_, _, err := c.Manifest(t.Context(), alpine, image.Digest, oci.Ask{})
					return err
				}
				var longest time.Duration
				for range 60 * 60 {
					err := ask()
					if oci.CodeOf(err) != oci.CodeOf(row.err) {
						t.Fatalf("got %v, want what came of it", err)
					}
					longest = max(longest, oci.RetryAfter(err))
					time.Sleep(time.Second)
				}
				if n := len(s.questions()); n != row.tries || longest < row.most-time.Second || longest > row.most {
					t.Errorf("it was asked for %d times in an hour, %v apart at most, want %d and %v", n, longest, row.tries, row.most)
				}
				s.set(func() { s.spent = nil })
				if err := ask(); err == nil {
					t.Error("it was asked for at once")
				}
				c.ForgetOf(alpine)
				if err := ask(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// The pause of what is of no use grows with that alone, once for all who asked at the same
// time, and begins anew once it has come.
func TestAPauseGrowsWithItsOwnFailures(t *testing.T) {
	spoilt, gone := fmt.Errorf("%w: %w", oci.ErrSpoilt, oci.ErrUnavailable), oci.ErrManifestUnknown
	synctest.Test(t, func(t *testing.T) {
		var fs failures
		pause := func() time.Duration {
			d := fs.grow("x", spoiltFor, hopelessFor)
			fs.put("x", d, "", spoilt)
			return d
		}
		fs.put("x", time.Hour, "", gone)
		for _, row := range []struct {
			name  string
			after time.Duration
			want  time.Duration
		}{
			{"after a 404", 0, spoiltFor},
			{"at the same time", 0, spoiltFor},
			{"again", spoiltFor, 2 * spoiltFor},
			{"once more", time.Minute, 4 * spoiltFor},
			{"long after", time.Hour, spoiltFor},
		} {
			time.Sleep(row.after)
			if got := pause(); got != row.want {
				t.Errorf("%s: %v, want %v", row.name, got, row.want)
			}
		}
		for i := range maxFailures { // which are over by the time that there is no more room
			fs.put(strconv.Itoa(i), time.Second, "", gone)
		}
		time.Sleep(hopelessFor + time.Second)
		fs.put("y", time.Hour, "", gone)
		for i := range maxFailures - 1 {
			fs.put("z"+strconv.Itoa(i), time.Second, "", gone)
		}
		if _, _, err := fs.get("y", time.Now()); err == nil {
			t.Error("what is in force made room for what is over")
		}
	})
}

// A tag whose new manifest is shunned is not told for a quarter of an hour that it is asked
// for again in seconds.
func TestAShunnedManifestPromisesATagNothing(t *testing.T) {
	moving(t, false, Config{TTL: time.Hour}, func(m *movingTag) {
		m.s.set(func() { m.s.spent = fmt.Errorf("%w: %w", oci.ErrSpoilt, oci.Errorf(oci.BadUpstream, "it is another")) })
		if _, _, err := m.c.Manifest(m.t.Context(), alpine, m.next.Digest, oci.Ask{}); err == nil {
			m.t.Fatal("it came")
		}
		if _, _, err := m.c.Manifest(m.t.Context(), alpine, m.next.Digest, oci.Ask{}); !strings.Contains(err.Error(), "it is another") || oci.RetryAfter(err) != spoiltFor {
			m.t.Errorf("a client is told %v, to come again in %v", err, oci.RetryAfter(err))
		}
		if out := m.is(m.old, oci.Stale); !strings.HasSuffix(out.Why, "it is another") {
			m.t.Errorf("the tag is served as it was since %s", out.Why)
		}
	})
}

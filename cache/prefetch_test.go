package cache

import (
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/oci"
	"entrepot/store"
)

// pulled is an image of two layers, and what has happened to it.
type pulled struct {
	t        *testing.T
	c        *Cache
	on       store.Config
	source   *source
	manifest oci.Manifest
	layers   [2][]byte
}

// TestPrefetchOfAManifestThatWasHereBefore: its layers may not have come, or may
// have gone since.
func TestPrefetchOfAManifestThatWasHereBefore(t *testing.T) {
	for _, tc := range []struct {
		name   string
		before func(*pulled)
	}{
		{"before a restart", func(p *pulled) {
			p.askManifest()
			closeCache(p.t, p.c)
			p.c = openCacheOf(p.t, p.on, p.source, Config{})
		}},
		{"before too many others", func(p *pulled) {
			p.askManifest()
			for i := range maxRemembered {
				p.c.prefetch.remember(alpine, oci.Sum(pattern(i, 8)), &oci.Links{})
			}
		}},
		{"and went, but for itself", func(p *pulled) {
			p.askManifest()
			for range 2 { // the second time all is here
				mustRead(p.t, p.c, alpine, oci.Sum(p.layers[0]), p.layers[0])
				synctest.Wait()
			}
			time.Sleep(aheadAgain)
			for _, l := range p.layers {
				hex := oci.Sum(l).Hex()
				if err := os.Remove(filepath.Join(p.on.Dir, "blobs", "sha256", hex[:2], hex)); err != nil {
					p.t.Error(err)
				}
			}
		}},
		{"and could not be kept", func(p *pulled) {
			p.on = store.Config{Dir: p.t.TempDir(), Faults: func(_ store.Op, name string) error {
				if strings.Contains(name, p.manifest.Digest.Hex()) {
					return syscall.ENOSPC
				}
				return nil
			}}
			closeCache(p.t, p.c)
			p.c = openCacheOf(p.t, p.on, p.source, Config{})
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &pulled{t: t, on: store.Config{Dir: t.TempDir()}, source: newSource(), layers: [2][]byte{pattern(1, 1000), pattern(2, 1000)}}
				p.manifest = p.source.pushImage(alpine, "latest", p.layers[:]...)
				p.c = openCacheOf(t, p.on, p.source, Config{})
				defer func() { closeCache(t, p.c) }()
				tc.before(p)
				p.source.set(func() { p.source.asked = nil })
				p.askManifest()
				if n := p.askedForTheOther(); n != 0 {
					t.Errorf("a manifest alone led to %d questions about a layer", n)
				}
				mustRead(t, p.c, alpine, oci.Sum(p.layers[0]), p.layers[0])
				if n := p.askedForTheOther(); n != 1 {
					t.Errorf("the first layer led to %d questions about the other one, want 1", n)
				}
			})
		})
	}
}

// TestWhatIsFetchedAheadMayFitLater: a disk that had no room for it is tried again
// when a client comes, and left alone for a minute once one has come in vain.
func TestWhatIsFetchedAheadMayFitLater(t *testing.T) {
	ahead := func(p *pulled) { mustRead(p.t, p.c, alpine, oci.Sum(p.layers[0]), p.layers[0]) }
	by := func(ask oci.Ask) func(*pulled) {
		return func(p *pulled) {
			got, out, err := readAs(p.t.Context(), p.c, alpine, oci.Sum(p.layers[1]), ask, 0, -1)
			if err != nil || len(got) != len(p.layers[1]) || out.Cache != oci.Bypass {
				p.t.Errorf("%d bytes as %s, %v", len(got), out.Cache, err)
			}
		}
	}
	for _, row := range []struct {
		name string
		came func(*pulled)
		op   store.Op // that fails
		next oci.CacheStatus
	}{
		{"with another layer, no room to begin", ahead, store.OpCreate, oci.Miss},
		{"with another layer, no room for its bytes", ahead, store.OpWrite, oci.Miss},
		{"to keep it warm, no room to begin", by(oci.Ask{Background: true}), store.OpCreate, oci.Miss},
		{"to keep it warm, no room for its bytes", by(oci.Ask{Background: true}), store.OpWrite, oci.Miss},
		{"by a client, no room to begin", by(oci.Ask{}), store.OpCreate, oci.Bypass},
		{"by a client, no room for its bytes", by(oci.Ask{}), store.OpWrite, oci.Bypass},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &pulled{t: t, source: newSource(), layers: [2][]byte{pattern(1, 1000), pattern(2, 1000)}}
				p.manifest = p.source.pushImage(alpine, "latest", p.layers[:]...)
				var full atomic.Bool
				full.Store(true)
				p.c = openCacheOf(t, store.Config{Dir: t.TempDir(), Faults: func(op store.Op, name string) error {
					if full.Load() && op == row.op && strings.HasPrefix(name, "fills/") && strings.Contains(name, oci.Sum(p.layers[1]).Hex()) {
						return syscall.ENOSPC
					}
					return nil
				}}, p.source, Config{})
				defer closeCache(t, p.c)
				p.askManifest()
				row.came(p)
				if p.askedForTheOther() == 0 && row.op == store.OpWrite {
					t.Fatal("nobody came for the other layer")
				}
				full.Store(false)
				if out := mustRead(t, p.c, alpine, oci.Sum(p.layers[1]), p.layers[1]); out.Cache != row.next {
					t.Errorf("the next client gets it as %s, want %s", out.Cache, row.next)
				}
				time.Sleep(unkeptFor)
				mustRead(t, p.c, alpine, oci.Sum(p.layers[1]), p.layers[1])
				if out := mustRead(t, p.c, alpine, oci.Sum(p.layers[1]), p.layers[1]); out.Cache != oci.Hit {
					t.Errorf("a minute later it is served as %s", out.Cache)
				}
			})
		})
	}
}

func (p *pulled) askManifest() {
	p.t.Helper()
	if _, _, err := p.c.Manifest(p.t.Context(), alpine, p.manifest.Digest, oci.Ask{}); err != nil {
		p.t.Fatal(err)
	}
}

// askedForTheOther counts the questions about the layer that no client asks for.
func (p *pulled) askedForTheOther() (n int) {
	synctest.Wait()
	for _, q := range p.source.questions() {
		if strings.Contains(q, oci.Sum(p.layers[1]).String()) {
			n++
		}
	}
	return n
}

// TestPrefetchRests: what is all here is not looked after with every pull.

// TestPrefetchRests: what is all here is not looked after with every pull.
func TestPrefetchRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		layers := [][]byte{pattern(1, 1000), pattern(2, 1000)}
		m := s.pushImage(alpine, "latest", layers...)
		c := newCache(t, s, Config{})
		defer closeCache(t, c)
		if _, _, err := c.Manifest(t.Context(), alpine, m.Digest, oci.Ask{}); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			group := c.prefetch.take(alpine, oci.Sum(layers[0]))
			if group == nil {
				t.Fatal("nothing to look after")
			}
			if c.prefetch.take(alpine, oci.Sum(layers[1])) != nil {
				t.Error("looked after twice at once")
			}
			c.prefetch.give(group, true)
			if c.prefetch.take(alpine, oci.Sum(layers[0])) != nil {
				t.Error("looked after again at once")
			}
			time.Sleep(aheadAgain)
		}
	})
}

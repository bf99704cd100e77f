package cache

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/oci"
	"entrepot/store"
)

// TestResumedBytesNeedARight: what lies on disk came under another repository's
// name, and unproven or not, it is not everybody's.
func TestResumedBytesNeedARight(t *testing.T) {
	s := newSource()
	content := pattern(30, 8*mib)
	d := s.pushBlob(secret, content)
	dir := t.TempDir()
	open := make(chan int64, 1)
	open <- 6 * mib
	s.body = func(_ int, c []byte, off int64) io.Reader { return &gated{r: bytes.NewReader(c[off:]), open: open} }
	first := openCache(t, dir, s, Config{Private: true})
	b, err := first.Blob(t.Context(), secret, d, oci.Ask{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := b.Open(t.Context(), 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, r, 6*mib); err != nil {
		t.Fatal(err)
	}
	closeCache(t, first)
	_ = r.Close()
	s.set(func() { s.body, s.asked = nil, nil })

	c := openCache(t, dir, s, Config{Private: true})
	for _, length := range []int64{-1, 1000} {
		got, _, err := read(t.Context(), c, mallory, d, 0, length)
		wantCode(t, err, oci.BlobUnknown)
		if len(got) > 0 {
			t.Errorf("%d bytes went out to who has no right to them", len(got))
		}
	}
	if q := s.questions(); len(q) == 0 || !strings.HasPrefix(q[0], "HEAD mallory/public blob ") {
		t.Errorf("upstream was asked %q, want a HEAD first", q)
	}
	c.Forget()
	s.set(func() { s.down = errDown })
	_, _, err = read(t.Context(), c, mallory, d, 0, -1)
	wantCode(t, err, oci.Unavailable)
	s.set(func() { s.down = nil })
	mustRead(t, c, secret, d, content)
}

// TestOthersRefusalIsNotOurs: a fill that a repository without the blob has
// begun says nothing about the one that has it.
func TestOthersRefusalIsNotOurs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		content := pattern(31, 1000)
		d := s.pushBlob(secret, content)
		s.delay = time.Second
		c := newCache(t, s, Config{})
		defer closeCache(t, c)
		denied := make(chan error, 1)
		go func() {
			_, _, err := read(t.Context(), c, mallory, d, 0, -1)
			denied <- err
		}()
		synctest.Wait() // mallory's fill asks upstream
		mustRead(t, c, secret, d, content)
		wantCode(t, <-denied, oci.BlobUnknown)
	})
}

// TestSharedLayerLeadsToNoPrefetch: platforms share layers, and tools read the
// manifests of all of them.
func TestSharedLayerLeadsToNoPrefetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		shared, amd, arm := pattern(1, 1000), pattern(2, 1000), pattern(3, 1000)
		one, two := s.pushImage(alpine, "amd", shared, amd), s.pushImage(alpine, "arm", shared, arm)
		c := newCache(t, s, Config{})
		defer closeCache(t, c)
		for _, m := range []oci.Manifest{one, two} {
			if _, _, err := c.Manifest(t.Context(), alpine, m.Digest, oci.Ask{}); err != nil {
				t.Fatal(err)
			}
		}
		mustRead(t, c, alpine, oci.Sum(shared), shared)
		synctest.Wait()
		for _, q := range s.questions() {
			if strings.Contains(q, oci.Sum(amd).String()) || strings.Contains(q, oci.Sum(arm).String()) {
				t.Errorf("nobody asked for it: %s", q)
			}
		}
	})
}

// TestPrefetchGivesWay: what clients wait for comes first.
func TestPrefetchGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		layers := [][]byte{pattern(1, 1000), pattern(2, 2000)}
		m := s.pushImage(alpine, "latest", layers...)
		open := make(chan int64)
		s.body = func(_ int, c []byte, off int64) io.Reader { return &gated{r: bytes.NewReader(c[off:]), open: open} }
		c := newCache(t, s, Config{})
		defer closeCache(t, c)
		if _, _, err := c.Manifest(t.Context(), alpine, m.Digest, oci.Ask{}); err != nil {
			t.Fatal(err)
		}
		var others []oci.Digest
		for i := range busy {
			others = append(others, s.pushBlob(alpine, pattern(100+i, 1000)))
		}
		for _, d := range others {
			go func() { _, _, _ = read(t.Context(), c, alpine, d, 0, -1) }()
		}
		synctest.Wait()
		go func() { _, _, _ = read(t.Context(), c, alpine, oci.Sum(layers[0]), 0, -1) }()
		synctest.Wait()
		for _, q := range s.questions() {
			if strings.Contains(q, oci.Sum(layers[1]).String()) {
				t.Errorf("prefetched while clients wait: %s", q)
			}
		}
		close(open)
		synctest.Wait()
		mustRead(t, c, alpine, oci.Sum(layers[0]), layers[0])
		synctest.Wait()
		s.set(func() { s.asked = nil })
		mustRead(t, c, alpine, oci.Sum(layers[1]), layers[1])
		if q := s.questions(); len(q) > 0 {
			t.Errorf("not prefetched once there was room: %q", q)
		}
	})
}

func TestPrefetchQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := newCache(t, s, Config{Prefetch: 1})
		defer closeCache(t, c)
		c.prefetch.slots <- struct{}{} // a fill that takes long
		for i := range maxAhead + 10 {
			first, second := pattern(2*i, 100), pattern(2*i+1, 100)
			m := s.pushImage(alpine, "latest", first, second)
			if _, _, err := c.Manifest(t.Context(), alpine, m.Digest, oci.Ask{}); err != nil {
				t.Fatal(err)
			}
			c.prefetchWith(t.Context(), alpine, oci.Sum(first), "")
		}
		synctest.Wait()
		s.set(func() { s.asked = nil })
		<-c.prefetch.slots
		synctest.Wait()
		if n := len(s.questions()); n != maxAhead {
			t.Errorf("%d layers were filled ahead once there was a place, want %d", n, maxAhead)
		}
	})
}

func TestExtraStreamsLeavePlaces(t *testing.T) {
	var e extras
	taken := 0
	for e.take("docker.io") {
		taken++
	}
	if taken != maxExtras || !e.take("ghcr.io") {
		t.Errorf("%d extra streams of one upstream, want %d, and others untouched", taken, maxExtras)
	}
	e.give("docker.io")
	if !e.take("docker.io") {
		t.Error("a place that was given back is lost")
	}
}

// TestMovedTagWithoutItsManifest: Docker Hub answers HEAD when the pulls are spent,
// and others tell of images that they will not give, or have lost. Who holds what the
// tag named is told of that, whoever asks and however often it moves, until what it
// names is here.
func TestMovedTagWithoutItsManifest(t *testing.T) {
	for _, refusal := range []error{
		&oci.Error{Code: oci.TooManyRequests, RetryAfter: time.Hour}, oci.ErrDenied, oci.ErrManifestUnknown, errDown, nil,
	} {
		for _, ask := range []oci.Ask{{}, {Refresh: true}, {Background: true}, {Background: true, Refresh: true}} {
			synctest.Test(t, func(t *testing.T) { testMovedTag(t, refusal, ask) })
		}
	}
}

// testMovedTag moves a tag whose new manifests are refused, or by nil never come.
func testMovedTag(t *testing.T, refusal error, ask oci.Ask) {
	t.Helper()
	s := newSource()
	old := s.pushImage(alpine, "latest", pattern(1, 10))
	c := newCache(t, s, Config{TTL: time.Minute, DropDeleted: map[string]bool{"docker.io": true}})
	defer closeCache(t, c)
	if _, err := pull(t.Context(), c, alpine, "latest"); err != nil {
		t.Fatal(err)
	}
	want := func(ask oci.Ask, want oci.Digest, mark oci.CacheStatus) {
		t.Helper()
		began := time.Now()
		res, out, err := c.Resolve(t.Context(), alpine, "latest", ask)
		if err != nil || res.Digest != want || out.Cache != mark || mark == oci.Stale && out.Why == "" {
			t.Errorf("%+v while it says %v: %s as %s (%s), %v, want %s as %s", ask, refusal, res.Digest, out.Cache, out.Why, err, want, mark)
		}
		if took := time.Since(began); took > 2*time.Second && !ask.Refresh {
			t.Errorf("%+v took %v", ask, took)
		}
	}
	s.set(func() { s.spent = refusal })
	if refusal == nil {
		s.set(func() { s.hangs = "GET library/alpine manifest" })
	}
	var moved oci.Manifest
	for i := range 3 {
		s.set(func() { moved = s.pushImage(alpine, "latest", pattern(2+i, 10)) })
		time.Sleep(time.Hour)
		want(ask, old.Digest, oci.Stale)
		want(oci.Ask{}, old.Digest, oci.Stale)
	}
	time.Sleep(time.Hour)
	s.set(func() { s.spent, s.hangs = nil, "" })
	_, _, _ = c.Resolve(t.Context(), alpine, "latest", oci.Ask{}) // where it hung, it is not waited for
	synctest.Wait()
	want(oci.Ask{}, moved.Digest, oci.Hit)
	if _, err := pull(t.Context(), c, alpine, "latest"); err != nil {
		t.Error(err)
	}
	s.set(func() { s.down = errDown })
	time.Sleep(time.Hour)
	want(oci.Ask{}, moved.Digest, oci.Stale)
	if _, out, err := c.Manifest(t.Context(), alpine, moved.Digest, oci.Ask{}); err != nil || out.Cache != oci.Hit {
		t.Errorf("what it names is a %s, %v, want a hit", out.Cache, err)
	}
}

// TestAMovedTagLeavesTheReserve: while a quota is down to what it keeps for others,
// who holds an image is told of that one, whether or not he goes on to get what he
// is told; who holds nothing, or insists, is not.
func TestAMovedTagLeavesTheReserve(t *testing.T) {
	for _, tc := range []struct {
		name string
		ask  oci.Ask
		old  bool // is what he gets
		lost bool // the old image is not here any more
	}{
		{"asked", oci.Ask{}, true, false},
		{"forced", oci.Ask{Refresh: true}, false, false},
		{"forced in the background", oci.Ask{Refresh: true, Background: true}, true, false},
		{"nothing here", oci.Ask{}, false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource()
				old := s.pushImage(alpine, "latest", pattern(1, 10))
				dir := t.TempDir()
				c := openCacheOf(t, store.Config{Dir: dir}, s, Config{TTL: time.Minute}) // nothing is in memory
				defer closeCache(t, c)
				if _, err := pull(t.Context(), c, alpine, "latest"); err != nil {
					t.Fatal(err)
				}
				moved := s.pushImage(alpine, "latest", pattern(2, 10))
				time.Sleep(time.Hour)
				if tc.lost {
					if err := os.Remove(filepath.Join(dir, "blobs", "sha256", old.Digest.Hex()[:2], old.Digest.Hex())); err != nil {
						t.Fatal(err)
					}
				}
				s.set(func() { s.withheld, s.asked = 10*time.Minute, nil })
				want, mark := moved.Digest, oci.Miss
				if tc.old {
					want, mark = old.Digest, oci.Stale
				}
				for i := range 3 {
					res, out, err := c.Resolve(t.Context(), alpine, "latest", tc.ask)
					if err != nil || res.Digest != want || i == 0 && out.Cache != mark {
						t.Fatalf("%s as %s (%s), %v, want %s as %s", res.Digest, out.Cache, out.Why, err, want, mark)
					}
					if tc.old && (out.Cache != oci.Stale || out.Why == "") {
						t.Errorf("the old one as %s (%s), want stale", out.Cache, out.Why)
					}
				}
				if tc.old && !tc.ask.Refresh {
					wantAsked(t, s, "HEAD library/alpine latest")
				}
				if m, _, err := c.Manifest(t.Context(), alpine, moved.Digest, oci.Ask{}); err != nil || m.Digest != moved.Digest {
					t.Errorf("by digest it is not held, and not given out: %v", err)
				}
				s.set(func() { s.withheld = 0 })
				time.Sleep(time.Hour)
				if res, _, err := c.Resolve(t.Context(), alpine, "latest", oci.Ask{}); err != nil || res.Digest != moved.Digest {
					t.Errorf("once there is enough: %s %v, want the new one", res.Digest, err)
				}
			})
		})
	}
}

// TestWhatIsWithheldFromOneIsAskedForByAnother: at the same moment.
func TestWhatIsWithheldFromOneIsAskedForByAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		old := s.pushImage(alpine, "latest", pattern(1, 10))
		c := newCache(t, s, Config{TTL: time.Minute})
		defer closeCache(t, c)
		if _, err := pull(t.Context(), c, alpine, "latest"); err != nil {
			t.Fatal(err)
		}
		moved := s.pushImage(alpine, "latest", pattern(2, 10))
		time.Sleep(time.Hour)
		var clients sync.WaitGroup
		resolve := func(ask oci.Ask, want oci.Digest) {
			clients.Go(func() {
				if res, out, err := c.Resolve(t.Context(), alpine, "latest", ask); err != nil || res.Digest != want {
					t.Errorf("%+v: %s as %s, %v, want %s", ask, res.Digest, out.Cache, err, want)
				}
			})
			synctest.Wait() // it is on its way
		}
		s.set(func() { s.withheld, s.delay = time.Hour, time.Second })
		resolve(oci.Ask{}, old.Digest)
		resolve(oci.Ask{}, old.Digest)
		resolve(oci.Ask{Refresh: true}, moved.Digest)
		clients.Wait()
		time.Sleep(time.Hour)

		last := s.pushImage(alpine, "latest", pattern(3, 10))
		clients.Go(func() {
			_, _, err := c.Manifest(t.Context(), alpine, last.Digest, oci.Ask{Held: true})
			wantCode(t, err, oci.TooManyRequests)
		})
		synctest.Wait()
		clients.Go(func() {
			if m, _, err := c.Manifest(t.Context(), alpine, last.Digest, oci.Ask{}); err != nil || m.Digest != last.Digest {
				t.Errorf("by digest: %v", err)
			}
		})
		clients.Wait()
	})
}

func TestOneRepositoryWithoutReferrersSaysNothingOfOthers(t *testing.T) {
	s := newSource()
	s.noAPIFor = "nosuch/repo"
	subject := s.pushImage(alpine, "latest", pattern(1, 10))
	c := newCache(t, s, Config{})
	if _, _, err := c.Referrers(t.Context(), oci.Repository{Host: "docker.io", Path: "nosuch/repo"}, subject.Digest, "", oci.Ask{}); err != nil {
		t.Fatal(err)
	}
	if list, _, err := c.Referrers(t.Context(), alpine, subject.Digest, "", oci.Ask{}); err != nil || len(list.Manifests) != 1 {
		t.Errorf("%d referrers, %v, want the one that upstream lists", len(list.Manifests), err)
	}
}

// TestHeadKeepsTheSizeThatAManifestNamed: a chunked upstream tells none.
func TestHeadKeepsTheSizeThatAManifestNamed(t *testing.T) {
	s := newSource()
	s.noSize = true
	layer := pattern(1, 100_000)
	m := s.pushImage(alpine, "latest", layer)
	c := newCache(t, s, Config{})
	if _, _, err := c.Manifest(t.Context(), alpine, m.Digest, oci.Ask{}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		b, err := c.Blob(t.Context(), alpine, oci.Sum(layer), oci.Ask{})
		if err != nil {
			t.Fatal(err)
		}
		if desc, _, err := b.Stat(t.Context()); err != nil || desc.Size != int64(len(layer)) {
			t.Errorf("stat: size %d, %v, want %d", desc.Size, err, len(layer))
		}
	}
}

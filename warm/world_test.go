package warm_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"entrepot/cache"
	"entrepot/internal/ocitest"
	"entrepot/oci"
	"entrepot/store"
	"entrepot/upstream"
	"entrepot/warm"
)

// world is a cache over a fake hub in a bubble, where a day takes no time.
type world struct {
	t      *testing.T
	hub    *ocitest.Hub
	net    *ocitest.Network
	dir    string
	cfg    cache.Config
	client *upstream.Client
	cache  *cache.Cache
	puller *warm.Puller
	closer func()
}

func simulate(t *testing.T, habits ocitest.Habits, f func(*world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		net := ocitest.NewNetwork()
		w := &world{t: t, net: net, hub: ocitest.NewHub(t, ocitest.Config{Habits: habits, Network: net}), dir: t.TempDir(), cfg: cache.Config{TTL: 5 * time.Minute}}
		w.open()
		defer func() { w.closer() }()
		f(w)
	})
}

// open puts the stack together, as after a start.
func (w *world) open() {
	w.t.Helper()
	disk, err := store.Open(w.t.Context(), store.Config{Dir: w.dir, Memory: 1 << 20})
	if err != nil {
		w.t.Fatal(err)
	}
	client, err := upstream.New(upstream.Config{Name: oci.DockerHub, URL: w.hub.URL(), Dial: w.net.DialContext})
	if err != nil {
		w.t.Fatal(err)
	}
	w.client = client
	w.cache = cache.New(disk, client, w.cfg)
	w.puller = warm.NewPuller(w.cache, 4)
	w.closer = sync.OnceFunc(func() {
		if err := errors.Join(w.cache.Close(context.Background()), disk.Close()); err != nil {
			w.t.Error(err)
		}
		client.Close()
	})
}

// restart is what a new process finds.
func (w *world) restart() {
	w.t.Helper()
	w.closer()
	w.open()
}

// wantAsked compares what the registry itself was asked, since the last time,
// and in any order; tokens and the CDN do not count.
func (w *world) wantAsked(want ...string) {
	w.t.Helper()
	var got []string
	for _, line := range w.hub.Lines() {
		if rest, ok := strings.CutPrefix(line, "registry "); ok {
			got = append(got, rest)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		w.t.Errorf("questions to the registry (-want +got):\n%s", diff)
	}
	w.hub.Reset()
}

// login is the first question and its challenge, after which a token is kept.
func (w *world) login(repo string) {
	w.t.Helper()
	_, _, _ = w.cache.Resolve(w.t.Context(), hubImage(repo, "").Repository, "nosuch", oci.Ask{})
	w.hub.Reset()
}

func hubImage(repo, reference string) warm.Image {
	return warm.Image{Repository: oci.Repository{Host: oci.DockerHub, Path: repo}, Reference: reference}
}

func short(d oci.Digest) string { return "sha256:" + d.Hex()[:12] }

// gets are the questions that all of an image costs, its index left out.
func gets(repo string, images ...ocitest.Image) []string {
	var lines []string
	for _, image := range images {
		lines = append(lines, "GET manifest "+repo+"@"+short(image.Digest))
		for _, b := range image.Blobs {
			lines = append(lines, "GET blob "+repo+"@"+short(b.Digest))
		}
	}
	return lines
}

// list starts a list that ends with stop.
func (w *world) list(cfg warm.Config, images ...warm.Image) (l *warm.List, stop func()) {
	cfg.Source, cfg.Puller, cfg.Withheld, cfg.Held = w.cache, w.puller, w.client.Withheld, w.cache.Holds
	c := w.cache
	cfg.Known = func(repo oci.Repository, tag string) (time.Time, time.Duration, bool) {
		rec := c.Record(repo, tag)
		if rec == nil {
			return time.Time{}, 0, false
		}
		return rec.Checked, rec.TTL, true
	}
	if cfg.Images == nil {
		cfg.Images = func() ([]warm.Image, error) { return images, nil }
	}
	l = warm.NewList(cfg)
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan struct{})
	go func() {
		l.Run(ctx)
		close(done)
	}()
	return l, func() {
		cancel()
		<-done
	}
}

func platforms(t *testing.T, s string) warm.Platforms {
	t.Helper()
	p, err := warm.ParsePlatforms(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// on is an image for one architecture of Linux.
func on(architecture string, seed uint64, sizes ...int64) ocitest.Image {
	spec := ocitest.ImageSpec{Platform: oci.Platform{OS: "linux", Architecture: architecture}}
	for i, size := range sizes {
		spec.Layers = append(spec.Layers, ocitest.Blob(seed*1000+uint64(i), size))
	}
	return spec.Build()
}

// loseBlob takes a file away, as eviction does.
func (w *world) loseBlob(d oci.Digest) {
	w.t.Helper()
	if err := os.Remove(filepath.Join(w.dir, "blobs", d.Algorithm(), d.Hex()[:2], d.Hex())); err != nil {
		w.t.Fatal(err)
	}
}

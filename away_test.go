package main

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"entrepot/cache"
	"entrepot/internal/ocitest"
	"entrepot/oci"
)

// What is held of an upstream that gives nothing out makes no room for what comes from
// another: be it down, or its quota spent, or that it wants to be left alone for long,
// and after a restart as well, when nobody has asked it yet. Once it answers as usual,
// age decides again.
func TestNothingHeldMakesRoomWhileItsUpstreamIsAway(t *testing.T) {
	for _, row := range []struct {
		name   string
		effect *ocitest.Effect
		limit  int // of pulls, of which 7 are spent, or asked for
		stays  bool
	}{
		{"well", nil, 0, false},
		{"down", new(ocitest.Answer(http.StatusServiceUnavailable)), 0, true},
		{"wants to be left alone for an hour", new(ocitest.RetryLater(http.StatusTooManyRequests, "3600")), 0, true},
		{"wants to be left alone for a minute", new(ocitest.AbuseLimit()), 0, false},
		{"its quota is spent", nil, 7, true},
		{"its quota was refused", nil, 6, true},
		{"its quota is down to its reserve", nil, 8, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			hub, other := ocitest.NewHub(t, ocitest.Config{}), ocitest.NewHub(t, ocitest.Config{})
			cfg := stackConfig{
				dir: t.TempDir(), budget: 4 << 20, cache: cache.Config{TTL: time.Nanosecond},
				more: map[string]*ocitest.Hub{"other.example": other},
			}
			s := newStack(t, hub, cfg)
			images := make([]ocitest.Image, 3)
			for i := range images {
				images[i] = ocitest.RandomImage(uint64(i), 500_000)
				hub.Push("library/held", fmt.Sprint(i), images[i])
				s.mustPull("held", fmt.Sprint(i), images[i])
			}
			if row.effect != nil {
				hub.Inject(&ocitest.Fault{Effect: *row.effect})
			}
			hub.Set(func(h *ocitest.Habits) { h.PullLimit = row.limit })
			for i := range 4 {
				hub.Push("library/others", fmt.Sprint(i), ocitest.RandomImage(uint64(10+i), 10))
				_, _, _ = s.get(http.MethodGet, "/v2/others/manifests/"+fmt.Sprint(i))
			}
			hub.Push("library/others", "unheld", ocitest.RandomImage(20, 10))
			ask := func(s *stack) {
				for i := range images {
					_, _, _ = s.get(http.MethodGet, "/v2/held/manifests/"+fmt.Sprint(i))
				}
				for _, tag := range []string{"unheld", "missing"} { // which a spent quota does not keep from us
					_, _, _ = s.get(http.MethodHead, "/v2/others/manifests/"+tag)
				}
			}
			n := uint64(100)
			crowd := func(s *stack, stays bool) {
				t.Helper()
				for range 8 {
					n++
					image := ocitest.RandomImage(n, 500_000)
					other.Push("x/y", fmt.Sprint(n), image)
					s.mustPull("other.example/x/y", fmt.Sprint(n), image)
				}
				gone := 0
				for _, image := range images {
					if _, err := s.disk.Size(image.Blobs[1].Digest); err != nil {
						gone++
					}
				}
				if (gone == 0) != stays || s.disk.Stats().Evicted == 0 {
					t.Errorf("%d layers of %d are evicted, want that they stay: %v; %d blobs in all", gone, len(images), stays, s.disk.Stats().Evicted)
				}
			}
			ask(s)
			crowd(s, row.stays)
			s.closer()
			s = newStack(t, hub, cfg)
			crowd(s, row.stays)
			if !row.stays {
				return
			}
			hub.ClearFaults()
			hub.Set(func(h *ocitest.Habits) { h.PullLimit = 0 })
			ask(s)
			crowd(s, false)
		})
	}
}

// Nor does what is held of one that the settings keep offline, as nobody can fetch it
// again.
func TestNothingOfAnOfflineUpstreamMakesRoom(t *testing.T) {
	for _, row := range []struct {
		name    string
		offline string
		stays   bool
	}{
		{"one", "ENTREPOT_UPSTREAM_0_OFFLINE=true", true},
		{"all", "ENTREPOT_OFFLINE=true", true},
		{"another", "ENTREPOT_UPSTREAM_1_OFFLINE=true", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			cfg := mustLoad(t, "ENTREPOT_DATA="+t.TempDir(), "ENTREPOT_CACHE_SIZE=4MiB", "ENTREPOT_UPSTREAM_0_NAME=docker.io",
				"ENTREPOT_UPSTREAM_1_NAME=ghcr.io", row.offline)
			disk, err := openDisk(t.Context(), cfg, new(observer))
			if err != nil {
				t.Fatal(err)
			}
			n := uint64(0)
			keep := func(from string) oci.Digest {
				n++
				layer := ocitest.RandomImage(n, 500_000).Blobs[1]
				_ = disk.PutFrom(layer.Digest, layer.Bytes(), from) // there may be no room for it
				return layer.Digest
			}
			var held []oci.Digest
			for range 3 {
				held = append(held, keep("docker.io"))
			}
			for range 12 {
				keep("other.example")
			}
			gone := 0
			for _, dg := range held {
				if _, err := disk.Size(dg); err != nil {
					gone++
				}
			}
			if (gone == 0) != row.stays || disk.Stats().Evicted == 0 {
				t.Errorf("%d of %d are evicted, want that they stay: %v; %d blobs in all", gone, len(held), row.stays, disk.Stats().Evicted)
			}
			if err := disk.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

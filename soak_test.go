//go:build soak

package main

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"entrepot/internal/ocitest"
	"entrepot/oci"
)

// These tests take minutes and two cores to themselves: make soak. They print
// the figures that they hold the product to. The race detector would falsify
// memory and time.

func TestSoakKilledAtAnyInstant(t *testing.T) {
	random := schedule(t)
	lives := append(randomLives(random, 60, time.Second), randomLives(random, 10, 6*time.Second)...)
	random.Shuffle(len(lives), func(i, j int) { lives[i], lives[j] = lives[j], lives[i] })
	runKilling(t, random, lives, 12, 64<<20, time.Second)
}

// TestSoakManyBlobsDoNotDelayAStart: what is held is counted while the server
// serves.
func TestSoakManyBlobsDoNotDelayAStart(t *testing.T) {
	const blobs = 100_000
	dir := t.TempDir()
	hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{Auth: ocitest.NoAuth}})
	image := ocitest.RandomImage(1, 100_000)
	hub.Push("app", "latest", image)
	for i := range 256 {
		if err := os.MkdirAll(fmt.Sprintf("%s/blobs/sha256/%02x", dir, i), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for i := range blobs {
		d := oci.Sum(fmt.Append(nil, i))
		if err := os.WriteFile(fmt.Sprintf("%s/blobs/sha256/%s/%s", dir, d.Hex()[:2], d.Hex()), fmt.Append(nil, i), 0o444); err != nil {
			t.Fatal(err)
		}
	}
	slowest := time.Duration(0)
	for range 10 {
		p := startProcess(t, append(over(hub, dir), "ENTREPOT_CACHE_SIZE=1TiB")...)
		p.await(t)
		if err := (puller{client: newClient(t), registry: p.registry}).manifest(t.Context(), "latest", image); err != nil {
			t.Error(err)
		}
		slowest = max(slowest, time.Since(p.began))
		p.kill()
	}
	t.Logf("with %d blobs the first answer came after %v at most", blobs, slowest)
	if slowest > time.Second {
		t.Errorf("the first answer came after %v, want a second at most", slowest)
	}
}

// memoryFor is the anonymous memory that so many clients may make the process
// hold.
func memoryFor(clients int64) int64 { return 64<<20 + clients*64<<10 }

func TestSoakHerd(t *testing.T) {
	const clients = 200
	runHerd(t, schedule(t), herd{clients: clients, size: 1 << 30, rate: 12 << 20, killEach: 100 * time.Millisecond, memory: memoryFor(clients)})
}

func TestSoakLazyPull(t *testing.T) {
	runLazy(t, schedule(t), lazy{size: 2 << 30, pieces: 600, run: 1 << 30, memory: memoryFor(1)})
}

// TestSoakColdPull compares a pull of three layers through a cold cache with one
// that goes to upstream directly, over a line that gives each connection 50 MB/s
// after 20 ms.
func TestSoakColdPull(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{Auth: ocitest.NoAuth, Rate: 50e6, Latency: 20 * time.Millisecond}})
	image := ocitest.RandomImage(1, 64<<20, 256<<20, 512<<20)
	hub.Push("app", "latest", image)
	var ratios []float64
	for range 3 {
		direct := pullTime(t, hub.URL(), image)
		hub.Reset()
		p := startProcess(t, over(hub, t.TempDir())...)
		p.await(t)
		memory := watchMemory(p)
		through := pullTime(t, p.registry, image)
		most := memory()
		p.terminate(t)
		ratio := through.Seconds() / direct.Seconds()
		t.Logf("direct %.2f s, through a cold cache %.2f s: %.3f; %.1f MiB of anonymous memory", direct.Seconds(), through.Seconds(), ratio, float64(most)/(1<<20))
		if sent, want := hub.Sent(ocitest.Match{Role: ocitest.CDN}), image.Blobs[0].Size+(64+256+512)<<20; sent != want {
			t.Errorf("%d bytes came from upstream, want %d", sent, want)
		}
		if limit := memoryFor(4); most > limit {
			t.Errorf("%d bytes of anonymous memory, want %d at most", most, limit)
		}
		ratios = append(ratios, ratio)
	}
	// The best one: what else runs here takes processors from the cache alone,
	// since the line is what a direct pull waits for.
	if best := slices.Min(ratios); best > 0.35 {
		t.Errorf("a cold pull takes %.3f of what a direct one does, want 0.35 at most", best)
	}
}

// pullTime pulls as clients do: the manifest, the config, then all layers at
// once, each over a connection of its own.
func pullTime(t *testing.T, registry string, image ocitest.Image) time.Duration {
	t.Helper()
	transport := new(http.Transport)
	defer transport.CloseIdleConnections()
	from := puller{&http.Client{Transport: transport}, registry, 512}
	begin := time.Now()
	if err := from.manifest(t.Context(), "latest", image); err != nil {
		t.Fatal(err)
	}
	if err := from.blob(t.Context(), image.Blobs[0], 0, -1); err != nil {
		t.Fatal(err)
	}
	var layers sync.WaitGroup
	for _, layer := range image.Blobs[1:] {
		layers.Go(func() {
			if err := from.blob(t.Context(), layer, 0, -1); err != nil {
				t.Error(err)
			}
		})
	}
	layers.Wait()
	return time.Since(begin)
}

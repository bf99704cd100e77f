package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	gometrics "runtime/metrics"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"entrepot/cache"
	"entrepot/internal/ocitest"
	"entrepot/ledger"
	"entrepot/oci"
	"entrepot/proxy"
	"entrepot/store"

	"github.com/rs/zerolog"
)

// heldImage is the product from the registry's handler down to the disk, which holds
// an image. It has no upstream: a hit asks none.
type heldImage struct {
	http.Handler
	image  ocitest.Image
	config ocitest.Content
	layer  ocitest.Content
	file   string // has the layer's bytes
}

func newHeldImage(t testing.TB, layer int64) *heldImage {
	t.Helper()
	w := &heldImage{image: ocitest.ImageSpec{Layers: []ocitest.Content{ocitest.Blob(1, layer)}}.Build()}
	w.config, w.layer = w.image.Blobs[0], w.image.Blobs[1]
	w.file = filepath.Join(t.TempDir(), "layer")
	if err := os.WriteFile(w.file, w.layer.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	disk, err := store.Open(t.Context(), store.Config{Dir: t.TempDir(), Memory: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	held := cache.New(disk, nil, cache.Config{TTL: cache.Never, Prefetch: -1})
	t.Cleanup(func() {
		if err := held.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if err := disk.Close(); err != nil {
			t.Error(err)
		}
	})
	repo := oci.Repository{Host: oci.DockerHub, Path: "library/app"}
	for _, c := range append([]ocitest.Content{w.image.Content}, w.image.Blobs...) {
		if err := disk.Put(c.Digest, c.Bytes()); err != nil {
			t.Fatal(err)
		}
		if err := disk.Mark(repo, c.Digest, store.Marker{MediaType: c.MediaType, Size: c.Size, State: store.Proven}); err != nil {
			t.Fatal(err)
		}
	}
	if err := disk.PutTag(repo, "latest", store.Tag{Digest: w.image.Digest, MediaType: w.image.MediaType, Size: w.image.Size}); err != nil {
		t.Fatal(err)
	}
	names := &oci.Names{Default: oci.DockerHub, Upstreams: []string{oci.DockerHub}}
	watcher := newObserver(zerolog.Nop(), newMetrics(readBuild(), names.Upstreams), ledger.New())
	api := &gate{}
	api.open(proxy.New(held, proxy.Config{Names: names, Observe: watcher.request}))
	w.Handler = registryHandler(api, unseen)
	return w
}

// bare answers as a hit does, and does nothing else: what net/http costs.
func bare(c ocitest.Content) http.Handler {
	body, mediaType, digest := c.Bytes(), []string{c.MediaType}, []string{c.Digest.String()}
	size, etag, outcome := []string{strconv.FormatInt(c.Size, 10)}, []string{`"` + c.Digest.String() + `"`}, []string{"hit"}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h["Content-Type"], h["Docker-Content-Digest"], h["Content-Length"], h["Etag"], h["X-Entrepot-Cache"] = mediaType, digest, size, etag, outcome
		w.WriteHeader(http.StatusOK)
		if r.Method == http.MethodGet {
			_, _ = w.Write(body)
		}
	})
}

// bareFile is bare for what the kernel sends.
func bareFile(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()["X-Entrepot-Cache"] = []string{"hit"}
		http.ServeFile(w, r, name)
	})
}

// hits are the answers that a fleet gets all day.
func (w *heldImage) hits() []hit {
	const base = "/v2/app/"
	digest := base + "manifests/" + w.image.Digest.String()
	return []hit{
		{"tag", http.MethodGet, base + "manifests/latest", w, 0},
		{"digest", http.MethodGet, digest, w, 0},
		{"head", http.MethodHead, base + "manifests/latest", w, 0},
		{"manifest/bare", http.MethodGet, digest, bare(w.image.Content), 0},
		{"small", http.MethodGet, base + "blobs/" + w.config.Digest.String(), w, 5},
		{"small/bare", http.MethodGet, digest, bare(w.config), 0},
		{"large", http.MethodGet, base + "blobs/" + w.layer.Digest.String(), w, 30},
		{"large/bare", http.MethodGet, digest, bareFile(w.file), 30},
	}
}

type hit struct {
	name, method, path string
	handler            http.Handler
	allocations        float64 // at most, without net/http's
}

// discard is a response writer without a connection.
type discard struct{ header http.Header }

func (d *discard) Header() http.Header              { return d.header }
func (d *discard) WriteHeader(int)                  {}
func (d *discard) Write(p []byte) (int, error)      { return len(p), nil }
func (d *discard) SetWriteDeadline(time.Time) error { return nil }

// A hit of a manifest allocates nothing: its headers' values were made before.
func TestHitsAllocateNextToNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes pools forget")
	}
	for _, one := range newHeldImage(t, 300<<10).hits() {
		r := httptest.NewRequestWithContext(t.Context(), one.method, one.path, nil)
		w := &discard{header: http.Header{}}
		got := testing.AllocsPerRun(200, func() {
			clear(w.header)
			one.handler.ServeHTTP(w, r)
		})
		if w.header.Get("X-Entrepot-Cache") != "hit" {
			t.Errorf("%s: no hit: %v", one.name, w.header)
		}
		t.Logf("%s: %v", one.name, got)
		if got > one.allocations {
			t.Errorf("%s: %v allocations, want %v at most", one.name, got, one.allocations)
		}
	}
}

// BenchmarkHit asks over one kept connection to a server as we set it up.
// Compare the rows with their bare twins.
func BenchmarkHit(b *testing.B) {
	for _, one := range newHeldImage(b, 16<<20).hits() {
		b.Run(one.name, func(b *testing.B) {
			l, err := listen(b.Context(), "", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			s := startServer("registry", l, one.handler, nil, 0, reports{log: zerolog.Nop(), failed: func(err error) { b.Error(err) }})
			defer s.stop(b.Context(), closeGrace)
			conn, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			request := []byte(one.method + " " + one.path + " HTTP/1.1\r\nHost: cache.example\r\nUser-Agent: containerd/2.4.2\r\nAccept: */*\r\n\r\n")
			size := askOnce(b, conn, one.method, request)
			buf := make([]byte, 256<<10)
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := conn.Write(request); err != nil {
					b.Fatal(err)
				}
				for left := size; left > 0; {
					n, err := conn.Read(buf[:min(left, int64(len(buf)))])
					if err != nil {
						b.Fatal(err)
					}
					left -= int64(n)
				}
			}
		})
	}
}

// askOnce tells how much each answer is.
func askOnce(b *testing.B, conn net.Conn, method string, request []byte) int64 {
	b.Helper()
	if _, err := conn.Write(request); err != nil {
		b.Fatal(err)
	}
	var head bytes.Buffer
	resp, err := http.ReadResponse(bufio.NewReaderSize(io.TeeReader(conn, &head), 16), &http.Request{Method: method})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		b.Fatal(resp.Status, err)
	}
	return int64(head.Len())
}

// TestHitsWaitForNoLock: of many clients that ask for the same at once, none waits
// for another in what is ours. Records are read anew, by one client after the other,
// each two seconds, which disturbs few rounds as short as these: three in four have to
// be without. A lock that each hit takes is waited for in most.
func TestHitsWaitForNoLock(t *testing.T) {
	const rounds = 40
	times := 500
	if raceEnabled { // which takes longer, and finds the same
		times = 50
	}
	before := runtime.SetMutexProfileFraction(1)
	defer runtime.SetMutexProfileFraction(before)
	for _, one := range newHeldImage(t, 300<<10).hits()[:2] {
		t.Run(one.name, func(t *testing.T) {
			disturbed := 0
			for range rounds {
				began := locksWaitedFor()
				askTogether(t, one, 64, times)
				if locksWaitedFor() > began {
					disturbed++
				}
			}
			if disturbed > rounds/4 {
				t.Errorf("in %d of %d rounds somebody waited for a lock", disturbed, rounds)
			}
		})
	}
}

// askTogether has many clients ask without a connection, each some times.
func askTogether(t *testing.T, one hit, clients, times int) {
	t.Helper()
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			r, w := httptest.NewRequestWithContext(t.Context(), one.method, one.path, nil), &discard{header: http.Header{}}
			for range times {
				clear(w.header)
				one.handler.ServeHTTP(w, r)
			}
			if w.header.Get("X-Entrepot-Cache") != "hit" {
				t.Errorf("no hit: %v", w.header)
			}
		})
	}
	all.Wait()
}

// locksWaitedFor counts how often a lock of ours, or of a library that we called,
// was waited for since profiling began. Pools register themselves under one, once.
func locksWaitedFor() (n int64) {
	records := make([]runtime.BlockProfileRecord, 10_000)
	found, _ := runtime.MutexProfile(records)
	for _, record := range records[:min(found, len(records))] {
		var stack strings.Builder
		for frames, more := runtime.CallersFrames(record.Stack()), true; more; {
			var frame runtime.Frame
			frame, more = frames.Next()
			stack.WriteString(frame.Function + "\n")
		}
		if of := stack.String(); strings.Contains(of, "Mutex).") && strings.Contains(of, "entrepot") && !strings.Contains(of, "sync.(*Pool)") {
			n += record.Count
		}
	}
	return n
}

// BenchmarkHitTogether has 64 clients at once ask for what is held, without a
// connection, and tells how long an answer waited for locks.
func BenchmarkHitTogether(b *testing.B) {
	for _, one := range newHeldImage(b, 300<<10).hits()[:2] {
		b.Run(one.name, func(b *testing.B) {
			b.SetParallelism(64 / runtime.GOMAXPROCS(0))
			b.ReportAllocs()
			waited := waitedForLocks()
			b.RunParallel(func(pb *testing.PB) {
				r := httptest.NewRequestWithContext(b.Context(), one.method, one.path, nil)
				for w := (&discard{header: http.Header{}}); pb.Next(); clear(w.header) {
					one.handler.ServeHTTP(w, r)
				}
			})
			b.ReportMetric(float64(waitedForLocks()-waited)/float64(b.N), "ns-waited/op")
		})
	}
}

// waitedForLocks is how long goroutines have waited for locks, in nanoseconds.
func waitedForLocks() int64 {
	sample := []gometrics.Sample{{Name: "/sync/mutex/wait/total:seconds"}}
	gometrics.Read(sample)
	return int64(sample[0].Value.Float64() * 1e9)
}

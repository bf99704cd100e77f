package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"

	"entrepot/internal/ocitest"
)

// herd is many clients that take one cold blob at once, of whom one is killed
// now and then while it arrives; another takes its seat.
type herd struct {
	clients  int
	size     int64
	rate     int64 // bytes per second of each connection to upstream
	killEach time.Duration
	memory   int64 // what the process may hold; 0 where that cannot be told
}

// TestAHerdCostsOneTransfer is the small form of TestSoakHerd.
func TestAHerdCostsOneTransfer(t *testing.T) {
	t.Parallel()
	runHerd(t, schedule(t), herd{clients: 20, size: 40 << 20, rate: 5 << 20, killEach: 20 * time.Millisecond})
}

func runHerd(t *testing.T, random *rand.Rand, h herd) {
	t.Helper()
	hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{Auth: ocitest.NoAuth, Rate: h.rate}})
	blob := ocitest.Blob(1, h.size)
	image := ocitest.ImageSpec{Layers: []ocitest.Content{blob}}.Build()
	hub.Push("app", "latest", image)
	p := startProcess(t, append(over(hub, t.TempDir()), "ENTREPOT_STREAM_THRESHOLD=8MiB")...)
	p.await(t)
	begin := time.Now()
	memory := watchMemory(p)
	if err := (puller{client: newClient(t), registry: p.registry}).manifest(t.Context(), "latest", image); err != nil {
		t.Fatal(err)
	}
	seats := make([]seat, h.clients)
	var all sync.WaitGroup
	for i := range seats {
		all.Go(func() {
			if err := seats[i].pull(t.Context(), p.registry, blob); err != nil {
				t.Error(err)
			}
		})
	}
	killed := 0
	for tick := time.Tick(h.killEach); hub.Sent(ocitest.Match{Role: ocitest.CDN}) < h.size; killed++ {
		<-tick
		seats[random.IntN(len(seats))].kill()
	}
	all.Wait()
	took, most := time.Since(begin), memory()
	awaitNoFills(t, newClient(t), p.admin)
	p.terminate(t)
	sent, requests := hub.Sent(ocitest.Match{Role: ocitest.CDN}), hub.Count(ocitest.Match{Role: ocitest.CDN})
	t.Logf("%d clients of %d MiB in %v, %d of them killed: %.4f transfers in %d requests, %.1f MiB of anonymous memory",
		h.clients, h.size>>20, took.Round(100*time.Millisecond), killed, float64(sent)/float64(h.size), requests, float64(most)/(1<<20))
	if sent != h.size {
		t.Errorf("upstream sent %d bytes of a blob of %d", sent, h.size)
	}
	if h.memory > 0 && most > h.memory {
		t.Errorf("%d bytes of anonymous memory, want %d at most", most, h.memory)
	}
}

// seat is where one client after the other pulls, until one has the whole.
type seat struct {
	mu     sync.Mutex // guards cancel
	cancel context.CancelFunc
}

func (s *seat) pull(ctx context.Context, registry string, blob ocitest.Content) error {
	for {
		mine, cancel := context.WithCancel(ctx)
		s.mu.Lock()
		s.cancel = cancel
		s.mu.Unlock()
		transport := new(http.Transport)
		err := puller{&http.Client{Transport: transport}, registry, 512}.blob(mine, blob, 0, -1)
		transport.CloseIdleConnections()
		killed := mine.Err() != nil
		cancel()
		if err == nil || !killed || errors.Is(err, errWrong) {
			return err
		}
	}
}

func (s *seat) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cancel != nil {
		s.cancel()
	}
}

// watchMemory looks at a process's memory until it is asked for the most that
// there was.
func watchMemory(p *process) (most func() int64) {
	done, result := make(chan struct{}), make(chan int64)
	go func() {
		highest := int64(0)
		for tick := time.Tick(20 * time.Millisecond); ; {
			select {
			case <-tick:
				if n, err := p.anonymous(); err == nil {
					highest = max(highest, n)
				}
			case <-done:
				result <- highest
				return
			}
		}
	}()
	return func() int64 {
		close(done)
		return <-result
	}
}

// lazy is a blob that is read piece by piece, as eStargz does: its footer, its
// table of contents before that, then what is needed.
type lazy struct {
	size   int64
	pieces int   // isolated ones
	run    int64 // bytes that are read one piece after the other
	memory int64 // what the process may hold; 0 where that cannot be told
}

// piece is what lazy pullers ask for at a time.
const piece = 256 << 10

// window is what an isolated read may cost beside what it asks for.
const window = 1 << 20

// TestPiecesCostLittleMore is the small form of TestSoakLazyPull.
func TestPiecesCostLittleMore(t *testing.T) {
	t.Parallel()
	runLazy(t, schedule(t), lazy{size: 64 << 20, pieces: 12, run: 16 << 20})
}

func runLazy(t *testing.T, random *rand.Rand, l lazy) {
	t.Helper()
	hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{Auth: ocitest.NoAuth}})
	isolated, inOrder := ocitest.Blob(1, l.size), ocitest.Blob(2, l.size)
	image := ocitest.ImageSpec{Layers: []ocitest.Content{isolated, inOrder}}.Build()
	hub.Push("app", "latest", image)
	p := startProcess(t, over(hub, t.TempDir())...)
	p.await(t)
	memory := watchMemory(p)
	from := puller{client: newClient(t), registry: p.registry}
	if err := from.manifest(t.Context(), "latest", image); err != nil {
		t.Fatal(err)
	}
	asked := map[string]int64{}
	read := func(blob ocitest.Content, offset, length int64) {
		asked[blob.Digest.String()] += length
		if err := from.blob(t.Context(), blob, offset, length); err != nil {
			t.Errorf("%d bytes at %d: %v", length, offset, err)
		}
	}
	begin := time.Now()
	read(isolated, l.size-51, 51)
	read(isolated, l.size-piece, piece)
	for i := range l.pieces { // no two of them near each other
		stride := l.size / int64(l.pieces+1)
		at := int64(i)*stride + random.Int64N(max(1, stride-window-piece))
		read(isolated, at, piece)
	}
	for at := l.size / 3; at < l.size/3+l.run; at += piece {
		read(inOrder, at, piece)
	}
	took, most := time.Since(begin), memory()
	p.terminate(t)
	for _, row := range []struct {
		name    string
		blob    ocitest.Content
		windows int
	}{{"isolated pieces", isolated, 2 + l.pieces}, {"pieces in order", inOrder, 1}} {
		sent := hub.Sent(ocitest.Match{Role: ocitest.CDN, Reference: row.blob.Digest.String()})
		n := asked[row.blob.Digest.String()]
		t.Logf("%s of a blob of %d MiB: %.1f MiB asked for, %.1f MiB from upstream (%.2f times)", row.name, l.size>>20, float64(n)/(1<<20), float64(sent)/(1<<20), float64(sent)/float64(n))
		if bound := n*11/10 + int64(row.windows)*window; sent > bound {
			t.Errorf("%s: %d bytes asked for cost %d, want %d at most", row.name, n, sent, bound)
		}
	}
	if l.memory > 0 && most > l.memory {
		t.Errorf("%d bytes of anonymous memory, want %d at most", most, l.memory)
	}
	t.Logf("%v, %.1f MiB of anonymous memory", took.Round(10*time.Millisecond), float64(most)/(1<<20))
}

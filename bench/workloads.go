package main

import (
	"context"
	"fmt"
	"os"
	"time"
)

// workload is one thing that all rivals are put through.
type workload struct {
	name    string // unique; -run picks by its beginning
	family  string // whose metrics it has
	title   string
	about   string
	clients int
	line    line     // between upstream and cache
	roles   role     // who takes part: any of these
	among   []string // of them only these; nil: all
	site    site     // what differs from the defaults
	warm    bool     // one server serves all rounds
	far     bool     // clients are at the far end of a link
	looked  bool     // into what we do, in a round more, so that a target that is missed says why

	rounds int
	few    int           // rounds of those who are neither us nor what we are measured by; 0: as many
	budget time.Duration // of one rival; no round is begun after it
	limit  time.Duration // of one round

	setUp  func(context.Context, *bench) error          // once
	seed   seeder                                       // before a start
	warmUp func(context.Context, *bench, *server) error // after a start
	run    func(context.Context, *bench, *server) (measures, error)
}

// measures are what one round found, by metric.
type measures map[string]float64

// sizes are how large everything is: as the targets say, or tiny.
type sizes struct {
	cold      []int64 // layers of the image that is pulled cold
	herd      []int64
	warm      int64 // one blob
	lazy      int64 // one blob, read in pieces
	pieces    int   // isolated ones
	run       int64 // bytes read in order
	seconds   time.Duration
	start     []int
	trace     traceSize
	connected []int // clients of warm blobs
	herds     []int
	keepAlive int // connections
	oneShot   int // clients that dial for each request
}

func sizesOf(o options) sizes {
	if o.short {
		return sizes{
			cold: []int64{1 << 20, 2 << 20}, herd: []int64{1 << 20, 1 << 20}, warm: 1 << 20, lazy: 16 << 20, pieces: 4, run: 1 << 20,
			seconds: 100 * time.Millisecond, start: []int{100}, connected: []int{1, 4}, herds: []int{1, 4}, keepAlive: 4, oneShot: 2,
			trace: traceSize{images: 20, pulls: 60, bound: 8 << 20, scale: 0.1},
		}
	}
	s := sizes{
		cold: []int64{64 << 20, 256 << 20, 512 << 20}, herd: []int64{50 << 20, 100 << 20, 150 << 20},
		warm: 256 << 20, lazy: 2 << 30, pieces: 64, run: 16 << 20,
		seconds: 2 * time.Second, start: []int{10_000, 100_000}, connected: []int{1, 16, 64}, herds: []int{1, 20, 100},
		keepAlive: 64, oneShot: 16,
		trace: traceSize{images: 300, pulls: 2000, bound: 200e6, scale: 1},
	}
	if o.full {
		s.start, s.herds = append(s.start, 1_000_000), append(s.herds, 500)
	}
	return s
}

// endless is more than any round takes.
const endless = 1000 * time.Hour

// dayTTL is for workloads in which no tag is asked for again.
const dayTTL = 86400

// workloads is all that is done, in order.
func workloads(o options) []workload {
	s := sizesOf(o)
	upstream := line{Rate: 50 << 20, Latency: 20 * time.Millisecond}
	rounds := func(n int) int {
		if o.short {
			return 1
		}
		return n
	}
	var all []workload
	add := func(w workload) {
		if o.full { // whoever takes long has all rounds that an hour begins, and ends them
			w.budget, w.limit = time.Hour, endless
		}
		w.rounds = rounds(w.rounds)
		if w.site.TTL == 0 {
			w.site.TTL = dayTTL
		}
		all = append(all, w)
	}
	add(workload{
		name: "cold-pull", family: "pull", title: "Cold pull by one client",
		about: fmt.Sprintf("One client pulls an image of %s that nobody has pulled before. Upstream gives each connection 50 MiB/s, 20 ms after it was asked.", mebibytes(s.cold)),
		line:  upstream, clients: 1, roles: caches | direct, looked: true, rounds: 3, few: 2, budget: 40 * time.Second, limit: 60 * time.Second,
		setUp: pushImage("cold", seeds(1000, s.cold...), false), run: pullOnce("cold"),
	})
	for _, n := range s.herds {
		w := workload{
			name: fmt.Sprintf("herd-%d", n), family: "herd", title: fmt.Sprintf("Herd of %d on one cold image", n),
			about: fmt.Sprintf("%d clients pull the same image of %s at the same moment; nobody has pulled it before. Upstream as above. Who serves files has it already: that is what the machine can send.", n, mebibytes(s.herd)),
			line:  upstream, clients: n, roles: caches | files, among: nil, looked: true, rounds: 3, few: 2, budget: 45 * time.Second, limit: 120 * time.Second,
			setUp: pushImage("herd", seeds(2000, s.herd...), true), run: pullHerd("herd", n),
		}
		if n == 1 {
			w.title, w.about = "Herd of one", "What a single client needs for the image of the herds."
		}
		add(w)
	}
	for _, n := range s.connected {
		add(workload{
			name: fmt.Sprintf("warm-blob-%d", n), family: "blob", title: fmt.Sprintf("Warm blob, %s", plural(n, "connection")),
			about:   fmt.Sprintf("%s, kept alive, read a blob of %s that is held, again and again, for %v.", plural(n, "connection"), mebibytes([]int64{s.warm}), s.seconds),
			clients: n, roles: caches | files, looked: true, warm: true, rounds: 3, budget: 30 * time.Second, limit: 60 * time.Second,
			setUp: pushImage("warm", seeds(3000, s.warm), true), warmUp: pullFirst("warm"), run: readBlob("warm", n, s.seconds),
		})
	}
	for _, by := range []string{"tag", "digest"} {
		for _, keep := range []bool{true, false} {
			n, name, how := s.keepAlive, "keep", "kept alive"
			if !keep {
				n, name, how = s.oneShot, "new", "a new one for each request, as dockerd and podman do"
			}
			add(workload{
				name: "warm-manifest-" + by + "-" + name, family: "manifest", title: fmt.Sprintf("Warm manifest by %s, connections %s", by, how),
				about:   fmt.Sprintf("%d clients ask for a manifest that is held, by %s, for %v.", n, by, s.seconds),
				clients: n, roles: caches | files, looked: true, warm: true, rounds: 7, few: 2, budget: 20 * time.Second, limit: 30 * time.Second,
				setUp: pushImage("small", seeds(4000, 1<<10), true), warmUp: pullFirst("small"), run: askManifest("small", by, keep, n, s.seconds),
			})
		}
	}
	ends := fmt.Sprintf(" Reads end after %v.", time.Minute)
	if o.full {
		ends = ""
	}
	add(workload{
		name: "cold-ranges", family: "ranges", title: "Cold ranged reads of a big blob",
		about: fmt.Sprintf("One client reads %d pieces of 256 KiB, far from each other, and then %s in order in such pieces, from a blob of %s that is not held, as lazy pullers do: where they are redirected to they ask from then on. "+
			"Upstream gives each connection 50 MiB/s after 20 ms.%s", s.pieces, mebibytes([]int64{s.run}), mebibytes([]int64{s.lazy}), ends),
		line: upstream, clients: 1, roles: caches | direct, looked: true, rounds: 3, budget: 20 * time.Second, limit: time.Minute,
		setUp: pushImage("lazy", seeds(5000, s.lazy), false), run: readPieces("lazy", s.pieces, s.run),
	})
	add(workload{
		name: "trace", family: "trace", title: "Zipf pull trace under a bound",
		about: fmt.Sprintf("4 clients pull %d times from %d images by Zipf's law, through a cache bounded to %d MB, tags believed for %d s. Popular tags move to new images meanwhile. What is kept lies on a tmpfs of its own, so that its size can be looked at, which is done each 100 ms. "+
			"Each round has another trace, the same for all. After each %d pulls everybody rests, for up to %v, until what is kept has not changed for a quarter of a second; that is no part of the time below, and caches that make room in the background do it then. "+
			"Eviction here goes by the time of files, so at rest these are moved back as if there were a pull each %d minutes; rivals go by order.",
			s.trace.pulls, s.trace.images, s.trace.bound/1_000_000, traceTTL, traceBatch, traceRest, int(traceEvery.Minutes())),
		clients: traceClients, line: line{Latency: 2 * time.Millisecond}, roles: caches, rounds: 3, few: 1, budget: 80 * time.Second, limit: 3 * time.Minute,
		site: site{TTL: traceTTL, CacheSize: s.trace.bound, ownDisk: true}, run: pullTrace(s.trace),
	})
	for _, n := range s.start {
		add(workload{
			name: fmt.Sprintf("start-%d", n), family: "start", title: fmt.Sprintf("Start with %s blobs held", thousands(n)),
			about: fmt.Sprintf("The program starts over a directory with %s small blobs, each with its marker, and is asked for `/v2/`. Memory is the most until it has done nothing for a second, and of five seconds at least: meanwhile it counts what it holds.", thousands(n)),
			roles: caches, among: []string{ours}, rounds: 3, budget: time.Minute, limit: 2 * time.Minute, clients: 1,
			setUp: holdBlobs(n), seed: held(n), run: started(o.short),
		})
	}
	add(workload{
		name: farName, family: "far", title: farTitle,
		about: fmt.Sprintf("One client, %v away by its packets' round trip, reads a blob of %s that is held, over a new connection. The way there is a pair of TUN devices between two network namespaces and a program that holds packets back and lets %d MB/s through: "+
			"the server's kernel sees a real round-trip time.", 2*farAway, mebibytes([]int64{s.warm}), farRate/1_000_000),
		clients: 1, far: true, roles: caches | files, among: []string{ours, nginxFiles, bareGo}, warm: true, rounds: 3, budget: 40 * time.Second, limit: 60 * time.Second,
		setUp: pushImage("warm", seeds(3000, s.warm), true), seed: pulledNearby("warm"), run: readFar("warm"),
	})
	return all
}

// pushImage gives the hub an image, and lays it out for file servers.
func pushImage(name string, layers []layerSpec, asFiles bool) func(context.Context, *bench) error {
	return func(ctx context.Context, b *bench) error {
		i, err := b.image(ctx, name, layers)
		if err == nil && asFiles {
			err = b.layOut(i)
		}
		return err
	}
}

// pullFirst makes a cache hold an image.
func pullFirst(name string) func(context.Context, *bench, *server) error {
	return func(ctx context.Context, b *bench, s *server) error {
		p, idle := newPuller(s)
		defer idle()
		i := b.images[name]
		if _, err := p.pull(ctx, i); err != nil {
			return fmt.Errorf("first pull: %w", err)
		}
		if err := p.bytes(ctx, i.Repo+"/manifests/"+i.Digest.String(), i.Manifest); err != nil {
			return fmt.Errorf("first pull by digest: %w", err)
		}
		return nil
	}
}

// writeContent writes content to a file.
func writeContent(path string, p pattern) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for off := int64(0); off < p.size; {
		n, _ := p.ReadAt(buf[:min(int64(len(buf)), p.size-off)], off)
		if _, err := f.Write(buf[:n]); err != nil {
			return err
		}
		off += int64(n)
	}
	return f.Close()
}

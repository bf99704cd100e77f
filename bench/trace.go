package main

import (
	"container/list"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// traceSize is how much is pulled. Scale shrinks layers.
type traceSize struct {
	images, pulls int
	bound         int64 // bytes that the cache may keep
	scale         float64
}

const (
	traceClients = 4
	traceTTL     = 2 // seconds for which a tag is believed
	traceMoves   = 20
	traceEvery   = 15 * time.Minute // between two pulls, for those who look at the time of what they hold
	traceBatch   = 50               // pulls after which all rest, and those are told that it has passed
	traceRest    = time.Second      // at most, between two batches
)

// plan is a trace made in advance, the same in every run but another in each of
// its rounds: what to pull, and which tags move when.
type plan struct {
	versions [][]imageSpec // of each image, in order
	pulls    []int         // of image
	moves    map[int]int   // before this pull, this image's tag moves on
}

// newPlan makes images of a few layers. Some lowest layers are shared, by
// images of all ranks.
func newPlan(t traceSize, round int) plan {
	random := rand.New(rand.NewPCG(6, uint64(28+round)))
	seed := uint64(100_000)
	layer := func(median float64) layerSpec {
		seed++
		size := median * math.Exp(random.NormFloat64()) * t.scale
		return layerSpec{seed, int64(min(max(size, 1<<10), 8<<20))}
	}
	var bases []layerSpec
	for range 8 {
		bases = append(bases, layer(3<<20))
	}
	p := plan{moves: map[int]int{}}
	for i := range t.images {
		spec := imageSpec{Repo: fmt.Sprintf("library/trace-%d", i), Tag: "latest", Layers: []layerSpec{bases[random.IntN(len(bases))]}}
		for range 1 + random.IntN(3) {
			spec.Layers = append(spec.Layers, layer(700<<10))
		}
		p.versions = append(p.versions, []imageSpec{spec})
	}
	// Popularity falls as 1/rank; ranks are strewn over the images.
	ranks := random.Perm(t.images)
	weights, total := make([]float64, t.images), 0.0
	for i := range weights {
		total += 1 / float64(i+1)
		weights[i] = total
	}
	for range t.pulls {
		at, rank := random.Float64()*total, 0
		for weights[rank] < at {
			rank++
		}
		p.pulls = append(p.pulls, ranks[rank])
	}
	for m := range min(traceMoves, t.images) {
		i := ranks[m]
		last := p.versions[i][len(p.versions[i])-1]
		next := last
		next.Layers = append(append([]layerSpec(nil), last.Layers[:len(last.Layers)-1]...), layer(700<<10))
		p.versions[i] = append(p.versions[i], next)
		p.moves[(m+1)*t.pulls/(traceMoves+1)] = i
	}
	return p
}

// access is one object that was asked for.
type access struct {
	digest string
	size   int64
}

// tracer plays a plan.
type tracer struct {
	b     *bench
	s     *server
	plan  plan
	took  time.Duration    // without the rests between batches
	mu    sync.Mutex       // guards what follows
	known map[string]image // by digest of the manifest
	asked []access         // in order
	seen  map[string]bool  // manifests that were pulled
}

func pullTrace(t traceSize) func(context.Context, *bench, *server) (measures, error) {
	return func(ctx context.Context, b *bench, s *server) (measures, error) {
		tr := &tracer{b: b, s: s, plan: newPlan(t, s.round), known: map[string]image{}, seen: map[string]bool{}}
		for _, versions := range tr.plan.versions {
			if err := tr.push(ctx, versions[0]); err != nil {
				return nil, err
			}
		}
		disk := watchDisk(s)
		m, err := watched(ctx, b, s, func() (measures, int64, error) {
			delivered, err := tr.play(ctx)
			return measures{"pulls": float64(len(tr.plan.pulls))}, delivered, err
		})
		most := disk()
		if m == nil || err != nil {
			return nil, err
		}
		m["seconds"], m["disk"], m["bound"] = tr.took.Seconds(), float64(most), float64(t.bound)
		var bytes int64
		for _, a := range tr.asked {
			bytes += a.size
		}
		m["hit_bytes"] = 1 - m["up_bytes"]/float64(bytes)
		m["hit_objects"] = 1 - m["up_gets"]/float64(len(tr.asked))
		m["lru_objects"], m["lru_bytes"] = simulateLRU(tr.asked, t.bound)
		m["distinct"] = float64(len(tr.seen))
		m["quota"] = m["up_manifests"] / m["distinct"]
		return m, nil
	}
}

// push makes the hub's tag name this version.
func (t *tracer) push(ctx context.Context, spec imageSpec) error {
	i, err := t.b.hub.push(ctx, spec)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.known[i.Digest.String()] = i
	return nil
}

// play pulls all of the plan in batches. Between two of them every cache may come
// to rest, and then time passes for what it holds: what changes under the eyes
// of one that makes room counts as used. It tells how many bytes came.
func (t *tracer) play(ctx context.Context) (delivered int64, err error) {
	pulls := t.plan.pulls
	for len(pulls) > 0 && err == nil {
		batch := pulls[:min(traceBatch, len(pulls))]
		pulls = pulls[len(batch):]
		begin := time.Now()
		var got int64
		got, err = t.batch(ctx, batch, len(t.plan.pulls)-len(pulls)-len(batch))
		t.took += time.Since(begin)
		delivered += got
		if err == nil {
			t.rest(ctx)
		}
		if err == nil && t.s.age != nil {
			err = t.s.age(t.s, traceBatch*traceEvery)
		}
	}
	return delivered, errors.Join(err, ctx.Err())
}

// rest waits until what is kept has not changed for a quarter of a second, or a
// while. Who looks for what to put out changes nothing meanwhile.
func (t *tracer) rest(ctx context.Context) {
	const look = 50 * time.Millisecond
	last, same := int64(-1), 0
	for tries := 0; tries < int(traceRest/look) && same < 5; tries++ {
		now := t.s.allocated()
		if same++; now != last {
			last, same = now, 0
		}
		wait(ctx, look)
	}
}

// batch pulls some of the plan, of which first is the first.
func (t *tracer) batch(ctx context.Context, pulls []int, first int) (int64, error) {
	var next atomic.Int64
	delivered, failures := make([]int64, traceClients), make([]error, traceClients)
	var all sync.WaitGroup
	for n := range traceClients {
		all.Go(func() {
			p, idle := newPuller(t.s)
			defer idle()
			for failures[n] == nil && ctx.Err() == nil {
				at := int(next.Add(1)) - 1
				if at >= len(pulls) {
					return
				}
				var got int64
				got, failures[n] = t.turn(ctx, p, pulls[at], first+at)
				delivered[n] += got
			}
		})
	}
	all.Wait()
	var sum int64
	for _, n := range delivered {
		sum += n
	}
	return sum, firstOf(failures)
}

// turn is one pull, after the tag that moves before it has.
func (t *tracer) turn(ctx context.Context, p *puller, i, at int) (int64, error) {
	if moved, ok := t.plan.moves[at]; ok {
		if err := t.push(ctx, t.plan.versions[moved][1]); err != nil {
			return 0, err
		}
	}
	return t.pull(ctx, p, i)
}

func (t *tracer) note(digest string, size int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.asked = append(t.asked, access{digest, size})
}

// pull takes an image by tag, whichever version that names, one piece after the
// other.
func (t *tracer) pull(ctx context.Context, p *puller, n int) (int64, error) {
	spec := t.plan.versions[n][0]
	resp, err := p.get(ctx, spec.Repo+"/manifests/"+spec.Tag, "")
	if err != nil {
		return 0, fmt.Errorf("manifest of %s: %w", spec.Repo, err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		return 0, fmt.Errorf("manifest of %s: %w", spec.Repo, err)
	}
	sum := sha256.Sum256(body)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	t.mu.Lock()
	i, ok := t.known[digest]
	t.seen[digest] = true
	t.mu.Unlock()
	if !ok {
		return 0, fmt.Errorf("manifest of %s: %w", spec.Repo, errWrong)
	}
	t.note(digest, int64(len(body)))
	t.note(i.ConfigID.String(), int64(len(i.Config)))
	if err := p.bytes(ctx, i.Repo+"/blobs/"+i.ConfigID.String(), i.Config); err != nil {
		return 0, fmt.Errorf("config of %s: %w", spec.Repo, err)
	}
	for _, l := range i.Layers {
		t.note(l.Digest.String(), l.Size)
		if _, err := p.layer(ctx, i.Repo, l, time.Now()); err != nil {
			return 0, fmt.Errorf("%s: %w", spec.Repo, err)
		}
	}
	return i.size(), nil
}

// simulateLRU is what a cache would hit that keeps bound bytes, those used last,
// and puts nothing out but to make room.
func simulateLRU(asked []access, bound int64) (objects, bytes float64) {
	order, held := list.New(), map[string]*list.Element{}
	var kept, all, hitBytes int64
	hits := 0
	for _, a := range asked {
		all += a.size
		if e := held[a.digest]; e != nil {
			order.MoveToFront(e)
			hits++
			hitBytes += a.size
			continue
		}
		if a.size > bound {
			continue
		}
		for kept+a.size > bound {
			last := order.Back()
			out := order.Remove(last).(access)
			delete(held, out.digest)
			kept -= out.size
		}
		held[a.digest] = order.PushFront(a)
		kept += a.size
	}
	if all == 0 {
		return 0, 0
	}
	return float64(hits) / float64(len(asked)), float64(hitBytes) / float64(all)
}

// watchDisk looks at what a server keeps until it is asked for the most bytes
// that were allocated for it.
func watchDisk(s *server) (most func() int64) {
	done, result := make(chan struct{}), make(chan int64)
	go func() {
		highest := int64(0)
		look := time.NewTicker(100 * time.Millisecond)
		defer look.Stop()
		for {
			highest = max(highest, s.allocated())
			select {
			case <-look.C:
			case <-done:
				result <- max(highest, s.allocated())
				return
			}
		}
	}()
	return func() int64 {
		close(done)
		return <-result
	}
}

// allocated is what a server keeps, in blocks, but for the log that we make of
// it. A file system of its own tells what there is at one moment; a walk finds
// what is put out before it passes and what comes after, as if both were there
// at once.
func (s *server) allocated() int64 {
	var info unix.Statfs_t
	if s.disk && unix.Statfs(s.data, &info) == nil {
		return int64(info.Blocks-info.Bfree)*info.Bsize - blocks(filepath.Join(s.data, "log"))
	}
	return walked(s.data) - blocks(filepath.Join(s.data, "log"))
}

// blocks is what a file takes.
func blocks(path string) int64 {
	var stat unix.Stat_t
	if unix.Lstat(path, &stat) != nil { // it went while we looked
		return 0
	}
	return stat.Blocks * 512
}

// walked is the size of a directory.
func walked(dir string) int64 {
	var n int64
	_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, _ error) error {
		n += blocks(path)
		return nil
	})
	return n
}

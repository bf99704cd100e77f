package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// watched runs f and adds to its measures what the server used meanwhile:
// memory, and CPU for each GB that was delivered.
func watched(ctx context.Context, b *bench, s *server, f func() (measures, int64, error)) (measures, error) {
	w := s.watch()
	m, delivered, err := f()
	u := w.end()
	if m == nil {
		return nil, err
	}
	if s.roles&direct == 0 {
		m["anon"], m["rss"] = float64(u.anonymous), float64(u.resident)
		if delivered > 0 {
			m["cpu_gb"] = u.cpu.Seconds() / (float64(delivered) / 1e9)
		}
	}
	if s.roles&(caches|direct) != 0 {
		c, countErr := b.hub.settled(context.WithoutCancel(ctx)) // also of a round that ran out of time
		if countErr != nil {
			return m, errors.Join(err, countErr)
		}
		m["up_bytes"], m["up_manifests"], m["up_gets"] = float64(c.Bytes), float64(c.Manifests), float64(c.Manifests+c.Blobs)
		if m["ideal"] > 0 {
			m["up_ratio"] = m["up_bytes"] / m["ideal"]
		}
	}
	return m, err
}

// pullOnce is one cold pull.
func pullOnce(name string) func(context.Context, *bench, *server) (measures, error) {
	return func(ctx context.Context, b *bench, s *server) (measures, error) {
		i := b.images[name]
		return watched(ctx, b, s, func() (measures, int64, error) {
			p, idle := newPuller(s)
			defer idle()
			got, err := p.pull(ctx, i)
			if err != nil {
				return nil, 0, err
			}
			return measures{"seconds": got.all.Seconds(), "first": got.first.Seconds(), "ideal": float64(i.size()), "ideal_gets": float64(2 + len(i.Layers))}, i.size(), nil
		})
	}
}

// pullHerd is many cold pulls at once.
func pullHerd(name string, clients int) func(context.Context, *bench, *server) (measures, error) {
	return func(ctx context.Context, b *bench, s *server) (measures, error) {
		i := b.images[name]
		return watched(ctx, b, s, func() (measures, int64, error) {
			firsts, alls := make([]time.Duration, clients), make([]time.Duration, clients)
			failures := make([]error, clients)
			var all sync.WaitGroup
			for n := range clients {
				all.Go(func() {
					p, idle := newPuller(s)
					defer idle()
					got, err := p.pull(ctx, i)
					firsts[n], alls[n], failures[n] = got.first, got.all, err
				})
			}
			all.Wait()
			if err := firstOf(failures); err != nil {
				return nil, 0, err
			}
			return measures{
				"first_p50": quantile(firsts, 0.5).Seconds(), "first_max": quantile(firsts, 1).Seconds(),
				"p50": quantile(alls, 0.5).Seconds(), "p95": quantile(alls, 0.95).Seconds(), "max": quantile(alls, 1).Seconds(), "ideal": float64(i.size()), "ideal_gets": float64(2 + len(i.Layers)),
			}, int64(clients) * i.size(), nil
		})
	}
}

// firstOf says how many failed, and why the first did.
func firstOf(failures []error) error {
	n, first := 0, error(nil)
	for _, err := range failures {
		if err != nil {
			n++
			if first == nil {
				first = err
			}
		}
	}
	if n == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d clients failed: %w", n, len(failures), first)
}

// piece is what lazy pullers ask for at a time.
const piece = 256 << 10

// window is what an isolated read may cost upstream beside what it asks for.
const window = 1 << 20

// readPieces reads a blob as lazy pullers do: pieces from all over it, and then
// a stretch in order.
func readPieces(name string, isolated int, run int64) func(context.Context, *bench, *server) (measures, error) {
	return func(ctx context.Context, b *bench, s *server) (measures, error) {
		i := b.images[name]
		layer := i.Layers[0]
		return watched(ctx, b, s, func() (measures, int64, error) {
			p, idle := newPuller(s)
			defer idle()
			if err := p.bytes(ctx, i.Repo+"/manifests/"+i.Tag, i.Manifest); err != nil {
				return nil, 0, fmt.Errorf("manifest: %w", err)
			}
			offsets := pieceOffsets(layer.Size, isolated, run)
			var firsts []time.Duration
			var err error
			for _, at := range offsets {
				var first time.Duration
				if first, err = p.piece(ctx, i.Repo, layer, at, piece); err != nil {
					err = fmt.Errorf("read %d of %d: %w", len(firsts)+1, len(offsets), err)
					break
				}
				firsts = append(firsts, first)
			}
			if len(firsts) == 0 {
				return nil, 0, err
			}
			asked := int64(len(firsts)) * piece
			alone := firsts[:min(len(firsts), isolated)]
			return measures{
				"ideal": float64(asked), "isolated": float64(len(alone)), "reads": float64(len(firsts)),
				"first_p50": quantile(alone, 0.5).Seconds(), "first_max": quantile(alone, 1).Seconds(),
			}, asked, err
		})
	}
}

// pieceOffsets are where to read: no two isolated pieces are near each other,
// and the run keeps out of their way, in the last part.
func pieceOffsets(size int64, isolated int, run int64) []int64 {
	run = min(run, size/4)
	begin := (size - run) / piece * piece
	var offsets []int64
	stride := (begin - window) / int64(isolated)
	for n := range isolated { // back and forth: reading ahead does not help
		at := n / 2
		if n%2 == 1 {
			at = isolated - 1 - n/2
		}
		offsets = append(offsets, int64(at)*stride)
	}
	for at := begin; at+piece <= begin+run; at += piece {
		offsets = append(offsets, at)
	}
	return offsets
}

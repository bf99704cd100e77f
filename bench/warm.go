package main

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// readBlob is the throughput of a held blob. Bytes count as they come: at many
// connections no blob is whole when time is up.
func readBlob(name string, clients int, d time.Duration) func(context.Context, *bench, *server) (measures, error) {
	return func(ctx context.Context, b *bench, s *server) (measures, error) {
		i := b.images[name]
		layer := i.Layers[0]
		question := request(s.addr, s.path(i.Repo+"/blobs/"+layer.Digest.String()))
		reading, cancel := context.WithCancel(ctx)
		defer cancel()
		var received atomic.Int64
		failures := make([]error, clients)
		var all sync.WaitGroup
		for n := range clients {
			all.Go(func() {
				err := readOn(reading, s, question, layer.Size, &received)
				if reading.Err() == nil {
					failures[n] = err
					cancel()
				}
			})
		}
		wait(reading, settle)
		w, begin, before := s.watch(), time.Now(), received.Load()
		wait(reading, d)
		took, got := time.Since(begin), received.Load()-before
		u := w.end()
		cancel()
		all.Wait()
		if err := firstOf(failures); err != nil {
			return nil, err
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		gigabytes := float64(got) / 1e9
		return measures{
			"gbs": gigabytes / took.Seconds(), "cpu_gb": u.cpu.Seconds() / gigabytes,
			"anon": float64(u.anonymous), "rss": float64(u.resident),
		}, nil
	}
}

// readOn reads a blob again and again until ctx ends.
func readOn(ctx context.Context, s *server, question []byte, size int64, received *atomic.Int64) error {
	w, err := newWire(ctx, s.dial, s.addr, 256<<10)
	if err != nil {
		return err
	}
	defer w.drop()
	w.received = received
	stop := context.AfterFunc(ctx, func() { w.Close() })
	defer stop()
	for ctx.Err() == nil {
		if err := w.ask(question, size); err != nil {
			return err
		}
	}
	return nil
}

// wait waits, or until ctx ends.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// askManifest is how many requests for a held manifest are answered.
func askManifest(name, by string, keep bool, clients int, d time.Duration) func(context.Context, *bench, *server) (measures, error) {
	return func(ctx context.Context, b *bench, s *server) (measures, error) {
		i := b.images[name]
		reference := i.Tag
		if by == "digest" {
			reference = i.Digest.String()
		}
		var last []string
		if !keep {
			last = []string{"Connection: close"}
		}
		h := &hammer{
			addr: s.addr, question: request(s.addr, s.path(i.Repo+"/manifests/"+reference), last...), size: int64(len(i.Manifest)),
			clients: clients, keep: keep,
		}
		got, u, err := h.run(ctx, s, d)
		if err != nil {
			return nil, err
		}
		return measures{
			"rps": float64(got.requests) / got.took.Seconds(),
			"p50": quantile(got.delays, 0.5).Seconds(), "p99": quantile(got.delays, 0.99).Seconds(),
			"cpu_k": u.cpu.Seconds() / float64(got.requests) * 1000,
			"anon":  float64(u.anonymous), "rss": float64(u.resident),
		}, nil
	}
}

const (
	farName  = "far-blob"
	farTitle = "Warm blob, one far client"
	farAway  = 10 * time.Millisecond // one way
	farRate  = 100_000_000           // bytes per second
)

// pulledNearby lets a cache pull an image before it is started where the hub
// cannot be reached.
func pulledNearby(name string) seeder {
	return func(ctx context.Context, b *bench, r rival, s site) error {
		if r.roles&caches == 0 {
			return nil
		}
		s.link = nil
		var err error
		if s.Listen, err = freePort(); err != nil {
			return err
		}
		p, err := r.start(b, s)
		if err != nil {
			return err
		}
		defer p.stop()
		if err := p.awaitHTTP(ctx, dialLocal, "http://"+s.Listen+"/v2/"); err != nil {
			return err
		}
		return pullFirst(name)(ctx, b, &server{process: p, rival: r, addr: s.Listen, dial: dialLocal})
	}
}

// readFar reads a held blob once, over a connection of its own.
func readFar(name string) func(context.Context, *bench, *server) (measures, error) {
	return func(ctx context.Context, b *bench, s *server) (measures, error) {
		i := b.images[name]
		layer := i.Layers[0]
		u := s.watch()
		begin := time.Now()
		w, err := newWire(ctx, s.dial, s.addr, 256<<10)
		if err == nil {
			stop := context.AfterFunc(ctx, func() { w.Close() })
			err = w.ask(request(s.addr, s.path(i.Repo+"/blobs/"+layer.Digest.String()), "Connection: close"), layer.Size)
			stop()
			w.Close()
		}
		took, used := time.Since(begin), u.end()
		if err != nil {
			return nil, err
		}
		return measures{
			"mbs": float64(layer.Size) / 1e6 / took.Seconds(), "cpu_gb": used.cpu.Seconds() / (float64(layer.Size) / 1e9),
			"anon": float64(used.anonymous), "rss": float64(used.resident),
		}, nil
	}
}

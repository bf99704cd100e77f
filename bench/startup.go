package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// heldDir is where the many blobs lie that several starts find.
func (b *bench) heldDir(n int) string { return filepath.Join(b.dir, fmt.Sprintf("held-%d", n)) }

// held lets our data directory be that one.
func held(n int) seeder {
	return func(_ context.Context, b *bench, _ rival, s site) error {
		return os.Symlink(b.heldDir(n), filepath.Join(s.Data, "data"))
	}
}

// holdBlobs fills a data directory with small blobs, in the documented layout,
// as copying another one does.
func holdBlobs(n int) func(context.Context, *bench) error {
	return func(ctx context.Context, b *bench) error {
		data := b.heldDir(n)
		blobs, markers := filepath.Join(data, "blobs", "sha256"), filepath.Join(data, "repos", upstreamName, "library", "many", "_content", "sha256")
		for i := range 256 {
			shard := fmt.Sprintf("%02x", i)
			for _, dir := range []string{blobs, markers} {
				if err := os.MkdirAll(filepath.Join(dir, shard), 0o755); err != nil {
					return err
				}
			}
		}
		if err := os.WriteFile(filepath.Join(data, "VERSION"), []byte("1\n"), 0o644); err != nil {
			return err
		}
		for i := range n {
			content := []byte("small blob " + strconv.Itoa(i))
			sum := sha256.Sum256(content)
			name := hex.EncodeToString(sum[:])
			marker := fmt.Appendf(nil, `{"size":%d,"state":"proven"}`, len(content))
			if err := os.WriteFile(filepath.Join(blobs, name[:2], name), content, 0o444); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(markers, name[:2], name), marker, 0o644); err != nil {
				return err
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
		return nil
	}
}

// started tells how long the start took, and what it cost until the program came
// to rest. The directory's entries are in the kernel's memory: they were just
// written.
func started(short bool) func(context.Context, *bench, *server) (measures, error) {
	least := 5 * time.Second
	if short {
		least = 200 * time.Millisecond
	}
	return func(ctx context.Context, _ *bench, s *server) (measures, error) {
		w := s.watch()
		wait(ctx, least)
		s.awaitRest(ctx, min(time.Second, least))
		u := w.end()
		total := used(s.pids())
		return measures{
			"ready": s.ready.Seconds(), "cpu": total.cpu.Seconds(), "anon": float64(u.anonymous), "rss": float64(u.resident),
		}, ctx.Err()
	}
}

// awaitRest waits until a process has taken next to no processor time for d: a
// hundredth of it, which its clocks may tick in.
func (p *process) awaitRest(ctx context.Context, d time.Duration) {
	for before := used(p.pids()).cpu; ctx.Err() == nil; {
		wait(ctx, d)
		now := used(p.pids()).cpu
		if now-before <= d/100 {
			return
		}
		before = now
	}
}

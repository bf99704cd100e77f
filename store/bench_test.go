package store

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"entrepot/oci"
)

var benchBlobs = flag.Int("bench.blobs", 20_000, "blobs in the data directory of the start-up and sweep benchmarks; 1,000,000 take some minutes to make")

// BenchmarkBlobHit opens, reads and closes held content: from the memory tier,
// and from a file.
func BenchmarkBlobHit(b *testing.B) {
	for _, size := range []int{4 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			d := openBench(b, b.TempDir(), Config{Memory: 16 << 20})
			dg := put(b, d, 1, size, "docker.io", 0)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				c, err := d.Open(b.Context(), dg, int64(size))
				if err != nil {
					b.Fatal(err)
				}
				s, err := c.Section(0, c.Size())
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.Copy(io.Discard, s); err != nil || n != int64(size) {
					b.Fatal(n, err)
				}
				_ = s.Close()
			}
		})
	}
}

// BenchmarkReadersOfOneFill has 100 readers follow one fill of 64 MiB.
func BenchmarkReadersOfOneFill(b *testing.B) {
	const size, readers = 64 << 20, 100
	blob := content(1, size)
	dg := oci.Sum(blob)
	d := openBench(b, b.TempDir(), Config{})
	b.SetBytes(size * readers)
	b.ReportAllocs()
	for b.Loop() {
		f, err := d.Fill(dg, busybox)
		if err != nil {
			b.Fatal(err)
		}
		if err := f.SetSize(size); err != nil {
			b.Fatal(err)
		}
		var work sync.WaitGroup
		for range readers {
			r := f.Open(b.Context(), 0, -1)
			work.Go(func() {
				defer r.Close()
				if n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, make([]byte, 64<<10)); n != size || err != nil {
					b.Error(n, err)
				}
			})
		}
		for at := 0; at < size; at += step {
			if _, err := f.WriteAt(blob[at:at+step], int64(at)); err != nil {
				b.Fatal(err)
			}
		}
		if err := errors.Join(f.Follow(b.Context()), f.Commit(), f.Close()); err != nil {
			b.Fatal(err)
		}
		work.Wait()
		if _, err := d.remove(blobName(dg)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkEvictUnderLoad keeps small blobs in a store that is always full,
// beside readers, and tells how long the slowest one took.
func BenchmarkEvictUnderLoad(b *testing.B) {
	d := openBench(b, b.TempDir(), Config{Budget: 16 << 20, Memory: 1 << 20})
	ctx, cancel := context.WithCancel(b.Context())
	var readers sync.WaitGroup
	var latest atomic.Pointer[oci.Digest]
	for range 4 {
		readers.Go(func() {
			for ctx.Err() == nil {
				if dg := latest.Load(); dg != nil {
					if c, err := d.Open(ctx, *dg, -1); err == nil {
						_ = c.Close()
					}
				}
			}
		})
	}
	blob := content(1, 300_000)
	b.SetBytes(int64(len(blob)))
	var slowest time.Duration
	for i := 0; b.Loop(); i++ {
		binary.LittleEndian.PutUint64(blob, uint64(i))
		dg := oci.Sum(blob)
		began := time.Now()
		if err := d.PutFrom(dg, blob, "docker.io"); err != nil {
			b.Fatal(err)
		}
		slowest = max(slowest, time.Since(began))
		latest.Store(&dg)
	}
	cancel()
	readers.Wait()
	b.ReportMetric(float64(slowest.Microseconds())/1000, "slowest-ms")
	b.ReportMetric(float64(d.Stats().Evicted), "evicted")
}

// BenchmarkStartUp opens a data directory of many blobs: until the first answer,
// and until everything is counted.
func BenchmarkStartUp(b *testing.B) {
	dir := manyBlobs(b, *benchBlobs)
	var answered, counted time.Duration
	n := 0
	for b.Loop() {
		began := time.Now()
		d := openBench(b, dir, Config{Budget: 1 << 50})
		if _, err := d.Read(b.Context(), manyBlob(1), 1<<20); err != nil {
			b.Fatal(err)
		}
		answered += time.Since(began)
		<-d.counted
		counted += time.Since(began)
		n++
		if err := d.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(answered.Microseconds())/1000/float64(n), "answer-ms")
	b.ReportMetric(float64(counted.Microseconds())/1000/float64(n), "counted-ms")
	b.ReportMetric(float64(*benchBlobs), "blobs")
}

// BenchmarkSweep finds what to evict among many blobs, and tells what that and
// holding them takes in memory.
func BenchmarkSweep(b *testing.B) {
	dir := manyBlobs(b, *benchBlobs)
	before := heapInUse()
	d := openBench(b, dir, Config{Budget: 1 << 50})
	<-d.counted
	held := heapInUse() - before
	for b.Loop() {
		found, err := d.candidates(b.Context(), aims{bytes: 1 << 40, count: maxCandidates}, nil)
		if err != nil || len(found) == 0 {
			b.Fatal(len(found), err)
		}
		runtime.KeepAlive(found)
	}
	b.ReportMetric(max(0, float64(held))/float64(*benchBlobs), "held-B/blob")
	b.ReportMetric(float64(*benchBlobs), "blobs")
}

func heapInUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func openBench(b testing.TB, dir string, cfg Config) *Disk {
	b.Helper()
	cfg.Dir, cfg.LockWait = dir, time.Nanosecond
	d, err := Open(b.Context(), cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = d.Close() })
	return d
}

// manyBlobs makes a data directory with n small blobs, and keeps it for the
// benchmarks of one run.
func manyBlobs(b *testing.B, n int) string {
	b.Helper()
	many.Do(func() {
		many.dir, many.err = os.MkdirTemp("", "many-blobs") //nolint:usetesting // it outlives the first benchmark that wants it
		if many.err == nil {
			many.err = makeBlobs(many.dir, n)
		}
	})
	if many.err != nil {
		b.Fatal(many.err)
	}
	return many.dir
}

var many struct {
	sync.Once
	dir string
	err error
}

func manyContent(i int) []byte { return binary.LittleEndian.AppendUint64(nil, uint64(i)) }

func manyBlob(i int) oci.Digest { return oci.Sum(manyContent(i)) }

func makeBlobs(dir string, n int) error {
	for i := range 256 {
		if err := os.MkdirAll(filepath.Join(dir, blobsDir, "sha256", fmt.Sprintf("%02x", i)), 0o755); err != nil {
			return err
		}
	}
	now := time.Now()
	for i := range n {
		b := manyContent(i)
		sum := sha256.Sum256(b)
		name := fmt.Sprintf("%s/%s/sha256/%02x/%x", dir, blobsDir, sum[0], sum)
		if err := os.WriteFile(name, b, 0o444); err != nil {
			return err
		}
		stamp := hint{owner: 7, uses: 1}.stamp(now.Add(-time.Duration(sum[1]) * time.Hour))
		if err := os.Chtimes(name, stamp, stamp); err != nil {
			return err
		}
	}
	return nil
}

package cache

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"entrepot/oci"
	"entrepot/store"
)

// benchCache makes a cache; the caller may end it before the benchmark does.
func benchCache(b *testing.B, s oci.Source) (c *Cache, end func()) {
	b.Helper()
	disk, err := store.Open(b.Context(), store.Config{Dir: b.TempDir(), Memory: 16 << 20})
	if err != nil {
		b.Fatal(err)
	}
	c = New(disk, s, Config{TTL: time.Hour})
	end = sync.OnceFunc(func() {
		if err := errors.Join(c.Close(context.Background()), disk.Close()); err != nil {
			b.Error(err)
		}
	})
	b.Cleanup(end)
	return c, end
}

// BenchmarkManifestHit answers a fresh tag with its manifest.
func BenchmarkManifestHit(b *testing.B) {
	s := newSource()
	s.pushImage(alpine, "latest", pattern(1, 1000))
	c, _ := benchCache(b, s)
	b.ReportAllocs()
	for b.Loop() {
		res, _, err := c.Resolve(b.Context(), alpine, "latest", oci.Ask{})
		if err != nil {
			b.Fatal(err)
		}
		if _, out, err := c.Manifest(b.Context(), alpine, res.Digest, oci.Ask{}); err != nil || out.Cache != oci.Hit && out.Cache != oci.Miss {
			b.Fatal(out, err)
		}
	}
	if n := len(s.questions()); n > 2 {
		b.Errorf("upstream was asked %d times", n)
	}
}

// BenchmarkBlobHit makes a handle, opens it and reads 64 KiB.
func BenchmarkBlobHit(b *testing.B) {
	s := newSource()
	d := s.pushBlob(alpine, pattern(1, 64<<10))
	c, _ := benchCache(b, s)
	buf := make([]byte, 64<<10)
	b.SetBytes(64 << 10)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := drain(b, c, d, buf); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReadersOfOneFill has 100 readers take one cold blob of 16 MiB.
func BenchmarkReadersOfOneFill(b *testing.B) {
	const readers, size = 100, 16 << 20
	s := newSource()
	content := pattern(1, size)
	b.SetBytes(readers * size)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		content[0], content[1] = byte(i), byte(i>>8) // another blob
		d := s.pushBlob(alpine, bytes.Clone(content))
		c, end := benchCache(b, s)
		var all sync.WaitGroup
		for range readers {
			all.Go(func() {
				if n, err := drain(b, c, d, make([]byte, 64<<10)); n != size || err != nil {
					b.Error(n, err)
				}
			})
		}
		all.Wait()
		end()
	}
	if moved := s.bytesMoved(); moved != int64(len(s.blobs))*size {
		b.Errorf("%d bytes moved for %d blobs", moved, len(s.blobs))
	}
}

// drain reads a blob to its end as a connection does that has no kernel to send
// files for it.
func drain(b *testing.B, c *Cache, d oci.Digest, buf []byte) (int64, error) {
	b.Helper()
	blob, err := c.Blob(b.Context(), alpine, d, oci.Ask{})
	if err != nil {
		return 0, err
	}
	r, err := blob.Open(b.Context(), 0, -1)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	return io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, buf)
}

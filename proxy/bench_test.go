package proxy

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
	"strconv"
	"strings"
	"testing"

	"entrepot/oci"
)

// held is the fastest Source there could be: what is measured is the rest.
type held struct {
	manifest oci.Manifest
	blob     heldBlob
	oci.Source
}

func (s *held) Resolve(context.Context, oci.Repository, string, oci.Ask) (oci.Resolved, oci.Outcome, error) {
	return oci.Resolved{Descriptor: s.manifest.Descriptor}, oci.Outcome{Cache: oci.Hit, Why: "fresh"}, nil
}

func (s *held) Manifest(context.Context, oci.Repository, oci.Digest, oci.Ask) (oci.Manifest, oci.Outcome, error) {
	return s.manifest, oci.Outcome{Cache: oci.Hit, Why: "held"}, nil
}

func (s *held) Blob(context.Context, oci.Repository, oci.Digest, oci.Ask) (oci.Blob, error) {
	return &s.blob, nil
}

type heldBlob struct {
	desc    oci.Descriptor
	content []byte
	file    string // instead of content
}

func (b *heldBlob) Descriptor() oci.Descriptor { return b.desc }

func (b *heldBlob) Stat(context.Context) (oci.Descriptor, oci.Outcome, error) {
	return b.desc, oci.Outcome{Cache: oci.Hit}, nil
}

func (b *heldBlob) Open(_ context.Context, offset, length int64) (oci.Reader, error) {
	if b.file == "" {
		return &heldReader{bytes.NewReader(b.content[offset:]), io.NopCloser(nil), b.desc.Size}, nil
	}
	f, err := os.Open(b.file)
	if err != nil {
		return nil, err
	}
	return &heldReader{f, f, b.desc.Size}, nil
}

type heldReader struct {
	io.Reader
	io.Closer
	size int64
}

func (r *heldReader) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, &io.LimitedReader{R: r.Reader, N: r.size})
}
func (r *heldReader) Offset() int64        { return 0 }
func (r *heldReader) Size() int64          { return r.size }
func (r *heldReader) Outcome() oci.Outcome { return oci.Outcome{Cache: oci.Hit, Why: "held"} }

func newHeld(content []byte) *held {
	return &held{
		manifest: oci.Manifest{Descriptor: oci.Descriptor{MediaType: manifestType, Digest: manifestDigest, Size: int64(len(helloManifest))}, Content: helloManifest},
		blob:     heldBlob{desc: oci.Descriptor{Digest: oci.Sum(content), Size: int64(len(content))}, content: content},
	}
}

// bare is what net/http itself costs: the same answer, without asking anything.
func bare(contentType, digest string, body []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		h["Content-Type"] = []string{contentType}
		h["Docker-Content-Digest"] = []string{digest}
		h["Content-Length"] = []string{strconv.Itoa(len(body))}
		h["Etag"] = []string{`"` + digest + `"`}
		h["X-Entrepot-Cache"] = []string{"hit"}
		w.WriteHeader(http.StatusOK)
		_, _ = w.Write(body)
	})
}

// BenchmarkServe asks over one kept TCP connection. Compare each row with its
// bare twin.
func BenchmarkServe(b *testing.B) {
	config := bytes.Repeat([]byte("c"), 2<<10)
	src := newHeld(config)
	observed := 0
	h := New(src, Config{Names: testNames(), Observe: func(_ context.Context, r Record) { observed += r.Status }})
	blobPath := "/v2/library/hello/blobs/" + src.blob.desc.Digest.String()
	for _, row := range []struct {
		name, method, path string
		handler            http.Handler
	}{
		{"tag", "GET", byTag(), h},
		{"tag/ns", "GET", byTag() + "?ns=docker.io", h},
		{"tag/head", "HEAD", byTag(), h},
		{"digest", "GET", byDigest(), h},
		{"manifest/bare", "GET", byDigest(), bare(manifestType, manifestDigest.String(), helloManifest)},
		{"blob", "GET", blobPath, h},
		{"blob/bare", "GET", blobPath, bare(octetStream, src.blob.desc.Digest.String(), config)},
	} {
		b.Run(row.name, func(b *testing.B) {
			srv := httptest.NewServer(row.handler)
			defer srv.Close()
			conn, err := net.Dial("tcp", strings.TrimPrefix(srv.URL, "http://"))
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			request := []byte(row.method + " " + row.path + " HTTP/1.1\r\nHost: cache.example\r\nUser-Agent: containerd/2.4.2\r\nAccept: */*\r\n\r\n")
			size := answerSize(b, conn, row.method, request)
			answer := make([]byte, size)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := conn.Write(request); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(conn, answer); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// answerSize asks once, to know how much each answer is.
func answerSize(b *testing.B, conn net.Conn, method string, request []byte) int {
	b.Helper()
	if _, err := conn.Write(request); err != nil {
		b.Fatal(err)
	}
	var seen bytes.Buffer
	resp, err := http.ReadResponse(bufio.NewReader(io.TeeReader(conn, &seen)), &http.Request{Method: method})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != 200 {
		b.Fatal(resp.Status, err)
	}
	return seen.Len()
}

// BenchmarkHandler is our own work alone: no server, no socket.
func BenchmarkHandler(b *testing.B) {
	src := newHeld(bytes.Repeat([]byte("c"), 2<<10))
	observed := 0
	h := New(src, Config{Names: testNames(), Observe: func(_ context.Context, r Record) { observed += r.Status }})
	for name, path := range map[string]string{"tag": byTag(), "digest": byDigest(), "blob": "/v2/library/hello/blobs/" + src.blob.desc.Digest.String()} {
		b.Run(name, func(b *testing.B) {
			r := httptest.NewRequest("GET", path, nil)
			w := &sink{header: http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				clear(w.header)
				h.ServeHTTP(w, r)
			}
		})
	}
}

type sink struct{ header http.Header }

func (s *sink) Header() http.Header         { return s.header }
func (s *sink) Write(p []byte) (int, error) { return len(p), nil }
func (s *sink) WriteHeader(int)             {}
func (s *sink) Flush()                      {}

// BenchmarkBigBlob sends 256 MiB: a file, the same to a client that is known to
// be near, through a copy loop, and by http.ServeContent.
func BenchmarkBigBlob(b *testing.B) {
	const size = 256 << 20
	name := filepath.Join(b.TempDir(), "blob")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		b.Fatal(err)
	}
	if err := os.Truncate(name, size); err != nil {
		b.Fatal(err)
	}
	src := newHeld(nil)
	src.blob.desc.Size, src.blob.file = size, name
	h := New(src, Config{Names: testNames()})
	serveContent := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(w, r, name)
	})
	for _, row := range []struct {
		name    string
		handler http.Handler
	}{{"file", h}, {"near", h}, {"loop", New(looping{src}, Config{Names: testNames()})}, {"servecontent", serveContent}} {
		b.Run(row.name, func(b *testing.B) {
			srv := httptest.NewUnstartedServer(row.handler)
			if row.name == "near" {
				srv.Config.ConnContext = ConnContext
			}
			srv.Start()
			defer srv.Close()
			b.SetBytes(size)
			buf := make([]byte, 256<<10)
			for b.Loop() {
				resp, err := srv.Client().Get(srv.URL + "/v2/library/hello/blobs/" + emptyDigest.String())
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, buf); n != size || err != nil {
					b.Fatal(n, err)
				}
				resp.Body.Close()
			}
		})
	}
}

// looping hides the file's way to write itself.
type looping struct{ *held }

func (l looping) Blob(context.Context, oci.Repository, oci.Digest, oci.Ask) (oci.Blob, error) {
	return loopingBlob{&l.blob}, nil
}

type loopingBlob struct{ *heldBlob }

func (b loopingBlob) Open(ctx context.Context, offset, length int64) (oci.Reader, error) {
	rd, err := b.heldBlob.Open(ctx, offset, length)
	return struct{ oci.Reader }{rd}, err
}

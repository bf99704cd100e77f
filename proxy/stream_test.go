package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/oci"
)

// A feed is a reader whose every piece the test hands out.
type feed struct {
	*stretch
	ctx    context.Context
	pieces <-chan string // closed: the end
	fail   error         // the end, if it is to be another
}

func (f *feed) Read(p []byte) (int, error) {
	select {
	case s, ok := <-f.pieces:
		if ok {
			return copy(p, s), nil
		}
		if f.fail != nil {
			return 0, f.fail
		}
		return 0, io.EOF
	case <-f.ctx.Done():
		return 0, f.ctx.Err()
	}
}

// feedWriter is a feed that writes itself, as a fill's reader does.
type feedWriter struct{ *feed }

func (f feedWriter) WriteTo(w io.Writer) (n int64, err error) {
	buf := make([]byte, 100)
	for {
		m, err := f.Read(buf)
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		m, err = w.Write(buf[:m])
		n += int64(m)
		if err != nil {
			return n, err
		}
	}
}

// fed makes g serve the hello blob from pieces. It returns their channel.
func fed(g *registry, writes bool, fail error) chan string {
	pieces := make(chan string)
	g.outcome = oci.Outcome{Cache: oci.Joined}
	g.reader = func(ctx context.Context, r *stretch) oci.Reader {
		f := &feed{r, ctx, pieces, fail}
		if writes {
			return feedWriter{f}
		}
		return f
	}
	return pieces
}

// Design section 2, idea 1: a byte that landed is a byte at the client.
func TestReadingAlongSeesEachByteAtOnce(t *testing.T) {
	for _, writes := range []bool{false, true} {
		for _, rng := range []string{"", "bytes=0-"} {
			g := helloRegistry(t)
			pieces := fed(g, writes, nil)
			d := newDoor(t, g, Config{})
			resp, err := d.start(t.Context(), theBlob(), "Range", rng) // returns although no byte is there yet
			if err != nil {
				t.Fatal(err)
			}
			var one [1]byte
			for _, c := range []byte(helloBlob) {
				pieces <- string(c)
				if _, err := io.ReadFull(resp.Body, one[:]); err != nil || one[0] != c {
					t.Fatalf("writes %v, range %q: got %q %v, want %q", writes, rng, one, err, c)
				}
			}
			close(pieces)
			if n, err := resp.Body.Read(one[:]); n != 0 || err != io.EOF {
				t.Errorf("at the end: %d, %v", n, err)
			}
			resp.Body.Close()
		}
	}
}

// The second of two parts may come late: what precedes it must not wait.
func TestReadingAlongInSeveralParts(t *testing.T) {
	g := helloRegistry(t)
	wait := make(chan struct{})
	g.opened = func(offset, _ int64) {
		if offset == 5 {
			<-wait
		}
	}
	d := newDoor(t, g, Config{})
	resp, err := d.start(t.Context(), theBlob(), "Range", "bytes=0-1,5-6")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	seen := make([]byte, 0, 1000)
	for strings.Count(string(seen), "\r\n\r\n") < 2 {
		n, err := resp.Body.Read(seen[len(seen):cap(seen)])
		seen = seen[:len(seen)+n]
		if err != nil {
			t.Fatalf("after %q: %v", seen, err)
		}
	}
	if !strings.Contains(string(seen), "\r\n\r\n01\r\n--") {
		t.Errorf("got %q, want the first part", seen)
	}
	close(wait)
	if rest, err := io.ReadAll(resp.Body); err != nil || !strings.HasPrefix(string(rest), "56\r\n--") {
		t.Errorf("got %q, %v", rest, err)
	}
}

// Design section 9: after headers are out the only honest error is a cut.
func TestFailureAfterHeadersCutsTheConnection(t *testing.T) {
	broken := errors.New("upstream went away")
	unknown := func(int64) int64 { return -1 }
	for _, c := range []struct {
		name    string
		fail    error // nil: the reader just ends early
		rng     string
		unknown bool
	}{
		{"error in the whole", broken, "", false},
		{"short whole", nil, "", false},
		{"error in a range", broken, "bytes=0-7", false},
		{"short range", nil, "bytes=0-", false},
		{"error in chunks", broken, "", true},
		{"digest does not match", oci.Errorf(oci.BadUpstream, "content hashes to another"), "", false},
		{"EOF in disguise", io.ErrUnexpectedEOF, "", true},
	} {
		for _, writes := range []bool{false, true} {
			t.Run(c.name, func(t *testing.T) {
				g := helloRegistry(t)
				if c.unknown {
					g.readerSize, g.statSize = unknown, unknown
				}
				pieces := fed(g, writes, c.fail)
				d := newDoor(t, g, Config{})
				resp, err := d.start(t.Context(), theBlob(), "Range", c.rng)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				pieces <- "0123"
				close(pieces)
				body, err := io.ReadAll(resp.Body)
				if !errors.Is(err, io.ErrUnexpectedEOF) || string(body) != "0123" {
					t.Errorf("got %q and %v, want the four bytes and a cut", body, err)
				}
				rec := d.record()
				if rec.Err == nil || errors.Is(rec.Err, ErrClientGone) || rec.Bytes != 4 {
					t.Errorf("recorded %d bytes, %v", rec.Bytes, rec.Err)
				}
				if c.fail != nil && !errors.Is(rec.Err, c.fail) {
					t.Errorf("recorded %v, want %v", rec.Err, c.fail)
				}
			})
		}
	}
}

func TestSizeThatNobodyKnowsGoesOutInChunks(t *testing.T) {
	g := helloRegistry(t)
	unknown := func(int64) int64 { return -1 }
	g.hint, g.readerSize, g.statSize = unknown, unknown, unknown
	d := newDoor(t, g, Config{})
	got := d.do("GET", theBlob())
	if got.StatusCode != 200 || got.body != helloBlob || got.err != nil || got.ContentLength != -1 {
		t.Errorf("got %s %q %v, length %d", got.Status, got.body, got.err, got.ContentLength)
	}
	expectHeaders(t, got.Header, "Docker-Content-Digest", blobDigest.String())

	// HTTP/1.0 ends such a body by closing: a cut would look like the end.
	req := httptest.NewRequest("GET", theBlob(), nil)
	req.Proto, req.ProtoMinor = "HTTP/1.0", 0
	rec := httptest.NewRecorder()
	New(g, Config{Names: testNames()}).ServeHTTP(rec, req)
	if rec.Code != http.StatusBadGateway {
		t.Errorf("HTTP/1.0: got %d, want 502", rec.Code)
	}
}

// A file goes through the connection's own ReadFrom, whole or in part, alone or
// inside a limit, and a file that is too short is a cut.
func TestFilesAreSentWhole(t *testing.T) {
	content := bytes.Repeat([]byte("entrepot"), 400<<10) // 3.1 MiB: several pieces
	name := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, limited := range []bool{false, true} {
		g := helloRegistry(t)
		digest := g.repo("docker.io/library/hello").addBlob(content)
		g.reader = func(_ context.Context, r *stretch) oci.Reader { return &fileReader{r, name, limited} }
		for kind, d := range map[string]*door{"http/1.1": newDoor(t, g, Config{}), "http/2": newDoor2(t, g, Config{})} {
			path := "/v2/library/hello/blobs/" + digest.String()
			got := d.do("GET", path)
			if got.err != nil || got.body != string(content) {
				t.Errorf("%s, limited %v: got %d bytes, %v", kind, limited, len(got.body), got.err)
			}
			if rec := d.record(); rec.Bytes != int64(len(content)) || rec.Err != nil {
				t.Errorf("%s: recorded %d bytes, %v", kind, rec.Bytes, rec.Err)
			}
			got = d.do("GET", path, "Range", "bytes=1048570-1048585")
			if got.err != nil || got.body != string(content[1048570:1048586]) {
				t.Errorf("%s, limited %v: got %q, %v", kind, limited, got.body, got.err)
			}
			d.record()
		}
		if err := os.Truncate(name, 2<<20); err != nil {
			t.Fatal(err)
		}
		d := newDoor(t, g, Config{})
		got := d.do("GET", "/v2/library/hello/blobs/"+digest.String())
		if !errors.Is(got.err, io.ErrUnexpectedEOF) || len(got.body) != 2<<20 {
			t.Errorf("short file: got %d bytes and %v, want a cut", len(got.body), got.err)
		}
		if rec := d.record(); !errors.Is(rec.Err, io.ErrUnexpectedEOF) {
			t.Errorf("short file: recorded %v", rec.Err)
		}
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

type fileReader struct {
	*stretch
	name    string
	limited bool
}

func (f *fileReader) WriteTo(w io.Writer) (int64, error) {
	file, err := os.Open(f.name)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	if _, err := file.Seek(f.offset, io.SeekStart); err != nil {
		return 0, err
	}
	if !f.limited {
		return io.Copy(w, file) // beyond what was asked for, too
	}
	total := int64(0)
	for {
		n, err := io.Copy(w, io.LimitReader(file, 300<<10))
		total += n
		if n == 0 || err != nil {
			return total, err
		}
	}
}

// newDoor2 speaks HTTP/2.
func newDoor2(t testing.TB, src oci.Source, cfg Config) *door {
	t.Helper()
	d := &door{t: t, records: make(chan Record, 4096)}
	srv := httptest.NewUnstartedServer(d.handler(src, cfg))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	d.url, d.client = srv.URL, srv.Client()
	t.Cleanup(func() {
		srv.Close()
		d.count()
	})
	return d
}

// Over HTTP/2 a write deadline that passes resets the stream, even while nothing
// is being written: a slow source must not be taken for a slow client.
func TestHTTP2ReadsAlongASlowSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := helloRegistry(t)
		pieces := fed(g, false, errors.New("upstream went away"))
		d, done := newPipeDoorFor(t, g, Config{}, true)
		defer done()
		resp, err := d.start(t.Context(), theBlob())
		if err != nil {
			t.Fatal(err)
		}
		if resp.ProtoMajor != 2 {
			t.Fatal("not HTTP/2")
		}
		defer resp.Body.Close()
		var one [1]byte
		for _, c := range []byte("0123") {
			time.Sleep(10 * time.Minute) // synctest's clock
			pieces <- string(c)
			if _, err := io.ReadFull(resp.Body, one[:]); err != nil || one[0] != c {
				t.Fatalf("got %q %v, want %q", one, err, c)
			}
		}
		close(pieces)
		if _, err := io.ReadAll(resp.Body); err == nil {
			t.Error("a failed answer ended cleanly")
		}
		if got := d.do("GET", byTag()); got.StatusCode != 200 || got.body != string(helloManifest) {
			t.Errorf("manifest: got %s", got.Status)
		}
	})
}

func TestHTTP2ClientThatStopsReadingIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := helloRegistry(t)
		digest := g.repo("docker.io/library/hello").addBlob(make([]byte, 32<<20))
		d, done := newPipeDoorFor(t, g, Config{}, true)
		defer done()
		resp, err := d.start(t.Context(), "/v2/library/hello/blobs/"+digest.String())
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if rec := d.record(); rec.Err == nil || rec.Duration > 2*time.Minute {
			t.Errorf("recorded %v after %v", rec.Err, rec.Duration)
		}
	})
}

// Design section 9: never silence. Every question, each with a source that does
// not answer.
func TestMuteSourceIs504(t *testing.T) {
	for _, c := range []struct{ method, path, mute string }{
		{"GET", byTag(), "Resolve"},
		{"HEAD", byTag(), "Resolve"},
		{"GET", byTag(), "Manifest"},
		{"GET", byDigest(), "Manifest"},
		{"GET", theBlob(), "Blob"},
		{"GET", theBlob(), "Open"},
		{"HEAD", theBlob(), "Stat"},
		{"GET", "/v2/library/hello/tags/list", "Tags"},
		{"GET", "/v2/library/hello/referrers/" + manifestDigest.String(), "Referrers"},
		{"GET", "/v2/_catalog", "Repositories"},
	} {
		for _, derived := range []bool{false, true} {
			t.Run(c.method+" "+c.mute, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					g := helloRegistry(t)
					g.before = func(ctx context.Context, method string) error {
						if method != c.mute {
							return nil
						}
						if derived { // as a source with a timeout of its own
							var cancel context.CancelFunc
							ctx, cancel = context.WithTimeout(ctx, time.Hour)
							defer cancel()
						}
						<-ctx.Done()
						return ctx.Err()
					}
					d, done := newPipeDoor(t, g, Config{Catalog: g})
					defer done()
					start := time.Now()
					got := d.do(c.method, c.path)
					if wait := time.Since(start); wait != 15*time.Second {
						t.Errorf("answered after %v, want 15s", wait)
					}
					expectError(t, got, 504, "UNAVAILABLE")
					if text := got.body; c.method == "GET" && !strings.Contains(text, `no answer from upstream within 15s"`) {
						t.Errorf("the client reads %s, want what it waited for, and no words of Go's", text)
					}
					if rec := d.record(); rec.Status != 504 || oci.CodeOf(rec.Err) != oci.Timeout {
						t.Errorf("recorded %d %v", rec.Status, rec.Err)
					}
				})
			})
		}
	}
}

// The bound is one for all questions of a request, not one each.
func TestSlowQuestionsShareOneBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := helloRegistry(t)
		g.before = func(ctx context.Context, _ string) error {
			select {
			case <-time.After(4 * time.Second):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		d, done := newPipeDoor(t, g, Config{HeaderTimeout: 6 * time.Second})
		defer done()
		start := time.Now()
		expectError(t, d.do("GET", byTag()), 504, "UNAVAILABLE")
		if wait := time.Since(start); wait != 6*time.Second {
			t.Errorf("answered after %v, want 6s", wait)
		}
		if got := d.do("HEAD", byTag()); got.StatusCode != 200 {
			t.Errorf("one question within the bound: got %s", got.Status)
		}
	})
}

// What came too late by the blink of an eye has a dead context: it is a 504,
// not a 200 that is cut at once.
func TestOpenThatReturnsWithTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := helloRegistry(t)
		g.before = func(ctx context.Context, method string) error {
			if method == "Open" {
				<-ctx.Done()
			}
			return nil
		}
		d, done := newPipeDoor(t, g, Config{})
		defer done()
		expectError(t, d.do("GET", theBlob()), 504, "UNAVAILABLE")
		expectError(t, d.do("GET", theBlob(), "Range", "bytes=1-"), 504, "UNAVAILABLE")
	})
}

// The header timeout bounds the wait for headers. A body may take hours, as
// long as the source and the client both move now and then.
func TestBodyOutlivesTheHeaderTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := helloRegistry(t)
		pieces := fed(g, false, nil)
		d, done := newPipeDoor(t, g, Config{})
		defer done()
		resp, err := d.start(t.Context(), theBlob())
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		go func() {
			for _, c := range helloBlob {
				time.Sleep(10 * time.Minute) // synctest's clock
				pieces <- string(c)
			}
			close(pieces)
		}()
		body, err := io.ReadAll(resp.Body)
		if string(body) != helloBlob || err != nil {
			t.Errorf("got %q, %v", body, err)
		}
		if rec := d.record(); rec.Duration != 100*time.Minute || rec.Err != nil {
			t.Errorf("recorded %v, %v", rec.Duration, rec.Err)
		}
	})
}

// A client that stops reading is cut; one that reads a little now and then is
// not.
func TestClientThatStopsReadingIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := helloRegistry(t)
		content := bytes.Repeat([]byte("x"), 1<<20)
		digest := g.repo("docker.io/library/hello").addBlob(content)
		d, done := newPipeDoor(t, g, Config{})
		defer done()
		path := "/v2/library/hello/blobs/" + digest.String()

		resp, err := d.start(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		rec := d.record() // while nobody reads
		if rec.Duration > 2*time.Minute || rec.Err == nil || !errors.Is(rec.Err, os.ErrDeadlineExceeded) || errors.Is(rec.Err, ErrClientGone) {
			t.Errorf("stopped: recorded %v after %v", rec.Err, rec.Duration)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err == nil {
			t.Error("stopped: the answer ended cleanly")
		}
		resp.Body.Close()

		resp, err = d.start(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for buf := make([]byte, 32<<10); err == nil; {
			time.Sleep(50 * time.Second) // synctest's clock
			var m int
			m, err = io.ReadFull(resp.Body, buf)
			n += m
		}
		if n != len(content) || err != io.EOF {
			t.Errorf("slow: got %d bytes, %v", n, err)
		}
		resp.Body.Close()
		if rec := d.record(); rec.Err != nil || rec.Duration < 20*time.Minute {
			t.Errorf("slow: recorded %v after %v", rec.Err, rec.Duration)
		}
	})
}

// A client that leaves while we wait gets no answer, and stops the waiting.
func TestClientThatLeavesBeforeHeaders(t *testing.T) {
	for _, c := range []struct{ path, method string }{{byTag(), "Resolve"}, {theBlob(), "Open"}} {
		g := helloRegistry(t)
		asked := make(chan struct{})
		g.before = func(ctx context.Context, method string) error {
			if method == c.method {
				close(asked)
				<-ctx.Done()
				return oci.Errorf(oci.Unavailable, "gave up: %w", ctx.Err())
			}
			return nil
		}
		d := newDoor(t, g, Config{})
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-asked
			cancel()
		}()
		if resp, err := d.start(ctx, c.path); err == nil {
			resp.Body.Close()
			t.Fatalf("%s: answered %s", c.path, resp.Status)
		}
		rec := d.record()
		if rec.Status != StatusClientGone || !errors.Is(rec.Err, ErrClientGone) || rec.Bytes != 0 {
			t.Errorf("%s: recorded %d, %v", c.path, rec.Status, rec.Err)
		}
	}
}

// Clients that fetch in pieces leave in the middle: the source is told, the
// record says so.
func TestClientThatLeavesInTheMiddle(t *testing.T) {
	g := helloRegistry(t)
	pieces := fed(g, false, nil)
	d := newDoor(t, g, Config{})
	ctx, cancel := context.WithCancel(t.Context())
	resp, err := d.start(ctx, theBlob())
	if err != nil {
		t.Fatal(err)
	}
	pieces <- "01"
	if _, err := io.ReadFull(resp.Body, make([]byte, 2)); err != nil {
		t.Fatal(err)
	}
	cancel()
	rec := d.record()
	resp.Body.Close()
	if rec.Status != 200 || !errors.Is(rec.Err, ErrClientGone) || rec.Bytes != 2 {
		t.Errorf("recorded %d, %d bytes, %v", rec.Status, rec.Bytes, rec.Err)
	}
}

func TestPanics(t *testing.T) {
	for _, c := range []struct {
		name   string
		value  any
		method string // whose question panics; "Read" for the body
		status int    // of the answer; 0 for none
	}{
		{"before headers", "boom", "Resolve", 500},
		{"before headers, an error", io.EOF, "Resolve", 500},
		{"abort before headers", http.ErrAbortHandler, "Resolve", 0},
		{"in the body", "boom", "Read", 200},
		{"abort in the body", http.ErrAbortHandler, "Read", 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := helloRegistry(t)
			g.before = func(_ context.Context, method string) error {
				if method == c.method {
					panic(c.value)
				}
				return nil
			}
			g.outcome.Cache = oci.Miss
			g.reader = func(_ context.Context, r *stretch) oci.Reader { return panicking{r, c.value} }
			d := newDoor(t, g, Config{})
			path := byTag()
			if c.method == "Read" {
				path = theBlob()
			}
			resp, err := d.start(t.Context(), path)
			rec := d.record()
			switch {
			case c.status == 0:
				if err == nil {
					t.Fatalf("answered %s, want a cut connection", resp.Status)
				}
			case err != nil:
				t.Fatal(err)
			case c.status == 500:
				body, _ := io.ReadAll(resp.Body)
				expectError(t, reply{resp, string(body), nil}, 500, "UNKNOWN")
			default:
				if _, err := io.ReadAll(resp.Body); !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("body ended with %v, want a cut", err)
				}
			}
			if resp != nil {
				resp.Body.Close()
			}
			if rec.Status != c.status || rec.Err == nil {
				t.Errorf("recorded %d, %v", rec.Status, rec.Err)
			}
			if c.value != http.ErrAbortHandler {
				p, ok := errors.AsType[*PanicError](rec.Err)
				if !ok || p.Value != c.value || !strings.Contains(string(p.Stack), "proxy.") {
					t.Errorf("recorded %v, want the panic with its stack", rec.Err)
				}
			}
		})
	}
}

type panicking struct {
	*stretch
	value any
}

func (p panicking) Read([]byte) (int, error) { panic(p.value) }

// A source that opens behind what was asked for would serve wrong bytes.
func TestReaderBehindTheOffsetIsCut(t *testing.T) {
	g := helloRegistry(t)
	g.outcome.Cache = oci.Miss
	g.reader = func(_ context.Context, r *stretch) oci.Reader { r.offset++; return r }
	d := newDoor(t, g, Config{})
	if got := d.do("GET", theBlob()); !errors.Is(got.err, io.ErrUnexpectedEOF) || got.body != "" {
		t.Errorf("got %q, %v", got.body, got.err)
	}
}

// A source's own end is not the client's.
func TestContextErrorsOfTheSource(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
	}{
		{context.Canceled, 503},
		{context.DeadlineExceeded, 504},
		{oci.Errorf(oci.Denied, "no: %w", context.DeadlineExceeded), 403},
	} {
		g := helloRegistry(t)
		g.before = func(context.Context, string) error { return c.err }
		d := newDoor(t, g, Config{})
		if got := d.do("GET", byTag()); got.StatusCode != c.status {
			t.Errorf("%v: got %s, want %d", c.err, got.Status, c.status)
		}
	}
}

// A source that writes itself reaches the connection, as one that tunes it must.
func TestWritersReachTheConnection(t *testing.T) {
	g := helloRegistry(t)
	g.reader = func(_ context.Context, r *stretch) oci.Reader { return tuning{r} }
	d := newDoor(t, g, Config{})
	if got := d.do("GET", theBlob()); got.body != helloBlob || got.err != nil {
		t.Errorf("got %q, %v", got.body, got.err)
	}
}

type tuning struct{ *stretch }

func (s tuning) WriteTo(w io.Writer) (int64, error) {
	if err := http.NewResponseController(w.(http.ResponseWriter)).SetWriteDeadline(time.Now().Add(time.Hour)); err != nil {
		return 0, err
	}
	return w.(io.ReaderFrom).ReadFrom(s.Reader)
}

package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"entrepot/oci"

	"golang.org/x/sys/unix"
)

// option reads what a connection is set to.
func option(t testing.TB, c net.Conn, level, name int) (value int) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if cerr := raw.Control(func(fd uintptr) { value, err = unix.GetsockoptInt(int(fd), level, name) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return value
}

func TestConnectionsTakeTheirOptionsFromTheListener(t *testing.T) {
	lc := ListenConfig()
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	for _, c := range []struct {
		name              string
		level, opt, value int
	}{
		{"no delay", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{"keep-alive", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{"idle", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15},
		{"interval", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15},
		{"probes", unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 9},
	} {
		if got := option(t, server, c.level, c.opt); got != c.value {
			t.Errorf("%s: got %d, want %d", c.name, got, c.value)
		}
	}
}

func TestOnlyShortRoundTripsAreNear(t *testing.T) {
	for rtt, want := range map[time.Duration]bool{
		0:                              false, // the kernel does not tell
		3 * time.Microsecond:           true,
		nearRoundTrip:                  true,
		nearRoundTrip + 1:              false,
		20 * time.Millisecond:          false,
		(1<<32 - 1) * time.Microsecond: false, // never measured
	} {
		if got := isNear(rtt); got != want {
			t.Errorf("%v: got %v", rtt, got)
		}
	}
}

// wires is a server that keeps its ends of the connections.
type wires struct {
	*httptest.Server
	accepted chan net.Conn
}

func newWires(t testing.TB, h http.Handler) wires {
	t.Helper()
	w := wires{httptest.NewUnstartedServer(h), make(chan net.Conn, 100)}
	w.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		w.accepted <- c
		return ConnContext(ctx, c)
	}
	w.Start()
	t.Cleanup(w.Close)
	return w
}

// aFile makes a file of content, which the blob's reader sends as steps of so
// many bytes; before each it calls between.
func aFile(t testing.TB, g *registry, content []byte, step int64, between func()) (path string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	digest := g.repo("docker.io/library/hello").addBlob(content)
	g.reader = func(_ context.Context, r *stretch) oci.Reader { return &steps{r, name, step, between} }
	return "/v2/library/hello/blobs/" + digest.String()
}

type steps struct {
	*stretch
	name    string
	step    int64
	between func()
}

func (s *steps) WriteTo(w io.Writer) (total int64, err error) {
	file, err := os.Open(s.name)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	for {
		s.between()
		n, err := io.Copy(w, io.LimitReader(file, s.step))
		if total += n; n < s.step || err != nil {
			return total, err
		}
	}
}

// Partial segments are held back inside an answer, and never while the source
// may take its time, or behind the answer: the kernel would sit on them for a
// fifth of a second.
func TestNearClientsGetFullSegments(t *testing.T) {
	g := helloRegistry(t)
	content := bytes.Repeat([]byte("entrepot"), 200_000)
	var mu sync.Mutex // guards server
	var server net.Conn
	path := aFile(t, g, content, 100_001, func() {
		mu.Lock()
		defer mu.Unlock()
		if option(t, server, unix.IPPROTO_TCP, unix.TCP_CORK) != 0 {
			t.Error("corked while the source is asked")
		}
	})
	w := newWires(t, New(g, Config{Names: testNames()}))
	near := false
	for range 50 { // a machine that was stopped in a handshake sees a long round trip
		client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
			mu.Lock()
			defer mu.Unlock()
			server = <-w.accepted
			return c, err
		}}}
		for range 2 { // on one connection
			resp, err := client.Get(w.URL + path)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || !bytes.Equal(got, content) || resp.ContentLength != int64(len(content)) {
				t.Fatalf("got %d bytes of %d, %v", len(got), resp.ContentLength, err)
			}
		}
		resp, err := client.Get(w.URL + byTag()) // the connection is good for other answers
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(got, helloManifest) {
			t.Errorf("manifest behind a blob: got %q, %v", got, err)
		}
		resp.Body.Close()
		if option(t, server, unix.IPPROTO_TCP, unix.TCP_CORK) != 0 {
			t.Error("corked behind the answer")
		}
		near = isFixed(option(t, server, unix.SOL_SOCKET, unix.SO_SNDBUF))
		client.CloseIdleConnections()
		if near {
			break
		}
	}
	if !near {
		t.Error("no connection over loopback was taken for a near one")
	}
}

// isFixed tells a send buffer that was set from one that the kernel tunes: it
// doubles what is asked for, after it has cut that to what the machine allows.
func isFixed(size int) bool { return size == 2*nearBuffer || size == 2*wmemMax() }

func wmemMax() (n int) {
	text, err := os.ReadFile("/proc/sys/net/core/wmem_max")
	if err != nil {
		return 0
	}
	for _, c := range bytes.TrimSpace(text) {
		n = 10*n + int(c-'0')
	}
	return n
}

// What is short costs no system call beside its own write; what is long shows
// its progress in small steps, over TLS too.
func TestLongAnswersShowProgressInSmallSteps(t *testing.T) {
	g := helloRegistry(t)
	path := aFile(t, g, bytes.Repeat([]byte("entrepot"), 200_000), corkFrom-1, func() {})
	unsent := func(c net.Conn) int { return option(t, c, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT) }
	get := func(w wires, path, rng string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Range", rng)
		resp, err := w.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode/100 != 2 {
			t.Fatal(resp.Status, err)
		}
	}
	w := newWires(t, New(g, Config{Names: testNames()}))
	get(w, byTag(), "")
	get(w, path, "bytes=0-1000")
	server := <-w.accepted
	if got := unsent(server); got == unsentLowWater {
		t.Error("short answers set it")
	}
	get(w, path, "")
	if got := unsent(server); got != unsentLowWater {
		t.Errorf("got %d, want %d", got, unsentLowWater)
	}
	if isFixed(option(t, server, unix.SOL_SOCKET, unix.SO_SNDBUF)) {
		t.Error("short steps set the send buffer")
	}

	secure := wires{httptest.NewUnstartedServer(New(g, Config{Names: testNames()})), make(chan net.Conn, 1)}
	secure.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		secure.accepted <- c.(*tls.Conn).NetConn()
		return ConnContext(ctx, c)
	}
	secure.StartTLS()
	defer secure.Close()
	get(secure, path, "")
	if got := unsent(<-secure.accepted); got != unsentLowWater {
		t.Errorf("TLS: got %d, want %d", got, unsentLowWater)
	}
}

// A client that reads nothing is cut, however much the kernel takes for it.
func TestClientThatStopsReadingIsCutOverTCP(t *testing.T) {
	g := helloRegistry(t)
	content := make([]byte, 64<<20)
	path := aFile(t, g, content, int64(len(content)), func() {})
	records := make(chan Record, 1)
	w := newWires(t, New(g, Config{Names: testNames(), StallTimeout: time.Millisecond, Observe: func(_ context.Context, r Record) { records <- r }}))
	client, err := net.Dial("tcp", w.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := io.WriteString(client, "GET "+path+" HTTP/1.1\r\nHost: cache.example\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if rec := <-records; !errors.Is(rec.Err, os.ErrDeadlineExceeded) || errors.Is(rec.Err, ErrClientGone) {
		t.Errorf("recorded %v, want that it took no bytes", rec.Err)
	}
	if n, err := io.Copy(io.Discard, client); n >= int64(len(content)) {
		t.Errorf("got %d bytes, %v", n, err)
	}
}

// The deadline of one answer serves those that follow it closely, and none
// begins with less than seven eighths of its time.
func TestWriteDeadlinesLeaveNearlyAllOfTheTime(t *testing.T) {
	const stall = 80 * time.Second
	now := time.Now()
	for left, want := range map[time.Duration]bool{-stall: false, 0: false, 70 * time.Second: false, 71 * time.Second: true, stall: true} {
		if got := (&line{until: now.Add(left)}).patient(now, stall); got != want {
			t.Errorf("%v left: got %v", left, got)
		}
	}
	if (&line{}).patient(now, stall) || (*line)(nil).patient(now, stall) {
		t.Error("a deadline that was never set counts")
	}
}

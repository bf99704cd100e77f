package proxy

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"entrepot/oci"
)

func testNames() *oci.Names {
	return &oci.Names{Default: "docker.io", Upstreams: []string{"docker.io", "ghcr.io", "localhost:5001"}, Own: []string{"cache.example"}}
}

// door is a handler behind a real server. It fails the test unless every
// request was observed exactly once.
type door struct {
	t       testing.TB
	url     string
	client  *http.Client
	records chan Record
	asked   atomic.Int64
	seen    atomic.Int64
}

// newDoor fills what cfg leaves out.
func newDoor(t testing.TB, src oci.Source, cfg Config) *door {
	t.Helper()
	d := &door{t: t, records: make(chan Record, 4096)}
	srv := httptest.NewServer(d.handler(src, cfg))
	d.url, d.client = srv.URL, srv.Client()
	d.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	d.client.Transport.(*http.Transport).DisableCompression = true
	t.Cleanup(func() {
		srv.Close()
		d.count()
	})
	return d
}

// newPipeDoor is for a synctest bubble: its connections are pipes, on which
// waiting is what the bubble takes for waiting. Call close inside the bubble.
func newPipeDoor(t testing.TB, src oci.Source, cfg Config) (d *door, closeDoor func()) {
	t.Helper()
	return newPipeDoorFor(t, src, cfg, false)
}

func newPipeDoorFor(t testing.TB, src oci.Source, cfg Config, http2 bool) (d *door, closeDoor func()) {
	t.Helper()
	d = &door{t: t, records: make(chan Record, 4096), url: "http://cache.test"}
	ln := newPipeListener()
	var protocols http.Protocols
	protocols.SetHTTP1(!http2)
	protocols.SetUnencryptedHTTP2(http2)
	srv := &http.Server{Handler: d.handler(src, cfg), Protocols: &protocols}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(ln) })
	transport := &http.Transport{DialContext: ln.dial, DisableCompression: true, Protocols: &protocols}
	d.client = &http.Client{Transport: transport}
	return d, func() {
		transport.CloseIdleConnections()
		if err := srv.Shutdown(context.Background()); err != nil { // waits for handlers, as Close does not
			t.Error(err)
		}
		wg.Wait()
		d.count()
	}
}

func (d *door) handler(src oci.Source, cfg Config) http.Handler {
	if cfg.Names == nil {
		cfg.Names = testNames()
	}
	cfg.Observe = func(_ context.Context, r Record) {
		d.seen.Add(1)
		d.records <- r
	}
	h := New(src, cfg)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d.asked.Add(1)
		h.ServeHTTP(w, r)
	})
}

func (d *door) count() {
	if d.asked.Load() != d.seen.Load() {
		d.t.Errorf("%d requests, %d observed", d.asked.Load(), d.seen.Load())
	}
}

// record is that of the request just made.
func (d *door) record() Record { return <-d.records }

// reply is an answer read to its end; err is how the body ended.
type reply struct {
	*http.Response
	body string
	err  error
}

// do sends a request; headers are pairs.
func (d *door) do(method, path string, headers ...string) reply {
	d.t.Helper()
	req, err := http.NewRequestWithContext(d.t.Context(), method, d.url+path, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			req.Host = headers[i+1]
			continue
		}
		req.Header.Add(headers[i], headers[i+1])
	}
	return d.send(req)
}

func (d *door) send(req *http.Request) reply {
	d.t.Helper()
	resp, err := d.client.Do(req)
	if err != nil {
		d.t.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
	body, err := io.ReadAll(resp.Body)
	if cerr := resp.Body.Close(); cerr != nil {
		d.t.Error(cerr)
	}
	return reply{resp, string(body), err}
}

// start sends a request and leaves its body to the caller.
func (d *door) start(ctx context.Context, path string, headers ...string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url+path, nil)
	if err != nil {
		return nil, err
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	return d.client.Do(req)
}

type pipeListener struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 5000} }

func (l *pipeListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case l.conns <- server:
		return client, nil
	case <-l.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// expectHeaders compares pairs; a value "-" means that the header is absent.
func expectHeaders(t *testing.T, h http.Header, pairs ...string) {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		got, want := strings.Join(h.Values(pairs[i]), " | "), pairs[i+1]
		if want == "-" {
			want = ""
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", pairs[i], got, want)
		}
	}
}

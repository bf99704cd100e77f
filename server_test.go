package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"entrepot/internal/ocitest"

	"github.com/rs/zerolog"
)

// startTest serves h on a free port of loopback and gives its URL.
func startTest(t *testing.T, h http.Handler, logger zerolog.Logger) (*server, string) {
	t.Helper()
	l, err := listen(t.Context(), "ENTREPOT_LISTEN", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := startServer("registry", l, h, nil, 0, reports{log: logger, failed: func(err error) { t.Error(err) }})
	t.Cleanup(func() {
		ended, cancel := contextThatEnded()
		defer cancel()
		s.stop(ended, time.Minute)
	})
	return s, "http://" + l.Addr().String()
}

func contextThatEnded() (context.Context, context.CancelFunc) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	return ended, cancel
}

func get(t *testing.T, client *http.Client, url string) (int, string, http.Header) {
	t.Helper()
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body), resp.Header
}

func newClient(t *testing.T) *http.Client {
	t.Helper()
	transport := new(http.Transport)
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// TestRequestsTakeNoLockOfTheirServer, so that many connections do not wait for one
// another; and of a plain server, nothing is kept of a connection.
func TestRequestsTakeNoLockOfTheirServer(t *testing.T) {
	ca := ocitest.NewCA()
	for name, secure := range map[string]*tls.Config{"plain": nil, "over TLS": {Certificates: []tls.Certificate{ca.Certificate("127.0.0.1")}}} {
		t.Run(name, func(t *testing.T) {
			l, err := listen(t.Context(), "ENTREPOT_LISTEN", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			s := startServer("registry", l, unseen("healthz", healthz), secure, 0, reports{log: zerolog.Nop(), failed: func(err error) { t.Error(err) }})
			defer s.stop(t.Context(), time.Second)
			client := newClient(t)
			client.Timeout = 10 * time.Second // nothing waits for anything
			url := "http://" + l.Addr().String()
			if secure != nil {
				client.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: ca.Pool(), ServerName: "127.0.0.1"}
				url = "https://" + l.Addr().String()
			}
			s.mu.Lock()
			for range 3 {
				if status, _, _ := get(t, client, url); status != http.StatusOK { // with keep-alive
					t.Error(status)
				}
			}
			s.mu.Unlock()
			kept := 0
			s.first.Range(func(any, any) bool { kept++; return true })
			if secure == nil && kept != 0 {
				t.Errorf("%d connections are kept account of", kept)
			}
		})
	}
}

func TestStopLetsRunningAnswersFinish(t *testing.T) {
	begun, release := make(chan struct{}), make(chan struct{})
	s, url := startTest(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/idle" {
			return
		}
		fmt.Fprint(w, "first,")
		_ = http.NewResponseController(w).Flush()
		close(begun)
		<-release
		fmt.Fprint(w, "last")
	}), zerolog.Nop())
	client := newClient(t)
	get(t, client, url+"/idle") // leaves an idle connection, which must not hold up stop
	answer := make(chan string, 1)
	go func() {
		_, body, _ := get(t, newClient(t), url+"/slow")
		answer <- body
	}()
	<-begun
	stopped := make(chan bool)
	go func() { stopped <- s.stop(context.Background(), time.Minute) }()
	select {
	case <-stopped:
		t.Fatal("stop did not wait for a running answer")
	case answer := <-answer:
		t.Fatalf("the answer ended with %q", answer)
	default:
	}
	close(release)
	if got := <-answer; got != "first,last" {
		t.Errorf("the running answer became %q", got)
	}
	if cut := <-stopped; cut {
		t.Error("stop says that it cut an answer")
	}
	if _, err := client.Get(url + "/idle"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after stop a connection gives %v, want it refused", err)
	}
}

func TestStopCutsWhatTakesTooLong(t *testing.T) {
	begun := make(chan struct{})
	var handler sync.WaitGroup
	handler.Add(1)
	s, url := startTest(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer handler.Done()
		w.Header().Set("Content-Length", "10")
		fmt.Fprint(w, "first")
		_ = http.NewResponseController(w).Flush()
		close(begun)
		<-r.Context().Done()
	}), zerolog.Nop())
	result := make(chan error, 1)
	go func() {
		resp, err := newClient(t).Get(url)
		if err == nil {
			_, err = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
		result <- err
	}()
	<-begun
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if !s.stop(ended, time.Minute) {
		t.Error("stop does not say that it cut an answer")
	}
	handler.Wait() // it has returned already, or this hangs
	if err := <-result; err == nil {
		t.Error("the client saw a clean end of a cut answer")
	}
}

func TestListenErrorsNameTheSetting(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = listen(t.Context(), "ENTREPOT_ADMIN_LISTEN", Address(l.Addr().String()))
	if err == nil || !strings.Contains(err.Error(), "ENTREPOT_ADMIN_LISTEN: "+l.Addr().String()+" is in use") {
		t.Errorf("error is %v", err)
	}
	if _, err = listen(t.Context(), "ENTREPOT_LISTEN", "192.0.2.1:0"); err == nil || !strings.Contains(err.Error(), "ENTREPOT_LISTEN: ") {
		t.Errorf("error is %v", err)
	}
}

// unseen is a sight that tells nobody.
func unseen(_ string, serve aside) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = serve(w, r) })
}

func TestRoutesOfEachListener(t *testing.T) {
	api := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	scrape := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "metrics") })
	var ready readiness
	open := func(h http.Handler) http.Handler { return h }
	for _, row := range []struct {
		name, method, path string
		handler            http.Handler
		ready              bool
		want               int
	}{
		{"registry", "GET", "/healthz", registryHandler(api, unseen), false, 200},
		{"registry", "HEAD", "/healthz", registryHandler(api, unseen), false, 200},
		{"registry", "POST", "/healthz", registryHandler(api, unseen), false, 405},
		{"registry", "GET", "/v2/", registryHandler(api, unseen), false, 418},
		{"registry", "GET", "/metrics", registryHandler(api, unseen), true, 418},
		{"registry", "GET", "/healthz/", registryHandler(api, unseen), true, 418},
		{"admin", "GET", "/healthz", adminHandler(scrape, &ready, api, open, unseen), false, 200},
		{"admin", "GET", "/readyz", adminHandler(scrape, &ready, api, open, unseen), true, 200},
		{"admin", "GET", "/readyz", adminHandler(scrape, &ready, api, open, unseen), false, 503},
		{"admin", "GET", "/metrics", adminHandler(scrape, &ready, api, open, unseen), false, 200},
		{"admin", "GET", "/debug/pprof/", adminHandler(scrape, &ready, api, open, unseen), false, 200},
		{"admin", "GET", "/debug/pprof/goroutine", adminHandler(scrape, &ready, api, open, unseen), false, 200},
		{"admin", "GET", "/admin/v1/about", adminHandler(scrape, &ready, api, open, unseen), false, 418},
		{"registry", "GET", "/admin/v1/about", registryHandler(api, unseen), false, 418},
		{"metrics", "GET", "/admin/v1/about", metricsHandler(scrape, &ready, unseen), false, 404},
		{"admin", "GET", "/", adminHandler(scrape, &ready, api, open, unseen), false, 404},
		{"metrics", "GET", "/metrics", metricsHandler(scrape, &ready, unseen), false, 200},
		{"metrics", "GET", "/readyz", metricsHandler(scrape, &ready, unseen), true, 200},
		{"metrics", "GET", "/debug/pprof/", metricsHandler(scrape, &ready, unseen), true, 404},
		{"metrics", "GET", "/healthz", metricsHandler(scrape, &ready, unseen), true, 404},
	} {
		ready.ready.Store(row.ready)
		w := httptest.NewRecorder()
		row.handler.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), row.method, row.path, nil))
		if w.Code != row.want {
			t.Errorf("%s: %s %s answers %d, want %d", row.name, row.method, row.path, w.Code, row.want)
		}
		var body struct{ Errors []struct{ Code string } }
		if err := json.Unmarshal(w.Body.Bytes(), &body); w.Code >= 400 && w.Code != 418 && (err != nil || len(body.Errors) != 1) {
			t.Errorf("%s: %s %s fails with %q, want OCI JSON", row.name, row.method, row.path, w.Body)
		}
	}
}

// TestSmuggledRequestsAreNotSeen: what stands before the cache may read a request
// otherwise than we do. One whose end is not certain is refused, and nothing
// behind it on its connection is answered.
func TestSmuggledRequestsAreNotSeen(t *testing.T) {
	const hidden = "GET /v2/hidden HTTP/1.1\r\nHost: cache.example\r\n\r\n"
	for name, request := range map[string]string{
		"two lengths":                 "GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n",
		"a signed length":             "GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: +0\r\n\r\n",
		"a length that is a list":     "GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0, 9\r\n\r\n",
		"an unknown coding":           "GET /v2/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		"two codings":                 "GET /v2/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
		"a space before the colon":    "GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length : 5\r\n\r\n",
		"a line break in a name":      "GET /v2/ HTTP/1.1\r\nHost: x\r\nA\rB: 5\r\n\r\n",
		"no host":                     "GET /v2/ HTTP/1.1\r\n\r\n",
		"two hosts":                   "GET /v2/ HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
		"a host that is a path":       "GET /v2/ HTTP/1.1\r\nHost: x/y\r\n\r\n",
		"no version":                  "GET /v2/\r\n\r\n",
		"a version that is no number": "GET /v2/ HTTP/1.x\r\nHost: x\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			_, url := startTest(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { t.Errorf("%s %s was seen", r.Method, r.URL) }), zerolog.Nop())
			answer := exchangeRaw(t, url, request+hidden)
			if !strings.HasPrefix(answer, "HTTP/1.1 400 ") && !strings.HasPrefix(answer, "HTTP/1.1 501 ") || strings.Count(answer, "HTTP/1.1") != 1 {
				t.Errorf("answered with %q", answer)
			}
		})
	}
}

// TestALengthBesideChunksEndsTheConnection: of the two the chunks count (RFC 9112,
// 6.3), and whoever went by the length has no next request here.
func TestALengthBesideChunksEndsTheConnection(t *testing.T) {
	var seen []string
	_, url := startTest(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen = append(seen, r.URL.Path) }), zerolog.Nop())
	exchangeRaw(t, url, "GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /v2/hidden HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	if len(seen) != 1 {
		t.Errorf("requests for %q were seen", seen)
	}
}

// exchangeRaw sends bytes, and returns all that comes back until the server
// closes.
func exchangeRaw(t *testing.T, url, request string) string {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil && len(answer) == 0 {
		t.Error(err)
	}
	return string(answer)
}

func TestServerLogTellsAPanicFromNoise(t *testing.T) {
	var out syncBuffer
	_, url := startTest(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("boo") }), zerolog.New(&out).Level(zerolog.InfoLevel))
	if _, err := newClient(t).Get(url); err == nil {
		t.Error("a panic was answered")
	}
	if got := out.String(); !strings.Contains(got, `"level":"error"`) || !strings.Contains(got, "boo") {
		t.Errorf("the log says %s", got)
	}
	quiet := serverLog{zerolog.New(&out).Level(zerolog.InfoLevel)}
	before := out.String()
	fmt.Fprint(quiet, "http: TLS handshake error from 192.0.2.1:1: EOF\n")
	if out.String() != before {
		t.Errorf("a stranger's mistake is logged: %s", out.String())
	}
}

// syncBuffer is a buffer that several goroutines may write.
type syncBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

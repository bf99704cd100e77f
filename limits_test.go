package main

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/internal/ocitest"
	"entrepot/ledger"

	"github.com/rs/zerolog"
)

// TestWhoSendsTooMuchIsTold429, as OCI JSON, with a time that is true of the rate
// that is set. Others have their answers.
func TestWhoSendsTooMuchIsTold429(t *testing.T) {
	t.Parallel()
	hub := ocitest.NewHub(t, ocitest.Config{})
	p := startProgram(t, hub, "ENTREPOT_CLIENT_RATE=0.01")
	client := newClient(t)
	for range 100 {
		if status, body, _ := get(t, client, p.registry+"/v2/"); status != http.StatusOK {
			t.Fatal(status, body)
		}
	}
	status, body, header := get(t, client, p.registry+"/v2/")
	after, err := strconv.Atoi(header.Get("Retry-After"))
	if status != http.StatusTooManyRequests || !strings.Contains(body, `"code":"TOOMANYREQUESTS"`) || header.Get("Content-Type") != "application/json" || err != nil || after < 90 || after > 100 {
		t.Errorf("%d, Retry-After %q: %s", status, header.Get("Retry-After"), body)
	}
	if status, _, _ := get(t, client, p.registry+"/healthz"); status != http.StatusOK {
		t.Errorf("the probe is told %d", status)
	}
	if _, body, _ := get(t, client, p.admin+"/metrics"); !strings.Contains(body, "entrepot_client_requests_refused_total 1\n") {
		t.Error("it is not counted")
	}
}

// TestTheRateCountsWhoeverAsks: what no user has proved to send counts with its
// address, whatever its answer, and tokens count like all else. What a user sends
// counts with the user alone, so that those who share an address do not share a rate.
func TestTheRateCountsWhoeverAsks(t *testing.T) {
	t.Parallel()
	p := startProtected(t, "ENTREPOT_CLIENT_RATE=0.01")
	client := newClient(t)
	strangers := []struct {
		path string
		who  credential
	}{
		{"/v2/", nil},
		{"/v2/", token("x")},
		{"/v2/nonsense", nil},
		{"/v2/library/app/manifests/1", nil},
		{"/v2/x/manifests/.", nil},
		{"/token", nil},
		{"/token?service=other", nil},
		{"/token", token("x")},
	}
	for n := range 100 {
		row := strangers[n%len(strangers)]
		if n >= 16 && row.who != nil {
			row = strangers[0] // whose failures are slowed down by themselves
		}
		if status, body, _ := p.ask(t, client, http.MethodGet, row.path, row.who); status == http.StatusTooManyRequests {
			t.Fatalf("request %d, for %s: %s", n+1, row.path, body)
		}
	}
	for _, path := range []string{"/v2/", "/v2/nonsense", "/token"} {
		if status, body, header := p.ask(t, client, http.MethodGet, path, nil); status != http.StatusTooManyRequests || header.Get("Retry-After") == "" || header.Get("Www-Authenticate") != "" {
			t.Errorf("%s by an address that has sent too much: %d %v %s", path, status, header, body)
		}
	}
	alice := login("alice", "wonderland")
	for n := range 100 {
		path := []string{"/token", "/v2/", "/v2/library/app/manifests/1"}[n%3]
		if status, body, _ := p.ask(t, client, http.MethodGet, path, alice); status != http.StatusOK {
			t.Fatalf("request %d by alice, from there, for %s: %d %s", n+1, path, status, body)
		}
	}
	for _, path := range []string{"/token", "/v2/"} {
		if status, body, _ := p.ask(t, clientFrom(t, 1), http.MethodGet, path, alice); status != http.StatusTooManyRequests {
			t.Errorf("%s by alice, who has sent too much, from elsewhere: %d %s", path, status, body)
		}
	}
	if status, body, _ := p.ask(t, client, http.MethodGet, "/v2/", login("root", "toor")); status != http.StatusOK {
		t.Errorf("another user from there: %d %s", status, body)
	}
}

// TestTransfersOfOneClientTakeTurns: the second blob begins when the first has
// ended, and neither is refused.
func TestTransfersOfOneClientTakeTurns(t *testing.T) {
	t.Parallel()
	hub := ocitest.NewHub(t, ocitest.Config{})
	image := ocitest.RandomImage(1, 100_000, 200_000)
	hub.Push("library/alpine", "latest", image)
	p := startProgram(t, hub, "ENTREPOT_CLIENT_TRANSFERS=1", "ENTREPOT_PREFETCH=off")
	client := newClient(t)
	if status, body, _ := get(t, client, p.registry+"/v2/alpine/manifests/latest"); status != http.StatusOK {
		t.Fatal(status, body)
	}
	gate := hub.Gate(ocitest.Match{Role: ocitest.CDN})
	var pulls sync.WaitGroup
	for _, blob := range image.Blobs[1:] {
		pulls.Go(func() {
			if status, body, _ := get(t, client, p.registry+"/v2/alpine/blobs/"+blob.Digest.String()); status != http.StatusOK || int64(len(body)) != blob.Size {
				t.Errorf("%d, %d bytes", status, len(body))
			}
		})
	}
	awaitMetric(t, client, p.admin, "entrepot_client_transfers_waited_total 1")
	if n := hub.Count(ocitest.Match{Role: ocitest.Registry, Kind: ocitest.BlobKind}); n > 1 {
		t.Errorf("%d blobs were asked for at once", n)
	}
	// A manifest is no transfer, nor is a HEAD.
	if status, _, _ := get(t, client, p.registry+"/v2/alpine/manifests/latest"); status != http.StatusOK {
		t.Errorf("the manifest meanwhile: %d", status)
	}
	gate.Open()
	pulls.Wait()
}

// crowdedServer takes a few connections. Requests of /hold are answered when
// release is closed.
type crowdedServer struct {
	address        string
	begun, release chan struct{}
	log            *syncBuffer
	counts         *metrics
}

func crowded(t *testing.T, most Bound) crowdedServer {
	t.Helper()
	l, err := listen(t.Context(), "ENTREPOT_LISTEN", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := crowdedServer{l.Addr().String(), make(chan struct{}, 1000), make(chan struct{}), new(syncBuffer), newMetrics(build{}, nil)}
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hold" {
			c.begun <- struct{}{}
			<-c.release
		}
		fmt.Fprint(w, "ok")
	})
	watcher := newObserver(zerolog.New(c.log), c.counts, ledger.New())
	watcher.access = true
	s := startServer("registry", l, h, nil, most, reports{watcher.log, func(err error) { t.Error(err) }, watcher.crowded})
	t.Cleanup(func() {
		ended, cancel := contextThatEnded()
		defer cancel()
		s.stop(ended, crowdWait)
	})
	return c
}

// scrape is what the metrics are.
func (c crowdedServer) scrape(t *testing.T) string {
	t.Helper()
	w := httptest.NewRecorder()
	c.counts.handler(zerolog.Nop()).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	return w.Body.String()
}

// ask opens a connection and sends a request on it.
func ask(t *testing.T, address, path string) net.Conn {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path); err != nil {
		t.Fatal(err)
	}
	return conn
}

func answerOn(t *testing.T, conn net.Conn) (*http.Response, string) {
	t.Helper()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

// TestIdleConnectionsMakeRoom: they are closed for those who ask for something.
func TestIdleConnectionsMakeRoom(t *testing.T) {
	t.Parallel()
	const most = 40
	c := crowded(t, most)
	address := c.address
	close(c.release)
	var idle []net.Conn
	for range most {
		conn := ask(t, address, "/")
		if resp, _ := answerOn(t, conn); resp.StatusCode != http.StatusOK || resp.Close {
			t.Fatalf("%d, close %v: want it to be kept", resp.StatusCode, resp.Close)
		}
		idle = append(idle, conn)
	}
	if resp, _ := answerOn(t, ask(t, address, "/")); resp.StatusCode != http.StatusOK {
		t.Errorf("a new one is told %d", resp.StatusCode)
	}
	closed, patience := 0, time.Now().Add(5*time.Second)
	for _, conn := range idle {
		if err := conn.SetReadDeadline(patience); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			closed++
		}
	}
	if closed < most/2 { // a few may not have been idle yet, and are kept
		t.Errorf("%d of %d idle connections were closed", closed, most)
	}
	// When it is calm again connections are kept.
	for kept := false; !kept && t.Context().Err() == nil; {
		resp, _ := answerOn(t, ask(t, address, "/"))
		kept = !resp.Close
	}
}

// TestACrowdIsTold503: while all connections are at work others wait for room,
// and then are told when to come back. Probes are answered. Whoever is turned away
// is counted, and the log tells of one a minute, also where each request has a line.
func TestACrowdIsTold503(t *testing.T) {
	t.Parallel()
	const most = 4
	full := func() crowdedServer {
		c := crowded(t, most)
		for range most {
			ask(t, c.address, "/hold")
			<-c.begun
		}
		return c
	}
	c := full()
	for range 2 {
		resp, body := answerOn(t, ask(t, c.address, "/hold"))
		if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") != "2" || !resp.Close || !strings.Contains(body, "too many connections") {
			t.Errorf("%s %v %s", resp.Status, resp.Header, body)
		}
	}
	if resp, _ := answerOn(t, ask(t, c.address, "/healthz")); resp.StatusCode != http.StatusOK {
		t.Errorf("a probe is told %s", resp.Status)
	}
	waits := ask(t, c.address, "/")
	close(c.release)
	if resp, _ := answerOn(t, waits); resp.StatusCode != http.StatusOK {
		t.Errorf("who waited when there was room is told %s", resp.Status)
	}
	if got := c.log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, `"listener":"registry","client":"127.0.0.1","what":"told"`) {
		t.Errorf("of two that were told 503 the log has\n%s", got)
	}
	if !strings.Contains(c.scrape(t), `entrepot_clients_turned_away_total{listener="registry",what="told"} 2`) {
		t.Error("they are not counted")
	}
	// Beyond all bounds connections are closed at once.
	c = full()
	defer close(c.release)
	for range (&crowd{most: most}).surplus() {
		ask(t, c.address, "/hold")
	}
	if _, err := ask(t, c.address, "/hold").Read(make([]byte, 1)); err == nil {
		t.Error("one connection too many is answered")
	}
	if !strings.Contains(c.scrape(t), `entrepot_clients_turned_away_total{listener="registry",what="closed"} 1`) {
		t.Error("it is not counted")
	}
}

// TestAttacksBelowTheBoundDoNotDisturbAPull: connections that never finish their
// headers, and readers that take nothing, leave a pull alone.
func TestAttacksBelowTheBoundDoNotDisturbAPull(t *testing.T) {
	t.Parallel()
	hub := ocitest.NewHub(t, ocitest.Config{})
	image := ocitest.RandomImage(1, 3_000_000)
	hub.Push("library/alpine", "latest", image)
	p := startProgram(t, hub)
	client := newClient(t)
	p.pull(t, client, "alpine", "latest", image)
	address := strings.TrimPrefix(p.registry, "http://")
	for i := range 200 {
		if i%2 == 0 { // slow headers
			conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			fmt.Fprint(conn, "GET /v2/ HTTP/1.1\r\nHost: x\r\nX-")
			continue
		}
		ask(t, address, "/v2/alpine/blobs/"+image.Blobs[1].Digest.String()) // and reads nothing
	}
	p.pull(t, client, "alpine", "latest", image)
	other := ocitest.RandomImage(2, 3_000_000)
	hub.Push("library/busybox", "latest", other)
	p.pull(t, client, "busybox", "latest", other)
}

// TestSlowHeadersAreTimedOut, a byte each second as well as none at all, and those
// without an end are refused. A connection that waits for its next request may
// wait for longer.
func TestSlowHeadersAreTimedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := ocitest.NewNetwork()
		l := network.Listen("cache")
		s := startServer("registry", l, unseen("healthz", healthz), nil, 0, reports{log: zerolog.Nop(), failed: func(err error) { t.Error(err) }})
		defer s.stop(t.Context(), time.Second)
		connect := func(sent string) net.Conn {
			conn, err := network.DialContext(t.Context(), "tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(conn, sent); err != nil {
				t.Fatal(err)
			}
			return conn
		}
		began := time.Now()
		silent, slow := connect(""), connect("GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
		defer silent.Close()
		defer slow.Close()
		go func() {
			for err := error(nil); err == nil; time.Sleep(time.Second) {
				_, err = slow.Write([]byte("x"))
			}
		}()
		for _, conn := range []net.Conn{silent, slow} {
			if _, err := io.Copy(io.Discard, conn); err != nil {
				t.Error(err)
			}
			if took := time.Since(began); took != readHeaderTimeout {
				t.Errorf("it was cut after %v, want %v", took, readHeaderTimeout)
			}
		}
		kept := connect("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		defer kept.Close()
		if resp, _ := answerOn(t, kept); resp.StatusCode != http.StatusOK {
			t.Error(resp.Status)
		}
		began = time.Now()
		if _, err := io.Copy(io.Discard, kept); err != nil || time.Since(began) != idleTimeout {
			t.Errorf("an idle connection: %v after %v, want %v", err, time.Since(began), idleTimeout)
		}
		large := connect("GET / HTTP/1.1\r\nHost: x\r\n")
		defer large.Close()
		go func() { _, _ = io.WriteString(large, strings.Repeat("X-Large: "+strings.Repeat("x", 1000)+"\r\n", 40)) }()
		if resp, _ := answerOn(t, large); resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Error(resp.Status)
		}
	})
}

// TestSlowHeadersAreTimedOutOverHTTP2 as over HTTP/1.1: a connection whose first
// request does not come whole, in however many frames, is cut. One that had a
// request may be idle for longer, and an answer may take as long as it takes.
func TestSlowHeadersAreTimedOutOverHTTP2(t *testing.T) {
	const (
		preface  = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
		settings = "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
		begun    = "\x00\x00\x01\x01\x01\x00\x00\x00\x01\x82" // HEADERS without END_HEADERS
		goesOn   = "\x00\x00\x00\x09\x00\x00\x00\x00\x01"     // CONTINUATION of nothing
		ping     = "\x00\x00\x08\x06\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	)
	synctest.Test(t, func(t *testing.T) {
		network, ca := ocitest.NewNetwork(), ocitest.NewCA()
		l := network.Listen("cache")
		answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				for range 60 {
					time.Sleep(time.Second)
					_, _ = w.Write([]byte("x"))
					_ = http.NewResponseController(w).Flush()
				}
			}
		})
		secure := &tls.Config{Certificates: []tls.Certificate{ca.Certificate("cache")}}
		s := startServer("registry", l, answer, secure, 0, reports{log: zerolog.Nop(), failed: func(err error) { t.Error(err) }})
		defer s.stop(t.Context(), time.Second)
		connect := func(sent string) net.Conn {
			conn, err := network.DialContext(t.Context(), "tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			own := tls.Client(conn, &tls.Config{RootCAs: ca.Pool(), ServerName: "cache", NextProtos: []string{"h2"}})
			if _, err := io.WriteString(own, sent); err != nil {
				t.Fatal(err)
			}
			return own
		}
		for name, row := range map[string]struct{ sent, drip string }{
			"nothing":                {preface + settings, ""},
			"a frame that is begun":  {preface + settings + begun[:7], ""},
			"headers that are begun": {preface + settings + begun, ""},
			"and go on":              {preface + settings + begun, goesOn},
			"pings":                  {preface + settings, ping},
		} {
			began := time.Now()
			conn := connect(row.sent)
			stop := make(chan struct{})
			go func() {
				for err := error(nil); err == nil && row.drip != ""; {
					select {
					case <-stop:
						return
					case <-time.After(900 * time.Millisecond):
						_, err = io.WriteString(conn, row.drip)
					}
				}
			}()
			_, _ = io.Copy(io.Discard, conn)
			if took := time.Since(began); took > readHeaderTimeout {
				t.Errorf("%s: it was cut after %v, want %v at most", name, took, readHeaderTimeout)
			}
			close(stop)
			conn.Close()
		}
		transport := &http.Transport{
			DialContext: network.DialContext, ForceAttemptHTTP2: true,
			TLSClientConfig: &tls.Config{RootCAs: ca.Pool(), ServerName: "cache"},
		}
		defer transport.CloseIdleConnections()
		reused := true
		ask := func(path string) {
			t.Helper()
			trace := &httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) { reused = got.Reused }}
			r, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), http.MethodGet, "https://"+l.Addr().String()+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := transport.RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if body, err := io.ReadAll(resp.Body); err != nil || resp.ProtoMajor != 2 || path == "/slow" && len(body) != 60 {
				t.Errorf("%s: %s, %d bytes, %v", path, resp.Proto, len(body), err)
			}
		}
		ask("/slow")
		for range 3 {
			time.Sleep(idleTimeout - time.Second)
			if ask("/"); !reused {
				t.Error("a connection that was idle for less than it may was cut")
			}
		}
	})
}

// TestOperatorsListenersAreBounded, so that whoever reaches them cannot use up the
// open files that clients need. Probes are answered there, too.
func TestOperatorsListenersAreBounded(t *testing.T) {
	t.Parallel()
	p := startProgram(t, ocitest.NewHub(t, ocitest.Config{}))
	address := strings.TrimPrefix(p.admin, "http://")
	silent := func() net.Conn {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	for range int(operatorConnections) {
		silent()
	}
	if resp, _ := answerOn(t, ask(t, address, "/readyz")); resp.StatusCode != http.StatusOK || !resp.Close {
		t.Errorf("a probe is told %s, close %v", resp.Status, resp.Close)
	}
	surplus := int((&crowd{most: int64(operatorConnections)}).surplus())
	for range surplus {
		silent()
	}
	if _, err := silent().Read(make([]byte, 1)); err == nil {
		t.Error("one connection too many is answered")
	}
}

// awaitMetric waits until a series has a value.
func awaitMetric(t *testing.T, client *http.Client, admin, line string) {
	t.Helper()
	for t.Context().Err() == nil {
		if _, scrape, _ := get(t, client, admin+"/metrics"); strings.Contains(scrape, "\n"+line+"\n") {
			return
		}
	}
}

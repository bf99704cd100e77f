package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/internal/ocitest"
	"entrepot/store"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
)

// freeAddress is one that nobody listened on a moment ago.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// While another process holds the data directory, clients hear when to come
// again, and a signal ends the wait.
func TestWhatIsAnsweredBeforeTheStackIsUp(t *testing.T) {
	for _, end := range []string{"signal", "release"} {
		t.Run(end, func(t *testing.T) {
			dir := t.TempDir()
			holder, err := store.Open(t.Context(), store.Config{Dir: dir})
			if err != nil {
				t.Fatal(err)
			}
			registry, admin := freeAddress(t), freeAddress(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			log := &programLog{serving: make(chan struct{})}
			ended := make(chan error, 1)
			go func() {
				ended <- run(ctx, nil, environ("ENTREPOT_LISTEN="+registry, "ENTREPOT_ADMIN_LISTEN="+admin, "ENTREPOT_DATA="+dir, "ENTREPOT_OFFLINE=true"), io.Discard, log)
			}()
			client := newClient(t)
			awaitListener(t, admin) // which is the later one
			status, body, header := get(t, client, "http://"+registry+"/v2/")
			if status != http.StatusServiceUnavailable || !strings.Contains(body, `"UNAVAILABLE"`) || header.Get("Retry-After") == "" {
				t.Errorf("/v2/ answers %d %s, Retry-After %q", status, body, header.Get("Retry-After"))
			}
			for url, want := range map[string]int{registry + "/healthz": 200, admin + "/healthz": 200, admin + "/readyz": 503, admin + "/metrics": 200, admin + "/admin/v1/about": 503} {
				if status, body, _ := get(t, client, "http://"+url); status != want {
					t.Errorf("%s answers %d %s, want %d", url, status, body, want)
				}
			}
			if end == "release" {
				if err := holder.Close(); err != nil {
					t.Fatal(err)
				}
				<-log.serving
				for _, url := range []string{registry + "/v2/", admin + "/readyz"} {
					if status, body, _ := get(t, client, "http://"+url); status != http.StatusOK {
						t.Errorf("%s answers %d %s when it serves", url, status, body)
					}
				}
			}
			began := time.Now()
			cancel()
			if err := <-ended; err != nil || time.Since(began) > 10*time.Second {
				t.Errorf("after a signal serve took %s and ended with %v", time.Since(began), err)
			}
			if end == "signal" {
				if err := holder.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func awaitListener(t *testing.T, address string) {
	t.Helper()
	for t.Context().Err() == nil {
		if c, err := new(net.Dialer).DialContext(t.Context(), "tcp", address); err == nil {
			c.Close()
			return
		}
	}
}

// Credential helpers that hang are waited for once and all at a time; then the
// start goes on without them, and says so.
func TestHelpersThatHangDoNotKeepTheStart(t *testing.T) {
	t.Parallel()
	hub := ocitest.NewHub(t, ocitest.Config{})
	dir := t.TempDir()
	for name, text := range map[string]string{
		"config.json":                     `{"credsStore":"entrepot-test"}`,
		"docker-credential-entrepot-test": "#!/bin/sh\nexec sleep 1000\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	path := dir + string(os.PathListSeparator) + os.Getenv("PATH")
	p := startProcess(t, append(over(hub, t.TempDir()), "PATH="+path, "DOCKER_CONFIG="+dir, "ENTREPOT_UPSTREAMS="+upstreamName+",a.example,b.example")...)
	p.await(t)
	if p.took > 2*loginWait {
		t.Errorf("the start took %s", p.took)
	}
	if n := strings.Count(p.log.String(), "no login from DOCKER_CONFIG"); n != 3 {
		t.Errorf("%d of 3 upstreams are said to be without a login:\n%s", n, &p.log)
	}
}

// A login of Docker's is as much everybody's as one of the environment.
func TestDockerLoginsOnAnOpenAddressAreWarnedOf(t *testing.T) {
	t.Parallel()
	hub := ocitest.NewHub(t, ocitest.Config{})
	dir := t.TempDir()
	config := `{"auths":{"` + upstreamName + `":{"auth":"` + base64.StdEncoding.EncodeToString([]byte("me:hunter2")) + `"}}}`
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, listen := range []string{"127.0.0.1:0", "0.0.0.0:0"} {
		p := startProcess(t, append(over(hub, t.TempDir()), "DOCKER_CONFIG="+dir, "ENTREPOT_LISTEN="+listen)...)
		p.await(t)
		const warning = "everybody who reaches 0.0.0.0:0 can pull from " + upstreamName + " what the account me may read, which DOCKER_CONFIG has"
		if got, want := strings.Contains(p.log.String(), warning), listen == "0.0.0.0:0"; got != want {
			t.Errorf("%s: warned %t, want %t:\n%s", listen, got, want, &p.log)
		}
		if strings.Contains(p.log.String(), "hunter2") {
			t.Error("the log tells the password")
		}
	}
}

// pipeListener takes one connection, which needs no network: it works on a
// test's clock.
type pipeListener struct {
	server chan net.Conn
	closed chan struct{}
}

// listenToPipe is a listener and its one client, who has asked already.
func listenToPipe(t *testing.T) (net.Listener, net.Conn) {
	t.Helper()
	l := &pipeListener{make(chan net.Conn, 1), make(chan struct{})}
	client, server := net.Pipe()
	l.server <- server
	go func() { _, _ = io.WriteString(client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n") }()
	t.Cleanup(func() { client.Close() })
	return l, client
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.server:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	close(l.closed)
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

// The worst case: no handler ends. What is left of the ten seconds is for the
// cache and the disk.
func TestTheEndOfAllListenersTakesNoLongerThanOfOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		stuck := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release })
		start := func(name string) *server {
			l, _ := listenToPipe(t)
			return startServer(name, l, stuck, nil, 0, reports{log: zerolog.Nop(), failed: func(err error) { t.Error(err) }})
		}
		f := &front{registry: []*server{start("registry"), start("plain registry")}, others: []*server{start("admin"), start("metrics")}}
		synctest.Wait()
		began := time.Now()
		f.stop(8*time.Second, zerolog.Nop())
		if took := time.Since(began); took != 8*time.Second+closeGrace {
			t.Errorf("stop took %s, want %s", took, 8*time.Second+closeGrace)
		}
		close(release)
		synctest.Wait()
	})
}

func TestLinesToPasteArePlain(t *testing.T) {
	var stdout, stderr bytes.Buffer
	w := welcome{registry: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 5000}, mirror: true}
	announce(w, invocation{stdout: &stdout, stderr: &stderr}, &Config{LogFormat: "json"}, zerolog.New(&stderr))
	want := `{"registry-mirrors":["http://192.0.2.1:5000"],"insecure-registries":["192.0.2.1:5000"]}` + "\n"
	if diff := cmp.Diff(want, stdout.String()); diff != "" {
		t.Errorf("stdout (-want +got):\n%s", diff)
	}
	if !strings.Contains(stderr.String(), `"message":"serving"`) {
		t.Errorf("the log says %s", &stderr)
	}
}

// A server that does not come up says why, and not that it stops.
func TestAStartThatFailsSaysWhyAlone(t *testing.T) {
	t.Parallel()
	log := &programLog{serving: make(chan struct{})}
	dir := filepath.Join(writeFile(t, ""), "data")
	err := run(t.Context(), nil, environ("ENTREPOT_LISTEN=127.0.0.1:0", "ENTREPOT_ADMIN_LISTEN=", "ENTREPOT_DATA="+dir, "ENTREPOT_OFFLINE=true"), io.Discard, log)
	if err == nil || !strings.Contains(err.Error(), dir) || strings.Contains(log.String(), "stopp") {
		t.Errorf("%v, after:\n%s", err, log)
	}
}

package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"entrepot/certs"
	"entrepot/internal/ocitest"
	"entrepot/oci"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
)

// pairFiles writes a certificate and its key into dir, as NAME.crt and NAME.key.
func pairFiles(t *testing.T, dir, name string, c tls.Certificate) (chain, key string) {
	t.Helper()
	chain, key = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	chainPEM, keyPEM := ocitest.KeyPair(c)
	replaceFile(t, chain, chainPEM)
	replaceFile(t, key, keyPEM)
	return chain, key
}

// replaceFile writes a file as tools do that mean well: beside it, then in its
// place.
func replaceFile(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// tlsClient trusts ca, and speaks HTTP/2 if told.
func tlsClient(t *testing.T, ca *ocitest.CA, h2 bool, own ...tls.Certificate) *http.Client {
	t.Helper()
	client := newClient(t)
	transport := client.Transport.(*http.Transport)
	transport.TLSClientConfig = &tls.Config{RootCAs: ca.Pool(), Certificates: own}
	transport.ForceAttemptHTTP2 = h2
	return client
}

func TestPullOverTLS(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	image := ocitest.RandomImage(1, 300_000, 300)
	hub.Push("library/app", "1", image)
	ca := ocitest.NewCA()
	certificate := ca.Certificate()
	chain, key := pairFiles(t, t.TempDir(), "tls", certificate)
	p := startProgram(t, hub, "ENTREPOT_TLS_CERT_FILE="+chain, "ENTREPOT_TLS_KEY_FILE="+key, "ENTREPOT_PLAIN_LISTEN=127.0.0.1:0")

	for _, h2 := range []bool{false, true} { // cold over one, warm over the other
		client := tlsClient(t, ca, h2)
		resp, err := client.Get(p.registry + "/v2/")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if want := map[bool]int{false: 1, true: 2}[h2]; resp.ProtoMajor != want {
			t.Errorf("the server speaks %s, want HTTP/%d", resp.Proto, want)
		}
		p.pull(t, client, "app", "1", image)
	}
	plain := *p
	plain.registry = p.plain
	plain.pull(t, newClient(t), "app", "1", image)

	status, body, _ := get(t, newClient(t), strings.Replace(p.registry, "https:", "http:", 1)+"/v2/")
	if status != http.StatusBadRequest || !strings.Contains(body, "HTTPS server") {
		t.Errorf("plain HTTP is answered with %d %q", status, body)
	}
	_, scrape, _ := get(t, newClient(t), p.admin+"/metrics")
	if !strings.Contains(scrape, "\nentrepot_tls_certificate_end_timestamp_seconds ") {
		t.Error("no metric tells when the certificate ends")
	}
	if !strings.Contains(p.log.String(), "the TLS certificate ends soon") { // in a day
		t.Errorf("nothing warns that the certificate ends:\n%s", p.log)
	}
	address := strings.TrimPrefix(p.registry, "https://")
	env := environ("ENTREPOT_LISTEN="+address, "ENTREPOT_TLS_CERT_FILE="+chain, "ENTREPOT_TLS_KEY_FILE="+key)
	if err := run(t.Context(), []string{"healthcheck"}, env, io.Discard, io.Discard); err != nil {
		t.Errorf("healthcheck: %v", err)
	}
}

// Who has to show a certificate is refused without one, but for the health
// check, which has none.
func TestCertificatesThatAreRequired(t *testing.T) {
	hub, ca := ocitest.NewHub(t, ocitest.Config{}), ocitest.NewCA()
	dir := t.TempDir()
	chain, key := pairFiles(t, dir, "tls", ca.Certificate())
	authorities := filepath.Join(dir, "ca.crt")
	replaceFile(t, authorities, ca.PEM)
	settings := []string{
		"ENTREPOT_TLS_CERT_FILE=" + chain, "ENTREPOT_TLS_KEY_FILE=" + key,
		"ENTREPOT_TLS_CLIENT_CA_FILE=" + authorities, "ENTREPOT_TLS_CLIENT_AUTH=required",
	}
	p := startProgram(t, hub, settings...)
	if status, body, _ := get(t, tlsClient(t, ca, true, ca.Client("alice")), p.registry+"/v2/"); status != http.StatusOK {
		t.Errorf("with a certificate: %d %s", status, body)
	}
	if resp, err := tlsClient(t, ca, true).Get(p.registry + "/v2/"); err == nil {
		resp.Body.Close()
		t.Errorf("without a certificate: %s", resp.Status)
	}
	env := environ(append(settings, "ENTREPOT_LISTEN="+strings.TrimPrefix(p.registry, "https://"))...)
	if err := run(t.Context(), []string{"healthcheck"}, env, io.Discard, io.Discard); err != nil {
		t.Errorf("healthcheck: %v", err)
	}
}

// While clients pull, over connections that stand and over new ones, the
// certificate changes: no request fails, and the new one is shown. A bad file
// changes nothing but the log.
func TestReloadUnderLoad(t *testing.T) {
	t.Parallel()
	hub, ca, dir := ocitest.NewHub(t, ocitest.Config{}), ocitest.NewCA(), t.TempDir()
	image := ocitest.RandomImage(1, 50_000, 300)
	hub.Push("library/app", "1", image)
	chain, key := pairFiles(t, dir, "tls", ca.Certificate())
	p := startProgram(t, hub, "ENTREPOT_TLS_CERT_FILE="+chain, "ENTREPOT_TLS_KEY_FILE="+key, "ENTREPOT_LOG_LEVEL=info")
	p.pull(t, tlsClient(t, ca, true), "app", "1", image)

	done := make(chan struct{})
	var clients sync.WaitGroup
	for i := range 4 {
		client := tlsClient(t, ca, i%2 == 0)
		client.Transport.(*http.Transport).DisableKeepAlives = i >= 2
		clients.Go(func() {
			for !isOver(done) {
				resp, err := client.Get(p.registry + "/v2/app/blobs/" + image.Blobs[0].Digest.String())
				if err != nil {
					t.Errorf("client %d: %v", i, err)
					return
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || resp.StatusCode != http.StatusOK || oci.Sum(body) != image.Blobs[0].Digest {
					t.Errorf("client %d: %s, %d bytes, %v", i, resp.Status, len(body), err)
					return
				}
			}
		})
	}
	shown := func() *x509.Certificate {
		conn, err := tls.Dial("tcp", strings.TrimPrefix(p.registry, "https://"), &tls.Config{RootCAs: ca.Pool()})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0]
	}
	second := ca.Certificate()
	pairFiles(t, dir, "tls", second)
	for !shown().Equal(second.Leaf) {
	}
	replaceFile(t, key, []byte("nonsense"))
	for !strings.Contains(p.log.String(), "what was read before stays") {
		shown()
	}
	if !shown().Equal(second.Leaf) {
		t.Error("a bad file changed what is shown")
	}
	close(done)
	clients.Wait()
}

// Half of a pair, a file that is gone, a change within the same second: each is
// seen, told once, and healed by the next write.
func TestReloader(t *testing.T) {
	path := writeFile(t, "1")
	var loaded []string
	load := func() error {
		content, err := os.ReadFile(path)
		if err == nil {
			loaded = append(loaded, string(content))
		}
		return err
	}
	var log bytes.Buffer
	r := newReloader(zerolog.New(&log), nil, nil)
	r.add("thing", load, path)
	now := time.Now().Add(reloadEvery)
	r.round(now)
	replaceFile(t, path, []byte("2"))
	r.round(now)
	r.round(now)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	r.round(now)
	r.round(now)
	replaceFile(t, path, []byte("3"))
	r.round(now)
	r.round(now)
	if diff := cmp.Diff([]string{"2", "3"}, loaded); diff != "" {
		t.Errorf("loaded (-want +got):\n%s", diff)
	}
	if got := strings.Count(log.String(), "what was read before stays"); got != 1 {
		t.Errorf("trouble was told %d times, want once:\n%s", got, &log)
	}
}

// A file that is written in place is empty for a moment, and is not read then.
func TestFilesThatAreBeingWrittenAreLeftForTheNextLook(t *testing.T) {
	path := writeFile(t, "1")
	var loaded []string
	r := newReloader(zerolog.Nop(), nil, nil)
	r.add("thing", func() error {
		content, err := os.ReadFile(path)
		loaded = append(loaded, string(content))
		return err
	}, path)
	now := time.Now()
	write := func(content string, at time.Time) {
		t.Helper()
		if err := errors.Join(os.WriteFile(path, []byte(content), 0o600), os.Chtimes(path, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	write("", now)
	r.round(now)
	r.round(now.Add(settleTime / 2))
	r.round(now.Add(-settleTime / 2)) // the file system's clock is not quite ours
	write("22", now)
	r.round(now.Add(settleTime))
	write("333", now.Add(time.Hour)) // by a clock that is wrong
	r.round(now.Add(settleTime))
	if diff := cmp.Diff([]string{"22", "333"}, loaded); diff != "" {
		t.Errorf("loaded (-want +got):\n%s", diff)
	}
}

func TestTheEndOfACertificateIsAnnounced(t *testing.T) {
	now, day := time.Now(), 24*time.Hour
	for _, row := range []struct {
		left time.Duration
		want string
	}{{31 * day, ""}, {29 * day, "ends soon"}, {-day, "has ended"}} {
		var log bytes.Buffer
		warn := expiryWarning(zerolog.New(&log), func() time.Time { return now.Add(row.left) }, func() time.Duration { return 30 * day })
		warn(now)
		warn(now.Add(time.Hour))
		if got := strings.Count(log.String(), "\n"); (got == 1) != (row.want != "") || !strings.Contains(log.String(), row.want) {
			t.Errorf("%v before its end: %q", row.left, &log)
		}
		if warn(now.Add(25 * time.Hour)); row.want != "" && strings.Count(log.String(), "\n") != 2 {
			t.Errorf("%v before its end the next day is silent", row.left)
		}
	}
}

// Over HTTP/2 a connection may be gone before its handlers are.
func TestStopWaitsForStreams(t *testing.T) {
	ca, dir := ocitest.NewCA(), t.TempDir()
	chain, key := pairFiles(t, dir, "tls", ca.Certificate())
	shown, err := certs.Open(certs.Files{Cert: chain, Key: key, ReadFile: readSmallFile})
	if err != nil {
		t.Fatal(err)
	}
	l, err := listen(t.Context(), "ENTREPOT_LISTEN", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	begun, left, release := make(chan struct{}), make(chan struct{}), make(chan struct{})
	s := startServer("registry", l, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(begun)
		<-r.Context().Done()
		close(left)
		<-release
	}), shown.Config(), 0, reports{log: zerolog.Nop(), failed: func(err error) { t.Error(err) }})
	client := tlsClient(t, ca, true)
	go func() {
		if resp, err := client.Get("https://" + l.Addr().String()); err == nil {
			resp.Body.Close()
		}
	}()
	<-begun
	stopped := make(chan struct{})
	go func() {
		ended, cancel := contextThatEnded()
		defer cancel()
		s.stop(ended, time.Minute)
		close(stopped)
	}()
	<-left // stop has cut the connection
	s.work.Wait()
	if isOver(stopped) {
		t.Error("stop returned before the handler")
	}
	close(release)
	<-stopped
}

// While an authority gives no certificate the log says why, and clients without
// TLS are served.
func TestAnACMEAuthorityInTrouble(t *testing.T) {
	asked := make(chan struct{}, 100)
	authority := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked <- struct{}{}
		w.WriteHeader(http.StatusForbidden)
	}))
	defer authority.Close()
	ca := writeFile(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority.Certificate().Raw})))
	p := startProgram(t, ocitest.NewHub(t, ocitest.Config{}), "ENTREPOT_TLS_ACME_DOMAINS=cache.example", "ENTREPOT_TLS_ACME_DIRECTORY="+authority.URL,
		"ENTREPOT_TLS_ACME_CA_FILE="+ca, "ENTREPOT_PLAIN_LISTEN=127.0.0.1:0")
	if status, body, _ := get(t, newClient(t), p.plain+"/v2/"); status != http.StatusOK {
		t.Errorf("without TLS: %d %s", status, body)
	}
	if resp, err := tlsClient(t, ocitest.NewCA(), true).Get(p.registry + "/v2/"); err == nil {
		resp.Body.Close()
		t.Errorf("over TLS: %s", resp.Status)
	}
	<-asked
	p.log.await(t, "no TLS certificate by ACME")
	if _, scrape, _ := get(t, newClient(t), p.admin+"/metrics"); !strings.Contains(scrape, "\nentrepot_tls_certificate_end_timestamp_seconds 0\n") {
		t.Error("the metric tells of a certificate")
	}
}

package certs

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"entrepot/internal/ocitest"
)

const acmeDomain = "cache.example"

// acmeAuthority gives a certificate to who shows, in the way that it asks for,
// that the name leads there. It believes every signature: what it checks is the
// challenge.
type acmeAuthority struct {
	*httptest.Server
	ca        *ocitest.CA
	challenge string                   // the type
	validate  func(token string) error // asks the server at the name
	proven    atomic.Bool
	issued    atomic.Int64
	chain     atomic.Pointer[[]byte]
}

func newACMEAuthority(t *testing.T, challenge string) *acmeAuthority {
	t.Helper()
	a := &acmeAuthority{ca: ocitest.NewCA(), challenge: challenge}
	a.Server = httptest.NewUnstartedServer(http.HandlerFunc(a.serve))
	a.TLS = &tls.Config{Certificates: []tls.Certificate{a.ca.Certificate()}}
	a.StartTLS()
	t.Cleanup(a.Close)
	return a
}

func (a *acmeAuthority) serve(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Replay-Nonce", fmt.Sprint(time.Now().UnixNano()))
	var body struct{ Payload string }
	raw, _ := io.ReadAll(r.Body)
	_ = json.Unmarshal(raw, &body)
	payload, _ := base64.RawURLEncoding.DecodeString(body.Payload)
	answer := func(status int, location string, v any) {
		if location != "" {
			w.Header().Set("Location", a.URL+location)
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v)
	}
	state := "pending"
	if a.proven.Load() {
		state = "valid"
	}
	challenge := map[string]any{"type": a.challenge, "url": a.URL + "/challenge", "token": "token", "status": state}
	switch r.URL.Path {
	case "/":
		answer(200, "", map[string]string{"newNonce": a.URL + "/nonce", "newAccount": a.URL + "/account", "newOrder": a.URL + "/order", "revokeCert": a.URL + "/revoke", "keyChange": a.URL + "/key"})
	case "/nonce":
	case "/account":
		answer(201, "/account/1", map[string]string{"status": "valid"})
	case "/authz":
		answer(200, "", map[string]any{"status": state, "identifier": map[string]string{"type": "dns", "value": acmeDomain}, "challenges": []any{challenge}})
	case "/challenge":
		if err := a.validate("token"); err != nil {
			answer(400, "", map[string]string{"type": "urn:ietf:params:acme:error:unauthorized", "detail": err.Error()})
			return
		}
		a.proven.Store(true)
		challenge["status"] = "valid"
		answer(200, "", challenge)
	case "/order", "/order/1":
		order := map[string]any{"status": "pending", "authorizations": []string{a.URL + "/authz"}, "finalize": a.URL + "/finalize"}
		if a.proven.Load() {
			order["status"] = "ready"
		}
		answer(map[string]int{"/order": 201}[r.URL.Path]+map[string]int{"/order/1": 200}[r.URL.Path], "/order/1", order)
	case "/finalize":
		var asked struct{ CSR string }
		_ = json.Unmarshal(payload, &asked)
		der, _ := base64.RawURLEncoding.DecodeString(asked.CSR)
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil || !a.proven.Load() {
			answer(403, "", map[string]string{"type": "urn:ietf:params:acme:error:unauthorized"})
			return
		}
		a.issued.Add(1)
		chain := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.ca.Sign(csr)})
		a.chain.Store(&chain)
		answer(200, "/order/1", map[string]any{"status": "valid", "certificate": a.URL + "/certificate", "finalize": a.URL + "/finalize"})
	case "/certificate":
		w.Header().Set("Content-Type", "application/pem-certificate-chain")
		_, _ = w.Write(*a.chain.Load())
	default:
		answer(404, "", map[string]string{"detail": r.URL.Path})
	}
}

// A certificate is asked for when the first client comes, in both ways that the
// authority may want it shown that the name is ours, and kept over a restart.
func TestACME(t *testing.T) {
	for _, challenge := range []string{"tls-alpn-01", "http-01"} {
		t.Run(challenge, func(t *testing.T) {
			a, d := newACMEAuthority(t, challenge), newDirectory(t)
			clients := ocitest.NewCA()
			files := Files{
				ReadFile: os.ReadFile, ClientCAs: d.write(t, "clients.crt", clients.PEM), RequireClient: true,
				ACME: &ACME{
					Domains: []string{acmeDomain}, Email: "ops@example", Directory: a.URL + "/", CAs: d.write(t, "ca.crt", a.ca.PEM), Dir: d.path("acme"),
					Warn: func(err error) { t.Error(err) },
				},
			}
			k := mustOpen(t, files)
			if !k.Ends().IsZero() || k.Names()[0] != acmeDomain || len(k.Paths()) != 2 {
				t.Errorf("before the first client: ends %v, names %q, files %q", k.Ends(), k.Names(), k.Paths())
			}
			address := serveTLS(t, k)
			plain := httptest.NewServer(k.Challenges(http.NotFoundHandler()))
			defer plain.Close()
			a.validate = func(token string) error {
				if challenge == "http-01" {
					resp, err := askAs(acmeDomain, plain.URL+"/.well-known/acme-challenge/"+token)
					if err != nil {
						return err
					}
					defer resp.Body.Close()
					if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK || !strings.HasPrefix(string(body), token+".") {
						return fmt.Errorf("%s %s", resp.Status, body)
					}
					return nil
				}
				conn, err := tls.Dial("tcp", address, &tls.Config{ServerName: acmeDomain, NextProtos: []string{"acme-tls/1"}, InsecureSkipVerify: true}) //nolint:gosec // as RFC 8737 has it
				if err != nil {
					return err
				}
				defer conn.Close()
				for _, e := range conn.ConnectionState().PeerCertificates[0].Extensions {
					if e.Id.String() == "1.3.6.1.5.5.7.1.31" {
						return nil
					}
				}
				return fmt.Errorf("no proof in the certificate")
			}
			for _, name := range []string{acmeDomain, ""} { // who sends no name is meant as well
				conn, err := tls.Dial("tcp", address, &tls.Config{ServerName: acmeDomain, RootCAs: a.ca.Pool(), Certificates: []tls.Certificate{clients.Client("alice")}})
				if name == "" {
					conn.Close()
					conn, err = tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{clients.Client("alice")}}) //nolint:gosec // an address is no name
				}
				if err != nil {
					t.Fatal(err)
				}
				if got := conn.ConnectionState().PeerCertificates[0]; got.VerifyHostname(acmeDomain) != nil || !got.NotAfter.Equal(k.Ends()) {
					t.Errorf("shown is %v until %v, told is %v", got.DNSNames, got.NotAfter, k.Ends())
				}
				if got := k.Notice(); got < 8*24*time.Hour || got > 10*24*time.Hour {
					t.Errorf("of ninety days, %v before the end somebody is told, want about nine days", got)
				}
				conn.Close()
			}
			again := serveTLS(t, mustOpen(t, files))
			conn, err := tls.Dial("tcp", again, &tls.Config{ServerName: acmeDomain, RootCAs: a.ca.Pool(), Certificates: []tls.Certificate{clients.Client("alice")}})
			if err != nil {
				t.Fatal(err)
			}
			conn.Close()
			if n := a.issued.Load(); n != 1 {
				t.Errorf("the authority issued %d certificates, want 1", n)
			}
			kept, err := filepath.Glob(d.path("acme/*"))
			if err != nil || len(kept) == 0 {
				t.Fatalf("nothing is kept: %v", err)
			}
			for _, path := range kept {
				if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
					t.Errorf("%s is kept as %v (%v)", path, info.Mode(), err)
				}
			}
		})
	}
}

// Who vouches for the authority's own server may change.
func TestWhoVouchesForAnACMEAuthorityIsReadAgain(t *testing.T) {
	a, d := newACMEAuthority(t, "tls-alpn-01"), newDirectory(t)
	var asked atomic.Int64
	a.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.WriteHeader(http.StatusForbidden)
	})
	a.Config.ErrorLog = log.New(io.Discard, "", 0)
	k := mustOpen(t, Files{ReadFile: os.ReadFile, ACME: &ACME{
		Domains: []string{acmeDomain, "other.example"}, Directory: a.URL + "/", CAs: d.write(t, "ca.crt", ocitest.NewCA().PEM), Dir: d.path("acme"), Warn: func(error) {},
	}})
	shake := func(name string) { // for one name it is asked once a minute
		if _, _, err := handshake(t, k, &tls.Config{ServerName: name, RootCAs: a.ca.Pool()}); err == nil {
			t.Error("there is a certificate")
		}
	}
	if shake(acmeDomain); asked.Load() > 0 {
		t.Error("an authority that nobody vouches for is spoken to")
	}
	d.write(t, "ca.crt", []byte("nonsense"))
	if err := k.Reload(); err == nil {
		t.Error("nonsense is taken for certificates")
	}
	d.write(t, "ca.crt", a.ca.PEM)
	if err := k.Reload(); err != nil {
		t.Fatal(err)
	}
	if shake("other.example"); asked.Load() == 0 {
		t.Error("it is not spoken to, though there is now who vouches for it")
	}
}

// askAs asks for a URL as if its host were called name.
func askAs(name, url string) (*http.Response, error) {
	r, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	r.Host = name
	r.Close = true
	return http.DefaultClient.Do(r)
}

// serveTLS shakes hands with everybody until the test ends.
func serveTLS(t *testing.T, k *Keeper) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{TLSConfig: k.Config(), Handler: http.NotFoundHandler()} //nolint:gosec // a test's
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.ServeTLS(l, "", "")
	}()
	t.Cleanup(func() {
		s.Close()
		<-ended
	})
	return l.Addr().String()
}

// Names that are not ours are not asked for, and an authority that leads
// elsewhere is not followed.
func TestACMEAsksForNothingElse(t *testing.T) {
	var asked atomic.Int64
	count := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) })
	elsewhere, trusted := httptest.NewServer(count), httptest.NewUnstartedServer(count)
	defer elsewhere.Close()
	a, d := newACMEAuthority(t, "tls-alpn-01"), newDirectory(t)
	trusted.TLS = &tls.Config{Certificates: []tls.Certificate{a.ca.Certificate()}}
	trusted.StartTLS()
	defer trusted.Close()
	var requests atomic.Int64
	a.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		if r.URL.Path == "/redirects" {
			http.Redirect(w, r, trusted.URL, http.StatusFound)
			return
		}
		fmt.Fprintf(w, `{"newNonce": %q, "newAccount": %[1]q, "newOrder": %[1]q}`, elsewhere.URL)
	})
	for _, directory := range []string{"/redirects", "/points"} {
		var warned atomic.Int64
		requests.Store(0)
		k := mustOpen(t, Files{ReadFile: os.ReadFile, ACME: &ACME{
			Domains: []string{acmeDomain}, Directory: a.URL + directory, CAs: d.write(t, "ca.crt", a.ca.PEM), Dir: d.path("acme" + directory),
			Warn: func(error) { warned.Add(1) },
		}})
		if _, _, err := handshake(t, k, &tls.Config{ServerName: "evil.example", RootCAs: a.ca.Pool()}); err == nil || requests.Load() != 0 || warned.Load() != 0 {
			t.Errorf("for another name: %v, and the authority was asked", err)
		}
		if _, _, err := handshake(t, k, &tls.Config{ServerName: acmeDomain, RootCAs: a.ca.Pool()}); err == nil || warned.Load() != 1 {
			t.Errorf("%s: %v, warned %d times", directory, err, warned.Load())
		}
	}
	if asked.Load() > 0 {
		t.Error("somebody else was asked")
	}
}

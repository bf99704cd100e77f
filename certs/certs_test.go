package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/internal/ocitest"

	"go.uber.org/goleak"
	"software.sslmate.com/src/go-pkcs12"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// directory has files by short names.
type directory string

func newDirectory(t *testing.T) directory {
	t.Helper()
	return directory(t.TempDir())
}

func (d directory) path(name string) string { return filepath.Join(string(d), name) }

func (d directory) write(t *testing.T, name string, content []byte) string {
	t.Helper()
	if err := os.WriteFile(d.path(name), content, 0o600); err != nil {
		t.Fatal(err)
	}
	return d.path(name)
}

func (d directory) pair(t *testing.T, c tls.Certificate) Files {
	t.Helper()
	chain, key := ocitest.KeyPair(c)
	return Files{Cert: d.write(t, "tls.crt", chain), Key: d.write(t, "tls.key", key), ReadFile: os.ReadFile}
}

func (d directory) pfx(t *testing.T, c tls.Certificate, password string, others ...*x509.Certificate) Files {
	t.Helper()
	content, err := pkcs12.Modern.Encode(c.PrivateKey, c.Leaf, others, password)
	if err != nil {
		t.Fatal(err)
	}
	return Files{PFX: d.write(t, "tls.pfx", content), PFXPassword: func() (string, error) { return password, nil }, ReadFile: os.ReadFile}
}

// handshake shakes hands, and gives what either side has then.
func handshake(t *testing.T, k *Keeper, client *tls.Config) (server, seen tls.ConnectionState, err error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") // not a pipe: the server's last words would wait for a reader
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	ended := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			defer conn.Close()
			s := tls.Server(conn, k.Config())
			err = s.Handshake()
			server = s.ConnectionState()
		}
		ended <- err
	}()
	c := tls.Client(raw, client)
	if err = c.Handshake(); err != nil {
		raw.Close()
	}
	err = errors.Join(err, <-ended)
	return server, c.ConnectionState(), err
}

func mustOpen(t *testing.T, files Files) *Keeper {
	t.Helper()
	k, err := Open(files)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestCertificatesAreShown(t *testing.T) {
	ca := ocitest.NewCA()
	soon := time.Now().Add(time.Hour).Truncate(time.Second)
	c := ca.Issue(func(c *x509.Certificate) { c.NotAfter, c.DNSNames = soon, []string{"cache.example"} })
	for name, files := range map[string]func(directory) Files{
		"PEM":                        func(d directory) Files { return d.pair(t, c) },
		"PFX":                        func(d directory) Files { return d.pfx(t, c, "hunter2", ca.Root()) },
		"PFX with an empty password": func(d directory) Files { return d.pfx(t, c, "", ca.Root()) },
		"PEM in one file": func(d directory) Files {
			chain, key := ocitest.KeyPair(c)
			one := d.write(t, "both", append(chain, key...))
			return Files{Cert: one, Key: one, ReadFile: os.ReadFile}
		},
	} {
		t.Run(name, func(t *testing.T) {
			k := mustOpen(t, files(newDirectory(t)))
			_, seen, err := handshake(t, k, &tls.Config{RootCAs: ca.Pool(), ServerName: "cache.example", NextProtos: []string{"h2"}})
			if err != nil {
				t.Fatal(err)
			}
			if len(seen.PeerCertificates) != 1 || !seen.PeerCertificates[0].Equal(c.Leaf) || seen.NegotiatedProtocol != "h2" {
				t.Errorf("%d certificates are shown, over %q", len(seen.PeerCertificates), seen.NegotiatedProtocol)
			}
			if !k.Ends().Equal(soon) {
				t.Errorf("it ends at %v, want %v", k.Ends(), soon)
			}
			if got := k.Names(); got[0] != "cache.example" {
				t.Errorf("it is for %q", got)
			}
		})
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	ca := ocitest.NewCA()
	k := mustOpen(t, newDirectory(t).pair(t, ca.Certificate()))
	for version, want := range map[uint16]bool{tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		_, _, err := handshake(t, k, &tls.Config{RootCAs: ca.Pool(), ServerName: "localhost", MinVersion: tls.VersionTLS10, MaxVersion: version})
		if (err == nil) != want {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
	}
}

func TestClientCertificates(t *testing.T) {
	ca, stranger := ocitest.NewCA(), ocitest.NewCA()
	for _, row := range []struct {
		name    string
		require bool
		client  []tls.Certificate
		want    string // the user; empty for none
		refused bool
	}{
		{"may be missing", false, nil, "", false},
		{"are asked for", false, []tls.Certificate{ca.Client("alice")}, "alice", false},
		{"of strangers", false, []tls.Certificate{stranger.Client("alice")}, "", true},
		{"must be there", true, nil, "", true},
		{"are there", true, []tls.Certificate{ca.Client("alice")}, "alice", false},
		{"that have ended", true, []tls.Certificate{ca.Issue(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })}, "", true},
		{"for servers only", true, []tls.Certificate{ca.Issue(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })}, "", true},
	} {
		t.Run(row.name, func(t *testing.T) {
			d := newDirectory(t)
			files := d.pair(t, ca.Certificate())
			files.ClientCAs, files.RequireClient = d.write(t, "ca.crt", ca.PEM), row.require
			given := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				if len(row.client) == 0 {
					return new(tls.Certificate), nil
				}
				return &row.client[0], nil
			}
			server, _, err := handshake(t, mustOpen(t, files), &tls.Config{RootCAs: ca.Pool(), ServerName: "localhost", GetClientCertificate: given})
			if (err != nil) != row.refused {
				t.Fatalf("the handshake ends with %v", err)
			}
			got := ""
			if len(server.VerifiedChains) > 0 {
				got = server.VerifiedChains[0][0].Subject.CommonName
			}
			if !row.refused && got != row.want {
				t.Errorf("the client is %q, want %q", got, row.want)
			}
		})
	}
}

// A session that is resumed shows no certificate: an authority that was taken
// away is not believed in it either.
func TestAuthoritiesThatAreTakenAway(t *testing.T) {
	ca, issuer := ocitest.NewCA(), ocitest.NewCA()
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		d := newDirectory(t)
		files := d.pair(t, ca.Certificate())
		files.ClientCAs = d.write(t, "ca.crt", issuer.PEM)
		k := mustOpen(t, files)
		config := k.Config() // one for all handshakes, as a server has it
		client := &tls.Config{RootCAs: ca.Pool(), ServerName: "localhost", Certificates: []tls.Certificate{issuer.Client("alice")}, ClientSessionCache: tls.NewLRUClientSessionCache(1), MaxVersion: version}
		shake := func() (server tls.ConnectionState, err error) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			raw, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			left := make(chan struct{})
			go func() {
				defer close(left)
				defer raw.Close()
				_, _ = io.Copy(io.Discard, tls.Client(raw, client)) // also takes the ticket
			}()
			conn, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			s := tls.Server(conn, config)
			err = s.Handshake()
			server = s.ConnectionState()
			s.Close()
			<-left
			return server, err
		}
		for _, resumed := range []bool{false, true} {
			if server, err := shake(); err != nil || server.DidResume != resumed || len(server.VerifiedChains) == 0 {
				t.Fatalf("with %s: %v, resumed %t, want %t", tls.VersionName(version), err, server.DidResume, resumed)
			}
		}
		d.write(t, "ca.crt", ocitest.NewCA().PEM)
		if err := k.Reload(); err != nil {
			t.Fatal(err)
		}
		if server, err := shake(); err == nil {
			t.Errorf("with %s: what was taken away is believed (%d chains, resumed %t)", tls.VersionName(version), len(server.VerifiedChains), server.DidResume)
		}
	}
}

// A connection that stands is worth what a handshake would be now.
func TestTrustIsWhatAHandshakeWouldSay(t *testing.T) {
	ca, issuer, other := ocitest.NewCA(), ocitest.NewCA(), ocitest.NewCA() // of one name
	middle := issuer.Intermediate("middle")
	direct, byMiddle := issuer.Client("alice"), middle.Client("alice")
	byMiddle.Certificate = append(byMiddle.Certificate, middle.Root().Raw)
	forClients := issuer.Issue(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
	for name, row := range map[string]struct {
		own  tls.Certificate
		now  []*ocitest.CA
		want bool
	}{
		"the same":                      {direct, []*ocitest.CA{issuer}, true},
		"one more":                      {direct, []*ocitest.CA{other, issuer}, true},
		"issued anew":                   {direct, []*ocitest.CA{issuer.Reissued()}, true},
		"issued anew, with one between": {byMiddle, []*ocitest.CA{issuer.Reissued()}, true},
		"the one between alone":         {byMiddle, []*ocitest.CA{middle}, true},
		"issued anew, not for servers":  {forClients, []*ocitest.CA{issuer.Reissued()}, true},
		"issued anew, for servers":      {direct, []*ocitest.CA{issuer.Reissued(x509.ExtKeyUsageServerAuth)}, false},
		"another one of that name":      {direct, []*ocitest.CA{other}, false},
		"another one, with one between": {byMiddle, []*ocitest.CA{other}, false},
		"one that was between":          {direct, []*ocitest.CA{middle}, false},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDirectory(t)
			files := d.pair(t, ca.Certificate())
			files.ClientCAs, files.RequireClient = d.write(t, "ca.crt", issuer.PEM), true
			k, client := mustOpen(t, files), &tls.Config{RootCAs: ca.Pool(), ServerName: "localhost", Certificates: []tls.Certificate{row.own}}
			standing, _, err := handshake(t, k, client)
			if err != nil || !k.Trusts(&standing) || k.Refuses(&standing) {
				t.Fatalf("at first: %v", err)
			}
			var all []byte
			for _, one := range row.now {
				all = append(all, one.PEM...)
			}
			d.write(t, "ca.crt", all)
			if err := k.Reload(); err != nil {
				t.Fatal(err)
			}
			_, _, err = handshake(t, k, client)
			if got := k.Trusts(&standing); got != row.want || got != (err == nil) || k.Refuses(&standing) == got {
				t.Errorf("the connection is trusted: %t, want %t; a new one is refused with %v", got, row.want, err)
			}
		})
	}
}

// Nor does a connection outlive the end of the client's certificate, or of its
// authority's.
func TestTrustEndsWithTheCertificates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, d := ocitest.NewCA(), newDirectory(t)
		files := d.pair(t, ca.Certificate())
		files.ClientCAs = d.write(t, "ca.crt", ca.PEM)
		k := mustOpen(t, files)
		standing := func(hours int) *tls.ConnectionState {
			leaf := ca.Issue(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(time.Duration(hours) * time.Hour) }).Leaf
			return &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}, VerifiedChains: [][]*x509.Certificate{{leaf, ca.Root()}}}
		}
		short, long := standing(1), standing(48)
		time.Sleep(2 * time.Hour)
		if k.Trusts(short) || !k.Trusts(long) {
			t.Errorf("after two hours one of one hour is trusted: %t, one of two days: %t", k.Trusts(short), k.Trusts(long))
		}
		time.Sleep(24 * time.Hour)
		if k.Trusts(long) {
			t.Error("after its authority's end a certificate is trusted")
		}
		d.write(t, "ca.crt", ca.Reissued().PEM)
		if err := k.Reload(); err != nil || !k.Trusts(long) {
			t.Errorf("when its authority was issued anew it is not trusted: %v", err)
		}
		none := new(tls.ConnectionState)
		if k.Trusts(none) || k.Trusts(nil) || k.Refuses(none) {
			t.Error("who shows no certificate is trusted, or refused where none is required")
		}
	})
}

// What is read again is shown in the next handshake; what is bad changes
// nothing.
func TestReload(t *testing.T) {
	ca, d := ocitest.NewCA(), newDirectory(t)
	first, second := ca.Certificate(), ca.Certificate("new.example")
	k := mustOpen(t, d.pair(t, first))
	shown := func() *x509.Certificate {
		t.Helper()
		_, seen, err := handshake(t, k, &tls.Config{RootCAs: ca.Pool(), ServerName: "localhost"})
		if err != nil {
			t.Fatal(err)
		}
		return seen.PeerCertificates[0]
	}
	chain, key := ocitest.KeyPair(second)
	d.write(t, "tls.crt", chain) // the key is still the old one
	if err := k.Reload(); err == nil || !strings.Contains(err.Error(), "tls.key") {
		t.Errorf("half of a change is read with %v", err)
	}
	if !shown().Equal(first.Leaf) {
		t.Error("half of a change is shown")
	}
	d.write(t, "tls.key", key)
	if err := k.Reload(); err != nil {
		t.Fatal(err)
	}
	if !shown().Equal(second.Leaf) {
		t.Error("the old certificate is shown after a change")
	}
}

func TestBadFilesAreExplained(t *testing.T) {
	ca := ocitest.NewCA()
	pair, other := ca.Certificate(), ca.Certificate()
	chain, key := ocitest.KeyPair(pair)
	_, otherKey := ocitest.KeyPair(other)
	d := newDirectory(t)
	pem := func(chain, key []byte) Files {
		d := newDirectory(t)
		return Files{Cert: d.write(t, "c", chain), Key: d.write(t, "k", key), ReadFile: os.ReadFile}
	}
	wrong := func() (string, error) { return "wrong", nil }
	for name, row := range map[string]struct {
		files Files
		want  string
	}{
		"absent":         {Files{Cert: d.path("absent"), Key: d.path("absent"), ReadFile: os.ReadFile}, "no such file"},
		"no certificate": {pem([]byte("x"), key), "want PEM"},
		"no key":         {pem(chain, chain), "want PEM"},
		"another's key":  {pem(chain, otherKey), "does not match"},
		"a passphrase":   {pem(chain, []byte("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")), "passphrase"},
		"no PFX":         {Files{PFX: d.write(t, "x", []byte("x")), ReadFile: os.ReadFile}, "PKCS#12"},
		"wrong password": {func() Files { f := d.pfx(t, pair, "hunter2"); f.PFXPassword = wrong; return f }(), "does not open with the password"},
		"PFX, other key": {newDirectory(t).pfx(t, tls.Certificate{PrivateKey: other.PrivateKey, Leaf: pair.Leaf}, "x"), "not its certificate's"},
		"no authorities": {func() Files { f := newDirectory(t).pair(t, pair); f.ClientCAs = d.path("x"); return f }(), "holds no certificate"},
		"absent password": {func() Files {
			f := newDirectory(t).pfx(t, pair, "x")
			f.PFXPassword = func() (string, error) { return "", os.ErrNotExist }
			return f
		}(), "not exist"},
	} {
		if _, err := Open(row.files); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v, want %q in it", name, err, row.want)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the password is in %v", name, err)
		}
	}
}

// A PFX brings its chain in any order, and its root, which is not shown.
func TestChainOfAPFX(t *testing.T) {
	root := ocitest.NewCA()
	middle := root.Intermediate("middle")
	leaf := middle.Certificate()
	k := mustOpen(t, newDirectory(t).pfx(t, leaf, "x", root.Root(), middle.Root()))
	_, seen, err := handshake(t, k, &tls.Config{RootCAs: root.Pool(), ServerName: "localhost"})
	if err != nil {
		t.Fatal(err)
	}
	if len(seen.PeerCertificates) != 2 || !seen.PeerCertificates[1].Equal(middle.Root()) {
		t.Errorf("%d certificates are shown", len(seen.PeerCertificates))
	}
}

func FuzzPFX(f *testing.F) {
	ca := ocitest.NewCA()
	c := ca.Certificate()
	content, err := pkcs12.Modern.Encode(c.PrivateKey, c.Leaf, nil, "x")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(content)
	f.Add([]byte{0x30, 0x80})
	f.Fuzz(func(t *testing.T, content []byte) {
		files := Files{PFX: "x", ReadFile: func(string) ([]byte, error) { return content, nil }}
		if k, err := Open(files); err == nil && k.Ends().IsZero() {
			t.Error("a certificate without an end")
		}
	})
}

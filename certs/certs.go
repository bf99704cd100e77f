// Package certs keeps what TLS shows and trusts: the server's certificate, from
// PEM files, a PKCS#12 file or an ACME authority, and the authorities of clients' certificates. It
// reads the files again when it is told to, and knows no requests.
//
// Start with Keeper.
package certs

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"software.sslmate.com/src/go-pkcs12"
)

// Files says where everything stands. Either Cert and Key are set, or PFX, or
// ACME.
type Files struct {
	Cert, Key     string                 // PEM: the chain, the server's own first, and its key; may be one file
	PFX           string                 // PKCS#12: both
	PFXPassword   func() (string, error) // nil: none
	ACME          *ACME
	ClientCAs     string // PEM: who may issue clients' certificates; empty: clients need none
	RequireClient bool   // a client without one is refused in the handshake

	// ReadFile reads a small file. Required.
	ReadFile func(path string) ([]byte, error)
}

// paths are the files that are read.
func (f *Files) paths() []string {
	all := []string{f.Cert, f.Key, f.PFX, f.ClientCAs}
	if f.ACME != nil {
		all = append(all, f.ACME.CAs)
	}
	return slices.DeleteFunc(all, func(path string) bool { return path == "" })
}

// Keeper has what is shown and trusted now.
type Keeper struct {
	files   Files
	issued  *issued // nil unless certificates come from an authority
	current atomic.Pointer[state]
}

// state is what was read at one time. It never changes.
type state struct {
	config *tls.Config
	leaf   *x509.Certificate
	ends   time.Time // when the first certificate of the chain ends

	clientCAs []*x509.Certificate
}

// Open reads the files. Its errors name the file, the reason and the remedy.
func Open(files Files) (*Keeper, error) {
	k := &Keeper{files: files}
	if files.ACME != nil {
		k.issued = newIssued(files.ACME)
	}
	return k, k.Reload()
}

// Paths are the files that Reload reads.
func (k *Keeper) Paths() []string { return k.files.paths() }

// Reload reads the files again. After an error everything is as it was.
// Connections that stand are not touched: what was read is for handshakes to
// come, and for Trusts.
func (k *Keeper) Reload() error {
	s, err := k.readState()
	if err != nil {
		return err
	}
	if k.files.ClientCAs != "" {
		if s.clientCAs, err = readAuthorities(k.files.ReadFile, k.files.ClientCAs); err != nil {
			return err
		}
		s.config.ClientCAs = poolOf(s.clientCAs)
		s.config.ClientAuth = tls.VerifyClientCertIfGiven
		if k.files.RequireClient {
			s.config.ClientAuth = tls.RequireAndVerifyClientCert
		}
	}
	if k.issued != nil {
		if err := k.issued.trust(k.files.ReadFile); err != nil {
			return err
		}
	}
	k.current.Store(s)
	return nil
}

func (k *Keeper) readState() (*state, error) {
	if k.issued != nil {
		return k.issued.state(), nil
	}
	pair, err := k.files.readCertificate()
	if err != nil {
		return nil, err
	}
	s := &state{leaf: pair.Leaf, config: newConfig()}
	s.config.Certificates = []tls.Certificate{pair}
	s.ends, err = chainEnd(pair.Certificate)
	return s, err
}

// newConfig has what does not come from files. What is not set here is as
// crypto/tls thinks best; it prefers what is safest.
func newConfig() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
}

// Config is for a server: each handshake uses what is current then.
func (k *Keeper) Config() *tls.Config {
	config := newConfig()
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if k.issued != nil && isChallenge(hello) {
			challenge := newConfig() // the authority has no certificate of a client's
			challenge.NextProtos, challenge.GetCertificate = hello.SupportedProtos, k.issued.certificate
			return challenge, nil
		}
		return k.current.Load().config, nil
	}
	return config
}

// Trusts reports whether a handshake would now accept the client's certificate of
// a connection, which one has accepted before: a connection may outlive that
// certificate's end, and its authority. An authority that was issued anew for the
// same key is the same one. Where its certificate is another one this verifies
// the client's again each time, for some tenths of a millisecond.
func (k *Keeper) Trusts(c *tls.ConnectionState) bool {
	s, now := k.current.Load(), time.Now()
	if c == nil || len(c.VerifiedChains) == 0 || s.config.ClientCAs == nil {
		return false
	}
	if slices.ContainsFunc(c.VerifiedChains, func(chain []*x509.Certificate) bool { return s.hasVerified(chain, now) }) {
		return true
	}
	_, err := c.PeerCertificates[0].Verify(x509.VerifyOptions{ // as crypto/tls does
		Roots: s.config.ClientCAs, Intermediates: poolOf(c.PeerCertificates[1:]), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return err == nil
}

// hasVerified reports whether a chain that was verified would be again: it ends
// in an authority that is still one, and no certificate of it has ended.
func (s *state) hasVerified(chain []*x509.Certificate, now time.Time) bool {
	return slices.ContainsFunc(s.clientCAs, chain[len(chain)-1].Equal) &&
		!slices.ContainsFunc(chain, func(c *x509.Certificate) bool { return now.After(c.NotAfter) })
}

// Refuses reports whether a connection is one that a handshake would not make now,
// since clients have to show a certificate.
func (k *Keeper) Refuses(c *tls.ConnectionState) bool {
	return k.files.RequireClient && !k.Trusts(c)
}

// Ends is when a certificate of the chain that is shown ends, the first of them.
// It is zero while an authority has not given any.
func (k *Keeper) Ends() time.Time {
	if k.issued != nil {
		return k.issued.end()
	}
	return k.current.Load().ends
}

// Notice is how long before Ends somebody should be told: thirty days, or when
// an authority should have renewed the certificate long ago.
func (k *Keeper) Notice() time.Duration {
	if k.issued != nil {
		return k.issued.notice()
	}
	return 30 * 24 * time.Hour
}

// Names are the names that the server's certificate is for, as it lists them.
func (k *Keeper) Names() []string {
	if k.issued != nil {
		return k.files.ACME.Domains
	}
	leaf := k.current.Load().leaf
	names := slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}

func (f *Files) readCertificate() (tls.Certificate, error) {
	if f.PFX != "" {
		return f.readPFX()
	}
	chain, err := f.ReadFile(f.Cert)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := f.ReadFile(f.Key)
	if err != nil {
		return tls.Certificate{}, err
	}
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		// The library's text says which of both it means. A key that is
		// encrypted it only does not find.
		if bytes.Contains(key, []byte("ENCRYPTED")) {
			return tls.Certificate{}, fmt.Errorf("%q holds a key with a passphrase: want it without, as openssl pkey -in %s makes it, or a PKCS#12 file", f.Key, f.Key)
		}
		return tls.Certificate{}, fmt.Errorf("%q and %q make no certificate with its key: %s: want PEM, the server's own certificate first", f.Cert, f.Key, strings.TrimPrefix(err.Error(), "tls: "))
	}
	return pair, nil
}

// readPFX reads key, certificate and those between it and its root. A root
// itself is not shown: whoever trusts it has it.
func (f *Files) readPFX() (tls.Certificate, error) {
	content, err := f.ReadFile(f.PFX)
	if err != nil {
		return tls.Certificate{}, err
	}
	password := ""
	if f.PFXPassword != nil {
		if password, err = f.PFXPassword(); err != nil {
			return tls.Certificate{}, err
		}
	}
	key, leaf, others, err := pkcs12.DecodeChain(content, password)
	switch {
	case errors.Is(err, pkcs12.ErrIncorrectPassword), errors.Is(err, pkcs12.ErrDecryption):
		return tls.Certificate{}, fmt.Errorf("%q does not open with the password that is set for it", f.PFX)
	case err != nil:
		return tls.Certificate{}, fmt.Errorf("%q is not read: %s: want PKCS#12 with one key and its certificate, as openssl pkcs12 -export makes it", f.PFX, strings.TrimPrefix(err.Error(), "pkcs12: "))
	}
	signer, ok := key.(crypto.Signer)
	if !ok || !samePublicKey(signer.Public(), leaf.PublicKey) {
		return tls.Certificate{}, fmt.Errorf("%q holds a key that is not its certificate's", f.PFX)
	}
	pair := tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	for issuer := leaf.RawIssuer; ; { // a client may insist on the order
		i := slices.IndexFunc(others, func(c *x509.Certificate) bool { return bytes.Equal(c.RawSubject, issuer) })
		if i < 0 || bytes.Equal(others[i].RawSubject, others[i].RawIssuer) {
			return pair, nil
		}
		pair.Certificate = append(pair.Certificate, others[i].Raw)
		issuer = others[i].RawIssuer
		others = slices.Delete(others, i, i+1)
	}
}

func samePublicKey(a, b any) bool {
	key, ok := a.(interface{ Equal(x crypto.PublicKey) bool })
	return ok && key.Equal(b)
}

func noCertificateError(path string) error {
	return fmt.Errorf("%q holds no certificate: want PEM, -----BEGIN CERTIFICATE-----", path)
}

// chainEnd is when the first certificate of a chain ends.
func chainEnd(chain [][]byte) (ends time.Time, err error) {
	for _, der := range chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return time.Time{}, fmt.Errorf("a certificate of the chain is malformed: %w", err)
		}
		if ends.IsZero() || c.NotAfter.Before(ends) {
			ends = c.NotAfter
		}
	}
	return ends, nil
}

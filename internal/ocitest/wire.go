package ocitest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"time"
)

// CA is a certificate authority for tests.
type CA struct {
	PEM  []byte // its certificate
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCA makes an authority that nobody trusts yet.
func NewCA() *CA { return newCA("ocitest CA", nil) }

// Intermediate is an authority that ca vouches for.
func (ca *CA) Intermediate(name string) *CA { return newCA(name, ca) }

// Reissued is the authority with another certificate, from now on, for the same
// name and key, and for these uses; without any it is for all.
func (ca *CA) Reissued(uses ...x509.ExtKeyUsage) *CA {
	return certify(ca.cert.Subject.CommonName, ca.key, nil, uses...)
}

// newCA makes an authority; without an issuer it vouches for itself.
func newCA(name string, issuer *CA) *CA {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	return certify(name, key, issuer)
}

func certify(name string, key *ecdsa.PrivateKey, issuer *CA, uses ...x509.ExtKeyUsage) *CA {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, ExtKeyUsage: uses,
	}
	parent, signer := template, key
	if issuer != nil {
		parent, signer = issuer.cert, issuer.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	must(err)
	cert, err := x509.ParseCertificate(der)
	must(err)
	return &CA{PEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), cert: cert, key: key}
}

// Certificate is a server's certificate for these names beside "localhost" and
// the loopback addresses.
func (ca *CA) Certificate(names ...string) tls.Certificate {
	return ca.Issue(func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, names...) })
}

// Client is the certificate of a user in groups.
func (ca *CA) Client(user string, groups ...string) tls.Certificate {
	return ca.Issue(func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: user, Organization: groups} })
}

// Issue makes a certificate, for a server or a client, that change has the last
// word on.
func (ca *CA) Issue(change func(*x509.Certificate)) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "ocitest server"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:    []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	change(template)
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	must(err)
	leaf, err := x509.ParseCertificate(der)
	must(err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// Sign is the certificate, in DER, that is asked for by a request.
func (ca *CA) Sign(csr *x509.CertificateRequest) []byte {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: csr.Subject, DNSNames: csr.DNSNames,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(90 * 24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, csr.PublicKey, ca.key)
	must(err)
	return der
}

// KeyPair is a certificate and its key in PEM.
func KeyPair(c tls.Certificate) (chain, key []byte) {
	for _, der := range c.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	must(err)
	return chain, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// Root is the authority's own certificate.
func (ca *CA) Root() *x509.Certificate { return ca.cert }

// Pool trusts this authority alone.
func (ca *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	return pool
}

func (h *Hub) tlsConfig() *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{h.ca.Certificate(h.cfg.Hostname)},
		NextProtos:   []string{"h2", "http/1.1"},
	}
}

// shapedListener's connections write no faster than the habits say.
type shapedListener struct {
	net.Listener
	hub *Hub
}

func (l shapedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &shapedConn{Conn: conn, hub: l.hub}, nil
}

// shapedConn paces one connection. Only the server's one writer touches next.
type shapedConn struct {
	net.Conn
	hub  *Hub
	next time.Time // when the line is free again
}

func (c *shapedConn) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		piece := p[done:]
		if rate := c.hub.current().Rate; rate > 0 {
			piece = piece[:min(len(piece), int(max(1, min(32<<10, rate/50))))]
			c.pace(len(piece), rate)
		}
		n, err := c.Conn.Write(piece)
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// oversleep is what a line may make up for. Sleeps last a millisecond longer
// than asked; without this the line would give little more than half of its rate.
const oversleep = 10 * time.Millisecond

func (c *shapedConn) pace(n int, rate int64) {
	now := time.Now()
	earliest := now.Add(-oversleep)
	if c.next.IsZero() {
		earliest = now
	}
	if c.next.Before(earliest) {
		c.next = earliest
	}
	c.next = c.next.Add(time.Duration(n) * time.Second / time.Duration(rate))
	if wait := c.next.Sub(now); wait > time.Millisecond {
		time.Sleep(wait)
	}
}

package certs

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
)

// ACME says which authority to ask for certificates (RFC 8555), and for which
// names. Its terms are agreed to.
type ACME struct {
	Domains   []string
	Email     string // for the authority to write to; may be empty
	Directory string // its URL; empty: Let's Encrypt
	CAs       string // PEM file of authorities to trust there; empty: the system's; read by Reload
	Dir       string // where keys and certificates are kept
	Proxy     func(*http.Request) (*url.URL, error)
	// Warn is told what went wrong with a handshake's certificate, which may be
	// often. Required.
	Warn func(err error)
}

// issued is what an authority gave us last.
type issued struct {
	acme      *ACME
	manager   *autocert.Manager
	leaf      atomic.Pointer[x509.Certificate]
	transport atomic.Pointer[http.Transport] // by which the authority is asked; another one trusts others
}

// authorityTimeout bounds one request to an authority.
const authorityTimeout = 30 * time.Second

// newIssued is for trust, before anybody is asked.
func newIssued(a *ACME) *issued {
	i := &issued{acme: a}
	i.manager = &autocert.Manager{
		Prompt: autocert.AcceptTOS, Cache: autocert.DirCache(a.Dir), HostPolicy: autocert.HostWhitelist(a.Domains...), Email: a.Email,
		Client: &acme.Client{DirectoryURL: a.Directory, HTTPClient: &http.Client{Transport: secureOnly{i}, Timeout: authorityTimeout, CheckRedirect: noRedirect}},
	}
	return i
}

// trust reads who vouches for the authority's own server. It holds for
// connections to come.
func (i *issued) trust(readFile func(string) ([]byte, error)) error {
	t := &http.Transport{Proxy: i.acme.Proxy, TLSClientConfig: new(tls.Config), TLSHandshakeTimeout: authorityTimeout, IdleConnTimeout: authorityTimeout, ForceAttemptHTTP2: true}
	if i.acme.CAs != "" {
		authorities, err := readAuthorities(readFile, i.acme.CAs)
		if err != nil {
			return err
		}
		t.TLSClientConfig.RootCAs = poolOf(authorities)
	}
	if old := i.transport.Swap(t); old != nil {
		old.CloseIdleConnections()
	}
	return nil
}

// secureOnly keeps to https, wherever a directory points.
type secureOnly struct{ issued *issued }

func (s secureOnly) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" {
		return nil, errors.New("the authority names an address without TLS")
	}
	return s.issued.transport.Load().RoundTrip(r)
}

func noRedirect(*http.Request, []*http.Request) error {
	return errors.New("the authority redirects elsewhere")
}

// certificate is for a handshake. The first one for a name asks the authority,
// and may end before that has answered; what comes is kept all the same. A client
// that sends no name gets the first one's.
func (i *issued) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if hello.ServerName == "" {
		named := *hello
		named.ServerName = i.acme.Domains[0]
		hello = &named
	}
	c, err := i.manager.GetCertificate(hello)
	if err != nil {
		if slices.Contains(i.acme.Domains, hello.ServerName) {
			i.acme.Warn(err) // of other names we are asked by strangers
		}
		return nil, err
	}
	if c.Leaf != nil && !isChallenge(hello) {
		i.leaf.Store(c.Leaf)
	}
	return c, nil
}

// isChallenge reports whether it is the authority that asks, to see that a name
// leads to us (RFC 8737).
func isChallenge(hello *tls.ClientHelloInfo) bool {
	return len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == acme.ALPNProto
}

// state is what handshakes use while certificates come from the authority.
func (i *issued) state() *state {
	s := &state{config: newConfig()}
	s.config.GetCertificate = i.certificate
	return s
}

// end is when what was shown last ends; zero before there was any.
func (i *issued) end() time.Time {
	if leaf := i.leaf.Load(); leaf != nil {
		return leaf.NotAfter
	}
	return time.Time{}
}

// notice is a tenth of a certificate's life: it should have been renewed when a
// third of that was left, or thirty days.
func (i *issued) notice() time.Duration {
	if leaf := i.leaf.Load(); leaf != nil {
		return leaf.NotAfter.Sub(leaf.NotBefore) / 10
	}
	return 0
}

// Challenges answers the authority where it asks by plain HTTP, and leaves
// everything else to h. Once it is called the authority may choose that way; the
// other one, by TLS on port 443, is always open.
func (k *Keeper) Challenges(h http.Handler) http.Handler {
	if k.issued == nil {
		return h
	}
	return k.issued.manager.HTTPHandler(h)
}

func poolOf(all []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, ca := range all {
		pool.AddCert(ca)
	}
	return pool
}

// readAuthorities reads a PEM file of certificates. As x509 does, it leaves out
// what it cannot read, if there is one that it can.
func readAuthorities(readFile func(string) ([]byte, error), path string) (all []*x509.Certificate, err error) {
	content, err := readFile(path)
	if err != nil {
		return nil, err
	}
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		if ca, err := x509.ParseCertificate(block.Bytes); err == nil {
			all = append(all, ca)
		}
	}
	if len(all) == 0 {
		return nil, noCertificateError(path)
	}
	return all, nil
}

package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"
)

// maxHeaderBytes bounds the headers of an answer; a token or a signed URL in
// one has a few KiB.
const maxHeaderBytes = 256 << 10

// transports are the connections of one upstream. Blob bodies get HTTP/1.1, so
// that the streams of a fill do not share one TCP connection; everything else
// may use HTTP/2. Requests through a proxy are kept apart, since then the
// address dialled is the proxy's, which needs no check, and direct ones never
// escape theirs.
type transports struct {
	proxy                    func(*http.Request) (*url.URL, error) // nil: none
	guard                    guard
	api, blobs               *http.Transport
	proxiedAPI, proxiedBlobs *http.Transport // nil without proxy
}

func newTransports(cfg *Config, ca func() ([]byte, error), d dialer) (*transports, error) {
	roots, err := rootCAs(ca)
	if err != nil {
		return nil, err
	}
	t := &transports{proxy: cfg.Proxy, guard: d.guard}
	t.api = newTransport(cfg.Timeouts, roots, true, d.dial)
	t.blobs = newTransport(cfg.Timeouts, roots, false, d.dial)
	if cfg.Proxy != nil {
		t.proxiedAPI = newTransport(cfg.Timeouts, roots, true, d.plain)
		t.proxiedBlobs = newTransport(cfg.Timeouts, roots, false, d.plain)
		t.proxiedAPI.Proxy, t.proxiedBlobs.Proxy = t.mustProxy, t.mustProxy
	}
	return t, nil
}

func rootCAs(ca func() ([]byte, error)) (*x509.CertPool, error) {
	if ca == nil {
		return nil, nil
	}
	pem, err := ca()
	if err != nil || len(pem) == 0 {
		return nil, err
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		// A container may have no roots at all: the private CA alone will do.
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New("the CA holds no certificate in PEM form")
	}
	return pool, nil
}

func newTransport(t Timeouts, roots *x509.CertPool, http2 bool, dial func(context.Context, string, string) (net.Conn, error)) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(http2)
	return &http.Transport{
		DialContext:            dial,
		TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    t.TLS,
		ResponseHeaderTimeout:  t.ResponseHeader,
		MaxResponseHeaderBytes: maxHeaderBytes,
		MaxIdleConnsPerHost:    16,
		IdleConnTimeout:        90 * time.Second,
		Protocols:              protocols,
		// Without pings a dead HTTP/2 connection would take all requests down
		// with it until TCP gives up, a quarter of an hour later.
		HTTP2: &http.HTTP2Config{SendPingTimeout: t.ResponseHeader, PingTimeout: t.Dial},
	}
}

// roundTrip sends one request, without following or retrying anything. The only
// thing that http.Transport repeats by itself is a request that an idle
// connection, closed by the other side meanwhile, did not carry.
func (t *transports) roundTrip(req *http.Request, transfer bool) (*http.Response, error) {
	direct, proxied := t.api, t.proxiedAPI
	if transfer {
		direct, proxied = t.blobs, t.proxiedBlobs
	}
	if t.proxy == nil {
		return direct.RoundTrip(req)
	}
	proxy, err := t.proxy(req)
	if err != nil {
		return nil, errProxy
	}
	if proxy == nil {
		return direct.RoundTrip(req)
	}
	if err := t.guard.checkLiteral(req.URL.Hostname()); err != nil {
		return nil, err
	}
	return proxied.RoundTrip(req)
}

// errProxy stands for an error that may show the proxy's password.
var errProxy = errors.New("the proxy settings name no usable proxy")

// mustProxy keeps a request that was to be proxied from going out directly,
// past the check of addresses.
func (t *transports) mustProxy(req *http.Request) (*url.URL, error) {
	proxy, err := t.proxy(req)
	if err != nil || proxy == nil {
		return nil, errProxy
	}
	return proxy, nil
}

// closeIdle has what is asked next over HTTP/1.1 dial anew: where one connection of the
// pool is dead, since what lies between has lost its state, the others are, too. A dead
// one of HTTP/2 is found out by its pings.
func (t *transports) closeIdle() {
	for _, tr := range []*http.Transport{t.api, t.blobs, t.proxiedAPI, t.proxiedBlobs} {
		if tr != nil {
			tr.CloseIdleConnections()
		}
	}
}

// An endpoint is where an upstream is spoken to: a scheme, a host and a path
// before /v2/.
func parseEndpoint(name, raw string) (*url.URL, error) {
	if raw == "" {
		raw = wellKnown(name)
	}
	u, err := url.Parse(raw)
	switch {
	case err != nil, u.Host == "", u.Hostname() == "", u.Scheme != "http" && u.Scheme != "https":
		// The text itself may hold a password.
		return nil, fmt.Errorf("upstream %s: the URL is not http(s)://host[:port][/path]", name)
	case u.User != nil:
		return nil, fmt.Errorf("upstream %s: the URL holds credentials: they have settings of their own", name)
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return nil, fmt.Errorf("upstream %s: the URL has a query or a fragment", name)
	}
	return u, nil
}

// wellKnown is the endpoint of a registry that is known by its name alone.
// Docker Hub's is documented as registry-1.docker.io; docker.io is a web site.
func wellKnown(name string) string {
	if name == "docker.io" {
		return "https://registry-1.docker.io"
	}
	return "https://" + name
}

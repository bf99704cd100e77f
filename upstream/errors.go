package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/textproto"
	"net/url"
	"strings"

	"entrepot/oci"
)

// Why one of our own timers cut a request.
var (
	errNoHeaders = errors.New("no answer in time")
	errStalled   = errors.New("the answer stalled")
	errTooLong   = errors.New("the answer took too long to come")
)

// errLied marks what is not what its digest names.
var errLied = errors.New("wrong bytes")

// hungError is for a request that was taken, and not answered in time.
type hungError struct{ error }

func (e *hungError) Unwrap() error { return e.error }

// failure turns what a connection failed of into an error that clients may
// read. ctx is the caller's, cause what one of our timers left behind. No URL
// gets into it: a signed one is a credential.
func failure(ctx context.Context, host string, err, cause error) error {
	if err = withoutURL(err); errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // a connection that was closed is nobody's regular end
	}
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return context.Canceled
	case ctx.Err() != nil:
		return &oci.Error{Code: oci.Timeout, Detail: host + ": " + errNoHeaders.Error(), Err: inPlainWords(ctx.Err())}
	case errors.Is(cause, errNoHeaders), errors.Is(cause, errStalled), errors.Is(cause, errTooLong):
		return &oci.Error{Code: oci.Timeout, Detail: host + ": " + cause.Error(), Err: cause}
	}
	if refused, ok := errors.AsType[*refusedAddress](err); ok {
		return &oci.Error{Code: oci.BadUpstream, Detail: refused.Error(), Err: err}
	}
	code, what := classify(err)
	return &oci.Error{Code: code, Detail: host + ": " + what, Err: inPlainWords(err)}
}

// classify tells a host that cannot be reached from one that answers nonsense.
func classify(err error) (oci.Code, string) {
	if n, ok := errors.AsType[net.Error](err); ok && n.Timeout() {
		return oci.Timeout, "no answer in time"
	}
	switch {
	case IsTLS(err):
		return oci.BadUpstream, "its certificate or TLS handshake was refused"
	case isProtocol(err):
		return oci.BadUpstream, "it does not speak proper HTTP"
	case errors.Is(err, errProxy):
		return oci.Unavailable, err.Error()
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return oci.Unavailable, "its name cannot be resolved"
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && (op.Op == "dial" || op.Op == "proxyconnect") {
		return oci.Unavailable, "it cannot be reached"
	}
	return oci.Unavailable, "the connection broke"
}

// IsTLS reports that a connection failed of its certificate or handshake.
func IsTLS(err error) bool {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return true
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return true
	}
	if _, ok := errors.AsType[tls.AlertError](err); ok {
		return true
	}
	_, ok := errors.AsType[x509.UnknownAuthorityError](err)
	return ok
}

// isProtocol knows what net/http says of answers that are no HTTP. It has a type
// for some of it only.
func isProtocol(err error) bool {
	if _, ok := errors.AsType[textproto.ProtocolError](err); ok {
		return true
	}
	text := err.Error()
	return strings.Contains(text, "malformed") || strings.Contains(text, "HTTP response to HTTPS client") ||
		strings.Contains(text, "server response headers exceeded") || strings.Contains(text, "message cannot contain")
}

// bodyFailure is failure for what comes after the headers. A body that ends too
// soon is io.ErrUnexpectedEOF itself.
func bodyFailure(ctx context.Context, host string, err, cause error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) && ctx.Err() == nil && !errors.Is(cause, errStalled) && !errors.Is(cause, errNoHeaders) && !errors.Is(cause, errTooLong) {
		return io.ErrUnexpectedEOF
	}
	return failure(ctx, host, err, cause)
}

// withoutURL drops the URL that net/url and net/http put before their errors.
func withoutURL(err error) error {
	for {
		u, ok := errors.AsType[*url.Error](err)
		if !ok {
			return err
		}
		err = u.Err
	}
}

// brokenAnswer is for an answer whose body ended too soon to be of use.
func brokenAnswer(host string, err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return &oci.Error{Code: oci.BadUpstream, Detail: host + ": the answer ends too soon", Err: err}
	}
	return err
}

// detail is what clients may read of an error.
func detail(err error) string {
	if e, ok := errors.AsType[*oci.Error](err); ok && e.Detail != "" {
		return e.Detail
	}
	return "upstream is in trouble"
}

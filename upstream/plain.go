package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
)

// plainError says of what a connection failed in words for operators, who read them
// in the log, by entrepot status and by entrepot doctor.
type plainError struct {
	text string
	error
}

func (e *plainError) Error() string { return e.text }

func (e *plainError) Unwrap() error { return e.error }

// inPlainWords has err say what happened, and not where in Go's library.
func inPlainWords(err error) error { return &plainError{plainWords(err), err} }

func plainWords(err error) string {
	op, isOp := errors.AsType[*net.OpError](err)
	if isOp && op.Op == "proxyconnect" {
		return "the proxy: " + plainWords(op.Err)
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return resolverWords(dns)
	}
	n, isNet := errors.AsType[net.Error](err)
	switch {
	case isOp && op.Op == "dial" && op.Addr != nil:
		return dialWords(op)
	case errors.Is(err, context.DeadlineExceeded), isNet && n.Timeout() && !strings.Contains(err.Error(), "handshake"):
		return errNoHeaders.Error()
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "it was closed before the answer was there"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.ECONNABORTED), errors.Is(err, syscall.EPIPE):
		return "it was reset by the other side"
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return "it speaks no TLS"
	}
	return withoutPackages(err.Error())
}

// dialWords says why no connection to an address came about.
func dialWords(op *net.OpError) string {
	at := op.Addr.String()
	switch {
	case errors.Is(op, syscall.ECONNREFUSED):
		return at + " refuses the connection"
	case errors.Is(op, syscall.EHOSTUNREACH), errors.Is(op, syscall.ENETUNREACH):
		return "no network leads to " + at
	case op.Timeout():
		return at + " does not answer"
	}
	return at + ": " + withoutPackages(op.Err.Error())
}

// resolverWords says why a name has no address.
func resolverWords(dns *net.DNSError) string {
	server := "the name server"
	if dns.Server != "" {
		server += " " + dns.Server
	}
	switch {
	case dns.IsNotFound:
		return "it is unknown to " + server
	case dns.IsTimeout:
		return "no answer by " + server
	}
	return "trouble of " + server + ": " + withoutPackages(dns.Err)
}

// withoutPackages drops the names of Go's packages that its errors begin with, and
// of system calls.
func withoutPackages(text string) string {
	for {
		before, rest, ok := strings.Cut(text, ": ")
		switch {
		case !ok:
			return text
		case before == "tls", before == "x509", before == "net/http", before == "http2", before == "remote error", before == "local error",
			before == "failed to verify certificate", before == "connect", before == "HTTP/1.x transport connection broken":
			text = rest
		default:
			return text
		}
	}
}

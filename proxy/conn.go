package proxy

import (
	"context"
	"net"
	"net/http"
	"syscall"
	"time"
)

// A line is a client's bare TCP connection, and the context of what is asked on
// it. One answer at a time goes out on it, so it needs no lock.
type line struct {
	context.Context //nolint:containedctx // the server's, whose values the requests have
	conn            *net.TCPConn
	until           time.Time       // its write deadline, as we last set it
	raw             syscall.RawConn // nil until a large answer goes out
	near            bool            // its send buffer is fixed, for good
	address         string          // the client's, without port; empty until it is asked for
}

type lineKey struct{}

// Done is never, so that the contexts of connections and their requests do not
// hang on one that all share, under its lock: who waits looks at that, see server.
func (l *line) Done() <-chan struct{} { return nil }

// Err belongs to Done.
func (l *line) Err() error { return nil }

// Deadline belongs to Done.
func (l *line) Deadline() (time.Time, bool) { return time.Time{}, false }

// server is the context that ends all requests of the server; nil where those
// end with it anyway.
func (l *line) server() context.Context {
	if l == nil {
		return nil
	}
	return l.Context
}

func (l *line) Value(key any) any {
	if key == (lineKey{}) {
		return l
	}
	return l.Context.Value(key)
}

// lineOf is the line of a request's context; nil if the request did not come
// over one.
func lineOf(ctx context.Context) *line {
	l, _ := ctx.Value(lineKey{}).(*line)
	return l
}

// patient reports whether the write deadline leaves an answer nearly all of the
// time that it may take: setting one for each answer would cost a manifest more
// than finding it.
func (l *line) patient(now time.Time, stall time.Duration) bool {
	return l != nil && l.until.Sub(now) > stall-stall/8
}

// client is the address of who asks.
func (l *line) client(r *http.Request) string {
	if l == nil {
		return clientAddress(r)
	}
	if l.address == "" {
		l.address = clientAddress(r)
	}
	return l.address
}

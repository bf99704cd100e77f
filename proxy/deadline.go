package proxy

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// A Listener takes connections whose read deadlines cost next to nothing.
// net/http sets six for each request, the server's timeouts among them, and nearly
// all are lifted before anybody reads: together a twentieth of a warm manifest's
// processor time.
type Listener struct{ net.Listener }

// Accept waits for the next connection.
func (l Listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if tcp, ok := c.(*net.TCPConn); ok && err == nil {
		return &conn{TCPConn: tcp}, nil
	}
	return c, err
}

// conn is a TCP connection that remembers its read deadline, and arms the one
// below it when a read needs it. That one may be too early, left over from a
// deadline that was moved since: a read that it ends goes on.
type conn struct {
	*net.TCPConn

	mu      sync.Mutex // guards what follows; never held while reading
	want    time.Time  // the deadline
	armed   time.Time  // the one below
	readers int
}

// tcpOf is the TCP connection that c is; nil if it is none.
func tcpOf(c net.Conn) *net.TCPConn {
	switch c := c.(type) {
	case *conn:
		return c.TCPConn
	case *net.TCPConn:
		return c
	}
	return nil
}

// longAgo tells a deadline that is to end a read at once from one that may have
// passed.
var longAgo = time.Unix(2, 0) //nolint:gochecknoglobals // a constant, if times could be

// SetReadDeadline moves the deadline of reads, also of one that waits.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.want = t
	if c.readers == 0 {
		return nil
	}
	return c.arm()
}

// SetDeadline moves both.
func (c *conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// Read reads until the deadline; then the error is os.ErrDeadlineExceeded.
func (c *conn) Read(p []byte) (int, error) {
	for {
		if err := c.begin(); err != nil {
			return 0, err
		}
		n, err := c.TCPConn.Read(p)
		if early := c.end(n == 0 && errors.Is(err, os.ErrDeadlineExceeded)); !early {
			return n, err
		}
	}
}

// WriteTo is Read again and again: what TCPConn has would not know the deadline.
func (c *conn) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, struct{ io.Reader }{c}) }

// begin makes sure that a read does not go on for longer than is wanted.
func (c *conn) begin() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.want.IsZero() && c.want.Before(longAgo) {
		return os.ErrDeadlineExceeded
	}
	late := !c.want.IsZero() && (c.armed.IsZero() || c.armed.After(c.want))
	if late || !c.armed.IsZero() && c.armed.Before(longAgo) {
		if err := c.arm(); err != nil {
			return err
		}
	}
	c.readers++
	return nil
}

// end reports whether a read that ran into a deadline did so before it was to.
func (c *conn) end(expired bool) (early bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.readers--
	early = expired && (c.want.IsZero() || time.Now().Before(c.want))
	if early {
		c.armed = time.Unix(1, 0) // it has passed
	}
	return early
}

func (c *conn) arm() error {
	c.armed = c.want
	return c.TCPConn.SetReadDeadline(c.want)
}

package proxy

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// newConn is the server's end of a connection, and the client's.
func newConn(t *testing.T) (server, client net.Conn) {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := Listener{inner}
	defer l.Close()
	if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close(); client.Close() })
	return server, client
}

const (
	soon  = 30 * time.Millisecond
	later = 10 * time.Second
)

// in is a deadline so far away; 0 for none, below zero for one that has passed.
func in(d time.Duration) time.Time {
	switch {
	case d == 0:
		return time.Time{}
	case d < 0:
		return time.Unix(1, 0)
	}
	return time.Now().Add(d)
}

// TestReadDeadlines: a read ends at the deadline that was set last, whenever
// that was, and no other one ends it.
func TestReadDeadlines(t *testing.T) {
	for _, row := range []struct {
		name          string
		before, while []time.Duration // deadlines set before the read and while it waits
		ends          bool            // without a byte
	}{
		{name: "none", before: []time.Duration{0}},
		{name: "soon", before: []time.Duration{soon}, ends: true},
		{name: "past", before: []time.Duration{-1}, ends: true},
		{name: "moved away", before: []time.Duration{soon, later}},
		{name: "lifted", before: []time.Duration{soon, 0}},
		{name: "past, then lifted", before: []time.Duration{-1, 0}},
		{name: "brought nearer", before: []time.Duration{later, soon}, ends: true},
		{name: "soon, while it waits", while: []time.Duration{soon}, ends: true},
		{name: "past, while it waits", while: []time.Duration{-1}, ends: true},
		{name: "brought nearer while it waits", before: []time.Duration{later}, while: []time.Duration{soon}, ends: true},
		{name: "lifted while it waits", before: []time.Duration{4 * soon}, while: []time.Duration{0}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			server, client := newConn(t)
			// A read before it leaves a deadline armed that will be too early.
			set(t, server, 3*soon)
			exchangeByte(t, server, client)
			set(t, server, row.before...)
			type result struct {
				n   int
				err error
			}
			read := make(chan result, 1)
			go func() {
				n, err := server.Read(make([]byte, 1))
				read <- result{n, err}
			}()
			time.Sleep(soon / 3)
			set(t, server, row.while...)
			if !row.ends {
				select {
				case got := <-read:
					t.Fatalf("%d bytes, %v, and nothing was sent", got.n, got.err)
				case <-time.After(6 * soon):
				}
				if _, err := client.Write([]byte{1}); err != nil {
					t.Fatal(err)
				}
			}
			got := <-read
			if ended := errors.Is(got.err, os.ErrDeadlineExceeded); ended != row.ends || !ended && got.err != nil {
				t.Errorf("%d bytes, %v", got.n, got.err)
			}
			set(t, server, 0)
			if row.ends {
				exchangeByte(t, server, client)
			}
		})
	}
}

func set(t *testing.T, c net.Conn, deadlines ...time.Duration) {
	t.Helper()
	for _, d := range deadlines {
		if err := c.SetReadDeadline(in(d)); err != nil {
			t.Error(err)
		}
	}
}

func exchangeByte(t *testing.T, server, client net.Conn) {
	t.Helper()
	if _, err := client.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(server, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}

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
	soon    = 50 * time.Millisecond
	early   = 2 * time.Second         // a deadline left over, which must not end a read
	waiting = 2500 * time.Millisecond // is long enough to see that none did
	later   = time.Minute
	prompt  = 10 * time.Second // for what should end a read soon
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
		left          time.Duration   // the deadline of the read before
		before, while []time.Duration // deadlines set before the read and while it waits
		ends          bool            // promptly, without a byte
	}{
		{name: "none", left: early, before: []time.Duration{0}},
		{name: "moved away", left: early, before: []time.Duration{soon, later}},
		{name: "lifted", left: early, before: []time.Duration{soon, 0}},
		{name: "past, then lifted", left: early, before: []time.Duration{-1, 0}},
		{name: "lifted while it waits", left: later, before: []time.Duration{early}, while: []time.Duration{0}},
		{name: "soon", left: later, before: []time.Duration{soon}, ends: true},
		{name: "soon, after none", before: []time.Duration{soon}, ends: true},
		{name: "past", left: later, before: []time.Duration{-1}, ends: true},
		{name: "brought nearer", left: later, before: []time.Duration{later, soon}, ends: true},
		{name: "soon, while it waits", left: later, before: []time.Duration{0}, while: []time.Duration{soon}, ends: true},
		{name: "past, while it waits", left: later, before: []time.Duration{0}, while: []time.Duration{-1}, ends: true},
		{name: "brought nearer while it waits", left: later, before: []time.Duration{later}, while: []time.Duration{soon}, ends: true},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			server, client := newConn(t)
			set(t, server, row.left)
			exchangeByte(t, server, client) // arms it
			set(t, server, row.before...)
			read := make(chan error, 1)
			go func() {
				_, err := server.Read(make([]byte, 1))
				read <- err
			}()
			time.Sleep(soon / 3)
			set(t, server, row.while...)
			within := waiting
			if row.ends {
				within = prompt
			}
			var err error
			select {
			case err = <-read:
				if !row.ends {
					t.Fatalf("%v, and nothing was sent", err)
				}
			case <-time.After(within):
				if row.ends {
					t.Fatal("it goes on")
				}
				if _, err := client.Write([]byte{1}); err != nil {
					t.Fatal(err)
				}
				err = <-read
			}
			if row.ends != errors.Is(err, os.ErrDeadlineExceeded) || !row.ends && err != nil {
				t.Error(err)
			}
			set(t, server, 0)
			exchangeByte(t, server, client)
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

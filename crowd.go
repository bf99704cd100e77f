package main

import (
	"context"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"entrepot/oci"
)

// crowd bounds the connections of a server. Most of those that a fleet holds open
// are idle, so when there are too many these go first, and with them those that
// have not sent a request in five seconds: for a while no connection is kept
// after its answer. What is then still too much waits a moment for room and is
// told 503, and a few more are closed without a word.
type crowd struct {
	most   int64 // 0: any number
	http   *http.Server
	open   atomic.Int64
	turned func(client, what string) // hears of each client that is turned away; nil: nobody does

	tight atomic.Bool // connections are not kept; changes under mu
	mu    sync.Mutex  // guards what follows, and that the server's switch is as tight says; before the server's own
	swept time.Time
	room  chan struct{} // closed when there is room; nil: nobody waits
}

// What becomes of those who are too many.
const (
	turnedTold   = "told"   // 503
	turnedClosed = "closed" // without a word
)

const (
	crowdWait = 2 * time.Second
	// sweepEvery is how often idle connections are looked for, which takes a look
	// at all.
	sweepEvery = time.Second
)

// surplus are the connections that are taken beyond the bound, to be told so.
func (c *crowd) surplus() int64 { return c.most/8 + 16 }

// enter is told of a new connection.
func (c *crowd) enter(conn net.Conn) {
	n := c.open.Add(1)
	if c.most == 0 || n <= c.most {
		return
	}
	c.mu.Lock()
	if !c.tight.Swap(true) || time.Since(c.swept) >= sweepEvery {
		c.swept = time.Now()
		c.http.SetKeepAlivesEnabled(false) // and closes those that are idle
	}
	c.mu.Unlock()
	if n > c.most+c.surplus() {
		c.turn(conn.RemoteAddr().String(), turnedClosed)
		_ = conn.Close()
	}
}

// leave is told of a connection's end.
func (c *crowd) leave() {
	n := c.open.Add(-1)
	if n > c.most || !c.tight.Load() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.room != nil {
		close(c.room)
		c.room = nil
	}
	if n <= c.most-c.most/8 && c.tight.Swap(false) {
		c.http.SetKeepAlivesEnabled(true)
	}
}

// guard lets requests wait for room. Probes are answered in any case: a crowd is
// no reason to be started again, or to be sent no more clients.
func (c *crowd) guard(h http.Handler) http.Handler {
	if c.most == 0 {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c.open.Load() > c.most && r.URL.Path != "/healthz" && r.URL.Path != "/readyz" && !c.await(r.Context()) {
			c.turn(r.RemoteAddr, turnedTold)
			w.Header().Set("Connection", "close")
			oci.WriteError(w, &oci.Error{Code: oci.Unavailable, Detail: "too many connections", RetryAfter: crowdWait})
			return
		}
		h.ServeHTTP(w, r)
	})
}

// turn tells of a client, before that client can know.
func (c *crowd) turn(client, what string) {
	if c.turned == nil {
		return
	}
	if host, _, err := net.SplitHostPort(client); err == nil {
		client = host
	}
	c.turned(client, what)
}

// await waits for room, and reports whether there is any.
func (c *crowd) await(ctx context.Context) bool {
	c.mu.Lock()
	if c.open.Load() <= c.most {
		c.mu.Unlock()
		return true
	}
	if c.room == nil {
		c.room = make(chan struct{})
	}
	room := c.room
	c.mu.Unlock()
	t := time.NewTimer(crowdWait)
	defer t.Stop()
	select {
	case <-room:
		return true
	case <-t.C:
	case <-ctx.Done():
	}
	return false
}

package upstream

import (
	"sync"

	"entrepot/ratelimit"
)

// connections counts those of an address that are in use, of as many as its limiter
// allows at each host. Who waits while all are waits for one, and not for his turn.
type connections struct {
	limits ratelimit.Limits

	mu   sync.Mutex // guards used
	used map[line]int
}

// line is what those wait in who wait for the same connections.
type line struct {
	host     string
	transfer bool // of a blob's body
}

func (c *connections) take(l line) (free func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.used[l]++
	return sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.used[l]--; c.used[l] == 0 {
			delete(c.used, l)
		}
	})
}

func (c *connections) areBusy(l line) bool {
	most := c.limits.Requests
	if l.transfer {
		most = c.limits.Transfers
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.used[l] >= most
}

// pass is leave to send a request, over one of the connections.
type pass struct {
	*ratelimit.Pass
	free func()
}

// Release gives the connection back; calling it again does nothing.
func (p *pass) Release() {
	p.free()
	p.Pass.Release()
}

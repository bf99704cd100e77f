package ratelimit

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"entrepot/oci"
)

// ClientLimits are what we allow each client. A zero field means no limit.
type ClientLimits struct {
	Rate      float64 // requests per second, over time; a client that was quiet may do more at once
	Transfers int     // blobs on their way to it at once
}

// How long a client waits for its turn until it is refused. Waiting is the rule
// and refusing the exception: containerd and BuildKit repeat what is refused at
// once, whatever Retry-After says.
const (
	rateWait     = 5 * time.Second
	transferWait = 10 * time.Second
	// refusalHold slows down who repeats a refused request at once.
	refusalHold = time.Second
	// transferRetry is told to who may not begin a transfer: when one ends,
	// nobody knows.
	transferRetry = 5 * time.Second
)

// within is how long of most a client can wait for its turn and still have an answer:
// what it is told when its time is up would blame upstream.
func within(ctx context.Context, most time.Duration) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		most = min(most, time.Until(deadline)*2/3)
	}
	return max(0, most)
}

// A client that was quiet may send a pull's worth of requests at once: an image
// of forty layers and then some, or what it may send in four seconds.
const (
	leastBurst   = 100
	burstSeconds = 4
)

// maxClients bounds the clients that are remembered, in each of two halves: when
// the younger is full the older is dropped. Who is dropped begins anew.
const maxClients = 8192

// Clients limits what each client does. It is safe for concurrent use. A nil
// *Clients limits nothing.
type Clients struct {
	limits ClientLimits
	stats  clientStats

	mu         sync.Mutex // guards what follows
	young, old map[clientKey]*client
}

type clientStats struct{ waited, refused, transfersWaited, transfersRefused atomic.Uint64 }

// client is what one client has used up.
type client struct {
	bucket *rate.Limiter
	places chan struct{} // one is in it for each transfer; nil: any number
}

// NewClients makes a table of clients; nil if nothing is limited.
func NewClients(l ClientLimits) *Clients {
	if l.Rate <= 0 && l.Transfers <= 0 {
		return nil
	}
	return &Clients{limits: l}
}

// ClientStats is what became of clients that did more than they may.
type ClientStats struct {
	Known                             int
	Waited, Refused                   uint64 // requests
	TransfersWaited, TransfersRefused uint64
}

// Stats reports on the clients.
func (c *Clients) Stats() ClientStats {
	if c == nil {
		return ClientStats{}
	}
	c.mu.Lock()
	known := len(c.young) + len(c.old)
	c.mu.Unlock()
	s := &c.stats
	return ClientStats{known, s.waited.Load(), s.refused.Load(), s.transfersWaited.Load(), s.transfersRefused.Load()}
}

// clientKey is what a client is counted under: a user, an address of IPv4, or a
// /64 of IPv6, of which each host has all the addresses.
type clientKey struct {
	name    string
	network netip.Addr
}

func (k clientKey) String() string {
	if k.network.IsValid() {
		return k.network.String()
	}
	return k.name
}

func keyOf(name string) clientKey {
	if strings.IndexByte(name, ':') < 0 {
		return clientKey{name: name}
	}
	addr, err := netip.ParseAddr(name)
	if err != nil {
		return clientKey{name: name}
	}
	if addr = addr.Unmap(); addr.Is4() {
		return clientKey{name: addr.String()}
	}
	network, _ := addr.WithZone("").Prefix(64) // of IPv6, it has one
	return clientKey{network: network.Addr()}
}

// of finds a client, or makes its acquaintance.
func (c *Clients) of(name string) *client {
	key := keyOf(name)
	c.mu.Lock()
	defer c.mu.Unlock()
	if cl := c.young[key]; cl != nil {
		return cl
	}
	cl := c.old[key]
	if cl == nil {
		cl = c.newClient()
	}
	if len(c.young) >= maxClients || c.young == nil {
		c.old, c.young = c.young, make(map[clientKey]*client)
	}
	delete(c.old, key)
	c.young[key] = cl
	return cl
}

func (c *Clients) newClient() *client {
	cl := &client{}
	if c.limits.Rate > 0 {
		cl.bucket = rate.NewLimiter(rate.Limit(c.limits.Rate), max(leastBurst, int(burstSeconds*c.limits.Rate)))
	}
	if c.limits.Transfers > 0 {
		cl.places = make(chan struct{}, c.limits.Transfers)
	}
	return cl
}

// Admit waits for the turn of a request that came at now. Error:
// TooManyRequests, after which the client will have its turn, or ctx's.
func (c *Clients) Admit(ctx context.Context, name string, now time.Time) error {
	if c == nil || c.limits.Rate <= 0 {
		return nil
	}
	bucket := c.of(name).bucket
	if bucket.AllowN(now, 1) {
		return nil
	}
	turn := bucket.ReserveN(now, 1)
	wait := turn.DelayFrom(now)
	if wait <= within(ctx, rateWait) {
		c.stats.waited.Add(1)
		if err := sleep(ctx, wait, nil); err != nil {
			turn.CancelAt(now)
			return err
		}
		return nil
	}
	turn.CancelAt(now)
	c.stats.refused.Add(1)
	hold := within(ctx, refusalHold)
	if err := sleep(ctx, hold, nil); err != nil {
		return err
	}
	return &oci.Error{
		Code: oci.TooManyRequests, RetryAfter: max(time.Second, wait-hold),
		Detail: fmt.Sprintf("this client has sent more requests than the cache takes from one, %g per second", c.limits.Rate),
	}
}

// Transfer waits for a place for one more transfer, and gives back what to call
// when it has ended. Error: TooManyRequests, or ctx's.
func (c *Clients) Transfer(ctx context.Context, name string) (end func(), err error) {
	if c == nil || c.limits.Transfers <= 0 {
		return func() {}, nil
	}
	places := c.of(name).places
	end = func() { <-places }
	select {
	case places <- struct{}{}:
		return end, nil
	default:
	}
	c.stats.transfersWaited.Add(1)
	t := time.NewTimer(within(ctx, transferWait))
	defer t.Stop()
	select {
	case places <- struct{}{}:
		return end, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-t.C:
	}
	c.stats.transfersRefused.Add(1)
	return nil, &oci.Error{
		Code: oci.TooManyRequests, RetryAfter: transferRetry,
		Detail: "this client has as many blobs on their way as the cache gives to one at once",
	}
}

package access

import (
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// key stands for a credential.
type key [32]byte

// recent remembers sessions, the most recent ones: two generations, of which
// the old one is forgotten when the young one is full.
type recent struct {
	mu         sync.RWMutex // guards what follows
	young, old map[key]*Session
}

// generation is how many sessions are in one; twice as many are remembered.
const generation = 4096

func (c *recent) get(k key) *Session {
	c.mu.RLock()
	s, young := c.young[k]
	if !young {
		s = c.old[k]
	}
	c.mu.RUnlock()
	if s != nil && !young {
		c.put(k, s)
	}
	return s
}

func (c *recent) put(k key, s *Session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.young) >= generation || c.young == nil {
		c.old, c.young = c.young, make(map[key]*Session)
	}
	c.young[k] = s
}

// failures slows down those whose logins fail: an address may fail some times at
// once, and then once in a while. What is known already is not slowed down, so
// that a guesser behind somebody's router shuts out only who logs in anew.
type failures struct {
	mu   sync.Mutex // guards what follows
	seen map[netip.Prefix]tries
}

// tries is how many tries were left at a time.
type tries struct {
	left float64
	at   time.Time
}

const (
	triesAtOnce   = 10
	triesEvery    = 5 * time.Second
	maxOffenders  = 8192 // addresses that are remembered; some 1 MiB
	forgetAtATime = 64
)

// now is what is left at a time.
func (t tries) now(now time.Time) float64 {
	return min(triesAtOnce, t.left+float64(now.Sub(t.at))/float64(triesEvery))
}

// wait is how long an address has to wait before it may try; 0 for not at all.
// It takes nothing.
func (f *failures) wait(address netip.Prefix, now time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	t, known := f.seen[address]
	if !known {
		return 0
	}
	return max(0, time.Duration((1-t.now(now))*float64(triesEvery)))
}

// take takes a try from an address, or tells how long it has to wait for one.
func (f *failures) take(address netip.Prefix, now time.Time) (wait time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t, known := f.seen[address]
	if !known {
		t = tries{triesAtOnce, now}
		f.forgetLocked(now)
	}
	left := t.now(now)
	if left < 1 {
		return max(1, time.Duration((1-left)*float64(triesEvery)))
	}
	f.seen[address] = tries{left - 1, now}
	return 0
}

// giveBack is for a try that did not fail.
func (f *failures) giveBack(address netip.Prefix, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t, known := f.seen[address]
	if !known {
		return // it was forgotten meanwhile
	}
	if t.left = t.now(now) + 1; t.left >= triesAtOnce {
		delete(f.seen, address)
		return
	}
	f.seen[address] = tries{t.left, now}
}

// forgetLocked makes room: some that have all their tries again, or else one of
// the others. A map begins its walk anywhere.
func (f *failures) forgetLocked(now time.Time) {
	if f.seen == nil {
		f.seen = map[netip.Prefix]tries{}
	}
	looked := 0
	for address, t := range f.seen {
		if looked++; looked > forgetAtATime {
			break
		}
		if t.now(now) >= triesAtOnce {
			delete(f.seen, address)
		}
	}
	for address := range f.seen {
		if len(f.seen) < maxOffenders {
			break
		}
		delete(f.seen, address)
	}
}

// addressOf is who tries: an IPv4 address, or the /64 that an IPv6 host has to
// itself.
func addressOf(r *http.Request) netip.Prefix {
	address, _ := netip.ParseAddr(hostOf(r.RemoteAddr))
	address = address.Unmap().WithZone("")
	bits := 64
	if address.Is4() {
		bits = 32
	}
	prefix, _ := address.Prefix(bits)
	return prefix
}

func hostOf(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
}

func isAddress(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

package upstream

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"entrepot/oci"
)

// place is what kind of network an address lies in.
type place int

// The places. Only the first can be reached from everywhere.
const (
	public    place = iota
	loopback        // this machine
	private         // RFC 1918, unique local, shared (carrier-grade NAT)
	linkLocal       // the link, and the metadata services of clouds, wherever those lie
	nowhere         // unspecified, multicast, reserved, benchmarking
)

func (p place) String() string {
	return [...]string{"public", "loopback", "private", "link-local", "unusable"}[p]
}

// places is the IANA special-purpose registry as far as it matters here, IPv4
// and IPv6, the more specific first.
var places = []struct {
	netip.Prefix
	place
}{
	{netip.MustParsePrefix("0.0.0.0/8"), nowhere},
	{netip.MustParsePrefix("10.0.0.0/8"), private},
	{netip.MustParsePrefix("100.100.100.200/32"), linkLocal}, // Alibaba's metadata
	{netip.MustParsePrefix("100.64.0.0/10"), private},
	{netip.MustParsePrefix("127.0.0.0/8"), loopback},
	{netip.MustParsePrefix("168.63.129.16/32"), linkLocal}, // Azure's platform address, answered on the host
	{netip.MustParsePrefix("169.254.0.0/16"), linkLocal},
	{netip.MustParsePrefix("172.16.0.0/12"), private},
	{netip.MustParsePrefix("192.0.0.0/24"), nowhere},
	{netip.MustParsePrefix("192.168.0.0/16"), private},
	{netip.MustParsePrefix("198.18.0.0/15"), nowhere},
	{netip.MustParsePrefix("224.0.0.0/3"), nowhere}, // multicast, reserved, broadcast
	{netip.MustParsePrefix("::/128"), nowhere},
	{netip.MustParsePrefix("::1/128"), loopback},
	{netip.MustParsePrefix("64:ff9b:1::/48"), private}, // NAT64 of one's own
	{netip.MustParsePrefix("100::/64"), nowhere},
	{netip.MustParsePrefix("2001::/32"), nowhere},          // Teredo
	{netip.MustParsePrefix("fd00:ec2::/112"), linkLocal},   // Amazon's metadata, name and time servers
	{netip.MustParsePrefix("fd20:ce::254/128"), linkLocal}, // Google's metadata
	{netip.MustParsePrefix("fc00::/7"), private},
	{netip.MustParsePrefix("fe80::/10"), linkLocal},
	{netip.MustParsePrefix("fec0::/10"), private}, // site-local, deprecated
	{netip.MustParsePrefix("ff00::/8"), nowhere},
}

// embeddings are IPv6 prefixes that carry an IPv4 address, and where it starts.
var embeddings = []struct {
	netip.Prefix
	at int
}{
	{netip.MustParsePrefix("::/96"), 12},        // IPv4-compatible, deprecated
	{netip.MustParsePrefix("64:ff9b::/96"), 12}, // NAT64
	{netip.MustParsePrefix("2002::/16"), 2},     // 6to4
}

// placeOf says where an address lies. An IPv4 address inside an IPv6 one counts
// as itself.
func placeOf(addr netip.Addr) place {
	// A prefix never contains an address with a zone.
	addr = addr.WithZone("").Unmap()
	if !addr.IsValid() {
		return nowhere
	}
	for _, p := range places {
		if p.Contains(addr) {
			return p.place
		}
	}
	if addr.Is6() {
		for _, e := range embeddings {
			if e.Contains(addr) {
				b := addr.As16()
				return placeOf(netip.AddrFrom4([4]byte(b[e.at : e.at+4])))
			}
		}
	}
	return public
}

// literalPlace says where a host lies that needs no DNS to tell: an address, or
// the name localhost. ok is false for any other name.
func literalPlace(host string) (place, bool) {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return loopback, true
	}
	addr, err := netip.ParseAddr(host)
	return placeOf(addr), err == nil
}

// guard decides which addresses one upstream may lead us to. The upstream's own
// host may lie anywhere: the operator named it. Token realms and redirect
// targets are named by strangers: they may lie in public, and in the one kind
// of place that the upstream's own address is written to lie in. That has to be
// written: a public name which resolves to a private address proves nothing.
type guard struct {
	own          string // host name of the upstream's endpoint
	ownPlace     place
	allowPrivate bool
}

func newGuard(own string, allowPrivate bool) guard {
	g := guard{own: own, allowPrivate: allowPrivate}
	// Link-local is never implied: the metadata services live there.
	if at, ok := literalPlace(own); ok && (at == loopback || at == private) {
		g.ownPlace = at
	}
	return g
}

// refusedAddress says that an upstream led us where it may not.
type refusedAddress struct {
	host string
	at   place
}

func (e *refusedAddress) Error() string {
	return fmt.Sprintf("%s has a %v address, and private addresses are not allowed for this upstream", e.host, e.at)
}

// Is makes it an oci.ErrAstray.
func (e *refusedAddress) Is(target error) bool { return target == oci.ErrAstray }

// check refuses a host at a place where it may not be.
func (g guard) check(host string, at place) error {
	if g.allowPrivate || at == public || at == g.ownPlace || strings.EqualFold(host, g.own) {
		return nil
	}
	return &refusedAddress{host, at}
}

// checkLiteral refuses what can be told without DNS. Behind a proxy this is
// all that can be told.
func (g guard) checkLiteral(host string) error {
	if at, ok := literalPlace(host); ok {
		return g.check(host, at)
	}
	return nil
}

// dialer dials hosts of one upstream. Every address is checked when it is
// dialled, after DNS: a name that resolves differently the second time gains
// nothing.
type dialer struct {
	guard
	timeout  time.Duration
	resolver *net.Resolver // nil: the system's
	other    DialFunc      // in place of all that, nil for none
}

func (d dialer) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if d.other != nil {
		return d.dialOther(ctx, network, addr, host)
	}
	nd := d.system()
	nd.Control = func(_, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		return d.check(host, placeOf(ap.Addr()))
	}
	return nd.DialContext(ctx, network, addr)
}

// dialOther checks what can be told before and after another's dial.
func (d dialer) dialOther(ctx context.Context, network, addr, host string) (net.Conn, error) {
	if err := d.checkLiteral(host); err != nil {
		return nil, err
	}
	conn, err := d.plain(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	if ap, err := netip.ParseAddrPort(conn.RemoteAddr().String()); err == nil {
		if err := d.check(host, placeOf(ap.Addr())); err != nil {
			conn.Close()
			return nil, err
		}
	}
	return conn, nil
}

// plain dials without a check: a proxy's address is the operator's choice.
func (d dialer) plain(ctx context.Context, network, addr string) (net.Conn, error) {
	if d.other == nil {
		return d.system().DialContext(ctx, network, addr)
	}
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	return d.other(ctx, network, addr)
}

func (d dialer) system() *net.Dialer {
	return &net.Dialer{Timeout: d.timeout, KeepAlive: 30 * time.Second, Resolver: d.resolver}
}

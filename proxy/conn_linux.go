package proxy

import (
	"context"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// unsentLowWater is how much of an answer may lie in the kernel unsent. With the
// kernel's own bound, up to 4 MiB that grow with the speed of the link, a client
// that reads 40 KB/s looks dead for a minute; with this one its progress shows
// every 64 KiB or so, and a slow client costs us less. A fast one is not slowed.
const unsentLowWater = 128 << 10

// keepAlive finds out, as Go's own listeners do, that a client has gone without
// a word: after 15 s of silence it is asked nine times, every 15 s.
const (
	keepAliveSeconds = 15
	keepAliveProbes  = 9
)

// ListenConfig makes the listeners that clients connect to. A connection takes
// over the options of its listener, so those cost no system call of their own,
// which clients that open one for each request would pay each time.
func ListenConfig() net.ListenConfig {
	return net.ListenConfig{
		KeepAlive: -1, // Go would set on each connection what it has already
		Control: func(_, _ string, raw syscall.RawConn) error {
			return raw.Control(func(fd uintptr) {
				// A system that refuses one is served all the same.
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepAliveSeconds)
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, keepAliveSeconds)
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepAliveProbes)
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
			})
		},
	}
}

// ConnContext lets large answers choose how the connection sends them. It is
// for http.Server.ConnContext, and makes no system call for a bare connection,
// whose client may want nothing but a manifest.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	if tcp := tcpOf(c); tcp != nil {
		return &line{Context: ctx, conn: tcp}
	}
	if secure, ok := c.(interface{ NetConn() net.Conn }); ok { // TLS, which sends records, never a file
		if sc, ok := secure.NetConn().(syscall.Conn); ok {
			if raw, err := sc.SyscallConn(); err == nil {
				_ = raw.Control(boundUnsent)
			}
		}
	}
	return ctx
}

// boundUnsent sets unsentLowWater. A connection that refuses is served all the
// same.
func boundUnsent(fd uintptr) {
	_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentLowWater)
}

// widen readies the connection for a large answer.
func (l *line) widen() {
	if l == nil || l.raw != nil {
		return
	}
	if raw, err := l.conn.SyscallConn(); err == nil {
		l.raw = raw
		_ = raw.Control(boundUnsent)
	}
}

// What makes sendfile cheap is full segments into a send buffer that fits the
// processor's cache: over loopback three times the throughput of one connection
// for half the processor time. From 160 to 320 KiB it works, beyond it does not.
// (The kernel cuts what is asked for to net.core.wmem_max, 208 KiB as a rule.)
//
// A send buffer that was set stays, and bounds a connection to one buffer per
// round trip. So it is set only where the shortest round trip seen is one of a
// host or a rack: 256 KiB each 100 microseconds are 20 Gbit/s. Everybody else
// keeps what the kernel tunes. A round trip is measured too long on a busy host,
// never too short.
const (
	nearBuffer    = 256 << 10
	nearRoundTrip = 100 * time.Microsecond
)

// cork holds partial segments back until uncork, towards a client that is near,
// on a connection that was widened. It reports whether it did.
func (l *line) cork() (corked bool) {
	if l == nil || l.raw == nil {
		return false
	}
	err := l.raw.Control(func(fd uintptr) {
		l.near = l.near || bringNear(int(fd))
		corked = l.near && unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_CORK, 1) == nil
	})
	return corked && err == nil
}

// bringNear fixes the send buffer of a connection to a near client.
func bringNear(fd int) bool {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	return err == nil && isNear(time.Duration(info.Min_rtt)*time.Microsecond) &&
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, nearBuffer) == nil
}

// isNear judges the shortest round trip that the kernel has seen. One that was
// never measured is all ones, or zero in kernels that do not tell.
func isNear(shortest time.Duration) bool { return shortest > 0 && shortest <= nearRoundTrip }

// uncork sends what cork held back.
func (l *line) uncork() {
	_ = l.raw.Control(func(fd uintptr) { // it fails where the connection has
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_CORK, 0)
	})
}

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// link is a way to a client that is far away: two network namespaces with a TUN
// device each, and between them a program that holds each packet back and lets
// no more through than a rate. It stands in for netem, which many kernels lack;
// unlike a slow proxy it gives the server's kernel a true round-trip time.
type link struct {
	server, client *namespace
	carriers       sync.WaitGroup
}

const (
	serverIP = "10.231.0.1"
	clientIP = "10.231.0.2"
)

// newLink makes a link; the caller closes it. Delay is that of one way, rate
// that of the way to the client, in bytes per second.
func newLink(delay time.Duration, rate int64) (l *link, err error) {
	l = new(link)
	defer func() {
		if err != nil {
			l.close()
			l = nil
		}
	}()
	if l.server, err = newNamespace(); err != nil {
		return l, fmt.Errorf("a network namespace: %w (run as root)", err)
	}
	if l.client, err = newNamespace(); err != nil {
		return l, fmt.Errorf("a network namespace: %w", err)
	}
	if err := l.server.tun(serverIP, clientIP); err != nil {
		return l, err
	}
	if err := l.client.tun(clientIP, serverIP); err != nil {
		return l, err
	}
	l.carriers.Go(func() { carry(l.server.device, l.client.device, delay, rate) })
	l.carriers.Go(func() { carry(l.client.device, l.server.device, delay, 0) })
	return l, nil
}

// close ends the link, after those who use it. The nil link is closed.
func (l *link) close() {
	if l == nil {
		return
	}
	for _, n := range []*namespace{l.server, l.client} {
		if n != nil {
			n.close()
		}
	}
	l.carriers.Wait()
}

// near is where the server is; nil without a link.
func (l *link) near() *namespace {
	if l == nil {
		return nil
	}
	return l.server
}

// listen is where the server has to listen to be reached.
func (l *link) listen(local string) string {
	_, port, _ := net.SplitHostPort(local)
	return net.JoinHostPort(serverIP, port)
}

// dial dials from the far side.
func (l *link) dial(ctx context.Context, addr string) (conn net.Conn, err error) {
	err = l.client.do(func() error {
		var d net.Dialer
		var err error
		conn, err = d.DialContext(ctx, "tcp", addr) // an address, not a name: this thread opens the socket
		return err
	})
	return conn, err
}

// namespace is a network namespace, held by a thread that does nothing else.
type namespace struct {
	tid    int
	jobs   chan func()
	device *os.File // the TUN's; nil until there is one
}

// close gives up thread and device.
func (n *namespace) close() {
	close(n.jobs)
	if n.device != nil {
		_ = n.device.Close()
	}
}

func newNamespace() (*namespace, error) {
	n := &namespace{jobs: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread must not be used for anything else
		n.tid = unix.Gettid()
		err := unix.Unshare(unix.CLONE_NEWNET)
		ready <- err
		if err != nil {
			return
		}
		for job := range n.jobs {
			job()
		}
	}()
	if err := <-ready; err != nil {
		return nil, err
	}
	if err := n.ip("link", "set", "lo", "up"); err != nil {
		close(n.jobs)
		return nil, err
	}
	return n, nil
}

// do runs f on the namespace's thread.
func (n *namespace) do(f func() error) error {
	done := make(chan error)
	n.jobs <- func() { done <- f() }
	return <-done
}

// enter puts the calling thread, which must be locked, into the namespace. The
// nil namespace is where we are.
func (n *namespace) enter() error {
	if n == nil {
		return nil
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", n.tid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return unix.Setns(fd, unix.CLONE_NEWNET)
}

// ip runs the command of that name in the namespace.
func (n *namespace) ip(args ...string) error {
	return n.do(func() error {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil { //nolint:noctx // at once
			return fmt.Errorf("ip %v: %w: %s", args, err, out)
		}
		return nil
	})
}

// tunMTU is Ethernet's.
const tunMTU = 1500

// tun makes the namespace's TUN device, with an address and that of the other
// end.
func (n *namespace) tun(own, peer string) error {
	err := n.do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("a TUN device: %w", err)
		}
		request := struct {
			name  [unix.IFNAMSIZ]byte
			flags uint16
			_     [22]byte
		}{flags: unix.IFF_TUN | unix.IFF_NO_PI}
		copy(request.name[:], "far")
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNSETIFF, uintptr(unsafe.Pointer(&request))); errno != 0 {
			_ = unix.Close(fd)
			return fmt.Errorf("a TUN device: %w", errno)
		}
		if err := unix.SetNonblock(fd, true); err != nil { // so that reads wait in Go's poller
			return err
		}
		n.device = os.NewFile(uintptr(fd), "tun")
		return nil
	})
	if err != nil {
		return err
	}
	return errors.Join(
		n.ip("addr", "add", own, "peer", peer, "dev", "far"),
		n.ip("link", "set", "far", "mtu", fmt.Sprint(tunMTU), "txqueuelen", "10000", "up"),
	)
}

// packet is on its way.
type packet struct {
	bytes []byte
	due   time.Time
}

// queue is how many packets a link holds before it drops some: more than fit
// on it and behind it while a receiver's window is open.
const queue = 32 << 10

// carry takes packets from one device to the other until one of them is gone.
func carry(from, to *os.File, delay time.Duration, rate int64) {
	waiting := make(chan packet, queue)
	free := sync.Pool{New: func() any { return new([tunMTU]byte) }}
	var sender sync.WaitGroup
	defer sender.Wait()
	defer close(waiting)
	sender.Go(func() {
		for p := range waiting {
			if d := time.Until(p.due); d > 0 {
				time.Sleep(d)
			}
			_, _ = to.Write(p.bytes)
			free.Put((*[tunMTU]byte)(p.bytes[:tunMTU]))
		}
	})
	var idle time.Time // when the line is free again
	for {
		room := free.Get().(*[tunMTU]byte)
		n, err := from.Read(room[:])
		if err != nil {
			return
		}
		now := time.Now()
		if idle.Before(now) {
			idle = now
		}
		if rate > 0 {
			idle = idle.Add(time.Duration(n) * time.Second / time.Duration(rate))
		}
		select {
		case waiting <- packet{room[:n], idle.Add(delay)}:
		default:
			free.Put(room)
		}
	}
}

package main

import (
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The far client's connection has the link's round-trip time in the kernel's
// own eyes, and what goes over it arrives whole.
func TestFarLink(t *testing.T) {
	const delay, rate = 5 * time.Millisecond, 50_000_000
	l, err := newLink(delay, rate)
	if err != nil {
		t.Skipf("no link here: %v", err)
	}
	defer l.close()
	var ln net.Listener
	if err := l.server.do(func() (err error) {
		ln, err = net.Listen("tcp", l.listen("127.0.0.1:4000"))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	sent := pattern{1, 2 << 20}
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.Copy(conn, io.NewSectionReader(sent, 0, sent.size))
	}()
	conn, err := l.dial(t.Context(), ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info *unix.TCPInfo
	if err := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); err != nil || info == nil {
		t.Fatalf("TCP_INFO: %v", err)
	}
	if rtt := time.Duration(info.Rtt) * time.Microsecond; rtt < 2*delay {
		t.Errorf("the kernel sees a round trip of %v, want %v at least", rtt, 2*delay)
	}
	p := &puller{buffer: 64 << 10}
	if _, err := p.compare(conn, sent, 0, sent.size, time.Now()); err != nil {
		t.Error(err)
	}
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("behind the end: %d bytes, %v", n, err)
	}
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// wakeful is how long a load looks for answers before it sleeps.
const wakeful = 50 * time.Microsecond

// settle is how long a load runs before it is measured.
const settle = 200 * time.Millisecond

// hammer asks for one small thing again and again over many connections, from
// one thread that waits for all of them at once. A goroutine for each would take
// as much processor time as a server here, and then it is the load that is
// measured: a server that is slower than its load wakes it up for each answer.
type hammer struct {
	addr     string
	question []byte
	size     int64 // of each answer's body
	clients  int
	keep     bool // connections; else each answer is the last of its own

	to      *net.TCPAddr
	poll    int
	talks   map[int32]*talk
	settled time.Time
	delays  []time.Duration // of the requests after settled
}

// talk is one connection, and the answer that is awaited on it.
type talk struct {
	fd     int
	asked  time.Time
	answer []byte
}

// loaded is what a load found.
type loaded struct {
	requests int
	took     time.Duration
	delays   []time.Duration // of each request, sorted
}

// run goes on for d, after a settling time, and watches what s needs meanwhile.
func (h *hammer) run(ctx context.Context, s *server, d time.Duration) (found loaded, u usage, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if h.to, err = net.ResolveTCPAddr("tcp4", h.addr); err != nil {
		return loaded{}, usage{}, err
	}
	if h.poll, err = syscall.EpollCreate1(syscall.EPOLL_CLOEXEC); err != nil {
		return loaded{}, usage{}, os.NewSyscallError("epoll_create", err)
	}
	defer func() { err = errors.Join(err, syscall.Close(h.poll)) }()
	h.talks = map[int32]*talk{}
	defer func() {
		for _, t := range h.talks {
			err = errors.Join(err, drop(t.fd))
		}
	}()
	for range h.clients {
		if err := h.open(&talk{answer: make([]byte, 0, 16<<10)}); err != nil {
			return loaded{}, usage{}, err
		}
	}
	h.settled = time.Now().Add(min(settle, d))
	if err := h.until(ctx, h.settled); err != nil {
		return loaded{}, usage{}, err
	}
	w, begin := s.watch(), time.Now()
	err = h.until(ctx, begin.Add(d))
	found, u = loaded{requests: len(h.delays), took: time.Since(begin), delays: h.delays}, w.end()
	if err == nil && found.requests == 0 {
		err = fmt.Errorf("no answer within %v", d)
	}
	slices.Sort(found.delays)
	return found, u, err
}

func (h *hammer) until(ctx context.Context, end time.Time) error {
	events := make([]syscall.EpollEvent, h.clients)
	for time.Now().Before(end) {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := h.wait(events)
		if err != nil {
			return err
		}
		for _, e := range events[:n] {
			if err := h.hear(h.talks[e.Fd]); err != nil {
				return err
			}
		}
	}
	return nil
}

// wait looks for answers for a moment before it sleeps until there are some.
func (h *hammer) wait(events []syscall.EpollEvent) (n int, err error) {
	for awake := time.Now().Add(wakeful); ; {
		patience := 0
		if time.Now().After(awake) {
			patience = 100
		}
		n, err = syscall.EpollWait(h.poll, events, patience)
		if errors.Is(err, syscall.EINTR) {
			return 0, nil
		}
		if n != 0 || err != nil || patience > 0 {
			return max(n, 0), os.NewSyscallError("epoll_wait", err)
		}
	}
}

// open connects and asks.
func (h *hammer) open(t *talk) (err error) {
	t.asked = time.Now()
	if t.fd, err = syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0); err != nil {
		return os.NewSyscallError("socket", err)
	}
	h.talks[int32(t.fd)] = t
	if err := syscall.Connect(t.fd, &syscall.SockaddrInet4{Port: h.to.Port, Addr: h.to.AddrPort().Addr().As4()}); err != nil {
		return os.NewSyscallError("connect", err)
	}
	event := syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(t.fd)}
	if err := errors.Join(syscall.SetNonblock(t.fd, true), syscall.EpollCtl(h.poll, syscall.EPOLL_CTL_ADD, t.fd, &event)); err != nil {
		return os.NewSyscallError("epoll_ctl", err)
	}
	return h.ask(t)
}

func (h *hammer) ask(t *talk) error {
	n, err := syscall.Write(t.fd, h.question)
	if err == nil && n < len(h.question) {
		err = io.ErrShortWrite // it fits an empty buffer
	}
	return os.NewSyscallError("write", err)
}

// hear takes what has come, and asks again once it is the whole answer.
func (h *hammer) hear(t *talk) error {
	if len(t.answer) == cap(t.answer) {
		t.answer = slices.Grow(t.answer, cap(t.answer))
	}
	n, err := syscall.Read(t.fd, t.answer[len(t.answer):cap(t.answer)])
	switch {
	case errors.Is(err, syscall.EAGAIN):
		return nil
	case err != nil:
		return os.NewSyscallError("read", err)
	case n == 0:
		return io.ErrUnexpectedEOF
	}
	t.answer = t.answer[:len(t.answer)+n]
	whole, err := isWhole(t.answer, h.size)
	if err != nil || !whole {
		return err
	}
	now := time.Now()
	if now.After(h.settled) {
		h.delays = append(h.delays, now.Sub(t.asked))
	}
	t.asked, t.answer = now, t.answer[:0]
	if h.keep {
		return h.ask(t)
	}
	delete(h.talks, int32(t.fd))
	if err := drop(t.fd); err != nil {
		return err
	}
	return h.open(t)
}

var (
	lineEnd       = []byte("\r\n")
	headEnd       = []byte("\r\n\r\n")
	contentLength = []byte("content-length")
)

// isWhole reports whether an answer has come to its end. One that is no 200, or
// whose body is not of the right size, is an error.
func isWhole(answer []byte, size int64) (bool, error) {
	head, body, found := bytes.Cut(answer, headEnd)
	if !found {
		return false, nil
	}
	length, err := lengthOf(head)
	if err == nil && (length != size || int64(len(body)) > size) {
		err = fmt.Errorf("an answer of %d bytes, want %d", max(length, int64(len(body))), size)
	}
	return int64(len(body)) == size, err
}

// lengthOf is the body's length as an answer's header tells it; -1 if it does
// not. An answer that is no 200 is an error.
func lengthOf(head []byte) (int64, error) {
	status, rest, _ := bytes.Cut(head, lineEnd)
	if len(status) < 12 || string(status[9:12]) != "200" {
		return 0, fmt.Errorf("answered %q", status)
	}
	for line := range bytes.SplitSeq(rest, lineEnd) {
		if name, value, _ := bytes.Cut(line, []byte(":")); bytes.EqualFold(name, contentLength) {
			return strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64)
		}
	}
	return -1, nil
}

// drop closes at once, without the wait for stray packets that would use up
// this machine's ports.
func drop(fd int) error {
	return errors.Join(syscall.SetsockoptLinger(fd, syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1}), syscall.Close(fd))
}

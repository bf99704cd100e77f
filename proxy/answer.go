package proxy

import (
	"errors"
	"io"
	"math"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"
)

// An answer is a response on its way out: it counts, it gives every write its
// own deadline, and it flushes what a reader may be waiting for. It keeps the
// short ways to the socket open (io.ReaderFrom, Unwrap): a wrapper that hides
// them holds back headers until 4 KiB have come together.
type answer struct {
	w       http.ResponseWriter
	control http.ResponseController
	stall   time.Duration
	line    *line // nil where the connection is not a bare one
	mute    bool  // HEAD: headers only
	streams bool  // HTTP/2: a deadline that passes resets the stream, even if nothing is being written

	status  int   // 0 until the headers are out
	flushed bool  // the headers are on the wire
	bytes   int64 // of the body, as far as the connection took them
	left    int64 // of the body: more is not taken
	gone    error // why the client takes no more
}

func (a *answer) init(w http.ResponseWriter, r *http.Request, stall time.Duration) {
	a.w, a.control, a.stall = w, *http.NewResponseController(w), stall
	a.mute = r.Method == http.MethodHead
	a.streams = r.ProtoMajor >= 2
	if !a.streams { // which share a connection
		a.line = lineOf(r.Context())
	}
	a.left = math.MaxInt64
}

// errEnough refuses bytes beyond what the headers have promised.
var errEnough = errors.New("the answer is complete")

// Unwrap is for http.ResponseController.
func (a *answer) Unwrap() http.ResponseWriter { return a.w }

// Header is what goes out with WriteHeader.
func (a *answer) Header() http.Header { return a.w.Header() }

// WriteHeader sends the status; from here on there is no other answer.
func (a *answer) WriteHeader(status int) {
	a.status = status
	a.expectProgress()
	a.w.WriteHeader(status)
}

// Write sends p at once, unless it is the whole answer: the server sends that,
// together with the headers, when the handler is done.
func (a *answer) Write(p []byte) (int, error) {
	n, err := a.put(p)
	if err == nil && (a.left > 0 || a.flushed) {
		err = a.flush()
	}
	return n, err
}

// put is Write for bytes that are followed by others at once.
func (a *answer) put(p []byte) (n int, err error) {
	a.expectProgress()
	return a.send(p)
}

// send is put under the deadline that is set already.
func (a *answer) send(p []byte) (n int, err error) {
	if a.mute {
		return len(p), nil
	}
	enough := int64(len(p)) > a.left
	if enough {
		p = p[:a.left]
	}
	n, err = a.w.Write(p)
	a.took(int64(n), err)
	if err == nil && enough {
		err = errEnough
	}
	return n, err
}

// whole is for who writes an answer's body in one piece: it goes out with the
// headers.
type whole struct{ *answer }

func (w whole) Write(p []byte) (int, error) { return w.send(p) }

// ReadFrom is for a source that writes itself out: a file goes to the socket
// without passing through our memory.
func (a *answer) ReadFrom(src io.Reader) (int64, error) {
	if a.left == 0 {
		return 0, errEnough
	}
	n, err := a.follow(src)
	if lr, ok := src.(*io.LimitedReader); err == nil && a.left == 0 && (!ok || lr.N > 0) {
		err = errEnough // there may be more, and whoever copies must not try it again and again
	}
	return n, err
}

// follow copies src until it ends or the answer is complete.
func (a *answer) follow(src io.Reader) (n int64, err error) {
	if lr, ok := src.(*io.LimitedReader); ok && isFile(lr.R) {
		n, err = a.sendFile(lr.R, lr.N)
		lr.N -= n
		return n, err
	}
	if isFile(src) {
		return a.sendFile(src, math.MaxInt64)
	}
	buf := copyBuffers.Get().(*[copySize]byte)
	defer copyBuffers.Put(buf)
	for a.left > 0 {
		m, rerr := src.Read(buf[:min(copySize, a.left)])
		if m > 0 {
			written, err := a.Write(buf[:m])
			n += int64(written)
			if err != nil {
				return n, err
			}
		}
		if rerr == io.EOF {
			return n, nil
		}
		if rerr != nil {
			return n, rerr
		}
	}
	return n, nil
}

// copySize keeps a following client well under the 64 KiB of memory that one
// may cost.
const copySize = 32 << 10

var copyBuffers = sync.Pool{New: func() any { return new([copySize]byte) }} //nolint:gochecknoglobals // a pool is shared by its nature

// isFile reports whether r can feed sendfile: *os.File and what package os
// makes of it while it copies one.
func isFile(r io.Reader) bool {
	_, ok := r.(interface {
		syscall.Conn
		io.Seeker
	})
	return ok
}

// filePiece is how much of a file goes out under one deadline: with the default
// of a minute, the slowest client that is not cut reads some 5 KB/s.
const filePiece = 256 << 10

// corkFrom is the least that is worth system calls on how it is sent: a segment
// of the loopback device.
const corkFrom = 64 << 10

// sendFile sends at most limit bytes of file from its position.
func (a *answer) sendFile(file io.Reader, limit int64) (n int64, err error) {
	rf, ok := a.w.(io.ReaderFrom)
	if !ok {
		rf = writeOnly{a.w}
	}
	limit = min(limit, a.left)
	if ok && limit >= corkFrom && a.line.cork() {
		defer a.line.uncork() // also before each wait: a source that follows a fill calls again for what has landed
	}
	within := &io.LimitedReader{R: file}
	for limit > 0 {
		piece := min(limit, filePiece)
		within.N = piece
		a.expectProgress()
		m, err := rf.ReadFrom(within)
		n, limit = n+m, limit-m
		if clientSide(err) {
			a.took(m, err)
			return n, err
		}
		a.took(m, nil)
		if err != nil || m < piece {
			return n, errors.Join(err, a.flush())
		}
	}
	if a.left > 0 {
		err = a.flush()
	}
	return n, err
}

// writeOnly copies where the connection has no way of its own (HTTP/2).
type writeOnly struct{ w io.Writer }

func (o writeOnly) ReadFrom(src io.Reader) (int64, error) {
	buf := copyBuffers.Get().(*[copySize]byte)
	defer copyBuffers.Put(buf)
	return io.CopyBuffer(struct{ io.Writer }{o.w}, src, buf[:])
}

// clientSide tells a connection's failure from a file's, where one call does
// both.
func clientSide(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, os.ErrDeadlineExceeded)
}

func (a *answer) took(n int64, err error) {
	a.bytes += n
	a.left -= n
	if err != nil {
		a.gone = err
	}
}

// expectProgress gives the client time for the next write. A writer without
// deadlines, as in a test, is asked once.
func (a *answer) expectProgress() {
	now := time.Now()
	if a.stall <= 0 || a.line.patient(now, a.stall) {
		return
	}
	until := now.Add(a.stall)
	if a.control.SetWriteDeadline(until) != nil {
		a.stall = 0
	} else if a.line != nil {
		a.line.until = until
	}
}

// flush sends what has been written, before a wait for the source.
func (a *answer) flush() error {
	if a.mute {
		return nil
	}
	err := a.control.Flush()
	if errors.Is(err, http.ErrNotSupported) {
		return nil
	}
	a.flushed = true
	a.took(0, err)
	if a.streams {
		_ = a.control.SetWriteDeadline(time.Time{})
	}
	return err
}

package proxy

import (
	"context"
	"net/http"
	"time"
)

// Aside serves what stands beside the API, such as a probe or the token service,
// and tells observe of each request as New's handler does of its own. kind is the
// route's name. serve reports who asked, if it knows, and what went wrong.
func Aside(kind string, observe func(context.Context, Record), serve func(http.ResponseWriter, *http.Request) (user string, err error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start, out := time.Now(), &tally{ResponseWriter: w}
		rec := Record{Method: clip(r.Method, 20), Kind: kind, Client: clientAddress(r), UserAgent: clip(r.UserAgent(), 200)}
		defer func() {
			p := recover()
			if p != nil {
				rec.Err = panicked(p)
			}
			rec.Status, rec.Bytes, rec.Duration = out.status, out.bytes, time.Since(start)
			observe(r.Context(), rec)
			if p != nil {
				panic(http.ErrAbortHandler)
			}
		}()
		rec.User, rec.Err = serve(out, r)
	})
}

// tally counts what goes out.
type tally struct {
	http.ResponseWriter
	status int
	bytes  int64
}

// Unwrap is for http.ResponseController.
func (t *tally) Unwrap() http.ResponseWriter { return t.ResponseWriter }

func (t *tally) WriteHeader(status int) {
	if t.status == 0 {
		t.status = status
	}
	t.ResponseWriter.WriteHeader(status)
}

func (t *tally) Write(p []byte) (int, error) {
	if t.status == 0 {
		t.status = http.StatusOK
	}
	n, err := t.ResponseWriter.Write(p)
	t.bytes += int64(n)
	return n, err
}

package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/oci"
)

func newPatience(ctx context.Context, d time.Duration) *patience {
	p := &patience{}
	p.init(ctx, nil, time.Now().Add(d))
	return p
}

func TestPatienceEndsAtTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPatience(t.Context(), time.Second)
		defer p.end()
		if until, ok := p.Deadline(); !ok || time.Until(until) != time.Second {
			t.Errorf("deadline %v %v", until, ok)
		}
		child, cancel := context.WithCancel(p)
		defer cancel()
		<-child.Done()
		if p.Err() != context.DeadlineExceeded || context.Cause(child) != context.DeadlineExceeded || !p.hasExpired() || p.settle() {
			t.Errorf("err %v, cause %v, expired %v", p.Err(), context.Cause(child), p.hasExpired())
		}
	})
}

func TestSettledPatienceEndsWithTheRequest(t *testing.T) {
	for _, waited := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			request, leave := context.WithCancel(t.Context())
			p := newPatience(request, time.Second)
			defer p.end()
			if waited {
				p.Done()
			}
			if !p.settle() {
				t.Fatal("settled too late")
			}
			if _, ok := p.Deadline(); ok {
				t.Error("has a deadline")
			}
			time.Sleep(time.Hour) // synctest's clock
			if p.Err() != nil {
				t.Fatalf("ended with %v", p.Err())
			}
			leave()
			<-p.Done()
			if p.Err() != context.Canceled || p.hasExpired() {
				t.Errorf("err %v, expired %v", p.Err(), p.hasExpired())
			}
		})
	}
}

// What derives from it must neither need a goroutine nor outlive it.
func TestEndReleasesChildren(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPatience(t.Context(), time.Hour)
		child, cancel := context.WithTimeout(p, time.Minute)
		defer cancel()
		after := make(chan struct{})
		context.AfterFunc(p, func() { close(after) })
		p.end()
		<-after
		if child.Err() != context.Canceled {
			t.Errorf("child: %v", child.Err())
		}
	})
}

func TestUnaskedPatienceCostsNothing(t *testing.T) {
	ctx := t.Context()
	x := &exchange{}
	if n := testing.AllocsPerRun(100, func() {
		x.ctx = patience{}
		x.ctx.init(ctx, nil, time.Now().Add(time.Second))
		_ = x.ctx.Err()
		_, _ = x.ctx.Deadline()
		_ = x.ctx.settle()
		x.ctx.end()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestServersEndEndsWhoWaits: also where net/http does not watch the connection,
// as it does not once the next request lies there.
func TestServersEndEndsWhoWaits(t *testing.T) {
	ctx, cut := context.WithCancel(context.Background())
	defer cut()
	g := helloRegistry(t)
	asked, ended := make(chan struct{}, 1), make(chan error, 1)
	g.before = func(ctx context.Context, _ string) error {
		asked <- struct{}{}
		<-ctx.Done()
		ended <- ctx.Err()
		return ctx.Err()
	}
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: New(g, Config{Names: testNames()}), ConnContext: ConnContext, BaseContext: func(net.Listener) context.Context { return ctx }}
	var serving sync.WaitGroup
	serving.Go(func() { _ = srv.Serve(Listener{inner}) })
	defer serving.Wait()
	defer srv.Close()
	client, err := net.Dial("tcp", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := io.WriteString(client, strings.Repeat("GET /v2/hello/manifests/latest HTTP/1.1\r\nHost: cache.example\r\n\r\n", 2)); err != nil {
		t.Fatal(err)
	}
	<-asked
	cut()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the source was not told")
	}
}

// TestWhoIsCutByTheServerDidNotLeave: what a connection says once its server has
// cut it is not the client's word.
func TestWhoIsCutByTheServerDidNotLeave(t *testing.T) {
	g := helloRegistry(t)
	content := bytes.Repeat([]byte("x"), 64<<20) // more than the buffers between them hold
	path := "/v2/library/hello/blobs/" + g.repo("docker.io/library/hello").addBlob(content).String()
	for _, row := range []struct {
		name  string
		setup func(*httptest.Server)
	}{
		{"a bare connection", func(s *httptest.Server) {
			s.Listener, s.Config.ConnContext = Listener{s.Listener}, ConnContext
			s.Start()
		}},
		{"any other", (*httptest.Server).Start},
		{"HTTP/2", func(s *httptest.Server) {
			s.EnableHTTP2 = true
			s.StartTLS()
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			ctx, cut := context.WithCancelCause(context.Background())
			defer cut(nil)
			d := &door{t: t, records: make(chan Record, 1)}
			srv := httptest.NewUnstartedServer(d.handler(g, Config{}))
			srv.Config.BaseContext = func(net.Listener) context.Context { return ctx }
			row.setup(srv)
			defer srv.Close()
			resp, err := srv.Client().Get(srv.URL + path)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			cut(ErrStopping)
			if err := srv.Config.Close(); err != nil {
				t.Error(err)
			}
			if rec := d.record(); !errors.Is(rec.Err, ErrStopping) || errors.Is(rec.Err, ErrClientGone) || oci.CodeOf(rec.Err) != oci.Unavailable || rec.Status != http.StatusOK {
				t.Errorf("%d, %v", rec.Status, rec.Err)
			}
		})
	}
}

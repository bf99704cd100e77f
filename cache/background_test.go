package cache

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/oci"
)

var background = oci.Ask{Background: true}

// reserved is a registry in front of which those who wait for themselves go
// first: a question in the background waits for gave, and is then refused.
type reserved struct {
	*source
	gave chan struct{}
}

func newReserved() *reserved { return &reserved{newSource(), make(chan struct{})} }

func (r *reserved) admit(ctx context.Context, ask oci.Ask) error {
	if !ask.Background {
		return nil
	}
	select {
	case <-r.gave:
		return &oci.Error{Code: oci.TooManyRequests, Detail: "the last are kept for clients", RetryAfter: time.Hour}
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *reserved) Resolve(ctx context.Context, repo oci.Repository, ref string, ask oci.Ask) (oci.Resolved, oci.Outcome, error) {
	if err := r.admit(ctx, ask); err != nil {
		return oci.Resolved{}, oci.Outcome{}, err
	}
	return r.source.Resolve(ctx, repo, ref, ask)
}

func (r *reserved) Manifest(ctx context.Context, repo oci.Repository, d oci.Digest, ask oci.Ask) (oci.Manifest, oci.Outcome, error) {
	if err := r.admit(ctx, ask); err != nil {
		return oci.Manifest{}, oci.Outcome{}, err
	}
	return r.source.Manifest(ctx, repo, d, ask)
}

func (r *reserved) Blob(ctx context.Context, repo oci.Repository, d oci.Digest, ask oci.Ask) (oci.Blob, error) {
	b, err := r.source.Blob(ctx, repo, d, ask)
	return &reservedBlob{b, r, ask}, err
}

type reservedBlob struct {
	oci.Blob
	r   *reserved
	ask oci.Ask
}

func (b *reservedBlob) Open(ctx context.Context, offset, length int64) (oci.Reader, error) {
	if err := b.r.admit(ctx, b.ask); err != nil {
		return nil, err
	}
	return b.Blob.Open(ctx, offset, length)
}

// Whoever waits himself does not wait behind what gives way.
func TestWaitingIsNotForTheBackground(t *testing.T) {
	for _, tc := range []struct {
		name string
		ask  func(ctx context.Context, c *Cache, m oci.Manifest, ask oci.Ask) error
	}{
		{"tag", func(ctx context.Context, c *Cache, _ oci.Manifest, ask oci.Ask) error {
			_, _, err := c.Resolve(ctx, alpine, "latest", ask)
			return err
		}},
		{"manifest", func(ctx context.Context, c *Cache, m oci.Manifest, ask oci.Ask) error {
			_, _, err := c.Manifest(ctx, alpine, m.Digest, ask)
			return err
		}},
		{"blob", func(ctx context.Context, c *Cache, m oci.Manifest, ask oci.Ask) error {
			links, _ := oci.ParseLinks(m.Content)
			b, err := c.Blob(ctx, alpine, links.Layers[0].Digest, ask)
			if err != nil {
				return err
			}
			r, err := b.Open(ctx, 0, -1)
			if err != nil {
				return err
			}
			defer r.Close()
			_, err = io.Copy(io.Discard, r)
			return err
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newReserved()
				m := s.pushImage(alpine, "latest", pattern(1, 1000))
				c := newCache(t, s, Config{TTL: time.Hour})
				defer closeCache(t, c)
				held := make(chan error, 1)
				go func() { held <- tc.ask(t.Context(), c, m, background) }()
				synctest.Wait()
				began := time.Now()
				if err := tc.ask(t.Context(), c, m, oci.Ask{}); err != nil {
					t.Fatalf("beside a question in the background: %v", err)
				}
				if took := time.Since(began); took > backgroundWait {
					t.Errorf("it took %v, want %v at most", took, backgroundWait)
				}
				close(s.gave)
				t.Log("in the background:", <-held) // refused, or not
			})
		})
	}
}

// What is refused to the background is kept for others: the refusal is not
// theirs.
func TestRefusalOfTheBackgroundIsNotRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newReserved()
		m := s.pushImage(alpine, "latest", pattern(1, 1000))
		c := newCache(t, s, Config{TTL: time.Hour})
		defer closeCache(t, c)
		joined := make(chan error, 1)
		refused := make(chan error, 1)
		go func() {
			_, _, err := c.Manifest(t.Context(), alpine, m.Digest, background)
			refused <- err
		}()
		synctest.Wait()
		go func() {
			_, _, err := c.Manifest(t.Context(), alpine, m.Digest, oci.Ask{})
			joined <- err
		}()
		synctest.Wait()
		began := time.Now()
		close(s.gave)
		if err := <-joined; err != nil || time.Since(began) > 0 {
			t.Errorf("who read along: %v after %v", err, time.Since(began))
		}
		wantCode(t, <-refused, oci.TooManyRequests)

		_, _, err := c.Resolve(t.Context(), alpine, "latest", background)
		wantCode(t, err, oci.TooManyRequests)
		if _, _, err := c.Resolve(t.Context(), alpine, "latest", oci.Ask{}); err != nil {
			t.Errorf("a client after the refusal: %v", err)
		}
	})
}

func TestTheBackgroundPrefetchesNothing(t *testing.T) {
	s := newSource()
	m := s.pushImage(alpine, "latest", pattern(1, 1000), pattern(2, 1000))
	c := newCache(t, s, Config{TTL: time.Hour})
	if _, _, err := c.Manifest(t.Context(), alpine, m.Digest, background); err != nil {
		t.Fatal(err)
	}
	links, _ := oci.ParseLinks(m.Content)
	b, err := c.Blob(t.Context(), alpine, links.Layers[0].Digest, background)
	if err != nil {
		t.Fatal(err)
	}
	r, err := b.Open(t.Context(), 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, pattern(1, 1000)) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	closeCache(t, c) // whatever runs has been asked for
	wantAsked(t, s, "GET library/alpine manifest "+m.Digest.String(), "GET library/alpine blob "+links.Layers[0].Digest.String()+" 0+-1")
}

func TestForgettingOfOneRepository(t *testing.T) {
	s := newSource()
	edge := oci.Repository{Host: "docker.io", Path: "library/alpine-edge"}
	c := newCache(t, s, Config{TTL: time.Hour})
	for range 2 {
		for _, repo := range []oci.Repository{alpine, edge} {
			_, _, err := c.Resolve(t.Context(), repo, "nosuch", oci.Ask{})
			wantCode(t, err, oci.ManifestUnknown)
		}
		c.ForgetOf(alpine)
	}
	wantAsked(t, s, "HEAD library/alpine nosuch", "HEAD library/alpine-edge nosuch", "HEAD library/alpine nosuch")
}

func TestRecordTellsWithoutAsking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		m := s.pushImage(alpine, "latest", pattern(1, 10))
		c := newCache(t, s, Config{TTL: time.Minute})
		defer closeCache(t, c)
		if rec := c.Record(alpine, "latest"); rec != nil {
			t.Errorf("%+v of what nobody has asked for", rec)
		}
		if _, _, err := c.Resolve(t.Context(), alpine, "latest", oci.Ask{}); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		time.Sleep(time.Hour)
		if rec := c.Record(alpine, "latest"); rec == nil || rec.Digest != m.Digest || !rec.Checked.Equal(began) || rec.TTL != time.Minute {
			t.Errorf("the record: %+v", rec)
		}
		wantAsked(t, s, "HEAD library/alpine latest")
	})
}

// What is on its way for others, and may not be read along with, crosses the line once:
// the background waits for it, and takes it from disk.
func TestTheBackgroundWaitsForFillsOfOthers(t *testing.T) {
	layer := pattern(61, 8*mib)
	d := oci.Sum(layer)
	other := oci.Repository{Host: "ghcr.io", Path: "library/alpine"}
	for _, tc := range []struct {
		name  string
		repo  oci.Repository
		push  func(s *abroad)
		asked int // when it is here: confirmed by HEAD, or read to its end
		then  oci.CacheStatus
	}{
		{"another upstream's", other, func(s *abroad) { s.pushImage(alpine, "1", layer); s.pushImage(other, "1", layer) }, 0, oci.Hit},
		{"another repository's, from elsewhere", mallory, func(s *abroad) {
			s.place(layerURL, d, layer)
			s.pushForeign(alpine, "1", d, len(layer))
			s.pushForeign(mallory, "1", d, len(layer))
		}, 1, oci.Bypass},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &abroad{source: newSource()}
				tc.push(s)
				c := newCache(t, s, Config{TTL: time.Hour, Private: true, Prefetch: -1})
				defer closeCache(t, c)
				for _, repo := range []oci.Repository{alpine, tc.repo} {
					res, _, err := c.Resolve(t.Context(), repo, "1", oci.Ask{})
					if err == nil {
						_, _, err = c.Manifest(t.Context(), repo, res.Digest, oci.Ask{})
					}
					if err != nil {
						t.Fatal(err)
					}
				}
				open := make(chan int64, 1)
				open <- mib
				s.set(func() {
					s.body = func(_ int, c []byte, off int64) io.Reader { return &gated{r: bytes.NewReader(c[off:]), open: open} }
				})
				first := mustOpen(t, c, alpine, d, 0)
				defer first.Close()
				synctest.Wait()
				moved := s.bytesMoved()
				began := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				_, _, err := readAs(ctx, c, tc.repo, d, background, 0, -1)
				if took := time.Since(began); !errors.Is(err, oci.ErrFilling) || !oci.IsRetryable(err) || took > time.Minute {
					t.Errorf("while it is on its way: %v after %v", err, took)
				}
				if n := s.bytesMoved() - moved; n > 0 {
					t.Errorf("%d bytes came meanwhile", n)
				}
				got := make(chan oci.Outcome, 1)
				go func() {
					content, out, err := readAs(t.Context(), c, tc.repo, d, background, 0, -1)
					if err != nil || !bytes.Equal(content, layer) {
						t.Errorf("%d bytes, %v", len(content), err)
					}
					got <- out
				}()
				synctest.Wait()
				close(open)
				if out := <-got; out.Cache != tc.then || out.Proves != (tc.then == oci.Bypass) {
					t.Errorf("once it is here: %+v, want a %s", out, tc.then)
				}
				if out := mustRead(t, c, tc.repo, d, layer); out.Cache != oci.Hit {
					t.Errorf("after that it is a %s", out.Cache)
				}
				if n, want := s.bytesMoved(), int64(len(layer)*(1+tc.asked)); n != want {
					t.Errorf("%d bytes came, want %d", n, want)
				}
			})
		})
	}
}

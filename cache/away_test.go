package cache

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/oci"
	"entrepot/store"
)

// crowd pulls so much of another upstream that nothing unprotected is left of what
// was here before under a budget of 8 layers.
func crowd(t *testing.T, c *Cache, s *source, layer int) {
	t.Helper()
	quay := oci.Repository{Host: "quay.io", Path: "a/b"}
	for n := range 20 {
		s.set(func() { s.pushImage(quay, fmt.Sprint(n), pattern(10+n, layer)) })
		if _, err := pull(t.Context(), c, quay, fmt.Sprint(n)); err != nil {
			t.Fatal(err)
		}
	}
}

// What says that an upstream is away, and what does not: which content makes room for
// that of another upstream then, and when it does again although nobody has asked.
func TestWhatIsTakenForAway(t *testing.T) {
	const layer = 512 << 10
	crowded := &oci.Error{Code: oci.TooManyRequests, RetryAfter: 15 * time.Minute, Err: oci.ErrCrowded}
	reserve := &oci.Error{Code: oci.TooManyRequests, RetryAfter: 15 * time.Minute, Err: oci.ErrReserved}
	for _, row := range []struct {
		name    string
		down    error         // what docker.io says to every question
		closing bool          // there is no answer before we end
		later   time.Duration // is when we are started again
		stays   bool
	}{
		{"trouble", &oci.Error{Code: oci.Unavailable}, false, 0, true},
		{"trouble, hours ago", &oci.Error{Code: oci.Unavailable}, false, 23 * time.Hour, true},
		{"trouble, a day ago", &oci.Error{Code: oci.Unavailable}, false, 25 * time.Hour, false},
		{"a limit for long", &oci.Error{Code: oci.TooManyRequests, RetryAfter: time.Hour}, false, 0, true},
		{"a limit for long, which has not ended", &oci.Error{Code: oci.TooManyRequests, RetryAfter: time.Hour}, false, 50 * time.Minute, true},
		{"a limit for long, which has ended", &oci.Error{Code: oci.TooManyRequests, RetryAfter: time.Hour}, false, 61 * time.Minute, false},
		{"a limit", &oci.Error{Code: oci.TooManyRequests, RetryAfter: time.Minute}, false, 0, false},
		{"a limit for who may go without", reserve, false, 0, false},
		{"a limit of our own", crowded, false, 0, false},
		{"we end", nil, true, 0, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource()
				held := pattern(1, layer)
				s.pushImage(alpine, "latest", held)
				on := store.Config{Dir: t.TempDir(), Budget: 8 * layer}
				cfg := Config{}
				if row.closing {
					cfg.CheckWait = time.Millisecond
				}
				c := openCacheOf(t, on, s, cfg)
				if _, err := pull(t.Context(), c, alpine, "latest"); err != nil {
					t.Fatal(err)
				}
				s.set(func() { s.down, s.downHost, s.waits = row.down, "docker.io", row.closing })
				if _, _, err := c.Resolve(t.Context(), alpine, "latest", oci.Ask{}); err != nil {
					t.Fatal(err)
				}
				closeCache(t, c)
				time.Sleep(row.later)
				s.set(func() { s.waits = false })
				c = openCacheOf(t, on, s, Config{})
				crowd(t, c, s, layer)
				if stays := c.has(oci.Sum(held)); stays != row.stays {
					t.Errorf("it is still held: %v, want %v", stays, row.stays)
				}
			})
		})
	}
}

// TestAnyAnswerEndsSilence: whatever it is about, and whatever it says; what we say
// ourselves does not, nor does an answer that is none. That pulls are to be had is
// said by fewer.
func TestAnyAnswerEndsSilence(t *testing.T) {
	const layer = 512 << 10
	down, spent := &oci.Error{Code: oci.Unavailable}, &oci.Error{Code: oci.TooManyRequests, RetryAfter: time.Hour}
	extra, missing := pattern(2, 1000), oci.Sum([]byte("missing"))
	tag := func(tag string, ask oci.Ask) func(context.Context, *Cache) {
		return func(ctx context.Context, c *Cache) { _, _, _ = c.Resolve(ctx, alpine, tag, ask) }
	}
	blob := func(dg oci.Digest, use func(context.Context, oci.Blob)) func(context.Context, *Cache) {
		return func(ctx context.Context, c *Cache) {
			if b, err := c.Blob(ctx, alpine, dg, oci.Ask{}); err == nil {
				use(ctx, b)
			}
		}
	}
	read := func(ctx context.Context, b oci.Blob) {
		if r, err := b.Open(ctx, 0, -1); err == nil {
			_, _ = r.Read(make([]byte, 10))
			_ = r.Close()
		}
	}
	stat := func(ctx context.Context, b oci.Blob) { _, _, _ = b.Stat(ctx) }
	for _, row := range []struct {
		name  string
		away  error // what it said
		then  error // what it says to all now, if it does not answer as usual
		ask   func(context.Context, *Cache)
		stays bool
	}{
		{"nothing is asked", down, nil, func(context.Context, *Cache) {}, true},
		{"a tag that is held", down, nil, tag("latest", oci.Ask{}), false},
		{"a tag that is held, by force", down, nil, tag("latest", oci.Ask{Refresh: true}), false},
		{"a tag that is not held", down, nil, tag("other", oci.Ask{}), false},
		{"a tag that is missing", down, nil, tag("missing", oci.Ask{}), false},
		{"a manifest that is missing", down, nil, func(ctx context.Context, c *Cache) { _, _, _ = c.Manifest(ctx, alpine, missing, oci.Ask{}) }, false},
		{"a HEAD of a manifest that is missing", down, nil, tag(missing.String(), oci.Ask{}), false},
		{"the list of tags", down, nil, func(ctx context.Context, c *Cache) { _, _, _ = c.Tags(ctx, alpine, oci.Page{N: -1}, oci.Ask{}) }, false},
		{"a list of referrers", down, nil, func(ctx context.Context, c *Cache) {
			_, _, _ = c.Referrers(ctx, alpine, missing, "", oci.Ask{})
		}, false},
		{"a HEAD of a blob", down, nil, blob(oci.Sum(extra), stat), false},
		{"a HEAD of a blob that is missing", down, nil, blob(missing, stat), false},
		{"a blob", down, nil, blob(oci.Sum(extra), read), false},
		{"a blob that is not kept", down, nil, func(ctx context.Context, c *Cache) {
			c.passBy(oci.Sum(extra), oci.Ask{}, errors.New("for a test"))
			blob(oci.Sum(extra), read)(ctx, c)
		}, false},
		{"it refuses", down, &oci.Error{Code: oci.Denied}, tag("other", oci.Ask{}), false},
		{"it wants a moment", down, &oci.Error{Code: oci.TooManyRequests, RetryAfter: time.Second}, tag("other", oci.Ask{}), false},
		{"it has spent its pulls", down, spent, tag("other", oci.Ask{}), true},
		{"we want a moment", down, &oci.Error{Code: oci.TooManyRequests, Err: oci.ErrCrowded}, tag("other", oci.Ask{}), true},
		{"it is still down", down, down, tag("other", oci.Ask{}), true},
		{"spent, and a HEAD", spent, nil, tag("latest", oci.Ask{Refresh: true}), true},
		{"spent, and the list of tags", spent, nil, func(ctx context.Context, c *Cache) { _, _, _ = c.Tags(ctx, alpine, oci.Page{N: -1}, oci.Ask{}) }, true},
		{"spent, and a HEAD that tells of pulls", spent, nil, tag("latest", oci.Ask{}), false},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			s := newSource()
			held := pattern(1, layer)
			s.pushImage(alpine, "latest", held)
			s.pushImage(alpine, "other", extra)
			c := openCacheOf(t, store.Config{Dir: t.TempDir(), Budget: 8 * layer}, s, Config{})
			if _, err := pull(t.Context(), c, alpine, "latest"); err != nil {
				t.Fatal(err)
			}
			s.set(func() { s.down, s.downHost = row.away, "docker.io" })
			_, _, err := c.Resolve(t.Context(), alpine, "unheld", oci.Ask{})
			wantCode(t, err, oci.CodeOf(row.away))
			s.set(func() { s.down = row.then })
			row.ask(t.Context(), c)
			s.set(func() { s.down = nil })
			crowd(t, c, s, layer)
			if stays := c.has(oci.Sum(held)); stays != row.stays {
				t.Errorf("it is still held: %v, want %v; asked %q", stays, row.stays, s.questions()[:8])
			}
		})
	}
}

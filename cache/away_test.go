package cache

import (
	"fmt"
	"testing"
	"time"

	"entrepot/oci"
	"entrepot/store"
)

// What says that an upstream is away, and what does not: which content makes room for
// that of another upstream then.
func TestWhatIsTakenForAway(t *testing.T) {
	const layer = 512 << 10
	crowded := &oci.Error{Code: oci.TooManyRequests, RetryAfter: 15 * time.Minute, Err: oci.ErrCrowded}
	reserve := &oci.Error{Code: oci.TooManyRequests, RetryAfter: 15 * time.Minute, Err: oci.ErrReserved}
	for _, row := range []struct {
		name    string
		down    error // what docker.io says to every question
		closing bool  // there is no answer before we end
		stays   bool
	}{
		{"trouble", &oci.Error{Code: oci.Unavailable}, false, true},
		{"a limit for long", &oci.Error{Code: oci.TooManyRequests, RetryAfter: time.Hour}, false, true},
		{"a limit", &oci.Error{Code: oci.TooManyRequests, RetryAfter: time.Minute}, false, false},
		{"a limit for who may go without", reserve, false, false},
		{"a limit of our own", crowded, false, false},
		{"we end", nil, true, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
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
			s.set(func() { s.waits = false })
			c = openCacheOf(t, on, s, Config{})
			quay := oci.Repository{Host: "quay.io", Path: "a/b"}
			for n := range 20 {
				s.set(func() { s.pushImage(quay, fmt.Sprint(n), pattern(10+n, layer)) })
				if _, err := pull(t.Context(), c, quay, fmt.Sprint(n)); err != nil {
					t.Fatal(err)
				}
			}
			if stays := c.has(oci.Sum(held)); stays != row.stays {
				t.Errorf("it is still held: %v, want %v", stays, row.stays)
			}
		})
	}
}

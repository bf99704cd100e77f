package admin

import (
	"testing"
	"time"

	"entrepot/cache"
	"entrepot/upstream"
)

// A blob is in trouble only while its upstream is asked for something: not while who
// reads it is slow, nor while what has landed is hashed.
func TestWhatIsSaidOfFillsThatHardlyCome(t *testing.T) {
	now := time.Date(2026, 11, 25, 14, 3, 27, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	const minute, full = time.Minute, 60 * upstream.LeastRate
	for name, row := range map[string]struct {
		fill cache.Progress
		want string
	}{
		"nothing yet":                    {cache.Progress{Began: ago(stalledAfter - 1), Size: -1, Streams: 1}, ""},
		"nothing for long":               {cache.Progress{Began: ago(stalledAfter), Size: -1, Streams: 1}, Stalled},
		"nothing since":                  {cache.Progress{Began: ago(minute), Came: ago(stalledAfter), Landed: full, Size: 2 * full, Streams: 1}, Stalled},
		"nothing is asked for":           {cache.Progress{Began: ago(minute), Came: ago(stalledAfter), Landed: full, Size: 2 * full, Readers: 1}, ""},
		"nobody reads it":                {cache.Progress{Began: ago(minute), Came: ago(stalledAfter), Landed: 1, Size: 2 * full}, ""},
		"it is hashed":                   {cache.Progress{Began: ago(minute), Came: ago(stalledAfter), Landed: full, Size: full, Streams: 1}, ""},
		"fast":                           {cache.Progress{Began: ago(minute), Came: now, Landed: full, Size: 2 * full, Streams: 1}, ""},
		"slow":                           {cache.Progress{Began: ago(minute), Came: now, Landed: full - 60, Size: 2 * full, Streams: 1}, Slow},
		"slow, but for what was there":   {cache.Progress{Began: ago(minute), Came: now, Landed: full, Had: 60, Size: 2 * full, Streams: 1}, Slow},
		"slow, and too young to be sure": {cache.Progress{Began: ago(upstream.LeastOver - 1), Came: now, Landed: 1, Size: full, Streams: 1}, ""},
		"slow, since who reads it is":    {cache.Progress{Began: ago(minute), Came: now, Landed: 1, Size: full, Readers: 1}, ""},
	} {
		if got := newFill(row.fill, now).Trouble; got != row.want {
			t.Errorf("%s: %q, want %q", name, got, row.want)
		}
	}
}

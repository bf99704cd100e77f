package admin

import (
	"testing"

	"entrepot/cache"
	"entrepot/oci"
)

func TestRefreshTellsWhatWasNotAsked(t *testing.T) {
	d := oci.Sum([]byte("x"))
	held := &cache.Record{Descriptor: oci.Descriptor{Digest: d}}
	for _, row := range []struct {
		name    string
		before  *cache.Record
		out     oci.Outcome
		err     error
		outcome string
	}{
		{"offline", held, oci.Outcome{Cache: oci.Hit, Why: "offline"}, nil, Unconfirmed},
		{"stale", held, oci.Outcome{Cache: oci.Stale, Why: "slow"}, nil, Unconfirmed},
		{"deleted", held, oci.Outcome{Cache: oci.Stale, Why: cache.WhyDeleted}, nil, Gone},
		{"never there", nil, oci.Outcome{}, oci.ErrManifestUnknown, Gone},
		{"down", nil, oci.Outcome{}, oci.ErrUnavailable, Unconfirmed},
	} {
		if got := newRefreshed(Target{}, row.before, oci.Resolved{}, row.out, row.err); got.Outcome != row.outcome || got.Why == "" {
			t.Errorf("%s: %+v, want %s", row.name, got, row.outcome)
		}
	}
}

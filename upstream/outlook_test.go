package upstream

import (
	"net/http"
	"testing"
	"time"

	"entrepot/internal/ocitest"
	"entrepot/oci"
)

// What would become of a question is told before it is asked, by what is known of
// all the addresses that an upstream has, and without a request.
func TestOutlook(t *testing.T) {
	spent := ocitest.QuotaSpent()
	spent.Header.Set("Retry-After", "3600")
	shortly := ocitest.RetryLater(http.StatusTooManyRequests, "5")
	shortly.Header.Set("Content-Type", "text/plain")
	shortly.Body = "slow down"
	type codes struct{ check, moved, manifest, blob oci.Code }
	const sent = oci.Code(0) // nil
	for _, row := range []struct {
		name     string
		habits   ocitest.Habits
		fault    ocitest.Effect // of what is asked for before
		at       string         // that repository; empty: of all
		pulls    int
		mirrored bool
		refused  bool // the login is
		want     codes
	}{
		{"all is well", ocitest.Habits{}, ocitest.Effect{}, "", 1, false, false, codes{}},
		{"the rest of the quota is kept", ocitest.Habits{PullLimit: 10}, ocitest.Effect{}, "", 9, false, false, codes{moved: oci.TooManyRequests}},
		{"the quota is spent", ocitest.Habits{}, spent, "", 1, false, false, codes{moved: oci.TooManyRequests, manifest: oci.TooManyRequests}},
		{"the login is refused, and nobody's quota is spent", ocitest.Habits{}, spent, "", 1, false, true, codes{moved: oci.TooManyRequests, manifest: oci.TooManyRequests}},
		{"the host asked for a minute", ocitest.Habits{}, ocitest.AbuseLimit(), "", 1, false, false, codes{oci.TooManyRequests, oci.TooManyRequests, oci.TooManyRequests, oci.TooManyRequests}},
		{"a pause that clients wait out", ocitest.Habits{}, shortly, "", 1, false, false, codes{}},
		{"the host is down", ocitest.Habits{}, ocitest.Reset(), "", 5, false, false, codes{oci.Unavailable, oci.Unavailable, oci.Unavailable, oci.Unavailable}},
		{"another repository is broken", ocitest.Habits{}, ocitest.Answer(http.StatusBadGateway), "library/broken", 5, false, false, codes{}},
		{"the host is down, and a mirror is well", ocitest.Habits{}, ocitest.Reset(), "", 5, true, false, codes{}},
	} {
		t.Run(row.name, func(t *testing.T) {
			if !row.refused {
				row.habits.Auth = ocitest.NoAuth
			}
			simulate(t, ocitest.Config{Habits: row.habits}, func(w *world) {
				t := w.t
				var mirrors []*ocitest.Hub
				if row.mirrored {
					mirrors = append(mirrors, w.another(ocitest.Habits{Auth: ocitest.NoAuth}))
				}
				c := w.connect(mirroredAt(mirrors...), func(cfg *Config) {
					if row.refused {
						cfg.Credentials = Password("me", "wrong")
					}
				})
				if row.refused {
					mustResolve(t, c)
				}
				repo := alpine
				if row.fault.Do != "" {
					w.hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.Registry, Repo: row.at}, Effect: row.fault})
				}
				if row.at != "" {
					repo.Path = row.at
				}
				for range row.pulls {
					_, _, _ = c.Manifest(t.Context(), repo, ocitest.RandomImage(1, 100).Digest, oci.Ask{Since: time.Now()})
				}
				before := c.Breakers()
				w.hub.Reset()
				o, err := c.Outlook(t.Context(), alpine, "latest")
				if err != nil {
					t.Fatal(err)
				}
				for what, q := range map[string]struct {
					got  error
					want oci.Code
				}{
					"check": {o.Check, row.want.check}, "moved": {o.Moved, row.want.moved}, "manifest": {o.Manifest, row.want.manifest}, "blob": {o.Blob, row.want.blob},
				} {
					if (q.got == nil) != (q.want == sent) || q.got != nil && oci.CodeOf(q.got) != q.want {
						t.Errorf("%s: %v, want %v", what, q.got, q.want)
					}
				}
				if requests := w.hub.Lines(); len(requests) > 0 {
					t.Errorf("it was asked %v", requests)
				}
				for i, b := range c.Breakers() {
					if b.Refused != before[i].Refused {
						t.Errorf("%s has refused %d more", b.Host, b.Refused-before[i].Refused)
					}
				}
				if _, err := c.Outlook(t.Context(), alpine, "no tag"); oci.CodeOf(err) != oci.ManifestUnknown {
					t.Errorf("of what is no tag: %v", err)
				}
			})
		})
	}
}

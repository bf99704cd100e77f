package ratelimit

import (
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"entrepot/oci"
)

// restarted is a Limiter that takes over what l knows, after a while.
func restarted(t *testing.T, l *Limiter, after time.Duration) *Limiter {
	t.Helper()
	b, err := json.Marshal(l.State())
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(after)
	var s State
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	next := New(l.limits)
	next.Restore(s)
	return next
}

// What upstream said holds for the next process as it would have for this one, and no
// longer.
func TestWhatUpstreamSaidOutlivesARestart(t *testing.T) {
	blob := Call{Host: "registry", Class: Blob}
	mine := Call{Host: "registry", Class: Pull, Account: "me"}
	for name, tell := range map[string]func(*testing.T, *Limiter){
		"nothing": func(*testing.T, *Limiter) {},
		"a quota": func(t *testing.T, l *Limiter) {
			t.Helper()
			answered(t, l, check, 200, told(42), "")
		},
		"a reserve": func(t *testing.T, l *Limiter) {
			t.Helper()
			answered(t, l, check, 200, told(5), "")
		},
		"a quota without a window": func(t *testing.T, l *Limiter) {
			t.Helper()
			answered(t, l, pull, 200, map[string][]string{"Ratelimit-Limit": {"100"}, "Ratelimit-Remaining": {"5"}}, "")
		},
		"of two accounts": func(t *testing.T, l *Limiter) {
			t.Helper()
			answered(t, l, pull, 200, told(42), "")
			answered(t, l, mine, 429, with(told(0), "Ratelimit-Reset", "7200"), quotaRefusal)
		},
		"spent, until then": func(t *testing.T, l *Limiter) {
			t.Helper()
			answered(t, l, pull, 429, with(told(0), "Retry-After", "7200"), quotaRefusal)
		},
		"spent": func(t *testing.T, l *Limiter) {
			t.Helper()
			for range 5 {
				answered(t, l, pull, 429, told(0), quotaRefusal)
				time.Sleep(l.Paused(pull))
			}
			answered(t, l, pull, 429, told(0), quotaRefusal)
		},
		"spent, of a limit that nobody told": func(t *testing.T, l *Limiter) {
			t.Helper()
			answered(t, l, pull, 429, nil, quotaRefusal)
		},
		"abuse": func(t *testing.T, l *Limiter) {
			t.Helper()
			answered(t, l, blob, 429, map[string][]string{"Retry-After": {"60"}}, "Too Many Requests (HAP429)")
		},
		"some requests": func(t *testing.T, l *Limiter) {
			t.Helper()
			answered(t, l, blob, 429, map[string][]string{"Retry-After": {"3600"}}, quotaRefusal)
			answered(t, l, Call{Host: "tokens", Class: Token}, 429, nil, "")
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, after := range []time.Duration{0, 30 * time.Second, 2 * time.Hour, 6 * time.Hour, 48 * time.Hour} {
				synctest.Test(t, func(t *testing.T) {
					before := New(impatient)
					tell(t, before)
					l := restarted(t, before, after)
					var want []Quota
					for _, q := range before.Quotas() {
						if q.Left >= 0 && time.Since(q.Seen) < quotaLife {
							want = append(want, q)
						}
					}
					if diff := cmp.Diff(want, l.Quotas()); diff != "" {
						t.Errorf("after %v quotas (-before +after):\n%s", after, diff)
					}
					if diff := cmp.Diff(before.Pauses(), l.Pauses()); diff != "" {
						t.Errorf("after %v pauses (-before +after):\n%s", after, diff)
					}
					for _, call := range []Call{pull, background, check, blob, mine, {Host: "tokens", Class: Token}} {
						if after >= quotaLife {
							must(t, l, call)()
						} else if want, got := before.Paused(call), l.Paused(call); got != want {
							t.Errorf("after %v %+v waits %v, and would have waited %v", after, call, got, want)
						}
					}
				})
			}
		})
	}
}

// The pauses of who finds out whether there is more go on from where they were.
func TestFindingOutGoesOnAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(impatient)
		for want := time.Second; want < 4*time.Minute; want *= 2 {
			if got := answered(t, l, pull, 429, told(0), quotaRefusal); !about(got, want) {
				t.Errorf("a pause of %v, want %v", got, want)
			}
			l = restarted(t, l, 0)
			wantSpent(t, l, pull)
			l = restarted(t, l, l.Paused(pull))
			defer must(t, l, pull)() // one finds out
			wantSpentNow(t, l, pull)
		}
		answered(t, l, of("free", check), 200, nil, "")
		wantSpentNow(t, l, of("free", pull)) // no HEAD has told of the quota
		answered(t, l, check, 200, told(0), "")
		l = restarted(t, l, 0)
		answered(t, l, of("free", check), 200, nil, "")
		wantFree(t, l, "free")
	})
}

func wantSpentNow(t *testing.T, l *Limiter, call Call) {
	t.Helper()
	if _, err := l.Acquire(t.Context(), call); oci.CodeOf(err) != oci.TooManyRequests {
		t.Errorf("%+v: got %v, want a refusal", call, err)
	}
}

// A clock that was set back makes nothing last longer.
func TestWhatWasSaidInTheFutureIsNotBelieved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(impatient)
		later := time.Now().Add(48 * time.Hour)
		l.Restore(State{
			Quotas: []KeptQuota{
				{Account: "seen later", Left: 0, Seen: later, Resets: later.Add(time.Hour)},
				{Account: "paused for long", Left: 0, Seen: time.Now(), Until: later},
			},
			Pauses: []KeptPause{{Host: "registry", Until: later}},
		})
		if q, p := l.Quotas(), l.Pauses(); len(q) > 0 || len(p) > 0 {
			t.Errorf("quotas %+v, pauses %v", q, p)
		}
	})
}

func TestStatesThatCannotBe(t *testing.T) {
	now := time.Now()
	for name, s := range map[string]State{
		"too many quotas":      {Quotas: make([]KeptQuota, maxAccounts+1)},
		"too many pauses":      {Pauses: make([]KeptPause, maxPauses+1)},
		"a limit":              {Quotas: []KeptQuota{{Limit: -2}}},
		"less than none left":  {Quotas: []KeptQuota{{Left: -2}}},
		"a window":             {Quotas: []KeptQuota{{Window: maxCount + 1}}},
		"before its window":    {Quotas: []KeptQuota{{Seen: now, Began: now.Add(1)}}},
		"a back-off":           {Quotas: []KeptQuota{{Backoff: 301}}},
		"a name":               {Quotas: []KeptQuota{{Account: strings.Repeat("x", maxKeptName+1)}}},
		"of no host":           {Pauses: []KeptPause{{Until: now}}},
		"of an unknown class":  {Pauses: []KeptPause{{Host: "registry", Class: "push"}}},
		"a host's back-off":    {Pauses: []KeptPause{{Host: "registry", Backoff: -1}}},
		"a host's long name":   {Pauses: []KeptPause{{Host: strings.Repeat("x", maxKeptName+1)}}},
		"a back-off of a host": {Pauses: []KeptPause{{Host: "registry", Class: "pull", Backoff: 61}}},
	} {
		if s.Check() == nil {
			t.Errorf("%s: %+v is believed", name, s)
		}
	}
}

package ratelimit

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
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
	if err := s.Sift(); err != nil {
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
		"spent, until then, after long": func(t *testing.T, l *Limiter) {
			t.Helper()
			answered(t, l, pull, 200, told(42), "")
			time.Sleep(8 * 24 * time.Hour)
			answered(t, l, pull, 429, map[string][]string{"Retry-After": {"7200"}}, quotaRefusal)
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

// Of a State only what cannot be is left out.
func TestStatesThatCannotBe(t *testing.T) {
	now := time.Now()
	week := now.Add(7 * 24 * time.Hour)
	good := State{
		Quotas: []KeptQuota{
			{Account: "all that can be", Limit: -1, Left: -1, Window: maxCount, Backoff: 300, Seen: now, Began: now, Resets: now.Add(maxCount * time.Second)},
			{Account: "told", Exact: true, Seen: now, Resets: week},
		},
		Pauses: []KeptPause{{Host: "other", Class: "check", Until: now, Backoff: 60}},
	}
	quota := func(k KeptQuota) State { return State{Quotas: []KeptQuota{k}} }
	pause := func(k KeptPause) State { return State{Pauses: []KeptPause{k}} }
	for name, bad := range map[string]State{
		"a limit":              quota(KeptQuota{Limit: -2}),
		"less than none left":  quota(KeptQuota{Left: -2}),
		"a window":             quota(KeptQuota{Window: maxCount + 1}),
		"before its window":    quota(KeptQuota{Seen: now, Began: now.Add(1)}),
		"a back-off":           quota(KeptQuota{Backoff: 301}),
		"a name":               quota(KeptQuota{Account: strings.Repeat("x", maxKeptName+1)}),
		"what nobody can tell": quota(KeptQuota{Exact: true, Window: maxCount, Seen: now, Resets: week.Add(1)}),
		"after its window":     quota(KeptQuota{Window: 8 * 24 * 3600, Seen: now, Resets: week.Add(24*time.Hour + 1)}),
		"without a window":     quota(KeptQuota{Seen: now, Resets: week.Add(1)}),
		"of no host":           pause(KeptPause{Until: now}),
		"of an unknown class":  pause(KeptPause{Host: "registry", Class: "push"}),
		"a host's back-off":    pause(KeptPause{Host: "registry", Backoff: -1}),
		"a host's long name":   pause(KeptPause{Host: strings.Repeat("x", maxKeptName+1)}),
		"a back-off of a host": pause(KeptPause{Host: "registry", Class: "pull", Backoff: 61}),
	} {
		s := State{Quotas: slices.Concat(bad.Quotas, good.Quotas), Pauses: slices.Concat(bad.Pauses, good.Pauses)}
		if s.Sift() == nil {
			t.Errorf("%s: nothing is said of %+v", name, bad)
		}
		if diff := cmp.Diff(good, s); diff != "" {
			t.Errorf("%s: what is left (-want +got):\n%s", name, diff)
		}
	}
	s := State{Quotas: make([]KeptQuota, maxAccounts+1), Pauses: slices.Repeat(good.Pauses, maxPauses+1)}
	if s.Sift() == nil || len(s.Quotas) != maxAccounts || len(s.Pauses) != maxPauses {
		t.Errorf("of too many %d and %d are left", len(s.Quotas), len(s.Pauses))
	}
}

// What is kept is possible, though its clock was set back, or answers overtook each other.
func TestWhatIsKeptIsPossible(t *testing.T) {
	spent := with(told(0), "Ratelimit-Reset", "604800")
	for name, row := range map[string]struct {
		before, after http.Header
		status        int
		body          string
	}{
		"in one window":     {before: told(42), after: told(41), status: 200},
		"in the next":       {before: told(42), after: told(99), status: 200},
		"spent":             {before: told(42), status: 429, body: quotaRefusal},
		"spent, until then": {before: spent, after: told(0), status: 200},
	} {
		t.Run(name, func(t *testing.T) {
			for _, back := range []time.Duration{time.Millisecond, 30 * 24 * time.Hour} {
				l := New(impatient)
				answered(t, l, check, 200, row.before, "")
				then := time.Now().Add(-back)
				l.now = func() time.Time { return then }
				answered(t, l, pull, row.status, row.after, row.body)
				s := l.State()
				if err := s.Sift(); err != nil || len(s.Quotas) != 1 || !s.Quotas[0].Seen.Equal(then) {
					t.Fatalf("set back by %v: %v, and %+v is left", back, err, s)
				}
				if k := s.Quotas[0]; row.status == 200 && !k.Exact && !k.Resets.Equal(then.Add(6*time.Hour)) {
					t.Errorf("set back by %v: a window of 6h seen at %v ends at %v", back, then, k.Resets)
				}
			}
		})
	}
}

// A clock that is read before the lock is had may be older than the answer before.
func TestAnswersAreInTheOrderOfTheirTimes(t *testing.T) {
	l := New(impatient)
	p, err := l.Acquire(t.Context(), check)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Release()
	l.now = func() time.Time {
		if l.mu.TryLock() {
			l.mu.Unlock()
			t.Error("it was")
		}
		return time.Now()
	}
	p.Answered(200, told(42), nil)
	l.State()
}

func TestOfTooManyAccountsAsManyAreKeptAsThereIsRoomFor(t *testing.T) {
	l := New(impatient)
	for i := range maxAccounts + 1 { // in use, or the Limiter would forget some
		p, err := l.enter(Call{Host: "registry", Class: Pull, Account: strconv.Itoa(i)})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Release()
		p.Answered(200, told(42), nil)
	}
	s := l.State()
	if err := s.Sift(); err != nil || len(s.Quotas) != maxAccounts {
		t.Errorf("%d are kept: %v", len(s.Quotas), err)
	}
}

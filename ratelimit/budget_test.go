package ratelimit

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/oci"
)

// told are the headers of Docker Hub for a limit of 100 in 6 h.
func told(left int) http.Header {
	return http.Header{"Ratelimit-Limit": {"100;w=21600"}, "Ratelimit-Remaining": {strconv.Itoa(left) + ";w=21600"}, "Docker-Ratelimit-Source": {"192.0.2.1"}}
}

func with(h http.Header, name, value string) http.Header {
	h = h.Clone()
	h.Set(name, value)
	return h
}

var (
	pull       = Call{Host: "registry", Class: Pull}
	check      = Call{Host: "registry", Class: Check}
	background = Call{Host: "registry", Class: Pull, Background: true}
)

// impatient refuses at once what it would have to wait for.
var impatient = Limits{Rate: -1, Requests: 100, Transfers: 100, Wait: time.Nanosecond}

func only(t *testing.T, l *Limiter) Quota {
	t.Helper()
	all := l.Quotas()
	if len(all) != 1 {
		t.Fatalf("quotas %+v, want one", all)
	}
	return all[0]
}

func TestQuotaIsLearned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(unbound)
		want := func(left int) {
			t.Helper()
			q := only(t, l)
			if q.Left != left || q.Limit != 100 || q.Window != 6*time.Hour || q.Source != "192.0.2.1" || !q.Seen.Equal(time.Now()) || q.Reserve != 10 {
				t.Errorf("%+v, want %d left", q, left)
			}
		}
		none := func() {
			t.Helper()
			if q := l.Quotas(); len(q) > 0 {
				t.Errorf("quotas %+v, want none", q)
			}
		}
		none()
		answered(t, l, check, 200, told(20), "")
		want(20)
		time.Sleep(time.Second)
		answered(t, l, pull, 429, told(0), quotaRefusal)
		want(0)
		answered(t, l, check, 200, nil, "") // says nothing, means nothing
		answered(t, l, pull, 404, nil, "")
		answered(t, l, Call{Host: "cdn", Class: Redirect}, 200, told(7), "")
		want(0)
		answered(t, l, pull, 200, nil, "") // no headers: no limit
		none()
		answered(t, l, pull, 429, nil, quotaRefusal) // the JSON form alone
		if q := only(t, l); q.Left != 0 || q.Limit != -1 || q.Paused.IsZero() {
			t.Errorf("%+v after a refusal without headers", q)
		}
	})
}

func TestEachAccountHasItsQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(impatient)
		mine := Call{Host: "registry", Class: Pull, Account: "me"}
		answered(t, l, mine, 429, with(told(0), "Retry-After", "3600"), quotaRefusal)
		_, err := l.Acquire(t.Context(), mine)
		wantRefusal(t, err, oci.TooManyRequests, time.Hour)
		if !strings.Contains(err.Error(), "the 100 pulls of me in 6h0m0s are spent") {
			t.Errorf("%v", err)
		}
		must(t, l, pull)()
		answered(t, l, pull, 200, told(50), "")
		quotas := l.Quotas()
		if len(quotas) != 2 || quotas[0].Account != "" || quotas[0].Left != 50 || quotas[1].Account != "me" || quotas[1].Left != 0 {
			t.Errorf("%+v", quotas)
		}
		for i := range 3 * maxAccounts {
			time.Sleep(time.Second)
			answered(t, l, Call{Host: "registry", Class: Check, Account: fmt.Sprint(i)}, 200, told(i%100), "")
		}
		if n := len(l.budgets); n > maxAccounts {
			t.Errorf("%d accounts are remembered, want at most %d", n, maxAccounts)
		}
	})
}

// Who is refused is told when there is more, and that is not when we look for it.
func TestASpentQuotaSaysWhenThereIsMore(t *testing.T) {
	for name, row := range map[string]struct {
		header http.Header
		want   string
	}{
		"upstream says when": {with(told(0), "Retry-After", "7200"), `the 100 pulls of our address in 6h0m0s are spent: there are more in 2h0m0s`},
		"its window is told": {told(0), `the 100 pulls of our address in 6h0m0s are spent: there are more in 6h0m0s at the latest, and in 1s it is found out whether there are before`},
		"nothing is told":    {nil, `the pulls of our address are spent: when there are more is not known, and found out in 1s`},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := New(impatient)
				answered(t, l, pull, 429, row.header, quotaRefusal)
				_, err := l.Acquire(t.Context(), pull)
				if err == nil || err.Error() != "toomanyrequests: "+row.want {
					t.Errorf("%v, want %s", err, row.want)
				}
			})
		})
	}
}

// Where the time of the reset is known, nothing counted is sent before it, and
// what is not counted goes on.
func TestASpentQuotaWithAKnownEnd(t *testing.T) {
	for name, learn := range map[string]func(*testing.T, *Limiter){
		"429 with a time": func(t *testing.T, l *Limiter) {
			t.Helper()
			answered(t, l, pull, 429, with(told(0), "Retry-After", "7200"), quotaRefusal)
		},
		"429 with a time and no headers": func(t *testing.T, l *Limiter) {
			t.Helper()
			answered(t, l, pull, 429, http.Header{"Retry-After": {"7200"}}, quotaRefusal)
		},
		"429 with a reset": func(t *testing.T, l *Limiter) {
			t.Helper()
			answered(t, l, pull, 429, with(told(0), "Ratelimit-Reset", "7200"), quotaRefusal)
		},
		"a HEAD with a reset": func(t *testing.T, l *Limiter) {
			t.Helper()
			answered(t, l, check, 200, with(told(0), "Ratelimit-Reset", "7200"), "")
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := New(impatient)
				learn(t, l)
				for elapsed := time.Duration(0); elapsed < 2*time.Hour; elapsed += 10 * time.Minute {
					for _, call := range []Call{pull, background} {
						_, err := l.Acquire(t.Context(), call)
						wantRefusal(t, err, oci.TooManyRequests, 2*time.Hour-elapsed)
						if got := l.Paused(call); got != 2*time.Hour-elapsed {
							t.Errorf("Paused says %v", got)
						}
					}
					for _, class := range []Class{Check, Blob, List, Token, Redirect} {
						must(t, l, Call{Host: "registry", Class: class})()
					}
					time.Sleep(10 * time.Minute)
				}
				must(t, l, pull)()
			})
		})
	}
}

// A refusal that names more than a day is not believed for longer than that.
func TestARefusalIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(impatient)
		answered(t, l, pull, 429, http.Header{"Retry-After": {"864000"}}, quotaRefusal)
		_, err := l.Acquire(t.Context(), pull)
		wantRefusal(t, err, oci.TooManyRequests, oci.MaxRetryAfter)
		daily := http.Header{"Ratelimit-Limit": {"5;w=86400"}, "Ratelimit-Remaining": {"0;w=86400"}, "Retry-After": {"80000"}}
		l = New(impatient)
		answered(t, l, pull, 429, daily, quotaRefusal)
		_, err = l.Acquire(t.Context(), pull)
		wantRefusal(t, err, oci.TooManyRequests, 80000*time.Second)
	})
}

// A HEAD that shows more ends whatever was known.
func TestAHeadFindsARefilledQuota(t *testing.T) {
	for _, after := range []string{"", "7200"} {
		synctest.Test(t, func(t *testing.T) {
			l := New(impatient)
			answered(t, l, pull, 429, with(told(0), "Retry-After", after), quotaRefusal)
			if _, err := l.Acquire(t.Context(), pull); oci.CodeOf(err) != oci.TooManyRequests {
				t.Errorf("got %v, want that it is spent", err)
			}
			answered(t, l, check, 200, told(100), "")
			must(t, l, pull)()
		})
	}
}

// Without a time one request at a time finds out, less and less often.
func TestASpentQuotaWithoutATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Limits{Rate: -1, Requests: 100, Wait: 10 * time.Second})
		answered(t, l, pull, 429, told(0), quotaRefusal)
		sent, running := 0, 0
		var mu sync.Mutex
		end := time.Now().Add(time.Hour)
		var wg sync.WaitGroup
		for range 20 { // clients that come back when they are told to
			wg.Go(func() {
				for time.Now().Before(end) {
					p, err := l.Acquire(t.Context(), pull)
					if err != nil {
						if oci.RetryAfter(err) <= 0 {
							t.Errorf("%v names no time", err)
						}
						time.Sleep(oci.RetryAfter(err))
						continue
					}
					mu.Lock()
					sent++
					running++
					if running > 1 {
						t.Error("two at once")
					}
					mu.Unlock()
					time.Sleep(100 * time.Millisecond)
					mu.Lock()
					running--
					mu.Unlock()
					p.Answered(429, told(0), []byte(quotaRefusal))
					p.Release()
				}
			})
		}
		wg.Wait()
		if sent < 12 || sent > 30 {
			t.Errorf("%d requests in an hour, want about one in five minutes", sent)
		}
	})
}

// The last part of a quota is for those who wait themselves.
func TestTheReserve(t *testing.T) {
	tests := []struct {
		reserve float64
		left    int
		refused bool
	}{
		{0, 11, false},
		{0, 10, true},
		{0, 1, true},
		{0, 0, true},
		{0.25, 26, false},
		{0.25, 25, true},
		{-1, 1, false},
		{-1, 0, true},
		{0.001, 2, false},
		{0.001, 1, true},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.reserve, " ", tt.left), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				limits := unbound
				limits.Reserve = tt.reserve
				l := New(limits)
				must(t, l, background)() // nothing is known yet
				answered(t, l, check, 200, told(tt.left), "")
				must(t, l, pull)()
				if !tt.refused {
					must(t, l, background)()
					return
				}
				held := pull
				held.Held = true
				for _, call := range []Call{background, held} {
					_, err := l.Acquire(t.Context(), call)
					wantRefusal(t, err, oci.TooManyRequests, keptRetry)
				}
				must(t, l, Call{Host: "registry", Class: Blob, Background: true})()
				must(t, l, Call{Host: "registry", Class: Check, Background: true})()
				time.Sleep(6 * time.Hour) // the window is over, whatever it held
				must(t, l, background)()
			})
		})
	}
}

// Requests that are on their way count, though no answer tells of them yet.
func TestWhatIsOnItsWayIsSpent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(unbound)
		answered(t, l, check, 200, told(13), "")
		var passes []*Pass
		for range 3 {
			p, err := l.Acquire(t.Context(), background)
			if err != nil {
				t.Fatal(err)
			}
			passes = append(passes, p)
		}
		if _, err := l.Acquire(t.Context(), background); oci.CodeOf(err) != oci.TooManyRequests {
			t.Errorf("got %v, want that the rest is kept", err)
		}
		passes[0].Release() // never answered
		must(t, l, background)()
		for _, p := range passes {
			p.Release()
			p.Release()
		}
		if b := l.budgets[""]; b.running != 0 || b.users != 0 {
			t.Errorf("%d on their way, %d users after all is over", b.running, b.users)
		}

		// With one left, the second waits for what the first is told.
		answered(t, l, check, 200, told(1), "")
		first, err := l.Acquire(t.Context(), pull)
		if err != nil {
			t.Fatal(err)
		}
		second := make(chan error)
		go func() {
			p, err := l.Acquire(t.Context(), pull)
			if err == nil {
				p.Release()
			}
			second <- err
		}()
		synctest.Wait()
		first.Answered(200, with(told(0), "Ratelimit-Reset", "60"), nil)
		wantRefusal(t, <-second, oci.TooManyRequests, time.Minute)
		first.Release()
		time.Sleep(time.Minute)

		// One whose answer never comes keeps nobody for ever.
		answered(t, l, check, 200, told(1), "")
		first, err = l.Acquire(t.Context(), pull)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		_, err = l.Acquire(t.Context(), pull)
		wantRefusal(t, err, oci.TooManyRequests, busyRetry)
		if got := time.Since(start); got != unbound.Wait {
			t.Errorf("refused after %v, want %v", got, unbound.Wait)
		}
		first.Release()
	})
}

// Answers overtake each other: what is left never grows by that.
func TestAnswersOvertakeEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(unbound)
		answered(t, l, check, 200, told(50), "")
		var passes []*Pass
		for range 5 {
			p, err := l.Acquire(t.Context(), pull)
			if err != nil {
				t.Fatal(err)
			}
			passes = append(passes, p)
		}
		began := only(t, l).Resets
		for i, left := range []int{47, 49, 45, 48, 46} {
			time.Sleep(time.Minute)
			passes[i].Answered(200, told(left), nil)
			passes[i].Release()
		}
		if q := only(t, l); q.Left != 45 || !q.Resets.Equal(began) || q.Exact {
			t.Errorf("%+v, want 45 left until %v", q, began)
		}
		// A window that begins anew is known by more than could be left.
		answered(t, l, check, 200, told(100), "")
		if q := only(t, l); q.Left != 100 || !q.Resets.Equal(time.Now().Add(6*time.Hour)) {
			t.Errorf("%+v, want a new window", q)
		}
		time.Sleep(6 * time.Hour)
		if q := only(t, l); q.Left != -1 || !q.Resets.IsZero() {
			t.Errorf("%+v after the window", q)
		}
	})
}

// Of too many accounts the one unused for longest is forgotten, and never one that is
// in use: what is on its way would be given out twice.
func TestABudgetInUseIsNotForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(unbound)
		as := func(account string) *Pass {
			t.Helper()
			time.Sleep(time.Second)
			p, err := l.Acquire(t.Context(), Call{Host: "registry", Class: Pull, Account: account})
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		busy := as("busy")
		as("idle").Release()
		for i := range maxAccounts {
			as(fmt.Sprint(i)).Release()
		}
		l.mu.Lock()
		if l.budgets["busy"] == nil || l.budgets["idle"] != nil || len(l.budgets) != maxAccounts {
			t.Errorf("%d budgets; the busy one is there %t, the idle one %t", len(l.budgets), l.budgets["busy"] != nil, l.budgets["idle"] != nil)
		}
		l.mu.Unlock()
		busy.Release()
	})
}

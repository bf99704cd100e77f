package ratelimit

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/oci"
)

// of is a call for a repository.
func of(repository string, call Call) Call {
	call.Repository = repository
	return call
}

// spent is a Limiter of a quota that is, which HEADs tell of.
func spent(t *testing.T) *Limiter {
	t.Helper()
	l := New(impatient)
	answered(t, l, of("counted", check), 200, told(0), "")
	answered(t, l, of("counted", pull), 429, with(told(0), "Retry-After", "7200"), quotaRefusal)
	return l
}

func wantSpent(t *testing.T, l *Limiter, call Call) {
	t.Helper()
	p, err := l.Acquire(t.Context(), call)
	if oci.CodeOf(err) != oci.TooManyRequests || l.Paused(call) == 0 || l.Refusal(call) == nil {
		t.Errorf("%+v: got %v, want that the quota is spent", call, err)
	}
	if p != nil {
		p.Release()
	}
}

func wantFree(t *testing.T, l *Limiter, repository string) {
	t.Helper()
	for _, call := range []Call{pull, background, {Host: "registry", Class: Pull, Held: true}} {
		call = of(repository, call)
		if err := l.Refusal(call); err != nil || l.Paused(call) != 0 {
			t.Errorf("%+v would be refused: %v", call, err)
		}
		must(t, l, call)()
	}
}

// Docker Hub counts no pulls of some images: beside those no answer tells of a quota,
// and they are had though it is spent.
func TestWhatIsNotCountedIsPulledPastTheQuota(t *testing.T) {
	for name, learn := range map[string]func(*testing.T, *Limiter){
		"by HEAD": func(t *testing.T, l *Limiter) {
			t.Helper()
			answered(t, l, of("free", check), 200, nil, "")
		},
		"by GET": func(t *testing.T, l *Limiter) { // that was on its way
			t.Helper()
			answered(t, l, of("free", pull), 200, nil, "")
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := spent(t)
				before := only(t, l)
				wantSpent(t, l, of("free", pull))
				learn(t, l)
				wantFree(t, l, "free")
				wantSpent(t, l, of("counted", pull))
				if got := only(t, l); got != before {
					t.Errorf("the quota is %+v, was %+v", got, before)
				}
				time.Sleep(exemptFor - time.Second)
				wantFree(t, l, "free")
				time.Sleep(time.Second)
				wantSpent(t, l, of("free", pull))
			})
		})
	}
}

// Nobody waits for the last pull who needs none, and nobody for him.
func TestWhatIsNotCountedTakesNothingFromTheRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(unbound)
		answered(t, l, of("counted", check), 200, told(1), "")
		answered(t, l, of("free", check), 200, nil, "")
		free, err := l.Acquire(t.Context(), of("free", pull))
		if err != nil {
			t.Fatal(err)
		}
		defer free.Release()
		defer must(t, l, of("counted", pull))()
		must(t, l, of("free", pull))()
	})
}

// Who waits for a quota goes on once he is known not to need it.
func TestWhoWaitsLearnsThatHeNeedNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(unbound)
		answered(t, l, of("counted", check), 200, told(0), "")
		answered(t, l, of("counted", pull), 429, told(0), quotaRefusal)
		began := time.Now()
		done := make(chan error)
		go func() {
			p, err := l.Acquire(t.Context(), of("free", pull))
			if err == nil {
				p.Release()
			}
			done <- err
		}()
		synctest.Wait()
		answered(t, l, of("free", check), 200, nil, "")
		if err := <-done; err != nil || time.Since(began) != 0 {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

func TestWhatEndsAnExemption(t *testing.T) {
	for name, tell := range map[string]func(*testing.T, *Limiter){
		"a HEAD with headers": func(t *testing.T, l *Limiter) {
			t.Helper()
			answered(t, l, of("free", check), 200, told(0), "")
		},
		"a GET with headers": func(t *testing.T, l *Limiter) {
			t.Helper()
			answered(t, l, of("free", pull), 200, told(0), "")
		},
		"a refusal": func(t *testing.T, l *Limiter) {
			t.Helper()
			answered(t, l, of("free", pull), 429, nil, quotaRefusal)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := spent(t)
				answered(t, l, of("free", check), 200, nil, "")
				wantFree(t, l, "free")
				tell(t, l)
				wantSpent(t, l, of("free", pull))
			})
		})
	}
}

func TestWhatIsNoExemption(t *testing.T) {
	mine := func(call Call) Call {
		call.Account = "me"
		return call
	}
	for name, tell := range map[string]func(*testing.T, *Limiter){
		"a HEAD where no HEAD tells of a quota": func(t *testing.T, l *Limiter) {
			t.Helper()
			byGet := func(call Call) Call {
				call.Account = "by GET"
				return call
			}
			answered(t, l, byGet(of("counted", pull)), 429, with(told(0), "Retry-After", "7200"), quotaRefusal)
			answered(t, l, byGet(of("free", check)), 200, nil, "")
			wantSpent(t, l, byGet(of("free", pull)))
		},
		"a HEAD of what there is not": func(t *testing.T, l *Limiter) {
			t.Helper()
			answered(t, l, of("free", check), 404, nil, "")
		},
		"a blob": func(t *testing.T, l *Limiter) {
			t.Helper()
			answered(t, l, of("free", Call{Host: "registry", Class: Blob}), 200, nil, "")
		},
		"what another account is told": func(t *testing.T, l *Limiter) {
			t.Helper()
			answered(t, l, mine(of("counted", check)), 200, told(0), "")
			answered(t, l, mine(of("free", check)), 200, nil, "")
			wantFree(t, l, "other") // which that account's word changes nothing about
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := spent(t)
				answered(t, l, of("other", check), 200, nil, "")
				tell(t, l)
				wantSpent(t, l, of("free", pull))
			})
		})
	}
}

// One image that is not counted is no sign that nothing is: what is known of the quota
// stays, and pauses go on from where they were.
func TestAnAnswerWithoutHeadersIsNoEndOfTheQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(impatient)
		answered(t, l, of("counted", check), 200, told(5), "")
		for want := time.Second; want < 5*time.Minute; want *= 2 {
			answered(t, l, of("free", pull), 200, nil, "")
			if got := answered(t, l, of("counted", pull), 429, told(0), quotaRefusal); !about(got, want) && want < 4*time.Minute {
				t.Errorf("a pause of %v, want %v", got, want)
			}
			answered(t, l, of("free", pull), 200, nil, "")
			wantSpent(t, l, of("counted", pull))
			if q := only(t, l); q.Left != 0 || q.Limit != 100 {
				t.Errorf("%+v", q)
			}
			time.Sleep(l.Paused(of("counted", pull)))
		}
	})
}

// A quota is gone when what was counted comes without a word of it, or so many
// repositories in a row do that all would.
func TestAQuotaEnds(t *testing.T) {
	free := func(t *testing.T, l *Limiter, from, n int) {
		t.Helper()
		for i := range n {
			answered(t, l, of(fmt.Sprint("free", from+i), check), 200, nil, "")
			answered(t, l, of(fmt.Sprint("free", from+i), pull), 200, nil, "")
		}
	}
	for name, row := range map[string]struct {
		tell func(*testing.T, *Limiter)
		ends bool
	}{
		"many repositories": {func(t *testing.T, l *Limiter) { t.Helper(); free(t, l, 0, manyWithout) }, true},
		"few":               {func(t *testing.T, l *Limiter) { t.Helper(); free(t, l, 0, manyWithout-1) }, false},
		"one, many times": {func(t *testing.T, l *Limiter) {
			t.Helper()
			for range 2 * manyWithout {
				free(t, l, 0, 1)
			}
		}, false},
		"many, but not in a row": {func(t *testing.T, l *Limiter) {
			t.Helper()
			for i := range 2 * manyWithout {
				free(t, l, i, 1)
				answered(t, l, of("other", check), 200, told(0), "")
			}
		}, false},
		"one that was counted": {func(t *testing.T, l *Limiter) {
			t.Helper()
			answered(t, l, of("counted", check), 200, nil, "")
			answered(t, l, of("counted", pull), 200, nil, "")
		}, true},
		"a HEAD of one that was counted": {func(t *testing.T, l *Limiter) {
			t.Helper()
			answered(t, l, of("counted", check), 200, nil, "")
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := spent(t)
				row.tell(t, l)
				if got := len(l.Quotas()) == 0; got != row.ends {
					t.Errorf("quotas %+v, want none: %t", l.Quotas(), row.ends)
				}
				if row.ends {
					wantFree(t, l, "any")
				} else {
					wantSpent(t, l, of("any", pull))
				}
			})
		})
	}
}

// What is remembered is bounded, and what was heard of last is remembered.
func TestMetersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := spent(t)
		for i := range 3 * maxMetered {
			time.Sleep(time.Millisecond)
			answered(t, l, of(fmt.Sprint(i), check), 200, nil, "")
		}
		if n := len(l.budgets[""].meter.known); n > maxMetered {
			t.Errorf("%d repositories are remembered, want at most %d", n, maxMetered)
		}
		wantFree(t, l, fmt.Sprint(3*maxMetered-1))
		wantSpent(t, l, of("0", pull))
	})
}

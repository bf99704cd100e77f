package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"entrepot/oci"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var unbound = Limits{Rate: -1, Requests: 100, Transfers: 100, Wait: 10 * time.Second}

// must acquires at once or fails the test.
func must(t *testing.T, l *Limiter, call Call) func() {
	t.Helper()
	start := time.Now()
	p, err := l.Acquire(t.Context(), call)
	if err != nil {
		t.Fatalf("Acquire(%+v): %v", call, err)
	}
	if waited := time.Since(start); waited != 0 {
		t.Fatalf("Acquire(%+v) waited %v", call, waited)
	}
	return p.Release
}

// answered tells of a call that was under way already.
func answered(t *testing.T, l *Limiter, call Call, status int, header http.Header, body string) time.Duration {
	t.Helper()
	p, err := l.enter(call)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Release()
	return p.Answered(status, header, []byte(body))
}

// about reports whether a backoff is what it should be, or up to a quarter more.
func about(got, want time.Duration) bool { return got >= want && got <= want+want/4 }

func wantRefusal(t *testing.T, err error, code oci.Code, after time.Duration) {
	t.Helper()
	if oci.CodeOf(err) != code || oci.RetryAfter(err) != after {
		t.Errorf("got %v (code %v, retry after %v), want code %v, retry after %v", err, oci.CodeOf(err), oci.RetryAfter(err), code, after)
	}
}

func TestRequestsAreSpaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Limits{Rate: 1, Burst: 2, Wait: 3 * time.Second})
		start := time.Now()
		for i, want := range []time.Duration{0, 0, 1, 2, 3} {
			p, err := l.Acquire(t.Context(), Call{Host: "registry"})
			if err != nil {
				t.Fatal(err)
			}
			p.Release()
			if got := time.Since(start); got != want*time.Second {
				t.Errorf("request %d went out after %v, want %v", i, got, want*time.Second)
			}
		}
	})
}

func TestAQueueLongerThanTheBoundIsRefusedWithTheTrueWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Limits{Rate: 1, Burst: 1, Wait: 3 * time.Second})
		call := Call{Host: "registry"}
		must(t, l, call)()
		var wg sync.WaitGroup
		for range 3 { // these queue for 1, 2 and 3 s
			wg.Go(func() {
				p, err := l.Acquire(t.Context(), call)
				if err != nil {
					t.Errorf("a request inside the bound: %v", err)
					return
				}
				p.Release()
			})
		}
		synctest.Wait()
		_, err := l.Acquire(t.Context(), call)
		wantRefusal(t, err, oci.TooManyRequests, 4*time.Second)
		if _, err := l.Acquire(t.Context(), call); oci.RetryAfter(err) != 4*time.Second {
			t.Errorf("a refused request took a turn: the next wait is %v", oci.RetryAfter(err))
		}
		wg.Wait()
	})
}

// What our own limits refuse is told from what upstream does, and clients read no more of it.
func TestOurOwnLimitsAreNotUpstreamsWord(t *testing.T) {
	short := Limits{Rate: 0.1, Burst: 1, Wait: time.Millisecond}
	paused, spent := http.Header{"Retry-After": {"60"}}, told(0)
	for name, tt := range map[string]struct {
		limits  Limits
		refused http.Header // by upstream; nil: it is not
		call    Call
		crowded bool
	}{
		"no turn":               {short, nil, pull, true},
		"no turn in the middle": {short, nil, Call{Host: "registry", Begun: true}, true},
		"no connection":         {Limits{Rate: -1, Requests: 1, Wait: time.Millisecond}, nil, pull, true},
		"a pause":               {impatient, paused, check, false},
		"a quota":               {impatient, spent, pull, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := New(tt.limits)
				must(t, l, pull) // it takes a turn, and has a connection
				if tt.refused != nil {
					answered(t, l, pull, 429, tt.refused, "")
				}
				_, err := l.Acquire(t.Context(), tt.call)
				if oci.CodeOf(err) != oci.TooManyRequests || errors.Is(err, oci.ErrCrowded) != tt.crowded || strings.Contains(err.Error(), oci.ErrCrowded.Error()) {
					t.Errorf("%v; of our own limits: %v, want %v", err, errors.Is(err, oci.ErrCrowded), tt.crowded)
				}
			})
		})
	}
}

func TestALeavingWaiterGivesItsTurnBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Limits{Rate: 1, Burst: 1, Wait: 10 * time.Second})
		call := Call{Host: "registry"}
		must(t, l, call)()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			_, err := l.Acquire(ctx, call)
			done <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want context.Canceled", err)
		}
		start := time.Now()
		p, err := l.Acquire(t.Context(), call)
		if err != nil {
			t.Fatal(err)
		}
		p.Release()
		if got := time.Since(start); got != time.Second {
			t.Errorf("the next request waited %v, want 1s", got)
		}
	})
}

func TestBackgroundGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Limits{Rate: 1, Burst: 4, Wait: 10 * time.Second})
		for range 4 {
			must(t, l, Call{Host: "registry"})()
		}
		start := time.Now()
		var background time.Duration
		var wg sync.WaitGroup
		wg.Go(func() {
			p, err := l.Acquire(t.Context(), Call{Host: "registry", Background: true})
			if err != nil {
				t.Error(err)
				return
			}
			p.Release()
			background = time.Since(start)
		})
		synctest.Wait()
		p, err := l.Acquire(t.Context(), Call{Host: "registry"})
		if err != nil {
			t.Fatal(err)
		}
		p.Release()
		if got := time.Since(start); got != time.Second {
			t.Errorf("who waits was served after %v, want 1s", got)
		}
		wg.Wait()
		if background != 3*time.Second { // half the burst has to be there
			t.Errorf("background was served after %v, want 3s", background)
		}
	})
}

func TestConnectionsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Limits{Rate: -1, Requests: 1, Transfers: 2, Wait: 5 * time.Second})
		transfer := Call{Host: "cdn", Class: Redirect, Transfer: true}
		first := must(t, l, transfer)
		second := must(t, l, transfer)
		must(t, l, Call{Host: "cdn", Class: Redirect})() // another kind of place
		must(t, l, Call{Host: "cdn2", Class: Redirect, Transfer: true})()

		start := time.Now()
		_, err := l.Acquire(t.Context(), transfer)
		wantRefusal(t, err, oci.TooManyRequests, 5*time.Second)
		if got := time.Since(start); got != 5*time.Second {
			t.Errorf("refused after %v, want 5s", got)
		}
		first()
		first() // releasing twice frees one place
		third := must(t, l, transfer)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := l.Acquire(ctx, transfer); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the caller's deadline", err)
		}
		second()
		third()
	})
}

// Who waits for his turn holds no connection, and who waits for a connection no turn.
func TestTurnsAndConnectionsAreWaitedForApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Limits{Rate: 1, Burst: 1, Requests: 1, Transfers: 1, Wait: 10 * time.Second})
		busyAt := time.Now()
		busy := must(t, l, Call{Host: "registry", Class: Blob, Transfer: true})
		var wg sync.WaitGroup
		wait := func(call Call, want time.Duration) {
			call.Host = "registry"
			wg.Go(func() {
				p, err := l.Acquire(t.Context(), call)
				if took := time.Since(busyAt); err != nil || took != want {
					t.Errorf("%+v: %v after %v, want %v", call, err, took, want)
				}
				if err == nil {
					p.Release()
				}
			})
			synctest.Wait()
		}
		wait(Call{Client: "a", Class: Blob, Transfer: true}, 8*time.Second)
		for i := range 5 {
			wait(Call{Client: "a", What: fmt.Sprint(i)}, time.Duration(3+i)*time.Second)
		}
		wait(Call{Client: "b", Begun: true}, time.Second)
		wait(Call{Client: "b"}, 2*time.Second)
		time.Sleep(7500 * time.Millisecond)
		busy()
		wg.Wait()
	})
}

func TestTheRateIsTheRegistrysAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Limits{Rate: 1, Burst: 1, Wait: time.Second})
		for range 20 {
			must(t, l, Call{Host: "cdn", Class: Redirect})()
		}
		must(t, l, Call{Host: "registry", Class: Pull})()
		must(t, l, Call{Host: "token", Class: Token})()
	})
}

const quotaRefusal = `{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your unauthenticated pull rate limit."}]}`

func TestWhatARefusalPauses(t *testing.T) {
	retry := func(after string) http.Header { return http.Header{"Retry-After": {after}} }
	spent := http.Header{"Ratelimit-Limit": {"100;w=21600"}, "Ratelimit-Remaining": {"0;w=21600"}, "Retry-After": {"60"}}
	tests := []struct {
		name   string
		class  Class
		status int
		header http.Header
		body   string
		code   oci.Code
		paused map[Class]time.Duration // what classes then have to wait
		all    time.Duration           // what all others do
		asked  time.Duration           // what is told beside that, and pauses nothing here
	}{
		{name: "quota, JSON", class: Pull, status: 429, body: quotaRefusal, paused: map[Class]time.Duration{Pull: time.Second}},
		{name: "quota, JSON with a time", class: Pull, status: 429, header: retry("60"), body: quotaRefusal, paused: map[Class]time.Duration{Pull: time.Minute}},
		{name: "quota, HEAD has no body", class: Check, status: 429, header: spent, paused: map[Class]time.Duration{Check: time.Minute}},
		{name: "abuse, plain text", class: Pull, status: 429, header: retry("60"), body: "Too Many Requests (HAP429)\n", all: time.Minute},
		{name: "abuse seen by a HEAD", class: Check, status: 429, header: retry("60"), all: time.Minute},
		{name: "plain text without a time", class: Blob, status: 429, body: "slow down", paused: map[Class]time.Duration{Blob: time.Second}},
		{name: "no sane time", class: Token, status: 429, header: retry("416.217µs"), body: quotaRefusal, paused: map[Class]time.Duration{Token: time.Second}},
		{name: "a time of nothing", class: Pull, status: 429, header: retry("0"), body: quotaRefusal, paused: map[Class]time.Duration{Pull: time.Second}},
		{name: "six hours", class: Pull, status: 429, header: retry("21600"), all: 6 * time.Hour},
		{name: "a week is bounded", class: Pull, status: 429, header: retry("604800"), all: oci.MaxRetryAfter},
		{name: "quota, seen by a probe", class: Probe, status: 429, header: spent},
		{name: "abuse seen by a probe", class: Probe, status: 429, header: retry("60"), all: time.Minute},
		{name: "six hours, to a probe", class: Probe, status: 429, header: retry("21600"), all: maxBackoff},
		{name: "a probe without a time", class: Probe, status: 429},
		{name: "busy, says when", class: List, status: 503, header: retry("30"), asked: 30 * time.Second},
		{name: "busy", class: List, status: 503},
		{name: "an ordinary failure", class: Pull, status: 500, header: retry("30")},
		{name: "not there", class: Pull, status: 404, header: retry("30")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := New(Limits{Rate: -1, Wait: time.Nanosecond})
				for class := range numClasses {
					must(t, l, Call{Host: "registry", Class: class})()
				}
				got := answered(t, l, Call{Host: "registry", Class: tt.class}, tt.status, tt.header, tt.body)
				if want := max(tt.all, tt.paused[tt.class], tt.asked); !about(got, want) {
					t.Errorf("Answered says %v, want %v", got, want)
				}
				want := tt.all
				if tt.class != Pull { // whose pause its account's quota shows
					want = max(want, tt.paused[tt.class])
				}
				if until := l.Pauses()["registry"]; want > 0 && !about(time.Until(until), want) || want == 0 && !until.IsZero() {
					t.Errorf("Pauses says %v from now, want %v", time.Until(until), want)
				}
				code := oci.TooManyRequests
				if tt.code != 0 {
					code = tt.code
				}
				for class := range numClasses {
					want := max(tt.all, tt.paused[class])
					if want == 0 {
						must(t, l, Call{Host: "registry", Class: class})()
						continue
					}
					_, err := l.Acquire(t.Context(), Call{Host: "registry", Class: class})
					if oci.CodeOf(err) != code || !about(oci.RetryAfter(err), want) {
						t.Errorf("class %d: got %v (retry after %v), want code %v, retry after %v", class, err, oci.RetryAfter(err), code, want)
					}
				}
				must(t, l, Call{Host: "elsewhere", Class: tt.class, Account: "another"})()
			})
		})
	}
}

func TestAShortPauseIsSatOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(unbound)
		call := Call{Host: "registry", Class: Pull}
		must(t, l, call)()
		answered(t, l, call, 429, http.Header{"Retry-After": {"7"}}, "")
		start := time.Now()
		p, err := l.Acquire(t.Context(), call)
		if err != nil {
			t.Fatal(err)
		}
		p.Release()
		if got := time.Since(start); got != 7*time.Second {
			t.Errorf("waited %v, want 7s", got)
		}
	})
}

// What nobody waits for sits out what a client would, and is told of longer pauses: who
// is behind it says what it waits for, or gives up.
func TestTheBackgroundIsToldOfALongPause(t *testing.T) {
	for _, row := range []struct {
		pause   string
		refused time.Duration
	}{{"7", 0}, {"30", 30 * time.Second}} {
		synctest.Test(t, func(t *testing.T) {
			l := New(Limits{Rate: -1, Wait: 10 * time.Second})
			call := Call{Host: "registry", Class: Pull, Background: true}
			must(t, l, call)()
			answered(t, l, call, 429, http.Header{"Retry-After": {row.pause}}, "")
			p, err := l.Acquire(t.Context(), call)
			if row.refused > 0 {
				wantRefusal(t, err, oci.TooManyRequests, row.refused)
				return
			}
			if err != nil {
				t.Fatalf("a pause of %s s: %v", row.pause, err)
			}
			p.Release()
		})
	}
}

func TestAPauseReachesThoseWhoAlreadyWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Limits{Rate: 1, Burst: 1, Wait: 10 * time.Second})
		call := Call{Host: "registry", Class: Pull}
		must(t, l, call)()
		done := make(chan error)
		go func() {
			p, err := l.Acquire(t.Context(), call) // queues for 1 s
			if err == nil {
				p.Release()
			}
			done <- err
		}()
		synctest.Wait()
		answered(t, l, call, 429, http.Header{"Retry-After": {"61"}}, "")
		wantRefusal(t, <-done, oci.TooManyRequests, time.Minute)
	})
}

func TestPausesDoubleWithoutATime(t *testing.T) {
	for _, tt := range []struct {
		name string
		body string
		most time.Duration
	}{
		{"slow down", "Too Many Requests", maxBackoff},
		{"quota", quotaRefusal, maxQuotaBackoff},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := New(unbound)
				call := Call{Host: "registry", Class: Pull}
				must(t, l, call)()
				refuse := func() time.Duration { return answered(t, l, call, 429, nil, tt.body) }
				for want := time.Second; want < 8*tt.most; want *= 2 {
					got := refuse()
					if want := min(want, tt.most); got > tt.most || !about(got, want) {
						t.Errorf("paused for %v, want %v or up to a quarter more", got, want)
					}
					if again := refuse(); again != got {
						t.Errorf("an answer from before the pause changed it to %v", again)
					}
					time.Sleep(got)
				}
				answered(t, l, call, 500, nil, "")
				if got := refuse(); !about(got, tt.most) && got != tt.most {
					t.Errorf("a failure that says nothing reset the pause to %v", got)
				}
				time.Sleep(tt.most)
				answered(t, l, call, 200, nil, "")
				if got := refuse(); !about(got, time.Second) {
					t.Errorf("after a success paused for %v, want 1s", got)
				}
			})
		})
	}
}

// After a pause whose length nobody told one request goes alone, whatever becomes of it,
// and the others once it is answered.
func TestAfterAPauseOfOurOwnOneIsTried(t *testing.T) {
	const clients = 20
	refused, lost := http.StatusTooManyRequests, 0
	for _, tt := range []struct {
		name  string
		tries []int // how those are answered that go alone, each after 300 ms
	}{
		{"well again", []int{200}},
		{"still refused", []int{refused, refused, 200}},
		{"no answer", []int{lost, lost, 200}},
		{"another failure", []int{500}},
		{"refused, then no answer", []int{refused, lost, 404}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := New(Limits{Rate: 20, Burst: 60, Wait: 20 * time.Second})
				call := Call{Host: "registry", Class: Token}
				var mu sync.Mutex
				sent, out := 0, 0
				ask := func(alone bool) {
					p, err := l.Acquire(t.Context(), call)
					if err != nil {
						t.Error(err)
						return
					}
					defer p.Release()
					mu.Lock()
					n := sent
					sent, out = sent+1, out+1
					if alone && n < len(tt.tries) && out > 1 {
						t.Errorf("%d are on their way when the %dth is tried", out, n)
					}
					mu.Unlock()
					time.Sleep(300 * time.Millisecond)
					status := 200
					if !alone {
						status = refused
					} else if n < len(tt.tries) {
						status = tt.tries[n]
					}
					mu.Lock()
					out--
					mu.Unlock()
					if status != lost {
						p.Answered(status, nil, nil)
					}
				}
				var wg sync.WaitGroup
				for range clients {
					wg.Go(func() { ask(false) })
				}
				wg.Wait()
				sent = 0
				for range clients {
					wg.Go(func() { ask(true) })
				}
				leaves, cancel := context.WithTimeout(t.Context(), 1400*time.Millisecond)
				defer cancel()
				for range clients {
					wg.Go(func() {
						if p, err := l.Acquire(leaves, call); err == nil {
							p.Release()
						}
					})
				}
				wg.Wait()
				must(t, l, call)()
			})
		})
	}
}

// All of us must not come back in the same moment.
func TestPausesDiffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seen := map[time.Duration]bool{}
		for range 20 {
			seen[answered(t, New(unbound), Call{Host: "registry", Class: Pull}, 429, nil, quotaRefusal)] = true
		}
		if len(seen) < 10 {
			t.Errorf("20 pauses had %d lengths", len(seen))
		}
	})
}

func TestHostsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(unbound)
		var releases []func()
		for i := range maxHosts {
			releases = append(releases, must(t, l, Call{Host: fmt.Sprintf("cdn%d", i), Class: Redirect}))
		}
		if _, err := l.Acquire(t.Context(), Call{Host: "one-more", Class: Redirect}); oci.CodeOf(err) != oci.Unavailable {
			t.Errorf("got %v, want Unavailable while all hosts are in use", err)
		}
		releases[7]()
		must(t, l, Call{Host: "one-more", Class: Redirect})()
		if len(l.hosts) > maxHosts {
			t.Errorf("%d hosts are remembered, want at most %d", len(l.hosts), maxHosts)
		}
		for _, release := range releases {
			release()
		}
	})
}

// A host that is to be left alone, for all that is asked of it or for a part, or that has
// promised a turn, is not forgotten for others.
func TestHostsThatAreToBeLeftAloneAreNotForgotten(t *testing.T) {
	for name, f := range map[string]func(t *testing.T, l *Limiter){
		"a pause of all": func(t *testing.T, l *Limiter) {
			t.Helper()
			answered(t, l, Call{Host: "registry", Class: Blob}, 429, http.Header{"Retry-After": {"60"}}, "")
		},
		"a pause of a class": func(t *testing.T, l *Limiter) {
			t.Helper()
			answered(t, l, Call{Host: "registry", Class: Blob}, 429, http.Header{"Retry-After": {"60"}}, quotaRefusal)
		},
		"a promise": func(t *testing.T, l *Limiter) {
			t.Helper()
			must(t, l, Call{Host: "registry"})()
			if _, err := l.Acquire(t.Context(), Call{Host: "registry"}); oci.CodeOf(err) != oci.TooManyRequests {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := New(Limits{Rate: 0.1, Burst: 1, Wait: time.Second})
				f(t, l)
				host := l.hosts["registry"]
				for i := range 4 * maxHosts {
					must(t, l, Call{Host: fmt.Sprint("cdn", i), Class: Redirect})()
				}
				if l.hosts["registry"] != host {
					t.Error("it is forgotten")
				}
				time.Sleep(time.Hour)
				for i := range 20 * maxHosts { // any of them is forgotten for another
					must(t, l, Call{Host: fmt.Sprint("other", i), Class: Redirect})()
				}
				if l.hosts["registry"] != nil {
					t.Error("it is not forgotten when there is no reason left")
				}
			})
		})
	}
}

func TestLimitsFor(t *testing.T) {
	tests := []struct {
		name     string
		limits   Limits
		upstream string
		signedIn bool
		want     Limits
	}{
		{"nothing known", Limits{}, "registry.example", false, base},
		{"ECR anonymous", Limits{}, "public.ecr.aws", false, Limits{1, 5, base.Requests, base.Transfers, base.Wait, base.Reserve}},
		{"ECR signed in", Limits{}, "public.ecr.aws", true, Limits{10, 20, base.Requests, base.Transfers, base.Wait, base.Reserve}},
		{"own burst", Limits{Burst: 7}, "public.ecr.aws", false, Limits{1, 7, base.Requests, base.Transfers, base.Wait, base.Reserve}},
		{"own rate brings its burst", Limits{Rate: 3}, "public.ecr.aws", false, Limits{3, 6, base.Requests, base.Transfers, base.Wait, base.Reserve}},
		{"slow rate", Limits{Rate: 0.1}, "public.ecr.aws", false, Limits{0.1, 1, base.Requests, base.Transfers, base.Wait, base.Reserve}},
		{"no rate", Limits{Rate: -1, Requests: 1, Transfers: 2, Wait: 3}, "quay.io", false, Limits{-1, 1, 1, 2, 3, base.Reserve}},
		{"a reserve", Limits{Reserve: 0.5}, "registry.example", false, Limits{base.Rate, base.Burst, base.Requests, base.Transfers, base.Wait, 0.5}},
		{"no reserve", Limits{Reserve: -1}, "registry.example", false, Limits{base.Rate, base.Burst, base.Requests, base.Transfers, base.Wait, -1}},
		{"more than all", Limits{Reserve: 7}, "registry.example", false, Limits{base.Rate, base.Burst, base.Requests, base.Transfers, base.Wait, 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.limits.For(tt.upstream, tt.signedIn); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

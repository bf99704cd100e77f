package ratelimit

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/oci"
)

// onBothClocks runs f on a clock that stands still while something is done, and on one
// that moves on whenever somebody looks at it, as all clocks do.
func onBothClocks(t *testing.T, f func(t *testing.T, create func(Limits) *Limiter)) {
	t.Helper()
	t.Run("standing", func(t *testing.T) { synctest.Test(t, func(t *testing.T) { f(t, New) }) })
	t.Run("moving", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f(t, func(limits Limits) *Limiter {
				l, looks := New(limits), new(atomic.Int64)
				l.now = func() time.Time { return time.Now().Add(time.Duration(looks.Add(1)) * time.Microsecond) }
				return l
			})
		})
	})
}

// fleet are clients who ask for images, each by a check and a pull, and come again when
// they are told to.
type fleet struct {
	t       *testing.T
	limiter *Limiter
	limits  Limits
	start   time.Time
	wg      sync.WaitGroup

	mu    sync.Mutex // guards what follows
	rng   *rand.Rand
	turns []time.Duration // at which requests went out
	asked []*asked
}

// asked is one question.
type asked struct {
	client string
	what   string
	token  bool // has to be got first, of another host
	visits int
	late   time.Duration // how much later than told its client comes, at most
	leaves bool          // it does not come again

	told     []time.Duration // when to come again, each time it was refused
	firm     bool            // the first place that was told
	refused  []time.Duration // after how long
	waited   time.Duration   // until the first turn, the last time
	answered time.Duration   // since the start
}

func newFleet(t *testing.T, create func(Limits) *Limiter, limits Limits, seed uint64) *fleet {
	t.Helper()
	return &fleet{t: t, limiter: create(limits), limits: limits, start: time.Now(), rng: rand.New(rand.NewPCG(seed, 1))}
}

// upTo is a random time.
func (f *fleet) upTo(most time.Duration) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Duration(f.rng.Int64N(int64(most) + 1))
}

// ask has a client ask after a while.
func (f *fleet) ask(after time.Duration, a asked) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a.what = cmpOr(a.what, fmt.Sprint(a.client, "/", len(f.asked)))
	f.asked = append(f.asked, &a)
	f.wg.Go(func() {
		time.Sleep(after)
		for f.visit(&a) {
			wait := a.told[len(a.told)-1] - time.Since(f.start)
			if a.leaves || len(a.told) > 20 {
				return
			}
			time.Sleep(wait + f.upTo(a.late))
		}
	})
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// visit asks once, and reports whether it is to be done again.
func (f *fleet) visit(a *asked) bool {
	came := f.limiter.now()
	arrived := time.Now()
	a.visits++
	call := Call{Host: "registry", Client: a.client, What: a.what, Since: came, Class: Check}
	err := error(nil)
	if a.token {
		if err = f.limiter.Begin(f.t.Context(), call, 0); err == nil {
			a.waited = time.Since(arrived)
			call.Begun = true
			token := call
			token.Host, token.Class = "token", Token
			err = f.send(token)
		}
	}
	if err == nil {
		if err = f.send(call); err == nil && !a.token {
			a.waited = time.Since(arrived) - 50*time.Millisecond
		}
	}
	if err == nil {
		err = f.send(Call{Host: "registry", Client: a.client, What: a.what + "@", Since: came, Class: Pull, Begun: true})
	}
	switch {
	case err == nil:
		a.answered = time.Since(f.start)
		return false
	case oci.CodeOf(err) != oci.TooManyRequests || oci.RetryAfter(err) <= 0:
		f.t.Errorf("%s: %v, retry after %v", a.what, err, oci.RetryAfter(err))
		return false
	}
	seconds := (oci.RetryAfter(err) + time.Second - 1) / time.Second // as it is told
	if len(a.told) == 0 {
		a.firm = f.isFirm(call)
	}
	a.refused = append(a.refused, time.Since(arrived))
	a.told = append(a.told, time.Since(f.start)+seconds*time.Second)
	return true
}

// isFirm reports whether what a call is promised makes way for nobody.
func (f *fleet) isFirm(call Call) bool {
	turns := f.limiter.hosts["registry"].turns
	turns.mu.Lock()
	defer turns.mu.Unlock()
	p := turns.promises.of(call)
	return p != nil && p.firm
}

// send sends one request, which takes 50 ms or so.
func (f *fleet) send(call Call) error {
	p, err := f.limiter.Acquire(f.t.Context(), call)
	if err != nil {
		return err
	}
	if call.Host == "registry" {
		f.mu.Lock()
		f.turns = append(f.turns, time.Since(f.start))
		f.mu.Unlock()
	}
	time.Sleep(50 * time.Millisecond)
	p.Answered(200, nil, nil)
	p.Release()
	return nil
}

// turnsBetween counts what went out.
func (f *fleet) turnsBetween(from, to time.Duration) int {
	n := 0
	for _, at := range f.turns {
		if at >= from && at < to {
			n++
		}
	}
	return n
}

// owed is how many turns are kept for questions that have begun.
func (f *fleet) owed() int {
	turns := f.limiter.hosts["registry"].turns
	turns.mu.Lock()
	defer turns.mu.Unlock()
	n, _ := turns.debts.sum(f.limiter.now())
	return n
}

// wantKept fails where somebody came when told to, and had to come again, or to wait
// for longer than the queue. It leaves out those who may have had to make way.
func (f *fleet) wantKept(all bool) {
	f.t.Helper()
	for _, a := range f.asked {
		switch {
		case a.leaves:
		case len(a.told) > 1 && (all || a.firm):
			f.t.Errorf("%s was told to come at %v", a.what, a.told)
		case a.waited > f.limits.Wait:
			f.t.Errorf("%s waited for %v, told %v", a.what, a.waited, a.told)
		case a.answered == 0:
			f.t.Errorf("%s has no answer", a.what)
		}
	}
}

// wantRate fails where the rate is exceeded, or not used while there is somebody.
func (f *fleet) wantRate() {
	f.t.Helper()
	slices.Sort(f.turns)
	every := time.Duration(float64(time.Second) / f.limits.Rate)
	burst := max(1, f.limits.Burst)
	for i, at := range f.turns {
		if j := i + burst; j < len(f.turns) && f.turns[j]-at < every-time.Millisecond {
			f.t.Errorf("%d requests within %v, at %v", burst+1, f.turns[j]-at, at)
			return
		}
	}
}

// Clients that ask for many images at once, at a low rate, have them all at the rate:
// whoever is told to come again is served when he does.
func TestAFleetIsServedAtTheRate(t *testing.T) {
	for _, tt := range []struct {
		clients, images int
		limits          Limits
		token           bool
		late            time.Duration
	}{
		{4, 15, Limits{Rate: 2, Burst: 4, Wait: 10 * time.Second}, false, 0},
		{4, 15, Limits{Rate: 2, Burst: 4, Wait: 10 * time.Second}, true, 0},
		{4, 15, Limits{Rate: 2, Burst: 4, Wait: 10 * time.Second}, false, time.Second},
		{4, 15, Limits{Rate: 2, Burst: 1, Wait: 10 * time.Second}, true, time.Second},
		{4, 5, Limits{Rate: 2, Burst: 4, Wait: 2 * time.Second}, false, 0},
		{4, 15, Limits{Rate: 1, Burst: 1, Wait: 10 * time.Second}, false, time.Second},
		{4, 15, Limits{Rate: 0.5, Burst: 1, Wait: 10 * time.Second}, true, 0},
		{20, 50, Limits{Rate: 20, Burst: 60, Requests: 32, Wait: 10 * time.Second}, true, time.Second},
		{1, 60, Limits{Rate: 1, Burst: 2, Wait: 10 * time.Second}, false, 0},
		{60, 1, Limits{Rate: 1, Burst: 2, Wait: 10 * time.Second}, true, time.Second},
	} {
		t.Run(fmt.Sprintf("%+v", tt), func(t *testing.T) {
			onBothClocks(t, func(t *testing.T, create func(Limits) *Limiter) {
				t.Helper()
				f := newFleet(t, create, tt.limits, 1)
				for i := range tt.clients * tt.images {
					f.ask(f.upTo(100*time.Millisecond), asked{client: fmt.Sprint(i / tt.images), token: tt.token, late: tt.late})
				}
				f.wg.Wait()
				f.wantKept(true)
				f.wantRate()
				last := time.Duration(0)
				for _, a := range f.asked {
					last = max(last, a.answered)
				}
				least := time.Duration(float64(2*tt.clients*tt.images)/tt.limits.Rate) * time.Second
				if most := least + least/50 + 3*time.Second; last > most {
					t.Errorf("the last has its answer after %v, want %v at most", last, most)
				}
			})
		})
	}
}

// A firm promise is kept whatever others do: who come before their time or after it, who
// do not come, who are new, and who do not belong to any fleet.
func TestAPromiseIsKeptWhateverOthersDo(t *testing.T) {
	for _, limits := range []Limits{
		{Rate: 1, Burst: 2, Wait: 10 * time.Second},
		{Rate: 2, Burst: 1, Wait: 10 * time.Second},
		{Rate: 5, Burst: 10, Wait: 5 * time.Second},
		{Rate: 20, Burst: 60, Wait: 10 * time.Second},
	} {
		for seed := range uint64(4) {
			t.Run(fmt.Sprint(limits.Rate, seed), func(t *testing.T) {
				onBothClocks(t, func(t *testing.T, create func(Limits) *Limiter) {
					t.Helper()
					f := newFleet(t, create, limits, seed)
					stands := limits.Wait * 7 / 10
					for client := range 12 {
						begins := f.upTo(40 * time.Second)
						late := []time.Duration{0, time.Second, stands - time.Second}[client%3]
						for range 1 + client {
							f.ask(begins+f.upTo(time.Second), asked{client: fmt.Sprint(client), late: late, token: client%2 == 0, leaves: client%4 == 3})
						}
					}
					for i := range 100 { // who knock all the time
						f.wg.Go(func() {
							time.Sleep(time.Duration(i) * time.Second)
							call := Call{Host: "registry", Client: fmt.Sprint("other", i%7), What: fmt.Sprint("other", i), Class: Check, Held: i%3 == 0, Background: i%5 == 0}
							if p, err := f.limiter.Acquire(t.Context(), call); err == nil {
								p.Release()
							}
						})
					}
					f.wg.Wait()
					f.wantKept(false)
				})
			})
		}
	}
}

// Clients that ask for more than can be firm are nevertheless served when they were told,
// and who is new beside them waits for the line, and then for what is firm: the first few
// questions of each, or where these are many one of each and firmTime.
func TestWhoIsNewWaitsForHisShare(t *testing.T) {
	for _, tt := range []struct {
		clients, images int
		limits          Limits
	}{
		{3, 40, Limits{Rate: 1, Burst: 2, Wait: 10 * time.Second}},
		{10, 40, Limits{Rate: 1, Burst: 2, Wait: 10 * time.Second}},
		{30, 40, Limits{Rate: 1, Burst: 2, Wait: 10 * time.Second}}, // more than are remembered
		{300, 8, Limits{Rate: 5, Burst: 10, Wait: 10 * time.Second}},
		{1200, 1, Limits{Rate: 5, Burst: 10, Wait: 10 * time.Second}},
	} {
		t.Run(fmt.Sprint(tt.clients, tt.images), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, New, tt.limits, 1)
				for i := range tt.clients * tt.images {
					f.ask(f.upTo(time.Second), asked{client: fmt.Sprint(i / tt.images), late: time.Second})
				}
				came := func(i int) time.Duration { return time.Duration(5+20*i) * time.Second }
				for i := range 5 {
					f.ask(came(i), asked{client: fmt.Sprint("new", i)})
				}
				f.wg.Wait()
				f.wantKept(true)
				f.wantRate()
				turns := func(n int) time.Duration { return time.Duration(float64(n) / tt.limits.Rate * float64(time.Second)) }
				last, all := time.Duration(0), turns(2*len(f.asked))
				for _, a := range f.asked {
					last = max(last, a.answered)
				}
				if most := all + all/roomShare + 10*time.Second; last > most {
					t.Errorf("the last has its answer after %v, want %v at most", last, most)
				}
				most := turns(2*tt.clients) + min(firmTime, turns(clientTurns*tt.clients)) + tt.limits.Wait
				for i, a := range f.asked[tt.clients*tt.images:] {
					if took := a.answered - came(i); took > most {
						t.Errorf("who came at %v has its answer after %v, want %v at most", came(i), took, most)
					}
				}
			})
		})
	}
}

// Clients that come one after the other, each with a few questions, are seldom put off for
// those who come later: where they ask for no more than can be firm, hardly anybody is.
func TestTheFewQuestionsOfEachAreFirm(t *testing.T) {
	for _, tt := range []struct {
		clients, images int
		limits          Limits
		most            float64 // of the refused, who are told another time
	}{
		{10, 8, Limits{Rate: 1, Burst: 2, Wait: 10 * time.Second}, 0.05},
		{30, 3, Limits{Rate: 1, Burst: 2, Wait: 10 * time.Second}, 0.15},
		{30, 5, Limits{Rate: 1, Burst: 2, Wait: 10 * time.Second}, 0.4}, // for five minutes
		{50, 10, Limits{Rate: 5, Burst: 10, Wait: 10 * time.Second}, 0.05},
		{100, 5, Limits{Rate: 5, Burst: 10, Wait: 10 * time.Second}, 0.05},
		{50, 20, Limits{Rate: 20, Burst: 60, Wait: 10 * time.Second}, 0},
	} {
		t.Run(fmt.Sprint(tt.clients, tt.images), func(t *testing.T) {
			refused, twice := 0, 0
			for seed := range uint64(2) {
				synctest.Test(t, func(t *testing.T) {
					f := newFleet(t, New, tt.limits, seed)
					for client := range tt.clients {
						comes := f.upTo(time.Minute)
						for range tt.images {
							f.ask(comes+f.upTo(time.Second), asked{client: fmt.Sprint(client), late: time.Second})
						}
					}
					f.wg.Wait()
					f.wantKept(false)
					f.wantRate()
					for _, a := range f.asked {
						refused += min(len(a.told), 1)
						twice += min(max(0, len(a.told)-1), 1)
					}
				})
			}
			if float64(twice) > tt.most*float64(refused) {
				t.Errorf("%d of %d refused are told another time, want %v of them at most", twice, refused, tt.most)
			}
		})
	}
}

// Who may have to make way is told when he has a turn once those have come who come with
// him, and others at once.
func TestWhatIsNotFirmIsToldAWhileLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, New, Limits{Rate: 1, Burst: 1, Wait: 10 * time.Second}, 1)
		for client := range 5 {
			for range 20 {
				f.ask(time.Duration(client)*time.Second, asked{client: fmt.Sprint(client)})
			}
		}
		f.wg.Wait()
		f.wantKept(true)
		firm := 0
		for _, a := range f.asked {
			if len(a.told) == 0 {
				continue
			}
			want := 5 * time.Second
			if a.firm {
				firm++
				want = 0
			}
			if a.refused[0] != want && a.refused[0] != f.limits.Wait {
				t.Errorf("%s (firm: %v) is told after %v, want %v", a.what, a.firm, a.refused[0], want)
			}
		}
		if most := int(firmTime/time.Second)/2 + 4; firm < 15 || firm > most {
			t.Errorf("%d have firm places, want %d at most", firm, most)
		}
	})
}

// Places that nobody comes for are used by those who are there.
func TestWhoDoesNotComeAgainWastesNoTurns(t *testing.T) {
	onBothClocks(t, func(t *testing.T, create func(Limits) *Limiter) {
		t.Helper()
		f := newFleet(t, create, Limits{Rate: 1, Burst: 2, Wait: 10 * time.Second}, 1)
		for i := range 200 {
			f.ask(0, asked{client: fmt.Sprint("gone", i%3), leaves: true})
		}
		// Somebody who wants one image after the other.
		f.wg.Go(func() {
			time.Sleep(20 * time.Second)
			for i := 0; time.Since(f.start) < 2*time.Minute; i++ {
				a := asked{client: "there", what: fmt.Sprint("there", i)}
				for f.visit(&a) {
					time.Sleep(a.told[len(a.told)-1] - time.Since(f.start))
				}
			}
		})
		f.wg.Wait()
		slices.Sort(f.turns)
		for from := 20 * time.Second; from < 110*time.Second; from += 10 * time.Second {
			if n := f.turnsBetween(from, from+10*time.Second); n < 9 {
				t.Errorf("%d turns from %v on, want ten in ten seconds: %v", n, from, f.turns)
				break
			}
		}
	})
}

// A client with a hundred questions does not keep another from being answered: as in a
// line, and where that cannot be, since others were promised, soon.
func TestWhoAsksForMuchIsNoBarrier(t *testing.T) {
	onBothClocks(t, func(t *testing.T, create func(Limits) *Limiter) {
		t.Helper()
		f := newFleet(t, create, Limits{Rate: 1, Burst: 2, Wait: 10 * time.Second}, 1)
		for range 100 {
			f.ask(0, asked{client: "greedy"})
		}
		for i := range 3 {
			f.ask(time.Second, asked{client: fmt.Sprint("modest", i)})
		}
		f.wg.Wait()
		for _, a := range f.asked[100:] {
			if a.answered > 50*time.Second || len(a.told) > 1 {
				t.Errorf("%s has its answer at %v, told %v", a.client, a.answered, a.told)
			}
		}
	})
}

// Who comes before his time waits for it if he can, is told the same otherwise, and keeps
// it for a while.
func TestWhoComesBeforeOrAfterHisTime(t *testing.T) {
	for _, tt := range []struct{ comes, waits, told time.Duration }{
		{1500 * time.Millisecond, 0, 9500 * time.Millisecond},
		{7500 * time.Millisecond, 3500 * time.Millisecond, 0},
		{11 * time.Second, time.Second, 0},
		{14 * time.Second, time.Second, 0},
		{15500 * time.Millisecond, 0, 15500 * time.Millisecond}, // it stands no longer
	} {
		t.Run(fmt.Sprint(tt.comes), func(t *testing.T) {
			onBothClocks(t, func(t *testing.T, create func(Limits) *Limiter) {
				t.Helper()
				f := newFleet(t, create, Limits{Rate: 1, Burst: 1, Wait: 5 * time.Second}, 1)
				send := func(i int) error {
					return f.send(Call{Host: "registry", Client: fmt.Sprint(i), What: fmt.Sprint(i)})
				}
				for i := range 31 { // one is served, five wait, and the others are told 6 s, 7 s, ...
					f.wg.Go(func() {
						if err := send(i); err != nil && i != 11 {
							time.Sleep(oci.RetryAfter(err))
							if err := send(i); err != nil {
								t.Errorf("client %d: %v", i, err)
							}
						}
					})
					synctest.Wait()
				}
				time.Sleep(tt.comes)
				took, err := timed(func() error { return send(11) })
				if took -= 50 * time.Millisecond; err == nil && (tt.told > 0 || took > tt.waits+time.Millisecond) {
					t.Errorf("served after %v, want %v at most", took, tt.waits)
				}
				if told := oci.RetryAfter(err).Round(time.Millisecond); told != tt.told {
					t.Errorf("told to come after %v, want %v", told, tt.told)
				}
				f.wg.Wait()
			})
		})
	}
}

// What is remembered has a bound, and who asks for most is forgotten before others. Who
// is not remembered is told a time nevertheless, later than all who were before him.
func TestPromisesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Limits{Rate: 1, Burst: 1, Wait: time.Second / 2})
		start := time.Now()
		refuse := func(client string, from, n int) []time.Duration {
			told := make([]time.Duration, n)
			for i := range n {
				go func() {
					p, err := l.Acquire(t.Context(), Call{Host: "registry", Client: client, What: fmt.Sprint(client, from+i)})
					if err == nil {
						p.Release()
					}
					told[i] = time.Since(start) + oci.RetryAfter(err)
				}()
				synctest.Wait()
			}
			return told
		}
		must(t, l, Call{Host: "registry"})()
		told := refuse("greedy", 0, 3*maxPromises)
		time.Sleep(time.Second / 2)
		synctest.Wait()
		for i := maxPromises + 1; i < len(told); i++ {
			if told[i]-told[i-1] < time.Second {
				t.Fatalf("the %dth is told %v, and the one before %v", i, told[i], told[i-1])
			}
		}
		last := told[len(told)-1]
		if last > 3*maxPromises*33/32*time.Second {
			t.Errorf("the last is told %v", last)
		}
		time.Sleep(time.Minute) // some places are free again
		told = refuse("greedy", len(told), 40)
		time.Sleep(time.Second / 2)
		synctest.Wait()
		if told[39] < last {
			t.Errorf("who comes later is told %v, and others were told %v", told[39], last)
		}
		if told := refuse("modest", 0, 1)[0]; told-time.Since(start) > firmTime+3*time.Second {
			t.Errorf("who is new is told %v", told)
		}
		for i := range 2 * maxPromises {
			refuse(fmt.Sprint(i), 0, 1)
		}
		ps := &l.hosts["registry"].turns.promises
		if len(ps.due) != maxPromises || len(ps.about) != maxPromises {
			t.Errorf("%d promises, %d of them found, want %d", len(ps.due), len(ps.about), maxPromises)
		}
		if ps.of(Call{What: "modest0"}) == nil {
			t.Error("who is new has no promise, since another has too many")
		}
		time.Sleep(2 * maxPromises * time.Second)
		must(t, l, Call{Host: "registry"})()
		if len(ps.due) != 0 || len(ps.about) != 0 {
			t.Errorf("%d promises, %d of them found, after all have ended", len(ps.due), len(ps.about))
		}
	})
}

// A burst is for whole questions: what follows a first request is not left to wait for
// turns that others had for theirs.
func TestABurstIsForWholeQuestions(t *testing.T) {
	onBothClocks(t, func(t *testing.T, create func(Limits) *Limiter) {
		t.Helper()
		f := newFleet(t, create, Limits{Rate: 1, Burst: 10, Wait: 20 * time.Second}, 1)
		for i := range 10 {
			f.ask(0, asked{client: fmt.Sprint(i)})
		}
		f.wg.Wait()
		soon := 0
		for _, a := range f.asked {
			if a.answered < time.Second {
				soon++
			}
		}
		if soon != 5 {
			t.Errorf("%d of 10 have both their answers in the first second, want 5 of a burst of 10", soon)
		}
	})
}

// Checks that nothing follows, since they are answered 404 or tell of what is held, do
// not keep turns from others.
func TestWhatDoesNotFollowCostsNoTurns(t *testing.T) {
	onBothClocks(t, func(t *testing.T, create func(Limits) *Limiter) {
		t.Helper()
		f := newFleet(t, create, Limits{Rate: 5, Burst: 2, Wait: 10 * time.Second}, 1)
		for i := range 300 {
			f.wg.Go(func() {
				time.Sleep(time.Duration(i) * 100 * time.Millisecond)
				_ = f.send(Call{Host: "registry", Client: fmt.Sprint(i % 10), What: fmt.Sprint(i), Since: time.Now(), Class: Check})
			})
		}
		f.wg.Wait()
		slices.Sort(f.turns)
		if n := f.turnsBetween(0, 30*time.Second); n < 149 {
			t.Errorf("%d requests in 30 s, want five a second", n)
		}
		time.Sleep(followUp + time.Second)
		if n := f.owed(); n > 0 {
			t.Errorf("%d turns are still kept", n)
		}
		f.ask(0, asked{client: "last"})
		f.wg.Wait()
		if n := f.owed(); n > 0 {
			t.Errorf("%d turns are still kept when all was asked", n)
		}
		call := Call{Host: "registry", Client: "begins", Since: time.Now(), Class: Check}
		if err := f.limiter.Begin(t.Context(), call, 1); err != nil || f.owed() != 3 {
			t.Errorf("%d turns are kept for what has begun, want 3: a token, a check, a pull: %v", f.owed(), err)
		}
	})
}

// What is promised is whose question it is: equal ones are one, whoever brings it.
func TestAPromiseIsForTheQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Limits{Rate: 1, Burst: 1, Wait: 2 * time.Second})
		ask := func(client, what string) error {
			p, err := l.Acquire(t.Context(), Call{Host: "registry", Client: client, What: what})
			if err == nil {
				p.Release()
			}
			return err
		}
		var wg sync.WaitGroup
		for i := range 3 { // one is served, two wait
			wg.Go(func() { _ = ask(fmt.Sprint("first", i), "") })
		}
		synctest.Wait()
		for i := range 20 {
			wantRefusal(t, ask(fmt.Sprint(i), fmt.Sprint(i)), oci.TooManyRequests, time.Duration(3+i)*time.Second)
		}
		wantRefusal(t, ask("another", "5"), oci.TooManyRequests, 8*time.Second)
		time.Sleep(8 * time.Second)
		if took, err := timed(func() error { return ask("another", "5") }); err != nil || took > time.Second {
			t.Errorf("%v after %v", err, took)
		}
		wg.Wait()
	})
}

// Who has something to serve instead will not come again, nor will who waits for nobody:
// they are told a time, and nothing is kept for them.
func TestNothingIsKeptForWhoWillNotCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Limits{Rate: 0.1, Burst: 1, Wait: time.Second})
		must(t, l, Call{Host: "registry"})()
		for i := range 10 {
			for _, call := range []Call{{Held: true, Class: Check}, {Background: true}} {
				call.Host, call.What = "registry", fmt.Sprint(i)
				_, err := l.Acquire(t.Context(), call)
				wantRefusal(t, err, oci.TooManyRequests, 10*time.Second)
			}
		}
	})
}

// Who was let wait, in vain, comes before others of his client that were not.
func TestWhoHasWaitedComesFirst(t *testing.T) {
	ps := promises{every: time.Second, slack: 3 * time.Second, stands: 7 * time.Second}
	now := time.Now()
	for i := range 9 {
		ps.make(Call{Client: "a", What: fmt.Sprint(i)}, 2, now, now, false)
	}
	for i, want := range []time.Duration{19 * time.Second, time.Second} {
		p := ps.make(Call{Client: "a", What: fmt.Sprint("another", i)}, 2, now, now, want == time.Second)
		if got := p.start.Sub(now).Round(time.Millisecond); got != want {
			t.Errorf("it has the place at %v, want %v", got, want)
		}
	}
}

// Places in the calendar are in order, and those that are firm are late by no more than
// others are let go before them, whoever comes and goes.
func TestPlacesFit(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 50 {
		ps := promises{every: time.Second, slack: 3 * time.Second, stands: 7 * time.Second}
		now, clients := time.Now(), 1+rng.IntN(6)
		free := now // when the turns of those who came are taken
		for n := range 400 {
			if rng.IntN(3) == 0 { // some come
				now = now.Add(time.Duration(rng.IntN(3000)) * time.Millisecond)
				ps.expire(now)
				for _, p := range slices.Clone(ps.due) {
					if !p.start.After(now) && !p.missed && rng.IntN(8) > 0 {
						free = latest(free, p.start.Add(-ps.every)).Add(ps.length(p.cost))
						ps.keep(p)
					}
				}
				free = latest(free, now.Add(-ps.every))
			}
			client := fmt.Sprint(rng.IntN(clients))
			own := ps.lastOf(client)
			made := ps.make(Call{Client: client, What: fmt.Sprint(n)}, 1+rng.IntN(2), now, free, rng.IntN(10) == 0)
			if !made.waited && own != nil && made.firm && own.firm && made.start.Before(own.start.Add(-time.Microsecond)) {
				t.Fatalf("a place at %v, before that of the same client at %v", made.start.Sub(now), own.start.Sub(now))
			}
			if !slices.IsSortedFunc(ps.due, func(a, b *promise) int { return a.start.Compare(b.start) }) {
				t.Fatal("the places are not in order")
			}
			for i, gap := range ps.gaps(free)[:len(ps.due)] {
				// A turn is lost for a moment where nobody came in time.
				if p := ps.due[i]; p.firm && p.start.After(now) && gap.end.Add(ps.every).Sub(p.start) > ps.slack+prompt+ps.length(2) {
					t.Fatalf("the place at %v is not free until %v", p.start.Sub(now), gap.end.Add(ps.every).Sub(now))
				}
			}
		}
	}
}

// lastOf is the last place of a client.
func (ps *promises) lastOf(client string) (last *promise) {
	for _, p := range ps.due {
		if p.client == client && !p.missed {
			last = p
		}
	}
	return last
}

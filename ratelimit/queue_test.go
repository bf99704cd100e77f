package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/oci"
)

// crowd sends requests that each take some time, and notes when each got its
// turn, by client.
type crowd struct {
	t       *testing.T
	limiter *Limiter
	takes   time.Duration
	start   time.Time
	wg      sync.WaitGroup

	mu      sync.Mutex // guards what follows
	served  map[string][]time.Duration
	refused map[string]int
}

func newCrowd(t *testing.T, limits Limits, takes time.Duration) *crowd {
	t.Helper()
	return &crowd{t: t, limiter: New(limits), takes: takes, start: time.Now(), served: map[string][]time.Duration{}, refused: map[string]int{}}
}

func (c *crowd) send(n int, call Call) {
	call.Host = "registry"
	for range n {
		c.wg.Go(func() {
			p, err := c.limiter.Acquire(c.t.Context(), call)
			c.mu.Lock()
			if err != nil {
				c.refused[call.Client]++
				c.mu.Unlock()
				if oci.CodeOf(err) != oci.TooManyRequests || oci.RetryAfter(err) <= 0 {
					c.t.Errorf("refused with %v, retry after %v", err, oci.RetryAfter(err))
				}
				return
			}
			c.served[call.Client] = append(c.served[call.Client], time.Since(c.start))
			c.mu.Unlock()
			time.Sleep(c.takes)
			p.Release()
		})
	}
	synctest.Wait()
}

func (c *crowd) refusals(client string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.refused[client]
}

// A client with a thousand requests delays another's by one each.
func TestNoClientStarvesAnother(t *testing.T) {
	tests := []struct {
		name   string
		limits Limits
		takes  time.Duration
	}{
		{"request rate", Limits{Rate: 1, Burst: 1, Requests: 2000, Wait: 30 * time.Second}, 0},
		{"connections", Limits{Rate: -1, Requests: 1, Wait: 30 * time.Second}, time.Second},
		{"both", Limits{Rate: 1, Burst: 1, Requests: 1, Wait: 30 * time.Second}, time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCrowd(t, tt.limits, tt.takes)
				c.send(1000, Call{Client: "greedy"})
				time.Sleep(500 * time.Millisecond)
				c.send(5, Call{Client: "modest"})
				c.send(1, Call{Client: "lone"})
				c.wg.Wait()
				if got := c.served["lone"]; len(got) != 1 || got[0] > 4*time.Second {
					t.Errorf("who asks once was served after %v", got)
				}
				modest := c.served["modest"]
				if len(modest) != 5 || modest[4] > 13*time.Second {
					t.Errorf("who asks five times was served after %v", modest)
				}
				if n := len(c.served["greedy"]); n < 20 || n > 32 || c.refused["greedy"] != 1000-n {
					t.Errorf("of 1000 requests %d were served and %d refused", n, c.refused["greedy"])
				}
			})
		})
	}
}

// A host of IPv6 has one share, whatever addresses of its network it asks from.
func TestAHostOfManyAddressesIsOneClient(t *testing.T) {
	for name, limits := range map[string]Limits{
		"request rate": {Rate: 1, Burst: 1, Requests: 2000, Wait: 30 * time.Second},
		"connections":  {Rate: -1, Requests: 1, Wait: 30 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCrowd(t, limits, time.Second)
				for i := range 20 {
					c.send(1, Call{Client: fmt.Sprintf("2001:db8::%x", i+1)})
				}
				c.send(1, Call{Client: "192.0.2.1"})
				c.wg.Wait()
				if got := c.served["192.0.2.1"]; len(got) != 1 || got[0] > 3*time.Second {
					t.Errorf("another host was served after %v", got)
				}
			})
		})
	}
}

// Who must be refused is told so at once, with the wait that the fair order
// means for that client.
func TestTheTrueWaitIsTheClientsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Limits{Rate: 1, Burst: 1, Requests: 2000, Wait: 10 * time.Second}, 0)
		c.send(20, Call{Client: "a"}) // one goes at once, ten wait
		if n := c.refusals("a"); n != 9 {
			t.Errorf("%d refused, want 9", n)
		}
		_, err := c.limiter.Acquire(t.Context(), Call{Host: "registry", Client: "a"})
		wantRefusal(t, err, oci.TooManyRequests, 11*time.Second)
		// After a's first, b's: then they take turns. There is no room behind.
		c.send(6, Call{Client: "b"})
		if n := c.refusals("b"); n != 1 {
			t.Errorf("%d refused, want the sixth, whose turn would be the twelfth", n)
		}
		c.wg.Wait()
	})
}

// Sixty clients come at once for what takes two requests each, at one a second.
// Some have their answer from the first seconds on, at the rate; the others are
// told when to come again, each later than the one before, and have it then.
func TestACrowdIsServedAtTheRate(t *testing.T) {
	const clients = 60
	for _, burst := range []int{1, 2, 5} {
		onBothClocks(t, func(t *testing.T, create func(Limits) *Limiter) {
			t.Helper()
			l := create(Limits{Rate: 1, Burst: burst, Requests: 32, Wait: 10 * time.Second})
			start := time.Now()
			ask := func(since time.Time, call Call) error {
				call.Host, call.Since = "registry", since
				p, err := l.Acquire(t.Context(), call)
				if err != nil {
					return err
				}
				time.Sleep(50 * time.Millisecond)
				p.Release()
				return nil
			}
			type visit struct{ told, served time.Duration }
			visits := make([]visit, clients)
			var wg sync.WaitGroup
			for i := range clients {
				wg.Go(func() {
					for try := range 3 {
						since, client := time.Now(), fmt.Sprint(i)
						err := ask(since, Call{Client: client, What: client, Class: Check})
						if err == nil {
							err = ask(since, Call{Client: client, What: client, Class: Pull, Begun: true})
						}
						if took := time.Since(since); took > 13*time.Second {
							t.Errorf("client %d heard nothing for %v", i, took)
						}
						if err == nil {
							visits[i].served = time.Since(start)
							return
						}
						if oci.CodeOf(err) != oci.TooManyRequests || oci.RetryAfter(err) <= 0 || try > 0 {
							t.Errorf("client %d, visit %d: %v, retry after %v", i, try, err, oci.RetryAfter(err))
						}
						wait := oci.RetryAfter(err).Truncate(time.Second) + time.Second // as it is told
						visits[i].told = time.Since(start) + wait
						time.Sleep(wait)
					}
				})
				synctest.Wait()
			}
			wg.Wait()
			for s := time.Second; s < 2*clients*time.Second-10*time.Second; s += time.Second {
				n := 0
				for _, v := range visits {
					if v.served > 0 && v.served <= s+time.Second {
						n++
					}
				}
				if least := int(s / time.Second / 2 * 9 / 10); n < least {
					t.Errorf("burst %d: %d are served after %v, want %d", burst, n, s, least)
				}
			}
			slices.SortFunc(visits, func(a, b visit) int { return int(a.served - b.served) })
			last, told := time.Duration(0), map[time.Duration]int{}
			for i, v := range visits {
				if v.told == 0 {
					continue
				}
				if told[v.told]++; told[v.told] > 2 {
					t.Errorf("%d are told to come at %v", told[v.told], v.told)
				}
				if v.told < last {
					t.Errorf("burst %d: who was told %v has it before who was told %v, at %v", burst, last, v.told, v.served)
				}
				if late := v.served - v.told; late > 10*time.Second {
					t.Errorf("the %dth was told %v and has it at %v", i, v.told, v.served)
				}
				last = v.told
			}
		})
	}
}

// Who asks again before his time is told the same time, and who is new waits
// behind those whose time it is.
func TestAPromiseIsKept(t *testing.T) {
	onBothClocks(t, func(t *testing.T, create func(Limits) *Limiter) {
		t.Helper()
		l := create(Limits{Rate: 1, Burst: 1, Wait: 3200 * time.Millisecond})
		ask := func(client string) error {
			p, err := l.Acquire(t.Context(), Call{Host: "registry", Client: client, What: client})
			if err == nil {
				p.Release()
			}
			return err
		}
		var wg sync.WaitGroup
		for i := range 4 { // one goes at once, three wait
			wg.Go(func() {
				if err := ask(fmt.Sprint("early", i)); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		for i := range 10 {
			for range 3 {
				err := ask(fmt.Sprint(i))
				if told, want := oci.RetryAfter(err).Round(time.Millisecond), time.Duration(4+i)*time.Second; told != want {
					t.Errorf("client %d: %v, retry after %v, want %v", i, err, told, want)
				}
			}
		}
		for i := range 10 {
			wg.Go(func() {
				time.Sleep(time.Duration(4+i) * time.Second)
				if took, err := timed(func() error { return ask(fmt.Sprint(i)) }); err != nil || took > time.Second {
					t.Errorf("client %d, at its time: %v after %v", i, err, took)
				}
			})
		}
		time.Sleep(3500 * time.Millisecond)
		if err := ask("new"); oci.RetryAfter(err) < 10*time.Second {
			t.Errorf("who is new: %v, retry after %v; want a time after those of the others", err, oci.RetryAfter(err))
		}
		wg.Wait()
	})
}

// timed tells how long f took.
func timed(f func() error) (time.Duration, error) {
	start := time.Now()
	err := f()
	return time.Since(start), err
}

func TestBackgroundWaitsForAllOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Limits{Rate: -1, Requests: 1, Wait: 20 * time.Second}, time.Second)
		c.send(1, Call{Client: "first"})
		c.send(3, Call{Client: "warm", Background: true})
		for range 5 {
			c.send(1, Call{Client: "late"})
			time.Sleep(900 * time.Millisecond)
		}
		c.wg.Wait()
		if last := slices.Max(c.served["late"]); slices.Min(c.served["warm"]) < last {
			t.Errorf("background was served at %v, clients until %v", c.served["warm"], last)
		}
		if len(c.served["warm"]) != 3 {
			t.Errorf("background was served at %v, want all three", c.served["warm"])
		}
	})
}

// Whoever leaves the line leaves no trace in it, and nothing that was taken is
// lost.
func TestLinesSurviveWhoeverLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Limits{Rate: 50, Burst: 1, Requests: 2, Transfers: 2, Wait: 3 * time.Second})
		rng := rand.New(rand.NewPCG(1, 2))
		var wg sync.WaitGroup
		for i := range 2000 {
			call := Call{Host: "registry", Client: fmt.Sprint(i % 7), Background: i%5 == 0, Transfer: i%3 == 0}
			leave, hold := time.Duration(rng.Int64N(int64(5*time.Second))), time.Duration(rng.Int64N(int64(20*time.Millisecond)))
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), leave)
				defer cancel()
				p, err := l.Acquire(ctx, call)
				if err != nil {
					if oci.CodeOf(err) != oci.TooManyRequests && !errors.Is(err, context.DeadlineExceeded) {
						t.Error(err)
					}
					return
				}
				time.Sleep(hold)
				p.Release()
			})
			if i%20 == 0 {
				time.Sleep(100 * time.Millisecond)
			}
		}
		wg.Wait()
		time.Sleep(time.Second)
		h := l.hosts["registry"]
		if h.users != 0 {
			t.Errorf("%d users after all have left", h.users)
		}
		for name, g := range map[string]*gate{"turns": h.turns.gate, "requests": h.requests, "transfers": h.transfers} {
			for i := range g.lines {
				line := &g.lines[i]
				if line.n != 0 || line.ring.Len() != 0 || len(line.lanes) != 0 {
					t.Errorf("%s: %d waiting, %d lanes after all have left", name, line.n, len(line.lanes))
				}
			}
		}
		for range 2 {
			must(t, l, Call{Host: "registry", Transfer: true})
			time.Sleep(time.Second)
			must(t, l, Call{Host: "registry"})
			time.Sleep(time.Second)
		}
	})
}

// ahead tells the order in which a line is served.
func TestAheadIsTrue(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 500 {
		var l line
		tickets := map[*ticket]bool{}
		for range rng.IntN(30) {
			switch rng.IntN(4) {
			case 0:
				if l.n > 0 {
					l.pop()
				}
			case 1:
				for t := range tickets {
					if !t.served {
						l.remove(t)
					}
					delete(tickets, t)
					break
				}
			default:
				tk := &ticket{client: fmt.Sprint(rng.IntN(4)), cost: 1, turn: make(chan struct{})}
				l.push(tk)
				tickets[tk] = true
			}
		}
		client := fmt.Sprint(rng.IntN(5))
		want, before := l.ahead(client), 0
		mine := &ticket{client: client, cost: 1, turn: make(chan struct{})}
		l.push(mine)
		for l.pop(); !mine.served; l.pop() {
			before++
		}
		if before != want {
			t.Fatalf("ahead said %d, but %d went before", want, before)
		}
	}
}

func BenchmarkAcquire(b *testing.B) {
	l := New(Limits{Rate: -1})
	call := Call{Host: "registry", Class: Pull, Client: "192.0.2.1"}
	for b.Loop() {
		p, err := l.Acquire(b.Context(), call)
		if err != nil {
			b.Fatal(err)
		}
		p.Answered(200, nil, nil)
		p.Release()
	}
}

// A question of which a part was answered waits a little longer than a new one, and
// what nobody waits for longest.
func TestHowLongAQuestionWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Limits{Rate: 1, Burst: 1, Wait: 8 * time.Second})
		now := time.Now()
		for name, row := range map[string]struct {
			call Call
			want time.Duration
		}{
			"new":                {Call{}, 8 * time.Second},
			"since a while":      {Call{Since: now.Add(-3 * time.Second)}, 5 * time.Second},
			"begun":              {Call{Begun: true}, 10 * time.Second},
			"begun, for a while": {Call{Begun: true, Since: now.Add(-3 * time.Second)}, 7 * time.Second},
			"in the background":  {Call{Background: true, Begun: true}, backgroundPatience * 8 * time.Second},
		} {
			if got := l.deadline(row.call, now).Sub(now); got != row.want {
				t.Errorf("%s: it waits %v, want %v", name, got, row.want)
			}
		}
	})
}

// Where nobody is to wait, who is told to come again has all that his question takes then.
func TestWhoDoesNotWaitIsToldOnce(t *testing.T) {
	for _, rate := range []float64{1, 2, 20} {
		onBothClocks(t, func(t *testing.T, create func(Limits) *Limiter) {
			t.Helper()
			f := newFleet(t, create, Limits{Rate: rate, Burst: 2, Wait: time.Nanosecond}, 1)
			for i := range 10 { // one after the other
				f.ask(0, asked{client: fmt.Sprint(i), token: i%2 == 0})
				f.wg.Wait()
			}
			for _, a := range f.asked {
				if len(a.told) > 1 {
					t.Errorf("%s is told %v", a.what, a.told)
				}
			}
			f.wantRate()
		})
	}
}

package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/oci"
)

// TestABurstPassesAndThenItIsTheRate: who was quiet may send a pull's worth at
// once, and over time nobody has more than the rate.
func TestABurstPassesAndThenItIsTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewClients(ClientLimits{Rate: 10})
		start := time.Now()
		for range leastBurst {
			if err := c.Admit(t.Context(), "10.0.0.1", time.Now()); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("a burst took %v", took)
		}
		for range 30 {
			if err := c.Admit(t.Context(), "10.0.0.1", time.Now()); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("thirty more took %v, want 3 s at 10 per second", took)
		}
		if err := c.Admit(t.Context(), "10.0.0.2", time.Now()); err != nil || time.Since(start) != 3*time.Second {
			t.Errorf("another client waits for it: %v", err)
		}
		if s := c.Stats(); s.Waited != 30 || s.Refused != 0 || s.Known != 2 {
			t.Errorf("stats %+v", s)
		}
	})
}

// TestWhoHammersIsHeldAndTold: of many requests at once those wait that have
// their turn soon, the others are held for a moment and told when to come back,
// which is true.
func TestWhoHammersIsHeldAndTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewClients(ClientLimits{Rate: 10})
		var mu sync.Mutex // guards what follows
		passed, refused := 0, 0
		var told time.Duration
		begin := time.Now()
		var all sync.WaitGroup
		for range 1000 {
			all.Go(func() {
				err := c.Admit(t.Context(), "10.0.0.1", time.Now())
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					passed++
					return
				}
				refused++
				if oci.CodeOf(err) != oci.TooManyRequests || oci.RetryAfter(err) < time.Second || time.Since(begin) != refusalHold {
					t.Errorf("after %v: %v, retry after %v", time.Since(begin), err, oci.RetryAfter(err))
				}
				told = max(told, oci.RetryAfter(err))
			})
		}
		all.Wait()
		if want := leastBurst + int(rateWait.Seconds()*10); passed != want || refused != 1000-want {
			t.Errorf("%d passed and %d were refused, want %d to pass", passed, refused, want)
		}
		time.Sleep(told)
		before := time.Now()
		if err := c.Admit(t.Context(), "10.0.0.1", before); err != nil || !time.Now().Equal(before) {
			t.Errorf("after the %v that it was told: %v, and it waited %v", told, err, time.Since(before))
		}
	})
}

// TestWhoLeavesTakesNoTurn: a client that gives up does not push back the others.
func TestWhoLeavesTakesNoTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewClients(ClientLimits{Rate: 1})
		for range leastBurst {
			_ = c.Admit(t.Context(), "a", time.Now())
		}
		ctx, cancel := context.WithCancel(t.Context())
		var left sync.WaitGroup
		left.Go(func() {
			if err := c.Admit(ctx, "a", time.Now()); !errors.Is(err, context.Canceled) {
				t.Errorf("who left was told %v", err)
			}
		})
		synctest.Wait()
		cancel()
		left.Wait()
		begin := time.Now()
		if err := c.Admit(t.Context(), "a", time.Now()); err != nil || time.Since(begin) != time.Second {
			t.Errorf("the next waited %v, %v; want one second", time.Since(begin), err)
		}
	})
}

func TestTransfersWaitForAPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewClients(ClientLimits{Transfers: 2})
		first, err1 := c.Transfer(t.Context(), "a")
		second, err2 := c.Transfer(t.Context(), "a")
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		other, err := c.Transfer(t.Context(), "b")
		if err != nil {
			t.Fatal(err)
		}
		other()
		begin := time.Now()
		time.AfterFunc(3*time.Second, first)
		third, err := c.Transfer(t.Context(), "a")
		if err != nil || time.Since(begin) != 3*time.Second {
			t.Fatalf("waited %v, %v; want until a place was free", time.Since(begin), err)
		}
		begin = time.Now()
		if _, err := c.Transfer(t.Context(), "a"); oci.CodeOf(err) != oci.TooManyRequests || oci.RetryAfter(err) <= 0 || time.Since(begin) != transferWait {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if _, err := c.Transfer(ctx, "a"); !errors.Is(err, context.Canceled) {
			t.Errorf("who left was told %v", err)
		}
		second()
		third()
		if s := c.Stats(); s.TransfersWaited != 3 || s.TransfersRefused != 1 {
			t.Errorf("stats %+v", s)
		}
	})
}

// TestWaitingEndsBeforeTheAnswerIsDue: who has less time than others wait is told
// that it is our limit, and not that upstream is late.
func TestWaitingEndsBeforeTheAnswerIsDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewClients(ClientLimits{Rate: 0.5, Transfers: 1})
		for range leastBurst {
			_ = c.Admit(t.Context(), "a", time.Now())
		}
		end, err := c.Transfer(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		defer end()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.Admit(ctx, "a", time.Now()); oci.CodeOf(err) != oci.TooManyRequests || oci.RetryAfter(err) < time.Second || ctx.Err() != nil {
			t.Errorf("a request: %v, retry after %v", err, oci.RetryAfter(err))
		}
		if _, err := c.Transfer(ctx, "a"); oci.CodeOf(err) != oci.TooManyRequests || ctx.Err() != nil {
			t.Errorf("a transfer: %v", err)
		}
		if s := c.Stats(); s.Refused != 1 || s.TransfersRefused != 1 || s.Waited != 0 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestWhoIsOneClient(t *testing.T) {
	for _, row := range []struct {
		a, b string
		one  bool
	}{
		{"10.0.0.1", "10.0.0.1", true},
		{"10.0.0.1", "10.0.0.2", false},
		{"10.0.0.1", "::ffff:10.0.0.1", true},
		{"2001:db8:1:2::1", "2001:db8:1:2:ffff::9", true},
		{"2001:db8:1:2::1", "2001:db8:1:3::1", false},
		{"fe80::1%eth0", "fe80::2%eth1", true},
		{"alice", "alice", true},
		{"alice", "bob", false},
		{"system:serviceaccount:x", "system:serviceaccount:y", false},
		{"alice", "10.0.0.1", false},
	} {
		if got := keyOf(row.a) == keyOf(row.b); got != row.one {
			t.Errorf("%s and %s are one client: %v, want %v", row.a, row.b, got, row.one)
		}
	}
}

// TestTheTableOfClientsIsBounded, and who is active stays in it.
func TestTheTableOfClientsIsBounded(t *testing.T) {
	c := NewClients(ClientLimits{Rate: 0.001, Transfers: 1})
	if _, err := c.Transfer(t.Context(), "active"); err != nil {
		t.Fatal(err)
	}
	active := c.of("active")
	for i := range 5 * maxClients {
		if err := c.Admit(t.Context(), fmt.Sprint(i), time.Now()); err != nil {
			t.Fatal(err)
		}
		if i%1000 == 0 && c.of("active") != active {
			t.Fatalf("who is active was forgotten after %d others", i)
		}
	}
	if n := c.Stats().Known; n > 2*maxClients {
		t.Errorf("%d clients are remembered", n)
	}
}

func TestNoLimits(t *testing.T) {
	c := NewClients(ClientLimits{})
	if c != nil {
		t.Fatal("a table without limits")
	}
	end, err := c.Transfer(t.Context(), "a")
	if err := errors.Join(err, c.Admit(t.Context(), "a", time.Now())); err != nil {
		t.Error(err)
	}
	end()
	if s := c.Stats(); s != (ClientStats{}) {
		t.Errorf("stats %+v", s)
	}
}

// BenchmarkClients is what a limit costs a client that keeps to it.
func BenchmarkClients(b *testing.B) {
	for name, address := range map[string]string{"IPv4": "10.1.2.3", "IPv6": "2001:db8:1:2::1"} {
		for limit, c := range map[string]*Clients{"off": nil, "on": NewClients(ClientLimits{Rate: 1e9, Transfers: 10})} {
			b.Run(name+"/"+limit, func(b *testing.B) {
				b.ReportAllocs()
				ctx, now := context.Background(), time.Now()
				for b.Loop() {
					if err := c.Admit(ctx, address, now); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

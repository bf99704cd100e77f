package ledger

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A hit may cost no lock and no memory.
func TestServedAllocatesNothing(t *testing.T) {
	l := New()
	serve := func() { l.Served("docker.io", "library/alpine", "192.0.2.7", Held, 0, 1000) }
	serve()
	if n := testing.AllocsPerRun(100, serve); n > 0 {
		t.Errorf("an answer costs %v allocations", n)
	}
	l.mu.Lock() // held, as by Settle
	serve()
	l.mu.Unlock()
}

func BenchmarkServed(b *testing.B) {
	l := New()
	b.Run("one", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			l.Served("docker.io", "library/alpine", "192.0.2.7", Held, 0, 1000)
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				l.Served("docker.io", "library/alpine", "192.0.2.7", Held, 0, 1000)
			}
		})
	})
}

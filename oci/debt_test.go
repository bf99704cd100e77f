package oci

import (
	"sync"
	"sync/atomic"
	"testing"
)

// However many are served at once, and while bytes come: each that came is paid
// for once.
func TestWhatIsOwedIsPaidOnce(t *testing.T) {
	const readers, pieces, piece = 8, 1000, 100
	var d Debt
	var paid atomic.Int64
	var work sync.WaitGroup
	work.Go(func() {
		for range pieces {
			d.Owe(piece)
		}
	})
	for range readers {
		work.Go(func() {
			for range pieces {
				paid.Add(d.Pay(piece / 2))
			}
		})
	}
	work.Wait()
	paid.Add(d.Pay(pieces * piece))
	if got := paid.Load(); got != pieces*piece {
		t.Errorf("%d bytes came and %d were paid for", pieces*piece, got)
	}
	if n := d.Pay(1); n != 0 {
		t.Errorf("%d is paid where nothing is owed", n)
	}
	var none *Debt
	none.Owe(1)
	if n := none.Pay(1); n != 0 {
		t.Errorf("%d is paid of nothing", n)
	}
}

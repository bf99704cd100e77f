package upstream

import (
	"slices"
	"strings"
	"sync"
	"time"

	"entrepot/oci"
)

// Waiting is what an upstream was asked for clients and has not answered for leastWait.
type Waiting struct {
	Upstream  string
	Questions int       // one at least
	Since     time.Time // of the oldest
}

// leastWait is how long a question goes unanswered before it is worth a word: many are
// on their way at any moment.
const leastWait = time.Second

// waits are the questions that are not answered yet. The zero value has none.
type waits struct {
	mu    sync.Mutex // guards asked
	asked map[*wait]struct{}
}

type wait struct {
	upstream string
	since    time.Time
}

// begin notes a question, until end is called. What nobody waits for is none.
func (w *waits) begin(upstream string, ask oci.Ask) (end func()) {
	if ask.Background {
		return func() {}
	}
	one := &wait{upstream, time.Now()}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.asked == nil {
		w.asked = map[*wait]struct{}{}
	}
	w.asked[one] = struct{}{}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.asked, one)
	}
}

func (w *waits) list() (all []Waiting) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	for one := range w.asked {
		if now.Sub(one.since) < leastWait {
			continue
		}
		i, found := slices.BinarySearchFunc(all, one.upstream, func(a Waiting, name string) int { return strings.Compare(a.Upstream, name) })
		if !found {
			all = slices.Insert(all, i, Waiting{one.upstream, 0, one.since})
		}
		all[i].Questions++
		if one.since.Before(all[i].Since) {
			all[i].Since = one.since
		}
	}
	return all
}

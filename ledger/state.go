package ledger

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// The ledger as it is kept across restarts: JSON, of this version. It is advice:
// what cannot be understood is left behind.

const stateVersion = 1

// MaxState bounds what Save writes and Load reads.
const MaxState = 16 << 20

// The bounds of what Load believes. No sum of a day comes near them, and all of
// them together overflow nothing.
const (
	maxSum  = 1 << 56
	maxRank = 1e30
	maxName = 512
)

type ledgerState struct {
	Version int         `json:"version"`
	Hours   []hourState `json:"hours"`
}

type hourState struct {
	Hour  int64       `json:"hour"` // since 1970
	Books []bookState `json:"books"`
}

type bookState struct {
	Total Sum        `json:"total"`
	Rows  []rowState `json:"rows,omitempty"`
}

type rowState struct {
	Upstream string  `json:"upstream"`
	Name     string  `json:"name,omitempty"`
	Rank     float64 `json:"rank,omitempty"`
	Sum
}

// Save gives the state to keep; changed is false if it is what it was at the
// last time.
func (l *Ledger) Save() (state []byte, changed bool) {
	l.Settle()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.changed {
		return nil, false
	}
	l.changed = false
	s := ledgerState{Version: stateVersion}
	last := hourOf(time.Now())
	for i := range l.hours {
		h := &l.hours[i]
		if h.books[0].rows == nil || h.number <= last-Hours {
			continue
		}
		kept := hourState{Hour: h.number}
		for side := range h.books {
			kept.Books = append(kept.Books, h.books[side].state())
		}
		s.Hours = append(s.Hours, kept)
	}
	state, err := json.Marshal(s)
	return state, err == nil
}

func (b *book) state() bookState {
	s := bookState{Total: b.total}
	for _, r := range b.ranks { // in the order of the heap
		s.Rows = append(s.Rows, rowState{r.key.Upstream, r.key.Name, r.rank, r.sum})
	}
	return s
}

// Load takes over what another Ledger saved, into one that is still empty. With
// an error nothing is taken over.
func (l *Ledger) Load(state []byte) error {
	var s ledgerState
	if err := json.Unmarshal(state, &s); err != nil {
		return err
	}
	if s.Version != stateVersion {
		return fmt.Errorf("it is of version %d, and not %d", s.Version, stateVersion)
	}
	var hours [Hours]hour
	for _, kept := range s.Hours {
		h, err := kept.read()
		if err != nil {
			return fmt.Errorf("hour %d: %w", kept.Hour, err)
		}
		place := &hours[slot(kept.Hour)]
		if place.books[0].rows == nil || place.number < h.number {
			*place = h
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hours = hours
	return nil
}

func (s *hourState) read() (hour, error) {
	if len(s.Books) != sides {
		return hour{}, fmt.Errorf("it has %d books, and not %d", len(s.Books), sides)
	}
	h := newHour(s.Hour)
	for side := range s.Books {
		if err := h.books[side].read(&s.Books[side]); err != nil {
			return hour{}, err
		}
	}
	return h, h.agree()
}

// agree checks that the books tell one story: each posting is in all of them.
func (h *hour) agree() error {
	total := h.books[byUpstream].total
	for side := range h.books {
		want := total
		if side == byAccount {
			want = Sum{Pulls: total.Pulls, Heads: total.Heads, Calls: total.Calls, Fetched: total.Fetched}
		}
		if h.books[side].total != want {
			return errors.New("the total of one book is not that of another")
		}
	}
	return nil
}

// read fills an empty book. That the rows are no more than the total is what all
// sums rest on.
func (b *book) read(s *bookState) error {
	if len(s.Rows) > b.most {
		return fmt.Errorf("it has %d rows, and room for %d", len(s.Rows), b.most)
	}
	var rows Sum
	for _, kept := range s.Rows {
		k := Key{kept.Upstream, kept.Name}
		switch {
		case len(k.Upstream) > maxName || len(k.Name) > maxName:
			return errors.New("a name is too long")
		case kept.Rank < 0 || kept.Rank > maxRank || !kept.isPossible():
			return fmt.Errorf("%.40q has an impossible sum", k.Name)
		}
		b.post(k, kept.Sum)
		b.rows[k].rank = max(kept.Rank, b.rows[k].rank)
		rows.add(kept.Sum)
	}
	left := s.Total
	left.take(rows)
	if !s.Total.isPossible() || !left.isPossible() {
		return errors.New("the total is not that of its rows")
	}
	b.total = s.Total
	b.ranks.order()
	return nil
}

// isPossible reports that no column is below zero, or larger than could be.
func (s *Sum) isPossible() bool {
	for _, n := range s.columns() {
		if *n < 0 || *n > maxSum {
			return false
		}
	}
	return true
}

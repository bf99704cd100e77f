package ledger

import (
	"container/heap"
	"strings"
)

// Key names one line: an account, a repository or a client of an upstream.
type Key struct{ Upstream, Name string }

func (k Key) clone() Key { return Key{strings.Clone(k.Upstream), strings.Clone(k.Name)} }

func (k Key) compare(o Key) int {
	if c := strings.Compare(k.Upstream, o.Upstream); c != 0 {
		return c
	}
	return strings.Compare(k.Name, o.Name)
}

// book has a row for each name, as long as there is room. Then a name that is new
// takes the place of the one with the lowest rank, and inherits that rank (Space
// Saving: Metwally, Agrawal and El Abbadi, "Efficient computation of frequent and
// top-k elements in data streams", 2005). A rank is therefore never less than
// what its name weighs, all ranks add up to what was posted, and so a name that
// weighs more than 1/most of that always has a row. What a row lacks, since its
// name came and went before, weighs no more than that either. What left with a
// row is in total alone: others'.
type book struct {
	most  int
	rows  map[Key]*row
	ranks ranks
	total Sum
}

type row struct {
	key   Key
	sum   Sum
	rank  float64
	place int // in ranks
}

func newBook(most int) book { return book{most: most, rows: map[Key]*row{}} }

func (b *book) post(k Key, s Sum) {
	if len(k.Name) > maxName {
		k.Name = strings.ToValidUTF8(k.Name[:maxName], "") // without half a character at its end
	}
	b.total.add(s)
	r := b.rows[k]
	switch {
	case r != nil:
	case len(b.ranks) < b.most:
		r = &row{key: k.clone()}
		heap.Push(&b.ranks, r)
		b.rows[r.key] = r
	default:
		r = b.ranks[0]
		delete(b.rows, r.key)
		r.key, r.sum = k.clone(), Sum{}
		b.rows[r.key] = r
	}
	r.sum.add(s)
	r.rank += s.weight()
	heap.Fix(&b.ranks, r.place)
}

// addTo adds the rows to sums.
func (b *book) addTo(sums map[Key]*Sum) {
	for k, r := range b.rows {
		s := sums[k]
		if s == nil {
			s = new(Sum)
			sums[k] = s
		}
		s.add(r.sum)
	}
}

// ranks is a heap with the lowest rank first.
type ranks []*row

func (h ranks) Len() int           { return len(h) }
func (h ranks) Less(i, j int) bool { return h[i].rank < h[j].rank }

func (h ranks) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}

func (h *ranks) Push(x any) {
	r := x.(*row)
	r.place = len(*h)
	*h = append(*h, r)
}

// order makes a heap of rows whose ranks were set.
func (h *ranks) order() { heap.Init(h) }

// Pop is what heap.Interface asks for: rows are replaced, and never taken out.
func (h *ranks) Pop() any {
	last := len(*h) - 1
	r := (*h)[last]
	*h = (*h)[:last]
	return r
}

package oci

import "sync/atomic"

// Debt is how many bytes of a blob have come from upstream for clients without
// having been served to one yet. Who is served next pays for them, whoever had
// them fetched: so each byte that comes is charged once, and what is served
// beyond that was saved. A nil Debt is of nothing. Its methods are safe for
// concurrent use.
type Debt struct{ bytes atomic.Int64 }

// Owe adds n bytes that have come. It is called before anybody can be served them.
func (d *Debt) Owe(n int64) {
	if d != nil && n > 0 {
		d.bytes.Add(n)
	}
}

// Pay takes off up to n bytes that were served, and returns how many.
func (d *Debt) Pay(n int64) int64 {
	if d == nil {
		return 0
	}
	for {
		owed := d.bytes.Load()
		n = min(n, owed)
		if n <= 0 {
			return 0
		}
		if d.bytes.CompareAndSwap(owed, owed-n) {
			return n
		}
	}
}

package cache

import (
	"sync/atomic"

	"entrepot/oci"
)

// debts are those of the blobs that were fetched lately, each at a place that its
// digest gives. Where another's is there that one is forgotten, and what it was for
// counts as saved when it is served: rarely, since few wait for their first reader
// at a time. A hit looks here, so there is no lock.
type debts [4 << 10]atomic.Pointer[debt]

type debt struct {
	digest oci.Digest
	oci.Debt
}

// of finds the debt of a blob; nil if there is none.
func (ds *debts) of(d oci.Digest) *oci.Debt {
	if at := ds.place(d).Load(); at != nil && at.digest == d {
		return &at.Debt
	}
	return nil
}

// open is of, for who fetches a blob.
func (ds *debts) open(d oci.Digest) *oci.Debt {
	made := &debt{digest: d}
	for {
		at := ds.place(d).Load()
		if at != nil && at.digest == d {
			return &at.Debt
		}
		if ds.place(d).CompareAndSwap(at, made) {
			return &made.Debt
		}
	}
}

func (ds *debts) place(d oci.Digest) *atomic.Pointer[debt] {
	n := 0
	for _, digit := range []byte(d.Hex()[:3]) { // of four bits each
		n = n<<4 | int(digit&0xf+digit>>6*9)
	}
	return &ds[n]
}

// debtOf is the debt of a blob that is fetched as ask says; nil if that is for
// nobody: what is here long before it is asked for was saved to whoever asks.
func (c *Cache) debtOf(d oci.Digest, ask oci.Ask) *oci.Debt {
	if ask.Background {
		return nil
	}
	return c.debts.open(d)
}

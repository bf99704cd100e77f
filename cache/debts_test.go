package cache

import (
	"strings"
	"testing"

	"entrepot/oci"
)

// Every digest has a place, and where two meet the one before is forgotten.
func TestDebtsAreBounded(t *testing.T) {
	digest := func(hex string) oci.Digest {
		d, err := oci.ParseDigest("sha256:" + hex + strings.Repeat("0", 64-len(hex)))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	var ds debts
	places := map[any]bool{}
	const digits = "0123456789abcdef"
	for i := range ds {
		d := digest(string([]byte{digits[i>>8], digits[i>>4&0xf], digits[i&0xf]}))
		places[ds.place(d)] = true
		ds.open(d).Owe(int64(i))
	}
	if len(places) != len(ds) {
		t.Errorf("%d places are used of %d", len(places), len(ds))
	}
	first, second := digest("fff"), digest("ffff")
	late := ds.open(first) // as a fill keeps it
	if n := late.Pay(10_000); n != int64(len(ds)-1) || ds.of(second) != nil {
		t.Errorf("%d were owed, and %v of what never came", n, ds.of(second))
	}
	ds.open(second)
	if ds.of(first) != nil || ds.open(second) != ds.of(second) {
		t.Error("one place has two debts")
	}
}

// BenchmarkDebtOfAHit is what looking for a debt costs each hit: there is no lock for this.
func BenchmarkDebtOfAHit(b *testing.B) {
	var ds debts
	d := oci.Sum([]byte("x"))
	ds.open(d)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if ds.of(d).Pay(1) != 0 {
				b.Error("nothing is owed")
			}
		}
	})
}

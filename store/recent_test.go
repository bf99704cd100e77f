package store

import (
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/oci"
)

// TestRecent: whatever is put and forgotten in whatever order, what is found is
// what was put last, and no more is kept than may be.
func TestRecent(t *testing.T) {
	for name, hash := range map[string]func(maphash.Seed, string) uint64{
		"spread":       maphash.String,
		"in one place": func(maphash.Seed, string) uint64 { return 7 },
	} {
		t.Run(name, func(t *testing.T) {
			const most = 64
			r := newRecent[string, int](most, time.Hour, hash)
			last, random := map[string]int{}, rand.New(rand.NewPCG(1, 2))
			for i := range 2_000 {
				key := fmt.Sprint("key", random.IntN(2*most))
				if random.IntN(4) == 0 {
					r.forget(key)
					delete(last, key)
				} else {
					r.put(key, i)
					last[key] = i
					if got, ok := r.get(key); !ok || got != i {
						t.Fatalf("%s was put and is not there: %d, %v", key, got, ok)
					}
				}
				found := 0
				for n := range 2 * most {
					key := fmt.Sprint("key", n)
					got, ok := r.get(key)
					if ok {
						found++
					}
					if want, put := last[key]; ok && (!put || got != want) {
						t.Fatalf("%s: %d, want %d, which was put: %v", key, got, want, put)
					}
				}
				if found != r.held || found > most {
					t.Fatalf("%d are found, %d said to be held, of at most %d", found, r.held, most)
				}
			}
		})
	}
}

// TestRecentIsBelievedForAWhile alone.
func TestRecentIsBelievedForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRecent[string, int](8, recheck, maphash.String)
		r.put("a", 1)
		time.Sleep(recheck)
		for _, want := range []bool{true, false} {
			_, got := r.get("a")
			if found, ok := find(r, []byte("a")); got != want || ok != want || found != 1 {
				t.Errorf("by get %v, by find %v, want %v", got, ok, want)
			}
			time.Sleep(time.Nanosecond)
		}
		r.put("a", 2)
		if got, ok := r.get("a"); !ok || got != 2 {
			t.Errorf("put again: %d, %v", got, ok)
		}
	})
}

// TestRecentBesideWriters: who looks while others write finds what was put by that
// key, or nothing.
func TestRecentBesideWriters(t *testing.T) {
	r := newRecent[string, string](16, time.Hour, maphash.String)
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			random := rand.New(rand.NewPCG(3, uint64(n)))
			for range 5_000 {
				key := fmt.Sprint("key", random.IntN(32))
				switch random.IntN(4) {
				case 0:
					r.put(key, key)
				case 1:
					r.forget(key)
				default:
					if got, ok := find(r, []byte(key)); ok && got != key {
						t.Errorf("%s is %s", key, got)
					}
				}
			}
		})
	}
	all.Wait()
}

// TestRecordsAreFoundWithoutALock: whoever writes one, or a thousand readers, hold
// up no hit.
func TestRecordsAreFoundWithoutALock(t *testing.T) {
	d := openBench(t, t.TempDir(), Config{})
	repo, dg := oci.Repository{Host: oci.DockerHub, Path: "library/app"}, oci.Sum([]byte("x"))
	if err := d.PutTag(repo, "latest", Tag{Digest: dg, Size: 1}); err != nil {
		t.Fatal(err)
	}
	if err := d.Mark(repo, dg, Marker{Size: 1, State: Proven}); err != nil {
		t.Fatal(err)
	}
	d.tags.mu.Lock()
	defer d.tags.mu.Unlock()
	d.markers.mu.Lock()
	defer d.markers.mu.Unlock()
	found := make(chan error, 2)
	go func() {
		_, err := d.Tag(repo, "latest")
		found <- err
		_, err = d.Marker(repo, dg)
		found <- err
	}()
	for range cap(found) {
		select {
		case err := <-found:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("a look waits for a lock")
		}
	}
}

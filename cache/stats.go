package cache

import (
	"cmp"
	"slices"
	"time"

	"entrepot/oci"
)

// Stats is what the cache is doing.
type Stats struct {
	Fills   int    // running now
	Readers int    // of them, now
	Joined  uint64 // readers so far that found a fill running
}

// Stats reports on the fills.
func (c *Cache) Stats() Stats {
	s := Stats{Joined: c.joined.Load()}
	for _, p := range c.Fills() {
		s.Fills++
		s.Readers += p.Readers
	}
	return s
}

// Progress is how far a running fill is.
type Progress struct {
	Digest     oci.Digest
	Repository oci.Repository // from which it comes
	Client     string         // who began it; empty: this program
	From       string         // the host that its last stream was asked of; empty while none answered
	Began      time.Time
	Came       time.Time // when bytes came last; zero if none has yet
	Size       int64     // -1 while unknown
	Landed     int64
	Had        int64 // of Landed, what an earlier fill had left
	Readers    int
	Streams    int
}

// Fills lists the fills that run, the oldest first.
func (c *Cache) Fills() []Progress {
	c.fills.mu.Lock()
	running := make([]*fill, 0, len(c.fills.running))
	for _, f := range c.fills.running {
		running = append(running, f)
	}
	c.fills.mu.Unlock()
	all := make([]Progress, len(running))
	for i, f := range running {
		all[i] = f.howFar()
	}
	slices.SortFunc(all, func(a, b Progress) int {
		return cmp.Or(a.Began.Compare(b.Began), cmp.Compare(a.Digest.String(), b.Digest.String()))
	})
	return all
}

func (f *fill) howFar() Progress {
	f.mu.Lock()
	p := Progress{
		Digest: f.digest, Repository: f.origin, Client: f.ask.Client, From: f.from, Began: f.began,
		Size: f.hint, Readers: len(f.readers), Streams: len(f.streams),
	}
	f.mu.Unlock()
	select {
	case <-f.ready:
	default:
		return p
	}
	if f.file != nil {
		p.Had, p.Landed, p.Came = f.had, f.file.Landed(), f.file.Came()
		if n := f.file.Size(); n >= 0 {
			p.Size = n
		}
	}
	return p
}

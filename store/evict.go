package store

import (
	"cmp"
	"container/heap"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"entrepot/oci"
)

// dispensable says how little is lost by evicting content: the more, the sooner
// it goes. Age is what LRU looks at; the power of the size keeps many small blobs
// rather than one large one without giving up bytes; uses again after a pause are
// what a scan does not have. What is as small as a manifest is spared: it frees
// next to nothing, and to fetch it again is a pull that registries count. Chosen
// by simulation: docs/decisions/0001-eviction.md.
func dispensable(age time.Duration, bytes int64, uses uint8) float64 {
	u := float64(max(1, uses))
	score := (max(0, age.Seconds()) + 60) * math.Pow(float64(bytes+blockSize), 0.3) / (u * u)
	if bytes <= smallContent {
		score /= sparing
	}
	return score
}

// smallContent is what nearly all manifests and configs stay below, in allocated
// blocks, and sparing is by how much longer it may lie unused than the rest.
const (
	smallContent = 32 << 10
	sparing      = 1000
)

// candidate is content that may be evicted.
type candidate struct {
	entry
	digest oci.Digest
	fill   bool // an idle fill, not a blob
	score  float64
	over   bool // its upstream holds more than its share
}

// maxCandidates bounds what one walk brings: about 10 MB.
const maxCandidates = 32 << 10

// aims are what a walk for candidates should bring.
type aims struct {
	bytes int64           // in all; more would be useless
	count int             // at most
	over  map[owner]int64 // bytes that come first, from upstreams above their share
}

// pile keeps the most dispensable candidates that add up to what is needed. It
// is a heap with the least dispensable on top, which falls off when the others
// suffice.
type pile struct {
	need  int64
	most  int
	total int64
	items []candidate
	spill func(candidate) // told of what is not kept; may be nil
}

func (p *pile) Len() int           { return len(p.items) }
func (p *pile) Less(i, j int) bool { return p.items[i].score < p.items[j].score }
func (p *pile) Swap(i, j int)      { p.items[i], p.items[j] = p.items[j], p.items[i] }
func (p *pile) Push(c any)         { p.items = append(p.items, c.(candidate)) }
func (p *pile) Pop() any {
	last := len(p.items) - 1
	c := p.items[last]
	p.items[last] = candidate{}
	p.items = p.items[:last]
	return c
}

// wants reports whether a candidate of this score would be kept.
func (p *pile) wants(score float64) bool {
	return p.need > 0 && (p.total < p.need && len(p.items) < p.most || len(p.items) > 0 && score > p.items[0].score)
}

func (p *pile) add(c candidate) {
	if !p.wants(c.score) {
		p.spilled(c)
		return
	}
	heap.Push(p, c)
	p.total += c.blocks
	for len(p.items) > p.most || p.total-p.items[0].blocks >= p.need {
		top := heap.Pop(p).(candidate)
		p.total -= top.blocks
		p.spilled(top)
	}
}

func (p *pile) spilled(c candidate) {
	if p.spill != nil {
		c.over = false
		p.spill(c)
	}
}

// sorted is the pile in the order in which it should go.
func (p *pile) sorted() []candidate {
	slices.SortFunc(p.items, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(b.score, a.score), strings.Compare(a.name, b.name))
	})
	return p.items
}

// candidates walks the data directory, which corrects the account, and returns
// what may be evicted, in the order in which it should go. also, if not nil, is
// told of each file.
func (d *Disk) candidates(ctx context.Context, aim aims, also func(entry)) ([]candidate, error) {
	if err := d.findPinned(ctx); err != nil {
		return nil, err // whoever cannot tell what is pinned must not evict
	}
	now := time.Now()
	rest := &pile{need: aim.bytes, most: aim.count}
	over := make(map[owner]*pile)
	for o, n := range aim.over {
		over[o] = &pile{need: n, most: aim.count, spill: rest.add}
	}
	err := d.count(ctx, func(e entry) {
		if also != nil {
			also(e)
		}
		h := hintOf(e.when)
		c := candidate{entry: e, fill: strings.HasPrefix(e.dir, fillsDir+"/")}
		base := blobsDir
		if c.fill {
			base = fillsDir
		} else if !strings.HasPrefix(e.dir, blobsDir+"/") {
			return
		}
		c.score = dispensable(now.Sub(e.when), e.blocks, h.uses)
		to := rest
		if p := over[h.owner]; p != nil {
			to, c.over = p, true
		}
		if d.away.owns(h.owner) || !to.wants(c.score) && !rest.wants(c.score) {
			return
		}
		var ok bool
		if c.digest, ok = digestAt(base, e); ok && !d.inUse.held(c.digest) && !d.isPinned(c.digest) {
			to.add(c)
		}
	})
	if err != nil {
		return nil, err
	}
	var found []candidate
	for _, o := range slices.Sorted(maps.Keys(over)) {
		found = append(found, over[o].sorted()...)
	}
	return append(found, rest.sorted()...), nil
}

// digestAt is the digest that a file below base is named after.
func digestAt(base string, e entry) (oci.Digest, bool) {
	rest, ok := strings.CutPrefix(e.dir, base+"/")
	if !ok {
		return oci.Digest{}, false
	}
	algorithm, _, _ := strings.Cut(rest, "/")
	dg, err := oci.ParseDigest(algorithm + ":" + e.name)
	if err != nil {
		return oci.Digest{}, false
	}
	at := fillName(dg)
	if base == blobsDir {
		at = blobName(dg)
	}
	return dg, at == e.path()
}

// evictAll evicts candidates until need bytes are free, never more than most,
// and returns how many are.
func (d *Disk) evictAll(ctx context.Context, found []candidate, need, most int64) (freed int64) {
	for _, c := range found {
		if freed >= need || ctx.Err() != nil {
			break
		}
		if c.blocks <= most-freed {
			n, _ := d.evict(c) // whoever needs the room is told that there is none
			freed += n
		}
	}
	return freed
}

// evict removes a candidate, unless somebody has it open, pinned it, or used it
// since it was looked at. Membership markers stay: they cost little and let the content come
// back under the same rights.
func (d *Disk) evict(c candidate) (freed int64, err error) {
	if !d.inUse.claim(c.digest) {
		return 0, nil
	}
	defer d.inUse.unclaim(c.digest)
	if !d.isFree(c) {
		return 0, nil
	}
	if c.fill {
		d.dropSpans(c.digest)
	} else {
		d.forgetContent(c.digest)
	}
	freed, err = d.remove(c.path())
	if err != nil {
		return 0, present(err)
	}
	if !c.fill {
		d.account.own(hintOf(c.when).owner, -freed)
	}
	d.evicted.Add(1)
	d.evictedBytes.Add(freed)
	return freed, nil
}

// present is an error about a file that is there; nil if it is that there is none.
func present(err error) error {
	if isGone(err) {
		return nil
	}
	return err
}

// isEvictable reports whether evict would remove a candidate now.
func (d *Disk) isEvictable(c candidate) bool {
	if !d.inUse.claim(c.digest) {
		return false
	}
	defer d.inUse.unclaim(c.digest)
	return d.isFree(c)
}

// isFree reports that nothing has come between a candidate and its end. The claim
// is held, which Pin waits for.
func (d *Disk) isFree(c candidate) bool {
	if d.isPinned(c.digest) || d.away.owns(hintOf(c.when).owner) {
		return false
	}
	info, err := d.root.Lstat(c.path())
	return err == nil && info.ModTime().Equal(c.when)
}

// Victim is content that would be evicted soon.
type Victim struct {
	Digest       oci.Digest
	Fill         bool // the spans of a fill that was not finished
	Bytes        int64
	LastUse      time.Time
	Uses         int      // again after a pause, older ones counting for less; 0 if unknown
	Upstream     string   // that filled it; empty if unknown
	Repositories []string // some of those that have it
	Why          string
}

// maxNamedRepositories bounds how many repositories a victim names.
const maxNamedRepositories = 3

// DryRun names the n things that eviction would take next, in order, and why. It
// walks the data directory and evicts nothing.
func (d *Disk) DryRun(ctx context.Context, n int) ([]Victim, error) {
	if n <= 0 {
		return nil, nil
	}
	aim := d.account.aims(math.MaxInt64)
	aim.count = min(n, maxCandidates)
	found, err := d.candidates(ctx, aim, nil)
	if err != nil {
		return nil, err
	}
	found = found[:min(n, len(found))]
	repos, _, err := d.Repositories("", -1)
	if err != nil {
		return nil, err
	}
	names := d.upstreamNames()
	victims := make([]Victim, len(found))
	for i, c := range found {
		victims[i] = d.victim(c, names, repos)
	}
	return victims, ctx.Err()
}

func (d *Disk) victim(c candidate, names map[owner]string, repos []string) Victim {
	h := hintOf(c.when)
	v := Victim{
		Digest: c.digest, Fill: c.fill, Bytes: c.blocks, LastUse: c.when.Truncate(time.Second),
		Uses: int(h.uses), Upstream: names[h.owner],
	}
	for _, name := range repos {
		if len(v.Repositories) == maxNamedRepositories {
			break
		}
		repo, err := oci.ParseRepository(name)
		if err != nil {
			continue
		}
		if _, err := d.root.Lstat(markerName(repo, c.digest)); err == nil {
			v.Repositories = append(v.Repositories, name)
		}
	}
	age := time.Since(c.when).Truncate(time.Minute)
	switch {
	case c.over:
		v.Why = fmt.Sprintf("%s holds more than its share; last used %v ago", v.Upstream, age)
	case c.fill:
		v.Why = fmt.Sprintf("not finished, and nothing came for %v", age)
	case h.uses > 1:
		v.Why = fmt.Sprintf("last used %v ago, weighed by its size and %d uses", age, h.uses)
	default:
		v.Why = fmt.Sprintf("last used %v ago, weighed by its size", age)
	}
	return v
}

// upstreamNames are the upstreams that we know by name.
func (d *Disk) upstreamNames() map[owner]string {
	names := maps.Clone(d.account.sharing)
	entries, _ := d.readDir(reposDir)
	for _, e := range entries {
		if e.IsDir() {
			names[ownerOf(e.Name())] = e.Name()
		}
	}
	return names
}

package store

import (
	"cmp"
	"container/list"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// This file is the evidence for docs/decisions/0001-eviction.md: it replays
// traces against eviction policies. The table there is printed by
//
//	go test ./store -run TestPolicies -policies -v
var fullPolicies = flag.Bool("policies", false, "replay the long traces against every policy and print the table")

// request asks for an object at a time.
type request struct {
	object int32
	at     time.Duration
}

type trace struct {
	name     string
	sizes    []int64
	requests []request
	unique   int64 // bytes of all objects that are asked for
}

// layerSize follows what crawls and traces found: 65 % of layers are below 1 MB,
// 80 % below 10 MB, and a few have gigabytes.
func layerSize(rng *rand.Rand) int64 {
	between := func(low, high float64) int64 {
		return int64(low * math.Pow(high/low, rng.Float64()))
	}
	switch x := rng.Float64(); {
	case x < 0.65:
		return between(200, 1e6)
	case x < 0.80:
		return between(1e6, 1e7)
	case x < 0.997:
		return between(1e7, 5e8)
	}
	return between(5e8, 5e9)
}

// zipf draws ranks by popularity.
type zipf []float64

func newZipf(n int, s float64) zipf {
	z := make(zipf, n)
	sum := 0.0
	for i := range z {
		sum += math.Pow(float64(i+1), -s)
		z[i] = sum
	}
	return z
}

func (z zipf) draw(rng *rand.Rand) int {
	i, _ := slices.BinarySearch(z, rng.Float64()*z[len(z)-1])
	return i
}

const month = 30 * 24 * time.Hour

func (tr *trace) object(size int64) int32 {
	tr.sizes = append(tr.sizes, size)
	return int32(len(tr.sizes) - 1)
}

func (tr *trace) finish() *trace {
	slices.SortStableFunc(tr.requests, func(a, b request) int { return cmp.Compare(a.at, b.at) })
	seen := make([]bool, len(tr.sizes))
	for _, r := range tr.requests {
		if !seen[r.object] {
			seen[r.object] = true
			tr.unique += tr.sizes[r.object]
		}
	}
	return tr
}

// zipfTrace asks for layers that have nothing to do with each other.
func zipfTrace(rng *rand.Rand, objects, requests int, s float64) *trace {
	tr := &trace{name: fmt.Sprintf("Zipf %.1f", s)}
	for range objects {
		tr.object(layerSize(rng))
	}
	z, rank, at := newZipf(objects, s), rng.Perm(objects), time.Duration(0)
	for range requests {
		at += time.Duration(rng.ExpFloat64() * float64(month) / float64(requests))
		tr.requests = append(tr.requests, request{int32(rank[z.draw(rng)]), at})
	}
	return tr.finish()
}

// fleet is a month of a fleet that pulls images: repositories of Zipf
// popularity get new versions now and then, which share layers with the version
// before and a base with others; nodes have some layers already. With scans,
// every seventh pull is of an image that CI built and pulls once or twice, and
// every other night something pulls everything.
type fleet struct {
	*trace
	rng      *rand.Rand
	bases    [][]int32
	basePick zipf
	repos    []fleetRepo
}

type fleetRepo struct {
	versions []fleetImage
	period   time.Duration
	next     time.Duration
}

type fleetImage struct{ meta, base, own []int32 }

func fleetTrace(rng *rand.Rand, repos, pulls int, scans bool) *trace {
	f := &fleet{trace: &trace{name: "fleet"}, rng: rng, bases: make([][]int32, repos/8+1), repos: make([]fleetRepo, repos)}
	for i := range f.bases {
		for range 1 + rng.IntN(4) {
			f.bases[i] = append(f.bases[i], f.object(layerSize(rng)))
		}
	}
	f.basePick = newZipf(len(f.bases), 1)
	for i := range f.repos {
		period := time.Duration(float64(24*time.Hour) * math.Pow(60, rng.Float64()))
		f.repos[i] = fleetRepo{[]fleetImage{f.image()}, period, time.Duration(rng.Int64N(int64(period)))}
	}
	pick, version, at, night := newZipf(repos, 0.9), newZipf(30, 1.5), time.Duration(0), 0
	for range pulls {
		at += time.Duration(rng.ExpFloat64() * float64(month) / float64(pulls))
		r := &f.repos[pick.draw(rng)]
		f.publish(r, at)
		f.pull(r.versions[max(0, len(r.versions)-1-version.draw(rng))], at, 0.3, 0.8)
		if scans {
			night = f.scan(at, night)
		}
	}
	if scans {
		f.name = "fleet with scans"
	}
	return f.finish()
}

func (f *fleet) image() fleetImage {
	im := fleetImage{base: f.bases[f.basePick.draw(f.rng)], meta: f.metadata()}
	for range 2 + f.rng.IntN(8) {
		im.own = append(im.own, f.object(layerSize(f.rng)))
	}
	return im
}

// metadata is a manifest and a config.
func (f *fleet) metadata() []int32 {
	return []int32{f.object(1000 + f.rng.Int64N(5000)), f.object(2000 + f.rng.Int64N(15000))}
}

func (f *fleet) publish(r *fleetRepo, now time.Duration) {
	for ; now > r.next; r.next += time.Duration(float64(r.period) * (0.5 + f.rng.Float64())) {
		last := r.versions[len(r.versions)-1]
		im := fleetImage{base: last.base, meta: f.metadata()}
		for _, layer := range last.own {
			if f.rng.IntN(2) == 0 {
				layer = f.object(int64(float64(f.sizes[layer]) * (0.8 + 0.4*f.rng.Float64())))
			}
			im.own = append(im.own, layer)
		}
		r.versions = append(r.versions, im)
	}
}

func (f *fleet) pull(im fleetImage, at time.Duration, base, own float64) {
	ask := func(objects []int32, chance float64) {
		for _, o := range objects {
			if f.rng.Float64() < chance {
				f.requests = append(f.requests, request{o, at})
			}
		}
	}
	ask(im.meta, 1)
	ask(im.base, base)
	ask(im.own, own)
}

func (f *fleet) scan(at time.Duration, night int) int {
	if f.rng.IntN(7) == 0 {
		im := f.image()
		f.pull(im, at, 0.3, 1)
		if f.rng.IntN(2) == 0 {
			f.pull(im, at+10*time.Minute, 0, 1)
		}
	}
	if today := int(at / (24 * time.Hour)); today > night {
		night = today
		if today%2 == 0 {
			for _, r := range f.repos {
				for _, im := range r.versions {
					f.pull(im, at, 0.2, 1)
				}
			}
		}
	}
	return night
}

// policy decides what is held. ask reports a hit, and keeps what was missed.
type policy interface {
	ask(object int32, size int64, at time.Duration) bool
}

// kept is an object in one of the policies below.
type kept struct {
	object int32
	size   int64
	uses   int
}

// lru evicts what was used longest ago.
type lru struct {
	room  int64
	queue *list.List // of kept, the last used in front
	at    map[int32]*list.Element
}

func newLRU(room int64) policy { return &lru{room, list.New(), map[int32]*list.Element{}} }

func (p *lru) ask(o int32, size int64, _ time.Duration) bool {
	if e := p.at[o]; e != nil {
		p.queue.MoveToFront(e)
		return true
	}
	p.at[o] = p.queue.PushFront(&kept{object: o, size: size})
	for p.room -= size; p.room < 0; {
		k := p.queue.Remove(p.queue.Back()).(*kept)
		delete(p.at, k.object)
		p.room += k.size
	}
	return false
}

// sieve moves a hand over a queue and evicts the first that was not used since
// the hand last passed.
type sieve struct {
	lru
	hand *list.Element
}

func newSieve(room int64) policy {
	return &sieve{lru: lru{room, list.New(), map[int32]*list.Element{}}}
}

func (p *sieve) ask(o int32, size int64, _ time.Duration) bool {
	if e := p.at[o]; e != nil {
		e.Value.(*kept).uses = 1
		return true
	}
	for p.room < size && p.queue.Len() > 0 {
		e := cmp.Or(p.hand, p.queue.Back())
		for e.Value.(*kept).uses > 0 {
			e.Value.(*kept).uses = 0
			e = cmp.Or(e.Prev(), p.queue.Back())
		}
		p.hand = e.Prev()
		k := p.queue.Remove(e).(*kept)
		delete(p.at, k.object)
		p.room += k.size
	}
	p.at[o] = p.queue.PushFront(&kept{object: o, size: size})
	p.room -= size
	return false
}

// s3fifo keeps newcomers in a small queue from which only what was used again
// gets into the main one; a ghost queue remembers what was turned away.
type s3fifo struct {
	room, smallRoom, ghostRoom int64
	small, main, ghost         *list.List
	at, ghosts                 map[int32]*list.Element
}

func newS3FIFO(room int64) policy {
	return &s3fifo{room, room / 10, room, list.New(), list.New(), list.New(), map[int32]*list.Element{}, map[int32]*list.Element{}}
}

func (p *s3fifo) ask(o int32, size int64, _ time.Duration) bool {
	if e := p.at[o]; e != nil {
		k := e.Value.(*kept)
		k.uses = min(3, k.uses+1)
		return true
	}
	for p.room < size && len(p.at) > 0 {
		if p.small.Len() > 0 && (p.smallRoom <= 0 || p.main.Len() == 0) {
			p.leaveSmall()
		} else {
			p.leaveMain()
		}
	}
	p.room -= size
	k := &kept{object: o, size: size}
	if g := p.ghosts[o]; g != nil {
		p.ghost.Remove(g)
		delete(p.ghosts, o)
		p.ghostRoom += size
		p.at[o] = p.main.PushFront(k)
		return false
	}
	p.smallRoom -= size
	p.at[o] = p.small.PushFront(k)
	return false
}

func (p *s3fifo) leaveSmall() {
	k := p.small.Remove(p.small.Back()).(*kept)
	p.smallRoom += k.size
	if k.uses > 1 {
		k.uses = 0
		p.at[k.object] = p.main.PushFront(k)
		return
	}
	delete(p.at, k.object)
	p.room += k.size
	p.ghosts[k.object] = p.ghost.PushFront(k)
	for p.ghostRoom -= k.size; p.ghostRoom < 0; {
		k := p.ghost.Remove(p.ghost.Back()).(*kept)
		delete(p.ghosts, k.object)
		p.ghostRoom += k.size
	}
}

func (p *s3fifo) leaveMain() {
	k := p.main.Remove(p.main.Back()).(*kept)
	if k.uses > 0 {
		k.uses--
		p.at[k.object] = p.main.PushFront(k)
		return
	}
	delete(p.at, k.object)
	p.room += k.size
}

// greedyDual evicts the least of age + uses * worth(size), where age is what the
// last one evicted had: GDSF with a worth of 1/size, LFU-DA with 1.
type greedyDual struct {
	room  int64
	age   float64
	worth func(size int64) float64
	at    map[int32]*dual
	heap  []*dual
}

type dual struct {
	kept
	priority float64
	place    int
}

func newGDSF(room int64) policy {
	return &greedyDual{room: room, worth: func(size int64) float64 { return 1e6 / float64(size) }, at: map[int32]*dual{}}
}

func newLFUDA(room int64) policy {
	return &greedyDual{room: room, worth: func(int64) float64 { return 1 }, at: map[int32]*dual{}}
}

func (p *greedyDual) ask(o int32, size int64, _ time.Duration) bool {
	if k := p.at[o]; k != nil {
		k.uses++
		k.priority = p.age + float64(k.uses)*p.worth(size)
		p.sink(k.place)
		return true
	}
	for p.room < size && len(p.heap) > 0 {
		k := p.heap[0]
		p.age = k.priority
		p.swap(0, len(p.heap)-1)
		p.heap = p.heap[:len(p.heap)-1]
		p.sink(0)
		delete(p.at, k.object)
		p.room += k.size
	}
	k := &dual{kept{o, size, 1}, p.age + p.worth(size), len(p.heap)}
	p.heap = append(p.heap, k)
	for i := k.place; i > 0 && p.heap[(i-1)/2].priority > k.priority; i = (i - 1) / 2 {
		p.swap(i, (i-1)/2)
	}
	p.at[o] = k
	p.room -= size
	return false
}

func (p *greedyDual) swap(i, j int) {
	p.heap[i], p.heap[j] = p.heap[j], p.heap[i]
	p.heap[i].place, p.heap[j].place = i, j
}

func (p *greedyDual) sink(i int) {
	for child := 2*i + 1; child < len(p.heap); child = 2*i + 1 {
		if child+1 < len(p.heap) && p.heap[child+1].priority < p.heap[child].priority {
			child++
		}
		if p.heap[i].priority <= p.heap[child].priority {
			return
		}
		p.swap(i, child)
		i = child
	}
}

// swept is what Disk does: file times that are touched at most once in
// touchEvery, and a sweep from the high mark to the low one by a score.
type swept struct {
	room, held int64
	at         map[int32]*timed
	score      func(age time.Duration, size int64, uses uint8) float64
}

type timed struct {
	object int32
	size   int64
	used   time.Duration
	hint   hint
	score  float64
}

func sweptBy(score func(age time.Duration, size int64, uses uint8) float64) func(int64) policy {
	return func(room int64) policy { return &swept{room: room, at: map[int32]*timed{}, score: score} }
}

// weighed is the family that dispensable comes from.
func weighed(size, uses float64) func(time.Duration, int64, uint8) float64 {
	return func(age time.Duration, n int64, u uint8) float64 {
		return (age.Seconds() + 60) * math.Pow(float64(n+blockSize), size) / math.Pow(float64(u), uses)
	}
}

func (p *swept) ask(o int32, size int64, at time.Duration) bool {
	if k := p.at[o]; k != nil {
		if idle := at - k.used; idle >= touchEvery {
			k.hint, k.used = k.hint.again(idle), at
		}
		return true
	}
	p.at[o] = &timed{object: o, size: size, used: at, hint: hint{uses: 1}}
	p.held += size
	if p.held <= p.room-p.room/20 {
		return false
	}
	all := make([]*timed, 0, len(p.at))
	for _, k := range p.at {
		k.score = p.score(at-k.used, k.size, k.hint.uses)
		all = append(all, k)
	}
	slices.SortFunc(all, func(a, b *timed) int {
		return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(a.object, b.object))
	})
	for _, k := range all {
		if p.held <= p.room-p.room/10 {
			break
		}
		delete(p.at, k.object)
		p.held -= k.size
	}
	return false
}

// ratios are the parts of requests and of bytes that are hits, in per cent.
type ratios struct{ objects, bytes float64 }

// replay runs a trace with room for a part of what it asks for.
func replay(tr *trace, of func(room int64) policy, part float64) ratios {
	room := int64(part * float64(tr.unique))
	p := of(room)
	var hits, hitBytes, all float64
	for _, r := range tr.requests {
		size := tr.sizes[r.object]
		all += float64(size)
		if size <= room*9/10 && p.ask(r.object, size, r.at) {
			hits++
			hitBytes += float64(size)
		}
	}
	return ratios{100 * hits / float64(len(tr.requests)), 100 * hitBytes / all}
}

// TestPolicies holds what we do against what else could be done.
func TestPolicies(t *testing.T) {
	t.Parallel()
	if *fullPolicies {
		printPolicies(t)
		return
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for _, tr := range []*trace{zipfTrace(rng, 3000, 40_000, 0.9), fleetTrace(rng, 60, 3000, true)} {
		ours, byLRU := replay(tr, sweptBy(dispensable), 0.15), replay(tr, newLRU, 0.15)
		if ours.objects < byLRU.objects+10 || ours.bytes < byLRU.bytes-5 {
			t.Errorf("%s: ours %.1f, LRU %.1f", tr.name, ours, byLRU)
		}
	}
}

func printPolicies(t *testing.T) {
	t.Helper()
	var table strings.Builder
	policies := []struct {
		name string
		of   func(int64) policy
	}{
		{"LRU", newLRU},
		{"SIEVE", newSieve},
		{"S3-FIFO", newS3FIFO},
		{"LFU-DA", newLFUDA},
		{"GDSF", newGDSF},
		{"file times: age", sweptBy(weighed(0, 0))},
		{"age * size^0.3", sweptBy(weighed(0.3, 0))},
		{"age * size^0.5", sweptBy(weighed(0.5, 0))},
		{"age / uses^2", sweptBy(weighed(0, 2))},
		{"age * size^0.3 / uses^2", sweptBy(weighed(0.3, 2))},
		{"age * size^0.5 / uses", sweptBy(weighed(0.5, 1))},
		{"age * size^0.5 / uses^2", sweptBy(weighed(0.5, 2))},
		{"age * size^0.7 / uses^2", sweptBy(weighed(0.7, 2))},
		{"age * size^0.3 / uses^2, small content spared (chosen)", sweptBy(dispensable)},
	}
	parts := []float64{0.05, 0.15, 0.40}
	rng := rand.New(rand.NewPCG(7, 7))
	traces := []*trace{zipfTrace(rng, 20_000, 400_000, 0.8), zipfTrace(rng, 20_000, 400_000, 1), fleetTrace(rng, 600, 40_000, false), fleetTrace(rng, 600, 40_000, true)}
	head, line := "| |", "| --- |"
	for _, tr := range traces {
		fmt.Fprintf(&table, "%s: %d objects, %d requests, %.0f GB\n", tr.name, len(tr.sizes), len(tr.requests), float64(tr.unique)/1e9)
		head += " " + tr.name + " |"
		line += " --- |"
	}
	fmt.Fprintf(&table, "\n%s\n%s\n", head, line)
	for _, p := range policies {
		fmt.Fprintf(&table, "| %s |", p.name)
		for _, tr := range traces {
			for _, part := range parts {
				r := replay(tr, p.of, part)
				fmt.Fprintf(&table, " %.0f/%.0f", r.objects, r.bytes)
			}
			table.WriteString(" |")
		}
		table.WriteString("\n")
	}
	t.Logf("hits in per cent of requests/bytes, with room for 5, 15 and 40 %% of the bytes\n%s", table.String())
}

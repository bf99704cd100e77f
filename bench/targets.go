package main

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

// target is something that the product is held to.
type target struct {
	what   string
	wanted string
	judge  func(*figures) (found string, met bool)
	why    func(*figures) string // it is missed where it is; nil: nobody has looked
}

// judgement is what became of a target.
type judgement struct {
	found string
	state
	reason string // of what is not met; empty: none is known
}

type state string

const (
	met        state = "met"
	missed     state = "missed"
	failed     state = "missed: failed" // we did, and there is no figure
	unmeasured state = "not measured"
)

func (j judgement) String() string {
	text := strings.TrimSpace(j.found + " " + string(j.state))
	if j.reason != "" {
		text += " (" + j.reason + ")"
	}
	return text
}

// of judges results by a target.
func (t target) of(r results) judgement {
	f := &figures{results: r}
	found, ok := t.judge(f)
	var gone failure
	switch {
	case errors.As(f.gone, &gone) && gone.rival == ours:
		return judgement{state: failed, reason: gone.Error()}
	case errors.As(f.gone, &gone):
		return judgement{state: unmeasured, reason: gone.Error()}
	case f.gone != nil:
		return judgement{state: unmeasured}
	case ok:
		return judgement{found: found, state: met}
	}
	j := judgement{found: found, state: missed}
	if t.why != nil {
		j.reason = t.why(f)
	}
	return j
}

// figures are results from which a judge takes what it needs, and the first
// reason why it cannot have something.
type figures struct {
	results
	gone error // a failure, or errNotMeasured
}

func (f *figures) miss(err error) {
	if f.gone == nil {
		f.gone = err
	}
}

func (f *figures) of(workload, rival, key string) summary {
	w, ok := f.workload(workload)
	if !ok {
		f.miss(errNotMeasured)
		return summary{}
	}
	s, err := w.metric(rival, key)
	f.miss(err)
	return s
}

// relative is our figure over that of the metric's base.
func (f *figures) relative(workload, key string) float64 {
	w, ok := f.workload(workload)
	if !ok {
		f.miss(errNotMeasured)
		return 0
	}
	metrics := families[w.Family].metrics
	i := slices.IndexFunc(metrics, func(m metric) bool { return m.key == key })
	v, err := w.relative(ours, metrics[i])
	f.miss(err)
	return v
}

// targets are those that the project set itself, in the order of its issue
// list.
var targets = []target{
	{
		"warm blob, 1 connection, against nginx's plain file", "at least 1.0 ×", atLeast("warm-blob-1", "gbs", 1.0), nil,
	},
	{
		"warm blob, 16 connections, against nginx's plain file", "at least 2 ×", atLeast("warm-blob-16", "gbs", 2), nil,
	},
	{
		"CPU per GB of that", "at most 0.5 ×", atMost("warm-blob-16", "cpu_gb", 0.5), nil,
	},
	{
		"far client, against nginx's plain file", "no slower (0.95 × at least)", atLeast(farName, "mbs", 0.95), nil,
	},
	{
		"warm manifest by tag, kept-alive connections, against a bare Go handler", "at least 0.95 ×", atLeast("warm-manifest-tag-keep", "rps", 0.95), whySlower("warm-manifest-tag-keep"),
	},
	{
		"the same by digest", "at least 0.95 ×", atLeast("warm-manifest-digest-keep", "rps", 0.95), whySlower("warm-manifest-digest-keep"),
	},
	{
		"by tag, a new connection for each request", "at least 0.95 ×", atLeast("warm-manifest-tag-new", "rps", 0.95), whySlower("warm-manifest-tag-new"),
	},
	{
		"the same by digest", "at least 0.95 ×", atLeast("warm-manifest-digest-new", "rps", 0.95), whySlower("warm-manifest-digest-new"),
	},
	{"herd of 100: upstream bytes", "1.00 ×", herdBytes, nil},
	{"herd of 100: GETs at the registry", "one for each manifest and blob", herdGets, nil},
	{"herd of 100: first layer byte, last client", "under 0.4 s", herdFirst, nil},
	{"herd of 100: slowest client", "within 1.3 × of a single client's time and the time that nginx needs to send as much", herdSlowest, nil},
	{"cold pull by one client, against going directly", "at most 0.35 ×", atMost("cold-pull", "seconds", 0.35), nil},
	{"cold ranged reads: upstream bytes", "under 1.1 × what is asked for, and 1 MiB for each isolated read", rangesBytes, nil},
	{"cold ranged reads: first byte, against going directly", "at most 1.5 ×", atMost("cold-ranges", "first_p50", 1.5), nil},
	{"anonymous memory, any workload", "under 64 MiB and 64 KiB for each client", mostMemory, nil},
	{"trace: counted GETs for each manifest pulled", "1", traceQuota, nil},
	{"trace: most on disk", "never above the bound", traceDisk, nil},
	{"trace: hits by bytes", "above LRU's, in each round", traceHits, nil},
}

func atLeast(workload, key string, bound float64) func(*figures) (string, bool) {
	return func(f *figures) (string, bool) {
		v := f.relative(workload, key)
		return times(v), v >= bound
	}
}

// whySlower tells what a warm manifest takes beyond the bare handler, and by how
// much rounds differ.
func whySlower(workload string) func(*figures) string {
	return func(f *figures) string {
		own, bare := f.of(workload, ours, "cpu_k").median/1000, f.of(workload, bareGo, "cpu_k").median/1000
		rate, floor := f.of(workload, ours, "rps"), f.of(workload, bareGo, "rps").median
		return fmt.Sprintf("an answer takes %s of processor time where bare takes %s: what it is asked for, the clock, metrics and the ledger come on top; rounds were %s to %s of bare; "+
			"what it consists of is in [decision 7](decisions/0007-plain-net-http.md)", seconds(own), seconds(bare), times(rate.min/floor), times(rate.max/floor))
	}
}

func atMost(workload, key string, bound float64) func(*figures) (string, bool) {
	return func(f *figures) (string, bool) {
		v := f.relative(workload, key)
		return times(v), v <= bound
	}
}

// herd is the workload that the herd's targets are about.
const herd = "herd-100"

func herdBytes(f *figures) (string, bool) {
	s := f.of(herd, ours, "up_ratio")
	return times(s.max), s.max < 1.005
}

func herdGets(f *figures) (string, bool) {
	s, ideal := f.of(herd, ours, "up_gets"), f.of(herd, ours, "ideal_gets")
	return fmt.Sprintf("%s of %s", count(s.max), count(ideal.max)), s.max <= ideal.max
}

func herdFirst(f *figures) (string, bool) {
	s := f.of(herd, ours, "first_max")
	return seconds(s.median), s.median < 0.4
}

func herdSlowest(f *figures) (string, bool) {
	slowest, single, sending := f.of(herd, ours, "max").median, f.of("herd-1", ours, "max").median, f.of(herd, nginxFiles, "max").median
	ideal := single + sending
	return fmt.Sprintf("%s of %s + %s: %s", seconds(slowest), seconds(single), seconds(sending), times(slowest/ideal)), slowest <= 1.3*ideal
}

func rangesBytes(f *figures) (string, bool) {
	const ranges = "cold-ranges"
	up, asked, isolated := f.of(ranges, ours, "up_bytes").median, f.of(ranges, ours, "ideal").median, f.of(ranges, ours, "isolated").median
	bound := 1.1*asked + isolated*window
	return fmt.Sprintf("%s of at most %s, for %s", mebibyte(up), mebibyte(bound), mebibyte(asked)), up <= bound
}

// mostMemory finds the workload that comes nearest to its bound, or exceeds it
// most. One in which we failed is not left out.
func mostMemory(f *figures) (found string, met bool) {
	worst := math.Inf(-1)
	for _, w := range f.Workloads {
		if w.Skipped != "" {
			continue
		}
		s, err := w.metric(ours, "anon")
		f.miss(err)
		bound := float64(64<<20 + w.Clients*64<<10)
		if share := s.max / bound; share > worst {
			worst = share
			found, met = fmt.Sprintf("%s of %s in %s", mebibyte(s.max), mebibyte(bound), w.Name), s.max < bound
		}
	}
	if math.IsInf(worst, -1) {
		f.miss(errNotMeasured)
	}
	return found, met
}

func traceQuota(f *figures) (string, bool) {
	s := f.of("trace", ours, "quota")
	return plain(s.max), s.max <= 1
}

func traceDisk(f *figures) (string, bool) {
	s, bound := f.of("trace", ours, "disk"), f.of("trace", ours, "bound")
	return fmt.Sprintf("%s of %s", megabyte(s.max), megabyte(bound.max)), s.max <= bound.max
}

func traceHits(f *figures) (string, bool) {
	s, lru := f.of("trace", ours, "hit_bytes"), f.of("trace", ours, "lru_bytes")
	w, _ := f.workload("trace")
	rounds, err := w.quotient(ours, "hit_bytes", "lru_bytes")
	f.miss(err)
	return fmt.Sprintf("%s, LRU %s; of %s at least %.4f ×", percent(s.median), percent(lru.median), plural(rounds.n, "round"), rounds.min), rounds.min > 1
}

package main

import (
	"fmt"
	"math"
)

// target is something that the product is held to.
type target struct {
	what   string
	wanted string
	judge  func(results) (found string, met, known bool)
}

// targets are those that the project set itself, in the order of its issue
// list.
var targets = []target{
	{
		"warm blob, 1 connection, against nginx's plain file", "at least 1.0 ×", atLeast("warm-blob-1", "gbs", 1.0),
	},
	{
		"warm blob, 16 connections, against nginx's plain file", "at least 2 ×", atLeast("warm-blob-16", "gbs", 2),
	},
	{
		"CPU per GB of that", "at most 0.5 ×", atMost("warm-blob-16", "cpu_gb", 0.5),
	},
	{
		"far client, against nginx's plain file", "no slower (0.95 × at least)", atLeast(farName, "mbs", 0.95),
	},
	{
		"warm manifest by tag, kept-alive connections, against a bare Go handler", "at least 0.95 ×", atLeast("warm-manifest-tag-keep", "rps", 0.95),
	},
	{
		"the same by digest", "at least 0.95 ×", atLeast("warm-manifest-digest-keep", "rps", 0.95),
	},
	{
		"by tag, a new connection for each request", "at least 0.95 ×", atLeast("warm-manifest-tag-new", "rps", 0.95),
	},
	{
		"the same by digest", "at least 0.95 ×", atLeast("warm-manifest-digest-new", "rps", 0.95),
	},
	{"herd of 100: upstream bytes", "1.00 ×", herdBytes},
	{"herd of 100: GETs at the registry", "one for each manifest and blob", herdGets},
	{"herd of 100: first layer byte, last client", "under 0.4 s", herdFirst},
	{"herd of 100: slowest client", "within 1.3 × of a single client's time and the time that nginx needs to send as much", herdSlowest},
	{"cold pull by one client, against going directly", "at most 0.35 ×", atMost("cold-pull", "seconds", 0.35)},
	{"cold ranged reads: upstream bytes", "under 1.1 × what is asked for, and 1 MiB for each isolated read", rangesBytes},
	{"cold ranged reads: first byte, against going directly", "at most 1.5 ×", atMost("cold-ranges", "first_p50", 1.5)},
	{"anonymous memory, any workload", "under 64 MiB and 64 KiB for each client", mostMemory},
	{"trace: counted GETs for each manifest pulled", "1", traceQuota},
	{"trace: most on disk", "never above the bound", traceDisk},
	{"trace: hits by bytes", "above LRU's", traceHits},
}

func relativeOf(r results, workload, key string) (float64, bool) {
	w, ok := r.workload(workload)
	if !ok {
		return 0, false
	}
	for _, m := range families[w.Family].metrics {
		if m.key == key {
			return w.relative(ours, m)
		}
	}
	return 0, false
}

func atLeast(workload, key string, bound float64) func(results) (string, bool, bool) {
	return func(r results) (string, bool, bool) {
		v, ok := relativeOf(r, workload, key)
		return times(v), v >= bound, ok
	}
}

func atMost(workload, key string, bound float64) func(results) (string, bool, bool) {
	return func(r results) (string, bool, bool) {
		v, ok := relativeOf(r, workload, key)
		return times(v), v <= bound, ok
	}
}

// herd is the workload that the herd's targets are about.
func herd(r results) (w workloadResult, ok bool) { return r.workload("herd-100") }

func herdBytes(r results) (string, bool, bool) {
	w, _ := herd(r)
	s, ok := w.metric(ours, "up_ratio")
	return times(s.max), s.max < 1.005, ok
}

func herdGets(r results) (string, bool, bool) {
	w, _ := herd(r)
	s, ok := w.metric(ours, "up_gets")
	ideal, ok2 := w.metric(ours, "ideal_gets")
	return fmt.Sprintf("%s of %s", count(s.max), count(ideal.max)), s.max <= ideal.max, ok && ok2
}

func herdFirst(r results) (string, bool, bool) {
	w, _ := herd(r)
	s, ok := w.metric(ours, "first_max")
	return seconds(s.median), s.median < 0.4, ok
}

func herdSlowest(r results) (string, bool, bool) {
	w, _ := herd(r)
	one, _ := r.workload("herd-1")
	slowest, ok := w.metric(ours, "max")
	single, ok1 := one.metric(ours, "max")
	sending, ok2 := w.metric(nginxFiles, "max")
	ideal := single.median + sending.median
	return fmt.Sprintf("%s of %s + %s: %s", seconds(slowest.median), seconds(single.median), seconds(sending.median), times(slowest.median/ideal)),
		slowest.median <= 1.3*ideal, ok && ok1 && ok2
}

func rangesBytes(r results) (string, bool, bool) {
	w, _ := r.workload("cold-ranges")
	up, ok := w.metric(ours, "up_bytes")
	asked, ok2 := w.metric(ours, "ideal")
	isolated, _ := w.metric(ours, "isolated")
	bound := 1.1*asked.median + isolated.median*window
	return fmt.Sprintf("%s of at most %s, for %s", mebibyte(up.median), mebibyte(bound), mebibyte(asked.median)), up.median <= bound, ok && ok2
}

// mostMemory finds the workload that comes nearest to its bound, or exceeds it
// most.
func mostMemory(r results) (found string, met, known bool) {
	worst := math.Inf(-1)
	for _, w := range r.Workloads {
		s, ok := w.metric(ours, "anon")
		if !ok {
			continue
		}
		bound := float64(64<<20 + w.Clients*64<<10)
		if share := s.max / bound; share > worst {
			worst, known = share, true
			found, met = fmt.Sprintf("%s of %s in %s", mebibyte(s.max), mebibyte(bound), w.Name), s.max < bound
		}
	}
	return found, met, known
}

func traceQuota(r results) (string, bool, bool) {
	w, _ := r.workload("trace")
	s, ok := w.metric(ours, "quota")
	return plain(s.max), s.max <= 1, ok
}

func traceDisk(r results) (string, bool, bool) {
	w, _ := r.workload("trace")
	s, ok := w.metric(ours, "disk")
	bound, _ := w.metric(ours, "bound")
	return fmt.Sprintf("%s of %s", megabyte(s.max), megabyte(bound.max)), s.max <= bound.max, ok
}

func traceHits(r results) (string, bool, bool) {
	w, _ := r.workload("trace")
	s, ok := w.metric(ours, "hit_bytes")
	lru, _ := w.metric(ours, "lru_bytes")
	return fmt.Sprintf("%s, LRU %s", percent(s.median), percent(lru.median)), s.median > lru.median, ok
}

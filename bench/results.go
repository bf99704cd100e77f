package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// results are all that a run found. The report is made from them alone.
type results struct {
	Date      time.Time
	Seconds   float64
	Full      bool `json:",omitempty"`
	Short     bool `json:",omitempty"`
	Machine   machine
	Rivals    []rivalInfo
	Workloads []workloadResult
}

type rivalInfo struct {
	Name, About, Version string
}

type workloadResult struct {
	Name, Family, Title, About string
	Clients                    int
	Seconds                    float64
	Skipped                    string `json:",omitempty"` // why it was left out
	Rivals                     []rivalResult
}

type rivalResult struct {
	Name   string
	Runs   []measures
	Failed string `json:",omitempty"` // why; runs before that are kept
}

func readResults(path string) (results, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return results{}, err
	}
	var r results
	if err := json.Unmarshal(b, &r); err != nil {
		return results{}, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// writeResults makes the directory too: a run is too long to be lost for one.
func writeResults(path string, r results) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o755)
	}
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

// workload finds one by name.
func (r results) workload(name string) (workloadResult, bool) {
	i := slices.IndexFunc(r.Workloads, func(w workloadResult) bool { return w.Name == name })
	if i < 0 {
		return workloadResult{}, false
	}
	return r.Workloads[i], true
}

// metric finds what a rival's rounds found, of one that did not fail.
func (w workloadResult) metric(rival, key string) (summary, bool) {
	for _, r := range w.Rivals {
		if r.Name == rival && r.Failed == "" {
			return summarize(r.Runs, key)
		}
	}
	return summary{}, false
}

// summary is what several rounds say: the middle one and the spread.
type summary struct {
	n                int
	median, min, max float64
}

func summarize(runs []measures, key string) (summary, bool) {
	var values []float64
	for _, run := range runs {
		if v, ok := run[key]; ok {
			values = append(values, v)
		}
	}
	if len(values) == 0 {
		return summary{}, false
	}
	slices.Sort(values)
	return summary{len(values), middle(values), values[0], values[len(values)-1]}, true
}

// middle is the median of sorted values.
func middle(sorted []float64) float64 {
	n := len(sorted)
	if n%2 == 1 {
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}

// quantile is the smallest value that a share q of all values does not exceed;
// 0 of none.
func quantile[T cmp.Ordered](values []T, q float64) T {
	if len(values) == 0 {
		var zero T
		return zero
	}
	if !slices.IsSorted(values) {
		values = slices.Sorted(slices.Values(values))
	}
	i := int(math.Ceil(q*float64(len(values)))) - 1
	return values[min(max(i, 0), len(values)-1)]
}

// direction says which values of a metric are better.
type direction int

const (
	neither direction = iota
	lower
	higher
)

// metric is one figure of a family of workloads.
type metric struct {
	key, title string
	better     direction
	base       string // the rival that it is a ratio to; empty: the figure itself tells
	guarded    bool   // bench -check compares it: a ratio, or a count
	format     func(float64) string
}

// family is what workloads of one kind have in common.
type family struct {
	metrics []metric
}

var memoryMetrics = []metric{
	{key: "anon", title: "anonymous memory", better: lower, format: mebibyte},
	{key: "rss", title: "resident memory", better: lower, format: mebibyte},
}

// families are the tables of the report, column by column.
var families = map[string]family{
	"pull": {append([]metric{
		{key: "seconds", title: "time", better: lower, base: hubItself, guarded: true, format: seconds},
		{key: "first", title: "first layer byte", better: lower, format: seconds},
		{key: "up_ratio", title: "upstream bytes", better: lower, guarded: true, format: times},
		{key: "cpu_gb", title: "CPU per GB", better: lower, format: seconds},
	}, memoryMetrics...)},
	"herd": {append([]metric{
		{key: "max", title: "slowest client", better: lower, base: nginxFiles, guarded: true, format: seconds},
		{key: "p95", title: "95th percentile", better: lower, format: seconds},
		{key: "p50", title: "median client", better: lower, format: seconds},
		{key: "first_p50", title: "first layer byte, median", better: lower, format: seconds},
		{key: "first_max", title: "first layer byte, last client", better: lower, format: seconds},
		{key: "up_ratio", title: "upstream bytes", better: lower, guarded: true, format: times},
		{key: "up_gets", title: "upstream GETs", better: lower, guarded: true, format: count},
		{key: "cpu_gb", title: "CPU per GB", better: lower, base: nginxFiles, format: seconds},
	}, memoryMetrics...)},
	"blob": {append([]metric{
		{key: "gbs", title: "GB/s", better: higher, base: nginxFiles, guarded: true, format: plain},
		{key: "cpu_gb", title: "CPU per GB", better: lower, base: nginxFiles, guarded: true, format: seconds},
	}, memoryMetrics...)},
	"manifest": {append([]metric{
		{key: "rps", title: "requests/s", better: higher, base: bareGo, guarded: true, format: count},
		{key: "p50", title: "p50", better: lower, format: seconds},
		{key: "p99", title: "p99", better: lower, format: seconds},
		{key: "cpu_k", title: "CPU per 1,000", better: lower, base: bareGo, guarded: true, format: seconds},
	}, memoryMetrics...)},
	"ranges": {append([]metric{
		{key: "first_p50", title: "first byte, median", better: lower, base: hubItself, guarded: true, format: seconds},
		{key: "first_max", title: "first byte, worst", better: lower, base: hubItself, format: seconds},
		{key: "up_ratio", title: "upstream bytes per byte asked for", better: lower, guarded: true, format: times},
		{key: "reads", title: "reads done", better: higher, format: count},
		{key: "cpu_gb", title: "CPU per GB", better: lower, format: seconds},
	}, memoryMetrics...)},
	"trace": {append([]metric{
		{key: "hit_bytes", title: "hits by bytes", better: higher, guarded: true, format: percent},
		{key: "lru_bytes", title: "LRU's", format: percent},
		{key: "hit_objects", title: "hits by objects", better: higher, format: percent},
		{key: "lru_objects", title: "LRU's", format: percent},
		{key: "quota", title: "counted GETs per manifest", better: lower, guarded: true, format: times},
		{key: "disk", title: "most on disk", better: lower, format: megabyte},
		{key: "seconds", title: "time", better: lower, format: seconds},
		{key: "cpu_gb", title: "CPU per GB", better: lower, format: seconds},
	}, memoryMetrics...)},
	"start": {append([]metric{
		{key: "ready", title: "until it answers", better: lower, format: seconds},
		{key: "cpu", title: "CPU", better: lower, format: seconds},
	}, memoryMetrics...)},
	"far": {append([]metric{
		{key: "mbs", title: "MB/s", better: higher, base: nginxFiles, guarded: true, format: count},
		{key: "cpu_gb", title: "CPU per GB", better: lower, base: nginxFiles, format: seconds},
	}, memoryMetrics...)},
}

// ratio is one of our figures that means something on another machine too.
type ratio struct {
	workload, metric string
	better           direction
	value            float64
}

// unsteady is what a workload's guarded metrics cannot tell, since the same
// program has two figures: over one connection by the processor that the reader
// gets.
var unsteady = map[string]string{"warm-blob-1": "cpu_gb"}

// ratios are our guarded figures, in order.
func ratios(r results) []ratio {
	var all []ratio
	for _, w := range r.Workloads {
		for _, m := range families[w.Family].metrics {
			if !m.guarded || unsteady[w.Name] == m.key {
				continue
			}
			if v, ok := w.relative(ours, m); ok {
				all = append(all, ratio{w.Name, m.key, m.better, v})
			}
		}
	}
	return all
}

// relative is a rival's figure over that of the metric's base, or the figure
// itself.
func (w workloadResult) relative(rival string, m metric) (float64, bool) {
	own, ok := w.metric(rival, m.key)
	if !ok || m.base == "" {
		return own.median, ok
	}
	base, ok := w.metric(m.base, m.key)
	if !ok || base.median == 0 {
		return 0, false
	}
	return own.median / base.median, true
}

// tolerance is by how many per cent a ratio may be worse than the committed one.
// On a machine that others use too, medians of three rounds differ by up to 15.
const tolerance = 25

// verdict is what a comparison found.
type verdict struct {
	text  string
	worse int
}

// compare holds ratios against those of another run. What is only in one of
// them is named, and no failure: runs of parts are compared too.
func compare(before, now []ratio) verdict {
	var b strings.Builder
	v := verdict{}
	for _, was := range before {
		i := slices.IndexFunc(now, func(r ratio) bool { return r.workload == was.workload && r.metric == was.metric })
		if i < 0 {
			if slices.ContainsFunc(now, func(r ratio) bool { return r.workload == was.workload }) {
				v.worse++
				fmt.Fprintf(&b, "%-24s %-10s was %8.3f, is not to be had: WORSE\n", was.workload, was.metric, was.value)
			}
			continue
		}
		is := now[i].value
		note := ""
		if worseBy(was, is) > tolerance {
			v.worse++
			note = ": WORSE"
		}
		fmt.Fprintf(&b, "%-24s %-10s was %8.3f, is %8.3f, %+.0f %%%s\n", was.workload, was.metric, was.value, is, 100*(is/was.value-1), note)
	}
	v.text = b.String()
	return v
}

// worseBy is by how many per cent of the better value.
func worseBy(was ratio, is float64) float64 {
	if was.better == higher {
		return 100 * (was.value/is - 1)
	}
	return 100 * (is/was.value - 1)
}

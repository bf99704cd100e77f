package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// results are all that a run found. The report is made from them alone.
type results struct {
	Date      time.Time
	Seconds   float64
	Before    float64 `json:",omitempty"` // seconds in which make installed and built what was missing; 0: nobody told
	Full      bool    `json:",omitempty"`
	Short     bool    `json:",omitempty"`
	Partial   bool    `json:",omitempty"` // not all workloads, rivals or rounds were run
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
	Skipped                    string   `json:",omitempty"` // why it was left out
	Insight                    *insight `json:",omitempty"` // into our own rounds
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

// errNotMeasured says that a figure was not asked for in this run.
var errNotMeasured = errors.New("not measured")

// failure is why there is no figure although there should be one.
type failure struct{ workload, rival, reason string }

func (f failure) Error() string {
	if f.rival == "" {
		return f.workload + " was skipped: " + f.reason
	}
	return fmt.Sprintf("%s failed in %s: %s", f.rival, f.workload, f.reason)
}

// metric is what a rival's rounds found. The error is a failure, also of one
// that failed after some rounds, or errNotMeasured.
func (w workloadResult) metric(rival, key string) (summary, error) {
	if w.Skipped != "" {
		return summary{}, failure{workload: w.Name, reason: w.Skipped}
	}
	for _, r := range w.Rivals {
		if r.Name != rival {
			continue
		}
		if r.Failed != "" {
			return summary{}, failure{w.Name, rival, r.Failed}
		}
		if s, ok := summarize(r.Runs, key); ok {
			return s, nil
		}
		return summary{}, failure{w.Name, rival, "it has no " + key}
	}
	return summary{}, errNotMeasured
}

// quotient is one figure over another of the same rounds, round by round. Errors
// are metric's.
func (w workloadResult) quotient(rival, key, per string) (summary, error) {
	if _, err := w.metric(rival, key); err != nil {
		return summary{}, err
	}
	i := slices.IndexFunc(w.Rivals, func(r rivalResult) bool { return r.Name == rival })
	var rounds []measures
	for _, run := range w.Rivals[i].Runs {
		if run[per] != 0 {
			rounds = append(rounds, measures{key: run[key] / run[per]})
		}
	}
	s, ok := summarize(rounds, key)
	if !ok {
		return summary{}, failure{w.Name, rival, "it has no " + per}
	}
	return s, nil
}

// relative is a rival's figure over that of the metric's base, or the figure
// itself, of its worst round if that is the one that tells. Errors are metric's.
func (w workloadResult) relative(rival string, m metric) (float64, error) {
	if m.per != "" {
		s, err := w.quotient(rival, m.key, m.per)
		return s.median, err
	}
	own, err := w.metric(rival, m.key)
	if err == nil && m.worst {
		return own.max, nil
	}
	if err != nil || m.base == "" {
		return own.median, err
	}
	base, err := w.metric(m.base, m.key)
	if err != nil {
		return 0, err
	}
	if base.median == 0 {
		return 0, failure{w.Name, m.base, "its " + m.key + " is 0"}
	}
	return own.median / base.median, nil
}

// byRound are the ratios of a rival's rounds to its metric's base's, as far as both
// have had them.
func (w workloadResult) byRound(r rivalResult, m metric) (all []measures) {
	i := slices.IndexFunc(w.Rivals, func(r rivalResult) bool { return r.Name == m.base })
	for n, run := range r.Runs {
		if i >= 0 && n < len(w.Rivals[i].Runs) && w.Rivals[i].Runs[n][m.key] != 0 {
			all = append(all, measures{m.key: run[m.key] / w.Rivals[i].Runs[n][m.key]})
		}
	}
	return all
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
	base       string  // the rival that it is a ratio to; empty: the figure itself tells
	per        string  // the same rival's metric that it is a ratio to, in comparisons; empty: none
	worst      bool    // the worst round tells, not the middle one: each is to be right
	within     float64 // by how many per cent bench -check lets it be worse; 0: it does not look
	format     func(float64) string
}

// How much worse than the committed figure, in per cent, is no news.
const (
	exact  = 1   // counts: every round finds the same
	near   = 5   // what depends on who comes first
	shared = 25  // on a machine that others use too, medians of three rounds differ by up to 15
	rough  = 50  // memory, by the moments at which garbage is collected
	coarse = 200 // what is little, or of few: its rounds differ by two or three times
	wild   = 400 // moments, which one turn of the scheduler makes several times as long
)

// family is what workloads of one kind have in common.
type family struct {
	metrics []metric
}

var memoryMetrics = []metric{
	{key: "anon", title: "anonymous memory", better: lower, within: rough, format: mebibyte},
	{key: "rss", title: "resident memory", better: lower, format: mebibyte},
}

// families are the tables of the report, column by column.
var families = map[string]family{
	"pull": {append([]metric{
		{key: "seconds", title: "time", better: lower, base: hubItself, within: shared, format: seconds},
		{key: "first", title: "first layer byte", better: lower, format: seconds},
		{key: "up_ratio", title: "upstream bytes", better: lower, worst: true, within: exact, format: times},
		{key: "cpu_gb", title: "CPU per GB", better: lower, format: seconds},
	}, memoryMetrics...)},
	"herd": {append([]metric{
		{key: "max", title: "slowest client", better: lower, base: nginxFiles, within: shared, format: seconds},
		{key: "p95", title: "95th percentile", better: lower, format: seconds},
		{key: "p50", title: "median client", better: lower, format: seconds},
		{key: "first_p50", title: "first layer byte, median", better: lower, format: seconds},
		{key: "first_max", title: "first layer byte, last client", better: lower, within: wild, format: seconds},
		{key: "up_ratio", title: "upstream bytes", better: lower, worst: true, within: exact, format: times},
		{key: "up_gets", title: "upstream GETs", better: lower, worst: true, within: exact, format: count},
		{key: "cpu_gb", title: "CPU per GB", better: lower, base: nginxFiles, within: coarse, format: seconds},
	}, memoryMetrics...)},
	"blob": {append([]metric{
		{key: "gbs", title: "GB/s", better: higher, base: nginxFiles, within: shared, format: plain},
		{key: "cpu_gb", title: "CPU per GB", better: lower, base: nginxFiles, within: shared, format: seconds},
	}, memoryMetrics...)},
	"manifest": {append([]metric{
		{key: "rps", title: "requests/s", better: higher, base: bareGo, within: shared, format: count},
		{key: "p50", title: "p50", better: lower, format: seconds},
		{key: "p99", title: "p99", better: lower, base: bareGo, within: coarse, format: seconds},
		{key: "cpu_k", title: "CPU per 1,000", better: lower, base: bareGo, within: shared, format: seconds},
	}, memoryMetrics...)},
	"ranges": {append([]metric{
		{key: "first_p50", title: "first byte, median", better: lower, base: hubItself, within: shared, format: seconds},
		{key: "first_max", title: "first byte, worst", better: lower, base: hubItself, within: coarse, format: seconds},
		{key: "up_ratio", title: "upstream bytes per byte asked for", better: lower, worst: true, within: exact, format: times},
		{key: "reads", title: "reads done", better: higher, format: count},
		{key: "cpu_gb", title: "CPU per GB", better: lower, format: seconds},
	}, memoryMetrics...)},
	"trace": {append([]metric{
		{key: "hit_bytes", title: "hits by bytes", better: higher, per: "lru_bytes", within: exact, format: percent},
		{key: "lru_bytes", title: "LRU's", format: percent},
		{key: "hit_objects", title: "hits by objects", better: higher, per: "lru_objects", within: near, format: percent},
		{key: "lru_objects", title: "LRU's", format: percent},
		{key: "quota", title: "counted GETs per manifest", better: lower, worst: true, within: exact, format: times},
		{key: "disk", title: "most on disk", better: lower, per: "bound", within: near, format: megabyte},
		{key: "seconds", title: "time", better: lower, format: seconds},
		{key: "cpu_gb", title: "CPU per GB", better: lower, format: seconds},
	}, memoryMetrics...)},
	"start": {append([]metric{
		{key: "ready", title: "until it answers", better: lower, within: wild, format: seconds},
		{key: "cpu", title: "CPU", better: lower, format: seconds},
	}, memoryMetrics...)},
	"far": {append([]metric{
		{key: "mbs", title: "MB/s", better: higher, base: nginxFiles, within: shared, format: count},
		{key: "cpu_gb", title: "CPU per GB", better: lower, base: nginxFiles, within: coarse, format: seconds},
	}, memoryMetrics...)},
}

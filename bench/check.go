package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ratio is one of our figures that means something on another machine too.
type ratio struct {
	workload string
	metric
	value float64
	gone  error // why there is none; nil: there is
}

// unsteady are metrics that differ more in a workload than elsewhere: over one
// connection the same program has two figures, by the processor that the reader gets.
var unsteady = map[string]string{"warm-blob-1": "cpu_gb"}

// ratios are the guarded figures of all workloads that were run, in order, those
// too that are not to be had.
func ratios(r results) []ratio {
	var all []ratio
	for _, w := range r.Workloads {
		for _, m := range families[w.Family].metrics {
			if m.within == 0 {
				continue
			}
			if unsteady[w.Name] == m.key {
				m.within = wild
			}
			v, err := w.relative(ours, m)
			all = append(all, ratio{w.Name, m, v, err})
		}
	}
	return all
}

// verdict is what a comparison found.
type verdict struct {
	text  string
	worse int
}

// compare holds a run against another one: ratios, and what targets were met. What
// o did not ask for is named, and no failure: runs of parts are compared too. What
// it did and there is no figure of, for whatever reason, is worse.
func compare(before, now results, o options) verdict {
	var b strings.Builder
	v := verdict{}
	had := ratios(now)
	for _, was := range ratios(before) {
		i := slices.IndexFunc(had, func(r ratio) bool { return r.workload == was.workload && r.key == was.key })
		line, worse := was.against(had, i, o)
		if worse {
			v.worse++
			line += ": WORSE"
		}
		fmt.Fprintf(&b, "%-24s %-10s %s\n", was.workload, was.key, line)
	}
	for _, t := range targets {
		was, is := t.of(before), t.of(now)
		switch {
		case was.state != met || is.state == met || is.state == unmeasured:
		case t.within(now):
			fmt.Fprintf(&b, "target %s, %s: was met with %s, is %s, by no more than rounds differ\n", t.what, t.wanted, was.found, is)
		default:
			v.worse++
			fmt.Fprintf(&b, "target %s, %s: was met with %s, is %s: WORSE\n", t.what, t.wanted, was.found, is)
		}
	}
	v.text = b.String()
	return v
}

// against compares a committed ratio with the one at i of those that there are
// now; below 0, there is none.
func (was ratio) against(now []ratio, i int, o options) (line string, worse bool) {
	switch {
	case i < 0:
		return "not run", o.wants(was.workload)
	case errors.Is(now[i].gone, errNotMeasured) && was.base != "" && len(o.rivals) > 0 && !slices.Contains(o.rivals, was.base):
		return "not measured: without " + was.base, false
	case errors.Is(now[i].gone, errNotMeasured):
		return "not measured, though it was to be", true
	case now[i].gone != nil:
		return "is not to be had: " + now[i].gone.Error(), true
	case was.gone != nil:
		return "was not to be had, is " + was.text(now[i].value), false
	}
	is := now[i].value
	return fmt.Sprintf("was %s, is %s, %+.0f %% (%.0f %% are allowed)", was.text(was.value), was.text(is), 100*(is/was.value-1), was.within),
		was.worseBy(is) > was.within
}

// wants reports whether a workload is to be run.
func (o options) wants(workload string) bool {
	return len(o.only) == 0 || slices.ContainsFunc(o.only, func(p string) bool { return strings.HasPrefix(workload, p) })
}

// text is a value of the ratio's, or of the figure that stands for itself.
func (was ratio) text(v float64) string {
	if was.base == "" && was.per == "" {
		return was.format(v)
	}
	return fmt.Sprintf("%.3f", v)
}

// worseBy is by how many per cent of the better value.
func (was ratio) worseBy(is float64) float64 {
	if was.better == higher {
		return 100 * (was.value/is - 1)
	}
	return 100 * (is/was.value - 1)
}

// broken are the failures that leave figures of ours without meaning: our own,
// and those of what we are measured by.
func broken(r results) error {
	var all []error
	for _, w := range r.Workloads {
		for _, rival := range w.Rivals {
			if rival.Failed != "" && slices.Contains([]string{ours, hubItself, nginxFiles, bareGo}, rival.Name) {
				all = append(all, failure{w.Name, rival.Name, rival.Failed})
			}
		}
	}
	return errors.Join(all...)
}

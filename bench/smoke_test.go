package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"entrepot/internal/ocitest"
)

// TestMain lets this binary be the helpers that the harness starts.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && helpers[os.Args[1]] != nil {
		main()
		return
	}
	ocitest.Main(m)
}

// TestEveryWorkloadRuns is the whole harness at sizes that take seconds: each
// workload against the product and what needs no package. It holds them to
// nothing but that they end well, and that a report comes of it.
func TestEveryWorkloadRuns(t *testing.T) {
	dir := t.TempDir()
	o := options{root: "..", work: dir, short: true, rivals: []string{hubItself, bareGo}, buildFlags: raceFlags}
	o.custom = repeated{"broken=echo out of order >&2; exit 3"}
	o.rivals = append(o.rivals, "broken")
	found, err := measure(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := len(found.Workloads), len(workloads(o)); got != want {
		t.Errorf("%d workloads ran, want %d", got, want)
	}
	if !found.Partial {
		t.Error("rivals were left out, and the results do not say so")
	}
	for _, w := range found.Workloads {
		if w.Skipped != "" {
			t.Logf("%s was skipped: %s", w.Name, w.Skipped)
			continue
		}
		if i := w.Insight; i != nil && i.Failed != "" && !strings.Contains(i.Failed, "never found the program busy") {
			t.Errorf("%s: %v", w.Name, i) // so little is done that it may not be
		}
		for _, r := range w.Rivals {
			switch {
			case r.Name == "broken":
				if !strings.Contains(r.Failed, "out of order") {
					t.Errorf("%s: a rival that does not start is shown with %q", w.Name, r.Failed)
				}
			case r.Failed != "" || len(r.Runs) == 0:
				t.Errorf("%s: %s failed after %d rounds: %s", w.Name, r.Name, len(r.Runs), r.Failed)
			}
		}
		for _, m := range families[w.Family].metrics {
			if _, err := w.metric(ours, m.key); err != nil {
				t.Errorf("%s has no %s: %v", w.Name, m.key, err)
			}
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, "entrepot-bench-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("the run left %v behind", left)
	}
	o.results, o.docs, o.check = filepath.Join(dir, "results.json"), dir, filepath.Join(dir, "results.json")
	if err := publish(found, o); err != nil {
		t.Error(err)
	}
	page, err := os.ReadFile(filepath.Join(dir, "performance.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range found.Workloads {
		if !strings.Contains(string(page), w.Title) {
			t.Errorf("the report does not speak of %q", w.Title)
		}
	}
}

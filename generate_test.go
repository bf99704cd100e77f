package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"entrepot/admin"
	"entrepot/cache"
	"entrepot/ledger"
	"entrepot/policy"
	"entrepot/ratelimit"
	"entrepot/store"
	"entrepot/upstream"
	"entrepot/warm"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

var update = flag.Bool("update", false, "rewrite the parts of documents that are generated")

const (
	blockBegin = "<!-- settings: made by go test -run TestReadmeListsTheSettings -update . -->\n"
	blockEnd   = "<!-- end of settings -->\n"
)

// The README's table of settings is what Config says.
func TestReadmeListsTheSettings(t *testing.T) {
	checkBlock(t, "README.md", blockBegin, blockEnd, settingsMarkdown())
}

// checkBlock compares what stands between two lines of a document with what it
// is made from, or makes it so.
func checkBlock(t *testing.T, file, begin, end, want string) {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(content), begin)
	got, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no lines\n%sand, after it,\n%s", file, begin, end)
	}
	if got == want {
		return
	}
	if !*update {
		t.Fatalf("%s is behind: run go test -run %s -update . (-want +got):\n%s", file, t.Name(), cmp.Diff(want, got))
	}
	if err := os.WriteFile(file, []byte(before+begin+want+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

const (
	metricsBegin = "<!-- metrics: made by go test -run TestMetricsAreDocumented -update . -->\n"
	metricsEnd   = "<!-- end of metrics -->\n"
)

// docs/metrics.md lists every metric of ours with its labels. A name that
// changes there breaks somebody's dashboard.
func TestMetricsAreDocumented(t *testing.T) {
	m := newMetrics(build{Version: "v1"}, []string{"docker.io"})
	m.watch(func() store.Stats { return store.Stats{} }, func() cache.Stats { return cache.Stats{} }, func() []upstream.Quota {
		return []upstream.Quota{{Upstream: "docker.io", Quota: ratelimit.Quota{Limit: 100, Left: 10, Reserve: 5, Window: time.Hour}}}
	}, 0)
	m.watchUpstreams(ledger.New(), upstream.NewSet())
	m.watchCertificate(time.Now)
	images := warm.NewList(warm.Config{})
	m.watchWarm(images.Totals)
	m.watchClients(nil)
	m.watchConnections(func() int64 { return 0 })
	cut := hitRecord()
	cut.Err = io.ErrUnexpectedEOF
	m.request(&cut)
	m.call(upstream.Call{Upstream: "docker.io", Kind: upstream.ManifestKind})
	m.refusal(policy.Refusal{})
	m.received(upstream.Call{Upstream: "docker.io", Kind: upstream.BlobKind}, 1)
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if problems, err := testutil.GatherAndLint(m.registry); err != nil || len(problems) > 0 {
		t.Errorf("the names break Prometheus's rules: %v %v", problems, err)
	}
	var b strings.Builder
	b.WriteString("| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n")
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), namespace+"_") {
			continue
		}
		var labels []string
		for _, label := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, "`"+label.GetName()+"`")
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.GetName(), strings.ToLower(f.GetType().String()), strings.Join(labels, ", "), strings.TrimSuffix(f.GetHelp(), "."))
	}
	checkBlock(t, "docs/metrics.md", metricsBegin, metricsEnd, b.String())

	page, err := os.ReadFile("docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	values := slices.Concat(outcomeLabels[:], kindLabels[:])
	for state := range images.Totals().Images {
		values = append(values, string(state))
	}
	told, _, _ := strings.Cut(string(page), metricsBegin)
	for _, value := range values {
		if !strings.Contains(told, "`"+value+"`") {
			t.Errorf("docs/metrics.md does not tell of the label %q", value)
		}
	}
}

const (
	routesBegin = "<!-- routes: made by go test -run TestAdminRoutesAreDocumented -update . -->\n"
	routesEnd   = "<!-- end of routes -->\n"
)

// docs/admin-api.md lists every route.
func TestAdminRoutesAreDocumented(t *testing.T) {
	var b strings.Builder
	b.WriteString("| route | takes | |\n| --- | --- | --- |\n")
	for _, r := range admin.Routes() {
		fmt.Fprintf(&b, "| `%s %s` | %s | %s |\n", r.Method, r.Path, r.Takes, r.Doc)
	}
	checkBlock(t, "docs/admin-api.md", routesBegin, routesEnd, b.String())
}

package main

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// documentedMetrics are the metrics that there are, with their labels, as the
// generated table lists them.
func documentedMetrics(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile("docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile("(?m)^\\| `(entrepot_[a-z_]+)` \\| ([a-z]+) \\| ([^|]*) \\|")
	all := map[string][]string{}
	for _, m := range row.FindAllStringSubmatch(string(text), -1) {
		labels := []string{"instance", "job"}
		for label := range strings.SplitSeq(m[3], ",") {
			labels = append(labels, strings.Trim(label, "` "))
		}
		all[m[1]] = labels
		if m[2] == "histogram" {
			all[m[1]+"_bucket"] = append(labels, "le")
			all[m[1]+"_sum"], all[m[1]+"_count"] = labels, labels
		}
	}
	if len(all) < 30 {
		t.Fatalf("docs/metrics.md lists %d metrics", len(all))
	}
	return all
}

// TestDashboardAndAlertsFitTheMetrics: a metric or a label that is gone, or
// misspelt, draws nothing and never fires, and nobody notices.
func TestDashboardAndAlertsFitTheMetrics(t *testing.T) {
	known := documentedMetrics(t)
	for place, expressions := range map[string][]string{"dashboard": dashboardQueries(t), "alerts": alertQueries(t)} {
		used := map[string]bool{}
		for _, expr := range expressions {
			for _, problem := range checkQuery(known, expr, used) {
				t.Errorf("%s: %s in %s", place, problem, expr)
			}
		}
		if len(used) < 10 {
			t.Errorf("the %s use %d metrics", place, len(used))
		}
	}
}

// TestTroubleIsDrawn: what keeps us from asking upstreams can be seen over time.
func TestTroubleIsDrawn(t *testing.T) {
	used := map[string]bool{}
	for _, expr := range dashboardQueries(t) {
		checkQuery(documentedMetrics(t), expr, used)
	}
	for _, metric := range []string{"entrepot_breakers_open", "entrepot_hosts_paused", "entrepot_logins_refused", "entrepot_quota_left"} {
		if !used[metric] {
			t.Errorf("the dashboard does not draw %s", metric)
		}
	}
}

func TestWrongQueriesAreFound(t *testing.T) {
	known := map[string][]string{"entrepot_x_total": {"instance", "kind"}}
	for expr, wrong := range map[string]int{
		`rate(entrepot_x_total{kind="a"}[5m])`:              0,
		`sum by (kind, instance) (entrepot_x_total)`:        0,
		`rate(entrepot_y_total[5m])`:                        1,
		`entrepot_x_total{kind="a", status=~"b"}`:           1,
		`sum by (status) (rate(entrepot_x_total[5m]))`:      1,
		`entrepot_x_total{a="b"} / entrepot_y_total{c="d"}`: 2,
	} {
		if got := checkQuery(known, expr, map[string]bool{}); len(got) != wrong {
			t.Errorf("%s: %q, want %d problems", expr, got, wrong)
		}
	}
}

var (
	metricUse = regexp.MustCompile(`(entrepot_[a-z_]+)(?:\{([^}]*)\})?`)
	labelUse  = regexp.MustCompile(`([a-z_]+)\s*(?:=~|!~|!=|=)`)
	grouping  = regexp.MustCompile(`\b(?:by|on|without)\s*\(([^)]*)\)`)
)

// checkQuery looks for metrics and labels that do not exist. It is no parser of
// PromQL, which promtool has.
func checkQuery(known map[string][]string, expr string, used map[string]bool) (problems []string) {
	var all []string
	for _, m := range metricUse.FindAllStringSubmatch(expr, -1) {
		labels, ok := known[m[1]]
		if !ok {
			problems = append(problems, "no metric "+m[1])
			continue
		}
		used[m[1]] = true
		all = append(all, labels...)
		for _, l := range labelUse.FindAllStringSubmatch(m[2], -1) {
			if !slices.Contains(labels, l[1]) {
				problems = append(problems, m[1]+" has no label "+l[1])
			}
		}
	}
	for _, g := range grouping.FindAllStringSubmatch(expr, -1) {
		for label := range strings.SplitSeq(g[1], ",") {
			if label = strings.TrimSpace(label); len(all) > 0 && !slices.Contains(all, label) {
				problems = append(problems, "no label "+label)
			}
		}
	}
	return problems
}

func dashboardQueries(t *testing.T) (all []string) {
	t.Helper()
	var dashboard struct {
		Panels []struct{ Targets []struct{ Expr string } }
	}
	readDeployed(t, "deploy/grafana/entrepot.json", func(text []byte) error { return json.Unmarshal(text, &dashboard) })
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			all = append(all, target.Expr)
		}
	}
	return all
}

func alertQueries(t *testing.T) (all []string) {
	t.Helper()
	var rules struct {
		Groups []struct{ Rules []struct{ Expr string } }
	}
	readDeployed(t, "deploy/helm/entrepot/alerts.yaml", func(text []byte) error { return yaml.Unmarshal(text, &rules) })
	for _, group := range rules.Groups {
		for _, rule := range group.Rules {
			all = append(all, rule.Expr)
		}
	}
	return all
}

func readDeployed(t *testing.T, file string, parse func([]byte) error) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err == nil {
		err = parse(text)
	}
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

// TestNamedSettingsExist: a setting that a deployment or a document names is one,
// since a server with another would not start.
func TestNamedSettingsExist(t *testing.T) {
	named := regexp.MustCompile(`ENTREPOT_[A-Z0-9_]*[A-Z0-9]\b`)
	all := settings()
	isSetting := func(name string) bool {
		for _, form := range []string{name, name + fileSuffix} { // the chart adds _FILE
			if _, _, _, ok := findSetting(all, form); ok {
				return true
			}
		}
		return false
	}
	files := documents(t)
	if err := filepath.WalkDir("deploy", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range named.FindAllIndex(text, -1) {
			name, rest := string(text[at[0]:at[1]]), string(text[at[1]:])
			if !strings.HasPrefix(rest, "_") && isOurs(name) && !isSetting(name) {
				t.Errorf("%s names %s, which is no setting", file, name)
			}
		}
	}
}

// TestTheUnitReadsFilesThatMayChange: what systemd copies at the start of a service
// (credentials) never changes for it, however often it reads that again.
func TestTheUnitReadsFilesThatMayChange(t *testing.T) {
	text, err := os.ReadFile("deploy/systemd/secure.conf")
	if err != nil {
		t.Fatal(err)
	}
	if regexp.MustCompile(`(?m)^(Load|Set|Import)Credential`).Match(text) {
		t.Error("secure.conf has files copied")
	}
	files := regexp.MustCompile(`ENTREPOT_[A-Z_]+_FILE=(\S+)`).FindAllSubmatch(text, -1)
	for _, file := range files {
		if !strings.HasPrefix(string(file[1]), "/etc/entrepot/") {
			t.Errorf("%s: want a file in /etc/entrepot, which the guide makes", file[0])
		}
	}
	group := regexp.MustCompile(`(?m)^SupplementaryGroups=(\S+)$`).FindSubmatch(text)
	if len(files) < 4 || group == nil {
		t.Fatalf("secure.conf names %d files, and the group %q to read them by", len(files), group)
	}
	guide, err := os.ReadFile("docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"groupadd --system " + string(group[1]), "install -m 640 -g " + string(group[1]) + " tls.crt tls.key users deploy/access.yaml /etc/entrepot/"} {
		if !strings.Contains(string(guide), command) {
			t.Errorf("the guide does not have %q", command)
		}
	}
}

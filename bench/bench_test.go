package main

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestQuantile(t *testing.T) {
	hundred := make([]int, 100)
	for i := range hundred {
		hundred[i] = 100 - i
	}
	for _, tc := range []struct {
		values []int
		q      float64
		want   int
	}{
		{nil, 0.5, 0},
		{[]int{7}, 0, 7},
		{[]int{7}, 1, 7},
		{[]int{3, 1, 2}, 0.5, 2},
		{hundred, 0.5, 50},
		{hundred, 0.99, 99},
		{hundred, 1, 100},
		{hundred, 0.001, 1},
	} {
		if got := quantile(tc.values, tc.q); got != tc.want {
			t.Errorf("quantile %v of %d values: got %d, want %d", tc.q, len(tc.values), got, tc.want)
		}
	}
	if hundred[0] != 100 {
		t.Error("the caller's values were sorted")
	}
}

func TestSummarize(t *testing.T) {
	runs := []measures{{"x": 3}, {"y": 9}, {"x": 1}, {"x": 10}, {"x": 4}}
	if got, ok := summarize(runs, "x"); !ok || got != (summary{4, 3.5, 1, 10}) {
		t.Errorf("got %+v %v", got, ok)
	}
	if _, ok := summarize(runs, "z"); ok {
		t.Error("a metric that nobody measured has a summary")
	}
}

func TestLRU(t *testing.T) {
	seq := func(names string) (asked []access) {
		for _, name := range names {
			asked = append(asked, access{string(name), 10})
		}
		return asked
	}
	for _, tc := range []struct {
		name           string
		asked          []access
		bound          int64
		objects, bytes float64
	}{
		{"nothing", nil, 10, 0, 0},
		{"all fits", seq("abab"), 20, 0.5, 0.5},
		{"the oldest goes", seq("abcab"), 20, 0, 0},
		{"used again is not the oldest", seq("abaca"), 20, 0.4, 0.4},
		{"too large is not kept, and puts nothing out", []access{{"a", 10}, {"big", 50}, {"a", 10}, {"big", 50}}, 20, 0.25, 10.0 / 120},
		{"room is made for more than one", []access{{"a", 5}, {"b", 5}, {"c", 10}, {"a", 5}}, 10, 0, 0},
	} {
		objects, bytes := simulateLRU(tc.asked, tc.bound)
		if math.Abs(objects-tc.objects) > 1e-9 || math.Abs(bytes-tc.bytes) > 1e-9 {
			t.Errorf("%s: got %v %v, want %v %v", tc.name, objects, bytes, tc.objects, tc.bytes)
		}
	}
}

// measured is a run of one of each in which all went well.
func measured() results {
	blob := []rivalResult{
		{Name: ours, Runs: []measures{{"gbs": 4, "cpu_gb": 0.1, "anon": 10 << 20}}},
		{Name: nginxFiles, Runs: []measures{{"gbs": 2, "cpu_gb": 0.4, "anon": 1 << 20}}},
		{Name: dist3, Runs: []measures{{"gbs": 1, "cpu_gb": 0.9}}},
	}
	herd := []rivalResult{
		{Name: ours, Runs: []measures{{"max": 3, "first_max": 0.2, "up_ratio": 1, "up_gets": 200, "ideal_gets": 201, "cpu_gb": 0.2, "anon": 30 << 20}}},
		{Name: nginxFiles, Runs: []measures{{"max": 6, "cpu_gb": 0.1}}},
	}
	manifest := []rivalResult{
		{Name: ours, Runs: []measures{{"rps": 96, "p99": 0.005, "cpu_k": 0.01, "anon": 1 << 20}}},
		{Name: bareGo, Runs: []measures{{"rps": 100, "p99": 0.005, "cpu_k": 0.01}}},
	}
	return results{Workloads: []workloadResult{
		{Name: "warm-blob-16", Family: "blob", Clients: 16, Rivals: blob},
		{Name: "herd-100", Family: "herd", Clients: 100, Rivals: herd},
		{Name: "warm-manifest-tag-keep", Family: "manifest", Rivals: manifest},
		{Name: "trace", Family: "trace", Rivals: []rivalResult{{Name: ours, Runs: []measures{{"hit_objects": 0.8, "lru_objects": 0.7, "hit_bytes": 0.9, "lru_bytes": 0.8, "quota": 1, "disk": 190e6, "bound": 200e6, "anon": 1 << 20}}}}},
		{Name: "start-10000", Family: "start", Rivals: []rivalResult{{Name: ours, Runs: []measures{{"ready": 0.01, "anon": 1 << 20}}}}},
	}}
}

// of is a rival's result in a workload, to be changed.
func (r results) of(workload, rival int) *rivalResult { return &r.Workloads[workload].Rivals[rival] }

func TestCompare(t *testing.T) {
	const blob, herd, manifest, trace, start, us, nginx = 0, 1, 2, 3, 4, 0, 1
	set := func(workload int, key string, v float64) func(*results) {
		return func(r *results) { r.of(workload, us).Runs[0][key] = v }
	}
	fail := func(workload, rival int) func(*results) {
		return func(r *results) { r.of(workload, rival).Failed, r.of(workload, rival).Runs = "status 500", nil }
	}
	herds := options{only: []string{"herd"}}
	for _, tc := range []struct {
		name   string
		change func(*results)
		worse  int
		says   string
		asked  options
	}{
		{name: "equal", change: func(*results) {}, says: "+0 %"},
		{name: "better", change: set(blob, "gbs", 18), says: "+350 %"},
		{name: "a ratio a little worse", change: set(blob, "cpu_gb", 0.12), says: "+20 %"},
		{name: "worse where lower is better", change: set(blob, "cpu_gb", 0.13), worse: 1, says: "WORSE"},
		{name: "worse where higher is better, and a target missed", change: set(blob, "gbs", 3), worse: 2, says: "was met with 2.00 ×, is 1.50 × missed: WORSE"},
		{name: "a target missed by less than is allowed", change: set(blob, "gbs", 3.9), worse: 1, says: "target warm blob, 16 connections"},
		{name: "a count a little worse", change: set(herd, "up_gets", 201), says: "is 201"},
		{name: "a count more than that", change: set(herd, "up_gets", 204), worse: 2, says: "WORSE"},
		{name: "bytes from upstream", change: set(herd, "up_ratio", 1.02), worse: 2, says: "WORSE"},
		{name: "bytes from upstream in one round", change: func(r *results) {
			us := r.of(herd, us)
			us.Runs = append(us.Runs, maps.Clone(us.Runs[0]), maps.Clone(us.Runs[0]))
			us.Runs[1]["up_ratio"] = 20
		}, worse: 2, says: "WORSE"},
		{name: "a first byte late", change: set(herd, "first_max", 0.5), worse: 1, says: "is 500 ms missed"},
		{name: "a first byte ten times as late", change: set(herd, "first_max", 2), worse: 2, says: "WORSE"},
		{name: "processor time of a herd", change: set(herd, "cpu_gb", 1), worse: 1, says: "WORSE"},
		{name: "slow answers", change: set(manifest, "p99", 0.1), worse: 1, says: "WORSE"},
		{name: "requests by noise below their target", change: set(manifest, "rps", 93), says: "is 0.930 ×; an answer takes 10.0 µs of processor time, bare's 10.0 µs missed, by no more than rounds differ"},
		{name: "requests by more than that", change: set(manifest, "rps", 91), worse: 1, says: "missed: WORSE"},
		{name: "hits by objects", change: set(trace, "hit_objects", 0.4), worse: 1, says: "WORSE"},
		{name: "a start", change: set(start, "ready", 1), worse: 1, says: "WORSE"},
		{name: "memory", change: set(herd, "anon", 50<<20), worse: 1, says: "+67 %"},
		{name: "another workload alone", change: func(r *results) { r.Workloads = r.Workloads[herd : herd+1] }, says: "not run", asked: herds},
		{name: "that workload is not there", change: func(r *results) { r.Workloads = r.Workloads[:herd] }, worse: 6, says: "not run: WORSE", asked: herds},
		{name: "a workload is not there", change: func(r *results) { r.Workloads = r.Workloads[:start] }, worse: 2, says: "not run: WORSE"},
		{name: "our row is not there", change: func(r *results) { r.Workloads[blob].Rivals = r.Workloads[blob].Rivals[1:] }, worse: 3, says: "not measured, though it was to be: WORSE"},
		{name: "without what we are measured by", change: func(r *results) { r.Workloads[blob].Rivals = r.Workloads[blob].Rivals[:1] }, says: "without nginx-files", asked: options{rivals: []string{bareGo}}},
		{name: "and it was to be there", change: func(r *results) { r.Workloads[blob].Rivals = r.Workloads[blob].Rivals[:1] }, worse: 2, says: "not measured, though it was to be: WORSE"},
		{name: "we fail", change: fail(blob, us), worse: 6, says: "entrepot failed in warm-blob-16: status 500"},
		{name: "we fail after a round", change: func(r *results) { r.of(blob, us).Failed = "status 500" }, worse: 6, says: "entrepot failed in warm-blob-16: status 500"},
		{name: "what we are measured by fails", change: fail(blob, nginx), worse: 2, says: "nginx-files failed in warm-blob-16: status 500"},
		{name: "another rival fails", change: fail(blob, 2), says: "+0 %"},
		{name: "a workload is skipped", change: func(r *results) { r.Workloads[blob].Rivals, r.Workloads[blob].Skipped = nil, "no TUN device" }, worse: 3, says: "warm-blob-16 was skipped: no TUN device"},
		{name: "a figure is gone", change: func(r *results) { delete(r.of(blob, us).Runs[0], "anon") }, worse: 2, says: "it has no anon"},
	} {
		now := measured()
		tc.change(&now)
		got := compare(measured(), now, tc.asked)
		if got.worse != tc.worse || !strings.Contains(got.text, tc.says) {
			t.Errorf("%s: %d are worse, want %d, and it should say %q:\n%s", tc.name, got.worse, tc.worse, tc.says, got.text)
		}
	}
}

// What could not be had once is no measure, and no failure once it can.
func TestCompareWithAFailure(t *testing.T) {
	before := measured()
	before.of(0, 0).Failed = "status 500"
	if got := compare(before, measured(), options{}); got.worse != 0 || !strings.Contains(got.text, "was not to be had, is 2.000") {
		t.Errorf("%d are worse:\n%s", got.worse, got.text)
	}
}

func TestTargetsAreMissedByWhoFails(t *testing.T) {
	judged := func(r results, key string) (all []string) {
		for _, t := range targets {
			if strings.Contains(t.what, key) {
				all = append(all, t.of(r).String())
			}
		}
		return all
	}
	r := measured()
	r.of(1, 0).Failed = "status 500"
	for key, want := range map[string]string{
		"herd of 100: GETs": "missed: failed (entrepot failed in herd-100: status 500)",
		"anonymous memory":  "missed: failed (entrepot failed in herd-100: status 500)",
		"16 connections":    "2.00 × met",
		"cold pull":         "not measured",
	} {
		if got := judged(r, key); len(got) != 1 || got[0] != want {
			t.Errorf("%s: got %q, want %q", key, got, want)
		}
	}
	r = measured()
	r.of(0, 1).Failed = "no such program"
	if got, want := judged(r, "16 connections"), "not measured (nginx-files failed in warm-blob-16: no such program)"; got[0] != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// What misses its target says why, by what was seen in the run.
func TestMissedTargetsSayWhy(t *testing.T) {
	r := measured()
	r.Workloads[2].Rivals[0].Runs[0]["rps"] = 90
	for want, seen := range map[string]*insight{
		"| 0.900 ×; an answer takes 10.0 µs of processor time, bare's 10.0 µs | missed (most processor time goes to `runtime.futex` 33.3 %, `a.b` 1 %; goroutines wait for locks 1.27 s in a second) |": {
			Busy: []string{"`runtime.futex` 33.3 %", "`a.b` 1 %"}, Waited: 1.27,
		},
		"bare's 10.0 µs | missed (no profile: it ended) |": {Failed: "it ended"},
		"bare's 10.0 µs | missed |":                        nil,
	} {
		r.Workloads[2].Insight = seen
		if page := report(r, nil, ""); !strings.Contains(page, want) {
			t.Errorf("the page does not say %q:\n%s", want, page)
		}
	}
}

func TestTopOf(t *testing.T) {
	got := topOf("File: x\n      flat  flat%   sum%        cum   cum%\n     0.50s 33.3% 33.3%      0.50s 33.3%  runtime.futex\n         0     0% 33.3%      0.40s 26.0%  net/http.(*conn).serve\n")
	if want := []string{"`runtime.futex` 33.3 %"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// The time to send is the lesser of what nginx takes and what we do; the first
// byte of each round counts, and hits have to be more than LRU's by something.
func TestTargetsAreJudgedByTheRightFigure(t *testing.T) {
	judge := func(r results, what string) judgement {
		i := slices.IndexFunc(targets, func(t target) bool { return strings.HasPrefix(t.what, what) })
		return targets[i].of(r)
	}
	r := measured()
	r.Workloads = append(r.Workloads,
		workloadResult{Name: "herd-1", Family: "herd", Rivals: []rivalResult{{Name: ours, Runs: []measures{{"max": 1, "ideal": 300e6}}}}},
		workloadResult{Name: "warm-blob-64", Family: "blob", Rivals: []rivalResult{{Name: ours, Runs: []measures{{"gbs": 10}}}}})
	if got := judge(r, "herd of 100: slowest"); got.state != met || got.found != "3.00 s of 1.00 s + 3.00 s: 0.750 ×" {
		t.Errorf("sending: %v", got)
	}
	us := r.of(1, 0)
	us.Runs = append(us.Runs, maps.Clone(us.Runs[0]), maps.Clone(us.Runs[0]))
	us.Runs[1]["first_max"] = 0.5
	if got := judge(r, "herd of 100: first"); got.state != missed {
		t.Errorf("a round's first byte late: %v", got)
	}
	us = r.of(3, 0)
	us.Runs[0]["hit_bytes"], us.Runs[0]["lru_bytes"] = 0.801617781975378, 0.8016177819753779
	if got := judge(r, "trace: hits by bytes"); got.state != missed {
		t.Errorf("as many hits as LRU: %v", got)
	}
	for seconds, want := range map[float64]state{1500: met, 1700: missed, 0: unmeasured} {
		r.Seconds, r.Before = seconds, min(seconds, 200)
		if got := judge(r, "`make bench`"); got.state != want {
			t.Errorf("after %v s: %v, want %s", seconds, got, want)
		}
	}
}

// Rivals that nothing is compared with have fewer rounds.
func TestFewerRounds(t *testing.T) {
	w := workload{family: "manifest", few: 2}
	for _, tc := range []struct {
		rival  string
		rounds int
		want   bool
	}{{ours, 6, false}, {bareGo, 6, false}, {dist3, 1, false}, {dist3, 2, true}, {nginxFiles, 2, true}} {
		if got := w.enough(tc.rival, tc.rounds); got != tc.want {
			t.Errorf("%s after %d rounds: %v, want %v", tc.rival, tc.rounds, got, tc.want)
		}
	}
	if w.few = 0; w.enough(dist3, 5) {
		t.Error("no bound is one")
	}
}

// TestSetupGoesOn: a package that cannot be installed keeps no other from it.
func TestSetupGoesOn(t *testing.T) {
	dir := t.TempDir()
	for name, script := range map[string]string{
		"apt-get":    `echo "$@" >>"$CALLS"; case $* in *docker-registry*) exit 100;; esac`,
		"dpkg-query": "exit 1", "id": "echo 0", "go": "exit 0",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, tool := range []string{"grep", "chmod", "rm"} {
		at, err := exec.LookPath(tool)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(at, filepath.Join(dir, tool)); err != nil {
			t.Fatal(err)
		}
	}
	calls, policy := filepath.Join(dir, "calls"), filepath.Join(dir, "policy")
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "setup.sh")
	cmd.Env = []string{"PATH=" + dir, "CALLS=" + calls, "POLICY=" + policy}
	out, err := cmd.CombinedOutput()
	got, _ := os.ReadFile(calls)
	if err != nil || !strings.Contains(string(out), "docker-registry could not be installed") || !strings.Contains(string(got), "install nginx-light\n") || !strings.Contains(string(got), "install iproute2\n") {
		t.Errorf("%v\n%s\ncalls:\n%s", err, out, got)
	}
	if _, err := os.Stat(policy); err == nil {
		t.Error("services are still kept from starting")
	}
}

// TestPiecesFollowARedirectOnce: where a registry redirected to is asked from then on.
func TestPiecesFollowARedirectOnce(t *testing.T) {
	content := pattern{1, 4 * piece}
	var asked []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Path)
		if r.URL.Path != "/there" {
			http.Redirect(w, r, "/there", http.StatusTemporaryRedirect)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, io.NewSectionReader(content, 0, content.size))
	}))
	defer srv.Close()
	p, idle := newPuller(&server{addr: strings.TrimPrefix(srv.URL, "http://")})
	defer idle()
	layer := blob{Seed: 1, Size: content.size}
	for n := range int64(3) {
		if _, err := p.piece(t.Context(), "library/x", layer, n*piece, piece); err != nil {
			t.Fatal(err)
		}
	}
	if len(asked) != 4 {
		t.Errorf("three pieces took %q", asked)
	}
}

func TestFarClientsAreExplained(t *testing.T) {
	r := results{Workloads: []workloadResult{{Name: farName, Family: "far", Rivals: []rivalResult{{Name: ours, Runs: []measures{{"mbs": 90}}}}}}}
	if page := report(r, nil, ""); !strings.Contains(page, notes[farName]) {
		t.Errorf("the page does not say %q:\n%s", notes[farName], page)
	}
}

// A run in which we fail, or what we are measured by, is written, and an error.
func TestFailuresEndARun(t *testing.T) {
	for name, tc := range map[string]struct {
		workload, rival int
		want            string
	}{
		"we": {1, 0, "entrepot failed in herd-100: status 500"}, "the measure": {0, 1, "nginx-files failed in warm-blob-16: status 500"}, "another": {0, 2, ""},
	} {
		for _, check := range []bool{false, true} {
			r, dir := measured(), t.TempDir()
			r.of(tc.workload, tc.rival).Failed = "status 500"
			o := options{results: filepath.Join(dir, "results.json"), docs: dir}
			if check {
				o.check = o.results
			}
			err := publish(r, o)
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tc.want)) {
				t.Errorf("%s, check %v: got %v, want %q", name, check, err, tc.want)
			}
			if _, err := os.Stat(filepath.Join(dir, "performance.md")); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// Bytes are the same however they are read, and no two pages are alike.
func TestPattern(t *testing.T) {
	p := pattern{7, 3*block/2 + 5}
	whole := make([]byte, p.size)
	if n, err := p.ReadAt(whole, 0); int64(n) != p.size || err != nil {
		t.Fatalf("read %d: %v", n, err)
	}
	for _, off := range []int64{0, 1, 7, 8, page - 1, page, page + 3, block - 2, block + 1, p.size - 9} {
		for _, n := range []int64{1, 5, 8, page, page + 9} {
			got := make([]byte, n)
			m, err := p.ReadAt(got, off)
			want := whole[off:min(off+n, p.size)]
			if !bytes.Equal(got[:m], want) || (int64(m) < n) != errors.Is(err, io.EOF) {
				t.Errorf("%d bytes at %d: got %d of them, %v; equal: %v", n, off, m, err, bytes.Equal(got[:m], want))
			}
		}
	}
	seen := map[string]bool{}
	for off := 0; off+page <= len(whole); off += page {
		seen[string(whole[off:off+page])] = true
	}
	if want := len(whole) / page; len(seen) != want {
		t.Errorf("%d different pages of %d", len(seen), want)
	}
	other := make([]byte, p.size)
	_, _ = pattern{8, p.size}.ReadAt(other, 0)
	if bytes.Equal(whole, other) {
		t.Error("two seeds give the same bytes")
	}
}

func TestPieceOffsets(t *testing.T) {
	const size, isolated, run = 256 << 20, 16, 8 << 20
	offsets := pieceOffsets(size, isolated, run)
	if len(offsets) != isolated+run/piece {
		t.Fatalf("%d reads", len(offsets))
	}
	for i, a := range offsets {
		if a < 0 || a+piece > size {
			t.Errorf("read %d is outside, at %d", i, a)
		}
		for j, b := range offsets[:min(i, isolated)] {
			if distance := max(a-b, b-a); distance < window+piece {
				t.Errorf("reads %d and %d are %d apart", i, j, distance)
			}
		}
	}
}

// A round's trace is the same in each run, larger than the cache, and its layers are
// too small for more than one transfer each, which hits are counted by.
func TestPlan(t *testing.T) {
	size := sizesOf(options{}).trace
	p := newPlan(size, 0)
	distinct, total := map[layerSpec]bool{}, int64(0)
	for _, versions := range p.versions {
		for _, spec := range versions {
			for _, l := range spec.Layers {
				if l.Size >= 32<<20 {
					t.Errorf("a layer of %d bytes", l.Size)
				}
				if !distinct[l] {
					total += l.Size
				}
				distinct[l] = true
			}
		}
	}
	if total < 2*size.bound {
		t.Errorf("%d bytes in all do not press on a bound of %d", total, size.bound)
	}
	if len(p.pulls) != size.pulls || len(p.moves) != traceMoves {
		t.Errorf("%d pulls, %d moves", len(p.pulls), len(p.moves))
	}
	if other := newPlan(size, 1); slices.Equal(other.pulls, p.pulls) {
		t.Error("another round has the same trace")
	}
	if again := newPlan(size, 0); again.versions[3][0].Layers[1] != p.versions[3][0].Layers[1] || again.pulls[77] != p.pulls[77] {
		t.Error("a second plan differs")
	}
}

func TestWire(t *testing.T) {
	for _, tc := range []struct {
		name, answer, says string
	}{
		{"whole", "HTTP/1.1 200 OK\r\nCONTENT-length: 5\r\nX: y\r\n\r\nhello", ""},
		{"cut", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", "EOF"},
		{"another size", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhell", "of 4 bytes, want 5"},
		{"chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "of -1 bytes"},
		{"refused", "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", "503"},
		{"nonsense", "hello\r\n\r\n", "hello"},
		{"a bad length", "HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\n", "five"},
	} {
		client, server := net.Pipe()
		go func() {
			_, _ = server.Read(make([]byte, 1000))
			_, _ = io.WriteString(server, tc.answer)
			server.Close()
		}()
		w, err := newWire(t.Context(), func(ctx context.Context, addr string) (net.Conn, error) { return client, nil }, "", 2)
		if err != nil {
			t.Fatal(err)
		}
		err = w.ask(request("x", "/"), 5)
		if tc.says == "" && err != nil || tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)) {
			t.Errorf("%s: got %v, want %q", tc.name, err, tc.says)
		}
		w.drop()
	}
}

// Processor time is told more finely than in the kernel's ticks of 10 ms.
func TestProcessorTime(t *testing.T) {
	before := cpuTime(os.Getpid())
	for cpuTime(os.Getpid())-before < time.Millisecond {
	}
	var all syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &all); err != nil {
		t.Fatal(err)
	}
	told := time.Duration(all.Utime.Nano() + all.Stime.Nano())
	if now := cpuTime(os.Getpid()); before == 0 || now < told-50*time.Millisecond {
		t.Errorf("%v, while the kernel says %v", now, told)
	}
	if cpuTime(1<<25) != 0 {
		t.Error("nobody has used time")
	}
}

// In a full run nothing is cut short.
func TestFullHasNoLimits(t *testing.T) {
	for _, w := range workloads(options{full: true}) {
		if w.limit != endless || strings.Contains(w.about, "Reads end") {
			t.Errorf("%s ends after %v: %s", w.name, w.limit, w.about)
		}
	}
}

func TestCustomRival(t *testing.T) {
	r, err := customRival("zot/docker-images=exec zot serve x=y")
	if err != nil || r.name != "zot" || (&server{rival: r, addr: "h:1"}).base() != "http://h:1/v2/docker-images/" {
		t.Errorf("got %+v, %v", r, err)
	}
	for _, flag := range []string{"zot", "=x", "zot="} {
		if _, err := customRival(flag); err == nil {
			t.Errorf("-rival %s was taken", flag)
		}
	}
}

func TestWrongFlagsAreRefused(t *testing.T) {
	for _, args := range [][]string{{"-run", "nonesuch"}, {"-rivals", "nonesuch"}, {"-rival", "x"}, {"more"}, {"-short", "-full"}, {"-report", "-results", "/nonexistent"}} {
		if err := run(t.Context(), args); err == nil {
			t.Errorf("%v was taken", args)
		}
	}
}

func TestFormats(t *testing.T) {
	for got, want := range map[string]string{
		seconds(0.0000123): "12.3 µs", seconds(0.25): "250 ms", seconds(12.34): "12.3 s", seconds(0): "0",
		times(1): "1.00 ×", times(0.0123): "0.012 ×", count(1234567.4): "1,234,567", count(-1000): "-1,000", count(999): "999",
		percent(0.1234): "12.3 %", mebibyte(3 << 19): "1.50 MiB", mebibytes([]int64{1 << 20, 2 << 20}): "1 + 2 MiB", plural(1, "core"): "1 core", plural(2, "core"): "2 cores",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// example has one of each that the report has to say something about.
func example() results {
	return results{
		Date: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Seconds: 1234.5,
		Machine: machine{Cores: 2, CPU: "Example CPU", Memory: 8 << 30, Kernel: "Linux 6.1", System: "Debian", Go: "go1.26", Disk: "ext4"},
		Rivals:  []rivalInfo{{ours, "this program", "commit abc"}, {nginxFiles, "plain files", "nginx/1.22"}, {dist3, "distribution", ""}},
		Workloads: []workloadResult{
			{
				Name: "warm-blob-1", Family: "blob", Title: "Warm blob, 1 connection", About: "One reads.", Clients: 1,
				Rivals: []rivalResult{
					{Name: ours, Runs: []measures{{"gbs": 3, "cpu_gb": 0.2, "anon": 5 << 20, "rss": 15 << 20}, {"gbs": 2.5, "cpu_gb": 0.3, "anon": 6 << 20, "rss": 16 << 20}}},
					{Name: nginxFiles, Runs: []measures{{"gbs": 2, "cpu_gb": 0.4, "anon": 1 << 20, "rss": 9 << 20}}},
					{Name: dist3, Runs: []measures{{"gbs": 1}}, Failed: "status 500: a | b"},
				},
			},
			{
				Name: "warm-blob-16", Family: "blob", Title: "Warm blob, 16 connections", About: "Sixteen read.", Clients: 16,
				Rivals: []rivalResult{
					{Name: ours, Runs: []measures{{"gbs": 4, "cpu_gb": 0.2, "anon": 90 << 20}}},
					{Name: nginxFiles, Runs: []measures{{"gbs": 2.5, "cpu_gb": 0.41}}},
				},
			},
			{Name: farName, Family: "far", Title: farTitle, Skipped: "a TUN device: operation not permitted"},
		},
	}
}

// Results are written where there was nothing yet, and read as they were.
func TestResultsAreKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results", "performance.json")
	if err := writeResults(path, example()); err != nil {
		t.Fatal(err)
	}
	got, err := readResults(path)
	if err != nil || !reflect.DeepEqual(got, example()) {
		t.Errorf("%v: read %+v, want %+v", err, got, example())
	}
}

func TestReport(t *testing.T) {
	got := report(example(), map[string]bool{"warm-blob": true, memoryPicture: true}, "../bench/results/performance.json")
	golden := filepath.Join("testdata", "performance.md")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the report differs from %s: look at it, and run go test -run TestReport -update . (got):\n%s", golden, got)
	}
}

// How long all takes is told by a run that leaves nothing out.
func TestAPartIsNotToldAsAll(t *testing.T) {
	const all, part = "The run took 10m0s, after 1m0s in which what was missing was installed and built", "**Not all workloads, rivals or rounds were run**; what was took 10m0s"
	for _, row := range []struct {
		run             options
		says, mark, not string
	}{
		{options{}, all, "| 11m0s | met |", part},
		{options{only: []string{"herd"}}, part, "| not measured |", "The run took"},
		{options{rivals: []string{bareGo}}, part, "| not measured |", "The run took"},
		{options{rounds: 1}, part, "| not measured |", "The run took"},
	} {
		r := example()
		r.Seconds, r.Before, r.Partial = 600, 60, row.run.isPart()
		page := report(r, nil, "")
		for line := range strings.Lines(page) {
			if strings.HasPrefix(line, "| `make bench`, with all that it installs") && !strings.Contains(line, row.mark) {
				t.Errorf("%+v: the target says %s", row.run, line)
			}
		}
		if !strings.Contains(page, row.says) || strings.Contains(page, row.not) {
			t.Errorf("%+v: the page does not say %q, or does %q:\n%.400s", row.run, row.says, row.not, page)
		}
	}
}

func TestPictures(t *testing.T) {
	pics := plots(example())
	if len(pics) != 2 || pics[0].name != memoryPicture || pics[1].name != "warm-blob" {
		t.Fatalf("got %d pictures", len(pics))
	}
	for _, log := range []bool{false, true} {
		pics[1].log = log
		svg, err := pics[1].draw()
		if err != nil {
			t.Fatal(err)
		}
		var text strings.Builder
		d := xml.NewDecoder(bytes.NewReader(svg))
		for {
			token, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("no XML: %v", err)
			}
			if data, ok := token.(xml.CharData); ok {
				text.Write(data)
			}
		}
		for _, want := range []string{ours, nginxFiles, dist3, "warm-blob-1", "warm-blob-16", "GB/s"} {
			if !strings.Contains(text.String(), want) {
				t.Errorf("log %v: the picture does not say %q: %s", log, want, &text)
			}
		}
	}
}

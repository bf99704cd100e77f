package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/cache"
	"entrepot/ledger"
	"entrepot/oci"
	"entrepot/proxy"
	"entrepot/ratelimit"
	"entrepot/store"
	"entrepot/upstream"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
)

func hitRecord() proxy.Record {
	return proxy.Record{
		Method: "GET", Kind: "manifest", Client: "192.0.2.7", UserAgent: "docker/28",
		Repository: oci.Repository{Host: "docker.io", Path: "library/alpine"}, Reference: "3.20",
		Outcome: oci.Outcome{Cache: oci.Hit, Why: "fresh", Spent: 1},
		Status:  200, Bytes: 1000, Duration: 3 * time.Millisecond,
	}
}

func observerOn(w io.Writer, level LogLevel) *observer {
	return newObserver(newLogger(w, level, "json"), newMetrics(build{}, []string{"docker.io", "ghcr.io"}), ledger.New())
}

func TestEveryRequestIsALineAtDebug(t *testing.T) {
	var out bytes.Buffer
	observerOn(&out, "debug").request(t.Context(), hitRecord())
	var got map[string]any
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatalf("%v in %s", err, &out)
	}
	delete(got, "time")
	want := map[string]any{
		"level": "debug", "message": "request", "method": "GET", "kind": "manifest",
		"upstream": "docker.io", "repository": "library/alpine", "reference": "3.20",
		"outcome": "hit", "why": "fresh", "status": 200.0, "bytes": 1000.0, "duration_seconds": 0.003, "spent": 1.0,
		"client": "192.0.2.7", "user_agent": "docker/28",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("line (-want +got):\n%s", diff)
	}
}

func TestTheAccessLogHasEveryRequest(t *testing.T) {
	down := hitRecord()
	down.Status, down.Err = 503, oci.Errorf(oci.Unavailable, "down")
	for level, want := range map[LogLevel]string{"debug": "info info warn warn", "info": "info info warn warn", "warn": "warn warn"} {
		var out bytes.Buffer
		o := observerOn(&out, level)
		o.access = true
		for _, r := range []proxy.Record{hitRecord(), hitRecord(), down, down} {
			o.request(t.Context(), r)
		}
		var got []string
		for line := range strings.Lines(out.String()) {
			var fields struct{ Level string }
			if err := json.Unmarshal([]byte(line), &fields); err != nil {
				t.Fatal(err)
			}
			got = append(got, fields.Level)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("at %s the lines are %q, want %q", level, got, want)
		}
	}
}

func TestOperatorsHearOfTrouble(t *testing.T) {
	disk := errors.New("disk on fire")
	for _, row := range []struct {
		name   string
		change func(*proxy.Record)
		want   string // the level at which it is logged; empty: not above debug
	}{
		{"hit", func(*proxy.Record) {}, ""},
		{"unknown tag", func(r *proxy.Record) { r.Status, r.Err = 404, oci.ErrManifestUnknown }, ""},
		{"client left early", func(r *proxy.Record) { r.Err = fmt.Errorf("%w: reset", proxy.ErrClientGone) }, ""},
		{"client left before", func(r *proxy.Record) { r.Status, r.Err = proxy.StatusClientGone, proxy.ErrClientGone }, ""},
		{"quota spent", func(r *proxy.Record) { r.Status, r.Err = 429, oci.ErrTooManyRequests }, "warn"},
		{"upstream down", func(r *proxy.Record) { r.Status, r.Err = 503, oci.ErrUnavailable }, "warn"},
		{"answer cut", func(r *proxy.Record) { r.Err = &oci.Error{Code: oci.BadUpstream, Err: io.ErrUnexpectedEOF} }, "warn"},
		{"our disk", func(r *proxy.Record) { r.Status, r.Err = 500, disk }, "error"},
		{"panic", func(r *proxy.Record) { r.Status, r.Err = 500, &proxy.PanicError{Value: "boo", Stack: []byte("here")} }, "error"},
	} {
		t.Run(row.name, func(t *testing.T) {
			var out bytes.Buffer
			r := hitRecord()
			row.change(&r)
			observerOn(&out, "info").request(t.Context(), r)
			got := ""
			for _, level := range []string{"debug", "info", "warn", "error"} {
				if strings.Contains(out.String(), `"level":"`+level+`"`) {
					got = level
				}
			}
			if got != row.want {
				t.Errorf("logged at %q, want %q: %s", got, row.want, &out)
			}
		})
	}
}

func TestTheLogTellsTheCauseThatClientsDoNotSee(t *testing.T) {
	var out bytes.Buffer
	r := hitRecord()
	r.Status, r.Err = 503, fmt.Errorf("resolve: %w", &oci.Error{Code: oci.Unavailable, Detail: "docker.io does not answer", Err: errors.New("dial tcp 192.0.2.1:443: refused")})
	observerOn(&out, "info").request(t.Context(), r)
	if want := "resolve: unavailable: docker.io does not answer: dial tcp 192.0.2.1:443: refused"; !strings.Contains(out.String(), want) {
		t.Errorf("no %q in %s", want, &out)
	}
}

func TestTroubleThatRepeatsIsHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		o := observerOn(&out, "info")
		lines := func() int { return strings.Count(out.String(), "\n") }
		down := hitRecord()
		down.Status, down.Err = 503, oci.ErrUnavailable
		other := down
		other.Repository.Host = "ghcr.io"
		for range 100 {
			o.request(t.Context(), down)
			o.request(t.Context(), other)
		}
		if lines() != 2 {
			t.Errorf("%d lines for two upstreams that are down, want 2", lines())
		}
		time.Sleep(repeatInterval)
		o.request(t.Context(), down)
		if lines() != 3 || !strings.Contains(out.String(), `"held_back":99`) {
			t.Errorf("a minute later the log is\n%s", &out)
		}
	})
}

func TestLoggingThatIsOffAllocatesNothing(t *testing.T) {
	o := observerOn(io.Discard, "info")
	r := hitRecord()
	o.request(t.Context(), r)
	if n := testing.AllocsPerRun(100, func() { o.request(t.Context(), r) }); n > 0 {
		t.Errorf("a hit costs %v allocations", n)
	}
}

func BenchmarkObserveHit(b *testing.B) {
	o := observerOn(io.Discard, "info")
	r := hitRecord()
	b.ReportAllocs()
	for b.Loop() {
		o.request(b.Context(), r)
	}
}

func TestRequestsAreCountedInAClosedSetOfSeries(t *testing.T) {
	m := newMetrics(build{}, []string{"docker.io"})
	for i, change := range []func(*proxy.Record){
		func(*proxy.Record) {},
		func(r *proxy.Record) { r.Repository = oci.Repository{Host: "evil.test", Path: "x"} },
		func(r *proxy.Record) { r.Kind = "stranger" },
		func(r *proxy.Record) { r.Outcome.Cache = "stranger" },
		func(r *proxy.Record) { r.Status = 7777 },
		func(r *proxy.Record) { r.Status = -1 },
		func(r *proxy.Record) { r.Err = io.ErrUnexpectedEOF },
	} {
		r := hitRecord()
		r.Bytes = int64(i + 1)
		change(&r)
		m.request(&r)
	}
	want := `
# HELP entrepot_requests_total Requests by clients, by what became of them.
# TYPE entrepot_requests_total counter
entrepot_requests_total{kind="manifest",outcome="hit",status="2xx",upstream="docker.io"} 2
entrepot_requests_total{kind="manifest",outcome="hit",status="2xx",upstream="none"} 1
entrepot_requests_total{kind="manifest",outcome="hit",status="5xx",upstream="docker.io"} 1
entrepot_requests_total{kind="manifest",outcome="hit",status="none",upstream="docker.io"} 1
entrepot_requests_total{kind="manifest",outcome="none",status="2xx",upstream="docker.io"} 1
entrepot_requests_total{kind="none",outcome="hit",status="2xx",upstream="docker.io"} 1
# HELP entrepot_response_bytes_total Bytes of bodies sent to clients.
# TYPE entrepot_response_bytes_total counter
entrepot_response_bytes_total{kind="manifest",outcome="hit",status="2xx",upstream="docker.io"} 8
entrepot_response_bytes_total{kind="manifest",outcome="hit",status="2xx",upstream="none"} 2
entrepot_response_bytes_total{kind="manifest",outcome="hit",status="5xx",upstream="docker.io"} 5
entrepot_response_bytes_total{kind="manifest",outcome="hit",status="none",upstream="docker.io"} 6
entrepot_response_bytes_total{kind="manifest",outcome="none",status="2xx",upstream="docker.io"} 4
entrepot_response_bytes_total{kind="none",outcome="hit",status="2xx",upstream="docker.io"} 3
# HELP entrepot_responses_cut_total Answers whose connection was cut after their headers, though the client was there.
# TYPE entrepot_responses_cut_total counter
entrepot_responses_cut_total{kind="manifest",upstream="docker.io"} 1
`
	if err := testutil.GatherAndCompare(m.registry, strings.NewReader(want), "entrepot_requests_total", "entrepot_response_bytes_total", "entrepot_responses_cut_total"); err != nil {
		t.Error(err)
	}
}

func TestStatusLabelsAreBounded(t *testing.T) {
	seen := map[string]bool{}
	for status := range 1000 {
		seen[statusLabel(status)] = true
	}
	if len(seen) > 70 {
		t.Errorf("%d labels for upstreams' statuses", len(seen))
	}
	for status, want := range map[int]string{0: "error", 200: "200", 429: "429", 999: "other"} {
		if got := statusLabel(status); got != want {
			t.Errorf("status %d is %q, want %q", status, got, want)
		}
	}
}

func TestKindLabelsAreTheRoutes(t *testing.T) {
	for kind := oci.Ping; kind <= oci.UploadKind; kind++ {
		if !slices.Contains(kindLabels[:], kind.String()) {
			t.Errorf("no label for %s", kind)
		}
	}
}

func TestLogFormats(t *testing.T) {
	var out bytes.Buffer
	for format, isJSON := range map[LogFormat]bool{"auto": true, "json": true, "console": false} {
		out.Reset()
		logger := newLogger(&out, "info", format)
		logger.Info().Str("data", "x").Msg("hello")
		if got := strings.HasPrefix(out.String(), "{"); got != isJSON {
			t.Errorf("format %s writes %s", format, &out)
		}
	}
	out.Reset()
	logger := newLogger(&out, "warn", "json")
	logger.Info().Msg("hello")
	if out.Len() > 0 || logger.GetLevel() != zerolog.WarnLevel {
		t.Errorf("level warn writes %s", &out)
	}
}

// TestQuotasOfTwoAccountsAreTwoSeries: a refused login and whoever asks from our
// address have quotas of their own; a scrape must bear both.
func TestQuotasOfTwoAccountsAreTwoSeries(t *testing.T) {
	m := newMetrics(build{Version: "test"}, []string{"docker.io"})
	m.watch(func() store.Stats { return store.Stats{} }, func() cache.Stats { return cache.Stats{} }, func() []upstream.Quota {
		return []upstream.Quota{
			{Upstream: "docker.io", Quota: ratelimit.Quota{Limit: 100, Left: 10}},
			{Upstream: "docker.io", Quota: ratelimit.Quota{Account: "me", Limit: 200, Left: 20}},
		}
	}, 0)
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "entrepot_quota_left" && len(f.GetMetric()) != 2 {
			t.Errorf("%d series, want 2", len(f.GetMetric()))
		}
	}
}

// TestLockWaitsAreMeasured beside what the runtime's metrics have anyway.
func TestLockWaitsAreMeasured(t *testing.T) {
	registry := newMetrics(readBuild(), nil).registry
	for _, want := range []string{"go_sync_mutex_wait_total_seconds_total", "go_goroutines", "go_memstats_heap_alloc_bytes"} {
		if n, err := testutil.GatherAndCount(registry, want); n != 1 || err != nil {
			t.Errorf("%s is there %d times: %v", want, n, err)
		}
	}
}

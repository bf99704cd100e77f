package main

import (
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"entrepot/internal/ocitest"

	"github.com/google/go-cmp/cmp"
	collector "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	wire "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// fakeCollector takes spans as a collector does.
type fakeCollector struct {
	*httptest.Server

	mu    sync.Mutex // guards what follows
	spans []*wire.Span
	asked int
}

func newCollector(t *testing.T) *fakeCollector {
	t.Helper()
	c := &fakeCollector{}
	c.Server = httptest.NewServer(c)
	t.Cleanup(c.Close)
	return c
}

func (c *fakeCollector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	body, _ := io.ReadAll(r.Body)
	var m collector.ExportTraceServiceRequest
	if r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" || proto.Unmarshal(body, &m) != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	for _, rs := range m.ResourceSpans {
		for _, ss := range rs.ScopeSpans {
			c.spans = append(c.spans, ss.Spans...)
		}
	}
}

// tree is the spans of a trace, each as the names that lead to it, in order, with
// what key has of it.
func (c *fakeCollector) tree(trace, key string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	byID := map[string]*wire.Span{}
	for _, s := range c.spans {
		if string(s.TraceId) == trace {
			byID[string(s.SpanId)] = s
		}
	}
	var lines []string
	for s := range maps.Values(byID) {
		line := s.Name
		for _, kv := range s.Attributes {
			if kv.Key == key {
				line += "=" + kv.Value.GetStringValue()
			}
		}
		for up := byID[string(s.ParentSpanId)]; up != nil; up = byID[string(up.ParentSpanId)] {
			line = up.Name + "/" + line
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return lines
}

// knows reports whether some span has the attribute.
func (c *fakeCollector) knows(key, value string) bool {
	for _, s := range c.spans {
		for _, kv := range s.Attributes {
			if kv.Key == key && kv.Value.GetStringValue() == value {
				return true
			}
		}
	}
	return false
}

// traced are the headers by which a client has a trace of its own, whose number
// is full of digit.
func traced(digit, sampled string) (id string, header http.Header) {
	id = strings.Repeat(string(digit[0]-'0'+(digit[0]-'0')<<4), 16)
	return id, http.Header{"Traceparent": {"00-" + strings.Repeat(digit, 32) + "-00f067aa0ba902b7-" + sampled}}
}

// TestTraces follows a cold pull and a warm one, each in the trace that its
// client has begun.
func TestTraces(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	image := ocitest.RandomImage(1, 1<<20)
	hub.Push("library/app", "1", image)
	c := newCollector(t)
	p := startProgram(t, hub, "ENTREPOT_TRACE_ENDPOINT="+c.URL, "ENTREPOT_TRACE_RATIO=0%")
	pull := func(header http.Header) {
		t.Helper()
		for _, uri := range []string{"/v2/app/manifests/1", "/v2/app/blobs/" + image.Blobs[1].Digest.String()} {
			if status := getWith(t, p.registry+uri, header); status != http.StatusOK {
				t.Fatalf("%s: status %d", uri, status)
			}
		}
	}
	cold, header := traced("1", "01")
	pull(header)
	warm, header := traced("2", "01")
	pull(header)
	unsampled, header := traced("3", "00")
	pull(header)
	pull(nil) // of which the ratio keeps nothing
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	const key = "entrepot.kind"
	if diff := cmp.Diff([]string{
		"request/manifest",
		"request/manifest/upstream request=manifest",
		"request/open blob",
		"request/open blob/fill",
		"request/open blob/fill/upstream request=blob",
		"request/open blob/fill/upstream request=blob", // where it was redirected to
		"request/resolve",
		"request/resolve/upstream request=manifest",
		"request/resolve/upstream request=manifest", // with a token
		"request/resolve/upstream request=token",
		"request=blob",
		"request=manifest",
	}, c.tree(cold, key)); diff != "" {
		t.Errorf("cold pull (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{
		"request/manifest=hit", "request/open blob=hit", "request/resolve=hit", "request=hit", "request=hit",
	}, c.tree(warm, "entrepot.outcome")); diff != "" {
		t.Errorf("warm pull (-want +got):\n%s", diff)
	}
	if got := c.tree(unsampled, key); got != nil {
		t.Errorf("a trace that its client does not keep has %q", got)
	}
	for _, s := range c.spans {
		if id := string(s.TraceId); id != cold && id != warm {
			t.Errorf("a span of a trace that nobody keeps: %v", s)
		}
	}
}

// TestNothingIsTracedUnlessToldTo, whatever the variables say that the library
// would read.
func TestNothingIsTracedUnlessToldTo(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	hub.Push("library/app", "1", ocitest.RandomImage(1, 100))
	c := newCollector(t)
	p := startProgram(t, hub, "OTEL_EXPORTER_OTLP_ENDPOINT="+c.URL, "OTEL_TRACES_EXPORTER=otlp")
	_, header := traced("1", "01")
	if status := getWith(t, p.registry+"/v2/app/manifests/1", header); status != http.StatusOK {
		t.Fatal(status)
	}
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	if c.asked != 0 {
		t.Errorf("the collector was asked %d times", c.asked)
	}
}

// TestACollectorInTroubleIsToldOnceAMinute, and costs no request.
func TestACollectorInTroubleIsToldOnceAMinute(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	hub.Push("library/app", "1", ocitest.RandomImage(1, 100))
	broken := httptest.NewServer(http.NotFoundHandler())
	defer broken.Close()
	p := startProgram(t, hub, "ENTREPOT_TRACE_ENDPOINT="+broken.URL)
	if status := getWith(t, p.registry+"/v2/app/manifests/1", nil); status != http.StatusOK {
		t.Fatal(status)
	}
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(p.log.String(), "traces are lost"); n != 1 {
		t.Errorf("the log tells %d times of lost traces:\n%s", n, p.log)
	}
}

func getWith(t *testing.T, url string, header http.Header) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if header != nil {
		req.Header = header
	}
	resp, err := newClient(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode
}

package trace

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"entrepot/oci"

	collector "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	wire "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// export traces one request that does work, and returns what a collector gets
// that answers by answer, and what is told of lost spans.
func export(t *testing.T, answer http.HandlerFunc, work http.HandlerFunc) (got *collector.ExportTraceServiceRequest, failed []error) {
	t.Helper()
	got = new(collector.ExportTraceServiceRequest)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if err := proto.Unmarshal(body, got); err != nil {
			t.Error(err)
		}
		if answer != nil {
			answer(w, r)
		}
	}))
	defer server.Close()
	tracer := New(Config{Endpoint: server.URL, Ratio: 1, Version: "1", Proxy: http.ProxyURL(nil), Failed: func(err error) { failed = append(failed, err) }})
	tracer.Handler(work).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil))
	if err := tracer.Close(t.Context()); err != nil {
		t.Error(err)
	}
	return got, failed
}

func TestLostSpansAreTold(t *testing.T) {
	partial, _ := proto.Marshal(&collector.ExportTraceServiceResponse{PartialSuccess: &collector.ExportTracePartialSuccess{RejectedSpans: 1, ErrorMessage: "no room"}})
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		want   string // empty: nothing is lost
	}{
		"taken":           {nil, ""},
		"refused":         {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) }, "answers 429"},
		"partly":          {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(partial) }, `refused 1: "no room"`},
		"another service": {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }, "is this the HTTP port"},
		"led elsewhere": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		}, "answers 307"},
	} {
		t.Run(name, func(t *testing.T) {
			_, failed := export(t, test.answer, func(http.ResponseWriter, *http.Request) {})
			err := errors.Join(failed...)
			if test.want == "" && err != nil || test.want != "" && (err == nil || len(failed) != 1 || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("told %v, want %q", failed, test.want)
			}
		})
	}
}

// TestStrangersBytesDoNotLoseABatch: protobuf takes no text that is not UTF-8,
// and a batch has the spans of many requests.
func TestStrangersBytesDoNotLoseABatch(t *testing.T) {
	got, failed := export(t, nil, func(_ http.ResponseWriter, r *http.Request) {
		oci.SpanOf(r.Context()).Tell("user_agent.original", "a\xffb"+strings.Repeat("é", maxValue), "empty", "")
		_, s := oci.BeginSpan(r.Context(), "work", "bytes", int64(7))
		oci.EndSpan(s, errors.New("bad \xff"))
	})
	if failed != nil {
		t.Fatal(failed)
	}
	spans := got.ResourceSpans[0].ScopeSpans[0].Spans
	if len(spans) != 2 {
		t.Fatalf("%d spans, want 2", len(spans))
	}
	inner, request := spans[0], spans[1]
	if a := request.Attributes; len(a) != 1 || len(a[0].Value.GetStringValue()) > maxValue+8 || !strings.HasPrefix(a[0].Value.GetStringValue(), "a") {
		t.Errorf("attributes %v", a)
	}
	if inner.Status.Code != wire.Status_STATUS_CODE_ERROR || inner.Status.Message != "bad \uFFFD" || inner.Attributes[0].Value.GetIntValue() != 7 {
		t.Errorf("the inner span is %v", inner)
	}
}

func TestRequestsThatAreNotTracedCarryNothing(t *testing.T) {
	tracer := New(Config{Endpoint: "http://127.0.0.1:1", Ratio: 0, Failed: func(err error) { t.Error(err) }})
	tracer.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if s := oci.SpanOf(r.Context()); s != nil {
			t.Errorf("the request has the span %v", s)
		}
	})).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil))
	if err := tracer.Close(context.Background()); err != nil {
		t.Error(err)
	}
}

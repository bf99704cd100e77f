package trace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	otel "go.opentelemetry.io/otel/trace"
	collector "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/slim/otlp/common/v1"
	resource "go.opentelemetry.io/proto/slim/otlp/resource/v1"
	wire "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

const (
	exportTimeout = 5 * time.Second
	maxAnswer     = 64 << 10
	tracesPath    = "/v1/traces" // OTLP specification, "OTLP/HTTP Request"
)

// exporter sends spans to a collector, once: those that do not arrive are gone.
// (The OpenTelemetry project's own exporter brings gRPC along, a third of this
// program's size, also where HTTP is spoken.)
type exporter struct {
	url    string
	client *http.Client
	from   *resource.Resource
	failed func(error)
}

func newExporter(cfg Config) *exporter {
	url := cfg.Endpoint
	if _, rest, _ := strings.Cut(url, "://"); !strings.Contains(rest, "/") {
		url += tracesPath
	}
	return &exporter{
		url: url,
		client: &http.Client{
			Transport:     &http.Transport{Proxy: cfg.Proxy, MaxIdleConns: 2, IdleConnTimeout: time.Minute, MaxResponseHeaderBytes: maxAnswer},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Timeout:       exportTimeout,
		},
		from: &resource.Resource{Attributes: keyValues([]attribute.KeyValue{
			attribute.String("service.name", "entrepot"), attribute.String("service.version", cfg.Version),
		})},
		failed: cfg.Failed,
	}
}

// ExportSpans never fails: what is lost is told here.
func (e *exporter) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	if err := e.send(ctx, spans); err != nil {
		e.failed(fmt.Errorf("%d spans: %w", len(spans), err))
	}
	return nil
}

// Shutdown ends after the last ExportSpans.
func (e *exporter) Shutdown(context.Context) error {
	e.client.CloseIdleConnections()
	return nil
}

func (e *exporter) send(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	body, err := proto.Marshal(e.message(spans))
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-protobuf")
	resp, err := e.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	switch {
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("%s answers %d", e.url, resp.StatusCode)
	case err != nil:
		return fmt.Errorf("read the answer of %s: %w", e.url, err)
	}
	return refused(answer)
}

// refused is why a collector did not take all of a batch that it took. An answer
// that says nothing of it is one that took all.
func refused(answer []byte) error {
	var said collector.ExportTraceServiceResponse
	if err := proto.Unmarshal(answer, &said); err != nil {
		return errors.New("the answer is no protobuf: is this the HTTP port of a collector?")
	}
	if n := said.GetPartialSuccess().GetRejectedSpans(); n > 0 {
		return fmt.Errorf("the collector refused %d: %.200q", n, said.GetPartialSuccess().GetErrorMessage())
	}
	return nil
}

func (e *exporter) message(spans []sdk.ReadOnlySpan) *collector.ExportTraceServiceRequest {
	scope := &wire.ScopeSpans{Scope: &common.InstrumentationScope{Name: "entrepot"}}
	for _, s := range spans {
		scope.Spans = append(scope.Spans, wireSpan(s))
	}
	return &collector.ExportTraceServiceRequest{ResourceSpans: []*wire.ResourceSpans{{Resource: e.from, ScopeSpans: []*wire.ScopeSpans{scope}}}}
}

func wireSpan(s sdk.ReadOnlySpan) *wire.Span {
	of, parent := s.SpanContext(), s.Parent()
	trace, id := of.TraceID(), of.SpanID()
	w := &wire.Span{
		TraceId: trace[:], SpanId: id[:], TraceState: of.TraceState().String(), Flags: uint32(of.TraceFlags()),
		Name: s.Name(), Kind: wire.Span_SPAN_KIND_INTERNAL,
		StartTimeUnixNano: uint64(max(0, s.StartTime().UnixNano())), EndTimeUnixNano: uint64(max(0, s.EndTime().UnixNano())),
		Attributes: keyValues(s.Attributes()), DroppedAttributesCount: uint32(max(0, s.DroppedAttributes())),
		Status: &wire.Status{},
	}
	if s.SpanKind() == otel.SpanKindServer {
		w.Kind = wire.Span_SPAN_KIND_SERVER
	}
	if up := parent.SpanID(); parent.HasSpanID() {
		w.ParentSpanId = up[:]
	}
	if s.Status().Code == codes.Error {
		w.Status = &wire.Status{Code: wire.Status_STATUS_CODE_ERROR, Message: text(s.Status().Description)}
	}
	return w
}

func keyValues(all []attribute.KeyValue) []*common.KeyValue {
	var list []*common.KeyValue
	for _, kv := range all {
		v := &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: text(kv.Value.String())}}
		if kv.Value.Type() == attribute.INT64 {
			v.Value = &common.AnyValue_IntValue{IntValue: kv.Value.AsInt64()}
		}
		list = append(list, &common.KeyValue{Key: string(kv.Key), Value: v})
	}
	return list
}

// text is a string as protobuf takes one: a User-Agent may be any bytes, and one
// that is not UTF-8 would lose the whole batch.
func text(s string) string {
	if len(s) > maxValue {
		s = s[:maxValue]
	}
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	return s
}

// Package trace tells an OpenTelemetry collector where the time of a request
// went: by OTLP over HTTP, in protobuf. It knows nothing of what is traced: the
// parts of the program begin their spans by package oci, and this package starts
// with those of a request.
//
// Start with Tracer.Handler. export.go is what goes over the wire.
package trace

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"entrepot/oci"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	otel "go.opentelemetry.io/otel/trace"
)

// Config says where spans go. Every field is required.
type Config struct {
	Endpoint string  // http(s)://host[:port][/path] of a collector; without a path its usual one
	Ratio    float64 // of the requests that are not part of a trace already
	Version  string  // of the program
	Proxy    func(*http.Request) (*url.URL, error)
	Failed   func(error) // hears of spans that did not arrive; it must return quickly
}

// The bounds of what waits to be sent, and of each span. What is more is dropped.
const (
	queueSize  = 2048
	batchSize  = 512
	batchEvery = 2 * time.Second
	maxValue   = 512 // bytes of what a stranger may have written
	maxEntries = 32
)

// Tracer traces requests. Close it.
type Tracer struct {
	provider *sdk.TracerProvider
	tracer   otel.Tracer
}

// New makes a Tracer. It dials nobody before there is something to tell. All that
// the library would read of the environment is set here.
func New(cfg Config) *Tracer {
	provider := sdk.NewTracerProvider(
		sdk.WithSampler(sdk.ParentBased(sdk.TraceIDRatioBased(cfg.Ratio))),
		sdk.WithRawSpanLimits(sdk.SpanLimits{
			AttributeValueLengthLimit: maxValue, AttributeCountLimit: maxEntries,
			EventCountLimit: 0, LinkCountLimit: 0, AttributePerEventCountLimit: 0, AttributePerLinkCountLimit: 0,
		}),
		sdk.WithBatcher(newExporter(cfg),
			sdk.WithMaxQueueSize(queueSize), sdk.WithMaxExportBatchSize(batchSize),
			sdk.WithBatchTimeout(batchEvery), sdk.WithExportTimeout(exportTimeout)),
	)
	return &Tracer{provider, provider.Tracer("entrepot")}
}

// Close sends what is left, within ctx.
func (t *Tracer) Close(ctx context.Context) error {
	if err := t.provider.Shutdown(ctx); err != nil {
		return fmt.Errorf("send the last spans: %w", err)
	}
	return nil
}

// Handler begins a span with each request, and a trace unless the client has
// begun one by a traceparent, which also says whether it is to be kept.
func (t *Tracer) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
		_, begun := t.tracer.Start(ctx, "request", otel.WithSpanKind(otel.SpanKindServer))
		if !begun.IsRecording() {
			next.ServeHTTP(w, r)
			return
		}
		s := &span{t.tracer, begun}
		defer begun.End() // the second end, which is none, unless nobody has told of this request
		next.ServeHTTP(w, r.WithContext(oci.WithSpan(r.Context(), s)))
	})
}

// span is an oci.Span.
type span struct {
	tracer otel.Tracer
	of     otel.Span
}

func (s *span) Begin(work string, about ...any) oci.Span {
	_, begun := s.tracer.Start(otel.ContextWithSpan(context.Background(), s.of), work, otel.WithAttributes(attributes(about)...))
	return &span{s.tracer, begun}
}

func (s *span) Tell(about ...any) { s.of.SetAttributes(attributes(about)...) }

func (s *span) End(err error) {
	if err != nil {
		s.of.SetStatus(codes.Error, err.Error())
	}
	s.of.End()
}

// attributes makes pairs of keys and values. What is empty says nothing.
func attributes(about []any) []attribute.KeyValue {
	var all []attribute.KeyValue
	for i := 0; i+1 < len(about); i += 2 {
		key := attribute.Key(about[i].(string)) // else a mistake of ours
		switch v := about[i+1].(type) {
		case int:
			all = append(all, key.Int(v))
		case int64:
			all = append(all, key.Int64(v))
		default:
			if text := fmt.Sprint(v); text != "" {
				all = append(all, key.String(text))
			}
		}
	}
	return all
}

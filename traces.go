package main

import (
	"context"
	"net/http"

	"entrepot/oci"
	"entrepot/trace"

	"github.com/rs/zerolog"
)

// traces are what follows requests through the program. Without a collector they
// are nothing, and nothing of it stands in the way of a request.
type traces struct{ tracer *trace.Tracer }

func openTraces(cfg *Config, about build, watcher *observer) traces {
	if cfg.TraceEndpoint == "" {
		return traces{}
	}
	watcher.traces = true
	return traces{trace.New(trace.Config{
		Endpoint: string(cfg.TraceEndpoint), Ratio: cfg.TraceRatio.Fraction(), Version: about.Version, Proxy: cfg.Proxy(), Failed: watcher.traceFailure,
	})}
}

func (t traces) requests(api http.Handler) http.Handler {
	if t.tracer == nil {
		return api
	}
	return t.tracer.Handler(api)
}

func (t traces) source(src oci.Source) oci.Source {
	if t.tracer == nil {
		return src
	}
	return trace.Source(src)
}

// close sends what is left, if the collector takes it soon.
func (t traces) close(logger zerolog.Logger) {
	if t.tracer == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeGrace)
	defer cancel()
	if err := t.tracer.Close(ctx); err != nil {
		logger.Warn().Err(err).Msg("traces")
	}
}

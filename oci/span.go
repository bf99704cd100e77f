package oci

import "context"

// Span is a piece of work in a trace, as long as it goes on. It is the one thing
// that travels in a context, since it is only looked at: nothing that is done
// depends on it.
type Span interface {
	// Begin is a piece of work that belongs to this one, which may end before it.
	// about are keys and values, in turn.
	Begin(work string, about ...any) Span
	// Tell adds what is known of it by now.
	Tell(about ...any)
	// End is called once; err is why the work failed.
	End(err error)
}

type spanKey struct{}

// WithSpan has what is done in the context belong to s.
func WithSpan(ctx context.Context, s Span) context.Context {
	return context.WithValue(ctx, spanKey{}, s)
}

// SpanOf is the work to which what is done in ctx belongs; nil if nobody traces
// it.
func SpanOf(ctx context.Context) Span {
	s, _ := ctx.Value(spanKey{}).(Span)
	return s
}

// BeginSpan begins a piece of work of whoever asked in ctx, and returns the
// context for it. The Span is nil, and the context ctx, where nobody traces.
func BeginSpan(ctx context.Context, work string, about ...any) (context.Context, Span) {
	s := SpanOf(ctx)
	if s == nil {
		return ctx, nil
	}
	s = s.Begin(work, about...)
	return WithSpan(ctx, s), s
}

// EndSpan ends s, if it is one.
func EndSpan(s Span, err error, about ...any) {
	if s != nil {
		s.Tell(about...)
		s.End(err)
	}
}

// CarrySpan is life with the span of asked, for work that goes on without
// whoever asked for it.
func CarrySpan(asked, life context.Context) context.Context {
	if s := SpanOf(asked); s != nil {
		return WithSpan(life, s)
	}
	return life
}

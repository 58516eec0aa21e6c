package main

import (
	"context"
	"os"
	"sync"

	"github.com/warpstreamlabs/bento/public/service"
	kv "go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Bento's own tracer makes a span of every processor, and decides anew in each stream whether to. Ours makes one for
// each message that goes through a stream and one for each publish, in the trace that the message names, as whoever
// began it decided.
const (
	endpointVariable = "OTEL_EXPORTER_OTLP_ENDPOINT" // without it nothing is traced; the SDK reads the other OTEL_ ones
	traceparent      = "traceparent"                 // the metadata and the AMQP header
)

type tracing struct {
	requests  trace.Tracer // of traces that a client's request began, here or before
	batches   trace.Tracer // of batches, of which only those are told that serve such a trace
	processor sdktrace.SpanProcessor
}

// The tracing of this process; nil if there is none.
var theTracing = sync.OnceValue(func() *tracing {
	if os.Getenv(endpointVariable) == "" {
		return nil
	}
	exporter, err := otlptracehttp.New(context.Background())
	if err != nil {
		panic(err) // what it is set up by is wrong
	}
	return newTracing(sdktrace.NewBatchSpanProcessor(exporter))
})

func newTracing(processor sdktrace.SpanProcessor) *tracing {
	requests := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(processor))
	batches := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(processor), sdktrace.WithSampler(sdktrace.AlwaysSample()))
	return &tracing{requests.Tracer("penstock"), batches.Tracer("penstock"), processor}
}

// remote is the context that a header names; ctx itself if it is none, or malformed.
func remote(ctx context.Context, header string) context.Context {
	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{traceparent: header})
}

func header(ctx context.Context) string {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier[traceparent]
}

// flush sends what is left, when a component closes: the process may end right after.
func flush(ctx context.Context) {
	if found := theTracing(); found != nil {
		_ = found.processor.ForceFlush(ctx)
	}
}

// begun is what goes with a message in its context until its span ends. Bento keeps spans of its own there too.
type begun struct {
	span  trace.Span
	batch *begunBatch
}

type begunBatch struct {
	span    trace.Span
	waiting sync.WaitGroup
}

type begunKey struct{}

// begin makes the message part of a span: its context carries it, and its metadata names it to whoever comes next.
func begin(ctx context.Context, message *service.Message, what *begun) *service.Message {
	ctx = trace.ContextWithSpan(context.WithValue(message.Context(), begunKey{}, what), trace.SpanFromContext(ctx))
	message = message.WithContext(ctx)
	message.MetaSetMut(traceparent, header(ctx))
	return message
}

func begunOf(message *service.Message) *begun {
	found, _ := message.Context().Value(begunKey{}).(*begun)
	return found
}

func text(name, value string) kv.KeyValue { return kv.String(name, value) }

func number(name string, value int) kv.KeyValue { return kv.Int(name, value) }

func failed(span trace.Span) { span.SetStatus(codes.Error, "") } // the error's text may quote the message

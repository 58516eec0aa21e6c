package main

import (
	"context"
	"errors"

	"github.com/warpstreamlabs/bento/public/service"
	"go.opentelemetry.io/otel/trace"
)

// traceBegin opens the span of each message that came through the broker with a trace that is recorded; traceEnd, at
// the end of the pipeline, closes it. A batch has a span of its own besides: it links to all whom it serves, and they
// to it.
type traceBegin struct {
	tracing     *tracing
	destination string
	isBatch     bool
}

func beginSpec() *service.ConfigSpec {
	return service.NewConfigSpec().
		Summary("Opens a span for each message whose metadata traceparent names a trace that is recorded, and names it there.").
		Fields(
			service.NewStringField("destination").Description("The queue that the messages are from, for the span's name."),
			service.NewBoolField("is_batch").Description("The messages of a batch are worked on together.").Default(false),
		)
}

func (t traceBegin) ProcessBatch(_ context.Context, batch service.MessageBatch) ([]service.MessageBatch, error) {
	if t.tracing == nil {
		return []service.MessageBatch{batch}, nil
	}
	var links []trace.Link
	parents := make([]context.Context, len(batch))
	for i, message := range batch {
		found, _ := message.MetaGet(traceparent)
		parent := remote(context.Background(), found)
		if span := trace.SpanContextFromContext(parent); span.IsValid() && span.IsSampled() {
			parents[i] = parent
			links = append(links, trace.Link{SpanContext: span})
		}
	}
	if len(links) == 0 {
		return []service.MessageBatch{batch}, nil
	}
	var together *begunBatch
	var toBatch []trace.Link
	if t.isBatch {
		_, span := t.tracing.batches.Start(context.Background(), "process "+t.destination+" batch", trace.WithLinks(links...),
			trace.WithSpanKind(trace.SpanKindConsumer), trace.WithAttributes(number("messaging.batch.message_count", len(batch))))
		together = &begunBatch{span: span}
		together.waiting.Add(len(links))
		toBatch = []trace.Link{{SpanContext: span.SpanContext()}}
	}
	traced := make(service.MessageBatch, len(batch))
	for i, message := range batch {
		traced[i] = message
		if parents[i] == nil {
			continue
		}
		id, _ := message.MetaGet("amqp_message_id")
		request, _ := message.MetaGet("x_request_id")
		ctx, span := t.tracing.requests.Start(parents[i], "process "+t.destination,
			trace.WithSpanKind(trace.SpanKindConsumer), trace.WithLinks(toBatch...), trace.WithAttributes(
				text("messaging.system", "rabbitmq"), text("messaging.operation.type", "process"),
				text("messaging.destination.name", t.destination), text("messaging.message.id", id),
				text("penstock.reservation", id), text("penstock.request_id", request)))
		traced[i] = begin(ctx, message, &begun{span: span, batch: together})
	}
	if together != nil {
		go func() {
			together.waiting.Wait()
			together.span.End()
		}()
	}
	return []service.MessageBatch{traced}, nil
}

func (traceBegin) Close(ctx context.Context) error {
	flush(ctx)
	return nil
}

type traceEnd struct{}

func (traceEnd) Process(_ context.Context, message *service.Message) (service.MessageBatch, error) {
	if found := begunOf(message); found != nil {
		if message.GetError() != nil {
			failed(found.span)
		}
		found.span.End()
		if found.batch != nil {
			found.batch.waiting.Done()
		}
	}
	return service.MessageBatch{message}, nil
}

func (traceEnd) Close(ctx context.Context) error {
	flush(ctx)
	return nil
}

func init() {
	err := errors.Join(
		service.RegisterBatchProcessor("trace_begin", beginSpec(),
			func(conf *service.ParsedConfig, _ *service.Resources) (service.BatchProcessor, error) {
				destination, wrongDestination := conf.FieldString("destination")
				isBatch, wrongBatch := conf.FieldBool("is_batch")
				return traceBegin{theTracing(), destination, isBatch}, errors.Join(wrongDestination, wrongBatch)
			}),
		service.RegisterProcessor("trace_end", service.NewConfigSpec().Summary("Closes what trace_begin opened."),
			func(*service.ParsedConfig, *service.Resources) (service.Processor, error) { return traceEnd{}, nil }),
	)
	if err != nil {
		panic(err)
	}
}

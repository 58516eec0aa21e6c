package main

import (
	"context"

	"github.com/warpstreamlabs/bento/public/service"
	"go.opentelemetry.io/otel/propagation"
)

// traceExtract makes the W3C trace context in a message's metadata (traceparent, tracestate) the parent of the
// spans that follow, so that one trace crosses the broker. Without it, or with a malformed one, nothing changes.
type traceExtract struct{}

func (traceExtract) Process(ctx context.Context, msg *service.Message) (service.MessageBatch, error) {
	carrier := propagation.MapCarrier{}
	for _, name := range []string{"traceparent", "tracestate"} {
		if value, found := msg.MetaGet(name); found {
			carrier[name] = value
		}
	}
	continued := propagation.TraceContext{}.Extract(msg.Context(), carrier)
	return service.MessageBatch{msg.WithContext(continued)}, nil
}

func (traceExtract) Close(context.Context) error { return nil }

func init() {
	err := service.RegisterProcessor("trace_extract",
		service.NewConfigSpec().Summary("Continues the W3C trace named in the metadata traceparent and tracestate."),
		func(*service.ParsedConfig, *service.Resources) (service.Processor, error) { return traceExtract{}, nil })
	if err != nil {
		panic(err)
	}
}

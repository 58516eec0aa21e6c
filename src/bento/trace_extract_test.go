package main

import (
	"context"
	"testing"

	"github.com/warpstreamlabs/bento/public/service"
	"go.opentelemetry.io/otel/trace"
)

func extracted(t *testing.T, traceparent string) trace.SpanContext {
	t.Helper()
	msg := service.NewMessage(nil)
	msg.MetaSetMut("traceparent", traceparent)
	batch, err := traceExtract{}.Process(context.Background(), msg)
	if err != nil {
		t.Fatal(err)
	}
	return trace.SpanContextFromContext(batch[0].Context())
}

func TestTheTraceOfTheMetadataGoesOn(t *testing.T) {
	found := extracted(t, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	if found.TraceID().String() != "0af7651916cd43dd8448eb211c80319c" || !found.IsRemote() || !found.IsSampled() {
		t.Errorf("trace %v", found)
	}
}

func TestAMalformedTraceIsNone(t *testing.T) {
	for _, text := range []string{"", "00-xyz", "00-00000000000000000000000000000000-b7ad6b7169203331-01"} {
		if found := extracted(t, text); found.IsValid() {
			t.Errorf("%q became %v", text, found)
		}
	}
}

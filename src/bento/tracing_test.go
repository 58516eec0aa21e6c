package main

import (
	"context"
	"errors"
	"testing"

	"github.com/warpstreamlabs/bento/public/bloblang"
	"github.com/warpstreamlabs/bento/public/service"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

const (
	recorded = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	dropped  = "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
)

func inMemory() (*tracing, *tracetest.InMemoryExporter) {
	exporter := tracetest.NewInMemoryExporter()
	return newTracing(sdktrace.NewSimpleSpanProcessor(exporter)), exporter
}

func messageOf(header string) *service.Message {
	message := service.NewMessage(nil)
	message.MetaSetMut(traceparent, header)
	return message
}

// through begins and ends the spans of a batch; the messages between the two.
func through(t *testing.T, found *tracing, isBatch bool, batch service.MessageBatch) service.MessageBatch {
	t.Helper()
	begun, err := traceBegin{found, "results", isBatch}.ProcessBatch(context.Background(), batch)
	if err != nil || len(begun) != 1 {
		t.Fatalf("%v, %v", begun, err)
	}
	for _, message := range begun[0] {
		if _, err := (traceEnd{}).Process(context.Background(), message); err != nil {
			t.Fatal(err)
		}
	}
	return begun[0]
}

func TestTheTraceOfTheMetadataGoesOn(t *testing.T) {
	found, exporter := inMemory()
	batch := through(t, found, false, service.MessageBatch{messageOf(recorded)})
	spans := exporter.GetSpans()
	if len(spans) != 1 || spans[0].Parent.SpanID().String() != "b7ad6b7169203331" || spans[0].Name != "process results" {
		t.Fatalf("spans %v", spans)
	}
	next, _ := batch[0].MetaGet(traceparent)
	if next != "00-0af7651916cd43dd8448eb211c80319c-"+spans[0].SpanContext.SpanID().String()+"-01" {
		t.Errorf("whoever comes next is told %s", next)
	}
}

func TestWhatIsNotRecordedOrMalformedMakesNoSpanAndIsHandedOn(t *testing.T) {
	found, exporter := inMemory()
	for _, header := range []string{dropped, "", "00-xyz", "00-00000000000000000000000000000000-b7ad6b7169203331-01"} {
		batch := through(t, found, true, service.MessageBatch{messageOf(header)})
		if next, _ := batch[0].MetaGet(traceparent); next != header {
			t.Errorf("%q became %q", header, next)
		}
	}
	if spans := exporter.GetSpans(); len(spans) != 0 {
		t.Errorf("spans %v", spans)
	}
}

func TestABatchLinksToThoseItServesAndTheyToIt(t *testing.T) {
	found, exporter := inMemory()
	failing := messageOf(recorded)
	failing.SetError(errors.New("a prompt"))
	begun, _ := traceBegin{found, "results", true}.ProcessBatch(context.Background(), service.MessageBatch{messageOf(recorded), failing, messageOf(dropped)})
	together := begunOf(begun[0][0]).batch
	for _, message := range begun[0] {
		_, _ = traceEnd{}.Process(context.Background(), message)
	}
	together.waiting.Wait()
	together.span.End() // as the goroutine does, which may be slower
	var ids, served, errored int
	for _, span := range exporter.GetSpans() {
		if span.Name == "process results batch" {
			served = len(span.Links)
			continue
		}
		ids++
		if len(span.Links) != 1 || span.Links[0].SpanContext.SpanID() != together.span.SpanContext().SpanID() {
			t.Errorf("%s links to %v", span.Name, span.Links)
		}
		if span.Status.Code.String() == "Error" {
			errored++
			if span.Status.Description != "" || len(span.Events) != 0 {
				t.Errorf("the error's text is told: %v", span)
			}
		}
	}
	if ids != 2 || served != 2 || errored != 1 {
		t.Errorf("%d spans, %d links of the batch, %d errors", ids, served, errored)
	}
}

func TestAMappingOfJudgeAnswersOrThrows(t *testing.T) {
	mapping, err := bloblang.Parse(`root = if this.ok { this } else { throw("refused 400") }`)
	if err != nil {
		t.Fatal(err)
	}
	j := judge{mapping, service.MockResources().Logger()}
	if _, err := j.Process(context.Background(), service.NewMessage([]byte(`{"ok":true}`))); err != nil {
		t.Error(err)
	}
	if _, err := j.Process(context.Background(), service.NewMessage([]byte(`{"ok":false}`))); err == nil {
		t.Error("nothing was thrown")
	}
}

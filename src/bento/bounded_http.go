package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/warpstreamlabs/bento/public/service"
	"go.opentelemetry.io/otel/trace"
)

// Paths that may become names of spans: what a client invents may not.
var knownPath = regexp.MustCompile("^/v1/async/(chat/completions|completions|embeddings|responses|infer)$").MatchString

const (
	requestsMax  = 256 // at once; one more is answered 503 before its body is read
	arrivalMax   = 60 * time.Second
	answerStatus = "answer_status"
	answerHeader = "answer_header_"
	busyBody     = `{"error":{"message":"the gateway is busy or stopping; send the request again","type":"server_error","param":null,"code":"overloaded"}}`
)

// front is an HTTP server whose requests become one message each. Unlike http_server: a body is bounded while it is
// read, slow clients are cut off, and no parameter, cookie or part of a multipart body can pass for a header.
type front struct {
	server   *http.Server
	log      *service.Logger
	bytesMax int64
	headers  []string
	places   chan struct{}
	requests chan frontRequest
	stopped  chan struct{}
	tracing  *tracing
}

type frontRequest struct {
	message *service.Message
	done    chan error // buffered, one
}

func frontSpec() *service.ConfigSpec {
	return service.NewConfigSpec().
		Summary("HTTP requests, one message each, with metadata http_method, http_path, http_query, http_body (whole or "+
			"too_large), http_is_utf8, http_received_ms and the named headers in lower case. The answer is the sync "+
			"response: its body, and its metadata "+answerStatus+" and "+answerHeader+"<name>.").
		Fields(
			service.NewStringField("address"),
			service.NewIntField("body_bytes_max"),
			service.NewStringListField("headers"),
		)
}

func newFront(conf *service.ParsedConfig, log *service.Logger) (*front, error) {
	address, wrongAddress := conf.FieldString("address")
	bytesMax, wrongBytes := conf.FieldInt("body_bytes_max")
	headers, wrongHeaders := conf.FieldStringList("headers")
	f := &front{log: log, bytesMax: int64(bytesMax), headers: headers, places: make(chan struct{}, requestsMax),
		requests: make(chan frontRequest), stopped: make(chan struct{}), tracing: theTracing()}
	f.server = &http.Server{Addr: address, Handler: f, ReadTimeout: arrivalMax, ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10}
	return f, errors.Join(wrongAddress, wrongBytes, wrongHeaders)
}

func (f *front) Connect(context.Context) error {
	listener, err := net.Listen("tcp", f.server.Addr)
	if err != nil {
		return err
	}
	f.log.Infof("listening on http://%s", listener.Addr())
	go func() {
		if err := f.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			f.log.Errorf("the listener ended: %v", err)
		}
	}()
	return nil
}

func (f *front) message(r *http.Request) (message *service.Message, err error) {
	how, body := "too_large", []byte(nil)
	if r.ContentLength <= f.bytesMax {
		if body, err = io.ReadAll(io.LimitReader(r.Body, f.bytesMax+1)); err != nil {
			return nil, err
		}
		if int64(len(body)) <= f.bytesMax {
			how = "whole"
		}
	}
	if how != "whole" { // a client that is still sending would not see its answer
		body = nil
		_, _ = io.CopyN(io.Discard, r.Body, f.bytesMax)
	}
	message = service.NewMessage(body)
	for name, value := range map[string]string{
		"http_method": r.Method, "http_path": r.URL.Path, "http_query": r.URL.RawQuery, "http_body": how,
		"http_is_utf8": strconv.FormatBool(utf8.Valid(body)), "http_received_ms": strconv.FormatInt(time.Now().UnixMilli(), 10),
	} {
		message.MetaSetMut(name, value)
	}
	for _, name := range f.headers {
		if value := r.Header.Get(name); value != "" {
			message.MetaSetMut(strings.ToLower(name), value)
		}
	}
	return message, nil
}

func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case f.places <- struct{}{}:
		defer func() { <-f.places }()
	default:
		f.busy(w)
		return
	}
	message, err := f.message(r)
	if err != nil {
		http.Error(w, "the request did not arrive whole", http.StatusRequestTimeout)
		return
	}
	message, span := f.follow(r, message)
	if span != nil {
		defer span.End()
	}
	message, answers := message.WithSyncResponseStore()
	done := make(chan error, 1)
	select {
	case f.requests <- frontRequest{message, done}:
	case <-f.stopped:
		f.busy(w)
		return
	case <-r.Context().Done():
		return
	}
	select {
	case err = <-done:
	case <-r.Context().Done():
		return // the client left: what was begun is finished without it
	}
	batches := answers.Read()
	if err != nil || len(batches) != 1 || len(batches[0]) != 1 {
		f.log.Errorf("a request ended without its one answer: %v", err)
		f.busy(w)
		return
	}
	status := f.answer(w, batches[0][0])
	if span != nil {
		told(span, status, batches[0][0])
	}
}

// follow opens the span of a request, and names it in the message's metadata in place of the client's.
func (f *front) follow(r *http.Request, message *service.Message) (*service.Message, trace.Span) {
	if f.tracing == nil {
		return message, nil
	}
	name := r.Method
	if knownPath(r.URL.Path) {
		name += " " + r.URL.Path
	}
	ctx, span := f.tracing.requests.Start(remote(r.Context(), r.Header.Get(traceparent)), name,
		trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(text("http.request.method", r.Method)))
	if !span.IsRecording() { // whoever comes next is told of that choice
		message.MetaSetMut(traceparent, header(ctx))
		return message, nil
	}
	message.MetaSetMut("traced", "yes")
	return begin(ctx, message, &begun{span: span}), span
}

func told(span trace.Span, status int, answer *service.Message) {
	id, _ := answer.MetaGet(answerHeader + "x-request-id")
	span.SetAttributes(number("http.response.status_code", status), text("penstock.request_id", id))
	if status >= http.StatusInternalServerError {
		failed(span)
	}
}

// answer writes what a stream answered, and tells its status.
func (f *front) answer(w http.ResponseWriter, message *service.Message) int {
	body, err := message.AsBytes()
	text, _ := message.MetaGet(answerStatus)
	status, wrong := strconv.Atoi(text)
	if err != nil || wrong != nil {
		f.log.Errorf("an answer has no status or body: %v %v", err, wrong)
		f.busy(w)
		return http.StatusServiceUnavailable
	}
	_ = message.MetaWalk(func(key, value string) error {
		if name, found := strings.CutPrefix(key, answerHeader); found {
			w.Header().Set(name, value)
		}
		return nil
	})
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body)
	return status
}

func (f *front) busy(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Retry-After", "1")
	w.Header().Set("Retry-After-Ms", "1000")
	w.WriteHeader(http.StatusServiceUnavailable)
	_, _ = io.WriteString(w, busyBody)
}

func (f *front) Read(ctx context.Context) (*service.Message, service.AckFunc, error) {
	select {
	case request := <-f.requests:
		return request.message, func(_ context.Context, err error) error { request.done <- err; return nil }, nil
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
}

func (f *front) Close(ctx context.Context) error {
	close(f.stopped)
	err := f.server.Shutdown(ctx)
	flush(ctx)
	return err
}

func init() {
	err := service.RegisterInput("bounded_http", frontSpec(),
		func(conf *service.ParsedConfig, resources *service.Resources) (service.Input, error) {
			return newFront(conf, resources.Logger())
		})
	if err != nil {
		panic(err)
	}
}

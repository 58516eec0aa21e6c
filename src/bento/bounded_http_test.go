package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/warpstreamlabs/bento/public/service"
)

// aFront listens with bodies of at most 100 bytes, and answers each request with what `answer` makes of its message.
func aFront(t *testing.T, arrival time.Duration, answer func(*service.Message)) (*front, string) {
	t.Helper()
	conf, err := frontSpec().ParseYAML("{ address: '127.0.0.1:0', body_bytes_max: 100, headers: [ Authorization, Content-Type ] }", nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := newFront(conf, service.MockResources().Logger())
	if err != nil {
		t.Fatal(err)
	}
	f.server.ReadTimeout = arrival
	listener, err := net.Listen("tcp", f.server.Addr)
	if err != nil {
		t.Fatal(err)
	}
	go f.server.Serve(listener)
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(func() { stop(); f.server.Close() })
	go func() {
		for {
			message, acknowledge, err := f.Read(ctx)
			if err != nil {
				return
			}
			answer(message)
			_ = acknowledge(ctx, message.AddSyncResponse())
		}
	}()
	return f, listener.Addr().String()
}

// echo answers 202 with the metadata and the body that arrived.
func echo(message *service.Message) {
	told := map[string]any{}
	_ = message.MetaWalk(func(key, value string) error { told[key] = value; return nil })
	body, _ := message.AsBytes()
	told["body"] = string(body)
	message.SetStructuredMut(told)
	message.MetaSetMut(answerStatus, "202")
	message.MetaSetMut(answerHeader+"location", "/v1/jobs/1")
}

func ask(t *testing.T, method, url, mediaType string, body io.Reader) (*http.Response, string) {
	t.Helper()
	request, err := http.NewRequest(method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", mediaType)
	request.Header.Set("Cookie", "Authorization=Bearer cookie")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, string(text)
}

func TestARequestIsOneMessageWithNamedHeadersOnly(t *testing.T) {
	_, address := aFront(t, time.Minute, echo)
	parts := "--x\r\nContent-Disposition: form-data; name=\"Authorization\"\r\n\r\nBearer part\r\n--x--\r\n"
	response, told := ask(t, "POST", "http://"+address+"/v1/a?Authorization=Bearer", "multipart/form-data; boundary=x", strings.NewReader(parts))
	if response.StatusCode != 202 || response.Header.Get("Location") != "/v1/jobs/1" {
		t.Errorf("answered %d %v", response.StatusCode, response.Header)
	}
	for _, wanted := range []string{`"http_path":"/v1/a"`, `"http_query":"Authorization=Bearer"`, `"http_body":"whole"`, `name=\"Authorization\"`} {
		if !strings.Contains(told, wanted) {
			t.Errorf("%s is not in %s", wanted, told)
		}
	}
	if strings.Contains(told, `"authorization"`) || strings.Contains(told, "cookie") {
		t.Errorf("a query, a cookie or a part passed for a header: %s", told)
	}
}

func TestABodyIsBoundedWhetherItsLengthIsToldOrNot(t *testing.T) {
	_, address := aFront(t, time.Minute, echo)
	for size, wanted := range map[int]string{100: "whole", 101: "too_large", 5000: "too_large"} {
		for _, body := range []io.Reader{bytes.NewReader(make([]byte, size)), struct{ io.Reader }{bytes.NewReader(make([]byte, size))}} {
			_, told := ask(t, "POST", "http://"+address+"/", "application/json", body)
			if !strings.Contains(told, `"http_body":"`+wanted+`"`) || (wanted == "too_large") != strings.Contains(told, `"body":""`) {
				t.Errorf("%d bytes as %T: %s", size, body, told)
			}
		}
	}
}

func TestABodyThatDoesNotArriveInTimeIsCutOff(t *testing.T) {
	_, address := aFront(t, 200*time.Millisecond, echo)
	connection, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	fmt.Fprint(connection, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 90\r\n\r\n{")
	if err := connection.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(connection), nil)
	if err != nil || response.StatusCode != http.StatusRequestTimeout {
		t.Errorf("answered %v %v", response, err)
	}
}

func TestOneRequestTooManyAndAnAnswerWithoutStatusAreBusy(t *testing.T) {
	f, address := aFront(t, time.Minute, func(*service.Message) {})
	if response, told := ask(t, "POST", "http://"+address+"/", "a", nil); response.StatusCode != 503 || told != busyBody {
		t.Errorf("without status: %d %s", response.StatusCode, told)
	}
	for range requestsMax {
		f.places <- struct{}{}
	}
	if response, _ := ask(t, "POST", "http://"+address+"/", "a", nil); response.StatusCode != 503 || response.Header.Get("Retry-After") != "1" {
		t.Errorf("one too many: %d %v", response.StatusCode, response.Header)
	}
}

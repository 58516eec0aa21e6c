package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/warpstreamlabs/bento/public/service"
)

// broker is the RabbitMQ that tests/system started for us: its AMQP URL, its management URL, its process group.
type broker struct {
	url, management string
	group           int
}

func theBroker(t *testing.T) broker {
	t.Helper()
	b := broker{url: os.Getenv("AMQP_URL"), management: os.Getenv("MANAGEMENT_URL")}
	if b.url == "" {
		if os.Getenv("CI") == "true" {
			t.Fatal("AMQP_URL is not set: run these tests through make test")
		}
		t.Skip("AMQP_URL is not set: tests/system/test_bento_processors.py starts a broker and runs this")
	}
	group, err := strconv.Atoi(os.Getenv("BROKER_PROCESS_GROUP"))
	if err != nil {
		t.Fatalf("BROKER_PROCESS_GROUP: %v", err)
	}
	b.group = group
	return b
}

func (b broker) signal(t *testing.T, what syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(-b.group, what); err != nil {
		t.Fatal(err)
	}
}

func (b broker) channel(t *testing.T) *amqp.Channel {
	t.Helper()
	conn, err := amqp.Dial(b.url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	channel, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	return channel
}

// queue declares one, bound to the default exchange by its name, and deletes it at the end.
func (b broker) queue(t *testing.T, name string, arguments amqp.Table) *amqp.Channel {
	t.Helper()
	channel := b.channel(t)
	if _, err := channel.QueueDeclare(name, true, false, false, false, arguments); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := b.channel(t).QueueDelete(name, false, false, false); err != nil {
			t.Errorf("deleting %s: %v", name, err)
		}
	})
	return channel
}

func processor(t *testing.T, brokerURL, timeout string) *amqpPublish {
	t.Helper()
	conf, err := publishSpec().ParseYAML(fmt.Sprintf(`
url: %q
routing_key: ${! meta("queue") }
message_id: ${! meta("id") }
timeout: %s
headers: { include_prefixes: [ traceparent ] }
`, brokerURL, timeout), nil)
	if err != nil {
		t.Fatal(err)
	}
	p, err := newAmqpPublish(conf, service.MockResources())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close(context.Background()) })
	return p
}

func (p *amqpPublish) send(t *testing.T, queue, id string) string {
	t.Helper()
	msg := service.NewMessage([]byte(`{"id":"` + id + `"}`))
	msg.MetaSetMut("queue", queue)
	msg.MetaSetMut("id", id)
	msg.MetaSetMut("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	msg.MetaSetMut("authorization", "Bearer secret")
	batch, err := p.Process(context.Background(), msg)
	if err != nil {
		t.Fatal(err)
	}
	outcome, _ := batch[0].MetaGet(outcomeMetadata)
	return outcome
}

func (p *amqpPublish) sendUntil(t *testing.T, queue, wanted string) {
	t.Helper()
	for ends := time.Now().Add(30 * time.Second); time.Now().Before(ends); time.Sleep(20 * time.Millisecond) {
		if p.send(t, queue, "probe") == wanted {
			return
		}
	}
	t.Fatalf("no publish was ever %s", wanted)
}

func TestEachOfManyAtOnceHasItsOwnOutcome(t *testing.T) {
	b := theBroker(t)
	b.queue(t, "outcomes", amqp.Table{"x-queue-type": "quorum"})
	p := processor(t, b.url, "20s")
	p.sendUntil(t, "outcomes", confirmed)
	var group sync.WaitGroup
	limit := make(chan struct{}, 128)
	for i := range 3200 {
		queue, wanted := "outcomes", confirmed
		if i%2 == 1 {
			queue, wanted = "nowhere", returned
		}
		group.Add(1)
		limit <- struct{}{}
		go func() {
			defer func() { <-limit; group.Done() }()
			if got := p.send(t, queue, strconv.Itoa(i)); got != wanted {
				t.Errorf("message %d to %s: %s, wanted %s", i, queue, got, wanted)
			}
		}()
	}
	group.Wait()
}

func TestOnlyNamedMetadataTravels(t *testing.T) {
	b := theBroker(t)
	channel := b.queue(t, "headers", nil)
	p := processor(t, b.url, "20s")
	p.sendUntil(t, "headers", confirmed)
	delivery, found, err := channel.Get("headers", true)
	if err != nil || !found {
		t.Fatalf("nothing arrived: %v", err)
	}
	if len(delivery.Headers) != 1 || delivery.Headers["traceparent"] == nil {
		t.Errorf("headers: %v", delivery.Headers)
	}
	if delivery.DeliveryMode != amqp.Persistent || delivery.MessageId != "probe" {
		t.Errorf("delivered as %+v", delivery)
	}
}

func TestAFullQueueRefuses(t *testing.T) {
	b := theBroker(t)
	b.queue(t, "full", amqp.Table{"x-max-length": 1, "x-overflow": "reject-publish"})
	p := processor(t, b.url, "20s")
	p.sendUntil(t, "full", confirmed)
	p.sendUntil(t, "full", nacked)
}

func TestWithoutABrokerNothingIsSentAndNobodyWaits(t *testing.T) {
	p := processor(t, "amqp://127.0.0.1:1/", "20s")
	began := time.Now()
	if got := p.send(t, "q", "1"); got != unsent {
		t.Errorf("outcome %s", got)
	}
	if waited := time.Since(began); waited > 5*time.Second {
		t.Errorf("waited %v", waited)
	}
}

func TestAFrozenBrokerIsUnknownThenUsedAgain(t *testing.T) {
	b := theBroker(t)
	b.queue(t, "frozen", amqp.Table{"x-queue-type": "quorum"})
	p := processor(t, b.url, "1s")
	p.sendUntil(t, "frozen", confirmed)
	b.signal(t, syscall.SIGSTOP)
	got := p.send(t, "frozen", "1")
	b.signal(t, syscall.SIGCONT)
	if got != unknown {
		t.Errorf("outcome %s", got)
	}
	p.sendUntil(t, "frozen", confirmed)
}

// alarm sets how much memory the broker may use, through its own command, which blocks publishers at zero.
func (b broker) alarm(t *testing.T, watermark string) {
	t.Helper()
	command := exec.Command(os.Getenv("RABBITMQCTL"), "set_vm_memory_high_watermark", watermark)
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func TestABlockedBrokerIsUnsentAtOnce(t *testing.T) {
	b := theBroker(t)
	b.queue(t, "blocked", amqp.Table{"x-queue-type": "quorum"})
	p := processor(t, b.url, "2s")
	p.sendUntil(t, "blocked", confirmed)
	b.alarm(t, "0.0000001")
	t.Cleanup(func() { b.alarm(t, "0.4") })
	p.sendUntil(t, "blocked", unsent)
	b.alarm(t, "0.4")
	p.sendUntil(t, "blocked", confirmed)
}

func TestALostConnectionIsMadeAgain(t *testing.T) {
	b := theBroker(t)
	b.queue(t, "lost", amqp.Table{"x-queue-type": "quorum"})
	p := processor(t, b.url, "5s")
	p.sendUntil(t, "lost", confirmed)
	b.closeConnections(t)
	p.sendUntil(t, "lost", confirmed)
}

// closeConnections ends every connection through the management API, as an operator would.
func (b broker) closeConnections(t *testing.T) {
	t.Helper()
	target, err := url.Parse(b.management)
	if err != nil {
		t.Fatal(err)
	}
	call := func(method, path string) []byte {
		request, err := http.NewRequest(method, target.JoinPath(path).String(), nil)
		if err != nil {
			t.Fatal(err)
		}
		password, _ := target.User.Password()
		request.SetBasicAuth(target.User.Username(), password)
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		var body bytes.Buffer
		if _, err := body.ReadFrom(answer.Body); err != nil {
			t.Fatal(err)
		}
		return body.Bytes()
	}
	closed := 0
	for ends := time.Now().Add(30 * time.Second); closed == 0 && time.Now().Before(ends); time.Sleep(50 * time.Millisecond) {
		var connections []struct{ Name string }
		if err := json.Unmarshal(call("GET", "/api/connections"), &connections); err != nil {
			t.Fatal(err)
		}
		for _, connection := range connections {
			call("DELETE", "/api/connections/"+url.PathEscape(connection.Name))
			closed++
		}
	}
	if closed == 0 {
		t.Fatal("the management API shows no connection to close")
	}
}

package main

import (
	"context"
	"errors"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/warpstreamlabs/bento/public/service"
	"go.opentelemetry.io/otel/trace"
)

// Metadata that amqp_publish writes: what became of the message. See the outcomes in amqp_session.go.
const outcomeMetadata = "amqp_outcome"

func publishSpec() *service.ConfigSpec {
	return service.NewConfigSpec().
		Summary("Publishes each message with confirm and mandatory, and says in the metadata "+outcomeMetadata+
			" what became of it: confirmed, returned, nacked, unsent or unknown.").
		Description("The message goes on unchanged. Unsent is certain: the broker never saw it. Unknown is not: "+
			"the connection was lost, or the timeout passed, after it was handed to the socket.").
		Fields(
			service.NewStringField("url").Description("amqp:// or amqps:// URL; amqps trusts the system's authorities, or SSL_CERT_FILE.").Secret(),
			service.NewInterpolatedStringField("exchange").Default(""),
			service.NewInterpolatedStringField("routing_key"),
			service.NewInterpolatedStringField("message_id"),
			service.NewMetadataFilterField("headers").Description("Which metadata travel as AMQP headers."),
			service.NewDurationField("timeout").Description("Until the outcome is unknown.").Default("2s"),
		)
}

type amqpPublish struct {
	session                         *session
	timeout                         time.Duration
	exchange, routingKey, messageID *service.InterpolatedString
	headers                         *service.MetadataFilter
	outcomes                        *service.MetricCounter
	tracing                         *tracing
}

func newAmqpPublish(conf *service.ParsedConfig, resources *service.Resources) (*amqpPublish, error) {
	url, wrongURL := conf.FieldString("url")
	exchange, wrongExchange := conf.FieldInterpolatedString("exchange")
	routingKey, wrongKey := conf.FieldInterpolatedString("routing_key")
	messageID, wrongID := conf.FieldInterpolatedString("message_id")
	headers, wrongHeaders := conf.FieldMetadataFilter("headers")
	timeout, wrongTimeout := conf.FieldDuration("timeout")
	if err := errors.Join(wrongURL, wrongExchange, wrongKey, wrongID, wrongHeaders, wrongTimeout); err != nil {
		return nil, err
	}
	connected := resources.Metrics().NewGauge("amqp_publish_connected")
	return &amqpPublish{
		session: newSession(url, timeout, resources.Logger(), connected), timeout: timeout,
		exchange: exchange, routingKey: routingKey, messageID: messageID, headers: headers,
		outcomes: resources.Metrics().NewCounter("amqp_publish_outcomes_total", "outcome"), tracing: theTracing(),
	}, nil
}

func (p *amqpPublish) publishing(msg *service.Message) (*publishing, error) {
	body, wrongBody := msg.AsBytes()
	exchange, wrongExchange := p.exchange.TryString(msg)
	routingKey, wrongKey := p.routingKey.TryString(msg)
	id, wrongID := p.messageID.TryString(msg)
	headers := amqp.Table{}
	wrongHeaders := p.headers.Walk(msg, func(key, value string) error {
		headers[key] = value
		return nil
	})
	return &publishing{
		exchange: exchange, routingKey: routingKey, outcome: make(chan string, 1),
		message: amqp.Publishing{
			Body: body, DeliveryMode: amqp.Persistent, Timestamp: time.Now(), Headers: headers,
			MessageId: id, ContentType: "application/json",
		},
	}, errors.Join(wrongBody, wrongExchange, wrongKey, wrongID, wrongHeaders)
}

func (p *amqpPublish) Process(ctx context.Context, msg *service.Message) (service.MessageBatch, error) {
	pub, err := p.publishing(msg)
	if err != nil {
		return nil, err
	}
	span := p.follow(msg, pub)
	outcome := p.session.publish(ctx, pub, p.timeout)
	if span != nil {
		if outcome != confirmed {
			failed(span)
		}
		span.SetAttributes(text("penstock.outcome", outcome))
		span.End()
	}
	p.outcomes.Incr(1, outcome)
	msg.MetaSetMut(outcomeMetadata, outcome)
	return service.MessageBatch{msg}, nil
}

// follow opens the span of a publish, if the message has one, and names it to whoever will receive it.
func (p *amqpPublish) follow(msg *service.Message, pub *publishing) trace.Span {
	if p.tracing == nil || begunOf(msg) == nil {
		return nil
	}
	ctx, span := p.tracing.requests.Start(msg.Context(), "send "+pub.exchange, trace.WithSpanKind(trace.SpanKindProducer),
		trace.WithAttributes(text("messaging.system", "rabbitmq"), text("messaging.operation.type", "send"),
			text("messaging.destination.name", pub.exchange), text("messaging.message.id", pub.message.MessageId),
			text("messaging.rabbitmq.destination.routing_key", pub.routingKey)))
	pub.message.Headers[traceparent] = header(ctx)
	return span
}

func (p *amqpPublish) Close(ctx context.Context) error {
	p.session.close()
	flush(ctx)
	return nil
}

func init() {
	err := service.RegisterProcessor("amqp_publish", publishSpec(),
		func(conf *service.ParsedConfig, resources *service.Resources) (service.Processor, error) {
			return newAmqpPublish(conf, resources)
		})
	if err != nil {
		panic(err)
	}
}

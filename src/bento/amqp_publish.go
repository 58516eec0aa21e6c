package main

import (
	"context"
	"crypto/tls"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/warpstreamlabs/bento/public/service"
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
			service.NewStringField("url").Description("amqp:// or amqps:// URL.").Secret(),
			service.NewInterpolatedStringField("exchange").Default(""),
			service.NewInterpolatedStringField("routing_key"),
			service.NewInterpolatedStringField("message_id"),
			service.NewInterpolatedStringField("content_type").Default("application/json"),
			service.NewInterpolatedStringField("expiration").Description("Milliseconds, or empty for none.").Default(""),
			service.NewMetadataFilterField("headers").Description("Which metadata travel as AMQP headers."),
			service.NewDurationField("timeout").Description("Until the outcome is unknown.").Default("2s"),
			service.NewTLSToggledField("tls"),
		)
}

type amqpPublish struct {
	session    *session
	timeout    time.Duration
	exchange   *service.InterpolatedString
	routingKey *service.InterpolatedString
	messageID  *service.InterpolatedString
	mediaType  *service.InterpolatedString
	expiration *service.InterpolatedString
	headers    *service.MetadataFilter
	outcomes   *service.MetricCounter
}

func newAmqpPublish(conf *service.ParsedConfig, resources *service.Resources) (*amqpPublish, error) {
	var err error
	p := &amqpPublish{outcomes: resources.Metrics().NewCounter("amqp_publish_outcomes_total", "outcome")}
	texts := map[string]**service.InterpolatedString{
		"exchange": &p.exchange, "routing_key": &p.routingKey, "message_id": &p.messageID,
		"content_type": &p.mediaType, "expiration": &p.expiration,
	}
	for name, target := range texts {
		if *target, err = conf.FieldInterpolatedString(name); err != nil {
			return nil, err
		}
	}
	if p.headers, err = conf.FieldMetadataFilter("headers"); err != nil {
		return nil, err
	}
	if p.timeout, err = conf.FieldDuration("timeout"); err != nil {
		return nil, err
	}
	url, err := conf.FieldString("url")
	if err != nil {
		return nil, err
	}
	var tlsConfig *tls.Config
	settings, enabled, err := conf.FieldTLSToggled("tls")
	if err != nil {
		return nil, err
	}
	if enabled {
		tlsConfig = settings
	}
	connected := resources.Metrics().NewGauge("amqp_publish_connected")
	p.session = newSession(url, tlsConfig, p.timeout, resources.Logger(), func(up bool) {
		if up {
			connected.Set(1)
		} else {
			connected.Set(0)
		}
	})
	return p, nil
}

func (p *amqpPublish) publishing(msg *service.Message) (*publishing, error) {
	body, err := msg.AsBytes()
	if err != nil {
		return nil, err
	}
	result := &publishing{outcome: make(chan string, 1)}
	result.message = amqp.Publishing{Body: body, DeliveryMode: amqp.Persistent, Timestamp: time.Now(), Headers: amqp.Table{}}
	for text, target := range map[*service.InterpolatedString]*string{
		p.exchange: &result.exchange, p.routingKey: &result.routingKey, p.messageID: &result.message.MessageId,
		p.mediaType: &result.message.ContentType, p.expiration: &result.message.Expiration,
	} {
		if *target, err = text.TryString(msg); err != nil {
			return nil, err
		}
	}
	err = p.headers.Walk(msg, func(key, value string) error {
		result.message.Headers[key] = value
		return nil
	})
	return result, err
}

func (p *amqpPublish) Process(ctx context.Context, msg *service.Message) (service.MessageBatch, error) {
	pub, err := p.publishing(msg)
	if err != nil {
		return nil, err
	}
	outcome := p.session.publish(ctx, pub, p.timeout)
	p.outcomes.Incr(1, outcome)
	msg.MetaSetMut(outcomeMetadata, outcome)
	return service.MessageBatch{msg}, nil
}

func (p *amqpPublish) Close(context.Context) error {
	p.session.close()
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

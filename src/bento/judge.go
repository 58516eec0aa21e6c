package main

import (
	"context"
	"strings"

	"github.com/warpstreamlabs/bento/public/bloblang"
	"github.com/warpstreamlabs/bento/public/service"
)

// judge is a mapping that may refuse: what it throws that begins with "refused" is an answer to a client, and no fault
// of the stream, so it is not logged as one. Bento's own mapping logs whatever is thrown as an error.
type judge struct {
	mapping *bloblang.Executor
	log     *service.Logger
}

func (j judge) Process(_ context.Context, message *service.Message) (service.MessageBatch, error) {
	mapped, err := message.BloblangQuery(j.mapping)
	if err != nil {
		if !strings.Contains(err.Error(), "refused ") {
			j.log.Errorf("%v", err)
		}
		return nil, err
	}
	return service.MessageBatch{mapped}, nil
}

func (judge) Close(context.Context) error { return nil }

func init() {
	err := service.RegisterProcessor("judge",
		service.NewConfigSpec().Summary("A mapping that may throw `refused ...`, which is an answer and no error.").
			Field(service.NewBloblangField("")),
		func(conf *service.ParsedConfig, resources *service.Resources) (service.Processor, error) {
			mapping, err := conf.FieldBloblang()
			return judge{mapping, resources.Logger()}, err
		})
	if err != nil {
		panic(err)
	}
}

// Penstock's Bento: the components that config/bento uses, and some of our own.
//
// Stock Bento brings every component there is; this one is a third of its size, bounds what comes over HTTP
// (bounded_http), can say of each publish what became of it (amqp_publish), refuses without calling that an error (judge),
// and is part of the trace that a message belongs to (trace_begin, trace_end).
package main

import (
	"context"
	"os"
	"runtime/debug"

	_ "github.com/lib/pq"
	"github.com/warpstreamlabs/bento/public/service"

	_ "github.com/warpstreamlabs/bento/public/components/amqp09"
	_ "github.com/warpstreamlabs/bento/public/components/io"
	_ "github.com/warpstreamlabs/bento/public/components/prometheus"
	_ "github.com/warpstreamlabs/bento/public/components/pure"
	_ "github.com/warpstreamlabs/bento/public/components/redis"
	_ "github.com/warpstreamlabs/bento/public/components/sql/base"
)

// A stream holds little at a time, so at Go's usual 100 percent it collects garbage every few messages: a seventh of its
// CPU time, for a few megabytes less.
const collectAtPercent = 400

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(collectAtPercent)
	}
	service.RunCLI(context.Background())
}

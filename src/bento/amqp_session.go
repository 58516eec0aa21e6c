package main

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/warpstreamlabs/bento/public/service"
)

// The outcomes of a publish.
const (
	confirmed = "confirmed" // the broker has it, on a majority of a quorum queue's members
	returned  = "returned"  // no queue is bound: the broker gave it back
	nacked    = "nacked"    // the broker refused it: the queue is full
	unsent    = "unsent"    // the broker never saw it: not connected, blocked, or the write had not begun in time
	unknown   = "unknown"   // it was handed to the socket, and no confirm came
)

// Whether a publishing may still be withdrawn: exactly one side moves it on from waiting.
const (
	waiting int32 = iota
	taken
	withdrawn
)

type publishing struct {
	exchange, routingKey string
	message              amqp.Publishing
	stage                atomic.Int32
	outcome              chan string // buffered, one
}

// session keeps one connection with one confirming channel. A single goroutine writes, a single one reads returns
// and confirms: the broker sends a message's return before its confirm, so order alone attributes it.
type session struct {
	url       string
	timeout   time.Duration
	log       *service.Logger
	connected *service.MetricGauge
	queue     chan *publishing
	up        atomic.Bool
	blocked   atomic.Bool
	stop      context.CancelFunc
	stopped   chan struct{}
}

func newSession(url string, timeout time.Duration, log *service.Logger, connected *service.MetricGauge) *session {
	ctx, stop := context.WithCancel(context.Background())
	s := &session{
		url: url, timeout: timeout, log: log, connected: connected,
		queue: make(chan *publishing, 1024), stop: stop, stopped: make(chan struct{}),
	}
	connected.Set(0)
	go s.run(ctx)
	return s
}

func (s *session) close() {
	s.stop()
	<-s.stopped
}

// publish hands over one message and waits for its outcome, at most timeout.
func (s *session) publish(ctx context.Context, p *publishing, timeout time.Duration) string {
	if !s.up.Load() || s.blocked.Load() {
		return unsent
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case s.queue <- p:
	case <-timer.C:
		return unsent
	case <-ctx.Done():
		return unsent
	}
	select {
	case outcome := <-p.outcome:
		return outcome
	case <-timer.C:
	case <-ctx.Done():
	}
	if p.stage.CompareAndSwap(waiting, withdrawn) {
		return unsent
	}
	select {
	case outcome := <-p.outcome:
		return outcome
	default:
		return unknown
	}
}

// run connects, serves until the connection is lost, and connects again, until stopped.
func (s *session) run(ctx context.Context) {
	defer close(s.stopped)
	pause := 50 * time.Millisecond
	for ctx.Err() == nil {
		conn, channel, err := s.connect()
		if err == nil {
			pause = 50 * time.Millisecond
			s.serve(ctx, conn, channel)
		} else {
			s.log.Errorf("amqp_publish: cannot connect: %v; trying again in %v", err, pause)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			pause = min(2*pause, 2*time.Second)
		}
	}
}

// boundedConn gives every write a deadline: a broker that stops reading ends the connection, not the publisher.
type boundedConn struct {
	net.Conn
	timeout time.Duration
}

func (c boundedConn) Write(data []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(data)
}

func (s *session) connect() (*amqp.Connection, *amqp.Channel, error) {
	dial := func(network, address string) (net.Conn, error) {
		conn, err := net.DialTimeout(network, address, 5*time.Second)
		if err != nil {
			return nil, err
		}
		// The handshake's own deadline; the library clears it when the connection is open.
		if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			conn.Close()
			return nil, err
		}
		return boundedConn{conn, s.timeout}, nil
	}
	conn, err := amqp.DialConfig(s.url, amqp.Config{Heartbeat: 5 * time.Second, Dial: dial, Locale: "en_US"})
	if err != nil {
		return nil, nil, err
	}
	channel, err := conn.Channel()
	if err == nil {
		err = channel.Confirm(false)
	}
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	return conn, channel, nil
}

// ledger is what was written and not yet confirmed, by delivery tag.
type ledger struct {
	mutex   sync.Mutex
	pending map[uint64]*publishing
}

func (l *ledger) add(tag uint64, p *publishing) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.pending[tag] = p
}

func (l *ledger) take(tag uint64) *publishing {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	p := l.pending[tag]
	delete(l.pending, tag)
	return p
}

func (s *session) serve(ctx context.Context, conn *amqp.Connection, channel *amqp.Channel) {
	inFlight := &ledger{pending: map[uint64]*publishing{}}
	// Unbuffered on purpose: the library hands over a return before it goes on to the confirm.
	returns := channel.NotifyReturn(make(chan amqp.Return))
	confirms := channel.NotifyPublish(make(chan amqp.Confirmation))
	lost := channel.NotifyClose(make(chan *amqp.Error, 1))
	go s.watchBlocked(conn.NotifyBlocked(make(chan amqp.Blocking, 4)))
	read := make(chan struct{})
	go func() { defer close(read); attribute(returns, confirms, inFlight) }()
	s.blocked.Store(false)
	s.up.Store(true)
	s.connected.Set(1)
	s.write(ctx, channel, lost, inFlight)
	s.up.Store(false)
	s.connected.Set(0)
	if err := conn.Close(); err != nil && ctx.Err() == nil {
		s.log.Debugf("amqp_publish: closing the lost connection: %v", err)
	}
	<-read
	for _, p := range inFlight.pending {
		p.outcome <- unknown
	}
	for len(s.queue) > 0 {
		if p := <-s.queue; p.stage.CompareAndSwap(waiting, taken) {
			p.outcome <- unsent
		}
	}
}

func (s *session) write(ctx context.Context, channel *amqp.Channel, lost chan *amqp.Error, inFlight *ledger) {
	for {
		select {
		case <-ctx.Done():
			return
		case err := <-lost:
			s.log.Errorf("amqp_publish: connection lost: %v", err)
			return
		case p := <-s.queue:
			if !p.stage.CompareAndSwap(waiting, taken) {
				continue
			}
			if s.blocked.Load() {
				p.outcome <- unsent
				continue
			}
			inFlight.add(channel.GetNextPublishSeqNo(), p)
			if err := channel.Publish(p.exchange, p.routingKey, true, false, p.message); err != nil {
				// Part of it may have left: what is in flight becomes unknown, and the connection is given up.
				s.log.Errorf("amqp_publish: write failed: %v", err)
				return
			}
		}
	}
}

// attribute gives each in-flight message its outcome, until both channels are closed with the connection.
func attribute(returns chan amqp.Return, confirms chan amqp.Confirmation, inFlight *ledger) {
	gaveBack := map[string]int{}
	for returns != nil || confirms != nil {
		select {
		case r, open := <-returns:
			if !open {
				returns = nil
				continue
			}
			gaveBack[r.MessageId]++
		case c, open := <-confirms:
			if !open {
				confirms = nil
				continue
			}
			p := inFlight.take(c.DeliveryTag)
			if p == nil {
				continue
			}
			id := p.message.MessageId
			switch {
			case gaveBack[id] > 0:
				if gaveBack[id]--; gaveBack[id] == 0 {
					delete(gaveBack, id)
				}
				p.outcome <- returned
			case c.Ack:
				p.outcome <- confirmed
			default:
				p.outcome <- nacked
			}
		}
	}
}

func (s *session) watchBlocked(notices chan amqp.Blocking) {
	for notice := range notices {
		s.blocked.Store(notice.Active)
		if notice.Active {
			s.log.Warnf("amqp_publish: the broker blocks publishers: %s", notice.Reason)
		}
	}
}

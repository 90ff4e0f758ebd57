package pgcut

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"
)

// Cutter cuts one connection each time it is armed. The zero value cuts nothing.
// It is safe for concurrent use.
type Cutter struct {
	mu       sync.Mutex
	counts   map[Direction]int
	messages []Message
	point    *Point
	choose   func(Message) bool
	cut      *Cut
	done     chan struct{}
	dialed   int
	conns    []*conn
	drains   sync.WaitGroup
}

// Cut is what a Cutter did.
type Cut struct {
	// Point is that of Arm; of ArmWhen, its mode.
	Point Point
	// Message is the one at which it cut. Where Point.After is not set it has
	// not passed.
	Message Message
	// Unanswered says that the server had got a whole request, up to its Sync,
	// and the client had not got the whole answer: it may be done or not.
	Unanswered bool
	// Ambiguous says that a COMMIT had reached the server and the client had
	// not got the whole answer.
	Ambiguous bool
	// Unsynced says that the server had got a part of a request. It waits for
	// the rest without a timeout of its own, also where it has a transaction
	// open: the clock of idle_in_transaction_session_timeout starts at a Sync.
	Unsynced bool
}

// Install puts the cutter into the connections that config makes. It refuses
// encryption, which hides the messages: use sslmode=disable.
func (c *Cutter) Install(config *pgconn.Config) error {
	encrypted := config.TLSConfig != nil
	for _, fallback := range config.Fallbacks {
		encrypted = encrypted || fallback.TLSConfig != nil
	}
	if encrypted {
		return errors.New("pgcut: cannot read the messages of an encrypted connection: set sslmode=disable")
	}
	dial := config.DialFunc
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		if c.isDown() {
			return nil, syscall.ECONNREFUSED
		}
		server, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return c.wrap(server), nil
	}
	return nil
}

func (c *Cutter) isDown() bool {
	cut := c.Cut()
	return cut != nil && cut.Point.Mode == Outage
}

func (c *Cutter) wrap(server net.Conn) *conn {
	quiet, _ := net.Pipe()
	wrapped := &conn{Conn: server, cutter: c, quiet: quiet, frontend: stream{untyped: true}}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dialed++
	wrapped.number = c.dialed
	c.conns = append(c.conns, wrapped)
	return wrapped
}

// Started tells that a connection's owner has made it ready for use. Its messages
// up to then were those of its start.
func (c *Cutter) Started(started net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if conn, ok := started.(*conn); ok {
		conn.started = true
	}
}

// Arm lets the cutter cut at the point, once. Messages are recorded and counted
// anew from here. A nil point only records. The channel is closed at the cut.
func (c *Cutter) Arm(point *Point) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.arm(point, nil)
}

// ArmWhen is Arm for a point that is known when it is reached: before the first
// message for which choose returns true. It gets the messages one at a time, and
// must not call the Cutter.
func (c *Cutter) ArmWhen(mode Mode, choose func(Message) bool) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.arm(&Point{Mode: mode}, choose)
}

func (c *Cutter) arm(point *Point, choose func(Message) bool) <-chan struct{} {
	c.point, c.choose, c.cut, c.messages, c.counts = point, choose, nil, nil, make(map[Direction]int)
	c.done = make(chan struct{})
	return c.done
}

func (c *Cutter) hits(message *Message) bool {
	switch {
	case c.point == nil:
		return false
	case c.choose != nil:
		return c.choose(*message)
	}
	return c.point.hits(message)
}

// Messages returns what has passed, or was to pass when it was cut, since Arm.
func (c *Cutter) Messages() []Message {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.messages)
}

// Cut returns what was cut since Arm, nil if nothing.
func (c *Cutter) Cut() *Cut {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cut
}

// Close ends every connection on both sides: the server hears of those that
// fell silent, and no client waits on them any more.
func (c *Cutter) Close() {
	c.mu.Lock()
	for _, conn := range c.conns {
		_ = conn.quiet.Close()
		_ = conn.Conn.Close()
	}
	c.conns = nil
	c.mu.Unlock()
	c.drains.Wait()
}

// see takes note of a message and decides what becomes of it.
func (c *Cutter) see(conn *conn, from Direction, raw []byte, first bool) (pass, cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if conn.mode != "" {
		return false, false // it was cut while this message was on its way
	}
	if c.counts == nil {
		c.counts = make(map[Direction]int)
	}
	c.counts[from]++
	message := Message{From: from, Number: c.counts[from], Conn: conn.number, Starting: !conn.started}
	if !first {
		message.Type = raw[0]
		if from == Frontend {
			statement := conn.statements.run(raw)
			message.Statement, message.Commit = statement.text, statement.commit
		} else {
			message.Commit = message.Type == 'C' && string(raw[5:]) == "COMMIT\x00"
		}
	}
	c.messages = append(c.messages, message)
	cut = c.hits(&message)
	pass = !cut || c.point.After
	if pass {
		conn.progress.passed(message)
	}
	if cut {
		conn.mode = c.point.Mode
		c.cut = &Cut{
			Point: *c.point, Message: message, Unanswered: conn.progress.requests > 0,
			Ambiguous: conn.progress.commit, Unsynced: conn.progress.unsynced,
		}
		c.point = nil
		close(c.done)
	}
	return pass, cut
}

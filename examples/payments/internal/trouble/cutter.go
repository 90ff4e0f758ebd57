package trouble

import (
	"bytes"
	"context"
	"io"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// commitReply is the whole message by which a server says that it has committed.
// One that could not commit says ROLLBACK, or sends an error.
var commitReply = []byte("C\x00\x00\x00\x0bCOMMIT\x00")

// cutter is a proxy in the API's connections. Now and then it cuts one as the
// reply to COMMIT passes: the server has committed, and the API never hears.
type cutter struct {
	mu     sync.Mutex
	every  time.Duration // 0 while nothing is cut
	last   time.Time
	counts *counts
	// acknowledged is how many charges were when the last reply was cut.
	acknowledged int64
}

// start cuts the first reply that passes, so that no run is too short for a cut.
func (c *cutter) start(every time.Duration, counts *counts) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.every, c.counts, c.acknowledged = every, counts, -1
}

func (c *cutter) stop() { c.start(0, nil) }

// due reports whether the reply that passes now is to be cut, and counts it.
func (c *cutter) due() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	// One at most for each charge that gets through, as for the killer: on a slow
	// machine every commit that asks for the outcome of the last one would be cut.
	if c.every == 0 || time.Since(c.last) < c.every || c.acknowledged == c.counts.acknowledged() {
		return false
	}
	c.last, c.acknowledged = time.Now(), c.counts.acknowledged()
	c.counts.cut.Add(1)
	return true
}

// wrap is a pgconn.Config.AfterNetConnect. It works above TLS, so that encrypted
// connections are cut too.
func (c *cutter) wrap(_ context.Context, _ *pgconn.Config, conn net.Conn) (net.Conn, error) {
	return &cutConn{Conn: conn, cutter: c}, nil
}

type cutConn struct {
	net.Conn
	cutter *cutter
	// tail is the end of what was read before: a reply may come in two pieces.
	tail []byte
}

func (c *cutConn) Read(data []byte) (int, error) {
	n, err := c.Conn.Read(data)
	seen := append(c.tail, data[:n]...)
	committed := bytes.Contains(seen, commitReply)
	// One byte less than a reply, so that none is seen twice.
	c.tail = append(c.tail[:0], seen[max(0, len(seen)-len(commitReply)+1):]...)
	if committed && c.cutter.due() {
		_ = c.Close() // what is left of it is nobody's concern
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}

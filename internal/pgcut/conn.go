package pgcut

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// conn is a connection of a client's, which its cutter may cut.
type conn struct {
	net.Conn
	cutter *Cutter
	number int
	// quiet is never written to. It makes reads of a silenced connection wait,
	// with the deadlines that the client sets.
	quiet net.Conn
	// reading and writing let one call in at a time, as a TCP connection does:
	// pgx reads what is left of a connection that it closes in two goroutines.
	reading, writing  sync.Mutex
	frontend, backend stream
	chunk             [8192]byte
	// released is what the client may still read.
	released []byte
	// uncounted is a request to cancel, which passes as it is.
	uncounted bool

	// The rest is guarded by the cutter's lock.
	mode       Mode // set once it is cut
	started    bool
	statements statements
	progress   progress
}

// progress is how far a connection's requests have come.
type progress struct {
	requests int // whole ones without a whole answer
	unsynced bool
	commit   bool
}

func (p *progress) passed(message Message) {
	switch {
	case message.From == Backend && message.Type == 'Z':
		if p.requests > 0 { // it also ends a start
			p.requests--
		}
		p.commit = p.commit && p.requests > 0
	case message.From == Backend:
	case message.Type == 'S' || message.Type == 'Q':
		p.requests++
		p.unsynced = false
	case message.Type != 'X':
		p.unsynced = message.Type != 0
	}
	if message.From == Frontend && message.Commit {
		p.commit = true
	}
}

func (c *conn) cut() Mode {
	c.cutter.mu.Lock()
	defer c.cutter.mu.Unlock()
	return c.mode
}

// Write sends the whole messages in data on; the rest waits for its end.
func (c *conn) Write(data []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	switch c.cut() {
	case "":
	case Silence:
		return len(data), nil
	default:
		return 0, c.broken("write", syscall.EPIPE)
	}
	if c.uncounted {
		return c.Conn.Write(data)
	}
	c.frontend.buffer = append(c.frontend.buffer, data...)
	var passing []byte
	for {
		first := c.frontend.untyped
		raw, err := c.frontend.next()
		if err != nil {
			return 0, err
		}
		if raw == nil {
			break
		}
		if first {
			switch startCode(raw) {
			case codeTLS, codeGSS:
				return 0, errNotProtocol
			case codeCancel:
				c.uncounted = true
				if _, err := c.Conn.Write(raw); err != nil {
					return 0, err
				}
				return len(data), nil
			}
		}
		pass, cut := c.cutter.see(c, Frontend, raw, first)
		if pass {
			passing = append(passing, raw...)
		}
		if cut {
			if len(passing) > 0 {
				_, _ = c.Conn.Write(passing) // whether it fails makes no difference
			}
			c.sever()
			return len(data), nil // the client's kernel has taken it
		}
	}
	if len(passing) > 0 {
		if _, err := c.Conn.Write(passing); err != nil {
			return 0, err
		}
	}
	return len(data), nil
}

// Read returns whole messages only, and nothing that comes after a cut.
func (c *conn) Read(data []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	for len(c.released) == 0 {
		if c.uncounted {
			return c.Conn.Read(data)
		}
		switch c.cut() {
		case "":
		case Silence:
			return c.quiet.Read(data)
		case Close:
			return 0, io.EOF
		default:
			return 0, c.broken("read", syscall.ECONNRESET)
		}
		n, err := c.Conn.Read(c.chunk[:])
		if n == 0 && c.cut() == "" {
			return 0, err
		}
		c.backend.buffer = append(c.backend.buffer, c.chunk[:n]...)
		if err := c.release(); err != nil {
			return 0, err
		}
	}
	n := copy(data, c.released)
	c.released = c.released[n:]
	return n, nil
}

func (c *conn) release() error {
	for {
		raw, err := c.backend.next()
		if raw == nil || err != nil {
			return err
		}
		pass, cut := c.cutter.see(c, Backend, raw, false)
		if pass {
			c.released = append(c.released, raw...)
		}
		if cut {
			c.sever()
			return nil
		}
	}
}

// sever ends the server's side as the mode says.
func (c *conn) sever() {
	switch c.cut() {
	case Reset, Outage:
		if tcp, ok := c.Conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = c.Conn.Close()
	case Close:
		half, ok := c.Conn.(interface{ CloseWrite() error })
		if !ok {
			_ = c.Conn.Close()
			return
		}
		_ = half.CloseWrite()
		// With unread bytes left, closing would be a reset.
		c.cutter.drains.Go(func() {
			_ = c.Conn.SetDeadline(time.Time{})
			_, _ = io.Copy(io.Discard, c.Conn)
			_ = c.Conn.Close()
		})
	}
}

// Close is the client's. A cut connection's server does not hear of it.
func (c *conn) Close() error {
	_ = c.quiet.Close()
	if c.cut() != "" {
		return nil
	}
	return c.Conn.Close()
}

// SetDeadline is the client's, as the two below: a cut connection keeps them to
// itself.
func (c *conn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

func (c *conn) SetReadDeadline(t time.Time) error {
	_ = c.quiet.SetReadDeadline(t)
	if c.cut() == Close {
		return nil // it is the drain's
	}
	return c.Conn.SetReadDeadline(t)
}

func (c *conn) SetWriteDeadline(t time.Time) error { return c.Conn.SetWriteDeadline(t) }

func (c *conn) broken(op string, err syscall.Errno) error {
	return &net.OpError{Op: op, Net: "tcp", Err: os.NewSyscallError(op, err)}
}

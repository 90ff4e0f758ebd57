package bench

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
)

// CommitProxy stands between a pool and the server, and cuts one connection at
// its COMMIT once it is Armed.
type CommitProxy struct {
	// AfterCommit cuts when the server has answered, otherwise before the
	// server has heard of it.
	AfterCommit bool
	// DownAfterCut lets no connection through from the cut on, until Down is
	// unset.
	DownAfterCut bool
	// Silent loses the reply without closing the connection: the network has
	// failed and nobody says so.
	Silent bool

	// Down lets no connection through, Armed cuts at the next COMMIT, and Cuts
	// is how often that has happened.
	Down, Armed atomic.Bool
	Cuts        atomic.Int32
}

// Through returns config with the proxy in its connections.
func (c *CommitProxy) Through(t testing.TB, config *pgxpool.Config) *pgxpool.Config {
	t.Helper()
	if config.ConnConfig.TLSConfig != nil {
		t.Fatal("connections are encrypted: their messages cannot be read here")
	}
	dial := config.ConnConfig.DialFunc
	config.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		if c.Down.Load() {
			return nil, errors.New("test: the network is down")
		}
		conn, err := dial(ctx, network, address)
		return &proxiedConn{Conn: conn, proxy: c}, err
	}
	return config
}

// cut cuts the connection if it is to be, now that message goes by.
func (c *CommitProxy) cut(conn net.Conn, message, at []byte) bool {
	if !bytes.Contains(message, at) || !c.Armed.CompareAndSwap(true, false) {
		return false
	}
	c.Down.Store(c.DownAfterCut)
	c.Cuts.Add(1)
	if !c.Silent {
		_ = conn.Close()
	}
	return true
}

// cancelRequest is how the protocol begins a request to cancel a statement.
var cancelRequest = []byte{0, 0, 0, 16, 4, 210, 22, 46}

type proxiedConn struct {
	net.Conn
	proxy *CommitProxy
}

// Write sees the text of the statement, which the first use of a connection
// sends in every exec mode.
func (c *proxiedConn) Write(data []byte) (int, error) {
	if c.proxy.Silent && bytes.HasPrefix(data, cancelRequest) {
		return 0, io.ErrClosedPipe
	}
	if !c.proxy.AfterCommit && c.proxy.cut(c.Conn, data, []byte("commit\x00")) {
		return 0, io.ErrClosedPipe
	}
	return c.Conn.Write(data)
}

// Read sees the tag of the completed command.
func (c *proxiedConn) Read(data []byte) (int, error) {
	n, err := c.Conn.Read(data)
	if c.proxy.AfterCommit && c.proxy.cut(c.Conn, data[:n], []byte("COMMIT\x00")) {
		if c.proxy.Silent {
			return c.Conn.Read(data) // until the server closes it
		}
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}

package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// An echo through the proxy arrives whole, in order, and not before its time;
// what is under way at once is late once.
func TestProxy(t *testing.T) {
	t.Parallel()
	var listen net.ListenConfig
	listener, err := listen.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close() //nolint:errcheck // Nothing is left to go wrong.
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				// The other end sees what does not come back.
				_, _ = io.Copy(conn, conn)
				_ = conn.Close()
			}()
		}
	}()
	config, err := pgxpool.ParseConfig(fmt.Sprintf("postgres://%s/db?sslmode=disable", listener.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	const rtt = 20 * time.Millisecond
	link, err := startProxy(t.Context(), config, rtt)
	if err != nil {
		t.Fatal(err)
	}
	link.through(config)
	conn, err := config.ConnConfig.DialFunc(t.Context(), "tcp", "ignored")
	if err != nil {
		t.Fatal(err)
	}

	var sent bytes.Buffer
	for i := range 1000 {
		fmt.Fprintf(&sent, "message %d\n", i)
	}
	start := time.Now()
	for message := range bytes.Lines(sent.Bytes()) {
		if _, err := conn.Write(message); err != nil {
			t.Fatal(err)
		}
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	if !bytes.Equal(got, sent.Bytes()) {
		t.Errorf("%d bytes came back that differ from the %d sent", len(got), sent.Len())
	}
	// One after the other, they would take 1,000 round trips.
	if took < rtt || took > 500*rtt {
		t.Errorf("took %s for a round trip of %s", took, rtt)
	}
	if err := link.close(); err != nil {
		t.Error(err)
	}
}

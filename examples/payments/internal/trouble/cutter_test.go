package trouble

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// pieces is a connection from which each Read takes one piece.
type pieces struct {
	net.Conn
	left   [][]byte
	closed bool
}

func (p *pieces) Read(data []byte) (int, error) {
	if p.closed || len(p.left) == 0 {
		return 0, io.EOF
	}
	n := copy(data, p.left[0])
	p.left = p.left[1:]
	return n, nil
}

func (p *pieces) Close() error {
	p.closed = true
	return nil
}

func TestCutterCutsAReplyInTwoPieces(t *testing.T) {
	t.Parallel()
	stream := append([]byte("C\x00\x00\x00\x0dROLLBACK\x00"), commitReply...)
	stream = append(stream, "Z\x00\x00\x00\x05I"...)
	for at := 1; at < len(stream); at++ {
		counts := &counts{}
		cutter := &cutter{}
		cutter.start(time.Nanosecond, counts)
		server := &pieces{left: [][]byte{stream[:at], stream[at:]}}
		conn, err := cutter.wrap(t.Context(), nil, server)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(conn)
		if !errors.Is(err, io.ErrUnexpectedEOF) || !server.closed || bytes.Contains(got, commitReply) {
			t.Errorf("split at %d: read %q (%v), closed %t; want it cut before the reply is whole", at, got, err, server.closed)
		}
		// pgx reads on while it closes a connection.
		if n, err := conn.Read(make([]byte, 100)); n != 0 || err == nil {
			t.Errorf("split at %d: %d bytes (%v) after the cut", at, n, err)
		}
		if cut := counts.cut.Load(); cut != 1 {
			t.Errorf("split at %d: %d cuts counted, want 1", at, cut)
		}
	}
}

func TestCutterLetsTheRestPass(t *testing.T) {
	t.Parallel()
	counts := &counts{}
	cutter := &cutter{}
	read := func() ([]byte, error) {
		conn, err := cutter.wrap(t.Context(), nil, &pieces{left: [][]byte{commitReply, commitReply}})
		if err != nil {
			t.Fatal(err)
		}
		return io.ReadAll(conn)
	}
	whole := bytes.Repeat(commitReply, 2)
	if got, err := read(); err != nil || !bytes.Equal(got, whole) {
		t.Errorf("before the start: read %q (%v)", got, err)
	}
	cutter.start(time.Hour, counts)
	if got, err := read(); err == nil {
		t.Errorf("the first reply was not cut: read %q", got)
	}
	if got, err := read(); err != nil || !bytes.Equal(got, whole) {
		t.Errorf("within the hour: read %q (%v)", got, err)
	}
	cutter.start(time.Nanosecond, counts)
	cutter.stop()
	if got, err := read(); err != nil || !bytes.Equal(got, whole) {
		t.Errorf("after the stop: read %q (%v)", got, err)
	}
	if cut := counts.cut.Load(); cut != 1 {
		t.Errorf("%d cuts counted, want 1", cut)
	}
}

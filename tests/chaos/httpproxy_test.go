//go:build unix

package chaos_test

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"

	"github.com/samecommit/samecommit/internal/pgcut"
)

// httpCut is where and how to cut a connection: after so many bytes of a message.
type httpCut struct {
	place string
	bytes int
	mode  pgcut.Mode
}

// httpProxy stands between HTTP clients and the servers of the moment. It reads whole
// messages, so that it can cut between any two bytes of them.
type httpProxy struct {
	address string
	// cut chooses where to cut a message from that side; nil lets it pass.
	cut func(from pgcut.Direction, message []byte) *httpCut
	// answered gets every whole answer that a server has sent, before its client has any
	// of it.
	answered func(request *http.Request, answer *httpAnswer)

	mu      sync.Mutex
	servers []string
	last    int
	conns   map[net.Conn]bool
	closed  bool
}

func newHTTPProxy(t *testing.T, cut func(pgcut.Direction, []byte) *httpCut, answered func(*http.Request, *httpAnswer)) *httpProxy {
	t.Helper()
	var config net.ListenConfig
	listener, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &httpProxy{address: listener.Addr().String(), cut: cut, answered: answered, conns: make(map[net.Conn]bool)}
	var group sync.WaitGroup
	group.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return // it was closed
			}
			group.Go(func() { p.serve(t.Context(), client) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		p.mu.Lock()
		p.closed = true
		for conn := range p.conns {
			_ = conn.Close()
		}
		p.mu.Unlock()
		group.Wait()
	})
	return p
}

// serverUp and serverGone say which servers there are.
func (p *httpProxy) serverUp(address string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.servers = append(p.servers, address)
}

func (p *httpProxy) serverGone(address string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.servers = slices.DeleteFunc(p.servers, func(a string) bool { return a == address })
}

// server is whose turn it is.
func (p *httpProxy) server() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.servers) == 0 {
		return ""
	}
	p.last++
	return p.servers[p.last%len(p.servers)]
}

// keep has Close close a connection, until its own end.
func (p *httpProxy) keep(conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns[conn] = true
	return !p.closed
}

func (p *httpProxy) end(conn net.Conn) {
	_ = conn.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, conn)
}

// serve serves one connection. Where one side ends, or is cut, so does the other.
func (p *httpProxy) serve(ctx context.Context, client net.Conn) {
	defer p.end(client)
	if !p.keep(client) {
		return
	}
	var dialer net.Dialer
	server, err := dialer.DialContext(ctx, "tcp", p.server())
	if err != nil {
		return // it was killed just now
	}
	defer p.end(server)
	if !p.keep(server) {
		return
	}
	var sent, got bytes.Buffer
	requests, answers := bufio.NewReader(io.TeeReader(client, &sent)), bufio.NewReader(io.TeeReader(server, &got))
	for {
		sent.Reset()
		got.Reset()
		request, err := http.ReadRequest(requests)
		if err == nil {
			_, err = io.Copy(io.Discard, request.Body)
		}
		if err != nil {
			_, _ = server.Write(sent.Bytes()) // the client was killed
			return
		}
		if !p.pass(pgcut.Frontend, sent.Bytes(), client, server) {
			return
		}
		var answer *httpAnswer
		response, err := http.ReadResponse(answers, request)
		if err == nil {
			answer, err = newHTTPAnswer(response)
			_ = response.Body.Close()
		}
		if err != nil {
			_, _ = client.Write(got.Bytes()) // the server was killed
			return
		}
		p.answered(request, answer)
		if !p.pass(pgcut.Backend, got.Bytes(), server, client) {
			return
		}
	}
}

// pass passes a message on, and reports whether the connections go on.
func (p *httpProxy) pass(from pgcut.Direction, message []byte, source, target net.Conn) bool {
	cut := p.cut(from, message)
	if cut == nil {
		_, err := target.Write(message)
		return err == nil
	}
	_, _ = target.Write(message[:cut.bytes]) // whether it fails makes no difference
	if cut.mode == pgcut.Reset {
		_ = source.(*net.TCPConn).SetLinger(0)
		_ = target.(*net.TCPConn).SetLinger(0)
	}
	return false
}

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// proxy stands between pools and a server and delivers all that it gets half a
// round trip later, in both directions. What is under way is not bounded, so it
// costs time and no throughput.
type proxy struct {
	rtt      time.Duration
	listener net.Listener
	target   net.Addr
	requests line
	replies  line

	mu     sync.Mutex
	conns  []net.Conn
	closed bool
	// copying are those who read, delivering the two who write.
	copying, delivering sync.WaitGroup
}

// packet is what one read gave; without data, the end of the connection.
type packet struct {
	due  time.Time
	to   *net.TCPConn
	data []byte
}

// line is one direction. As the delay is one for all, what came first is due
// first, whatever its connection.
type line struct {
	delay   time.Duration
	timer   *timer
	packets chan packet
}

// underWay is far more than 32 workers have under way at once.
const underWay = 1 << 14

// startProxy listens for connections to the server that target's pools use.
func startProxy(ctx context.Context, target *pgxpool.Config, rtt time.Duration) (p *proxy, err error) {
	address := net.JoinHostPort(target.ConnConfig.Host, strconv.Itoa(int(target.ConnConfig.Port)))
	conn, err := target.ConnConfig.DialFunc(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	p = &proxy{rtt: rtt, target: conn.RemoteAddr()}
	if err := conn.Close(); err != nil {
		return nil, err
	}
	for _, line := range []*line{&p.requests, &p.replies} {
		line.delay, line.packets = rtt/2, make(chan packet, underWay)
		if line.timer, err = newTimer(); err != nil {
			return nil, err
		}
	}
	var config net.ListenConfig
	if p.listener, err = config.Listen(ctx, "tcp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	p.delivering.Go(p.requests.deliver)
	p.delivering.Go(p.replies.deliver)
	p.copying.Go(func() { p.accept(ctx) })
	return p, nil
}

// through lets pools of config connect by way of the proxy.
func (p *proxy) through(config *pgxpool.Config) {
	var dialer net.Dialer
	config.ConnConfig.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dialer.DialContext(ctx, "tcp", p.listener.Addr().String())
	}
}

// String says what it adds, for a headline.
func (p *proxy) String() string {
	if p == nil {
		return ""
	}
	return fmt.Sprintf(", %s added to a round trip", p.rtt)
}

func (p *proxy) accept(ctx context.Context) {
	var dialer net.Dialer
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return // closed
		}
		server, err := dialer.DialContext(ctx, p.target.Network(), p.target.String())
		if err != nil {
			_ = client.Close() // the client says that it could not connect
			continue
		}
		p.join(client, server)
	}
}

func (p *proxy) join(client, server net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		_, _ = client.Close(), server.Close()
		return
	}
	p.conns = append(p.conns, client, server)
	p.copying.Go(func() { p.requests.copy(server, client) })
	p.copying.Go(func() { p.replies.copy(client, server) })
}

// copy puts on the line what it reads.
func (l *line) copy(to, from net.Conn) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		due := time.Now().Add(l.delay)
		if n > 0 {
			l.packets <- packet{due, to.(*net.TCPConn), append([]byte(nil), buffer[:n]...)}
		}
		if err != nil {
			l.packets <- packet{due, to.(*net.TCPConn), nil}
			return
		}
	}
}

func (l *line) deliver() {
	for packet := range l.packets {
		// A timer that fails, or a connection that has gone, is seen by whoever
		// waits for what does not come.
		_ = l.timer.until(packet.due)
		if packet.data == nil {
			_ = packet.to.CloseWrite()
			continue
		}
		_, _ = packet.to.Write(packet.data)
	}
}

// close ends every connection.
func (p *proxy) close() error {
	err := p.listener.Close()
	p.mu.Lock()
	p.closed = true
	for _, conn := range p.conns {
		_ = conn.Close() // most have been closed by their other ends
	}
	p.mu.Unlock()
	p.copying.Wait()
	close(p.requests.packets)
	close(p.replies.packets)
	p.delivering.Wait()
	return errors.Join(err, p.requests.timer.close(), p.replies.timer.close())
}

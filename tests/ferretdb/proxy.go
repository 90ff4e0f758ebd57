package main

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
)

// proxy lets one command through at a time, of all connections.
type proxy struct {
	server   string
	listener net.Listener
	// turn is held from a command to its reply.
	turn sync.Mutex
}

func newProxy(server string) (*proxy, error) {
	var config net.ListenConfig
	listener, err := config.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	return &proxy{server: server, listener: listener}, nil
}

func (p *proxy) serve() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return // it was closed
		}
		go p.relay(client)
	}
}

// relay serves one connection. When it breaks, both sides do, which is all that either
// has to know.
func (p *proxy) relay(client net.Conn) {
	defer func() { _ = client.Close() }()
	var dialer net.Dialer
	server, err := dialer.DialContext(context.Background(), "tcp", p.server)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	for {
		command, err := readMessage(client)
		if err != nil {
			return
		}
		reply, err := p.take(server, command)
		if err != nil {
			return
		}
		if _, err := client.Write(reply); err != nil {
			return
		}
	}
}

// take sends a command, and returns its reply, empty where it gets none.
func (p *proxy) take(server net.Conn, command []byte) ([]byte, error) {
	p.turn.Lock()
	defer p.turn.Unlock()
	if _, err := server.Write(command); err != nil {
		return nil, err
	}
	if unacknowledged(command) {
		return nil, nil
	}
	return readMessage(server)
}

const (
	headerSize = 16
	maxMessage = 48 << 20
	opMsg      = 2013
	// moreToCome is a flag of a message that wants no reply.
	moreToCome = 1 << 1
)

var errMessage = errors.New("not a message of MongoDB's protocol")

// readMessage reads a message, which begins with its length, as a whole.
func readMessage(from io.Reader) ([]byte, error) {
	header := make([]byte, headerSize)
	if _, err := io.ReadFull(from, header); err != nil {
		return nil, err
	}
	length := binary.LittleEndian.Uint32(header)
	if length < headerSize || length > maxMessage {
		return nil, errMessage
	}
	message := make([]byte, length)
	copy(message, header)
	_, err := io.ReadFull(from, message[headerSize:])
	return message, err
}

func unacknowledged(message []byte) bool {
	return len(message) >= headerSize+4 && binary.LittleEndian.Uint32(message[12:]) == opMsg &&
		binary.LittleEndian.Uint32(message[headerSize:])&moreToCome != 0
}

package redisstore_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/samecommit/samecommit/idempotency/redisstore"
)

// requiredVariable, where it is "local", lets tests fail that lack a program of this
// machine, as in CI, and not be skipped.
const requiredVariable = "SAMECOMMIT_REDIS"

// server is a redis-server, or a valkey-server, of a test's own.
type server struct {
	*testing.T
	folder  string
	port    int
	args    []string
	environ []string
	process *exec.Cmd
	// ended is closed when the process has ended.
	ended chan struct{}
}

// startServer starts a server that keeps nothing on disk unless args say so.
func startServer(t *testing.T, args ...string) *server {
	t.Helper()
	return startServerWith(t, nil, args...)
}

// startServerWith starts one with more in its environment.
func startServerWith(t *testing.T, environ []string, args ...string) *server {
	t.Helper()
	s := &server{T: t, folder: t.TempDir(), args: args, environ: environ}
	t.Cleanup(s.kill)
	for range 5 {
		s.port = freePort(t)
		if s.start() {
			return s
		}
		// Somebody else has taken the port since.
	}
	text, _ := os.ReadFile(filepath.Join(s.folder, "log"))
	t.Fatalf("redis-server does not start:\n%s", text)
	return nil
}

// freePort returns a port that is free, and so low that a cluster's second one, which is
// 10,000 above it, is a port too.
func freePort(t *testing.T) int {
	t.Helper()
	var config net.ListenConfig
	for {
		listener, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address, _ := listener.Addr().(*net.TCPAddr)
		if err := listener.Close(); err != nil {
			t.Fatal(err)
		}
		if address.Port < 55_000 {
			return address.Port
		}
	}
}

// program returns the server's.
func program(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"redis-server", "valkey-server"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv(requiredVariable) == "local" {
		t.Fatal("redis-server is not on the path")
	}
	t.Skip("redis-server is not on the path: install the package redis-server")
	return ""
}

// start starts the server, again after a kill, and waits until it answers. It reports
// whether it does, or has ended.
func (s *server) start() bool {
	s.Helper()
	log, err := os.Create(filepath.Join(s.folder, "log"))
	if err != nil {
		s.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	process := exec.CommandContext(context.WithoutCancel(s.Context()), program(s.T), append([]string{
		"--bind", "127.0.0.1", "--port", fmt.Sprint(s.port), "--dir", s.folder, "--save", "", "--appendonly", "no",
	}, s.args...)...)
	process.Stdout, process.Stderr = log, log
	process.Env = append(os.Environ(), s.environ...)
	if err := process.Start(); err != nil {
		s.Fatal(err)
	}
	s.process, s.ended = process, make(chan struct{})
	go func() {
		defer close(s.ended)
		_ = process.Wait()
	}()
	client := s.client(nil)
	deadline := time.After(20 * time.Second)
	for {
		// The port may be another server's.
		if text, err := client.Info(s.Context(), "server").Result(); err == nil && strings.Contains(text, fmt.Sprintf("process_id:%d\r", process.Process.Pid)) {
			return true
		}
		select {
		case <-s.ended:
			return false
		case <-deadline:
			return false
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// restart starts the server again, at its port.
func (s *server) restart() {
	s.Helper()
	if !s.start() {
		s.Fatal("redis-server does not start again")
	}
}

// kill ends the server as a crash does.
func (s *server) kill() {
	if s.process != nil {
		_ = s.process.Process.Kill()
		<-s.ended
	}
}

// until asks again until the condition holds.
func (s *server) until(what string, condition func() bool) {
	s.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(20 * time.Second)
	for !condition() {
		select {
		case <-ticker.C:
		case <-deadline:
			s.Fatalf("gave up waiting until %s", what)
		}
	}
}

func (s *server) address() string { return fmt.Sprintf("127.0.0.1:%d", s.port) }

// client returns a client, with options that change may change.
func (s *server) client(change func(*redis.Options)) *redis.Client {
	s.Helper()
	options := &redis.Options{Addr: s.address()}
	if change != nil {
		change(options)
	}
	client := redis.NewClient(options)
	s.Cleanup(func() { _ = client.Close() })
	return client
}

func (s *server) store(config *redisstore.Config) *redisstore.Store {
	s.Helper()
	return newStore(s.T, s.client(nil), config)
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}

func newStore(t *testing.T, client redis.UniversalClient, config *redisstore.Config) *redisstore.Store {
	t.Helper()
	store, err := redisstore.New(client, config)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// lostReply is a connection whose next reply is lost when armed: the server has run
// the request, and the client's connection breaks.
type lostReply struct {
	net.Conn
	armed *bool
}

func (c *lostReply) Read(data []byte) (int, error) {
	n, err := c.Conn.Read(data)
	if err == nil && *c.armed {
		*c.armed = false
		return 0, errors.Join(io.ErrUnexpectedEOF, c.Close())
	}
	return n, err
}

// losing returns a client that loses the reply to a request once armed is set.
func (s *server) losing(retries int, armed *bool) *redis.Client {
	s.Helper()
	return s.client(func(options *redis.Options) {
		options.MaxRetries = retries
		options.PoolSize = 1
		dialer := &net.Dialer{}
		options.Dialer = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &lostReply{conn, armed}, nil
		}
	})
}

package storeserver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"
)

// Redis returns the server of SAMECOMMIT_REDIS_URL; else one started from this machine's
// redis-server or valkey-server, which tests of its faults start too; else a container of
// the image redis:8. SAMECOMMIT_REDIS set to url, local or container allows only that.
func Redis(ctx context.Context) (*Server, error) {
	return first(ctx, "REDIS", way{"local", localRedis}, way{"container", redisContainer})
}

func localRedis(ctx context.Context) (*Server, error) {
	for _, name := range []string{"redis-server", "valkey-server"} {
		program, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		return startRedis(ctx, program)
	}
	return nil, errors.New("neither redis-server nor valkey-server is on the path (Debian: apt-get install redis-server)")
}

func startRedis(ctx context.Context, program string) (_ *Server, err error) {
	folder, err := os.MkdirTemp("", "samecommit-redis-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(folder))
		}
	}()
	for range 5 {
		address, err := freeAddress(ctx)
		if err != nil {
			return nil, err
		}
		_, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		p, err := startProcess(ctx, nil, program, "--bind", "127.0.0.1", "--port", port, "--dir", folder, "--save", "", "--appendonly", "no")
		if err != nil {
			return nil, err
		}
		version, err := p.redisVersion(ctx, address)
		switch {
		case err == nil:
			return &Server{
				URL: "redis://" + address, From: fmt.Sprintf("this machine's %s, %s", program, version),
				stop: func(context.Context) error { return p.stop(folder) },
			}, nil
		case !errors.Is(err, errEnded):
			return nil, errors.Join(err, p.stop(folder))
		}
		// Somebody else has taken the port since.
	}
	return nil, fmt.Errorf("%s does not start", program)
}

func freeAddress(ctx context.Context) (string, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}

var errEnded = errors.New("the server has ended")

// startTime is how long a server may take until it answers.
const startTime = 20 * time.Second

// redisVersion waits until the process answers, and no other at its port, and returns its
// version.
func (p *process) redisVersion(ctx context.Context, address string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	pause := time.NewTicker(5 * time.Millisecond)
	defer pause.Stop()
	for {
		info, _ := redisInfo(ctx, address)
		if info["process_id"] == fmt.Sprint(p.command.Process.Pid) {
			return info["redis_version"], nil
		}
		select {
		case <-p.ended:
			return "", fmt.Errorf("%w: %w", errEnded, p.failure())
		case <-ctx.Done():
			return "", fmt.Errorf("no answer within %s", startTime)
		case <-pause.C:
		}
	}
}

func redisInfo(ctx context.Context, address string) (map[string]string, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write([]byte("INFO server\r\nQUIT\r\n")); err != nil {
		return nil, err
	}
	found := make(map[string]string)
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		if name, value, ok := strings.Cut(lines.Text(), ":"); ok {
			found[name] = value
		}
	}
	return found, lines.Err()
}

func redisContainer(ctx context.Context) (*Server, error) {
	const port = "6379/tcp"
	return contain(ctx, "redis:8", port, func(ctx context.Context, container testcontainers.Container) (string, error) {
		return container.PortEndpoint(ctx, port, "redis")
	}, testcontainers.WithWaitStrategy(wait.ForLog("Ready to accept connections")))
}

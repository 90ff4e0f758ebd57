package storeserver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/testcontainers/testcontainers-go"
	tcexec "github.com/testcontainers/testcontainers-go/exec"
	"github.com/testcontainers/testcontainers-go/wait"
)

// MongoDB returns the server of SAMECOMMIT_MONGODB_URL; else a container of the image
// mongo:8, a replica set of one; else the test double of program tests/ferretdb, which is
// built from the workspace that the working folder is in. SAMECOMMIT_MONGODB set to url,
// container or ferretdb allows only that.
func MongoDB(ctx context.Context) (*Server, error) {
	return first(ctx, "MONGODB", way{"container", mongoContainer}, way{"ferretdb", ferretDB})
}

// initiate makes a replica set of one, without which there are no transactions, and waits
// for its primary.
const initiate = `rs.initiate({_id: "rs", members: [{_id: 0, host: "localhost:27017"}]}); while (!db.hello().isWritablePrimary) sleep(50)`

func mongoContainer(ctx context.Context) (*Server, error) {
	const port = "27017/tcp"
	return contain(ctx, "mongo:8", port, func(ctx context.Context, container testcontainers.Container) (string, error) {
		code, output, err := container.Exec(ctx, []string{"mongosh", "--quiet", "--eval", initiate}, tcexec.Multiplexed())
		if err != nil {
			return "", err
		}
		if code != 0 {
			text, _ := io.ReadAll(output)
			return "", fmt.Errorf("mongosh ended with %d: %s", code, text)
		}
		url, err := container.PortEndpoint(ctx, port, "mongodb")
		return url + "/?directConnection=true", err
	}, testcontainers.WithCmd("--replSet", "rs", "--bind_ip_all"), testcontainers.WithWaitStrategy(wait.ForLog("Waiting for connections")))
}

const ferretDBProgram = "github.com/samecommit/samecommit/tests/ferretdb"

func ferretDB(ctx context.Context) (_ *Server, err error) {
	folder, err := os.MkdirTemp("", "samecommit-mongodb-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(folder))
		}
	}()
	program := filepath.Join(folder, "ferretdb")
	if output, err := exec.CommandContext(ctx, "go", "build", "-o", program, ferretDBProgram).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build %s: %w: %s", ferretDBProgram, err, output)
	}
	read, write := io.Pipe()
	p, err := startProcess(ctx, write, program)
	if err != nil {
		return nil, err
	}
	lines := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(read).ReadString('\n')
		lines <- line
	}()
	select {
	case line := <-lines:
		return &Server{
			URL: strings.TrimSpace(line), Double: true, From: "FerretDB 1.24, a test double: no transactions, no index that deletes, no elections, no write concern",
			stop: func(context.Context) error { return p.stop(folder) },
		}, nil
	case <-p.ended:
		return nil, p.failure()
	case <-time.After(startTime):
		return nil, errors.Join(fmt.Errorf("no answer within %s", startTime), p.stop(folder))
	}
}

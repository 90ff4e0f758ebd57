// Program withservers runs a command beside the servers that tests need, which it finds
// or starts: PostgreSQL as package pgserver says, a container before this machine's own
// binaries; Redis and MongoDB as package storeserver says. It says what it took. The
// command gets their URLs in SAMECOMMIT_POSTGRES_URL, SAMECOMMIT_REDIS_URL and
// SAMECOMMIT_MONGODB_URL, so that all the test binaries of one go test share them; what
// was started ends with the command:
//
//	go run ./tests/withservers go test ./...
//	go run ./tests/withservers -only postgres go test ./...
//
// Where there is no Redis or no MongoDB, it says so and goes on without: tests of these
// stores are then skipped. It exits as the command does.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/samecommit/samecommit/tests/pgstart"
	"github.com/samecommit/samecommit/tests/storeserver"
)

func main() {
	only := flag.String("only", "", "the one server to run the command beside: postgres, redis or mongodb")
	flag.Usage = func() {
		_, _ = fmt.Fprintln(flag.CommandLine.Output(), "usage: withservers [-only SERVER] COMMAND [ARGUMENT...]")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *only, flag.Args())
	stop()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		os.Exit(exit.ExitCode()) // it has said why
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "withservers:", err)
		os.Exit(1)
	}
}

// server is one that was found or started.
type server interface {
	Environ() []string
	Stop(ctx context.Context) error
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "withservers: "+format+"\n", args...) }

// starts are by the name of the server.
var starts = map[string]func(ctx context.Context) (server, error){
	"postgres": func(ctx context.Context) (server, error) { return pgstart.Start(ctx, say) },
	"redis":    func(ctx context.Context) (server, error) { return startStore(ctx, "Redis", storeserver.Redis) },
	"mongodb":  func(ctx context.Context) (server, error) { return startStore(ctx, "MongoDB", storeserver.MongoDB) },
}

func startStore(ctx context.Context, name string, start func(ctx context.Context) (*storeserver.Server, error)) (server, error) {
	found, err := start(ctx)
	switch {
	case errors.Is(err, storeserver.ErrNone):
		say("no %s, its tests are skipped: %v", name, err)
		return &storeserver.Server{}, nil
	case err != nil:
		return nil, err
	}
	say("%s is %s", name, found.From)
	return found, nil
}

func run(ctx context.Context, only string, args []string) (err error) {
	names := []string{"postgres", "redis", "mongodb"}
	if only != "" {
		names = []string{only}
	}
	command := exec.CommandContext(ctx, args[0], args[1:]...)
	environ := command.Environ()
	for _, name := range names {
		start, ok := starts[name]
		if !ok {
			return fmt.Errorf("there is no server %q: postgres, redis or mongodb", name)
		}
		server, err := start(ctx)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, server.Stop(context.WithoutCancel(ctx))) }()
		environ = append(environ, server.Environ()...)
	}
	command.Env = environ
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	// It ends in its own time, and the servers after it.
	command.Cancel = func() error { return command.Process.Signal(os.Interrupt) }
	return command.Run()
}

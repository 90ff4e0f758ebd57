// Program withpg runs a command beside a PostgreSQL server, which it finds or
// starts as package pgserver says, a container before this machine's own
// binaries. The command gets the server's URL in SAMECOMMIT_POSTGRES_URL, so that
// all the test binaries of one go test share it; the server ends with the command:
//
//	go run ./tests/withpg go test ./...
//
// It exits as the command does.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/samecommit/samecommit/tests/pgstart"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: withpg COMMAND [ARGUMENT...]")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		os.Exit(exit.ExitCode()) // it has said why
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "withpg:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) (err error) {
	server, err := pgstart.Start(ctx, func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "withpg: "+format+"\n", args...)
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop(context.WithoutCancel(ctx))) }()
	command := exec.CommandContext(ctx, args[0], args[1:]...)
	command.Env = append(command.Environ(), server.Environ()...)
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	// It ends in its own time, and the server after it.
	command.Cancel = func() error { return command.Process.Signal(os.Interrupt) }
	return command.Run()
}

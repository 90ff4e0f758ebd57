// Command cardcharge shows work that leaves the database: it charges a card at a
// provider, a server on a socket of its own with keys of its own, and books the charge
// in PostgreSQL. The process that does so is killed at every step, and the provider
// fails in its ways. Then the order is sent again, as a client does. At the end the
// books are compared: one charge and one booking for each order.
//
//	go run ./examples/cardcharge          # DoExternal: one charge, one booking
//	go run ./examples/cardcharge -naive   # the usual way, to see it go wrong
//
// It needs no preparation: it uses the server that SAMECOMMIT_POSTGRES_URL names, or
// starts a throw-away one, and works in a database of its own.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/examples/internal/demodb"
)

// How the program ends.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

const (
	// mostProcesses is how often an order is sent again at most.
	mostProcesses = 5
	orderLimit    = time.Minute
)

func main() {
	if text := os.Getenv(taskVariable); text != "" {
		if err := runTask(context.Background(), text, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "cardcharge:", err)
			os.Exit(exitFailed)
		}
		return
	}
	flags := flag.NewFlagSet("cardcharge", flag.ContinueOnError)
	naive := flags.Bool("naive", false, "charge and book the usual way, to see it go wrong")
	asJSON := flags.Bool("json", false, "print what became of the orders as JSON")
	if err := flags.Parse(os.Args[1:]); errors.Is(err, flag.ErrHelp) {
		return
	} else if err != nil || flags.NArg() > 0 {
		os.Exit(exitUsage)
	}
	ctx, restore := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, restore) // a second ctrl-C gets through
	code, err := run(ctx, *naive, *asJSON, os.Stdout, os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "cardcharge:", err)
		code = exitFailed
	}
	os.Exit(code)
}

func run(ctx context.Context, naive, asJSON bool, stdout, stderr io.Writer) (code int, err error) {
	db, err := demodb.Open(ctx, func(*pgxpool.Config) {}, func(format string, args ...any) {
		_, _ = fmt.Fprintf(stderr, "cardcharge: "+format+"\n", args...)
	})
	if err != nil {
		return exitFailed, err
	}
	// After ctrl-C too, so it needs a context that is still alive.
	defer func() { err = errors.Join(err, db.Close(context.WithoutCancel(ctx))) }()
	if _, err := db.Pool.Exec(ctx, `CREATE TABLE bookings (order_id text NOT NULL, charge_id text NOT NULL)`); err != nil {
		return exitFailed, fmt.Errorf("create the table of bookings: %w", err)
	}
	provider, err := startProvider(ctx)
	if err != nil {
		return exitFailed, err
	}
	defer func() { err = errors.Join(err, provider.close()) }()

	config := db.Pool.Config()
	order := task{
		URL: config.ConnString(), Database: config.ConnConfig.Database, Provider: provider.url, Cents: 500, Naive: naive,
	}
	all, wrong := trials(), 0
	for _, t := range all {
		provider.plan(t.Order, t.Fault)
		said, err := t.run(ctx, order, stderr)
		if err == nil {
			err = t.audit(ctx, db.Pool, provider, said)
		}
		if err != nil {
			return exitFailed, err
		}
		if t.Wrong {
			wrong++
		}
	}
	if err := printTrials(stdout, all, asJSON); err != nil {
		return exitFailed, err
	}
	if (wrong > 0) != naive {
		return exitFailed, fmt.Errorf("%d of %d orders went wrong", wrong, len(all))
	}
	return exitOK, nil
}

// run sends the order until a process says what became of it.
func (t *trial) run(ctx context.Context, order task, stderr io.Writer) (*answer, error) {
	ctx, cancel := context.WithTimeout(ctx, orderLimit)
	defer cancel()
	order.Order = t.Order
	for t.Processes < mostProcesses {
		order.KillAt = ""
		if t.Processes == 0 {
			order.KillAt = t.Kill
		}
		t.Processes++
		said, killed, err := order.do(ctx, stderr)
		switch {
		case err != nil:
			return nil, err
		case killed:
			t.Killed = true
		case said.Err == "" || said.Declined:
			return &said, nil
		}
	}
	return &answer{Err: fmt.Sprintf("no answer in %d processes", t.Processes)}, nil
}

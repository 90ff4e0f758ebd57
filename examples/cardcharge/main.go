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

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/examples/internal/demodb"
	"github.com/samecommit/samecommit/examples/internal/provider"
	"github.com/samecommit/samecommit/examples/internal/trial"
)

const name = "cardcharge"

func main() {
	program := &trial.Program{
		Flags: flag.NewFlagSet(name, flag.ContinueOnError),
		Naive: "charge and book the usual way, to see it go wrong",
		Books: []string{charges, bookings},
		Run:   run, Work: work,
	}
	os.Exit(program.Main())
}

func run(ctx context.Context, naive bool, stderr io.Writer) (all []*trial.Trial, err error) {
	db, err := demodb.Open(ctx, func(*pgxpool.Config) {}, func(format string, args ...any) {
		_, _ = fmt.Fprintf(stderr, name+": "+format+"\n", args...)
	})
	if err != nil {
		return nil, err
	}
	// After ctrl-C too, so it needs a context that is still alive.
	defer func() { err = errors.Join(err, db.Close(context.WithoutCancel(ctx))) }()
	if _, err := db.Pool.Exec(ctx, `CREATE TABLE bookings (order_id text NOT NULL, charge_id text NOT NULL)`); err != nil {
		return nil, fmt.Errorf("create the table of bookings: %w", err)
	}
	bank, err := provider.Start(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, bank.Close()) }()

	config := db.Pool.Config()
	all = trial.All(started, claimed, charged, recorded, booked, committed)
	for _, t := range all {
		bank.Plan.Set(t.Order, t.Fault)
		said, err := trial.Send[task, Booking](ctx, t, task{
			URL: config.ConnString(), Database: config.ConnConfig.Database, Provider: bank.URL, Naive: naive,
			Request: provider.Request{Order: t.Order, Account: "card-4242", Cents: 500},
		}, stderr)
		if err == nil {
			err = audit(ctx, db.Pool, bank, t, said)
		}
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

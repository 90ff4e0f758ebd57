// Command durableclient shows a client of an HTTP API whose keys outlive it: the key of a
// payment is in the client's own row before the payment is sent, so that the next process
// sends it under the same key. It is killed before the send, before the answer and before
// the answer is noted, and the server fails in its ways. Then it is started again. At the
// end there is one charge for each payment at the server, which is httpidem on PostgreSQL.
//
//	go run ./examples/durableclient          # keys in rows: one charge
//	go run ./examples/durableclient -naive   # keys in memory, to see it go wrong
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

const name = "durableclient"

func main() {
	program := &trial.Program{
		Flags: flag.NewFlagSet(name, flag.ContinueOnError),
		Naive: "make keys in memory, to see it go wrong",
		Books: []string{charges, receipts},
		Run:   run, Work: work,
	}
	os.Exit(program.Main())
}

func run(ctx context.Context, naive bool, stderr io.Writer) (all []*trial.Trial, err error) {
	// One database, to spare a second one. No statement is about tables of both sides.
	db, err := demodb.Open(ctx, func(*pgxpool.Config) {}, func(format string, args ...any) {
		_, _ = fmt.Fprintf(stderr, name+": "+format+"\n", args...)
	})
	if err != nil {
		return nil, err
	}
	// After ctrl-C too, so it needs a context that is still alive.
	defer func() { err = errors.Join(err, db.Close(context.WithoutCancel(ctx))) }()
	for _, table := range []string{outboxTable, chargesTable} {
		if _, err := db.Pool.Exec(ctx, table); err != nil {
			return nil, fmt.Errorf("create the tables: %w", err)
		}
	}
	shop, err := startServer(ctx, db.Pool)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, shop.Close()) }()

	config := db.Pool.Config()
	all = trial.All(started, stored, charged, answered, noted)
	for _, t := range all {
		shop.plan.Set(t.Order, t.Fault)
		said, err := trial.Send[task, provider.Receipt](ctx, t, task{
			URL: config.ConnString(), Database: config.ConnConfig.Database, Server: shop.URL, Naive: naive,
			Request: provider.Request{Order: t.Order, Account: "card-4242", Cents: 500},
		}, stderr)
		if err == nil {
			err = audit(ctx, db.Pool, t, said)
		}
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

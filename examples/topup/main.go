// Command topup shows work that leaves the service where nothing is in PostgreSQL: it
// tops up a prepaid phone at a provider, a server on a socket of its own with keys of its
// own, and keeps the key and the answer in Redis or in MongoDB. The process that does so
// is killed at every step, and the provider fails in its ways. Then the order is sent
// again, as a client does. At the end there is one top-up for each order, and whoever
// asks once more is told the same.
//
//	go run ./examples/topup                   # DoLeased, on Redis: one top-up
//	go run ./examples/topup -store mongodb    # the same on MongoDB
//	go run ./examples/topup -naive            # the usual way, to see it go wrong
//
// It uses the server that SAMECOMMIT_REDIS_URL or SAMECOMMIT_MONGODB_URL names, or starts
// a throw-away one, and works under names of its own, which it deletes at the end.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/samecommit/samecommit/examples/internal/provider"
	"github.com/samecommit/samecommit/examples/internal/trial"
)

const name = "topup"

// serverLimit is how long the server may take to answer at the start and at the end.
const serverLimit = 20 * time.Second

func main() {
	kind := "redis"
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.Func("store", "where keys and answers are, a `kind` of server: redis or mongodb (default redis)", func(value string) error {
		if _, ok := kinds[value]; !ok {
			return errors.New("use redis or mongodb")
		}
		kind = value
		return nil
	})
	program := &trial.Program{
		Flags: flags,
		Naive: "top up and keep the answer the usual way, to see it go wrong",
		Books: []string{topUps},
		Run: func(ctx context.Context, naive bool, stderr io.Writer) ([]*trial.Trial, error) {
			return run(ctx, kind, naive, stderr)
		},
		Work: work,
	}
	os.Exit(program.Main())
}

func run(ctx context.Context, kind string, naive bool, stderr io.Writer) (all []*trial.Trial, err error) {
	server, err := kinds[kind].start(ctx)
	if err != nil {
		return nil, err
	}
	// After ctrl-C too, so it needs a context that is still alive.
	defer func() { err = errors.Join(err, server.Stop(context.WithoutCancel(ctx))) }()
	_, _ = fmt.Fprintf(stderr, "%s: %s is %s\n", name, kind, server.From)
	space := "samecommit_demo_" + strings.ToLower(rand.Text()[:10])
	place, err := kinds[kind].open(ctx, server.URL, space)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, place.close(context.WithoutCancel(ctx))) }()
	if err := limited(ctx, place.ping); err != nil {
		return nil, fmt.Errorf("%s does not answer; is this its place: %s? %w", kind, server.From, err)
	}
	defer func() {
		if cleared := limited(context.WithoutCancel(ctx), place.clear); cleared != nil {
			err = errors.Join(err, fmt.Errorf("delete what is kept under the name %s; delete it yourself: %w", space, cleared))
		}
	}()
	operator, err := provider.Start(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, operator.Close()) }()

	all = trial.All(started, claimed, toppedUp, recorded, completed)
	for _, t := range all {
		operator.Plan.Set(t.Order, t.Fault)
		if err := audit(ctx, operator, t, task{
			Kind: kind, URL: server.URL, Space: space, Provider: operator.URL, Naive: naive,
			Request: provider.Request{Order: t.Order, Account: "+1 555 0100", Cents: 500},
		}, stderr); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// limited lets a server that does not answer fail.
func limited(ctx context.Context, ask func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, serverLimit)
	defer cancel()
	return ask(ctx)
}

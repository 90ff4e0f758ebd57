package main

import (
	"context"
	"io"

	"github.com/samecommit/samecommit/examples/internal/child"
	"github.com/samecommit/samecommit/examples/internal/demodb"
	"github.com/samecommit/samecommit/examples/internal/provider"
	"github.com/samecommit/samecommit/examples/internal/trial"
)

// Where a process that takes an order may be killed.
const (
	started   child.Point = "before the claim"
	claimed   child.Point = "before the charge"
	charged   child.Point = "after the charge, before the step is recorded"
	recorded  child.Point = "after the step is recorded"
	booked    child.Point = "after the booking, before the commit"
	committed child.Point = "after the commit, before anybody is told"
)

// task is one order for a process of its own.
type task struct {
	URL, Database, Provider string
	Request                 provider.Request
	Naive                   bool
}

// work is the process.
func work(ctx context.Context, stdout io.Writer) error { return child.Work(ctx, stdout, take) }

// take takes one order.
func take(ctx context.Context, t task, at func(child.Point)) (said trial.Answer[Booking], err error) {
	pool, err := demodb.Connect(ctx, t.URL, t.Database)
	if err != nil {
		return said, err
	}
	defer pool.Close()
	shop, err := newShop(pool, t.Provider, at)
	if err != nil {
		return said, err
	}
	at(started)
	if t.Naive {
		said = trial.NewAnswer(shop.naiveOrder(ctx, pool, t.Request))
	} else {
		said = trial.NewAnswer(shop.order(ctx, t.Request))
	}
	at(committed)
	return said, nil
}

package main

import (
	"context"
	"errors"
	"io"

	"github.com/samecommit/samecommit/examples/internal/child"
	"github.com/samecommit/samecommit/examples/internal/provider"
	"github.com/samecommit/samecommit/examples/internal/trial"
)

// Where a process that takes an order may be killed.
const (
	started   child.Point = "before the claim"
	claimed   child.Point = "before the top-up"
	toppedUp  child.Point = "after the top-up, before the step is recorded"
	recorded  child.Point = "after the step is recorded"
	completed child.Point = "after the completion, before anybody is told"
)

// task is one order for a process of its own.
type task struct {
	// Kind is that of the server at URL, and Space the name of what this run has there.
	Kind, URL, Space string
	Provider         string
	Request          provider.Request
	Naive            bool
}

// work is the process.
func work(ctx context.Context, stdout io.Writer) error { return child.Work(ctx, stdout, take) }

// take takes one order.
func take(ctx context.Context, t task, at func(child.Point)) (said trial.Answer[provider.Receipt], err error) {
	place, err := kinds[t.Kind].open(ctx, t.URL, t.Space)
	if err != nil {
		return said, err
	}
	defer func() { err = errors.Join(err, place.close(ctx)) }()
	shop, err := newShop(place.keys(), t.Provider, at)
	if err != nil {
		return said, err
	}
	at(started)
	if t.Naive {
		said = trial.NewAnswer(shop.naiveOrder(ctx, place, t.Request))
	} else {
		said = trial.NewAnswer(shop.order(ctx, t.Request))
	}
	at(completed)
	return said, nil
}

package main

import (
	"context"
	"io"

	"github.com/samecommit/samecommit/examples/internal/child"
	"github.com/samecommit/samecommit/examples/internal/demodb"
	"github.com/samecommit/samecommit/examples/internal/provider"
	"github.com/samecommit/samecommit/examples/internal/trial"
)

// Where the client may be killed.
const (
	started  child.Point = "before the payment is stored"
	stored   child.Point = "before the send"
	charged  child.Point = "after the charge, before the answer is read"
	answered child.Point = "after the answer, before it is noted"
	noted    child.Point = "after the answer is noted"
)

// task is one payment for a client in a process of its own.
type task struct {
	URL, Database, Server string
	Request               provider.Request
	Naive                 bool
}

// work is the process.
func work(ctx context.Context, stdout io.Writer) error { return child.Work(ctx, stdout, pay) }

// pay is one life of the client: it stores the payment, if it is new, and sends what is
// not done.
func pay(ctx context.Context, t task, at func(child.Point)) (said trial.Answer[provider.Receipt], err error) {
	pool, err := demodb.Connect(ctx, t.URL, t.Database)
	if err != nil {
		return said, err
	}
	defer pool.Close()
	c := newClient(pool, t.Server, t.Naive, at)
	at(started)
	if err := c.store(ctx, t.Request); err != nil {
		return said, err
	}
	at(stored)
	if err := c.sendAll(ctx); err != nil {
		return trial.NewAnswer(provider.Receipt{}, err), nil
	}
	at(noted)
	return trial.NewAnswer(c.answer(ctx, t.Request.Order)), nil
}

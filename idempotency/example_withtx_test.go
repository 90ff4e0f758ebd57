package idempotency_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

// The verbs one by one, in the caller's transaction.
func ExampleClient_WithTx() {
	ctx := context.Background()
	store := memstore.New[*memstore.Tx](nil)
	client, err := idempotency.NewClient(store, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	key := idempotency.Key{Scope: "tenant-7/export", ID: "0d9f3c1e"}

	tx := store.NewTx()
	// After the commit there is nothing left to roll back.
	defer func() { _ = tx.Rollback(ctx) }()
	verbs := client.WithTx(tx)
	outcome, err := verbs.Begin(ctx, idempotency.Params{Key: key, Fingerprint: idempotency.NoFingerprint})
	if err != nil {
		fmt.Println(err)
		return
	}
	switch outcome.State {
	case idempotency.New:
		// The work goes here, through tx.
		response := &idempotency.Response{Type: idempotency.TypeBytes, Body: []byte("42 rows")}
		if _, err := verbs.Complete(ctx, outcome.Claim, response); err != nil {
			fmt.Println(err)
			return
		}
	case idempotency.InProgress:
		fmt.Println("try again in", outcome.RetryAfter)
		return
	case idempotency.Completed:
		fmt.Printf("replay: %s\n", outcome.Record.Response.Body)
		return
	}

	// Nobody else sees the record before the commit.
	_, err = client.Get(ctx, key)
	fmt.Println("not found:", errors.Is(err, idempotency.ErrNotFound))
	if err := tx.Commit(ctx); err != nil {
		fmt.Println(err)
		return
	}
	record, err := client.Get(ctx, key)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%v: %s\n", record.State, record.Response.Body)
	// Output:
	// not found: true
	// completed: 42 rows
}

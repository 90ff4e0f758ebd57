package idempotency_test

import (
	"context"
	"fmt"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

// A consumer handles what a queue has delivered in one transaction. The queue
// has delivered one message twice.
func ExampleTxClient_BeginMany() {
	ctx := context.Background()
	store := memstore.New[*memstore.Tx](nil)
	client, err := idempotency.NewClient(store, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	messages := []struct{ id, body string }{
		{"m-2", "ship order 8"},
		{"m-1", "ship order 7"},
		{"m-2", "ship order 8"},
	}
	params := make([]idempotency.Params, len(messages))
	for i, message := range messages {
		params[i] = idempotency.Params{
			Key:         idempotency.Key{Scope: "orders", ID: message.id},
			Fingerprint: idempotency.FingerprintOf(message.body),
		}
	}

	tx := store.NewTx()
	// After the commit there is nothing left to roll back.
	defer func() { _ = tx.Rollback(ctx) }()
	batch, err := client.WithTx(tx).BeginMany(ctx, params)
	if err != nil {
		fmt.Println(err)
		return
	}
	for i, item := range batch.Items {
		switch {
		case item.Err != nil:
			fmt.Println("refuse", messages[i].id, item.Err)
		case item.State == idempotency.New:
			// The work goes here, through tx.
			fmt.Println("work:", messages[i].body)
			item.Response = &idempotency.Response{Type: idempotency.TypeNone}
		case item.State == idempotency.InProgress:
			fmt.Println("leave in the queue:", messages[i].id)
		case item.State == idempotency.Completed:
			fmt.Println("done before:", messages[i].id)
		}
	}
	if err := batch.Complete(ctx); err != nil {
		fmt.Println(err)
		return
	}
	if err := tx.Commit(ctx); err != nil {
		fmt.Println(err)
		return
	}
	// Output:
	// work: ship order 8
	// work: ship order 7
	// done before: m-2
}

package idempotency_test

import (
	"context"
	"fmt"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

// The caller owns the transaction: an error means roll back, none means commit
// and then take the answer.
func ExampleDoTx() {
	ctx := context.Background()
	store := memstore.New[*memstore.Tx](nil)
	client, err := idempotency.NewClient(store, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	params := idempotency.Params{
		Key:         idempotency.Key{Scope: "orders/consumer", ID: "message-42"},
		Fingerprint: idempotency.NoFingerprint,
	}

	handle := func() (idempotency.Result[string], error) {
		tx := store.NewTx()
		// After the commit there is nothing left to roll back.
		defer func() { _ = tx.Rollback(ctx) }()
		answer, err := idempotency.DoTx(ctx, client, tx, params,
			func(_ context.Context, tx *memstore.Tx) (string, error) {
				tx.OnCommit(func() { fmt.Println("order stored") })
				return "order-1", nil
			})
		if err != nil {
			return idempotency.Result[string]{}, err
		}
		if err := tx.Commit(ctx); err != nil {
			return idempotency.Result[string]{}, err
		}
		return answer.Answer()
	}
	for range 2 {
		result, err := handle()
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(result.Value, "replayed:", result.Replayed)
	}
	// Output:
	// order stored
	// order-1 replayed: false
	// order-1 replayed: true
}

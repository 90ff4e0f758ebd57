package idempotency_test

import (
	"context"
	"fmt"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

// A transaction that began a key and did not complete it cannot commit. Its
// work is undone and the key is free.
func ExampleTxClient_Begin_forgottenCompletion() {
	ctx := context.Background()
	store := memstore.New[*memstore.Tx](nil)
	client, err := idempotency.NewClient(store, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	params := idempotency.Params{
		Key:         idempotency.Key{Scope: "tenant-7/charge", ID: "0d9f3c1e"},
		Fingerprint: idempotency.NoFingerprint,
	}
	balance := 500

	for _, forget := range []bool{true, false} {
		tx := store.NewTx()
		verbs := client.WithTx(tx)
		outcome, err := verbs.Begin(ctx, params)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println("begun:", outcome.State)
		tx.OnCommit(func() { balance -= 100 }) // stands for tx.Exec(ctx, "UPDATE …")
		if !forget {
			response := &idempotency.Response{Type: idempotency.TypeBytes, Body: []byte("charged")}
			if _, err := verbs.Complete(ctx, outcome.Claim, response); err != nil {
				fmt.Println(err)
				return
			}
		}
		err = tx.Commit(ctx)
		fmt.Printf("committed: %t, balance: %d\n", err == nil, balance)
	}
	// Output:
	// begun: new
	// committed: false, balance: 500
	// begun: new
	// committed: true, balance: 400
}

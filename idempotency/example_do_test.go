package idempotency_test

import (
	"context"
	"fmt"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

// The operation runs once; a retry with the same key gets the recorded result.
func ExampleDo() {
	ctx := context.Background()
	// In production a store of pgxstore.New, and pgx.Tx for *memstore.Tx.
	client, err := idempotency.NewClient(memstore.New[*memstore.Tx](nil), nil)
	if err != nil {
		fmt.Println(err)
		return
	}

	type Charge struct{ Amount, Balance int }
	balance := 500
	charge := func(_ context.Context, tx *memstore.Tx) (Charge, error) {
		tx.OnCommit(func() { balance -= 100 }) // stands for tx.Exec(ctx, "UPDATE …")
		return Charge{Amount: 100, Balance: balance - 100}, nil
	}

	params := idempotency.Params{
		Key:         idempotency.Key{Scope: "tenant-7/charge", ID: "0d9f3c1e"},
		Fingerprint: idempotency.FingerprintOf("POST /charges", `{"amount":100}`),
	}
	for range 2 {
		result, err := idempotency.Do(ctx, client, params, charge)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Printf("%+v replayed: %t\n", result.Value, result.Replayed)
	}
	fmt.Println("balance:", balance)
	// Output:
	// {Amount:100 Balance:400} replayed: false
	// {Amount:100 Balance:400} replayed: true
	// balance: 400
}

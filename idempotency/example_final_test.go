package idempotency_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

type InsufficientFundsError struct{ Balance, Wanted int }

func (e *InsufficientFundsError) Error() string {
	return fmt.Sprintf("balance is %d, wanted %d", e.Balance, e.Wanted)
}

// A definitive error is recorded in place of a result, and its type comes back
// with its fields. What the operation wrote before is rolled back.
func ExampleFinal() {
	ctx := context.Background()
	client, err := idempotency.NewClient(memstore.New[*memstore.Tx](nil), &idempotency.Config{
		FinalErrors: []idempotency.FinalKind{
			idempotency.FinalType[*InsufficientFundsError]("insufficient_funds"),
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	params := idempotency.Params{
		Key:         idempotency.Key{Scope: "tenant-7/charge", ID: "0d9f3c1e"},
		Fingerprint: idempotency.FingerprintOf("POST /charges", `{"amount":100}`),
	}

	balance := 50
	for range 2 {
		_, err = idempotency.Do(ctx, client, params, idempotency.NoResult(func(_ context.Context, tx *memstore.Tx) error {
			tx.OnCommit(func() { fmt.Println("never: rolled back") })
			if balance < 100 {
				return idempotency.Final(&InsufficientFundsError{Balance: balance, Wanted: 100})
			}
			return nil
		}))
		var insufficient *InsufficientFundsError
		if errors.As(err, &insufficient) {
			fmt.Println("declined with a balance of", insufficient.Balance)
		}
		balance = 1000 // A retry still gets the answer that the first call got.
	}

	var final *idempotency.FinalError
	if errors.As(err, &final) {
		fmt.Println("code:", final.Code)
	}
	// Output:
	// declined with a balance of 50
	// declined with a balance of 50
	// code: insufficient_funds
}

package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

// A card is charged at a provider, and the booking fails. The next call books the
// charge that was made.
func ExampleDoExternal() {
	client, err := idempotency.NewClient(memstore.New[*memstore.Tx](nil), nil)
	if err != nil {
		log.Fatal(err)
	}
	params := idempotency.Params{
		Key:         idempotency.Key{Scope: "tenant-7/charge", ID: "order-1001"},
		Fingerprint: idempotency.FingerprintOf("POST /charges", `{"cents":500}`),
	}
	charge := func(ctx context.Context, lease *idempotency.Lease) (receipt string, err error) {
		return idempotency.Step(ctx, lease, "charge", idempotency.FingerprintOf("500"), func(context.Context, idempotency.StepCall) (string, error) {
			fmt.Println("charged")
			return "receipt-1", nil
		})
	}
	for _, trouble := range []error{errors.New("the ledger is locked"), nil} {
		result, err := idempotency.DoExternal(context.Background(), client, params, charge,
			func(_ context.Context, tx *memstore.Tx, receipt string) (string, error) {
				tx.OnCommit(func() { fmt.Println("booked", receipt) })
				return "booking-1", trouble
			})
		fmt.Printf("%q %v\n", result.Value, err)
	}
	// Output:
	// charged
	// "" the ledger is locked
	// booked receipt-1
	// "booking-1" <nil>
}

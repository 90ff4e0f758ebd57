package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

// A card is charged at a provider, and the call fails after that. The next one goes
// on with the receipt that was recorded.
func ExampleDoLeased() {
	client, err := idempotency.NewLeaseClient(memstore.New[*memstore.Tx](nil), nil)
	if err != nil {
		log.Fatal(err)
	}
	params := idempotency.Params{
		Key:         idempotency.Key{Scope: "tenant-7/charge", ID: "order-1001"},
		Fingerprint: idempotency.FingerprintOf("POST /charges", `{"cents":500}`),
	}
	for _, mail := range []error{errors.New("the mail server is down"), nil} {
		result, err := idempotency.DoLeased(context.Background(), client, params, func(ctx context.Context, lease *idempotency.Lease) (string, error) {
			receipt, err := idempotency.Step(ctx, lease, "charge", idempotency.FingerprintOf("500"), func(_ context.Context, call idempotency.StepCall) (string, error) {
				// call.Key is the idempotency key to send to the provider.
				fmt.Println("charged; may have been before:", call.MayHaveRun)
				return "receipt-1", nil
			})
			if err != nil {
				return "", err
			}
			return receipt, mail
		})
		fmt.Println(result.Value, err)
	}
	// Output:
	// charged; may have been before: false
	//  the mail server is down
	// receipt-1 <nil>
}

package idempotency_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

// A key that comes back with another request is refused. The error says nothing
// of the recorded answer.
func ExampleFingerprintOf() {
	ctx := context.Background()
	client, err := idempotency.NewClient(memstore.New[*memstore.Tx](nil), nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, body := range []string{`{"amount":100}`, `{"amount":999}`} {
		result, err := idempotency.Do(ctx, client, idempotency.Params{
			Key:         idempotency.Key{Scope: "tenant-7/charge", ID: "0d9f3c1e"},
			Fingerprint: idempotency.FingerprintOf("POST /charges", body),
		}, func(context.Context, *memstore.Tx) (string, error) { return "charged " + body, nil })
		switch {
		case errors.Is(err, idempotency.ErrFingerprintMismatch):
			fmt.Println("422: choose a new key for another request")
		case err != nil:
			fmt.Println(err)
		default:
			fmt.Println(result.Value)
		}
	}
	// Output:
	// charged {"amount":100}
	// 422: choose a new key for another request
}

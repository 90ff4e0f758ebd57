package idempotency_test

import (
	"context"
	"fmt"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

// Order numbers can be guessed, and so found from a hash in a log. Under a secret
// neither the table nor a log has anything that they could be found from.
func ExampleConfig_keySecret() {
	ctx := context.Background()
	store := memstore.New[*memstore.Tx](nil)
	client, err := idempotency.NewClient(store, &idempotency.Config{
		KeySecret: []byte("32 bytes of a secret manager ..."),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	key := idempotency.Key{Scope: "tenant-7/charge", ID: "order-48151"}
	result, err := idempotency.Do(ctx, client, idempotency.Params{Key: key, Fingerprint: idempotency.FingerprintOf("POST /charges", "500")},
		func(context.Context, *memstore.Tx) (string, error) { return "charged", nil })
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(result.Record.Key.ID)

	record, err := client.Get(ctx, key) // the caller's own key
	fmt.Println(record.State, err)
	// Output:
	// 1e35aa5fb0b36ae002feffb7f22c0144c44d3766d142f81a6235bd134ac18863
	// completed <nil>
}

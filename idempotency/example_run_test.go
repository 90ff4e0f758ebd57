package idempotency_test

import (
	"context"
	"fmt"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

// An answer that is bytes already is recorded as it is. A refusal is an answer
// whose writes are undone.
func ExampleClient_Run() {
	client, err := idempotency.NewClient(memstore.New[*memstore.Tx](nil), nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	params := idempotency.Params{
		Key:         idempotency.Key{Scope: "tenant-7/charge", ID: "0d9f3c1e"},
		Fingerprint: idempotency.FingerprintOf("POST /charges", `{"cents":500}`),
	}
	for range 2 {
		outcome, err := client.Run(context.Background(), params, func(_ context.Context, tx *memstore.Tx) (idempotency.Answer, error) {
			tx.OnCommit(func() { fmt.Println("charged") }) // undone
			return idempotency.Answer{
				Response:   &idempotency.Response{Type: "http", Body: []byte("402 Payment Required")},
				UndoWrites: true,
			}, nil
		})
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Printf("%s, executed %t\n", outcome.Record.Response.Body, outcome.Executed)
	}
	// Output:
	// 402 Payment Required, executed true
	// 402 Payment Required, executed false
}

// A request without a key gets the same transaction, and no second chance.
func ExampleClient_Transact() {
	client, err := idempotency.NewClient(memstore.New[*memstore.Tx](nil), nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	err = client.Transact(context.Background(), func(_ context.Context, tx *memstore.Tx) error {
		tx.OnCommit(func() { fmt.Println("charged") })
		return nil
	})
	fmt.Println(err)
	// Output:
	// charged
	// <nil>
}

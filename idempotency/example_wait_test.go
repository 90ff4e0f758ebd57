package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

// Duplicates that arrive while the first call runs get its answer, if it comes
// within their wait.
func ExampleParams_wait() {
	ctx := context.Background()
	client, err := idempotency.NewClient(memstore.New[*memstore.Tx](nil), nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	params := idempotency.Params{
		Key:         idempotency.Key{Scope: "tenant-7/charge", ID: "0d9f3c1e"},
		Fingerprint: idempotency.FingerprintOf("POST /charges", `{"amount":100}`),
		Wait:        time.Minute,
	}
	running, finish := make(chan struct{}), make(chan struct{})
	charge := func(context.Context, *memstore.Tx) (string, error) {
		close(running) // a second run would panic
		<-finish
		return "charged", nil
	}

	var calls sync.WaitGroup
	replayed := make(chan bool, 4)
	for range 4 {
		calls.Go(func() {
			result, err := idempotency.Do(ctx, client, params, charge)
			if err != nil {
				fmt.Println(err)
			}
			replayed <- result.Replayed
		})
	}

	<-running
	hasty := params
	hasty.Wait = idempotency.NoWait
	_, err = idempotency.Do(ctx, client, hasty, charge)
	if inProgress, ok := errors.AsType[*idempotency.InProgressError](err); ok {
		fmt.Println("in progress; try again in", inProgress.RetryAfter)
	}

	close(finish)
	calls.Wait()
	count := map[bool]int{}
	for range 4 {
		count[<-replayed]++
	}
	fmt.Println(count[false], "ran,", count[true], "replayed")
	// Output:
	// in progress; try again in 1s
	// 1 ran, 3 replayed
}

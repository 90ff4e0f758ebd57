package pgxstore_test

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
)

// When a holder's network fails without a word, the server ends its transaction
// after IdleTimeout and the key is free. It must be longer than the operation
// ever pauses between two statements, for a call to a slow service, say.
func ExampleConfig_idleTimeout() {
	pool, err := pgxpool.New(context.Background(), "postgres:///shop")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer pool.Close()
	store, err := pgxstore.New(pool, &pgxstore.Config{
		IdleTimeout: 10 * time.Second, // Defaults to 1 minute.
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	client, err := idempotency.NewClient(store, nil)
	fmt.Println(client != nil, err)
}

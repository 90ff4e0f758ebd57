package pgxstore_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
)

// A tenant for the policies of row-level security, from the request's context.
func ExampleConfig_settings() {
	type tenantKey struct{} // set by the code that authenticates

	pool, err := pgxpool.New(context.Background(), "postgres:///shop")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer pool.Close()
	store, err := pgxstore.New(pool, &pgxstore.Config{
		Settings: func(ctx context.Context) (map[string]string, error) {
			tenant, ok := ctx.Value(tenantKey{}).(string)
			if !ok {
				return nil, errors.New("no tenant in the context")
			}
			return map[string]string{"app.tenant": tenant}, nil
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	client, err := idempotency.NewClient(store, nil)
	fmt.Println(client != nil, err)
}

package tests_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
	"github.com/samecommit/samecommit/tests/storemodel"
)

func TestStoreModel(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	checks := 0
	rapid.Check(t, func(t *rapid.T) {
		if _, err := b.Pool.Exec(t.Context(), `DELETE FROM idempotency_keys`); err != nil {
			t.Fatal(err)
		}
		checks++
		scope := fmt.Sprint("model ", checks)
		storemodel.Check(t, storemodel.Harness[pgx.Tx]{
			Harness: b.Harness(pgx.TxOptions{}),
			Scope:   scope,
			// The database's clock cannot be moved, but what is compared with it can.
			Pass: func(ctx context.Context, duration time.Duration) error {
				_, err := b.Pool.Exec(ctx, `UPDATE idempotency_keys SET created_at = created_at - $1::interval, updated_at = updated_at - $1::interval,
					locked_until = locked_until - $1::interval, expires_at = expires_at - $1::interval`, duration)
				return err
			},
		})
	})
}

package tests_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
	"github.com/samecommit/samecommit/idempotency/storetest"
	"github.com/samecommit/samecommit/internal/pgtest"
)

func TestStoreContract(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) idempotency.Store {
		t.Helper()
		return newStore(t, pgtest.DB(t), nil)
	})
}

func TestTransactionContract(t *testing.T) {
	t.Parallel()
	for _, level := range []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable} {
		t.Run(string(level), func(t *testing.T) {
			t.Parallel()
			storetest.RunTx(t, func(t *testing.T) storetest.Harness[pgx.Tx] {
				t.Helper()
				options := pgx.TxOptions{IsoLevel: level}
				b := newBench(t, pgtest.DB(t), &pgxstore.Config{TxOptions: options}, nil)
				return storetest.Harness[pgx.Tx]{
					Store: b.store,
					Begin: func(ctx context.Context) (pgx.Tx, func(context.Context) error, func(context.Context) error, error) {
						callers := options
						if level == pgx.Serializable {
							// There the loser of a race may not stay usable, which is
							// right: TestWriteSkewBetweenKeys.
							callers.IsoLevel = pgx.RepeatableRead
						}
						tx, err := b.pool.BeginTx(ctx, callers)
						if err != nil {
							return nil, nil, nil, err
						}
						return tx, tx.Commit, tx.Rollback, nil
					},
					Effect: effect,
					Effects: func(ctx context.Context, name string) (count int, err error) {
						err = b.pool.QueryRow(ctx, `SELECT count(*) FROM effects WHERE name = $1`, name).Scan(&count)
						return count, err
					},
					Commit:   func(ctx context.Context, tx pgx.Tx) error { return tx.Commit(ctx) },
					Rollback: func(ctx context.Context, tx pgx.Tx) error { return tx.Rollback(ctx) },
				}
			})
		})
	}
}

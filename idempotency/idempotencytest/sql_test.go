package idempotencytest_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/idempotencytest"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

// The kit reaches a *sql.DB through the pool that it is opened from.
func TestKitOnDatabaseSQL(t *testing.T) {
	t.Parallel()
	for name, charge := range map[string]func(ctx context.Context, db *sql.DB, service *charges, key string) error{
		"Do": func(ctx context.Context, _ *sql.DB, service *charges, key string) error { // as in the example
			_, err := service.charge(ctx, key, 500)
			return err
		},
		"DoTx": func(ctx context.Context, db *sql.DB, service *charges, key string) error {
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			_, err = idempotency.DoTx(ctx, service.client, tx, bench.Params(key), func(ctx context.Context, tx *sql.Tx) (string, error) {
				_, err := tx.ExecContext(ctx, insertCharge, key, 500)
				return key, err
			})
			if err != nil {
				return errors.Join(err, tx.Rollback())
			}
			return tx.Commit()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.DB(t)
			if _, err := pool.Exec(t.Context(), `CREATE TABLE charges (id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY, request text NOT NULL, cents int NOT NULL)`); err != nil {
				t.Fatal(err)
			}
			idempotencytest.Run(t, pool, idempotencytest.Operation{
				New: func(t *testing.T, pool *pgxpool.Pool) idempotencytest.Call {
					t.Helper()
					db := stdlib.OpenDBFromPool(pool)
					t.Cleanup(func() { _ = db.Close() })
					service, err := newCharges(db)
					if err != nil {
						t.Fatal(err)
					}
					return func(ctx context.Context, key string) error { return charge(ctx, db, service, key) }
				},
				Effects: func(ctx context.Context, key string) (idempotencytest.Counts, error) {
					var count int
					err := pool.QueryRow(ctx, `SELECT count(*) FROM charges WHERE request = $1`, key).Scan(&count)
					return idempotencytest.Counts{"charges": count}, err
				},
			})
		})
	}
}

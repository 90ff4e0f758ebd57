package idempotencytest_test

import (
	"context"
	"database/sql"
	"os"
	"strconv"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/idempotencytest"
	"github.com/samecommit/samecommit/idempotency/sqlstore"
)

// charges is the program's service, which works on a *sql.DB.
type charges struct {
	client *idempotency.Client[*sql.Tx]
}

func newCharges(db *sql.DB) (*charges, error) {
	store, err := sqlstore.New(db, nil)
	if err != nil {
		return nil, err
	}
	client, err := idempotency.NewClient(store, nil)
	if err != nil {
		return nil, err
	}
	return &charges{client}, nil
}

const insertCharge = `INSERT INTO charges (request, cents) VALUES ($1, $2) RETURNING id`

// charge returns the id of the charge.
func (c *charges) charge(ctx context.Context, key string, cents int) (int64, error) {
	result, err := idempotency.Do(ctx, c.client, idempotency.Params{
		Key:         idempotency.Key{Scope: "charges", ID: key},
		Fingerprint: idempotency.FingerprintOf("charge", strconv.Itoa(cents)),
	}, func(ctx context.Context, tx *sql.Tx) (id int64, err error) {
		err = tx.QueryRowContext(ctx, insertCharge, key, cents).Scan(&id)
		return id, err
	})
	return result.Value, err
}

// A service that holds a *sql.DB gets one on the connections of the pool, which are
// those that are cut.
func ExampleRun_databaseSQL() {
	var t *testing.T // the argument of your TestCharge
	pool, err := pgxpool.New(t.Context(), os.Getenv("TEST_DATABASE_URL"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)

	idempotencytest.Run(t, pool, idempotencytest.Operation{
		New: func(t *testing.T, pool *pgxpool.Pool) idempotencytest.Call {
			t.Helper()
			db := stdlib.OpenDBFromPool(pool)
			t.Cleanup(func() { _ = db.Close() }) // the pool stays open
			service, err := newCharges(db)
			if err != nil {
				t.Fatal(err)
			}
			return func(ctx context.Context, key string) error {
				_, err := service.charge(ctx, key, 500)
				return err
			}
		},
		Effects: func(ctx context.Context, key string) (idempotencytest.Counts, error) {
			var count int
			err := pool.QueryRow(ctx, `SELECT count(*) FROM charges WHERE request = $1`, key).Scan(&count)
			return idempotencytest.Counts{"charges": count}, err
		},
	})
}

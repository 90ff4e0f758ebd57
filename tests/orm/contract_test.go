package orm_test

import (
	"context"
	"database/sql"
	"testing"

	"github.com/XSAM/otelsql"

	"github.com/samecommit/samecommit/idempotency/sqlstore"
	"github.com/samecommit/samecommit/idempotency/storetest"
)

// The promises are the same behind a tracing wrapper.
func TestTransactionContractBehindOtelsql(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(dsn string) (*sql.DB, error) { return otelsql.Open("pgx", dsn) })
	store, err := sqlstore.New(b.db, nil)
	if err != nil {
		t.Fatal(err)
	}
	storetest.RunTx(t, func(*testing.T) storetest.Harness[*sql.Tx] {
		return storetest.Harness[*sql.Tx]{
			Store: store,
			Begin: func(ctx context.Context) (*sql.Tx, func(context.Context) error, func(context.Context) error, error) {
				tx, err := b.db.BeginTx(ctx, nil)
				if err != nil {
					return nil, nil, nil, err
				}
				return tx, func(context.Context) error { return tx.Commit() }, func(context.Context) error { return tx.Rollback() }, nil
			},
			Effect: func(ctx context.Context, tx *sql.Tx, name string) error {
				_, err := tx.ExecContext(ctx, insertCharge, name)
				return err
			},
			Effects: func(ctx context.Context, name string) (count int, err error) {
				err = b.db.QueryRowContext(ctx, `SELECT count(*) FROM charges WHERE account = $1`, name).Scan(&count)
				return count, err
			},
			Commit:       func(_ context.Context, tx *sql.Tx) error { return tx.Commit() },
			Rollback:     func(_ context.Context, tx *sql.Tx) error { return tx.Rollback() },
			CallerMayEnd: true,
		}
	})
}

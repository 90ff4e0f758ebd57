package matrix_test

import (
	"context"
	"database/sql"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/samecommit/samecommit/idempotency/sqlstore"
	"github.com/samecommit/samecommit/idempotency/storetest"
)

// sqlHarness is one for a store on database/sql, on a new database of the cell.
func (c *cell) sqlHarness(t *testing.T) storetest.Harness[*sql.Tx] {
	t.Helper()
	b := c.bench(t, nil)
	db := stdlib.OpenDB(*b.Pool.Config().ConnConfig)
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	store, err := sqlstore.New(db, nil)
	if err != nil {
		t.Fatal(err)
	}
	return storetest.Harness[*sql.Tx]{
		Store: store,
		Begin: func(ctx context.Context) (*sql.Tx, func(context.Context) error, func(context.Context) error, error) {
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				return nil, nil, nil, err
			}
			return tx, func(context.Context) error { return tx.Commit() }, func(context.Context) error { return tx.Rollback() }, nil
		},
		Effect: func(ctx context.Context, tx *sql.Tx, name string) error {
			_, err := tx.ExecContext(ctx, `INSERT INTO effects (name) VALUES ($1)`, name)
			return err
		},
		Effects: func(ctx context.Context, name string) (count int, err error) {
			err = b.Pool.QueryRow(ctx, `SELECT count(*) FROM effects WHERE name = $1`, name).Scan(&count)
			return count, err
		},
		Commit:       func(_ context.Context, tx *sql.Tx) error { return tx.Commit() },
		Rollback:     func(_ context.Context, tx *sql.Tx) error { return tx.Rollback() },
		CallerMayEnd: true,
	}
}

// conformsOnSQL is what one exec mode, which both routes support, passes on database/sql on
// each of them: sqlstore's own tests go through all modes. The subtests share a database: the
// verbs alone are those of pgxstore, which has passed.
func conformsOnSQL(t *testing.T, c *cell) {
	t.Helper()
	if c.mode != pgx.QueryExecModeCacheDescribe {
		return
	}
	t.Run("sqlstore", func(t *testing.T) {
		t.Parallel()
		harness := c.sqlHarness(t)
		storetest.RunTx(t, func(*testing.T) storetest.Harness[*sql.Tx] { return harness })
	})
}

package matrix_test

import (
	"database/sql"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/samecommit/samecommit/idempotency/sqlstore"
	"github.com/samecommit/samecommit/idempotency/storetest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
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
	return bench.HarnessOnSQL(db, store, sql.LevelDefault)
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

package orm_test

import (
	"database/sql"
	"testing"

	"github.com/XSAM/otelsql"

	"github.com/samecommit/samecommit/idempotency/sqlstore"
	"github.com/samecommit/samecommit/idempotency/storetest"
	"github.com/samecommit/samecommit/internal/pgtest"
	pgbench "github.com/samecommit/samecommit/internal/pgtest/bench"
)

// The promises are the same behind a tracing wrapper.
func TestTransactionContractBehindOtelsql(t *testing.T) {
	t.Parallel()
	pool := pgtest.DB(t)
	pgbench.MakeEffects(t, pool)
	db, err := otelsql.Open("pgx", pool.Config().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	store, err := sqlstore.New(db, nil)
	if err != nil {
		t.Fatal(err)
	}
	storetest.RunTx(t, func(*testing.T) storetest.Harness[*sql.Tx] {
		return pgbench.HarnessOnSQL(db, store, sql.LevelDefault)
	})
}

package sqlstore_test

import (
	"database/sql"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/sqlstore"
	"github.com/samecommit/samecommit/idempotency/storetest"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

func (b *sqlBench) harness(callers sql.IsolationLevel) storetest.Harness[*sql.Tx] {
	return bench.HarnessOnSQL(b.db, b.store, callers)
}

func TestStoreContract(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) idempotency.Store {
		t.Helper()
		return newBench(t, nil).store
	})
}

func TestTransactionContract(t *testing.T) {
	t.Parallel()
	for _, level := range []sql.IsolationLevel{sql.LevelReadCommitted, sql.LevelSnapshot, sql.LevelSerializable} {
		if testing.Short() && level != sql.LevelReadCommitted {
			continue
		}
		t.Run(level.String(), func(t *testing.T) {
			t.Parallel()
			storetest.RunTx(t, func(t *testing.T) storetest.Harness[*sql.Tx] {
				t.Helper()
				callers := level
				if level == sql.LevelSerializable {
					callers = sql.LevelRepeatableRead // as in tests/conformance_test.go
				}
				return newBench(t, &sqlstore.Config{TxOptions: sql.TxOptions{Isolation: level}}).harness(callers)
			})
		})
	}
}

// However the *sql.DB was opened, the promises are the same; cache_statement is the
// default, as above. The subtests of each share
// a database.
func TestTransactionContractOfEverySource(t *testing.T) {
	t.Parallel()
	open := map[string]func(url string) (*sql.DB, error){
		"a connector": func(url string) (*sql.DB, error) {
			config, err := pgx.ParseConfig(url)
			if err != nil {
				return nil, err
			}
			return sql.OpenDB(stdlib.GetConnector(*config)), nil
		},
	}
	for _, mode := range []string{"cache_describe", "describe_exec", "exec", "simple_protocol"} {
		open[mode] = func(url string) (*sql.DB, error) { return sql.Open("pgx", url+"&default_query_exec_mode="+mode) }
	}
	for name, open := range open {
		if testing.Short() && name != "simple_protocol" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.DB(t)
			db, err := open(pool.Config().ConnString())
			if err != nil {
				t.Fatal(err)
			}
			b := newBenchOn(t, pool, closed(t, db), nil)
			storetest.RunTx(t, func(*testing.T) storetest.Harness[*sql.Tx] { return b.harness(sql.LevelDefault) })
		})
	}
	t.Run("a pool of pgx", func(t *testing.T) {
		t.Parallel()
		pool := pgtest.DB(t)
		b := newBenchOn(t, pool, closed(t, stdlib.OpenDBFromPool(pool)), nil)
		storetest.RunTx(t, func(*testing.T) storetest.Harness[*sql.Tx] { return b.harness(sql.LevelDefault) })
	})
}

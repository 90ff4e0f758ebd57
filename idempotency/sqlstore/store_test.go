package sqlstore_test

import (
	"context"
	"database/sql"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/sqlstore"
	"github.com/samecommit/samecommit/idempotency/storetest"
	"github.com/samecommit/samecommit/internal/pgtest"
)

// bench is a store, a client and a table for effects on a *sql.DB.
type bench struct {
	pool   *pgxpool.Pool
	db     *sql.DB
	store  *sqlstore.Store
	client *idempotency.Client[*sql.Tx]
}

// newBench is on a database of its own, opened by sql.Open.
func newBench(t *testing.T, config *sqlstore.Config) *bench {
	t.Helper()
	pool := pgtest.DB(t)
	db, err := sql.Open("pgx", pool.Config().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return newBenchOn(t, pool, db, config)
}

func newBenchOn(t *testing.T, pool *pgxpool.Pool, db *sql.DB, config *sqlstore.Config) *bench {
	t.Helper()
	if _, err := pool.Exec(t.Context(), `CREATE TABLE IF NOT EXISTS effects (name text NOT NULL)`); err != nil {
		t.Fatal(err)
	}
	store, err := sqlstore.New(db, config)
	if err != nil {
		t.Fatal(err)
	}
	client, err := idempotency.NewClient(store, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &bench{pool: pool, db: db, store: store, client: client}
}

func effect(ctx context.Context, tx *sql.Tx, name string) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO effects (name) VALUES ($1)`, name)
	return err
}

func (b *bench) effects(ctx context.Context, name string) (count int, err error) {
	err = b.pool.QueryRow(ctx, `SELECT count(*) FROM effects WHERE name = $1`, name).Scan(&count)
	return count, err
}

func (b *bench) harness(callers sql.IsolationLevel) storetest.Harness[*sql.Tx] {
	return storetest.Harness[*sql.Tx]{
		Store: b.store,
		Begin: func(ctx context.Context) (*sql.Tx, func(context.Context) error, func(context.Context) error, error) {
			tx, err := b.db.BeginTx(ctx, &sql.TxOptions{Isolation: callers})
			if err != nil {
				return nil, nil, nil, err
			}
			return tx, func(context.Context) error { return tx.Commit() }, func(context.Context) error { return tx.Rollback() }, nil
		},
		Effect:       effect,
		Effects:      b.effects,
		Commit:       func(_ context.Context, tx *sql.Tx) error { return tx.Commit() },
		Rollback:     func(_ context.Context, tx *sql.Tx) error { return tx.Rollback() },
		CallerMayEnd: true,
	}
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

var (
	_ = stdlib.OpenDBFromPool
	_ = fmt.Sprint
)

package sqlstore_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/sqlstore"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

// sqlBench is a store, a client and a table for effects on a *sql.DB.
type sqlBench struct {
	// pool looks at the database beside db.
	pool   *pgxpool.Pool
	db     *sql.DB
	store  *sqlstore.Store
	client *idempotency.Client[*sql.Tx]
}

// newBench is on a database of its own, opened by sql.Open.
func newBench(t testing.TB, config *sqlstore.Config) *sqlBench {
	t.Helper()
	pool := pgtest.DB(t)
	return newBenchOn(t, pool, openDB(t, pool.Config().ConnString()), config)
}

// newSingleBench is newBench with one connection only.
func newSingleBench(t testing.TB, config *sqlstore.Config) *sqlBench {
	t.Helper()
	b := newBench(t, config)
	b.db.SetMaxOpenConns(1)
	return b
}

func openDB(t testing.TB, url string) *sql.DB {
	t.Helper()
	db, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	return closed(t, db)
}

// closed closes db with the test.
func closed(t testing.TB, db *sql.DB) *sql.DB {
	t.Helper()
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func newBenchOn(t testing.TB, pool *pgxpool.Pool, db *sql.DB, config *sqlstore.Config) *sqlBench {
	t.Helper()
	bench.MakeEffects(t, pool)
	for _, text := range []string{
		`CREATE OR REPLACE FUNCTION fail_40001() RETURNS int LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''test'' USING ERRCODE = ''40001''; END'`,
	} {
		if _, err := pool.Exec(t.Context(), text); err != nil {
			t.Fatal(err)
		}
	}
	store, err := sqlstore.New(db, config)
	if err != nil {
		t.Fatal(err)
	}
	client, err := idempotency.NewClient(store, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &sqlBench{pool: pool, db: db, store: store, client: client}
}

// statement is something that a function does by SQL.
func statement(text string) func(context.Context, *sql.Tx) error {
	return func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, text)
		return err
	}
}

// do has one effect, then does what end says.
func (b *sqlBench) do(ctx context.Context, name string, end func(context.Context, *sql.Tx) error) error {
	_, err := idempotency.Do(ctx, b.client, bench.Params(name), func(ctx context.Context, tx *sql.Tx) (string, error) {
		if err := bench.EffectOnSQL(ctx, tx, name); err != nil {
			return "", err
		}
		return name, end(ctx, tx)
	})
	return err
}

// want checks how many effects there are, and whether the key has an answer.
func (b *sqlBench) want(t testing.TB, name string, effects int, answered bool) {
	t.Helper()
	if found := bench.CountEffects(t, b.pool, name); found != effects {
		t.Errorf("%d effects, want %d", found, effects)
	}
	record, err := b.client.Get(t.Context(), bench.Params(name).Key)
	if answered && (err != nil || record.State != idempotency.Completed) || !answered && !errors.Is(err, idempotency.ErrNotFound) {
		t.Errorf("Get: %+v, %v; want an answer: %t", record, err, answered)
	}
}

// wantUsable checks that nobody has a connection, and that one can be had.
func (b *sqlBench) wantUsable(t testing.TB) {
	t.Helper()
	// A connection that was being looked for comes back a moment after its borrower.
	bench.WaitFor(t, func() bool { return b.db.Stats().InUse == 0 })
	name := "usable after " + t.Name()
	if err := b.do(t.Context(), name, func(context.Context, *sql.Tx) error { return nil }); err != nil {
		t.Errorf("the next Do: %v", err)
	}
	b.want(t, name, 1, true)
}

// kill ends the server's side of the connection that tx is on.
func (b *sqlBench) kill(ctx context.Context, tx *sql.Tx) error {
	var pid int
	if err := tx.QueryRowContext(ctx, `SELECT pg_backend_pid()`).Scan(&pid); err != nil {
		return err
	}
	_, err := b.pool.Exec(ctx, `SELECT pg_terminate_backend($1, 10000)`, pid)
	return err
}

package sqlstore_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
	"github.com/samecommit/samecommit/txhelper"
)

// doTx is do in a transaction of the caller's own, which it commits where DoTx succeeds.
func (b *sqlBench) doTx(ctx context.Context, name string, end func(context.Context, *sql.Tx) error) error {
	tx, err := b.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if err := b.doIn(ctx, tx, name, end); err != nil {
		return err
	}
	return tx.Commit()
}

func (b *sqlBench) doIn(ctx context.Context, tx *sql.Tx, name string, end func(context.Context, *sql.Tx) error) error {
	result, err := idempotency.DoTx(ctx, b.client, tx, bench.Params(name), func(ctx context.Context, tx *sql.Tx) (string, error) {
		if err := bench.EffectOnSQL(ctx, tx, name); err != nil {
			return "", err
		}
		return name, end(ctx, tx)
	})
	if err == nil {
		_, err = result.Answer()
	}
	return err
}

// What cannot be refused is told, and nothing is committed, also by a caller that
// ignores the error.
func TestMisuseInsideDoTx(t *testing.T) {
	t.Parallel()
	b := newSingleBench(t, nil)
	ended := []error{idempotency.ErrTxEnded}
	for name, test := range map[string]misuse{ //nolint:paralleltest // One connection for all.
		"Commit": {end: func(_ context.Context, tx *sql.Tx) error {
			err := tx.Commit()
			bench.WantPgError(t, err, "23503", "idempotency_keys_completed_before_commit")
			return nil
		}, want: ended},
		"Rollback":             {end: func(_ context.Context, tx *sql.Tx) error { return tx.Rollback() }, want: ended},
		"Rollback ignored":     {end: func(_ context.Context, tx *sql.Tx) error { _ = tx.Rollback(); return nil }, want: ended},
		"SQL COMMIT":           {end: func(ctx context.Context, tx *sql.Tx) error { _ = statement("COMMIT")(ctx, tx); return nil }, want: ended},
		"SQL COMMIT; BEGIN":    {end: func(ctx context.Context, tx *sql.Tx) error { _ = statement("COMMIT; BEGIN")(ctx, tx); return nil }, want: ended},
		"SQL COMMIT AND CHAIN": {end: func(ctx context.Context, tx *sql.Tx) error { _ = statement("COMMIT AND CHAIN")(ctx, tx); return nil }, want: ended},
		"SQL ROLLBACK":         {end: statement("ROLLBACK"), want: ended},
		"SQL ROLLBACK; BEGIN":  {end: statement("ROLLBACK; BEGIN"), want: ended},
		"ignored SQL error":    {end: func(ctx context.Context, tx *sql.Tx) error { _ = statement("SELECT 1/0")(ctx, tx); return nil }, want: []error{idempotency.ErrTxAborted}},
		"rows left open": {end: func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.QueryContext(ctx, `SELECT generate_series(1, 3)`) //nolint:rowserrcheck,sqlclosecheck // On purpose.
			return err
		}, want: []error{idempotency.ErrTxAborted, txhelper.ErrRowsOpen}},
		"killed backend": {end: b.kill, want: []error{idempotency.ErrUnavailable, txhelper.ErrLostBeforeCommit}},
	} {
		t.Run(name, func(t *testing.T) {
			tx, err := b.db.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			err = b.doIn(t.Context(), tx, name, test.end)
			for _, want := range test.want {
				if !errors.Is(err, want) {
					t.Errorf("got %v, want %v", err, want)
				}
			}
			for _, other := range []error{idempotency.ErrTxEnded, idempotency.ErrTxAborted, idempotency.ErrUnavailable} {
				if errors.Is(err, other) && other != test.want[0] { //nolint:errorlint // The very sentinel.
					t.Errorf("got %v, which is also %v", err, other)
				}
			}
			_ = tx.Commit()
			b.want(t, name, 0, false)
			b.wantUsable(t)
		})
	}
}

// fullCache is a database whose connections have room for one statement in their cache: the
// next one is dropped from it, which pgx tells the server first.
func fullCache(t *testing.T) *sqlBench {
	t.Helper()
	pool := pgtest.DB(t)
	b := newBenchOn(t, pool, openDB(t, pool.Config().ConnString()+"&statement_cache_capacity=1"), nil)
	b.db.SetMaxOpenConns(1)
	return b
}

var benches = map[string]func(t *testing.T) *sqlBench{
	"":                         func(t *testing.T) *sqlBench { t.Helper(); return newSingleBench(t, nil) },
	"full cache of statements": fullCache,
}

// An error of the function undoes what it did and leaves the rest, unless rows are in
// the way: then nothing may be committed.
func TestErrorWithRowsOpenUndoesTheWrites(t *testing.T) {
	t.Parallel()
	for name, open := range benches {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := open(t)
			tx, err := b.db.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			var rows *sql.Rows
			err = b.store.Savepoint(t.Context(), tx, func(ctx context.Context, tx *sql.Tx) (err error) {
				if err := bench.EffectOnSQL(ctx, tx, "k"); err != nil {
					return err
				}
				if rows, err = tx.QueryContext(ctx, `SELECT generate_series(1, $1::int)`, 3); err != nil { //nolint:rowserrcheck,sqlclosecheck // Closed below.
					return err
				}
				return errBusiness
			})
			if !errors.Is(err, errBusiness) {
				t.Errorf("got %v, want the function's error", err)
			}
			_ = rows.Close()
			_ = tx.Commit()
			b.want(t, "k", 0, false)
			b.wantUsable(t)
		})
	}
}

// Rows that are open are no lost connection, which would be worth another try.
func TestRowsLeftOpenInDoTx(t *testing.T) {
	t.Parallel()
	for name, open := range benches {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := open(t)
			err := b.doTx(t.Context(), "k", func(ctx context.Context, tx *sql.Tx) error {
				_, err := tx.QueryContext(ctx, `SELECT generate_series(1, $1::int)`, 3) //nolint:rowserrcheck,sqlclosecheck // On purpose.
				return err
			})
			if !errors.Is(err, idempotency.ErrTxAborted) || !errors.Is(err, txhelper.ErrRowsOpen) || errors.Is(err, idempotency.ErrUnavailable) {
				t.Errorf("%v, want ErrTxAborted by open rows", err)
			}
			b.want(t, "k", 0, false)
			b.wantUsable(t)
		})
	}
}

// A function that ends the transaction, and returns an error of its own too.
func TestEndAndErrorInsideSavepoint(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		end     func(ctx context.Context, tx *sql.Tx) error
		effects int
	}{
		"Commit":       {func(_ context.Context, tx *sql.Tx) error { return tx.Commit() }, 1},
		"Rollback":     {func(_ context.Context, tx *sql.Tx) error { return tx.Rollback() }, 0},
		"SQL COMMIT":   {statement("COMMIT"), 1},
		"SQL ROLLBACK": {statement("ROLLBACK"), 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newSingleBench(t, nil)
			tx, err := b.db.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			err = b.store.Savepoint(t.Context(), tx, func(ctx context.Context, tx *sql.Tx) error {
				return errors.Join(bench.EffectOnSQL(ctx, tx, "k"), test.end(ctx, tx), errBusiness)
			})
			if !errors.Is(err, idempotency.ErrTxEnded) || !errors.Is(err, errBusiness) {
				t.Errorf("%v, want ErrTxEnded and the function's error", err)
			}
			_ = tx.Rollback()
			b.want(t, "k", test.effects, false)
			b.wantUsable(t)
		})
	}
}

// A batch that ends half way has left settings of ours in the transaction.
func TestBatchThatEndsHalfWay(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	pool := pgtest.DB(t)
	config := pool.Config().ConnConfig.Copy()
	config.Tracer = cancelAt{"name: KeyBeginMany", cancel}
	b := newBenchOn(t, pool, closed(t, stdlib.OpenDB(*config)), nil)
	tx, err := b.db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.client.WithTx(tx).BeginMany(ctx, []idempotency.Params{bench.Params("a"), bench.Params("b")}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want the end of the context", err)
	}
	if err := statement("SELECT 1")(t.Context(), tx); err == nil {
		t.Error("the transaction goes on")
	}
	_ = tx.Rollback()
}

type foundKey struct{}

// cancelAt calls cancel at the end of a statement with this text.
type cancelAt struct {
	text   string
	cancel func()
}

func (c cancelAt) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	return context.WithValue(ctx, foundKey{}, strings.Contains(data.SQL, c.text))
}

func (c cancelAt) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	if found, _ := ctx.Value(foundKey{}).(bool); found {
		c.cancel()
	}
}

func TestPanicInsideDoTx(t *testing.T) {
	t.Parallel()
	b := newSingleBench(t, nil)
	tx, err := b.db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	func() {
		defer func() {
			if recovered := recover(); recovered != any("test") {
				t.Errorf("recovered %v", recovered)
			}
		}()
		_ = b.doIn(t.Context(), tx, "k", func(context.Context, *sql.Tx) error { panic("test") })
	}()
	var effects int
	if err := tx.QueryRowContext(t.Context(), `SELECT count(*) FROM effects`).Scan(&effects); err != nil || effects != 0 {
		t.Errorf("%d effects in the transaction, %v; want none", effects, err)
	}
	_ = tx.Rollback()
	b.want(t, "k", 0, false)
	b.wantUsable(t)
}

func TestUnusableTransactionOfTheCaller(t *testing.T) {
	t.Parallel()
	b := newSingleBench(t, nil)
	mustNotRun := func(context.Context, *sql.Tx) error { t.Error("the function ran"); return nil }
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for name, test := range map[string]struct { //nolint:paralleltest // One connection for all.
		spoil func(tx *sql.Tx) error
		want  error
	}{
		"committed":   {(*sql.Tx).Commit, idempotency.ErrTxEnded},
		"rolled back": {(*sql.Tx).Rollback, idempotency.ErrTxEnded},
		"context ended": {func(tx *sql.Tx) error {
			cancel()
			bench.WaitFor(t, func() bool {
				_, err := tx.ExecContext(t.Context(), `SELECT 1`)
				return errors.Is(err, sql.ErrTxDone)
			})
			return nil
		}, idempotency.ErrTxEnded},
		"aborted":    {func(tx *sql.Tx) error { _ = statement("SELECT 1/0")(t.Context(), tx); return nil }, idempotency.ErrTxAborted},
		"SQL COMMIT": {func(tx *sql.Tx) error { return statement("COMMIT")(t.Context(), tx) }, idempotency.ErrTxEnded},
		"rows open": {func(tx *sql.Tx) error {
			_, err := tx.QueryContext(t.Context(), `SELECT generate_series(1, 3)`) //nolint:rowserrcheck,sqlclosecheck // On purpose.
			return err
		}, txhelper.ErrRowsOpen},
		"killed": {func(tx *sql.Tx) error { return b.kill(t.Context(), tx) }, idempotency.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			begun := t.Context() //nolint:contextcheck // One of them is to end.
			if name == "context ended" {
				begun = ctx
			}
			tx, err := b.db.BeginTx(begun, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback() }()
			if err := test.spoil(tx); err != nil {
				t.Fatal(err)
			}
			if err := b.doIn(t.Context(), tx, name, mustNotRun); !errors.Is(err, test.want) {
				t.Errorf("DoTx: %v, want %v", err, test.want)
			}
			if _, err := b.client.WithTx(tx).Begin(t.Context(), bench.Params(name)); !errors.Is(err, test.want) {
				t.Errorf("Begin: %v, want %v", err, test.want)
			}
			_ = tx.Rollback()
			b.want(t, name, 0, false)
			b.wantUsable(t)
		})
	}
}

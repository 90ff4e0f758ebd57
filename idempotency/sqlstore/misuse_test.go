package sqlstore_test

import (
	"context"
	"database/sql"
	"errors"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
	"github.com/samecommit/samecommit/txhelper"
)

// misuse is what a function may do wrong with a transaction of ours.
type misuse struct {
	end func(context.Context, *sql.Tx) error
	// want are the errors of Do.
	want []error
	// commits says that SQL has committed the bench.EffectOnSQL, which nobody can take back.
	commits bool
}

func misuses() map[string]misuse {
	owned := []error{idempotency.ErrOwned}
	aborted := []error{idempotency.ErrTxAborted}
	rowsOpen := []error{idempotency.ErrTxAborted, txhelper.ErrRowsOpen}
	return map[string]misuse{
		"Commit returned":     {end: func(_ context.Context, tx *sql.Tx) error { return tx.Commit() }, want: owned},
		"Commit ignored":      {end: func(_ context.Context, tx *sql.Tx) error { _ = tx.Commit(); return nil }, want: owned},
		"Rollback returned":   {end: func(_ context.Context, tx *sql.Tx) error { return tx.Rollback() }, want: owned},
		"Rollback ignored":    {end: func(_ context.Context, tx *sql.Tx) error { _ = tx.Rollback(); return nil }, want: owned},
		"Commit, other error": {end: func(_ context.Context, tx *sql.Tx) error { _ = tx.Commit(); return errors.New("other") }, want: owned},
		"SQL COMMIT":          {end: statement("COMMIT"), want: owned, commits: true},
		"SQL COMMIT; BEGIN":   {end: statement("COMMIT; BEGIN"), want: owned, commits: true},
		"SQL COMMIT AND CHAIN": {
			end: statement("COMMIT AND CHAIN"), want: owned, commits: true,
		},
		"SQL ROLLBACK": {end: statement("ROLLBACK"), want: owned},
		"SQL ROLLBACK; BEGIN": {
			end: statement("ROLLBACK; BEGIN"), want: owned,
		},
		"ignored SQL error": {end: func(ctx context.Context, tx *sql.Tx) error { _ = statement("SELECT 1/0")(ctx, tx); return nil }, want: aborted},
		"rows left open": {end: func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.QueryContext(ctx, `SELECT generate_series(1, 3)`) //nolint:rowserrcheck,sqlclosecheck // On purpose.
			return err
		}, want: rowsOpen},
		"rows left open half read": {end: func(ctx context.Context, tx *sql.Tx) error {
			rows, err := tx.QueryContext(ctx, `SELECT generate_series(1, 100000)`) //nolint:rowserrcheck,sqlclosecheck // On purpose.
			if err == nil {
				rows.Next()
			}
			return err
		}, want: rowsOpen},
		"a row that nobody scans": {end: func(ctx context.Context, tx *sql.Tx) error {
			_ = tx.QueryRowContext(ctx, `SELECT 1`)
			return nil
		}, want: rowsOpen},
		"rows of a prepared statement left open": {end: func(ctx context.Context, tx *sql.Tx) error {
			prepared, err := tx.PrepareContext(ctx, `SELECT generate_series(1, 3)`) //nolint:sqlclosecheck // On purpose.
			if err != nil {
				return err
			}
			_, err = prepared.QueryContext(ctx) //nolint:rowserrcheck,sqlclosecheck // On purpose.
			return err
		}, want: rowsOpen},
	}
}

// None of them may commit an effect with another fate than its key's, but by SQL.
func TestMisuseInsideDo(t *testing.T) {
	t.Parallel()
	b := newSingleBench(t, nil)
	for name, test := range misuses() { //nolint:paralleltest // One connection for all.
		t.Run(name, func(t *testing.T) {
			err := b.do(t.Context(), name, test.end)
			for _, want := range test.want {
				if !errors.Is(err, want) {
					t.Errorf("got %v, want %v", err, want)
				}
			}
			var effects int
			if test.commits {
				effects = 1
			}
			b.want(t, name, effects, false)
			b.wantUsable(t)
		})
	}
}

// Savepoints by SQL and prepared statements that stay open are no misuse.
func TestUseInsideDo(t *testing.T) {
	t.Parallel()
	b := newSingleBench(t, nil)
	for name, use := range map[string]func(context.Context, *sql.Tx) error{ //nolint:paralleltest // One connection for all.
		"savepoints by SQL": func(ctx context.Context, tx *sql.Tx) error {
			for _, text := range []string{"SAVEPOINT s", "INSERT INTO effects VALUES ('undone')"} {
				if err := statement(text)(ctx, tx); err != nil {
					return err
				}
			}
			if err := statement("SELECT 1/0")(ctx, tx); err == nil {
				return errors.New("no error")
			}
			return errors.Join(statement("ROLLBACK TO SAVEPOINT s")(ctx, tx), statement("RELEASE SAVEPOINT s")(ctx, tx))
		},
		"a prepared statement left open": func(ctx context.Context, tx *sql.Tx) error {
			prepared, err := tx.PrepareContext(ctx, `SELECT $1::int`) //nolint:sqlclosecheck // On purpose.
			if err != nil {
				return err
			}
			var n int
			return prepared.QueryRowContext(ctx, 7).Scan(&n)
		},
		"a row in a loop": func(ctx context.Context, tx *sql.Tx) error {
			for want := range 3 {
				var n int
				if err := tx.QueryRowContext(ctx, `SELECT $1::int`, want).Scan(&n); err != nil || n != want {
					return errors.Join(err, errors.New("another number"))
				}
			}
			if err := tx.QueryRowContext(ctx, `SELECT 1 WHERE false`).Scan(new(int)); !errors.Is(err, sql.ErrNoRows) {
				return errors.New("no sql.ErrNoRows")
			}
			return nil
		},
		"types of columns": func(ctx context.Context, tx *sql.Tx) error {
			rows, err := tx.QueryContext(ctx, `SELECT 1 AS n, 'x'::varchar(7) AS text, 1.5::numeric(10, 2) AS amount`)
			if err != nil {
				return err
			}
			defer func() { _ = rows.Close() }()
			types, err := rows.ColumnTypes()
			if err != nil {
				return err
			}
			if length, ok := types[1].Length(); types[0].DatabaseTypeName() != "INT4" || !ok || length != 7 {
				err = errors.New("types are not those of the driver")
			}
			if precision, scale, ok := types[2].DecimalSize(); !ok || precision != 10 || scale != 2 || types[0].ScanType().Kind().String() != "int32" {
				err = errors.Join(err, errors.New("sizes are not those of the driver"))
			}
			return errors.Join(err, rows.Err())
		},
		"two goroutines": func(ctx context.Context, tx *sql.Tx) error {
			other := make(chan error, 1)
			go func() { other <- statement("SELECT 1")(ctx, tx) }()
			return errors.Join(statement("SELECT 2")(ctx, tx), <-other)
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := b.do(t.Context(), name, use); err != nil {
				t.Error(err)
			}
			b.want(t, name, 1, true)
			b.want(t, "undone", 0, false)
			b.wantUsable(t)
		})
	}
}

// The driver says that the transaction must run again, and the function does not.
func TestSwallowedSerializationFailureRunsAgain(t *testing.T) {
	t.Parallel()
	b := newSingleBench(t, nil)
	later := `SELECT CASE WHEN n = 2 THEN fail_40001() ELSE n END FROM generate_series(1, 2) AS n`
	read := func(rows *sql.Rows, err error) {
		if err != nil {
			return
		}
		defer func() { _ = rows.Close() }()
		for rows.Next() {
			_ = rows.Scan(new(int))
		}
	}
	prepare := func(ctx context.Context, tx *sql.Tx, use func(prepared *sql.Stmt)) {
		if prepared, err := tx.PrepareContext(ctx, later); err == nil {
			defer func() { _ = prepared.Close() }()
			use(prepared)
		}
	}
	for name, meet := range map[string]func(context.Context, *sql.Tx){ //nolint:paralleltest // One connection for all.
		"Exec": func(ctx context.Context, tx *sql.Tx) { _, _ = tx.ExecContext(ctx, `SELECT fail_40001()`) },
		"Exec of DML": func(ctx context.Context, tx *sql.Tx) {
			_, _ = tx.ExecContext(ctx, `INSERT INTO effects SELECT fail_40001()::text`)
		},
		"Query": func(ctx context.Context, tx *sql.Tx) { read(tx.QueryContext(ctx, `SELECT fail_40001()`)) }, //nolint:rowserrcheck,sqlclosecheck // On purpose.
		"QueryRow.Scan": func(ctx context.Context, tx *sql.Tx) {
			_ = tx.QueryRowContext(ctx, `SELECT fail_40001()`).Scan(new(int))
		},
		"Rows.Next": func(ctx context.Context, tx *sql.Tx) { read(tx.QueryContext(ctx, later)) }, //nolint:rowserrcheck,sqlclosecheck // On purpose.
		"Rows.Close": func(ctx context.Context, tx *sql.Tx) {
			if rows, err := tx.QueryContext(ctx, later); err == nil { //nolint:rowserrcheck // On purpose.
				_ = rows.Close() //nolint:sqlclosecheck // As early as that.
			}
		},
		"a prepared statement's Exec": func(ctx context.Context, tx *sql.Tx) {
			prepare(ctx, tx, func(prepared *sql.Stmt) { _, _ = prepared.ExecContext(ctx) })
		},
		"a prepared statement's Query": func(ctx context.Context, tx *sql.Tx) {
			prepare(ctx, tx, func(prepared *sql.Stmt) { read(prepared.QueryContext(ctx)) }) //nolint:rowserrcheck,sqlclosecheck // On purpose.
		},
		"undone by a savepoint": func(ctx context.Context, tx *sql.Tx) {
			_, _ = tx.ExecContext(ctx, `SAVEPOINT s`)
			_ = tx.QueryRowContext(ctx, `SELECT fail_40001()`).Scan(new(int))
			_, _ = tx.ExecContext(ctx, `ROLLBACK TO SAVEPOINT s`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			runs := 0
			err := b.do(t.Context(), name, func(ctx context.Context, tx *sql.Tx) error {
				if runs++; runs == 1 {
					meet(ctx, tx)
				}
				return nil
			})
			if err != nil || runs != 2 {
				t.Errorf("%v after %d runs, want 2", err, runs)
			}
			b.want(t, name, 1, true)
			b.wantUsable(t)
		})
	}
}

func TestPanicInsideDo(t *testing.T) {
	t.Parallel()
	b := newSingleBench(t, nil)
	thrown := &struct{ why string }{"test"}
	for name, before := range map[string]func(context.Context, *sql.Tx) error{ //nolint:paralleltest // One connection for all.
		"idle": statement("SELECT 1"),
		"with rows open": func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.QueryContext(ctx, `SELECT generate_series(1, 3)`) //nolint:rowserrcheck,sqlclosecheck // On purpose.
			return err
		},
		"aborted": func(ctx context.Context, tx *sql.Tx) error { _ = statement("SELECT 1/0")(ctx, tx); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			func() {
				defer func() {
					if recovered := recover(); recovered != any(thrown) {
						t.Errorf("recovered %v, want the very value", recovered)
					}
				}()
				_ = b.do(t.Context(), name, func(ctx context.Context, tx *sql.Tx) error {
					if err := before(ctx, tx); err != nil {
						return err
					}
					panic(thrown)
				})
			}()
			b.want(t, name, 0, false)
			b.wantUsable(t)
			gone := make(chan struct{})
			go func() {
				defer close(gone)
				_ = b.do(t.Context(), name, func(ctx context.Context, tx *sql.Tx) error {
					_ = before(ctx, tx)
					runtime.Goexit()
					return nil
				})
			}()
			<-gone
			b.want(t, name, 0, false)
			b.wantUsable(t)
		})
	}
}

// The lent transaction ends with the function, for whoever has kept it.
func TestKeptTransactionHasEnded(t *testing.T) {
	t.Parallel()
	b := newSingleBench(t, nil)
	var kept *sql.Tx
	inTime, goOn, done := make(chan error, 1), make(chan struct{}), make(chan error, 1)
	if err := b.do(t.Context(), "k", func(ctx context.Context, tx *sql.Tx) error {
		kept = tx
		go func() {
			inTime <- statement("SELECT 1")(ctx, tx)
			<-goOn
			done <- bench.EffectOnSQL(context.WithoutCancel(ctx), tx, "k")
		}()
		return <-inTime
	}); err != nil {
		t.Fatal(err)
	}
	close(goOn)
	_, rowErr := kept.QueryContext(t.Context(), `SELECT 1`)       //nolint:rowserrcheck,sqlclosecheck // There are none.
	_, prepareErr := kept.PrepareContext(t.Context(), `SELECT 1`) //nolint:sqlclosecheck // There is none.
	for use, err := range map[string]error{
		"of a goroutine": <-done, "Exec": bench.EffectOnSQL(t.Context(), kept, "k"), "Query": rowErr, "Prepare": prepareErr,
		"Commit": kept.Commit(), "Rollback": kept.Rollback(),
	} {
		if !errors.Is(err, sql.ErrTxDone) {
			t.Errorf("%s: %v, want sql.ErrTxDone", use, err)
		}
	}
	if _, err := b.client.WithTx(kept).Begin(t.Context(), bench.Params("other")); !errors.Is(err, idempotency.ErrTxEnded) {
		t.Errorf("Begin: %v, want ErrTxEnded", err)
	}
	b.want(t, "k", 1, true)
	b.wantUsable(t)
}

// Nothing of ours keeps a transaction that was lent.
func TestLentTransactionIsForgotten(t *testing.T) {
	t.Parallel()
	b := newSingleBench(t, nil)
	collected := make(chan struct{})
	if err := b.do(t.Context(), "k", func(_ context.Context, tx *sql.Tx) error {
		runtime.AddCleanup(tx, func(done chan struct{}) { close(done) }, collected)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	bench.WaitFor(t, func() bool {
		runtime.GC()
		select {
		case <-collected:
			return true
		default:
			return false
		}
	})
}

// A goroutine of the function's that ends the transaction may still be closing what was
// prepared in it when Do gives the connection up.
func TestRollbackInAGoroutine(t *testing.T) {
	t.Parallel()
	b := newSingleBench(t, nil)
	for i := range 30 {
		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan struct{})
		err := b.do(ctx, "k", func(_ context.Context, tx *sql.Tx) error {
			for n := range 80 {
				if _, err := tx.PrepareContext(t.Context(), "SELECT $1::int + "+strconv.Itoa(n)); err != nil { //nolint:sqlclosecheck,contextcheck // On purpose.
					return err
				}
			}
			go func() {
				defer close(gone)
				<-ctx.Done()
				_ = tx.Rollback()
			}()
			cancel()
			for range i {
				runtime.Gosched()
			}
			return errBusiness
		})
		if !errors.Is(err, errBusiness) {
			t.Errorf("%v, want the function's error", err)
		}
		b.wantUsable(t)
		<-gone
	}
	b.want(t, "k", 0, false)
}

// Rows that were scanned into a sql.RawBytes do not close before they are read on, which
// nobody does any more.
func TestRawBytesLeftOpen(t *testing.T) {
	t.Parallel()
	b := newSingleBench(t, nil)
	var rows *sql.Rows
	err := b.do(t.Context(), "k", func(ctx context.Context, tx *sql.Tx) (err error) {
		if rows, err = tx.QueryContext(ctx, `SELECT generate_series(1, 3)::text`); err != nil { //nolint:rowserrcheck,sqlclosecheck // Closed below.
			return err
		}
		rows.Next()
		var raw sql.RawBytes
		return rows.Scan(&raw)
	})
	if !errors.Is(err, idempotency.ErrTxAborted) || !errors.Is(err, txhelper.ErrRowsOpen) {
		t.Errorf("%v, want ErrTxAborted by open rows", err)
	}
	b.want(t, "k", 0, false)
	b.wantUsable(t)
	_ = rows.Close() // which ends the goroutines of database/sql that wait for it
}

// The *sql.DB itself is no part of the transaction: a pool of one has no connection left.
func TestDBInsideDoWaitsForASecondConnection(t *testing.T) {
	t.Parallel()
	b := newSingleBench(t, nil)
	var meanwhile error
	err := b.do(t.Context(), "k", func(ctx context.Context, _ *sql.Tx) error {
		ctx, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		defer cancel()
		_, meanwhile = b.db.ExecContext(ctx, `SELECT 1`)
		return nil
	})
	if err != nil || !errors.Is(meanwhile, context.DeadlineExceeded) {
		t.Errorf("Do: %v; the *sql.DB: %v, want the end of its context", err, meanwhile)
	}
	b.want(t, "k", 1, true)
	b.wantUsable(t)
}

package txhelper_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
	"github.com/samecommit/samecommit/txhelper"
)

func TestTxNests(t *testing.T) {
	t.Parallel()
	pool := txPool(t)
	errMine := errors.New("mine")
	value := new(int)
	if err := txhelper.Run(t.Context(), pool, nil, func(ctx context.Context, tx pgx.Tx) error {
		kept, err := tx.Begin(ctx)
		if err != nil {
			return err
		}
		if err := errors.Join(write(ctx, kept, "kept by Commit"), kept.Commit(ctx)); err != nil {
			return err
		}
		undone, err := tx.Begin(ctx)
		if err != nil {
			return err
		}
		if err := errors.Join(write(ctx, undone, "undone by Rollback"), undone.Rollback(ctx)); err != nil {
			return err
		}
		if err := txhelper.Savepoint(ctx, tx, nil, func(ctx context.Context, tx pgx.Tx) error {
			return write(ctx, tx, "kept by Savepoint")
		}); err != nil {
			return err
		}
		if err := txhelper.Savepoint(ctx, tx, nil, func(ctx context.Context, tx pgx.Tx) error {
			if err := write(ctx, tx, "undone by an error"); err != nil {
				return err
			}
			return errMine
		}); err != errMine { //nolint:errorlint // as it is, not wrapped
			t.Errorf("Savepoint returns %v, want the function's error as it is", err)
		}
		// A failed statement aborts the savepoint, not the transaction.
		err = txhelper.Savepoint(ctx, tx, nil, func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "SELECT 1/0")
			return err
		})
		bench.WantPgError(t, err, "22012", "")
		if err := txhelper.Savepoint(ctx, tx, nil, func(ctx context.Context, tx pgx.Tx) error {
			_ = tx.Commit(ctx)
			return write(ctx, tx, "undone by Commit in a Savepoint")
		}); !errors.Is(err, txhelper.ErrOwned) {
			t.Errorf("Savepoint returns %v after Commit, want ErrOwned", err)
		}
		func() {
			defer func() {
				if recovered := recover(); recovered != any(value) {
					t.Errorf("recovered %v, want the function's value", recovered)
				}
			}()
			_ = txhelper.Savepoint(ctx, tx, nil, func(ctx context.Context, tx pgx.Tx) error {
				_ = write(ctx, tx, "undone by a panic")
				panic(value)
			})
		}()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	wantNotes(t, pool, 2)
	if kept := bench.Count(t, pool, "SELECT count(*) FROM notes WHERE note LIKE 'kept %'"); kept != 2 {
		t.Errorf("%d of the notes to keep are there, want 2", kept)
	}
}

func TestTxAfterTheEnd(t *testing.T) {
	t.Parallel()
	pool := txPool(t)
	var over, nested pgx.Tx
	if err := txhelper.Run(t.Context(), pool, nil, func(ctx context.Context, tx pgx.Tx) (err error) {
		over = tx
		nested, err = tx.Begin(ctx)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	batch := func() *pgx.Batch {
		batch := &pgx.Batch{}
		batch.Queue("INSERT INTO notes VALUES ('batch')")
		return batch
	}
	for name, call := range map[string]func(ctx context.Context, tx pgx.Tx) error{
		"Exec": func(ctx context.Context, tx pgx.Tx) error { return write(ctx, tx, "exec") },
		"Query": func(ctx context.Context, tx pgx.Tx) error {
			rows, err := tx.Query(ctx, "INSERT INTO notes VALUES ('query') RETURNING note")
			// pgx's own callers look at the rows first.
			rows.Close()
			if !errors.Is(rows.Err(), pgx.ErrTxClosed) {
				return rows.Err()
			}
			return err
		},
		"QueryRow": func(ctx context.Context, tx pgx.Tx) error {
			var note string
			return tx.QueryRow(ctx, "INSERT INTO notes VALUES ('row') RETURNING note").Scan(&note)
		},
		"SendBatch": func(ctx context.Context, tx pgx.Tx) error { return tx.SendBatch(ctx, batch()).Close() },
		"SendBatch, Exec": func(ctx context.Context, tx pgx.Tx) error {
			results := tx.SendBatch(ctx, batch())
			defer results.Close() //nolint:errcheck // Exec's error is the one looked at
			_, err := results.Exec()
			return err
		},
		"CopyFrom": func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.CopyFrom(ctx, pgx.Identifier{"notes"}, []string{"note"}, pgx.CopyFromRows([][]any{{"copy"}}))
			return err
		},
		"Prepare": func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Prepare(ctx, "", "SELECT 1")
			return err
		},
		"Begin":    func(ctx context.Context, tx pgx.Tx) error { _, err := tx.Begin(ctx); return err },
		"Commit":   func(ctx context.Context, tx pgx.Tx) error { return tx.Commit(ctx) },
		"Rollback": func(ctx context.Context, tx pgx.Tx) error { return tx.Rollback(ctx) },
		"Savepoint": func(ctx context.Context, tx pgx.Tx) error {
			return txhelper.Savepoint(ctx, tx, nil, func(ctx context.Context, tx pgx.Tx) error { return write(ctx, tx, "savepoint") })
		},
		// The connection is somebody else's by now.
		"LargeObjects": func(ctx context.Context, tx pgx.Tx) error {
			objects := tx.LargeObjects()
			_, err := objects.Create(ctx, 0)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := call(t.Context(), over); !errors.Is(err, pgx.ErrTxClosed) {
				t.Errorf("error is %v, want pgx.ErrTxClosed", err)
			}
			if err := call(t.Context(), nested); !errors.Is(err, pgx.ErrTxClosed) {
				t.Errorf("of a nested transaction: error is %v, want pgx.ErrTxClosed", err)
			}
		})
	}
	t.Cleanup(func() {
		var notes int
		if err := pool.QueryRow(context.WithoutCancel(t.Context()), "SELECT count(*) FROM notes").Scan(&notes); err != nil || notes != 0 {
			t.Errorf("%d notes were written after the end (%v)", notes, err)
		}
	})
}

func TestOpenRefusesQueriesOfItsCaller(t *testing.T) {
	t.Parallel()
	counter := &bench.QueryCounter{}
	config, err := pgxpool.ParseConfig(pgtest.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	config.ConnConfig.Tracer = counter
	pool := bench.PoolWith(t, config)
	for name, options := range map[string]pgx.TxOptions{
		"BeginQuery":  {BeginQuery: "begin"},
		"CommitQuery": {CommitQuery: "rollback"},
	} {
		flights, _ := counter.Count(func() {
			err := txhelper.Run(t.Context(), pool, &txhelper.Options{TxOptions: options}, func(context.Context, pgx.Tx) error {
				t.Errorf("%s: the function ran", name)
				return nil
			})
			if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "IsoLevel") {
				t.Errorf("%s: %v, want a refusal that says what to use", name, err)
			}
		})
		if flights != 0 {
			t.Errorf("%s: %d flights, want none", name, flights)
		}
	}
}

func TestRunOnEveryDB(t *testing.T) {
	t.Parallel()
	fn := func(ctx context.Context, tx pgx.Tx) error { return write(ctx, tx, "a") }

	t.Run("pgx.Conn", func(t *testing.T) {
		t.Parallel()
		pool := txPool(t)
		conn, err := pgx.ConnectConfig(t.Context(), pool.Config().ConnConfig)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.WithoutCancel(t.Context())) //nolint:errcheck // nothing depends on it
		if err := txhelper.Run(t.Context(), conn, nil, fn); err != nil {
			t.Fatal(err)
		}
		wantNotes(t, pool, 1)

		tx, err := conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(t.Context())
		if err := txhelper.Run(t.Context(), conn, nil, fn); err == nil {
			t.Error("Run on a connection in a transaction succeeds, want an error")
		}
		// It has left that transaction alone.
		if err := errors.Join(write(t.Context(), tx, "b"), tx.Commit(t.Context())); err != nil {
			t.Error(err)
		}
		wantNotes(t, pool, 2)
	})

	t.Run("pgxpool.Conn", func(t *testing.T) {
		t.Parallel()
		pool := txPool(t)
		conn, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := txhelper.Run(t.Context(), conn, nil, fn); err != nil {
			t.Error(err)
		}
		// Still the caller's to release.
		if acquired := pool.Stat().AcquiredConns(); acquired != 1 {
			t.Errorf("%d connections acquired, want 1", acquired)
		}
		conn.Release()
		wantNotes(t, pool, 1)
	})

	t.Run("pgx.Tx", func(t *testing.T) {
		t.Parallel()
		pool := txPool(t)
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(t.Context())
		if err := txhelper.Run(t.Context(), tx, nil, fn); err != nil {
			t.Fatal(err)
		}
		attempts := 0
		err = txhelper.Run(t.Context(), tx, &txhelper.Options{Backoff: noPause}, func(ctx context.Context, tx pgx.Tx) error {
			attempts++
			return errors.Join(write(ctx, tx, "undone"), &pgconn.PgError{Code: "40001"})
		})
		if attempts != 1 {
			t.Errorf("%d attempts in a transaction, want 1", attempts)
		}
		// So that whoever retries the whole transaction still sees it.
		if !txhelper.IsRetryable(err) {
			t.Errorf("error is %v, want a retryable one", err)
		}
		serializable := &txhelper.Options{TxOptions: pgx.TxOptions{IsoLevel: pgx.Serializable}}
		if err := txhelper.Run(t.Context(), tx, serializable, fn); err == nil {
			t.Error("a savepoint gets an isolation level, want an error")
		}
		if notes := bench.Count(t, pool, "SELECT count(*) FROM notes"); notes != 0 {
			t.Errorf("%d notes are committed before the outer transaction is", notes)
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantNotes(t, pool, 1)
	})
}

package txhelper_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
	"github.com/samecommit/samecommit/txhelper"
)

// txSchema has a table for what transactions write, whose duplicates are found
// at COMMIT, and one with two rows for them to fight over.
const txSchema = `
	CREATE TABLE notes (note text CONSTRAINT notes_note_once UNIQUE DEFERRABLE INITIALLY DEFERRED);
	CREATE TABLE doctors (name text PRIMARY KEY, on_call boolean NOT NULL);
	INSERT INTO doctors VALUES ('ann', true), ('bob', true)`

func txPool(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool := pgtest.Empty(t)
	if _, err := pool.Exec(t.Context(), txSchema); err != nil {
		t.Fatal(err)
	}
	return pool
}

func write(ctx context.Context, tx pgx.Tx, note string) error {
	_, err := tx.Exec(ctx, "INSERT INTO notes VALUES ($1)", note)
	return err
}

// wantNotes says what has been committed, and that no connection was lost on
// the way.
func wantNotes(t *testing.T, pool *pgxpool.Pool, want int) {
	t.Helper()
	// A connection that had to be closed comes back in the background.
	bench.WaitFor(t, func() bool { return pool.Stat().AcquiredConns() == 0 })
	if got := bench.Count(t, pool, "SELECT count(*) FROM notes"); got != want {
		t.Errorf("%d notes are committed, want %d", got, want)
	}
	// The server notices a closed connection in its own time.
	bench.WaitFor(t, func() bool {
		return bench.Count(t, pool, `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid() AND state LIKE 'idle in transaction%'`) == 0
	})
}

// noPause keeps retries from taking time.
func noPause(int) time.Duration { return 0 }

func TestRunEnds(t *testing.T) {
	t.Parallel()
	errMine := errors.New("mine")
	for _, mode := range bench.ExecModes {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			config, err := pgxpool.ParseConfig(pgtest.URL(t))
			if err != nil {
				t.Fatal(err)
			}
			config.ConnConfig.DefaultQueryExecMode = mode
			// With one connection, the next transaction meets what the last left.
			config.MaxConns = 1
			pool := bench.PoolWith(t, config)
			if _, err := pool.Exec(t.Context(), txSchema, pgx.QueryExecModeSimpleProtocol); err != nil {
				t.Fatal(err)
			}

			if err := txhelper.Run(t.Context(), pool, nil, func(ctx context.Context, tx pgx.Tx) error {
				return write(ctx, tx, "committed")
			}); err != nil {
				t.Fatal(err)
			}
			wantNotes(t, pool, 1)

			err = txhelper.Run(t.Context(), pool, nil, func(ctx context.Context, tx pgx.Tx) error {
				return errors.Join(write(ctx, tx, "error"), errMine)
			})
			if !errors.Is(err, errMine) {
				t.Errorf("error is %v, want the function's", err)
			}
			err = txhelper.Run(t.Context(), pool, nil, func(ctx context.Context, tx pgx.Tx) error {
				if err := write(ctx, tx, "error"); err != nil {
					return err
				}
				return errMine
			})
			if err != errMine { //nolint:errorlint // as it is, not wrapped
				t.Errorf("error is %v, want the function's as it is", err)
			}
			wantNotes(t, pool, 1)

			// A pointer is equal to nothing but itself.
			value := new(int)
			func() {
				defer func() {
					if recovered := recover(); recovered != any(value) {
						t.Errorf("recovered %v, want the function's value", recovered)
					}
				}()
				_ = txhelper.Run(t.Context(), pool, nil, func(ctx context.Context, tx pgx.Tx) error {
					if err := write(ctx, tx, "panic"); err != nil {
						return err
					}
					panic(value)
				})
				t.Error("Run returned from a panic")
			}()
			wantNotes(t, pool, 1)

			var running sync.WaitGroup
			running.Go(func() {
				err := txhelper.Run(t.Context(), pool, nil, func(ctx context.Context, tx pgx.Tx) error {
					if err := write(ctx, tx, "goexit"); err != nil {
						return err
					}
					runtime.Goexit()
					return nil
				})
				t.Errorf("Run returned %v from a Goexit", err)
			})
			running.Wait()
			wantNotes(t, pool, 1)

			err = txhelper.Run(t.Context(), pool, nil, func(ctx context.Context, tx pgx.Tx) error {
				return errors.Join(write(ctx, tx, "twice"), write(ctx, tx, "twice"))
			})
			bench.WantPgError(t, err, "23505", "notes_note_once")
			var ambiguous *txhelper.AmbiguousCommitError
			if errors.As(err, &ambiguous) {
				t.Errorf("error is %v: the server has said that nothing was committed", err)
			}
			wantNotes(t, pool, 1)

			err = txhelper.Run(t.Context(), pool, nil, func(ctx context.Context, tx pgx.Tx) error {
				_ = tx.Commit(ctx)
				return write(ctx, tx, "owned")
			})
			if !errors.Is(err, txhelper.ErrOwned) {
				t.Errorf("error is %v, want ErrOwned", err)
			}
			wantNotes(t, pool, 1)
		})
	}
}

func TestRunWithACancelledContext(t *testing.T) {
	t.Parallel()
	config, err := pgxpool.ParseConfig(pgtest.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns = 1
	pool := bench.PoolWith(t, config)
	if _, err := pool.Exec(t.Context(), txSchema); err != nil {
		t.Fatal(err)
	}
	backend := func() int { return bench.Count(t, pool, "SELECT pg_backend_pid()") }
	before := backend()
	ctx, cancel := context.WithCancel(t.Context())
	err = txhelper.Run(ctx, pool, nil, func(ctx context.Context, tx pgx.Tx) error {
		if err := write(ctx, tx, "undone"); err != nil {
			return err
		}
		cancel()
		return ctx.Err()
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v, want context.Canceled", err)
	}
	wantNotes(t, pool, 0)
	// Rolled back, not hung up on.
	if after := backend(); after != before {
		t.Errorf("the connection was replaced: backend %d, then %d", before, after)
	}

	ctx, cancel = context.WithCancel(t.Context())
	if err := txhelper.Run(ctx, pool, nil, func(ctx context.Context, tx pgx.Tx) error {
		defer cancel()
		return write(ctx, tx, "done")
	}); err != nil {
		t.Errorf("a context cancelled after the work interrupts the commit: %v", err)
	}
	wantNotes(t, pool, 1)
}

// Whoever runs others' functions may refuse with an error of its own.
func TestRefusalWithTheCallersError(t *testing.T) {
	t.Parallel()
	pool := txPool(t)
	errMine := errors.New("mine")
	options := &txhelper.Options{Owned: errMine}
	commit := func(ctx context.Context, tx pgx.Tx) error {
		if err := tx.Commit(ctx); err != errMine { //nolint:errorlint // as it is, not wrapped
			t.Errorf("Commit returns %v, want Options.Owned as it is", err)
		}
		if err := tx.Rollback(ctx); err != errMine { //nolint:errorlint // as it is, not wrapped
			t.Errorf("Rollback returns %v, want Options.Owned as it is", err)
		}
		return write(ctx, tx, "undone")
	}
	if err := txhelper.Run(t.Context(), pool, options, commit); !errors.Is(err, errMine) || errors.Is(err, txhelper.ErrOwned) {
		t.Errorf("Run returns %v, want Options.Owned alone", err)
	}
	err := txhelper.Run(t.Context(), pool, nil, func(ctx context.Context, tx pgx.Tx) error {
		if err := txhelper.Savepoint(ctx, tx, options, commit); !errors.Is(err, errMine) {
			t.Errorf("Savepoint returns %v, want Options.Owned", err)
		}
		return write(ctx, tx, "kept")
	})
	if err != nil {
		t.Error(err)
	}
	wantNotes(t, pool, 1)
}

func TestRunRefusesToCommit(t *testing.T) {
	t.Parallel()
	errMine := errors.New("mine")
	for name, test := range map[string]struct {
		want error
		// notes is what the function's own COMMIT has committed.
		notes int
		fn    func(ctx context.Context, tx pgx.Tx) error
	}{
		"after Commit": {want: txhelper.ErrOwned, fn: func(ctx context.Context, tx pgx.Tx) error {
			if err := tx.Commit(ctx); !errors.Is(err, txhelper.ErrOwned) {
				return fmt.Errorf("Commit returns %w", err)
			}
			return nil
		}},
		"after Rollback": {want: txhelper.ErrOwned, fn: func(ctx context.Context, tx pgx.Tx) error {
			if err := tx.Rollback(ctx); !errors.Is(err, txhelper.ErrOwned) {
				return fmt.Errorf("Rollback returns %w", err)
			}
			return nil
		}},
		"after Rollback and an error": {want: errMine, fn: func(ctx context.Context, tx pgx.Tx) error {
			_ = tx.Rollback(ctx)
			return errMine
		}},
		"after SQL COMMIT": {want: txhelper.ErrEnded, notes: 1, fn: func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "COMMIT")
			return err
		}},
		"after SQL ROLLBACK": {want: txhelper.ErrEnded, fn: func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "ROLLBACK")
			return err
		}},
		"after an ignored failure": {want: txhelper.ErrAborted, fn: func(ctx context.Context, tx pgx.Tx) error {
			_, _ = tx.Exec(ctx, "SELECT 1/0")
			return nil
		}},
		"with rows open": {want: txhelper.ErrRowsOpen, fn: func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Query(ctx, "SELECT generate_series(1, 100000)") //nolint:rowserrcheck,sqlclosecheck // on purpose
			return err
		}},
		"with a row unread": {want: txhelper.ErrRowsOpen, fn: func(ctx context.Context, tx pgx.Tx) error {
			tx.QueryRow(ctx, "SELECT 1")
			return nil
		}},
		"with a batch open": {want: txhelper.ErrRowsOpen, fn: func(ctx context.Context, tx pgx.Tx) error {
			batch := &pgx.Batch{}
			batch.Queue("SELECT 1")
			tx.SendBatch(ctx, batch)
			return nil
		}},
		"with rows open and an error": {want: errMine, fn: func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Query(ctx, "SELECT generate_series(1, 100000)") //nolint:rowserrcheck,sqlclosecheck // on purpose
			return errors.Join(err, errMine)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := txPool(t)
			err := txhelper.Run(t.Context(), pool, nil, func(ctx context.Context, tx pgx.Tx) error {
				if err := write(ctx, tx, "a"); err != nil {
					return err
				}
				return test.fn(ctx, tx)
			})
			if !errors.Is(err, test.want) {
				t.Errorf("error is %v, want %v", err, test.want)
			}
			wantNotes(t, pool, test.notes)
		})
	}
}

func TestRunValue(t *testing.T) {
	t.Parallel()
	pool := txPool(t)
	value, err := txhelper.RunValue(t.Context(), pool, nil, func(ctx context.Context, tx pgx.Tx) (string, error) {
		return "value", write(ctx, tx, "a")
	})
	if value != "value" || err != nil {
		t.Errorf("RunValue returns %q, %v", value, err)
	}
	// What was not committed is not to be used.
	value, err = txhelper.RunValue(t.Context(), pool, nil, func(ctx context.Context, tx pgx.Tx) (string, error) {
		return "value", write(ctx, tx, "a")
	})
	bench.WantPgError(t, err, "23505", "notes_note_once")
	if value != "" {
		t.Errorf("RunValue returns %q with an error, want the zero value", value)
	}
	wantNotes(t, pool, 1)
}

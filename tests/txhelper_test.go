package tests_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/txhelper"
)

var execModes = []pgx.QueryExecMode{
	pgx.QueryExecModeCacheStatement,
	pgx.QueryExecModeCacheDescribe,
	pgx.QueryExecModeDescribeExec,
	pgx.QueryExecModeExec,
	pgx.QueryExecModeSimpleProtocol,
}

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
	waitFor(t, func() bool { return pool.Stat().AcquiredConns() == 0 })
	if got := count(t, pool, "SELECT count(*) FROM notes"); got != want {
		t.Errorf("%d notes are committed, want %d", got, want)
	}
	// The server notices a closed connection in its own time.
	waitFor(t, func() bool {
		return count(t, pool, `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid() AND state LIKE 'idle in transaction%'`) == 0
	})
}

// noPause keeps retries from taking time.
func noPause(int) time.Duration { return 0 }

func TestRunEnds(t *testing.T) {
	t.Parallel()
	errMine := errors.New("mine")
	for _, mode := range execModes {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			config, err := pgxpool.ParseConfig(pgtest.URL(t))
			if err != nil {
				t.Fatal(err)
			}
			config.ConnConfig.DefaultQueryExecMode = mode
			// With one connection, the next transaction meets what the last left.
			config.MaxConns = 1
			pool := poolWith(t, config)
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
			wantPgError(t, err, "23505", "notes_note_once")
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
	pool := poolWith(t, config)
	if _, err := pool.Exec(t.Context(), txSchema); err != nil {
		t.Fatal(err)
	}
	backend := func() int { return count(t, pool, "SELECT pg_backend_pid()") }
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

// meet returns a function in which the first call of each of two transactions
// waits for the other's.
func meet(t *testing.T) func(ctx context.Context, attempt int) error {
	t.Helper()
	var arrived atomic.Int32
	both := make(chan struct{})
	return func(ctx context.Context, attempt int) error {
		if attempt != 1 {
			return nil
		}
		if arrived.Add(1) == 2 {
			close(both)
		}
		select {
		case <-both:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// runBoth runs one transaction for ann and one for bob at the same time, and
// returns how often they were tried together.
func runBoth(t *testing.T, pool *pgxpool.Pool, options *txhelper.Options,
	fn func(ctx context.Context, tx pgx.Tx, attempt int, mine, other string) error,
) int {
	t.Helper()
	var attempts atomic.Int32
	var running sync.WaitGroup
	for _, names := range [][2]string{{"ann", "bob"}, {"bob", "ann"}} {
		running.Go(func() {
			attempt := 0
			if err := txhelper.Run(t.Context(), pool, options, func(ctx context.Context, tx pgx.Tx) error {
				attempt++
				attempts.Add(1)
				return fn(ctx, tx, attempt, names[0], names[1])
			}); err != nil {
				t.Errorf("%s: %v", names[0], err)
			}
		})
	}
	running.Wait()
	return int(attempts.Load())
}

func TestRunRetriesWriteSkew(t *testing.T) {
	t.Parallel()
	pool := txPool(t)
	together := meet(t)
	options := &txhelper.Options{TxOptions: pgx.TxOptions{IsoLevel: pgx.Serializable}}
	// Each goes off call if another is on. Both saw both.
	attempts := runBoth(t, pool, options, func(ctx context.Context, tx pgx.Tx, attempt int, mine, _ string) error {
		var onCall int
		if err := tx.QueryRow(ctx, "SELECT count(*) FROM doctors WHERE on_call").Scan(&onCall); err != nil {
			return err
		}
		if err := together(ctx, attempt); err != nil {
			return err
		}
		if onCall < 2 {
			return nil
		}
		_, err := tx.Exec(ctx, "UPDATE doctors SET on_call = false WHERE name = $1", mine)
		return err
	})
	if attempts < 3 {
		t.Errorf("%d attempts: nothing was retried", attempts)
	}
	if left := count(t, pool, "SELECT count(*) FROM doctors WHERE on_call"); left != 1 {
		t.Errorf("%d doctors on call, want 1", left)
	}
	wantNotes(t, pool, 0)
}

func TestRunRetriesDeadlock(t *testing.T) {
	t.Parallel()
	pool := txPool(t)
	together := meet(t)
	attempts := runBoth(t, pool, nil, func(ctx context.Context, tx pgx.Tx, attempt int, mine, other string) error {
		if _, err := tx.Exec(ctx, "SET LOCAL deadlock_timeout = '10ms'"); err != nil {
			return err
		}
		const update = "UPDATE doctors SET on_call = NOT on_call WHERE name = $1"
		if _, err := tx.Exec(ctx, update, mine); err != nil {
			return err
		}
		if err := together(ctx, attempt); err != nil {
			return err
		}
		if err := write(ctx, tx, mine); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, update, other)
		return err
	})
	if attempts < 3 {
		t.Errorf("%d attempts: nothing was retried", attempts)
	}
	// Two effects, of the attempts that were committed.
	wantNotes(t, pool, 2)
}

func TestRunRetriesASwallowedFailure(t *testing.T) {
	t.Parallel()
	const update = "UPDATE doctors SET on_call = NOT on_call WHERE name = 'ann'"
	options := &txhelper.Options{TxOptions: pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, Backoff: noPause}
	for name, swallow := range map[string]func(ctx context.Context, tx pgx.Tx) error{
		"of Exec": func(ctx context.Context, tx pgx.Tx) error {
			_, _ = tx.Exec(ctx, update)
			return nil
		},
		"of QueryRow": func(ctx context.Context, tx pgx.Tx) error {
			var name string
			_ = tx.QueryRow(ctx, update+" RETURNING name").Scan(&name)
			return nil
		},
		"of Query": func(ctx context.Context, tx pgx.Tx) error {
			rows, err := tx.Query(ctx, update+" RETURNING name") //nolint:rowserrcheck // swallowed on purpose
			if err == nil {
				rows.Close()
			}
			return nil
		},
		"of a batch": func(ctx context.Context, tx pgx.Tx) error {
			batch := &pgx.Batch{}
			batch.Queue(update)
			_ = tx.SendBatch(ctx, batch).Close()
			return nil
		},
		"turned into another": func(ctx context.Context, tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, update); err != nil {
				return errors.New("says nothing of the cause")
			}
			return nil
		},
		"kept by a savepoint": func(ctx context.Context, tx pgx.Tx) error {
			nested, err := tx.Begin(ctx)
			if err != nil {
				return err
			}
			_, _ = nested.Exec(ctx, update)
			return nil
		},
		"beside a savepoint that is undone": func(ctx context.Context, tx pgx.Tx) error {
			undone, err := tx.Begin(ctx)
			if err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, update); err != nil {
				return undone.Rollback(ctx)
			}
			return undone.Commit(ctx)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := txPool(t)
			attempts := 0
			if err := txhelper.Run(t.Context(), pool, options, func(ctx context.Context, tx pgx.Tx) error {
				attempts++
				if err := write(ctx, tx, fmt.Sprint(attempts)); err != nil {
					return err
				}
				if attempts == 1 {
					// Behind the back of the snapshot that write took.
					if _, err := pool.Exec(ctx, update); err != nil {
						return err
					}
				}
				return swallow(ctx, tx)
			}); err != nil {
				t.Fatal(err)
			}
			if attempts != 2 {
				t.Errorf("%d attempts, want 2", attempts)
			}
			wantNotes(t, pool, 1)
			// Flipped once by us and once by the second attempt.
			if on := count(t, pool, "SELECT count(*) FROM doctors WHERE on_call"); on != 2 {
				t.Errorf("%d doctors on call, want 2: the second attempt did not do its work", on)
			}
		})
	}
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

// What a savepoint has undone the function has dealt with.
func TestRunForgetsAFailureThatWasRolledBack(t *testing.T) {
	t.Parallel()
	const update = "UPDATE doctors SET on_call = NOT on_call WHERE name = 'ann'"
	options := &txhelper.Options{TxOptions: pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, Backoff: noPause}
	for name, handle := range map[string]func(ctx context.Context, tx pgx.Tx) error{
		"by a savepoint": func(ctx context.Context, tx pgx.Tx) error {
			_ = txhelper.Savepoint(ctx, tx, nil, func(ctx context.Context, tx pgx.Tx) error {
				_, err := tx.Exec(ctx, update)
				return err
			})
			return nil
		},
		"by Begin and Rollback": func(ctx context.Context, tx pgx.Tx) error {
			nested, err := tx.Begin(ctx)
			if err != nil {
				return err
			}
			if _, err := nested.Exec(ctx, update); err == nil {
				return errors.New("the update did not fail")
			}
			return nested.Rollback(ctx)
		},
		"in a savepoint within": func(ctx context.Context, tx pgx.Tx) error {
			outer, err := tx.Begin(ctx)
			if err != nil {
				return err
			}
			inner, err := outer.Begin(ctx)
			if err != nil {
				return err
			}
			if _, err := inner.Exec(ctx, update); err == nil {
				return errors.New("the update did not fail")
			}
			return outer.Rollback(ctx)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := txPool(t)
			attempts := 0
			if err := txhelper.Run(t.Context(), pool, options, func(ctx context.Context, tx pgx.Tx) error {
				attempts++
				if err := write(ctx, tx, fmt.Sprint(attempts)); err != nil {
					return err
				}
				// Behind the back of the snapshot that write took.
				if _, err := pool.Exec(ctx, update); err != nil {
					return err
				}
				return handle(ctx, tx)
			}); err != nil {
				t.Fatal(err)
			}
			if attempts != 1 {
				t.Errorf("%d attempts, want 1", attempts)
			}
			wantNotes(t, pool, 1)
		})
	}
}

func TestRunGivesUp(t *testing.T) {
	t.Parallel()
	fail := func(ctx context.Context, tx pgx.Tx) error {
		return errors.Join(write(ctx, tx, "undone"), &pgconn.PgError{Code: "40001"})
	}

	t.Run("after MaxAttempts", func(t *testing.T) {
		t.Parallel()
		pool := txPool(t)
		var pauses []int
		attempts := 0
		err := txhelper.Run(t.Context(), pool, &txhelper.Options{
			MaxAttempts: 3,
			Backoff:     func(attempt int) time.Duration { pauses = append(pauses, attempt); return 0 },
		}, func(ctx context.Context, tx pgx.Tx) error {
			attempts++
			return fail(ctx, tx)
		})
		var exceeded *txhelper.AttemptsExceededError
		if !errors.As(err, &exceeded) || exceeded.Attempts != 3 || attempts != 3 {
			t.Errorf("error is %v after %d attempts, want AttemptsExceededError of 3", err, attempts)
		}
		wantPgError(t, err, "40001", "")
		if fmt.Sprint(pauses) != "[2 3]" {
			t.Errorf("pauses before attempts %v, want [2 3]", pauses)
		}
		wantNotes(t, pool, 0)
	})

	t.Run("when the context is cancelled in a pause", func(t *testing.T) {
		t.Parallel()
		pool := txPool(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		attempts := 0
		err := txhelper.Run(ctx, pool, &txhelper.Options{
			// Longer than a test may take.
			Backoff: func(int) time.Duration { cancel(); return 24 * time.Hour },
		}, func(ctx context.Context, tx pgx.Tx) error {
			attempts++
			return fail(ctx, tx)
		})
		if attempts != 1 || err == nil {
			t.Errorf("error is %v after %d attempts, want an error after 1", err, attempts)
		}
		wantPgError(t, err, "40001", "")
		wantNotes(t, pool, 0)
	})

	t.Run("not on other errors", func(t *testing.T) {
		t.Parallel()
		pool := txPool(t)
		attempts := 0
		err := txhelper.Run(t.Context(), pool, nil, func(context.Context, pgx.Tx) error {
			attempts++
			return &pgconn.PgError{Code: "23505"}
		})
		var exceeded *txhelper.AttemptsExceededError
		if attempts != 1 || errors.As(err, &exceeded) {
			t.Errorf("error is %v after %d attempts, want the function's after 1", err, attempts)
		}
	})
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
		wantPgError(t, err, "22012", "")
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
	if kept := count(t, pool, "SELECT count(*) FROM notes WHERE note LIKE 'kept %'"); kept != 2 {
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

func TestRunOnALostCommitReply(t *testing.T) {
	t.Parallel()
	for _, mode := range execModes {
		for _, committed := range []bool{true, false} {
			t.Run(fmt.Sprintf("%v/committed=%t", mode, committed), func(t *testing.T) {
				t.Parallel()
				url := pgtest.URL(t)
				config, err := pgxpool.ParseConfig(url)
				if err != nil {
					t.Fatal(err)
				}
				observer := poolWith(t, config.Copy())
				if _, err := observer.Exec(t.Context(), txSchema); err != nil {
					t.Fatal(err)
				}
				config.ConnConfig.DefaultQueryExecMode = mode
				proxy := &commitProxy{afterCommit: committed}
				pool := poolWith(t, proxy.cutConfig(t, config))

				attempts := 0
				var backend int
				err = txhelper.Run(t.Context(), pool, nil, func(ctx context.Context, tx pgx.Tx) error {
					attempts++
					proxy.armed.Store(true)
					if err := tx.QueryRow(ctx, "SELECT pg_backend_pid()").Scan(&backend); err != nil {
						return err
					}
					return write(ctx, tx, "a")
				})
				var ambiguous *txhelper.AmbiguousCommitError
				if !errors.As(err, &ambiguous) || attempts != 1 {
					t.Errorf("error is %v after %d attempts, want AmbiguousCommitError after 1", err, attempts)
				}
				if cuts := proxy.cuts.Load(); cuts != 1 {
					t.Errorf("%d connections were cut, want 1", cuts)
				}
				// Only then is it decided.
				waitFor(t, func() bool {
					return count(t, observer, "SELECT count(*) FROM pg_stat_activity WHERE pid = $1", backend) == 0
				})
				want := 0
				if committed {
					want = 1
				}
				wantNotes(t, observer, want)
				wantNotes(t, pool, want)
			})
		}
	}
}

// slowCommit makes each commit that has written a note wait, in a deferred
// trigger, for an advisory lock that it takes, and returns how to let them go.
func slowCommit(t *testing.T, pool *pgxpool.Pool, table string) (let func()) {
	t.Helper()
	for _, sql := range []string{
		`CREATE FUNCTION wait_for_the_test() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END'`,
		`CREATE CONSTRAINT TRIGGER slow_commit AFTER INSERT ON ` + table + ` DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait_for_the_test()`,
	} {
		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	holder, err := pgx.ConnectConfig(t.Context(), pool.Config().ConnConfig)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := holder.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	if _, err := holder.Exec(t.Context(), `SELECT pg_advisory_lock(1)`); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if _, err := holder.Exec(t.Context(), `SELECT pg_advisory_unlock(1)`); err != nil {
			t.Fatal(err)
		}
	}
}

// waitingCommits is how many backends wait for slowCommit.
const waitingCommits = `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event = 'advisory'`

// A commit whose reply does not come in time is left alone: to cancel it would
// also end its wait for a standby, and what it wrote would be seen on the
// primary only.
func TestCommitIsAbandonedNotCancelled(t *testing.T) {
	t.Parallel()
	for _, mode := range execModes {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			config, err := pgxpool.ParseConfig(pgtest.URL(t))
			if err != nil {
				t.Fatal(err)
			}
			observer := poolWith(t, config.Copy())
			if _, err := observer.Exec(t.Context(), txSchema); err != nil {
				t.Fatal(err)
			}
			let := slowCommit(t, observer, "notes")
			config.ConnConfig.DefaultQueryExecMode = mode
			pool, err := pgxpool.NewWithConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			var backend int
			err = txhelper.Run(t.Context(), pool, &txhelper.Options{CommitTimeout: 100 * time.Millisecond}, func(ctx context.Context, tx pgx.Tx) error {
				if err := tx.QueryRow(ctx, "SELECT pg_backend_pid()").Scan(&backend); err != nil {
					return err
				}
				return write(ctx, tx, "a")
			})
			var ambiguous *txhelper.AmbiguousCommitError
			if !errors.As(err, &ambiguous) {
				t.Errorf("error is %v, want AmbiguousCommitError", err)
			}
			closed := make(chan struct{})
			go func() { pool.Close(); close(closed) }()
			select {
			case <-closed:
			case <-time.After(30 * time.Second):
				t.Fatal("the pool waits for the commit that was abandoned")
			}
			gone := func() bool {
				return count(t, observer, "SELECT count(*) FROM pg_stat_activity WHERE pid = $1", backend) == 0
			}
			waitFor(t, func() bool { return count(t, observer, waitingCommits) == 1 || gone() })
			let()
			waitFor(t, gone)
			wantNotes(t, observer, 1)
		})
	}
}

// The last flight runs in a goroutine, which nobody could recover from.
func TestCommitEndsAsItsCallbackDoes(t *testing.T) {
	t.Parallel()
	commit := func(t *testing.T, pool *pgxpool.Pool, callback func()) error {
		t.Helper()
		transaction, err := txhelper.Open(t.Context(), pool, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := write(t.Context(), transaction.Tx(), "a"); err != nil {
			t.Fatal(err)
		}
		return transaction.Commit(t.Context(), func(batch *pgx.Batch) {
			batch.Queue("SELECT 1/0").Exec(func(pgconn.CommandTag) error { return nil })
			batch.QueuedQueries[0].Fn = func(pgx.BatchResults) error {
				callback()
				return nil
			}
		})
	}
	t.Run("in a panic", func(t *testing.T) {
		t.Parallel()
		pool := txPool(t)
		value := new(int)
		func() {
			defer func() {
				if recovered := recover(); recovered != any(value) {
					t.Errorf("recovered %v, want the callback's value", recovered)
				}
			}()
			err := commit(t, pool, func() { panic(value) })
			t.Errorf("Commit returned %v from a panic", err)
		}()
		wantNotes(t, pool, 0)
	})
	t.Run("in a Goexit", func(t *testing.T) {
		t.Parallel()
		pool := txPool(t)
		var running sync.WaitGroup
		running.Go(func() {
			err := commit(t, pool, runtime.Goexit)
			t.Errorf("Commit returned %v from a Goexit", err)
		})
		running.Wait()
		wantNotes(t, pool, 0)
	})
}

func TestOpenRefusesQueriesOfItsCaller(t *testing.T) {
	t.Parallel()
	counter := &queryCounter{}
	config, err := pgxpool.ParseConfig(pgtest.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	config.ConnConfig.Tracer = counter
	pool := poolWith(t, config)
	for name, options := range map[string]pgx.TxOptions{
		"BeginQuery":  {BeginQuery: "begin"},
		"CommitQuery": {CommitQuery: "rollback"},
	} {
		flights, _ := counter.count(func() {
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

// The server ends the connection while it commits: it says FATAL, which does
// not say that nothing was committed.
func TestRunOnAConnectionEndedInCommit(t *testing.T) {
	t.Parallel()
	pool := txPool(t)
	if _, err := pool.Exec(t.Context(), `
		CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS
			'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(10); RETURN NULL; END';
		CREATE CONSTRAINT TRIGGER die AFTER INSERT ON notes DEFERRABLE INITIALLY DEFERRED
			FOR EACH ROW EXECUTE FUNCTION die()`); err != nil {
		t.Fatal(err)
	}
	err := txhelper.Run(t.Context(), pool, nil, func(ctx context.Context, tx pgx.Tx) error {
		return write(ctx, tx, "a")
	})
	var ambiguous *txhelper.AmbiguousCommitError
	if !errors.As(err, &ambiguous) {
		t.Errorf("error is %v, want AmbiguousCommitError", err)
	}
	wantPgError(t, err, "57P01", "")
	wantNotes(t, pool, 0)
}

// Before COMMIT was sent, a lost connection leaves no doubt.
func TestRunOnAConnectionEndedBeforeCommit(t *testing.T) {
	t.Parallel()
	pool := txPool(t)
	err := txhelper.Run(t.Context(), pool, nil, func(ctx context.Context, tx pgx.Tx) error {
		if err := write(ctx, tx, "a"); err != nil {
			return err
		}
		_, _ = tx.Exec(ctx, "SELECT pg_terminate_backend(pg_backend_pid())")
		return nil
	})
	var ambiguous *txhelper.AmbiguousCommitError
	if err == nil || errors.As(err, &ambiguous) {
		t.Errorf("error is %v, want a definite one", err)
	}
	wantNotes(t, pool, 0)
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
	wantPgError(t, err, "23505", "notes_note_once")
	if value != "" {
		t.Errorf("RunValue returns %q with an error, want the zero value", value)
	}
	wantNotes(t, pool, 1)
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
		if notes := count(t, pool, "SELECT count(*) FROM notes"); notes != 0 {
			t.Errorf("%d notes are committed before the outer transaction is", notes)
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantNotes(t, pool, 1)
	})
}

// Two statements as sqlc writes them.
func addNote(ctx context.Context, q txhelper.Querier, note string) (string, error) {
	var added string
	err := q.QueryRow(ctx, "INSERT INTO notes VALUES ($1) RETURNING note || '!'", note).Scan(&added)
	return added, err
}

func deleteNotes(ctx context.Context, q txhelper.Querier, like string) (int64, error) {
	tag, err := q.Exec(ctx, "DELETE FROM notes WHERE note LIKE $1", like)
	return tag.RowsAffected(), err
}

func listNotes(ctx context.Context, q txhelper.Querier) ([]string, error) {
	rows, err := q.Query(ctx, "SELECT note FROM notes ORDER BY note")
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

type note struct{ Text string }

// lastNote is what sqlc generates for a query of one row.
func lastNote(ctx context.Context, q txhelper.Querier, like ...string) (*note, error) {
	pattern := "%"
	if len(like) > 0 {
		pattern = like[0]
	}
	row := q.QueryRow(ctx, "SELECT note FROM notes WHERE note LIKE $1 ORDER BY note DESC LIMIT 1", pattern)
	var found note
	err := row.Scan(&found.Text)
	return &found, err
}

func TestQueue(t *testing.T) {
	t.Parallel()
	for _, mode := range execModes {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			config, err := pgxpool.ParseConfig(pgtest.URL(t))
			if err != nil {
				t.Fatal(err)
			}
			counter := &queryCounter{}
			config.ConnConfig.Tracer = counter
			config.ConnConfig.DefaultQueryExecMode = mode
			pool := poolWith(t, config)
			if _, err := pool.Exec(t.Context(), txSchema+`; INSERT INTO notes VALUES ('old 1'), ('old 2')`, pgx.QueryExecModeSimpleProtocol); err != nil {
				t.Fatal(err)
			}
			var deleted int64
			var added string
			var notes []string
			batch := &pgx.Batch{}
			txhelper.QueueStep(batch, func(q txhelper.Querier) (err error) {
				deleted, err = deleteNotes(t.Context(), q, "old %")
				return err
			})
			txhelper.QueueStep(batch, func(q txhelper.Querier) (err error) {
				added, err = addNote(t.Context(), q, "new")
				return err
			})
			txhelper.QueueStep(batch, func(q txhelper.Querier) (err error) {
				notes, err = listNotes(t.Context(), q)
				return err
			})
			flights, statements := counter.count(func() {
				if err := pool.SendBatch(t.Context(), batch).Close(); err != nil {
					t.Error(err)
				}
			})
			if flights != 1 || len(statements) != 3 {
				t.Errorf("%d flights of %q, want one of three statements", flights, statements)
			}
			if deleted != 2 || added != "new!" || fmt.Sprint(notes) != "[new]" {
				t.Errorf("results are %d, %q, %v, want 2, new!, [new]", deleted, added, notes)
			}

			batch = &pgx.Batch{}
			txhelper.QueueStep(batch, func(q txhelper.Querier) error {
				_, err := q.Exec(t.Context(), "SELECT 1/0")
				return err
			})
			wantPgError(t, pool.SendBatch(t.Context(), batch).Close(), "22012", "")
			wantNotes(t, pool, 1)

			// A row that is filled when the results are read.
			batch = &pgx.Batch{}
			last, _ := lastNote(t.Context(), txhelper.Queue(batch, nil))
			var met error
			_, _ = lastNote(t.Context(), txhelper.Queue(batch, func(err error) error {
				met = err
				return nil
			}), "none")
			_, _ = txhelper.Queue(batch, nil).Exec(t.Context(), "DELETE FROM notes")
			if last.Text != "" {
				t.Errorf("a note before the batch was sent: %q", last.Text)
			}
			if err := pool.SendBatch(t.Context(), batch).Close(); err != nil {
				t.Error(err)
			}
			if last.Text != "new" || !errors.Is(met, pgx.ErrNoRows) {
				t.Errorf("last note is %q, the missing one %v, want new and no rows", last.Text, met)
			}
			wantNotes(t, pool, 0)
		})
	}
}

package txhelper_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/internal/pgtest/bench"
	"github.com/samecommit/samecommit/txhelper"
)

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
	if left := bench.Count(t, pool, "SELECT count(*) FROM doctors WHERE on_call"); left != 1 {
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
			if on := bench.Count(t, pool, "SELECT count(*) FROM doctors WHERE on_call"); on != 2 {
				t.Errorf("%d doctors on call, want 2: the second attempt did not do its work", on)
			}
		})
	}
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
		bench.WantPgError(t, err, "40001", "")
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
		bench.WantPgError(t, err, "40001", "")
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

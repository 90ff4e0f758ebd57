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
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
	"github.com/samecommit/samecommit/txhelper"
)

func TestRunOnALostCommitReply(t *testing.T) {
	t.Parallel()
	for _, mode := range bench.ExecModes {
		for _, committed := range []bool{true, false} {
			t.Run(fmt.Sprintf("%v/committed=%t", mode, committed), func(t *testing.T) {
				t.Parallel()
				url := pgtest.URL(t)
				config, err := pgxpool.ParseConfig(url)
				if err != nil {
					t.Fatal(err)
				}
				observer := bench.PoolWith(t, config.Copy())
				if _, err := observer.Exec(t.Context(), txSchema); err != nil {
					t.Fatal(err)
				}
				config.ConnConfig.DefaultQueryExecMode = mode
				proxy := &bench.CommitProxy{AfterCommit: committed}
				pool := bench.PoolWith(t, proxy.Through(t, config))

				attempts := 0
				var backend int
				err = txhelper.Run(t.Context(), pool, nil, func(ctx context.Context, tx pgx.Tx) error {
					attempts++
					proxy.Armed.Store(true)
					if err := tx.QueryRow(ctx, "SELECT pg_backend_pid()").Scan(&backend); err != nil {
						return err
					}
					return write(ctx, tx, "a")
				})
				var ambiguous *txhelper.AmbiguousCommitError
				if !errors.As(err, &ambiguous) || attempts != 1 {
					t.Errorf("error is %v after %d attempts, want AmbiguousCommitError after 1", err, attempts)
				}
				if cuts := proxy.Cuts.Load(); cuts != 1 {
					t.Errorf("%d connections were cut, want 1", cuts)
				}
				// Only then is it decided.
				bench.WaitFor(t, func() bool {
					return bench.Count(t, observer, "SELECT count(*) FROM pg_stat_activity WHERE pid = $1", backend) == 0
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

// A commit whose reply does not come in time is left alone: to cancel it would
// also end its wait for a standby, and what it wrote would be seen on the
// primary only.
func TestCommitIsAbandonedNotCancelled(t *testing.T) {
	t.Parallel()
	for _, mode := range bench.ExecModes {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			config, err := pgxpool.ParseConfig(pgtest.URL(t))
			if err != nil {
				t.Fatal(err)
			}
			observer := bench.PoolWith(t, config.Copy())
			if _, err := observer.Exec(t.Context(), txSchema); err != nil {
				t.Fatal(err)
			}
			let := bench.SlowCommit(t, observer, "notes")
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
				return bench.Count(t, observer, "SELECT count(*) FROM pg_stat_activity WHERE pid = $1", backend) == 0
			}
			bench.WaitFor(t, func() bool { return bench.Count(t, observer, bench.WaitingCommits) == 1 || gone() })
			let()
			bench.WaitFor(t, gone)
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
	bench.WantPgError(t, err, "57P01", "")
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

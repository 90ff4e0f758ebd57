package sqlstore_test

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

func TestCancelInsideDo(t *testing.T) {
	t.Parallel()
	b := newSingleBench(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	err := b.do(ctx, "returned", func(ctx context.Context, _ *sql.Tx) error {
		cancel()
		return ctx.Err()
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	b.want(t, "returned", 0, false)
	b.wantUsable(t)

	// A statement that is cut short takes the connection with it.
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	interrupted := make(chan error, 1)
	go func() {
		interrupted <- b.do(ctx, "in a statement", statement(`SELECT pg_sleep(600)`))
	}()
	bench.WaitFor(t, func() bool {
		return bench.Count(t, b.pool, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'`) == 1
	})
	cancel()
	if err := <-interrupted; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	b.want(t, "in a statement", 0, false)
	b.wantUsable(t)
}

// database/sql rolls back a transaction whose context has ended, from a goroutine of its
// own. Not that of a function, which may go on to its end and be recorded.
func TestCancelDoesNotRollBackBehindTheFunction(t *testing.T) {
	t.Parallel()
	b := newSingleBench(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	err := b.do(ctx, "k", func(ctx context.Context, tx *sql.Tx) error {
		cancel()
		// In each of these the goroutine has time for it.
		for range 200 {
			if err := statement("SELECT 1")(context.WithoutCancel(ctx), tx); err != nil {
				return err
			}
		}
		return bench.EffectOnSQL(context.WithoutCancel(ctx), tx, "k")
	})
	if err != nil {
		t.Error(err)
	}
	b.want(t, "k", 2, true)
	b.wantUsable(t)
}

func TestKilledBackendInsideDo(t *testing.T) {
	t.Parallel()
	b := newSingleBench(t, nil)
	for name, after := range map[string]func(context.Context, *sql.Tx) error{ //nolint:paralleltest // One connection for all.
		"nobody asks":     func(context.Context, *sql.Tx) error { return nil },
		"a statement":     statement("SELECT 1"),
		"ignored":         func(ctx context.Context, tx *sql.Tx) error { _ = statement("SELECT 1")(ctx, tx); return nil },
		"another error":   func(context.Context, *sql.Tx) error { return errors.New("other") },
		"rows left open":  func(ctx context.Context, tx *sql.Tx) error { _, _ = tx.QueryContext(ctx, `SELECT 1`); return nil }, //nolint:rowserrcheck,sqlclosecheck // On purpose.
		"a commit, wrong": func(_ context.Context, tx *sql.Tx) error { _ = tx.Commit(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			err := b.do(t.Context(), name, func(ctx context.Context, tx *sql.Tx) error {
				return errors.Join(b.kill(ctx, tx), after(ctx, tx))
			})
			if err == nil || errors.Is(err, idempotency.ErrOutcomeUnknown) {
				t.Errorf("got %v, want an error of an outcome that is known", err)
			}
			b.want(t, name, 0, false)
			b.wantUsable(t)
		})
	}
}

// What cannot be used again is no place in the pool.
func TestBrokenConnectionLeavesThePool(t *testing.T) {
	t.Parallel()
	b := newSingleBench(t, nil)
	if err := b.store.Transact(t.Context(), b.kill); err == nil {
		t.Error("the killed transaction was committed")
	}
	if open := b.db.Stats().OpenConnections; open != 0 {
		t.Errorf("%d connections are open", open)
	}
	b.wantUsable(t)
}

// A connection that died in the pool is replaced before anything has run.
func TestDeadConnectionInThePool(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	const connections = 3
	b.db.SetMaxIdleConns(connections)
	b.db.SetMaxOpenConns(connections)
	lent := make([]*sql.Conn, connections)
	for i := range lent {
		var err error
		if lent[i], err = b.db.Conn(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, conn := range lent {
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if killed := bench.Count(t, b.pool, `SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity
		WHERE datname = current_database() AND pid <> pg_backend_pid()`); killed < connections {
		t.Fatalf("%d connections killed", killed)
	}
	runs := 0
	if err := b.do(t.Context(), "k", func(context.Context, *sql.Tx) error { runs++; return nil }); err != nil || runs != 1 {
		t.Errorf("%v after %d runs, want 1", err, runs)
	}
	b.want(t, "k", 1, true)
}

func TestDBClosedInsideDo(t *testing.T) {
	t.Parallel()
	b := newSingleBench(t, nil)
	if err := b.do(t.Context(), "k", func(ctx context.Context, tx *sql.Tx) error {
		return errors.Join(b.db.Close(), bench.EffectOnSQL(ctx, tx, "k"))
	}); err != nil {
		t.Error(err)
	}
	if count := bench.CountEffects(t, b.pool, "k"); count != 2 {
		t.Errorf("%d effects, want those of the call", count)
	}
	if err := b.do(t.Context(), "after", func(context.Context, *sql.Tx) error { return nil }); err == nil || errors.Is(err, idempotency.ErrOutcomeUnknown) {
		t.Errorf("after it: %v, want an error", err)
	}
	if stats := b.db.Stats(); stats.OpenConnections != 0 {
		t.Errorf("%d connections are open", stats.OpenConnections)
	}
}

// A hook of the caller's panics where database/sql would have let it: under the call.
func TestPanicWhileConnecting(t *testing.T) {
	t.Parallel()
	pool := pgtest.DB(t)
	var calls atomic.Int32
	hook := stdlib.OptionBeforeConnect(func(context.Context, *pgx.ConnConfig) error {
		if calls.Add(1) == 1 {
			panic("test")
		}
		return nil
	})
	b := newBenchOn(t, pool, closed(t, sql.OpenDB(stdlib.GetConnector(*pool.Config().ConnConfig, hook))), nil)
	nothing := func(context.Context, *sql.Tx) error { return nil }
	func() {
		defer func() {
			if recovered := recover(); recovered != any("test") {
				t.Errorf("recovered %v", recovered)
			}
		}()
		t.Errorf("Do returned %v", b.do(t.Context(), "k", nothing))
	}()
	b.want(t, "k", 0, false)
	if err := b.do(t.Context(), "k", nothing); err != nil {
		t.Error(err)
	}
	b.want(t, "k", 1, true)
}

// A pool of pgx below that of database/sql gets its connections back too.
func TestPoolOfPgxGetsItsConnectionsBack(t *testing.T) {
	t.Parallel()
	pool := pgtest.DB(t)
	db := stdlib.OpenDBFromPool(pool)
	b := newBenchOn(t, pool, closed(t, db), nil)
	for name, end := range map[string]func(context.Context, *sql.Tx) error{
		"done": func(context.Context, *sql.Tx) error { return nil }, "killed": b.kill, "doomed": statement("ROLLBACK"),
	} {
		_ = b.do(t.Context(), name, end)
	}
	bench.WaitFor(t, func() bool { return pool.Stat().AcquiredConns() == 0 })
	b.wantUsable(t)
}

// Connections that are always too old, callers that go away and a pool of one: whatever
// happens to a call, its key and its effect are one.
func TestStorm(t *testing.T) {
	t.Parallel()
	for _, connections := range []int{1, 3} {
		t.Run(map[int]string{1: "one connection", 3: "three"}[connections], func(t *testing.T) {
			t.Parallel()
			b := newBench(t, nil)
			b.db.SetMaxOpenConns(connections)
			b.db.SetConnMaxLifetime(20 * time.Millisecond)
			workers, calls := 8, 60
			if testing.Short() {
				calls = 15
			}
			var group sync.WaitGroup
			for worker := range workers {
				group.Go(func() {
					for call := range calls {
						name := string(rune('a'+worker)) + "/" + time.Duration(call).String()
						b.storm(t, name, call)
					}
				})
			}
			group.Wait()
			b.wantUsable(t)
		})
	}
}

// storm calls under a key until it has its answer.
func (b *sqlBench) storm(t testing.TB, name string, call int) {
	t.Helper()
	for try := range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		upset := try == 0
		var err error
		if call%2 == 0 {
			err = b.do(ctx, name, func(ctx context.Context, tx *sql.Tx) error { return upsets(ctx, tx, cancel, upset, call/2) })
		} else {
			err = b.doTx(ctx, name, func(ctx context.Context, tx *sql.Tx) error { return upsets(ctx, tx, cancel, upset, call/2) })
		}
		cancel()
		if err == nil {
			break
		}
	}
	b.want(t, name, 1, true)
}

var errBusiness = errors.New("business")

func upsets(ctx context.Context, tx *sql.Tx, cancel func(), upset bool, call int) error {
	if !upset {
		return nil
	}
	switch call % 6 {
	case 0:
		cancel()
		return bench.EffectOnSQL(ctx, tx, "never")
	case 1:
		cancel()
		return ctx.Err()
	case 2:
		return errBusiness
	case 3:
		_ = tx.Rollback()
		return statement("SELECT 1")(ctx, tx)
	case 4:
		_ = statement("SELECT 1/0")(ctx, tx)
	}
	return nil
}

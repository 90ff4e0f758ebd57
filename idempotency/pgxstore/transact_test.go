package pgxstore_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
	"github.com/samecommit/samecommit/txhelper"
)

func TestTransactRunsAgain(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	runs := 0
	err := b.Client.Transact(t.Context(), func(ctx context.Context, tx pgx.Tx) error {
		if runs++; runs == 1 {
			_ = raise(ctx, tx, "40001") // also where the function ignores it
		}
		return bench.Effect(ctx, tx, "k")
	})
	if err != nil || runs != 2 || b.Effects(t, "k") != 1 {
		t.Errorf("%v, %d runs, %d effects; want 2 runs and 1 effect", err, runs, b.Effects(t, "k"))
	}

	runs = 0
	err = b.Client.Transact(t.Context(), func(ctx context.Context, tx pgx.Tx) error {
		runs++
		return raise(ctx, tx, "40001")
	})
	if !errors.Is(err, idempotency.ErrSerializationFailure) || runs != txhelper.DefaultMaxAttempts {
		t.Errorf("%v after %d runs; want ErrSerializationFailure after %d", err, runs, txhelper.DefaultMaxAttempts)
	}
}

// Without a key nobody can find out what became of the commit.
func TestTransactThatLosesTheReplyToItsCommit(t *testing.T) {
	t.Parallel()
	for name, committed := range map[string]bool{"committed": true, "not committed": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy := &bench.CommitProxy{AfterCommit: committed}
			b := proxiedBench(t, proxy, nil)
			runs := 0
			proxy.Armed.Store(true)
			err := b.Client.Transact(t.Context(), func(ctx context.Context, tx pgx.Tx) error {
				runs++
				return bench.Effect(ctx, tx, "k")
			})
			if !errors.Is(err, idempotency.ErrOutcomeUnknown) || runs != 1 {
				t.Errorf("%v after %d runs; want ErrOutcomeUnknown after 1", err, runs)
			}
			want := 0
			if committed {
				want = 1
			}
			bench.WaitFor(t, func() bool { return b.Effects(t, "k") == want })
		})
	}
}

func TestTransactWaitsForAServer(t *testing.T) {
	t.Parallel()
	config := pgtest.Config(t)
	observer := bench.New(t, bench.PoolWith(t, config.Copy()), nil, nil)
	o := &outage{}
	o.on.Store(true)
	b := bench.Open(t, bench.PoolWith(t, o.through(config)), &pgxstore.Config{MaxAttempts: 1, ConnectTimeout: time.Minute}, nil)
	done := make(chan error, 1)
	go func() {
		done <- b.Client.Transact(t.Context(), func(ctx context.Context, tx pgx.Tx) error { return bench.Effect(ctx, tx, "k") })
	}()
	bench.WaitFor(t, func() bool { return o.dials.Load() > 4 || len(done) == 1 })
	o.on.Store(false)
	if err := <-done; err != nil || observer.Effects(t, "k") != 1 {
		t.Errorf("%v, %d effects; want a run", err, observer.Effects(t, "k"))
	}

	o.on.Store(true)
	b = bench.Open(t, bench.PoolWith(t, o.through(pgtest.Config(t))), &pgxstore.Config{ConnectTimeout: time.Millisecond}, nil)
	err := b.Client.Transact(t.Context(), func(context.Context, pgx.Tx) error {
		t.Error("the function ran without a server")
		return nil
	})
	if !errors.Is(err, idempotency.ErrUnavailable) {
		t.Errorf("%v, want ErrUnavailable", err)
	}
}

func TestTransactThatIsIdleForTooLong(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), &pgxstore.Config{IdleTimeout: 50 * time.Millisecond}, nil)
	runs := 0
	err := b.Client.Transact(t.Context(), func(ctx context.Context, tx pgx.Tx) error {
		runs++
		if err := bench.Effect(ctx, tx, "k"); err != nil {
			return err
		}
		pid := tx.Conn().PgConn().PID()
		bench.WaitFor(t, func() bool { //nolint:contextcheck // The context of the test, by another connection.
			return bench.Count(t, b.Pool, `SELECT count(*) FROM pg_stat_activity WHERE pid = $1`, pid) == 0
		})
		return nil
	})
	if !errors.Is(err, pgxstore.ErrIdleTimeout) || runs != 1 || b.Effects(t, "k") != 0 {
		t.Errorf("%v, %d runs, %d effects; want ErrIdleTimeout, 1 run and no effect", err, runs, b.Effects(t, "k"))
	}
}

func TestTransactThatCannotCommit(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		spoil func(ctx context.Context, tx pgx.Tx) error
		want  error
	}{
		"an error that was ignored": {func(ctx context.Context, tx pgx.Tx) error { _ = raise(ctx, tx, "P0001"); return nil }, idempotency.ErrTxAborted},
		"rows that are still open": {func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Query(ctx, `SELECT generate_series(1, 2)`) //nolint:sqlclosecheck,rowserrcheck // The mistake.
			return err
		}, idempotency.ErrTxAborted},
		"a ROLLBACK as SQL": {func(ctx context.Context, tx pgx.Tx) error { _, err := tx.Exec(ctx, `ROLLBACK`); return err }, idempotency.ErrOwned},
		"a commit in a savepoint of txhelper's": {func(ctx context.Context, tx pgx.Tx) error {
			return txhelper.Savepoint(ctx, tx, nil, func(ctx context.Context, tx pgx.Tx) error { return tx.Commit(ctx) })
		}, idempotency.ErrOwned},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := bench.New(t, pgtest.DB(t), nil, nil)
			runs := 0
			err := b.Client.Transact(t.Context(), func(ctx context.Context, tx pgx.Tx) error {
				runs++
				return errors.Join(bench.Effect(ctx, tx, "k"), test.spoil(ctx, tx))
			})
			if !errors.Is(err, test.want) || runs != 1 || b.Effects(t, "k") != 0 {
				t.Errorf("%v, %d runs, %d effects; want %v, 1 run and no effect", err, runs, b.Effects(t, "k"), test.want)
			}
		})
	}
}

// What is lost before COMMIT was sent has left nothing, and is run once more.
func TestTransactThatLosesItsConnection(t *testing.T) {
	t.Parallel()
	for name, losses := range map[string]int{"once": 1, "each time": 2} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := bench.New(t, pgtest.DB(t), nil, nil)
			runs := 0
			err := b.Client.Transact(t.Context(), func(ctx context.Context, tx pgx.Tx) error {
				runs++
				if err := bench.Effect(ctx, tx, "k"); err != nil || runs > losses {
					return err
				}
				// The function ignores what its last statement met.
				err := tx.Conn().PgConn().Conn().Close()
				_, _ = tx.Exec(ctx, `SELECT`)
				return err
			})
			if losses == 1 && (err != nil || runs != 2 || b.Effects(t, "k") != 1) {
				t.Errorf("%v, %d runs, %d effects; want 2 runs and 1 effect", err, runs, b.Effects(t, "k"))
			}
			if losses == 2 && (!errors.Is(err, idempotency.ErrUnavailable) || errors.Is(err, idempotency.ErrOutcomeUnknown) || runs != 2 || b.Effects(t, "k") != 0) {
				t.Errorf("%v, %d runs, %d effects; want ErrUnavailable, 2 runs and no effect", err, runs, b.Effects(t, "k"))
			}
		})
	}
}

func TestTransactHasTheSettings(t *testing.T) {
	t.Parallel()
	errNoTenant := errors.New("no tenant")
	type tenant struct{}
	b := bench.New(t, pgtest.DB(t), &pgxstore.Config{Settings: func(ctx context.Context) (map[string]string, error) {
		name, ok := ctx.Value(tenant{}).(string)
		if !ok {
			return nil, errNoTenant
		}
		return map[string]string{"app.tenant": name}, nil
	}}, nil)
	var seen string
	err := b.Client.Transact(context.WithValue(t.Context(), tenant{}, "acme"), func(ctx context.Context, tx pgx.Tx) error {
		return tx.QueryRow(ctx, `SELECT current_setting('app.tenant')`).Scan(&seen)
	})
	if err != nil || seen != "acme" {
		t.Errorf("%v, tenant %q; want acme", err, seen)
	}
	err = b.Client.Transact(t.Context(), func(context.Context, pgx.Tx) error {
		t.Error("the function ran without its settings")
		return nil
	})
	if !errors.Is(err, errNoTenant) {
		t.Errorf("%v, want the error of Settings", err)
	}
}

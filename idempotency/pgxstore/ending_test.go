package pgxstore_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
	"github.com/samecommit/samecommit/txhelper"
)

// ending is a way to end the transaction that a function was given.
type ending struct {
	end func(context.Context, pgx.Tx) error
	// commits says that the effects before it are committed, by SQL that
	// nobody can take back; the call still says that it went wrong.
	commits bool
}

func endings(t *testing.T, b *bench.Bench) map[string]ending {
	t.Helper()
	raw := func(statements ...string) func(context.Context, pgx.Tx) error {
		return func(ctx context.Context, tx pgx.Tx) error {
			for _, sql := range statements {
				if _, err := tx.Exec(ctx, sql); err != nil {
					return err
				}
			}
			return nil
		}
	}
	return map[string]ending{
		"Commit returned":             {end: func(ctx context.Context, tx pgx.Tx) error { return tx.Commit(ctx) }},
		"Commit ignored":              {end: func(ctx context.Context, tx pgx.Tx) error { _ = tx.Commit(ctx); return nil }},
		"Rollback ignored":            {end: func(ctx context.Context, tx pgx.Tx) error { _ = tx.Rollback(ctx); return nil }},
		"Commit, then another error":  {end: func(ctx context.Context, tx pgx.Tx) error { _ = tx.Commit(ctx); return errors.New("other") }},
		"raw ROLLBACK":                {end: raw("ROLLBACK")},
		"raw ROLLBACK AND CHAIN":      {end: raw("ROLLBACK AND CHAIN")},
		"raw ROLLBACK; BEGIN":         {end: raw("ROLLBACK", "BEGIN")},
		"raw COMMIT":                  {end: raw("COMMIT"), commits: true},
		"raw COMMIT AND CHAIN":        {end: raw("COMMIT AND CHAIN"), commits: true},
		"raw COMMIT; BEGIN":           {end: raw("COMMIT", "BEGIN"), commits: true},
		"raw PREPARE TRANSACTION":     {end: raw("PREPARE TRANSACTION " + prepared(t, b))},
		"raw COMMIT in one statement": {end: raw("COMMIT; BEGIN; SELECT 1"), commits: true},
		"COMMIT through a nested Exec": {end: func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Conn().Exec(ctx, "COMMIT AND CHAIN")
			return err
		}, commits: true},
	}
}

// None of them may commit an effect without its key, or a key without its effect.
func TestEndingTheTransactionInsideDo(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	for name, test := range endings(t, b) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := idempotency.Do(t.Context(), b.Client, bench.Params(name), func(ctx context.Context, tx pgx.Tx) (string, error) {
				if err := bench.Effect(ctx, tx, name); err != nil {
					return "", err
				}
				return name, test.end(ctx, tx)
			})
			if err == nil {
				t.Error("Do succeeded")
			}
			if !errors.Is(err, idempotency.ErrOwned) {
				t.Errorf("got %v, want ErrOwned", err)
			}
			if _, err := b.Client.Get(t.Context(), bench.Params(name).Key); !errors.Is(err, idempotency.ErrNotFound) {
				t.Errorf("Get: %v, want ErrNotFound: no key may be recorded", err)
			}
			if n := b.Effects(t, name); (n == 1) != test.commits {
				t.Errorf("%d effects, committed by raw SQL: %t", n, test.commits)
			}
			if held := b.Pool.Stat().AcquiredConns(); held > 8 {
				t.Errorf("%d connections held", held)
			}
		})
	}
}

func TestEndingTheTransactionInsideDoExternal(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	ways := endings(t, b)
	delete(ways, "raw PREPARE TRANSACTION") // which keeps the row of the key locked until somebody ends it
	for name, test := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			call := func(end func(context.Context, pgx.Tx) error) error {
				_, err := idempotency.DoExternal(t.Context(), b.Client, bench.Params(name), func(ctx context.Context, lease *idempotency.Lease) (string, error) {
					return idempotency.Step(ctx, lease, "charge", idempotency.NoFingerprint, func(context.Context, idempotency.StepCall) (string, error) { return "receipt", nil })
				}, func(ctx context.Context, tx pgx.Tx, receipt string) (string, error) {
					return receipt, errors.Join(bench.Effect(ctx, tx, name), end(ctx, tx))
				})
				return err
			}
			if err := call(test.end); !errors.Is(err, idempotency.ErrOwned) {
				t.Errorf("got %v, want ErrOwned", err)
			}
			record, err := b.Client.Get(t.Context(), bench.Params(name).Key)
			if err != nil || !record.Suspended() || len(record.Steps) != 1 {
				t.Errorf("%+v, %v; want a suspended record with the charge", record, err)
			}
			if n := b.Effects(t, name); (n == 1) != test.commits {
				t.Errorf("%d effects, committed by raw SQL: %t", n, test.commits)
			}
			if err := call(func(context.Context, pgx.Tx) error { return nil }); err != nil {
				t.Errorf("the next call: %v", err)
			}
		})
	}
}

func TestEndingTheTransactionInsideDoTx(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	for name, end := range map[string]func(context.Context, pgx.Tx) error{
		"Commit ignored":       func(ctx context.Context, tx pgx.Tx) error { _ = tx.Commit(ctx); return nil },
		"Rollback ignored":     func(ctx context.Context, tx pgx.Tx) error { _ = tx.Rollback(ctx); return nil },
		"raw COMMIT":           func(ctx context.Context, tx pgx.Tx) error { _, err := tx.Exec(ctx, "COMMIT"); return err },
		"raw COMMIT AND CHAIN": func(ctx context.Context, tx pgx.Tx) error { _, err := tx.Exec(ctx, "COMMIT AND CHAIN"); return err },
		"raw ROLLBACK":         func(ctx context.Context, tx pgx.Tx) error { _, err := tx.Exec(ctx, "ROLLBACK"); return err },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) error {
				_, err := idempotency.DoTx(t.Context(), b.Client, tx, bench.Params(name), func(ctx context.Context, tx pgx.Tx) (string, error) {
					return name, errors.Join(bench.Effect(ctx, tx, name), end(ctx, tx))
				})
				if err == nil {
					t.Error("DoTx succeeded")
				}
				return nil // a caller that ignores the error and commits
			})
			if err == nil && !strings.HasPrefix(name, "raw ROLLBACK") {
				t.Error("the caller's transaction committed")
			}
			if _, err := b.Client.Get(t.Context(), bench.Params(name).Key); !errors.Is(err, idempotency.ErrNotFound) || b.Effects(t, name) != 0 {
				t.Errorf("Get: %v, %d effects; want ErrNotFound and none", err, b.Effects(t, name))
			}
		})
	}
}

// The effect is committed and stays; the call must say so and must not record
// that it was rolled back.
func TestRawCommitBeforeAnError(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, finalConfig())
	errDeclined := errors.New("declined")
	for name, failure := range map[string]error{"error": errDeclined, "final error": idempotency.Final(errClosed)} {
		for _, sql := range []string{"COMMIT", "COMMIT AND CHAIN", "COMMIT; BEGIN"} {
			work := func(id string) func(ctx context.Context, tx pgx.Tx) (string, error) {
				return func(ctx context.Context, tx pgx.Tx) (string, error) {
					if err := bench.Effect(ctx, tx, id); err != nil {
						return "", err
					}
					if _, err := tx.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
						return "", err
					}
					return "", failure
				}
			}
			check := func(t *testing.T, id string, err error, recorded func(record *idempotency.Record, err error) bool) {
				t.Helper()
				if ended := errors.Is(err, idempotency.ErrOwned) && errors.Is(err, txhelper.ErrEnded); !ended && !errors.Is(err, errDeclined) {
					t.Errorf("got %v, want ErrOwned and ErrEnded", err)
				}
				if record, err := b.Client.Get(t.Context(), bench.Params(id).Key); recorded(record, err) {
					t.Errorf("Get: %+v, %v; want no answer", record, err)
				}
				if n := b.Effects(t, id); n != 1 {
					t.Errorf("%d effects, want the one that was committed", n)
				}
			}
			t.Run(name+" after "+sql, func(t *testing.T) {
				t.Parallel()
				_, err := idempotency.Do(t.Context(), b.Client, bench.Params(t.Name()), work(t.Name()))
				check(t, t.Name(), err, func(_ *idempotency.Record, err error) bool { return !errors.Is(err, idempotency.ErrNotFound) })
			})
			t.Run("DoExternal, "+name+" after "+sql, func(t *testing.T) {
				t.Parallel()
				_, err := idempotency.DoExternal(t.Context(), b.Client, bench.Params(t.Name()), func(ctx context.Context, lease *idempotency.Lease) (idempotency.None, error) {
					return idempotency.Step(ctx, lease, "charge", idempotency.NoFingerprint, func(context.Context, idempotency.StepCall) (idempotency.None, error) { return idempotency.None{}, nil })
				}, func(ctx context.Context, tx pgx.Tx, _ idempotency.None) (string, error) {
					return work(t.Name())(ctx, tx)
				})
				check(t, t.Name(), err, func(record *idempotency.Record, err error) bool {
					return err != nil || record.State != idempotency.InProgress
				})
			})
		}
	}
}

func TestGoexitAndPanicFreeTheKey(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	type reason struct{ why string }
	thrown := &reason{"test"}
	func() {
		defer func() {
			if recovered := recover(); recovered != any(thrown) {
				t.Errorf("recovered %v, want the very value", recovered)
			}
		}()
		_, _ = idempotency.Do(t.Context(), b.Client, bench.Params("k"), func(ctx context.Context, tx pgx.Tx) (string, error) {
			if err := bench.Effect(ctx, tx, "k"); err != nil {
				return "", err
			}
			panic(thrown)
		})
	}()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = idempotency.Do(t.Context(), b.Client, bench.Params("k"), func(ctx context.Context, tx pgx.Tx) (string, error) {
			_ = bench.Effect(ctx, tx, "k")
			runtime.Goexit()
			return "", nil
		})
	}()
	<-done
	p := bench.Params("k")
	p.Wait = idempotency.NoWait
	if result, err := idempotency.Do(t.Context(), b.Client, p, bench.Charge("k")); err != nil || result.Replayed || b.Effects(t, "k") != 1 {
		t.Errorf("%+v, %v, %d effects; want a first run", result, err, b.Effects(t, "k"))
	}
	if held := b.Pool.Stat().AcquiredConns(); held != 0 {
		t.Errorf("%d connections are still held", held)
	}
}

func TestCancelledCallerRollsBack(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := idempotency.Do(ctx, b.Client, bench.Params("k"), func(ctx context.Context, tx pgx.Tx) (string, error) {
		if err := bench.Effect(ctx, tx, "k"); err != nil {
			return "", err
		}
		cancel()
		return "", ctx.Err()
	})
	if !errors.Is(err, context.Canceled) || b.Effects(t, "k") != 0 {
		t.Errorf("got %v, %d effects; want context.Canceled and none", err, b.Effects(t, "k"))
	}

	// Once the work is done, cancellation does not make the commit ambiguous.
	ctx, cancel = context.WithCancel(t.Context())
	result, err := idempotency.Do(ctx, b.Client, bench.Params("k"), func(ctx context.Context, tx pgx.Tx) (string, error) {
		defer cancel()
		return "k", bench.Effect(ctx, tx, "k")
	})
	if err != nil || result.Replayed || b.Effects(t, "k") != 1 {
		t.Errorf("%+v, %v, %d effects; want the run to commit", result, err, b.Effects(t, "k"))
	}
}

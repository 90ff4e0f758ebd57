package pgxstore_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

func wantKeyError(t *testing.T, call string, err, want error, name string) {
	t.Helper()
	var keyErr *idempotency.KeyError
	if !errors.Is(err, want) || !errors.As(err, &keyErr) || keyErr.Key != bench.Params(name).Key {
		t.Errorf("%s: %v, want %v with the key", call, err, want)
	}
}

// mustNotRun is an operation that is not to be reached.
func mustNotRun(t *testing.T, name string) func(context.Context, pgx.Tx) (string, error) {
	t.Helper()
	return func(ctx context.Context, tx pgx.Tx) (string, error) {
		t.Error("the function ran")
		return name, bench.Effect(ctx, tx, name)
	}
}

func TestAbortedTransaction(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	calls := map[string]func(t *testing.T, tx pgx.Tx, claim *idempotency.Claim, name string) error{
		"Begin": func(t *testing.T, tx pgx.Tx, _ *idempotency.Claim, name string) error {
			t.Helper()
			_, err := b.Client.WithTx(tx).Begin(t.Context(), bench.Params(name))
			return err
		},
		"DoTx": func(t *testing.T, tx pgx.Tx, _ *idempotency.Claim, name string) error {
			t.Helper()
			_, err := idempotency.DoTx(t.Context(), b.Client, tx, bench.Params(name), mustNotRun(t, name))
			return err
		},
		"Complete": func(t *testing.T, tx pgx.Tx, claim *idempotency.Claim, _ string) error {
			t.Helper()
			_, err := b.Client.WithTx(tx).Complete(t.Context(), claim, bytesResponse("x"))
			return err
		},
		"Get": func(t *testing.T, tx pgx.Tx, _ *idempotency.Claim, name string) error {
			t.Helper()
			_, err := b.Client.WithTx(tx).Get(t.Context(), bench.Params(name).Key)
			return err
		},
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tx, err := b.Pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback(t.Context())
			claim := begin(t, b, tx, name)
			if err := bench.Effect(t.Context(), tx, name); err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec(t.Context(), `SELECT 1/0`); err == nil {
				t.Fatal("1/0 did not fail")
			}
			wantKeyError(t, name, call(t, tx, claim, name), idempotency.ErrTxAborted, name)
			if err := tx.Commit(t.Context()); !errors.Is(err, pgx.ErrTxCommitRollback) {
				t.Errorf("commit: %v, want ErrTxCommitRollback", err)
			}
			wantNothing(t, b, name)
			wantRun(t, b, name)
		})
	}
}

func TestEndedTransaction(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	raw := func(sql string) func(context.Context, pgx.Tx) error {
		return func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, sql)
			return err
		}
	}
	for name, end := range map[string]func(context.Context, pgx.Tx) error{
		"Commit":       func(ctx context.Context, tx pgx.Tx) error { return tx.Commit(ctx) },
		"Rollback":     func(ctx context.Context, tx pgx.Tx) error { return tx.Rollback(ctx) },
		"raw COMMIT":   raw("COMMIT"),
		"raw ROLLBACK": raw("ROLLBACK"),
	} {
		for _, expired := range []bool{false, true} {
			key := name
			if expired {
				key += " with an expired answer"
			}
			t.Run(key, func(t *testing.T) {
				t.Parallel()
				if expired {
					p := bench.Params(key)
					p.TTL = time.Microsecond
					if _, err := idempotency.Do(t.Context(), b.Client, p, bench.Charge("former")); err != nil {
						t.Fatal(err)
					}
				}
				tx, err := b.Pool.Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer tx.Rollback(t.Context())
				if err := end(t.Context(), tx); err != nil {
					t.Fatal(err)
				}
				wantEnded(t, b, tx, key)
				wantRun(t, b, key)
			})
		}
	}
}

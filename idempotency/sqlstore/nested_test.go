package sqlstore_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

// What works on the caller's own transaction works on one that is lent, and commits
// with it.
func TestNestedInsideDo(t *testing.T) {
	t.Parallel()
	b := newSingleBench(t, nil)
	for name, use := range map[string]func(context.Context, *sql.Tx) error{ //nolint:paralleltest // One connection for all.
		"WithTx": func(ctx context.Context, tx *sql.Tx) error {
			outcome, err := b.client.WithTx(tx).Begin(ctx, bench.Params("WithTx inside"))
			if err != nil {
				return err
			}
			_, err = b.client.WithTx(tx).Complete(ctx, outcome.Claim, &idempotency.Response{Type: idempotency.TypeNone})
			return errors.Join(err, bench.EffectOnSQL(ctx, tx, "WithTx inside"))
		},
		"DoTx": func(ctx context.Context, tx *sql.Tx) error {
			return b.doIn(ctx, tx, "DoTx inside", func(ctx context.Context, nested *sql.Tx) error {
				return statement("SELECT 1")(ctx, nested)
			})
		},
		"BeginMany": func(ctx context.Context, tx *sql.Tx) error { return b.many(ctx, tx, "BeginMany inside") },
		"Savepoint": func(ctx context.Context, tx *sql.Tx) error {
			err := b.store.Savepoint(ctx, tx, func(ctx context.Context, nested *sql.Tx) error {
				return errors.Join(bench.EffectOnSQL(ctx, nested, "deeper"), errBusiness)
			})
			if !errors.Is(err, errBusiness) {
				return err
			}
			return b.store.Savepoint(ctx, tx, func(ctx context.Context, nested *sql.Tx) error {
				return b.many(ctx, nested, "Savepoint inside")
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := b.do(t.Context(), name, use); err != nil {
				t.Fatal(err)
			}
			b.want(t, name, 1, true)
			b.want(t, name+" inside", 1, true)
			b.want(t, "deeper", 0, false)
			b.wantUsable(t)
		})
	}
}

// many begins keys in one batch, completes them and has an effect for each.
func (b *sqlBench) many(ctx context.Context, tx *sql.Tx, names ...string) error {
	params := make([]idempotency.Params, len(names))
	for i, name := range names {
		params[i] = bench.Params(name)
	}
	batch, err := b.client.WithTx(tx).BeginMany(ctx, params)
	if err != nil {
		return err
	}
	for i, item := range batch.Items {
		if err := bench.EffectOnSQL(ctx, tx, names[i]); item.Err != nil || err != nil {
			return errors.Join(item.Err, err)
		}
		item.Response = &idempotency.Response{Type: idempotency.TypeNone}
	}
	return batch.Complete(ctx)
}

// A nested transaction refuses its end as the outer one does, which then cannot be
// committed either where the refusal is passed on.
func TestNestedEndsAreRefused(t *testing.T) {
	t.Parallel()
	b := newSingleBench(t, nil)
	for name, end := range map[string]func(*sql.Tx) error{"Commit": (*sql.Tx).Commit, "Rollback": (*sql.Tx).Rollback} { //nolint:paralleltest // One connection for all.
		t.Run(name, func(t *testing.T) {
			err := b.do(t.Context(), name, func(ctx context.Context, tx *sql.Tx) error {
				return b.doIn(ctx, tx, name+" nested", func(_ context.Context, nested *sql.Tx) error { _ = end(nested); return nil })
			})
			if !errors.Is(err, idempotency.ErrOwned) {
				t.Errorf("got %v, want ErrOwned", err)
			}
			b.want(t, name, 0, false)
			b.want(t, name+" nested", 0, false)
			b.wantUsable(t)
		})
	}
}

func TestOwnKeyIsNested(t *testing.T) {
	t.Parallel()
	b := newSingleBench(t, nil)
	for name, again := range map[string]func(ctx context.Context, tx *sql.Tx, name string) error{ //nolint:paralleltest // One connection for all.
		"Begin": func(ctx context.Context, tx *sql.Tx, name string) error {
			_, err := b.client.WithTx(tx).Begin(ctx, bench.Params(name))
			return err
		},
		"DoTx": func(ctx context.Context, tx *sql.Tx, name string) error {
			return b.doIn(ctx, tx, name, func(context.Context, *sql.Tx) error { return nil })
		},
		"Begin behind a savepoint": func(ctx context.Context, tx *sql.Tx, name string) error {
			return b.store.Savepoint(ctx, tx, func(ctx context.Context, nested *sql.Tx) error {
				p := bench.Params(name)
				_, err := b.store.WithTx(nested).Begin(ctx, &idempotency.BeginParams{Key: p.Key, Fingerprint: p.Fingerprint, TTL: time.Hour})
				return err
			})
		},
		"Do": func(ctx context.Context, _ *sql.Tx, name string) error {
			return b.do(ctx, name, func(context.Context, *sql.Tx) error { return nil })
		},
	} {
		t.Run(name, func(t *testing.T) {
			err := b.do(t.Context(), name, func(ctx context.Context, tx *sql.Tx) error {
				if err := again(ctx, tx, name); !errors.Is(err, idempotency.ErrNested) {
					t.Errorf("got %v, want ErrNested", err)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			b.want(t, name, 1, true)
			b.wantUsable(t)
		})
	}
}

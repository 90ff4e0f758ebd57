package pgxstore_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

func TestNestedDoOnTheSameKey(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	_, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), func(ctx context.Context, tx pgx.Tx) (string, error) {
		_, err := idempotency.Do(ctx, b.Client, bench.Params("k"), bench.Charge("inner"))
		return "", err
	})
	if !errors.Is(err, idempotency.ErrNested) || b.Effects(t, "inner") != 0 {
		t.Errorf("got %v, want ErrNested", err)
	}
}

// Also on the operation's own transaction, where the lock is the session's own,
// and with a context that does not tell.
func TestNestedBeginOnTheOperationsTransaction(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	beginAgain := func(ctx context.Context, tx pgx.Tx) {
		if _, err := b.Client.WithTx(tx).Begin(ctx, bench.Params("k")); !errors.Is(err, idempotency.ErrNested) {
			t.Errorf("Begin: %v, want ErrNested", err)
		}
		if _, err := idempotency.DoTx(ctx, b.Client, tx, bench.Params("k"), bench.Charge("inner")); !errors.Is(err, idempotency.ErrNested) {
			t.Errorf("DoTx: %v, want ErrNested", err)
		}
		if err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
			_, err := b.Client.WithTx(tx).Begin(ctx, bench.Params("k"))
			return err
		}); !errors.Is(err, idempotency.ErrNested) {
			t.Errorf("Begin in a savepoint: %v, want ErrNested", err)
		}
	}
	otherContext := t.Context()
	runs := 0
	_, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), func(ctx context.Context, tx pgx.Tx) (string, error) {
		runs++
		beginAgain(ctx, tx)
		beginAgain(otherContext, tx) //nolint:contextcheck // The point of the test.
		_, err := idempotency.DoTx(ctx, b.Client, tx, bench.Params("another key"), bench.Charge("another key"))
		return "k", err
	})
	if err != nil || runs != 1 || b.Effects(t, "inner") != 0 || b.Effects(t, "another key") != 1 {
		t.Errorf("%v after %d runs; want one run, and another key's operation in it", err, runs)
	}
}

package storetest

import (
	"context"
	"errors"

	"github.com/samecommit/samecommit/idempotency"
)

func savepointCases[TTx any]() []testCase[*txSuite[TTx]] {
	return []testCase[*txSuite[TTx]]{
		{"savepoint keeps what its function did", (*txSuite[TTx]).savepointKeeps},
		{"savepoint is undone by an error that it returns", (*txSuite[TTx]).savepointUndone},
		{"savepoint undoes a completion and keeps the claim", (*txSuite[TTx]).savepointUncompletes},
		{"savepoint is undone by a panic that keeps its value", (*txSuite[TTx]).savepointPanic},
		{"savepoint nests", (*txSuite[TTx]).savepointNests},
		{"savepoint works inside run", (*txSuite[TTx]).savepointInRun},
		{"savepoint works inside transact", (*txSuite[TTx]).savepointInTransact},
		{"savepoint refuses a commit by its function", (*txSuite[TTx]).savepointCommits},
		{"savepoint refuses a rollback by its function", (*txSuite[TTx]).savepointRollsBack},
	}
}

// claimInside begins and completes a key and writes an effect in a nested
// transaction.
func (t *txSuite[TTx]) claimInside(ctx context.Context, tx TTx, id string) error {
	verbs := t.h.Store.WithTx(tx)
	outcome, err := verbs.Begin(ctx, t.txParams(id))
	if err != nil {
		return err
	}
	if _, err := verbs.Complete(ctx, outcome.Claim, response(id)); err != nil {
		return err
	}
	return t.h.Effect(ctx, tx, t.effectName(id))
}

func (t *txSuite[TTx]) savepoint(tx TTx, want error, fn func(ctx context.Context, tx TTx) error) {
	t.Helper()
	err := t.h.Store.Savepoint(t.Context(), tx, fn)
	if err != want { //nolint:errorlint // The promise is this very error.
		t.Fatalf("Savepoint returned %v; want %v itself", err, want)
	}
}

func (t *txSuite[TTx]) savepointKeeps() {
	tx := t.open()
	t.savepoint(tx.tx, nil, func(ctx context.Context, tx TTx) error { return t.claimInside(ctx, tx, "a") })
	t.get(tx, "a", idempotency.Completed)
	t.notFound(t.store, "a")
	t.commit(tx)
	t.effects("a", 1)
	t.get(t.store, "a", idempotency.Completed)
}

func (t *txSuite[TTx]) savepointUndone() {
	tx := t.open()
	t.effect(tx.tx, "before")
	t.savepoint(tx.tx, errBusiness, func(ctx context.Context, tx TTx) error {
		if err := t.claimInside(ctx, tx, "a"); err != nil {
			return err
		}
		return errBusiness
	})
	t.notFound(tx, "a")
	t.effect(tx.tx, "after")
	t.commit(tx)
	t.effects("a", 0)
	t.effects("before", 1)
	t.effects("after", 1)
	t.free("a")
}

func (t *txSuite[TTx]) savepointUncompletes() {
	tx := t.open()
	claim := t.begin(tx, t.txParams("a"), idempotency.New).Claim
	t.savepoint(tx.tx, errBusiness, func(ctx context.Context, tx TTx) error {
		if _, err := t.h.Store.WithTx(tx).Complete(ctx, claim, response("undone")); err != nil {
			return err
		}
		return errBusiness
	})
	t.get(tx, "a", idempotency.InProgress)
	t.complete(tx, claim, &idempotency.Response{Type: "error:declined"})
	t.commit(tx)
	t.get(t.store, "a", idempotency.Completed)
}

func (t *txSuite[TTx]) savepointPanic() {
	tx := t.open()
	value := &struct{ name string }{"a value of its own"}
	func() {
		defer func() {
			if recovered := recover(); recovered != any(value) {
				t.Errorf("Savepoint panicked with %v; want the value of its function", recovered)
			}
		}()
		err := t.h.Store.Savepoint(t.Context(), tx.tx, func(ctx context.Context, tx TTx) error {
			if err := t.claimInside(ctx, tx, "a"); err != nil {
				return err
			}
			panic(value)
		})
		t.Errorf("Savepoint returned %v; want the panic of its function", err)
	}()
	t.effect(tx.tx, "after")
	t.commit(tx)
	t.effects("a", 0)
	t.effects("after", 1)
	t.free("a")
}

func (t *txSuite[TTx]) savepointNests() {
	tx := t.open()
	t.savepoint(tx.tx, nil, func(ctx context.Context, tx TTx) error {
		err := t.h.Store.Savepoint(ctx, tx, func(ctx context.Context, tx TTx) error {
			return errors.Join(t.claimInside(ctx, tx, "inner"), errBusiness)
		})
		if !errors.Is(err, errBusiness) {
			t.Errorf("the inner Savepoint returned %v", err)
		}
		return t.claimInside(ctx, tx, "outer")
	})
	t.commit(tx)
	t.effects("inner", 0)
	t.effects("outer", 1)
	t.free("inner")
}

func (t *txSuite[TTx]) savepointInRun() {
	t.run(t.txParams("a"), true, func(ctx context.Context, tx TTx) (idempotency.Answer, error) {
		err := t.h.Store.Savepoint(ctx, tx, func(ctx context.Context, tx TTx) error {
			return errors.Join(t.h.Effect(ctx, tx, t.effectName("undone")), errBusiness)
		})
		if !errors.Is(err, errBusiness) {
			return idempotency.Answer{}, err
		}
		return answer("done"), t.h.Effect(ctx, tx, t.effectName("kept"))
	})
	t.effects("undone", 0)
	t.effects("kept", 1)
}

func (t *txSuite[TTx]) savepointInTransact() {
	err := t.h.Store.Transact(t.Context(), func(ctx context.Context, tx TTx) error {
		err := t.h.Store.Savepoint(ctx, tx, func(ctx context.Context, tx TTx) error {
			return errors.Join(t.h.Effect(ctx, tx, t.effectName("undone")), errBusiness)
		})
		if !errors.Is(err, errBusiness) {
			return err
		}
		return t.h.Effect(ctx, tx, t.effectName("kept"))
	})
	if err != nil {
		t.Fatalf("Transact: %v", err)
	}
	t.effects("undone", 0)
	t.effects("kept", 1)
}

func (t *txSuite[TTx]) savepointCommits() { t.savepointMisused(t.h.Commit) }

func (t *txSuite[TTx]) savepointRollsBack() { t.savepointMisused(t.h.Rollback) }

func (t *txSuite[TTx]) savepointMisused(end func(ctx context.Context, tx TTx) error) {
	t.Helper()
	if end == nil {
		t.Skip("the harness has no such method")
	}
	tx := t.open()
	if t.h.CallerMayEnd {
		t.savepointEnded(tx, end)
		return
	}
	err := t.h.Store.Savepoint(t.Context(), tx.tx, func(ctx context.Context, tx TTx) error {
		if err := t.h.Effect(ctx, tx, t.effectName("a")); err != nil {
			return err
		}
		if err := end(ctx, tx); !errors.Is(err, idempotency.ErrOwned) {
			t.Errorf("the transaction ended with %v; want ErrOwned", err)
		}
		return nil
	})
	t.wantErr("Savepoint", err, idempotency.ErrOwned)
	t.rollback(tx)
	t.effects("a", 0)
}

// savepointEnded is what is left to promise where the end of the caller's transaction
// cannot be refused: a key that was begun in it keeps it from being committed.
func (t *txSuite[TTx]) savepointEnded(tx *openTx[TTx], end func(ctx context.Context, tx TTx) error) {
	t.Helper()
	t.begin(tx, t.txParams("a"), idempotency.New)
	err := t.h.Store.Savepoint(t.Context(), tx.tx, func(ctx context.Context, tx TTx) error {
		if err := t.h.Effect(ctx, tx, t.effectName("a")); err != nil {
			return err
		}
		_ = end(ctx, tx)
		return nil
	})
	t.wantErr("Savepoint", err, idempotency.ErrTxEnded)
	t.effects("a", 0)
	t.free("a")
}

package storetest

import (
	"context"
	"errors"
	"runtime"
	"sync"

	"github.com/samecommit/samecommit/idempotency"
)

func transactCases[TTx any]() []testCase[*txSuite[TTx]] {
	return []testCase[*txSuite[TTx]]{
		{"transact commits what its function did", (*txSuite[TTx]).transactCommits},
		{"transact is undone by an error that it returns", (*txSuite[TTx]).transactError},
		{"transact is undone by a panic that keeps its value", (*txSuite[TTx]).transactPanic},
		{"transact is undone by runtime.Goexit", (*txSuite[TTx]).transactGoexit},
		{"transact does not commit over a lost claim that was ignored", (*txSuite[TTx]).transactIgnoredLoss},
		{"transact does not commit a forgotten completion", (*txSuite[TTx]).transactForgotten},
		{"transact refuses a commit by its function", (*txSuite[TTx]).transactCommit},
		{"transact refuses a rollback by its function", (*txSuite[TTx]).transactRollback},
		{"transact leaves its transaction dead", (*txSuite[TTx]).transactDead},
	}
}

func (t *txSuite[TTx]) transactCommits() {
	err := t.h.Store.Transact(t.Context(), func(ctx context.Context, tx TTx) error { return t.claimInside(ctx, tx, "a") })
	if err != nil {
		t.Fatalf("Transact: %v", err)
	}
	t.effects("a", 1)
	t.get(t.store, "a", idempotency.Completed)
}

func (t *txSuite[TTx]) transactError() {
	err := t.h.Store.Transact(t.Context(), func(ctx context.Context, tx TTx) error {
		if err := t.claimInside(ctx, tx, "a"); err != nil {
			return err
		}
		return errBusiness
	})
	if err != errBusiness { //nolint:errorlint // The promise is this very error.
		t.Fatalf("Transact returned %v; want the error of its function itself", err)
	}
	t.effects("a", 0)
	t.free("a")
}

func (t *txSuite[TTx]) transactPanic() {
	value := &struct{ name string }{"a value of its own"}
	func() {
		defer func() {
			if recovered := recover(); recovered != any(value) {
				t.Errorf("Transact panicked with %v; want the value of its function", recovered)
			}
		}()
		err := t.h.Store.Transact(t.Context(), func(ctx context.Context, tx TTx) error {
			if err := t.claimInside(ctx, tx, "a"); err != nil {
				return err
			}
			panic(value)
		})
		t.Errorf("Transact returned %v; want the panic of its function", err)
	}()
	t.effects("a", 0)
	t.free("a")
}

func (t *txSuite[TTx]) transactGoexit() {
	var group sync.WaitGroup
	group.Go(func() {
		err := t.h.Store.Transact(t.Context(), func(ctx context.Context, tx TTx) error {
			if err := t.claimInside(ctx, tx, "a"); err != nil {
				return err
			}
			runtime.Goexit()
			return nil
		})
		t.Errorf("Transact returned %v; want the goroutine to end", err)
	})
	group.Wait()
	t.effects("a", 0)
	t.free("a")
}

func (t *txSuite[TTx]) transactIgnoredLoss() {
	unknown := &idempotency.Claim{Key: t.key("unknown"), ID: idempotency.NewClaimID(), Attempt: 1, TTL: longTTL}
	err := t.h.Store.Transact(t.Context(), func(ctx context.Context, tx TTx) error {
		err := t.h.Effect(ctx, tx, t.effectName("a"))
		_, _ = t.h.Store.WithTx(tx).Complete(ctx, unknown, response("lost"))
		return err
	})
	if err == nil {
		t.Fatal("Transact committed although a claim was lost in it")
	}
	t.effects("a", 0)
}

func (t *txSuite[TTx]) transactForgotten() {
	err := t.h.Store.Transact(t.Context(), func(ctx context.Context, tx TTx) error {
		if err := t.h.Effect(ctx, tx, t.effectName("a")); err != nil {
			return err
		}
		_, err := t.h.Store.WithTx(tx).Begin(ctx, t.txParams("forgotten"))
		return err
	})
	if err == nil {
		t.Fatal("Transact committed a key that was begun and not completed")
	}
	t.effects("a", 0)
	t.free("forgotten")
}

func (t *txSuite[TTx]) transactCommit() { t.transactMisused(t.h.Commit) }

func (t *txSuite[TTx]) transactRollback() { t.transactMisused(t.h.Rollback) }

func (t *txSuite[TTx]) transactMisused(end func(ctx context.Context, tx TTx) error) {
	t.Helper()
	if end == nil {
		t.Skip("the harness has no such method")
	}
	// Also where the function ignores the refusal.
	err := t.h.Store.Transact(t.Context(), func(ctx context.Context, tx TTx) error {
		if err := t.h.Effect(ctx, tx, t.effectName("a")); err != nil {
			return err
		}
		if err := end(ctx, tx); !errors.Is(err, idempotency.ErrOwned) {
			t.Errorf("the transaction ended with %v; want ErrOwned", err)
		}
		return nil
	})
	t.wantErr("Transact", err, idempotency.ErrOwned)
	t.effects("a", 0)
}

func (t *txSuite[TTx]) transactDead() {
	var kept TTx
	err := t.h.Store.Transact(t.Context(), func(_ context.Context, tx TTx) error {
		kept = tx
		return nil
	})
	if err != nil {
		t.Fatalf("Transact: %v", err)
	}
	t.wantDead(kept)
}

package memstore_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

func TestTxEnds(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	store := memstore.New[*memstore.Tx](nil)
	for _, end := range []func(*memstore.Tx) error{
		func(tx *memstore.Tx) error { return tx.Commit(ctx) },
		func(tx *memstore.Tx) error { return tx.Rollback(ctx) },
	} {
		tx := store.NewTx()
		if err := end(tx); err != nil {
			t.Fatal(err)
		}
		tx.OnCommit(func() { t.Error("a function given after the end ran") })
		_, beginErr := store.WithTx(tx).Begin(ctx, params("a"))
		for _, err := range []error{tx.Commit(ctx), tx.Rollback(ctx), beginErr} {
			if !errors.Is(err, memstore.ErrTxClosed) {
				t.Errorf("after the end: %v; want ErrTxClosed", err)
			}
		}
	}
}

func TestTxCommitSaysWhy(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	store := memstore.New[*memstore.Tx](nil)

	forgetful := store.NewTx()
	if _, err := store.WithTx(forgetful).Begin(ctx, params("a")); err != nil {
		t.Fatal(err)
	}
	err := forgetful.Commit(ctx)
	if keyErr, ok := errors.AsType[*idempotency.KeyError](err); !ok || keyErr.Key != params("a").Key || !errors.Is(err, idempotency.ErrUnfinished) {
		t.Errorf("commit: %v; want a *KeyError that is ErrUnfinished", err)
	}

	lost := store.NewTx()
	claim := &idempotency.Claim{Key: params("b").Key, ID: idempotency.NewClaimID(), TTL: time.Hour}
	if _, err := store.WithTx(lost).Complete(ctx, claim, &idempotency.Response{Type: idempotency.TypeNone}); !errors.Is(err, idempotency.ErrClaimLost) {
		t.Fatal(err)
	}
	if _, err := store.WithTx(lost).Begin(ctx, params("c")); !errors.Is(err, idempotency.ErrClaimLost) {
		t.Errorf("begin after a failure: %v; want its cause", err)
	}
	if err := lost.Commit(ctx); !errors.Is(err, idempotency.ErrClaimLost) {
		t.Errorf("commit: %v; want its cause", err)
	}
}

func TestTxOwnAnswerReplays(t *testing.T) {
	t.Parallel()
	store := memstore.New[*memstore.Tx](nil)
	client, err := idempotency.NewClient(store, nil)
	if err != nil {
		t.Fatal(err)
	}
	tx := store.NewTx()
	// A batch of messages in one transaction may hold the same message twice.
	for _, replayed := range []bool{false, true} {
		answer, err := idempotency.DoTx(t.Context(), client, tx, idempotency.Params{Key: params("a").Key, Fingerprint: idempotency.NoFingerprint},
			func(context.Context, *memstore.Tx) (int, error) { return 7, nil })
		if err != nil {
			t.Fatal(err)
		}
		if result, err := answer.Answer(); err != nil || result.Value != 7 || result.Replayed != replayed {
			t.Fatalf("answer is %+v, %v; want 7, replayed: %t", result, err, replayed)
		}
	}
}

// A lease that a transaction is completing is spoken for until that transaction
// ends.
func TestTxHoldsLeaseItCompletes(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	store := memstore.New[*memstore.Tx](nil)
	leased := params("a")
	leased.Lease = idempotency.DefaultWait
	outcome, err := store.Begin(ctx, leased)
	if err != nil {
		t.Fatal(err)
	}
	claim, response := outcome.Claim, &idempotency.Response{Type: idempotency.TypeNone}
	tx := store.NewTx()
	if _, err := store.WithTx(tx).Complete(ctx, claim, response); err != nil {
		t.Fatal(err)
	}
	_, outside := store.Complete(ctx, claim, response)
	_, inOther := store.WithTx(store.NewTx()).Complete(ctx, claim, response)
	_, extended := store.Extend(ctx, claim, leased.Lease)
	for _, err := range []error{outside, inOther, extended, store.Release(ctx, claim)} {
		if !errors.Is(err, idempotency.ErrClaimLost) {
			t.Errorf("meanwhile: %v; want ErrClaimLost", err)
		}
	}
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	if err := store.Release(ctx, claim); err != nil {
		t.Errorf("after the rollback: %v", err)
	}
}

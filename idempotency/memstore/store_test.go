package memstore_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/memstore"
	"github.com/samecommit/samecommit/idempotency/storetest"
)

func TestStore(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(*testing.T) idempotency.Store { return memstore.New[*memstore.Tx](nil) })
}

func TestStoreTx(t *testing.T) {
	t.Parallel()
	storetest.RunTx(t, func(*testing.T) storetest.Harness[*memstore.Tx] {
		store := memstore.New[*memstore.Tx](nil)
		return harness(store, func(tx *memstore.Tx) *memstore.Tx { return tx })
	})
}

// wrapped is a caller's own transaction type around the one in memory.
type wrapped struct{ inner *memstore.Tx }

func (w wrapped) MemTx() *memstore.Tx { return w.inner }

func TestStoreTxWrapped(t *testing.T) {
	t.Parallel()
	storetest.RunTx(t, func(*testing.T) storetest.Harness[wrapped] {
		wrap := func(tx *memstore.Tx) wrapped { return wrapped{tx} }
		return harness(memstore.New(wrap), wrap)
	})
}

func harness[TTx interface{ MemTx() *memstore.Tx }](store *memstore.Store[TTx], wrap func(*memstore.Tx) TTx) storetest.Harness[TTx] {
	var mu sync.Mutex
	effects := make(map[string]int)
	return storetest.Harness[TTx]{
		Store: store,
		Begin: func(context.Context) (TTx, func(context.Context) error, func(context.Context) error, error) {
			tx := store.NewTx()
			return wrap(tx), tx.Commit, tx.Rollback, nil
		},
		Effect: func(_ context.Context, tx TTx, name string) error {
			tx.MemTx().OnCommit(func() {
				mu.Lock()
				defer mu.Unlock()
				effects[name]++
			})
			return nil
		},
		Effects: func(_ context.Context, name string) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			return effects[name], nil
		},
		Commit:   func(ctx context.Context, tx TTx) error { return tx.MemTx().Commit(ctx) },
		Rollback: func(ctx context.Context, tx TTx) error { return tx.MemTx().Rollback(ctx) },
	}
}

func params(id string) *idempotency.BeginParams {
	return &idempotency.BeginParams{
		Key:         idempotency.Key{Scope: "tenant-7/charge", ID: id},
		Fingerprint: idempotency.NoFingerprint,
		TTL:         24 * time.Hour,
	}
}

func TestLeaseOfHours(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		store := memstore.New[*memstore.Tx](nil)
		begin := func(want idempotency.State) *idempotency.Outcome {
			t.Helper()
			leased := params("a")
			leased.Lease = 3 * time.Hour
			outcome, err := store.Begin(ctx, leased)
			if err != nil || outcome.State != want {
				t.Fatalf("Begin gave %+v, %v; want %v", outcome, err, want)
			}
			return outcome
		}
		first := begin(idempotency.New).Claim
		if !first.Deadline.Equal(first.LockedUntil) || time.Until(first.Deadline) != 3*time.Hour {
			t.Fatalf("deadline is in %s, end of the lease at %v", time.Until(first.Deadline), first.LockedUntil)
		}
		time.Sleep(2 * time.Hour) // synctest's clock, not a wait
		if retryAfter := begin(idempotency.InProgress).RetryAfter; retryAfter != 5*time.Second {
			t.Fatalf("RetryAfter is %s; want 5 seconds of the hour that is left", retryAfter)
		}
		extended, err := store.Extend(ctx, first, 3*time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(3*time.Hour - time.Nanosecond)
		begin(idempotency.InProgress)
		time.Sleep(time.Nanosecond)
		second := begin(idempotency.New).Claim
		if second.Attempt != 2 {
			t.Fatalf("attempt is %d; want 2", second.Attempt)
		}
		response := &idempotency.Response{Type: idempotency.TypeNone}
		if _, err := store.Complete(ctx, extended, response); !errors.Is(err, idempotency.ErrClaimLost) {
			t.Fatalf("the first holder completed: %v", err)
		}
		time.Sleep(4 * time.Hour)
		if _, err := store.Complete(ctx, second, response); err != nil {
			t.Fatalf("a late completion: %v", err)
		}
		time.Sleep(24*time.Hour - time.Nanosecond)
		begin(idempotency.Completed)
		time.Sleep(time.Nanosecond)
		if deleted, err := store.DeleteExpired(ctx, 0); deleted != 1 || err != nil {
			t.Fatalf("DeleteExpired gave %d, %v; want 1", deleted, err)
		}
		if third := begin(idempotency.New).Claim; third.Attempt != 1 {
			t.Fatalf("attempt is %d; want 1 after an answer", third.Attempt)
		}
	})
}

// fake stands for a transaction type that this package does not know, as pgx.Tx
// is for a service.
type fake interface{ Exec(query string) error }

func TestNewNilGivesZeroTx(t *testing.T) {
	t.Parallel()
	client, err := idempotency.NewClient(memstore.New[fake](nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	do := func() (idempotency.Result[int], error) {
		return idempotency.Do(t.Context(), client, idempotency.Params{Key: params("a").Key, Fingerprint: idempotency.NoFingerprint},
			func(_ context.Context, tx fake) (int, error) {
				if tx != nil {
					t.Errorf("the function got %v; want the zero transaction", tx)
				}
				return 7, nil
			})
	}
	for _, replayed := range []bool{false, true} {
		if result, err := do(); err != nil || result.Value != 7 || result.Replayed != replayed {
			t.Fatalf("Do gave %+v, %v; want 7, replayed: %t", result, err, replayed)
		}
	}
}

func TestForeignTxIsRefused(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	check := func(name string, verbs idempotency.Verbs) {
		t.Helper()
		_, beginErr := verbs.Begin(ctx, params("a"))
		_, completeErr := verbs.Complete(ctx, nil, nil)
		_, getErr := verbs.Get(ctx, params("a").Key)
		for _, err := range []error{beginErr, completeErr, getErr} {
			if param, ok := errors.AsType[*idempotency.ParamError](err); !ok || param.Field != "tx" {
				t.Errorf("%s: %v; want a *ParamError of tx", name, err)
			}
		}
	}
	check("nil interface", memstore.New[fake](nil).WithTx(nil))
	check("nil *Tx", memstore.New[*memstore.Tx](nil).WithTx(nil))
	check("empty wrapper", memstore.New[wrapped](nil).WithTx(wrapped{}))
	check("another store", memstore.New[*memstore.Tx](nil).WithTx(memstore.New[*memstore.Tx](nil).NewTx()))
	err := memstore.New[fake](nil).Savepoint(ctx, nil, func(context.Context, fake) error { return nil })
	if !errors.Is(err, idempotency.ErrInvalidParams) {
		t.Errorf("Savepoint: %v; want a *ParamError", err)
	}
}

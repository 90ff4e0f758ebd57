package storetest

import (
	"context"
	"errors"
	"runtime"
	"sync"

	"github.com/samecommit/samecommit/idempotency"
)

func runHeldCases[TTx any]() []testCase[*txSuite[TTx]] {
	return []testCase[*txSuite[TTx]]{
		{"run held commits the effect with the answer", (*txSuite[TTx]).heldCommits},
		{"run held counts after the end of the lease", (*txSuite[TTx]).heldLate},
		{"run held keeps others out after the end of the lease", (*txSuite[TTx]).heldHolds},
		{"run held does not execute under a lost claim", (*txSuite[TTx]).heldLost},
		{"run held is undone by an error and stays held", (*txSuite[TTx]).heldError},
		{"run held is undone by a panic and by runtime.Goexit", (*txSuite[TTx]).heldPanic},
		{"run held undoes the writes and records the response", (*txSuite[TTx]).heldUndoneWrites},
		{"run held refuses a bad claim and a bad response", (*txSuite[TTx]).heldBad},
		{"run held refuses its own key inside", (*txSuite[TTx]).heldNested},
		{"run held refuses a commit and a rollback by its function", (*txSuite[TTx]).heldMisused},
		{"run held does not commit what was completed inside", (*txSuite[TTx]).heldCompletedInside},
		{"of run held and a takeover one wins", (*txSuite[TTx]).heldRacesTakeover},
	}
}

func (t *txSuite[TTx]) heldErr(claim *idempotency.Claim, want error, fn runFunc[TTx]) {
	t.Helper()
	record, err := t.h.Store.RunHeld(t.Context(), claim, fn)
	t.wantErr("RunHeld", err, want)
	if record != nil {
		t.Fatal("a failed RunHeld returned a record")
	}
}

func (t *txSuite[TTx]) held(claim *idempotency.Claim, fn runFunc[TTx]) *idempotency.Record {
	t.Helper()
	record, err := t.h.Store.RunHeld(t.Context(), claim, fn)
	if err != nil {
		t.Fatalf("RunHeld: %v", err)
	}
	return record
}

// stillHeld checks that neither effect nor answer is left, and the claim is.
func (t *txSuite[TTx]) stillHeld(claim *idempotency.Claim, id string) {
	t.Helper()
	t.effects(id, 0)
	if record := t.get(t.store, id, idempotency.InProgress); record.ClaimID != claim.ID {
		t.Fatal("the key is another claim's")
	}
	t.checkAnswer(t.held(claim, t.affect(id, response("after all"))), response("after all"))
	t.effects(id, 1)
}

func (t *txSuite[TTx]) heldCommits() {
	claim := t.claim("a")
	t.addStep(t.store, claim, step("one", "1"))
	before := t.get(t.store, "a", idempotency.InProgress)
	record := t.held(claim, t.affect("a", response("done")))
	t.checkAnswer(record, response("done"))
	if record.ClaimID != claim.ID || record.Attempt != 1 || record.Fingerprint != fingerprint || !record.CreatedAt.Equal(before.CreatedAt) || len(record.Steps) > 0 {
		t.Fatal("the record is not that of the claim, completed")
	}
	t.effects("a", 1)
	found := t.get(t.store, "a", idempotency.Completed)
	t.checkAnswer(found, response("done"))
	if !found.ExpiresAt.Equal(record.ExpiresAt) || len(found.Steps) > 0 {
		t.Fatal("the record that was returned is another one")
	}
	t.heldErr(claim, idempotency.ErrClaimLost, t.mustNotExecute())
	t.run(t.txParams("a"), false, t.mustNotExecute())
}

func (t *txSuite[TTx]) heldLate() {
	late := t.claimShort("late")
	t.untilLeasesEnd()
	t.checkAnswer(t.held(late, t.affect("late", response("done"))), response("done"))
	t.effects("late", 1)

	suspended := t.claim("suspended")
	if err := t.store.Suspend(t.Context(), suspended); err != nil {
		t.Fatalf("Suspend: %v", err)
	}
	t.checkAnswer(t.held(suspended, t.affect("suspended", response("done"))), response("done"))
}

func (t *txSuite[TTx]) heldHolds() {
	claim := t.claimShort("a")
	t.held(claim, func(ctx context.Context, _ TTx) (idempotency.Answer, error) {
		t.untilLeasesEnd() //nolint:contextcheck // It has keys of its own.
		if outcome, err := t.store.Begin(ctx, t.params("a")); err != nil || outcome.State != idempotency.InProgress {
			t.Errorf("Begin under a lease gave %+v, %v; want in progress", outcome, err)
		}
		if outcome, err := t.h.Store.Run(ctx, t.txParams("a"), t.mustNotExecute()); err != nil || outcome.State != idempotency.InProgress {
			t.Errorf("Run gave %+v, %v; want in progress", outcome, err)
		}
		if record, err := t.store.Get(ctx, t.key("a")); err != nil || record.State != idempotency.InProgress {
			t.Errorf("Get gave %+v, %v; want in progress", record, err)
		}
		return answer("done"), nil
	})
}

func (t *txSuite[TTx]) heldLost() {
	first := t.claimShort("taken")
	second := t.untilNew(t.params("taken"))
	t.heldErr(first, idempotency.ErrClaimLost, t.mustNotExecute())
	t.stillHeld(second, "taken")

	released := t.claim("released")
	if err := t.store.Release(t.Context(), released); err != nil {
		t.Fatalf("Release: %v", err)
	}
	t.heldErr(released, idempotency.ErrClaimLost, t.mustNotExecute())
	tx := t.open()
	_, err := t.h.Store.RunHeld(t.Context(), t.begin(tx, t.txParams("tx"), idempotency.New).Claim, t.mustNotExecute())
	t.wantParamErr("RunHeld", err, "Claim")
}

func (t *txSuite[TTx]) heldError() {
	claim := t.claim("a")
	t.heldErr(claim, errBusiness, func(ctx context.Context, tx TTx) (idempotency.Answer, error) {
		return answer("no"), errors.Join(t.h.Effect(ctx, tx, t.effectName("a")), errBusiness)
	})
	t.stillHeld(claim, "a")
}

func (t *txSuite[TTx]) heldPanic() {
	value := &struct{ name string }{"a value of its own"}
	for id, end := range map[string]func(){"panic": func() { panic(value) }, "Goexit": runtime.Goexit} {
		claim := t.claim(id)
		var group sync.WaitGroup
		group.Go(func() {
			defer func() {
				if recovered := recover(); id == "panic" && recovered != any(value) {
					t.Errorf("RunHeld panicked with %v; want the value of its function", recovered)
				}
			}()
			_, err := t.h.Store.RunHeld(t.Context(), claim, func(ctx context.Context, tx TTx) (idempotency.Answer, error) {
				if err := t.h.Effect(ctx, tx, t.effectName(id)); err != nil {
					return idempotency.Answer{}, err
				}
				end()
				return answer("no"), nil
			})
			t.Errorf("RunHeld returned %v; want that it does not", err)
		})
		group.Wait()
		t.stillHeld(claim, id)
	}
}

func (t *txSuite[TTx]) heldUndoneWrites() {
	want := &idempotency.Response{Type: "error:declined", Body: []byte("why")}
	t.checkAnswer(t.held(t.claim("a"), func(ctx context.Context, tx TTx) (idempotency.Answer, error) {
		return idempotency.Answer{Response: want, UndoWrites: true}, t.h.Effect(ctx, tx, t.effectName("a"))
	}), want)
	t.effects("a", 0)
	t.checkAnswer(t.get(t.store, "a", idempotency.Completed), want)
}

func (t *txSuite[TTx]) heldBad() {
	t.heldErr(nil, idempotency.ErrNotClaimed, t.mustNotExecute())
	t.heldErr(&idempotency.Claim{Key: t.key("a"), TTL: longTTL}, idempotency.ErrNotClaimed, t.mustNotExecute())
	claim := t.claim("a")
	for _, ttl := range badTTLs {
		_, err := t.h.Store.RunHeld(t.Context(), withTTL(claim, ttl), t.mustNotExecute())
		t.wantParamErr("RunHeld", err, "Claim.TTL")
	}
	for _, bad := range badResponsesOfAll() {
		t.heldErr(claim, idempotency.ErrInvalidParams, t.affect("a", bad))
	}
	t.stillHeld(claim, "a")
}

func (t *txSuite[TTx]) heldNested() {
	for _, claim := range []*idempotency.Claim{t.claim("running"), t.claimShort("ended")} {
		t.untilLeasesEnd()
		t.held(claim, func(ctx context.Context, tx TTx) (idempotency.Answer, error) {
			_, err := t.h.Store.WithTx(tx).Begin(ctx, t.txParams(claim.Key.ID))
			t.wantErr("Begin", err, idempotency.ErrNested)
			return answer("done"), nil
		})
	}
}

func (t *txSuite[TTx]) heldMisused() {
	claim := t.claim("a")
	for _, end := range []func(ctx context.Context, tx TTx) error{t.h.Commit, t.h.Rollback} {
		if end == nil {
			continue // the harness has no such method
		}
		t.heldErr(claim, idempotency.ErrOwned, func(ctx context.Context, tx TTx) (idempotency.Answer, error) {
			if err := t.h.Effect(ctx, tx, t.effectName("a")); err != nil {
				return idempotency.Answer{}, err
			}
			if err := end(ctx, tx); !errors.Is(err, idempotency.ErrOwned) {
				t.Errorf("the transaction ended with %v; want ErrOwned", err)
			}
			return answer("no"), nil
		})
	}
	t.stillHeld(claim, "a")
}

func (t *txSuite[TTx]) heldCompletedInside() {
	claim := t.claim("a")
	t.heldErr(claim, idempotency.ErrClaimLost, func(ctx context.Context, tx TTx) (idempotency.Answer, error) {
		if err := t.h.Effect(ctx, tx, t.effectName("a")); err != nil {
			return idempotency.Answer{}, err
		}
		_, err := t.h.Store.WithTx(tx).Complete(ctx, claim, response("inside"))
		return answer("no"), err
	})
	t.stillHeld(claim, "a")
}

func (t *txSuite[TTx]) heldRacesTakeover() {
	t.raceTakeovers(func(id string, claim *idempotency.Claim) error {
		_, err := t.h.Store.RunHeld(t.Context(), claim, t.affect(id, response("late")))
		return err
	}, func(id string, holderWon bool) {
		want := 0
		if holderWon {
			want = 1
		}
		t.effects(id, want)
	})
}

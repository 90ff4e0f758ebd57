package storetest

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"

	"github.com/samecommit/samecommit/idempotency"
)

var errBusiness = errors.New("storetest: business error")

func runCases[TTx any]() []testCase[*txSuite[TTx]] {
	return []testCase[*txSuite[TTx]]{
		{"run executes once and replays", (*txSuite[TTx]).runOnce},
		{"run keeps bodies byte for byte", (*txSuite[TTx]).runBodies},
		{"run is undone by an error", (*txSuite[TTx]).runError},
		{"run is undone by a panic that keeps its value", (*txSuite[TTx]).runPanic},
		{"run is undone by runtime.Goexit", (*txSuite[TTx]).runGoexit},
		{"run refuses a bad response", (*txSuite[TTx]).runBadResponse},
		{"run undoes the writes and records the response", (*txSuite[TTx]).runUndoneWrites},
		{"run undoes the writes after a lost claim and records the response", (*txSuite[TTx]).runUndoneWritesLost},
		{"run does not commit over a lost claim that was ignored", (*txSuite[TTx]).runIgnoredLoss},
		{"run does not commit a forgotten completion", (*txSuite[TTx]).runForgotten},
		{"run of one key by many takes effect once", (*txSuite[TTx]).runMany},
		{"run does not execute while the key is held", (*txSuite[TTx]).runHeld},
		{"run holds the key while it executes", (*txSuite[TTx]).runHolds},
		{"run never executes for another fingerprint", (*txSuite[TTx]).runMismatch},
		{"run executes again once the answer has expired", (*txSuite[TTx]).runExpired},
		{"run takes over a lease that ended", (*txSuite[TTx]).runTakeover},
		{"run refuses a commit by its function", (*txSuite[TTx]).runCommits},
		{"run refuses a rollback by its function", (*txSuite[TTx]).runRollsBack},
		{"run leaves its transaction dead", (*txSuite[TTx]).runDead},
	}
}

type runFunc[TTx any] func(ctx context.Context, tx TTx) (idempotency.Answer, error)

func answer(body string) idempotency.Answer { return idempotency.Answer{Response: response(body)} }

// run runs and checks what came of it.
func (t *txSuite[TTx]) run(params *idempotency.BeginParams, wantExecuted bool, fn runFunc[TTx]) *idempotency.Record {
	t.Helper()
	outcome, err := t.h.Store.Run(t.Context(), params, fn)
	if err != nil {
		t.Fatalf("Run: %v", err)
	}
	t.checkOutcome(outcome, idempotency.Completed)
	if outcome.Executed != wantExecuted {
		t.Fatalf("Run executed: %t; want %t", outcome.Executed, wantExecuted)
	}
	return outcome.Record
}

func (t *txSuite[TTx]) runErr(params *idempotency.BeginParams, want error, fn runFunc[TTx]) {
	t.Helper()
	outcome, err := t.h.Store.Run(t.Context(), params, fn)
	t.wantErr("Run", err, want)
	if outcome != nil && outcome.State == idempotency.Completed {
		t.Fatalf("a failed Run gave %+v", outcome)
	}
}

// runUndone checks that neither key nor effect is left.
func (t *txSuite[TTx]) runUndone(id string) {
	t.Helper()
	t.effects(id, 0)
	t.notFound(t.store, id)
	t.run(t.txParams(id), true, t.affect(id, response("after all")))
	t.effects(id, 1)
}

// affect returns a function that writes an effect and answers.
func (t *txSuite[TTx]) affect(name string, response *idempotency.Response) runFunc[TTx] {
	return func(ctx context.Context, tx TTx) (idempotency.Answer, error) {
		return idempotency.Answer{Response: response}, t.h.Effect(ctx, tx, t.effectName(name))
	}
}

func (t *txSuite[TTx]) mustNotExecute() runFunc[TTx] {
	return func(context.Context, TTx) (idempotency.Answer, error) {
		t.Error("Run called its function")
		return answer("no"), nil
	}
}

func (t *txSuite[TTx]) runOnce() {
	params := t.txParams("a")
	params.TTL += time.Nanosecond // which a store may drop, and then for everybody
	first := t.run(params, true, t.affect("a", response("done")))
	t.checkAnswer(first, response("done"))
	if first.Key != t.key("a") || first.Attempt != 1 || !first.CreatedAt.Equal(first.UpdatedAt) {
		t.Fatalf("the record has attempt %d, created at %v, updated at %v; want 1 and one instant", first.Attempt, first.CreatedAt, first.UpdatedAt)
	}
	second := t.run(t.txParams("a"), false, t.mustNotExecute())
	t.checkAnswer(second, response("done"))
	if first.ClaimID != second.ClaimID || !first.ExpiresAt.Equal(second.ExpiresAt) {
		t.Fatal("the replayed record is another one")
	}
	t.effects("a", 1)
	t.begin(t.store, t.params("a"), idempotency.Completed)
}

func (t *txSuite[TTx]) runBodies() {
	for id, body := range bodiesToKeep() {
		want := &idempotency.Response{Type: idempotency.TypeBytes, Body: body}
		t.checkAnswer(t.run(t.txParams(id), true, t.affect(id, want)), want)
		t.checkAnswer(t.run(t.txParams(id), false, t.mustNotExecute()), want)
	}
}

func (t *txSuite[TTx]) runError() {
	t.runErr(t.txParams("a"), errBusiness, func(ctx context.Context, tx TTx) (idempotency.Answer, error) {
		return answer("no"), errors.Join(t.h.Effect(ctx, tx, t.effectName("a")), errBusiness)
	})
	t.runUndone("a")
}

func (t *txSuite[TTx]) runPanic() {
	value := &struct{ name string }{"a value of its own"}
	func() {
		defer func() {
			if recovered := recover(); recovered != any(value) {
				t.Errorf("Run panicked with %v; want the value of its function", recovered)
			}
		}()
		_, err := t.h.Store.Run(t.Context(), t.txParams("a"), func(ctx context.Context, tx TTx) (idempotency.Answer, error) {
			if err := t.h.Effect(ctx, tx, t.effectName("a")); err != nil {
				return idempotency.Answer{}, err
			}
			panic(value)
		})
		t.Errorf("Run returned %v; want the panic of its function", err)
	}()
	t.runUndone("a")
}

func (t *txSuite[TTx]) runGoexit() {
	var group sync.WaitGroup
	group.Go(func() {
		_, err := t.h.Store.Run(t.Context(), t.txParams("a"), func(ctx context.Context, tx TTx) (idempotency.Answer, error) {
			if err := t.h.Effect(ctx, tx, t.effectName("a")); err != nil {
				return idempotency.Answer{}, err
			}
			runtime.Goexit()
			return idempotency.Answer{}, nil
		})
		t.Errorf("Run returned %v; want the goroutine to end", err)
	})
	group.Wait()
	t.runUndone("a")
}

func (t *txSuite[TTx]) runBadResponse() {
	for _, bad := range badResponsesOfAll() {
		t.runErr(t.txParams("a"), idempotency.ErrInvalidParams, t.affect("a", bad))
	}
	t.runUndone("a")
}

func (t *txSuite[TTx]) runUndoneWrites() {
	want := &idempotency.Response{Type: "error:declined", Body: []byte("why")}
	t.checkAnswer(t.run(t.txParams("a"), true, func(ctx context.Context, tx TTx) (idempotency.Answer, error) {
		if err := t.h.Effect(ctx, tx, t.effectName("a")); err != nil {
			return idempotency.Answer{}, err
		}
		verbs := t.h.Store.WithTx(tx)
		outcome, err := verbs.Begin(ctx, t.txParams("inner"))
		if err != nil {
			return idempotency.Answer{}, err
		}
		_, err = verbs.Complete(ctx, outcome.Claim, response("undone"))
		return idempotency.Answer{Response: want, UndoWrites: true}, err
	}), want)
	t.effects("a", 0)
	t.notFound(t.store, "inner")
	t.free("inner")
	t.checkAnswer(t.run(t.txParams("a"), false, t.mustNotExecute()), want)
}

func (t *txSuite[TTx]) runUndoneWritesLost() {
	want := &idempotency.Response{Type: "error:declined"}
	unknown := &idempotency.Claim{Key: t.key("unknown"), ID: idempotency.NewClaimID(), Attempt: 1, TTL: longTTL}
	t.checkAnswer(t.run(t.txParams("a"), true, func(ctx context.Context, tx TTx) (idempotency.Answer, error) {
		_, err := t.h.Store.WithTx(tx).Complete(ctx, unknown, response("lost"))
		if !errors.Is(err, idempotency.ErrClaimLost) {
			t.Errorf("Complete returned %v; want ErrClaimLost", err)
		}
		return idempotency.Answer{Response: want, UndoWrites: true}, nil
	}), want)
}

func (t *txSuite[TTx]) runIgnoredLoss() {
	unknown := &idempotency.Claim{Key: t.key("unknown"), ID: idempotency.NewClaimID(), Attempt: 1, TTL: longTTL}
	_, err := t.h.Store.Run(t.Context(), t.txParams("a"), func(ctx context.Context, tx TTx) (idempotency.Answer, error) {
		err := t.h.Effect(ctx, tx, t.effectName("a"))
		_, _ = t.h.Store.WithTx(tx).Complete(ctx, unknown, response("lost"))
		return answer("no"), err
	})
	if err == nil {
		t.Fatal("Run committed although a claim was lost in it")
	}
	t.runUndone("a")
}

func (t *txSuite[TTx]) runForgotten() {
	_, err := t.h.Store.Run(t.Context(), t.txParams("a"), func(ctx context.Context, tx TTx) (idempotency.Answer, error) {
		if err := t.h.Effect(ctx, tx, t.effectName("a")); err != nil {
			return idempotency.Answer{}, err
		}
		_, err := t.h.Store.WithTx(tx).Begin(ctx, t.txParams("forgotten"))
		return answer("no"), err
	})
	if err == nil {
		t.Fatal("Run committed a key that was begun and not completed")
	}
	t.free("forgotten")
	t.runUndone("a")
}

func (t *txSuite[TTx]) runMany() {
	var group sync.WaitGroup
	var mu sync.Mutex
	executions := 0
	for range racers {
		group.Go(func() {
			ticker := time.NewTicker(pollInterval)
			defer ticker.Stop()
			for deadline := time.Now().Add(pollDeadline); time.Now().Before(deadline); <-ticker.C {
				outcome, err := t.h.Store.Run(t.Context(), t.txParams("a"), t.affect("a", response("done")))
				if err != nil {
					t.Errorf("Run: %v", err)
					return
				}
				if outcome.State == idempotency.InProgress {
					continue
				}
				if outcome.Record == nil || string(outcome.Record.Response.Body) != "done" {
					t.Errorf("Run returned %+v; want the answer", outcome)
				}
				mu.Lock()
				defer mu.Unlock()
				if outcome.Executed {
					executions++
				}
				return
			}
			t.Errorf("Run found the key in progress for %s", pollDeadline)
		})
	}
	group.Wait()
	t.effects("a", 1)
	if executions != 1 {
		t.Fatalf("%d calls say that they executed; want 1", executions)
	}
}

func (t *txSuite[TTx]) runHeld() {
	tx := t.open()
	t.begin(tx, t.txParams("tx"), idempotency.New)
	t.claim("lease")
	for _, id := range []string{"tx", "lease"} {
		outcome, err := t.h.Store.Run(t.Context(), t.txParams(id), t.mustNotExecute())
		if err != nil || outcome.Executed {
			t.Fatalf("Run gave %+v, %v; want an outcome in progress", outcome, err)
		}
		t.checkOutcome(outcome, idempotency.InProgress)
	}
}

func (t *txSuite[TTx]) runHolds() {
	t.run(t.txParams("a"), true, func(ctx context.Context, _ TTx) (idempotency.Answer, error) {
		outcome, err := t.h.Store.Run(ctx, t.txParams("a"), t.mustNotExecute())
		if err != nil || outcome.Executed || outcome.State != idempotency.InProgress {
			t.Errorf("a second Run gave %+v, %v; want in progress", outcome, err)
		}
		if outcome, err := t.store.Begin(ctx, t.params("a")); err != nil || outcome.State != idempotency.InProgress {
			t.Errorf("Begin under a lease gave %+v, %v; want in progress", outcome, err)
		}
		if _, err := t.store.Get(ctx, t.key("a")); !errors.Is(err, idempotency.ErrNotFound) {
			t.Errorf("Get gave %v; want ErrNotFound", err)
		}
		return answer("done"), nil
	})
}

func (t *txSuite[TTx]) runMismatch() {
	t.run(t.txParams("a"), true, t.affect("a", response("secret")))
	params := t.txParams("a")
	params.Fingerprint = otherFingerprint
	outcome, err := t.h.Store.Run(t.Context(), params, t.mustNotExecute())
	t.wantMismatch(outcome, err, "a")
	t.effects("a", 1)
}

func (t *txSuite[TTx]) runExpired() {
	params := t.txParams("a")
	params.TTL = shortTTL
	t.run(params, true, t.affect("a", response("old")))
	t.untilExpired("a")
	params = t.txParams("a")
	params.Fingerprint = otherFingerprint
	t.checkAnswer(t.run(params, true, t.affect("a", response("new"))), response("new"))
	t.effects("a", 2)
	t.checkAnswer(t.get(t.store, "a", idempotency.Completed), response("new"))
}

func (t *txSuite[TTx]) runTakeover() {
	first := t.claimShort("a")
	t.untilLeasesEnd()
	record := t.run(t.txParams("a"), true, t.affect("a", response("of the second")))
	if record.Attempt != 2 {
		t.Fatalf("the record has attempt %d; want 2", record.Attempt)
	}
	t.wantLost(first)
	t.effects("a", 1)
}

func (t *txSuite[TTx]) runCommits() { t.runMisused(t.h.Commit) }

func (t *txSuite[TTx]) runRollsBack() { t.runMisused(t.h.Rollback) }

func (t *txSuite[TTx]) runMisused(end func(ctx context.Context, tx TTx) error) {
	t.Helper()
	if end == nil {
		t.Skip("the harness has no such method")
	}
	// Even a function that ignores the refusal and answers is not committed.
	for _, answer := range []idempotency.Answer{answer("no"), {Response: &idempotency.Response{Type: "error:no"}, UndoWrites: true}} {
		t.runErr(t.txParams("a"), idempotency.ErrOwned, func(ctx context.Context, tx TTx) (idempotency.Answer, error) {
			if err := t.h.Effect(ctx, tx, t.effectName("a")); err != nil {
				return idempotency.Answer{}, err
			}
			if err := end(ctx, tx); !errors.Is(err, idempotency.ErrOwned) {
				t.Errorf("the transaction ended with %v; want ErrOwned", err)
			}
			return answer, nil
		})
	}
	t.runUndone("a")
}

func (t *txSuite[TTx]) runDead() {
	var kept TTx
	t.run(t.txParams("a"), true, func(_ context.Context, tx TTx) (idempotency.Answer, error) {
		kept = tx
		return answer("done"), nil
	})
	t.wantDead(kept)
	if t.h.Commit != nil && t.h.Commit(t.Context(), kept) == nil {
		t.Fatal("the transaction committed after its end")
	}
	if t.h.Rollback != nil && t.h.Rollback(t.Context(), kept) == nil {
		t.Fatal("the transaction rolled back after its end")
	}
}

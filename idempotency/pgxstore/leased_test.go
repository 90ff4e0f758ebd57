package pgxstore_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

// A process records a step and dies. Another one goes on with it.
func TestDoLeasedContinuesTheWorkOfAProcessThatDied(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	params := bench.Params("k")
	outcome, err := b.Store.Begin(t.Context(), leased("k", time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	charged := &idempotency.StepRecord{Name: "charge", Arguments: idempotency.FingerprintOf("500"), Response: &idempotency.Response{Type: "json:string", Body: []byte(`"receipt"`)}}
	if err := b.Store.AddStep(t.Context(), outcome.Claim, charged); err != nil {
		t.Fatal(err)
	}

	var mayHaveRun bool
	result, err := idempotency.DoLeased(t.Context(), b.Client.Leases(), params, func(ctx context.Context, lease *idempotency.Lease) (string, error) {
		receipt, err := idempotency.Step(ctx, lease, "charge", idempotency.FingerprintOf("500"), func(context.Context, idempotency.StepCall) (string, error) {
			t.Error("the charge was repeated")
			return "", nil
		})
		if err != nil {
			return "", err
		}
		return idempotency.Step(ctx, lease, "mail", idempotency.NoFingerprint, func(_ context.Context, call idempotency.StepCall) (string, error) {
			mayHaveRun = call.MayHaveRun
			return receipt + " mailed", nil
		})
	})
	if err != nil || result.Value != "receipt mailed" || result.Record.Attempt != 2 || !mayHaveRun {
		t.Errorf("%+v, %v, may have run: %t; want the first process's receipt, in attempt 2", result, err, mayHaveRun)
	}
	wantZombie := b.Store.AddStep(t.Context(), outcome.Claim, stepOf("zombie"))
	wantKeyError(t, "AddStep", wantZombie, idempotency.ErrClaimLost, "k")
}

// 60 duplicates in 3 processes run once, and the others get the answer.
func TestDuplicatesOfLeasedWork(t *testing.T) {
	t.Parallel()
	config := pgtest.Config(t)
	var runs, replayed atomic.Int32
	var group sync.WaitGroup
	for range 3 {
		client := bench.New(t, bench.PoolWith(t, config.Copy()), nil, nil).Client.Leases()
		for range 20 {
			group.Go(func() {
				params := bench.Params("k")
				params.Wait = time.Minute
				result, err := idempotency.DoLeased(t.Context(), client, params, func(ctx context.Context, lease *idempotency.Lease) (string, error) {
					runs.Add(1)
					return idempotency.Step(ctx, lease, "one", idempotency.NoFingerprint, func(context.Context, idempotency.StepCall) (string, error) { return "done", nil })
				})
				if err != nil || result.Value != "done" {
					t.Errorf("%+v, %v", result, err)
				}
				if result.Replayed {
					replayed.Add(1)
				}
			})
		}
	}
	group.Wait()
	if runs.Load() != 1 || replayed.Load() != 59 {
		t.Errorf("%d runs and %d replays; want 1 and 59", runs.Load(), replayed.Load())
	}
}

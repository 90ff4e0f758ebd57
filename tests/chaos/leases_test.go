//go:build unix

package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
	"github.com/samecommit/samecommit/txhelper"
)

// leaseAnswer classifies what a verb of a lease returned. Each commits by
// itself, so that an error of the connection leaves it open.
func leaseAnswer(id string, err error) answer {
	switch {
	case err == nil:
		return answer{kind: executed, id: id}
	case errors.Is(err, idempotency.ErrClaimLost):
		return answer{kind: failed, err: err}
	}
	return answer{kind: unknown, err: err}
}

func (tr *trial) beginParams(lease time.Duration) *idempotency.BeginParams {
	params := tr.params()
	return &idempotency.BeginParams{Key: params.Key, Fingerprint: params.Fingerprint, TTL: time.Hour, Lease: lease}
}

func leased(ctx context.Context, tr *trial) error { return tr.lease(ctx, time.Minute) }

// abandoned leaves a claim whose lease has ended.
func abandoned(ctx context.Context, tr *trial) error {
	if err := tr.lease(ctx, time.Millisecond); err != nil {
		return err
	}
	tr.former, tr.claim = tr.claim, nil
	_, err := tr.pool.Exec(ctx, `SELECT pg_sleep(0.002)`)
	return err
}

func (tr *trial) lease(ctx context.Context, lease time.Duration) error {
	outcome, err := tr.store.Begin(ctx, tr.beginParams(lease))
	if err == nil {
		tr.claim = outcome.Claim
	}
	return err
}

// completed is the id of the effect made under the lease.
func (tr *trial) completed() string { return tr.key + " completed" }

// complete makes the effect and completes the claim in one transaction of a
// good connection.
func (tr *trial) complete(ctx context.Context, claim *idempotency.Claim, id string) error {
	return pgx.BeginFunc(ctx, tr.pool, func(tx pgx.Tx) error {
		if err := tr.effect(ctx, tx, id); err != nil {
			return err
		}
		_, err := tr.client.WithTx(tx).Complete(ctx, claim, response(id))
		return err
	})
}

// mustReplay checks that the next call gets the effect of the given id.
func (tr *trial) mustReplay(ctx context.Context, id string) error {
	next := tr.next(ctx, idempotency.NoWait)
	if next.kind != replayed || next.id != id {
		return fmt.Errorf("the next call got %v, want a replay of %q", next, id)
	}
	return tr.auditRecord(ctx, next)
}

// mustRun checks that the next call runs, at the latest when a lease that
// nobody heard of has ended.
func (tr *trial) mustRun(ctx context.Context) error {
	next := tr.next(ctx, shortLease+margin)
	if next.kind != executed {
		return fmt.Errorf("the next call got %v, want a run", next)
	}
	return tr.auditRecord(ctx, next)
}

func claimLease(ctx context.Context, tr *trial) answer {
	outcome, err := tr.cutStore.Begin(ctx, tr.beginParams(shortLease))
	if err == nil && outcome.State != idempotency.New {
		err = fmt.Errorf("the key is %v", outcome.State)
	}
	if err == nil {
		tr.claim = outcome.Claim
	}
	return leaseAnswer("", err)
}

func auditClaim(ctx context.Context, tr *trial, got answer) (bool, error) {
	found, err := tr.store.Get(ctx, tr.params().Key)
	if err != nil && !errors.Is(err, idempotency.ErrNotFound) {
		return false, err
	}
	if got.kind == executed {
		if err := tr.complete(ctx, tr.claim, tr.completed()); err != nil {
			return false, fmt.Errorf("a claim that was granted cannot be completed: %w", err)
		}
		return true, tr.mustReplay(ctx, tr.completed())
	}
	return found != nil, tr.mustRun(ctx)
}

func auditTakeover(ctx context.Context, tr *trial, got answer) (bool, error) {
	found, err := tr.store.Get(ctx, tr.params().Key)
	if err != nil {
		return false, err
	}
	taken := found.ClaimID != tr.former.ID
	if got.kind == executed && (!taken || found.ClaimID != tr.claim.ID || found.Attempt != 2) {
		return taken, fmt.Errorf("the key was taken over, but its claim is attempt %d", found.Attempt)
	}
	err = tr.complete(ctx, tr.former, tr.key+" former")
	switch {
	case !taken && err != nil:
		return false, fmt.Errorf("nobody took the key over, but its holder cannot complete: %w", err)
	case !taken:
		return false, tr.mustReplay(ctx, tr.key+" former")
	case !errors.Is(err, idempotency.ErrClaimLost):
		return true, fmt.Errorf("the former holder got %v, want ErrClaimLost", err) //nolint:errorlint // It may be nil.
	case got.kind == executed:
		if err := tr.complete(ctx, tr.claim, tr.completed()); err != nil {
			return true, err
		}
		return true, tr.mustReplay(ctx, tr.completed())
	}
	return true, tr.mustRun(ctx)
}

func extendLease(ctx context.Context, tr *trial) answer {
	extended, err := tr.cutStore.Extend(ctx, tr.claim, time.Hour)
	if err == nil {
		tr.extended = extended
	}
	return leaseAnswer("", err)
}

func auditExtend(ctx context.Context, tr *trial, got answer) (bool, error) {
	found, err := tr.store.Get(ctx, tr.params().Key)
	if err != nil {
		return false, err
	}
	if got.kind == executed && !found.LockedUntil.Equal(tr.extended.LockedUntil) {
		return false, fmt.Errorf("the lease ends at %v, the holder was told %v", found.LockedUntil, tr.extended.LockedUntil)
	}
	if err := tr.complete(ctx, tr.claim, tr.completed()); err != nil {
		return false, fmt.Errorf("the holder cannot complete: %w", err)
	}
	return !found.LockedUntil.Equal(tr.claim.LockedUntil), tr.mustReplay(ctx, tr.completed())
}

// leasedEffect is leased, and what was to be done elsewhere under the lease is done.
func leasedEffect(ctx context.Context, tr *trial) error {
	if err := leased(ctx, tr); err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, tr.pool, func(tx pgx.Tx) error { return tr.effect(ctx, tx, tr.completed()) })
}

func completeLease(ctx context.Context, tr *trial) answer {
	_, err := tr.cutStore.Complete(ctx, tr.claim, response(tr.completed()))
	return leaseAnswer(tr.completed(), err)
}

func completeLeaseInTx(ctx context.Context, tr *trial) answer {
	err := txhelper.Run(ctx, tr.behind, tr.options, func(ctx context.Context, tx pgx.Tx) error {
		if err := tr.effect(ctx, tx, tr.completed()); err != nil {
			return err
		}
		_, err := tr.cutClient.WithTx(tx).Complete(ctx, tr.claim, response(tr.completed()))
		return err
	})
	return ownAnswer(tr.completed(), err)
}

func auditCompletion(again func(ctx context.Context, tr *trial) error) func(ctx context.Context, tr *trial, got answer) (bool, error) {
	return func(ctx context.Context, tr *trial, got answer) (bool, error) {
		found, err := tr.store.Get(ctx, tr.params().Key)
		if err != nil {
			return false, err
		}
		done := found.State == idempotency.Completed
		if done && found.ClaimID != tr.claim.ID || !done && got.kind == executed || done && got.kind == failed {
			return done, fmt.Errorf("the record is %v", found.State)
		}
		// What a holder does who did not hear.
		if err := again(ctx, tr); errors.Is(err, idempotency.ErrClaimLost) != done || !done && err != nil {
			return done, fmt.Errorf("the record is %v, and completing again got %v", found.State, err) //nolint:errorlint // It may be nil.
		}
		return done, tr.mustReplay(ctx, tr.completed())
	}
}

var auditComplete = auditCompletion(func(ctx context.Context, tr *trial) error {
	_, err := tr.store.Complete(ctx, tr.claim, response(tr.completed()))
	return err
})

var auditCompleteInTx = auditCompletion(func(ctx context.Context, tr *trial) error {
	err := tr.complete(ctx, tr.claim, tr.completed())
	var duplicate *pgconn.PgError
	if errors.As(err, &duplicate) && duplicate.Code == "23505" {
		return idempotency.ErrClaimLost // the effect is there, which comes first
	}
	return err
})

// runUnder runs fn under the trial's claim, and returns the id that is recorded.
func (tr *trial) runUnder(ctx context.Context, store *pgxstore.Store, fn func(ctx context.Context, tx pgx.Tx) (string, error)) (id string, err error) {
	record, err := store.RunHeld(ctx, tr.claim, func(ctx context.Context, tx pgx.Tx) (idempotency.Answer, error) {
		id, err := fn(ctx, tx)
		return idempotency.Answer{Response: response(id)}, err
	})
	if err != nil {
		return "", err
	}
	return recordedID(record), nil
}

func recordedID(record *idempotency.Record) string {
	return strings.Trim(string(record.Response.Body), `"`)
}

func runHeld(ctx context.Context, tr *trial) answer {
	id, err := tr.runUnder(ctx, tr.cutStore, tr.operation)
	return answerOf(id, false, err)
}

// auditRunHeld checks that the claim is completed or still held, and does what a
// holder does who did not hear.
func auditRunHeld(ctx context.Context, tr *trial, got answer) (bool, error) {
	found, err := tr.store.Get(ctx, tr.params().Key)
	if err != nil {
		return false, err
	}
	done := found.State == idempotency.Completed
	if found.ClaimID != tr.claim.ID || !done && got.kind == executed || done && got.kind == failed {
		return done, fmt.Errorf("the record is %v", found.State)
	}
	again, err := tr.runUnder(ctx, tr.store, func(ctx context.Context, tx pgx.Tx) (string, error) {
		return tr.completed(), tr.effect(ctx, tx, tr.completed())
	})
	switch {
	case errors.Is(err, idempotency.ErrClaimLost) != done || !done && err != nil:
		return done, fmt.Errorf("the record is %v, and running again got %v", found.State, err) //nolint:errorlint // It may be nil.
	case !done:
		return false, tr.mustReplay(ctx, again)
	}
	id := recordedID(found)
	if !tr.ran(id) || got.kind == executed && id != got.id {
		return true, fmt.Errorf("%q is recorded", id)
	}
	return tr.ranBeforeCut(id), tr.mustReplay(ctx, id)
}

// external charges elsewhere and makes the effect of what fn returns.
func (tr *trial) external(ctx context.Context, client *idempotency.Client[pgx.Tx], wait time.Duration, fn func(ctx context.Context, tx pgx.Tx) (string, error)) answer {
	params := tr.params()
	params.Lease, params.Wait = heldLease, wait
	result, err := idempotency.DoExternal(ctx, client, params, func(ctx context.Context, lease *idempotency.Lease) (int, error) {
		return idempotency.Step(ctx, lease, "charge", idempotency.NoFingerprint, func(_ context.Context, call idempotency.StepCall) (int, error) {
			tr.charges = append(tr.charges, call.MayHaveRun)
			return len(tr.charges), nil
		})
	}, func(ctx context.Context, tx pgx.Tx, charge int) (string, error) {
		tr.booked = charge
		return fn(ctx, tx)
	})
	return answerOf(result.Value, result.Replayed, err)
}

func doExternal(ctx context.Context, tr *trial) answer {
	return tr.external(ctx, tr.cutClient, idempotency.NoWait, tr.operation)
}

// auditExternal checks what the next caller is told, and that nobody who charged
// again was told that nobody had before.
func auditExternal(ctx context.Context, tr *trial, got answer) (bool, error) {
	next := tr.external(ctx, tr.client, heldLease+margin, func(ctx context.Context, tx pgx.Tx) (string, error) {
		id := tr.key + " next"
		return id, tr.effect(ctx, tx, id)
	})
	if err := tr.auditRecord(ctx, next); err != nil {
		return false, fmt.Errorf("then %v: %w", next, err)
	}
	for i, mayHaveRun := range tr.charges {
		if i > 0 && !mayHaveRun {
			return false, fmt.Errorf("then %v: charge %d was told that there was none before", next, i+1)
		}
	}
	switch {
	case tr.booked != len(tr.charges) || tr.booked == 0:
		return false, fmt.Errorf("then %v: charge %d of %d is booked", next, tr.booked, len(tr.charges))
	case got.kind == executed && (next.kind != replayed || next.id != got.id), got.kind == failed && next.kind == replayed:
		return false, fmt.Errorf("then %v", next)
	}
	return tr.ranBeforeCut(next.id), nil
}

func (tr *trial) step() *idempotency.StepRecord {
	return &idempotency.StepRecord{Name: "step", Arguments: idempotency.NoFingerprint, Response: response(tr.key)}
}

func addStep(ctx context.Context, tr *trial) answer {
	return leaseAnswer("", tr.cutStore.AddStep(ctx, tr.claim, tr.step()))
}

func addStepInTx(ctx context.Context, tr *trial) answer {
	return ownAnswer("", txhelper.Run(ctx, tr.behind, tr.options, func(ctx context.Context, tx pgx.Tx) error {
		return tr.cutStore.WithTx(tx).AddStep(ctx, tr.claim, tr.step())
	}))
}

// auditStep finds the step that was acknowledged, adds it as a holder does who did
// not hear, and lets another claim continue with it.
func auditStep(ctx context.Context, tr *trial, got answer) (bool, error) {
	found, err := tr.store.Get(ctx, tr.params().Key)
	if err != nil {
		return false, err
	}
	added := len(found.Steps) > 0
	if !added && got.kind == executed || added && got.kind == failed {
		return added, fmt.Errorf("the record has %d steps", len(found.Steps))
	}
	if err := tr.store.AddStep(ctx, tr.claim, tr.step()); err != nil {
		return added, fmt.Errorf("add the step again: %w", err)
	}
	if err := tr.store.Suspend(ctx, tr.claim); err != nil {
		return added, err
	}
	return added, tr.mustContinue(ctx, 1)
}

func suspendLease(ctx context.Context, tr *trial) answer {
	return leaseAnswer("", tr.cutStore.Suspend(ctx, tr.claim))
}

func auditSuspend(ctx context.Context, tr *trial, got answer) (bool, error) {
	found, err := tr.store.Get(ctx, tr.params().Key)
	if err != nil {
		return false, err
	}
	suspended := found.Suspended()
	if !suspended && got.kind == executed || suspended && got.kind == failed {
		return suspended, fmt.Errorf("the record is suspended: %t", suspended)
	}
	if err := tr.store.Suspend(ctx, tr.claim); err != nil {
		return suspended, fmt.Errorf("suspend again: %w", err)
	}
	return suspended, tr.mustContinue(ctx, 0)
}

// mustContinue takes the suspended key over, and completes it. A server that ends a
// transaction lets go of its rows before its advisory locks, so the key may still be in
// progress when what waited for the row has returned.
func (tr *trial) mustContinue(ctx context.Context, steps int) error {
	var outcome *idempotency.Outcome
	var err error
	waiting, cancel := context.WithTimeout(ctx, margin)
	defer cancel()
	poll(waiting, 2*time.Millisecond, func() bool {
		outcome, err = tr.store.Begin(ctx, tr.beginParams(time.Minute))
		return err != nil || outcome.State != idempotency.InProgress
	})
	if err != nil {
		return err
	}
	if claim := outcome.Claim; claim == nil || !claim.Resumed || claim.Attempt != 1 || len(claim.Steps) != steps {
		return fmt.Errorf("the key was continued by %+v; want attempt 1 with %d steps", claim, steps)
	}
	if err := tr.complete(ctx, outcome.Claim, tr.completed()); err != nil {
		return err
	}
	return tr.mustReplay(ctx, tr.completed())
}

func releaseLease(ctx context.Context, tr *trial) answer {
	return leaseAnswer("", tr.cutStore.Release(ctx, tr.claim))
}

func auditRelease(ctx context.Context, tr *trial, got answer) (bool, error) {
	_, err := tr.store.Get(ctx, tr.params().Key)
	gone := errors.Is(err, idempotency.ErrNotFound)
	if err != nil && !gone || got.kind == executed && !gone {
		return gone, fmt.Errorf("the released key is gone: %t, %v", gone, err) //nolint:errorlint // It may be nil.
	}
	if err := tr.store.Release(ctx, tr.claim); errors.Is(err, idempotency.ErrClaimLost) != gone || !gone && err != nil {
		return gone, fmt.Errorf("the key is gone: %t, and releasing again got %v", gone, err) //nolint:errorlint // It may be nil.
	}
	return gone, tr.mustRun(ctx)
}

package pgxstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/db"
	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/txhelper"
)

// RunHeld calls fn in a transaction of its own under the claim of a lease, and
// commits fn's writes and its response together. See idempotency.TxStore.
func (s *Store) RunHeld(ctx context.Context, claim *idempotency.Claim, fn func(ctx context.Context, tx pgx.Tx) (idempotency.Answer, error)) (record *idempotency.Record, err error) {
	if err := claim.ValidateRunHeld(); err != nil {
		return nil, err
	}
	// The claim decides, whatever its request was.
	params := &idempotency.BeginParams{Key: claim.Key, Fingerprint: idempotency.NoFingerprint, TTL: claim.TTL}
	err = s.retry(ctx, "run held", &claim.Key, func(ctx context.Context, connecting *time.Duration) error {
		r := &heldRun{claim: claim, run: run{store: s, params: params, claimID: claim.ID, connecting: connecting}}
		record, err = r.try(ctx, fn)
		return err
	})
	if err != nil {
		return nil, err
	}
	return record, nil
}

// heldRun is one try of RunHeld.
type heldRun struct {
	run
	claim *idempotency.Claim
}

func (r *heldRun) try(ctx context.Context, fn func(ctx context.Context, tx pgx.Tx) (idempotency.Answer, error)) (*idempotency.Record, error) {
	transaction, err := r.hold(ctx)
	if err != nil {
		return nil, err
	}
	// Also on panic and runtime.Goexit, which pass through unchanged.
	defer transaction.Rollback(ctx)
	answer, err := r.call(ctx, transaction, fn)
	if err != nil {
		return nil, err
	}
	if answer.UndoWrites {
		// As in Run: fn's transaction may have been aborted.
		if err := r.undo(ctx, transaction); err != nil {
			return nil, err
		}
		if transaction, err = r.hold(ctx); err != nil {
			return nil, err
		}
		defer transaction.Rollback(ctx)
	}
	return r.finish(ctx, transaction, answer.Response)
}

// hold begins a transaction that has the lock of the key and its row.
func (r *heldRun) hold(ctx context.Context) (*txhelper.Transaction, error) {
	var lock *db.KeyTryLockRow
	lost := false
	transaction, err := r.begin(ctx, func(ctx context.Context) (*txhelper.Transaction, error) {
		return r.store.open(ctx, r.store.db, &r.store.options, func(batch *pgx.Batch) {
			// Waited for: without the hint, rivals would wait for the row, and a lost
			// commit would seem to have ended.
			_ = r.store.queries.KeyLock(ctx, txhelper.Queue(batch, nil), &db.KeyLockParams{LockID: lockID(r.claim.Key)})
			lock = r.queueTryLock(ctx, batch)
			key := r.claim.Key
			_, _ = r.store.queries.KeyHold(ctx, txhelper.Queue(batch, func(err error) error {
				if lost = errors.Is(err, pgx.ErrNoRows); lost {
					return nil
				}
				return err
			}), &db.KeyHoldParams{Scope: key.Scope, ID: key.ID, ClaimID: uuid(r.claim.ID)})
		})
	})
	if err != nil {
		if sqlState(err) == codeLockTimeout {
			return nil, &idempotency.KeyError{Key: r.claim.Key, Err: fmt.Errorf("%w: another call was at the key for longer than lock_timeout: %w", idempotency.ErrSerializationFailure, err)}
		}
		return nil, r.explain(err)
	}
	if err = usable(transaction, lock); err == nil && lost {
		err = r.claimLost()
	}
	if err != nil {
		transaction.Rollback(ctx)
		return nil, err
	}
	return transaction, nil
}

func (r *heldRun) claimLost() error {
	return &idempotency.KeyError{Key: r.claim.Key, Err: idempotency.ErrClaimLost}
}

// finish completes the claim and commits, in one flight. Where it cannot be
// completed the server skips the commit.
func (r *heldRun) finish(ctx context.Context, transaction *txhelper.Transaction, response *idempotency.Response) (*idempotency.Record, error) {
	var done *db.KeyCompleteRow
	r.writeErr = errNotSent
	sent := time.Now()
	err := transaction.Commit(ctx, func(batch *pgx.Batch) {
		_ = r.store.queries.KeyCheckBegan(ctx, txhelper.Queue(batch, nil), &db.KeyCheckBeganParams{ClaimID: uuid(r.claim.ID)})
		done, _ = r.store.queueComplete(ctx, txhelper.Queue(batch, r.wrote), r.claim, response)
	})
	if err == nil {
		return completedRecord(r.claim, response, done)
	}
	if ambiguous, ok := errors.AsType[*txhelper.AmbiguousCommitError](err); ok {
		outcome, err := r.resolve(ctx, ambiguous, sent)
		switch {
		case err != nil:
			return nil, err
		case !outcome.Executed:
			return nil, r.claimLost()
		}
		return outcome.Record, nil
	}
	if r.writeErr != nil && sqlState(err) == codeDivisionByZero {
		// The row is locked: nobody else has done that.
		return nil, &idempotency.KeyError{Key: r.claim.Key, Err: fmt.Errorf("%w: its own function has ended it, or a row trigger or a rule on \"idempotency_keys\" kept its row from being written: nothing was committed", idempotency.ErrClaimLost)}
	}
	return nil, r.notCommitted(err)
}

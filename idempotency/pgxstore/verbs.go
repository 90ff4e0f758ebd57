package pgxstore

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/samecommit/samecommit/db"
	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/txhelper"
)

// verbs are begin, complete and get as part of a caller's transaction.
type verbs struct {
	store *Store
	tx    pgx.Tx
	// looked says that the connection of a foreignTx has been looked at.
	looked atomic.Bool
}

// Begin claims the key as part of the transaction.
func (v *verbs) Begin(ctx context.Context, params *idempotency.BeginParams) (*idempotency.Outcome, error) {
	if err := params.ValidateTx(); err != nil {
		return nil, err
	}
	if err := v.check(); err != nil {
		return nil, err
	}
	if runKey(v.tx) == params.Key {
		// The lock would not tell: it is this session's own.
		return nil, &idempotency.KeyError{Key: params.Key, Err: idempotency.ErrNested}
	}
	outcome, err := v.store.claim(ctx, v.tx, params)
	return outcome, v.explain(params.Key, "begin", lostBeforeCommit(err))
}

// Complete records the response as part of the transaction. Where the claim is
// refused or not held, a statement that failed has aborted the transaction.
func (v *verbs) Complete(ctx context.Context, claim *idempotency.Claim, response *idempotency.Response) (*idempotency.Record, error) {
	if err := response.Validate(); err != nil {
		return nil, err
	}
	if err := v.check(); err != nil {
		return nil, err
	}
	refused := claim.ValidateComplete()
	if refused != nil {
		claim = noClaim
	}
	record, err := v.store.complete(ctx, v.tx, claim, response)
	if err != nil {
		v.abort(ctx)
	}
	if refused != nil {
		return nil, refused
	}
	return record, v.explain(claim.Key, "complete", lostBeforeCommit(err))
}

// abort keeps the transaction from committing, after a completion that has failed.
// Where its statement was sent, that has done so.
func (v *verbs) abort(ctx context.Context) {
	if txStatus(v.tx) != 'T' {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), txhelper.DefaultRollbackTimeout)
	defer cancel()
	_ = v.store.queries.Abort(ctx, v.tx) // it fails, or the connection does
}

// noClaim stands for a claim that is refused. It matches no row, so the
// statement aborts the transaction, which must not commit what was done for it.
var noClaim = &idempotency.Claim{}

// AddStep records a step as part of the transaction, which cannot commit where
// that fails, as for Complete.
func (v *verbs) AddStep(ctx context.Context, claim *idempotency.Claim, step *idempotency.StepRecord) error {
	if err := step.Validate(); err != nil {
		return err
	}
	if err := v.check(); err != nil {
		return err
	}
	err := claim.ValidateAddStep()
	if err == nil {
		err = v.explain(claim.Key, "add step", lostBeforeCommit(v.store.addStep(ctx, v.tx, claim, step)))
	}
	if err != nil {
		v.abort(ctx)
	}
	return err
}

// Get returns the record as the transaction sees it.
func (v *verbs) Get(ctx context.Context, key idempotency.Key) (*idempotency.Record, error) {
	if err := key.Validate(); err != nil {
		return nil, err
	}
	if err := v.check(); err != nil {
		return nil, err
	}
	return v.store.get(ctx, v.tx, key)
}

func errNoTx() error {
	return &idempotency.ParamError{Field: "tx", Reason: "is nil; pass an open transaction"}
}

func (v *verbs) check() error {
	if v.tx == nil {
		return errNoTx()
	}
	foreign, ok := v.tx.(foreignTx)
	switch {
	case !ok:
		return checkEncoding(v.tx.Conn())
	case v.looked.Load():
		return nil
	}
	if err := foreign.Look(checkEncoding); err != nil {
		return explainWithoutKey("look at the transaction's connection", err)
	}
	v.looked.Store(true)
	return nil
}

// maxClaimRounds bounds how often claim looks again after a row changed under
// it. Every round means that another transaction made progress.
const maxClaimRounds = 10

// claim tries once to claim the key: for the transaction that q belongs to, or,
// with params.Lease set, under a lease.
func (s *Store) claim(ctx context.Context, q txhelper.Querier, params *idempotency.BeginParams) (*idempotency.Outcome, error) {
	start := time.Now()
	claim := &idempotency.Claim{Key: params.Key, ID: params.ClaimID, TTL: params.TTL}
	if claim.ID == (idempotency.ClaimID{}) {
		claim.ID = idempotency.NewClaimID()
	}
	var lease pgtype.Interval
	if params.Lease > 0 {
		lease = interval(params.Lease)
		claim.Deadline = start.Add(params.Lease)
	}
	claimed := func(attempt int32, lockedUntil pgtype.Timestamptz) *idempotency.Outcome {
		claim.Attempt, claim.LockedUntil = int(attempt), lockedUntil.Time
		return &idempotency.Outcome{State: idempotency.New, Claim: claim}
	}

	for range maxClaimRounds {
		fresh, err := s.queries.KeyClaim(ctx, q, &db.KeyClaimParams{
			Scope: params.Key.Scope, ID: params.Key.ID, ClaimID: uuid(claim.ID),
			Fingerprint: params.Fingerprint.Bytes(), Lease: lease, LockID: lockID(params.Key),
		})
		if err == nil {
			return claimed(fresh.Attempt, fresh.LockedUntil), nil
		}
		if !errors.Is(err, pgx.ErrNoRows) {
			return nil, err
		}

		// A statement of its own: KeyClaim's snapshot is older than the end of
		// the transaction that it may have waited for.
		seen, err := s.lookUp(ctx, q, params.Key)
		if err != nil {
			return nil, err
		}
		if seen == nil {
			return &idempotency.Outcome{State: idempotency.InProgress}, nil
		}
		if seen.unfinished() {
			own, err := s.isOwn(ctx, q, seen)
			if err != nil {
				return nil, err
			}
			return nil, unfinishedError(params.Key, own)
		}
		if outcome, err := seen.outcome(params); outcome != nil || err != nil {
			return outcome, err
		}

		before, err := seen.record()
		if err != nil {
			return nil, err
		}
		again, err := s.queries.KeyReclaim(ctx, q, &db.KeyReclaimParams{
			Scope: params.Key.Scope, ID: params.Key.ID, ClaimID: uuid(claim.ID), Attempt: int32(before.NextAttempt(claim.ID)), //nolint:gosec // It was an int32, and one more.
			Fingerprint: before.NextFingerprint(params).Bytes(), Lease: lease, LockID: lockID(params.Key),
			SeenClaimID: seen.ClaimID, SeenExpiresAt: seen.ExpiresAt, SeenLockedUntil: seen.LockedUntil,
		})
		if err == nil {
			claim.Resumed = !seen.completed()
			if claim.Steps, err = parseSteps(again.Steps); err != nil {
				return nil, &idempotency.KeyError{Key: params.Key, Err: err}
			}
			return claimed(again.Attempt, again.LockedUntil), nil
		}
		if !errors.Is(err, pgx.ErrNoRows) {
			return nil, err
		}
		now, err := s.lookUp(ctx, q, params.Key)
		if err != nil {
			return nil, err
		}
		if seen.same(now) {
			return &idempotency.Outcome{State: idempotency.InProgress}, nil // another transaction is at work on it
		}
	}
	return &idempotency.Outcome{State: idempotency.InProgress}, nil
}

func (s *Store) complete(ctx context.Context, q txhelper.Querier, claim *idempotency.Claim, response *idempotency.Response) (*idempotency.Record, error) {
	done, err := s.queueComplete(ctx, q, claim, response)
	if sqlState(err) == codeDivisionByZero {
		return nil, &idempotency.KeyError{Key: claim.Key, Err: idempotency.ErrClaimLost}
	}
	if err != nil {
		return nil, err
	}
	return completedRecord(claim, response, done)
}

// queueComplete sends the completion, or queues it, where q does.
func (s *Store) queueComplete(ctx context.Context, q txhelper.Querier, claim *idempotency.Claim, response *idempotency.Response) (*db.KeyCompleteRow, error) {
	return s.queries.KeyComplete(ctx, q, &db.KeyCompleteParams{
		Scope: claim.Key.Scope, ID: claim.Key.ID, ClaimID: uuid(claim.ID),
		Response: response.Body, ResponseType: response.Type, TTL: interval(claim.TTL), LockID: lockID(claim.Key),
	})
}

func completedRecord(claim *idempotency.Claim, response *idempotency.Response, done *db.KeyCompleteRow) (*idempotency.Record, error) {
	completed := &row{key: claim.Key, KeyGetRow: &db.KeyGetRow{
		ClaimID: uuid(claim.ID), Attempt: done.Attempt, Fingerprint: done.Fingerprint,
		Response: response.Body, ResponseType: response.Type,
		CreatedAt: done.CreatedAt, UpdatedAt: done.UpdatedAt, ExpiresAt: done.ExpiresAt,
	}}
	return completed.record()
}

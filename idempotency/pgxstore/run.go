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

// Run claims the key in a transaction of its own, calls fn in it and commits
// fn's writes and its response together. See idempotency.TxStore.
func (s *Store) Run(ctx context.Context, params *idempotency.BeginParams, fn func(ctx context.Context, tx pgx.Tx) (*idempotency.Response, error)) (outcome *idempotency.Outcome, executed bool, err error) {
	if err := params.ValidateTx(); err != nil {
		return nil, false, err
	}
	connecting, leftNothing := s.connectTimeout, 0
	err = txhelper.Retry(ctx, s.db, &s.options, func(ctx context.Context) error {
		r := &run{store: s, params: params, claimID: idempotency.NewClaimID(), connecting: &connecting}
		outcome, executed, err = r.try(ctx, fn)
		var lost *leftNothingError
		if errors.As(err, &lost) {
			leftNothing++
			lost.last = leftNothing == maxLeftNothing
		}
		return err
	})
	var exceeded *txhelper.AttemptsExceededError
	var lost *leftNothingError
	switch {
	case errors.As(err, &lost):
		err = lost.unavailable(ctx, params.Key)
	case errors.As(err, &exceeded):
		err = s.explain(params.Key, "run", err)
	}
	if err != nil {
		return nil, false, explainOwned(err)
	}
	return outcome, executed, nil
}

// run is one try of Run: one claim id, one transaction.
type run struct {
	store   *Store
	params  *idempotency.BeginParams
	claimID idempotency.ClaimID
	// connecting is what is left of Config.ConnectTimeout, for all tries.
	connecting *time.Duration
	// seen is the row that the answer replaces: an expired answer, or a claim
	// whose lease has ended. Nil where the key had no row.
	seen *row
}

func (r *run) try(ctx context.Context, fn func(ctx context.Context, tx pgx.Tx) (*idempotency.Response, error)) (*idempotency.Outcome, bool, error) {
	lookInside := r.store.options.TxOptions.IsoLevel != pgx.Serializable
	if !lookInside {
		// Inside, the read would leave a predicate lock in the index and abort
		// neighbours that have nothing to do with this key.
		err := r.store.reach(ctx, r.connecting, func(ctx context.Context) (err error) {
			r.seen, err = r.store.lookUp(ctx, r.store.querier(r.store.db), r.params.Key)
			return err
		})
		if err != nil {
			return nil, false, r.explain(err)
		}
		if outcome, err := r.decided(); outcome != nil || err != nil {
			return r.replay(ctx, r.seen, outcome, err)
		}
	}
	var lock db.KeyTryLockRow
	transaction, err := r.begin(ctx, func(ctx context.Context) (transaction *txhelper.Transaction, err error) {
		transaction, lock, err = r.open(ctx, &r.store.options, lookInside)
		return transaction, err
	})
	if err != nil {
		return nil, false, r.explain(err)
	}
	// Also on panic and runtime.Goexit, which pass through unchanged.
	defer transaction.Rollback(ctx)

	if outcome, err := r.decided(); outcome != nil || err != nil {
		transaction.Rollback(ctx) // what confirms takes a connection of its own
		return r.replay(ctx, r.seen, outcome, err)
	}
	if lock.ReadOnly {
		return nil, false, &idempotency.KeyError{Key: r.params.Key, Err: idempotency.ErrReadOnly}
	}
	if !lock.Locked {
		return &idempotency.Outcome{State: idempotency.InProgress}, false, nil
	}

	response, err := fn(ctx, ownedTx{transaction.Tx(), r.params.Key})
	if err == nil {
		err = response.Validate()
	}
	if cause := transaction.Cause(err); cause != nil {
		if transaction.Tx().Conn().IsClosed() && endedIdle(cause) {
			cause = r.idle(cause)
		}
		transaction.Rollback(ctx)
		return r.afterFailure(ctx, cause)
	}
	if response.RolledBack {
		// A new transaction: fn's may have been aborted by an SQL error, which
		// is what it wants recorded.
		transaction.Rollback(ctx)
		transaction, err = r.begin(ctx, func(ctx context.Context) (*txhelper.Transaction, error) {
			return r.store.open(ctx, &r.store.options, func(batch *pgx.Batch) {
				txhelper.Queue(batch, r.tryLock(ctx, nil))
			})
		})
		if err != nil {
			return nil, false, r.explain(err)
		}
		defer transaction.Rollback(ctx)
	}
	return r.finish(ctx, transaction, response)
}

// begin opens a transaction once there is a server to open it on.
func (r *run) begin(ctx context.Context, open func(ctx context.Context) (*txhelper.Transaction, error)) (transaction *txhelper.Transaction, err error) {
	err = r.store.reach(ctx, r.connecting, func(ctx context.Context) (err error) {
		transaction, err = open(ctx)
		return err
	})
	return transaction, err
}

// decided judges the row that was seen, if there was one that leaves no choice.
func (r *run) decided() (*idempotency.Outcome, error) {
	if r.seen.unfinished() {
		if _, nested := r.store.db.(pgx.Tx); nested {
			return nil, &idempotency.KeyError{Key: r.params.Key, Err: idempotency.ErrNested}
		}
		return nil, strayError(r.params.Key)
	}
	return r.seen.outcome(r.params.Fingerprint)
}

// explain is for the errors of statements that no COMMIT came with, or that made
// the server skip it.
func (r *run) explain(err error) error {
	return r.store.explain(r.params.Key, "run", lostBeforeCommit(err))
}

func (r *run) idle(err error) error {
	return &idempotency.KeyError{Key: r.params.Key, Err: fmt.Errorf("%w: %w", ErrIdleTimeout, err)}
}

// open begins a transaction and tries the lock, and with look set also takes the
// look that decides, all in one flight.
func (r *run) open(ctx context.Context, options *txhelper.Options, look bool) (transaction *txhelper.Transaction, lock db.KeyTryLockRow, err error) {
	transaction, err = r.store.open(ctx, options, func(batch *pgx.Batch) {
		// Two statements: under READ COMMITTED the snapshot of one would be older
		// than its lock, and miss the answer of the holder that has just let go
		// of it. Under REPEATABLE READ it is older all the same: fn may then run
		// in vain, and the unique index undoes it.
		txhelper.Queue(batch, r.tryLock(ctx, &lock))
		if look {
			txhelper.Queue(batch, func(q txhelper.Querier) (err error) {
				r.seen, err = r.store.lookUp(ctx, q, r.params.Key)
				return err
			})
		}
	})
	return transaction, lock, err
}

// tryLock is in the first flight of every transaction here. It also leaves the
// claim id with the transaction, which the last statement asks for.
func (r *run) tryLock(ctx context.Context, lock *db.KeyTryLockRow) func(q txhelper.Querier) error {
	return func(q txhelper.Querier) error {
		tried, err := r.store.queries.KeyTryLock(ctx, q, &db.KeyTryLockParams{
			LockID: lockID(r.params.Key), ClaimID: uuid(r.claimID), IdleTimeout: r.store.idleSetting(),
		})
		if err == nil && lock != nil {
			*lock = *tried
		}
		return err
	}
}

// finish writes the finished row and commits, in one flight. Where the row
// cannot be written the server skips the commit.
func (r *run) finish(ctx context.Context, transaction *txhelper.Transaction, response *idempotency.Response) (*idempotency.Outcome, bool, error) {
	completed := &row{key: r.params.Key, KeyGetRow: &db.KeyGetRow{
		Status: statusCompleted, ClaimID: uuid(r.claimID), Attempt: 1, Fingerprint: r.params.Fingerprint.Bytes(),
		Response: response.Body, ResponseType: &response.Type,
	}}
	if r.seen != nil && r.seen.Status == statusInProgress {
		completed.Attempt = r.seen.Attempt + 1
	}
	var insertErr error
	sent := time.Now()
	err := transaction.Commit(ctx, func(batch *pgx.Batch) {
		txhelper.Queue(batch, func(q txhelper.Querier) error {
			insertErr = r.insert(ctx, q, completed)
			return insertErr
		})
	})
	var ambiguous *txhelper.AmbiguousCommitError
	switch {
	case err == nil:
		record, err := completed.record()
		return &idempotency.Outcome{State: idempotency.Completed, Record: record}, true, err
	case errors.As(err, &ambiguous):
		// insert may still be at work on completed and insertErr.
		return r.resolve(ctx, ambiguous, sent)
	case endedIdle(err):
		return r.afterFailure(ctx, r.idle(err))
	case errors.Is(err, txhelper.ErrLostBeforeCommit):
		return r.afterFailure(ctx, &leftNothingError{cause: err})
	case insertErr == nil || !errors.Is(err, insertErr):
		return r.afterFailure(ctx, err)
	}
	// Ours is known by its position: a constraint of the caller's, deferred to
	// the commit, may raise the same codes.
	switch state := sqlState(insertErr); {
	case state == codeUniqueViolation, state == codeDivisionByZero, state == codeLockTimeout:
		return r.afterFailure(ctx, errTryAgain)
	case saysEnded(insertErr):
		return r.afterFailure(ctx, txhelper.ErrEnded)
	default:
		return r.afterFailure(ctx, r.explain(err))
	}
}

// insert writes the finished row, and fills in the times that it got.
func (r *run) insert(ctx context.Context, q txhelper.Querier, completed *row) error {
	key, queries := r.params.Key, r.store.queries
	var times *db.KeyInsertCompletedRow
	var err error
	if r.seen == nil {
		times, err = queries.KeyInsertCompleted(ctx, q, &db.KeyInsertCompletedParams{
			Scope: key.Scope, ID: key.ID, ClaimID: uuid(r.claimID), Fingerprint: completed.Fingerprint,
			Response: completed.Response, ResponseType: *completed.ResponseType, TTL: r.params.TTL,
		})
	} else {
		var replaced *db.KeyReplaceCompletedRow
		replaced, err = queries.KeyReplaceCompleted(ctx, q, &db.KeyReplaceCompletedParams{
			Scope: key.Scope, ID: key.ID, ClaimID: uuid(r.claimID), Fingerprint: completed.Fingerprint, Attempt: completed.Attempt,
			Response: completed.Response, ResponseType: *completed.ResponseType, TTL: r.params.TTL,
			SeenClaimID: r.seen.ClaimID, SeenStatus: r.seen.Status, SeenLockedUntil: r.seen.LockedUntil,
		})
		times = (*db.KeyInsertCompletedRow)(replaced) // the same columns
	}
	if err != nil {
		return err
	}
	completed.CreatedAt, completed.UpdatedAt, completed.ExpiresAt = times.CreatedAt, times.UpdatedAt, &times.ExpiresAt
	return nil
}

// afterFailure looks, in a fresh snapshot, whether a rival has answered
// meanwhile, and otherwise returns cause. Nothing of this try is committed,
// unless cause is txhelper.ErrEnded.
func (r *run) afterFailure(ctx context.Context, cause error) (*idempotency.Outcome, bool, error) {
	if errors.Is(cause, txhelper.ErrOwned) || errors.Is(cause, txhelper.ErrEnded) {
		return nil, false, cause // a mistake in fn, which a replay would hide
	}
	found, err := r.store.lookUp(ctx, r.store.querier(r.store.db), r.params.Key)
	if err != nil || !found.live() {
		return nil, false, cause //nolint:nilerr // cause is what went wrong; the look was an extra.
	}
	outcome, err := found.outcome(r.params.Fingerprint)
	return r.replay(ctx, found, outcome, err)
}

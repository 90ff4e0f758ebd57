package pgxstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/txhelper"
)

const (
	firstResolvePoll   = 5 * time.Millisecond
	longestResolvePoll = 250 * time.Millisecond
	// resolveTries is in how many parts ResolveTimeout is spent at least: a look
	// over another of the pool's connections, lost in the same silence as the
	// commit's, must leave time for one over the next.
	resolveTries = 4
	// resolveTriesLent is for a txhelper.Lender: a connection that takes longer to open than
	// a look may take is opened for nothing there, while pgxpool has it for the next one.
	resolveTriesLent = 2
)

// lookTimeout bounds one look.
func (s *Store) lookTimeout() time.Duration {
	if _, lent := s.db.(txhelper.Lender); lent {
		return s.resolveTimeout / resolveTriesLent
	}
	return s.resolveTimeout / resolveTries
}

// resolve finds out what became of a commit whose reply was lost, by claiming
// the key again. A look at the row alone would not do: a commit that waits for a
// standby cannot be seen yet. The lock tells that the lost transaction has ended.
//
// What can be seen may not be on the standby: a server that was told to cancel
// the commit, or to end its connection, stops waiting and shows the row. So an
// answer is returned only once a commit that waits has come after it.
//
// Once the TTL has passed since sent, an answer that was committed may have gone.
func (r *run) resolve(ctx context.Context, ambiguous *txhelper.AmbiguousCommitError, sent time.Time) (*idempotency.Outcome, error) {
	resolveCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.store.resolveTimeout)
	defer cancel()
	cause := error(ambiguous)
	for poll := firstResolvePoll; r.store.canReconnect(); poll = min(2*poll, longestResolvePoll) {
		outcome, err := r.lookForCommit(resolveCtx)
		var leftNothing *leftNothingError
		switch {
		case errors.As(err, &leftNothing):
			if time.Since(sent) < r.params.TTL {
				return nil, &leftNothingError{cause: ambiguous.Err}
			}
			return nil, r.unknown(fmt.Errorf("%w; its TTL has passed", ambiguous))
		case errors.Is(err, idempotency.ErrFingerprintMismatch):
			return nil, err
		case err == nil && outcome != nil:
			return outcome, nil
		case err != nil && resolveCtx.Err() == nil:
			cause = fmt.Errorf("%w; looking for it: %w", ambiguous, err)
			if isRefused(err) {
				return nil, r.unknown(cause)
			}
		}
		timer := time.NewTimer(poll)
		select {
		case <-timer.C:
			continue
		case <-resolveCtx.Done():
			timer.Stop()
		}
		break
	}
	return nil, r.unknown(cause)
}

func (r *run) unknown(cause error) error {
	return &idempotency.KeyError{Key: r.params.Key, Err: fmt.Errorf("%w: call again with the same key: %w", idempotency.ErrOutcomeUnknown, cause)}
}

// lookForCommit looks once for what the lost commit, or another, has left, and
// returns it once it is as durable as the server makes it. Where the lost one has
// ended and left nothing, the error is a *leftNothingError; all nil means that it
// has not ended.
//
// The look's own transaction confirms what it saw: its commit, which writes to the
// log, waits as the lost one did. Over another connection it might be committed on
// another server, which a failover has put in the place of the one that was seen.
func (r *run) lookForCommit(ctx context.Context) (outcome *idempotency.Outcome, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.store.lookTimeout())
	defer cancel()
	database := r.store.db
	borrowed, pooled, err := txhelper.Borrow(ctx, database)
	if err != nil {
		return nil, err
	}
	if pooled {
		defer borrowed.Release()
		database = borrowed.Conn()
	}
	options := r.store.options
	// The look must be newer than the lock, which needs a snapshot for each.
	options.TxOptions = pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: options.TxOptions.AccessMode}
	if deadline, ok := ctx.Deadline(); ok {
		options.CommitTimeout = max(time.Until(deadline), time.Millisecond)
	}
	again := &run{store: r.store, params: r.params, claimID: idempotency.NewClaimID()}
	transaction, lock, err := again.open(ctx, database, &options, true)
	if err != nil {
		return nil, err
	}
	defer transaction.Rollback(ctx)
	found := again.seen
	switch {
	case found.completed() && found.ClaimID == uuid(r.claimID):
		record, err := found.record()
		if err != nil {
			return nil, err
		}
		outcome = &idempotency.Outcome{State: idempotency.Completed, Record: record, Executed: true}
	case found.live():
		if outcome, err = found.outcome(r.params); err != nil {
			return nil, err
		}
	case lock.Locked && !lock.ReadOnly:
		return nil, &leftNothingError{}
	default:
		// A standby has locks of its own, and may not have the row yet.
		return nil, nil
	}
	err = transaction.Commit(ctx, func(batch *pgx.Batch) {
		_ = r.store.queries.ConfirmDurable(ctx, txhelper.Queue(batch, nil))
	})
	switch {
	case err == nil:
		return outcome, nil
	case sqlState(err) == codeNoPrivilege:
		err = fmt.Errorf("the role may not execute pg_logical_emit_message, which PostgreSQL grants to PUBLIC: %w", err)
	}
	return nil, fmt.Errorf("an answer was found, and could not be confirmed to be durable: %w", err)
}

// isRefused reports whether the server will say so each time: a right or a
// function is missing.
func isRefused(err error) bool { return strings.HasPrefix(sqlState(err), "42") }

// replay returns what a look has found, an answer only once it is confirmed, if it
// is young enough for Config.ConfirmReplays.
func (r *run) replay(ctx context.Context, found *row, outcome *idempotency.Outcome, err error) (*idempotency.Outcome, error) {
	if err != nil || outcome.State != idempotency.Completed || found.ReadAt.Time.Sub(found.UpdatedAt.Time) >= r.store.confirmReplays {
		return outcome, err
	}
	if _, nested := r.store.db.(pgx.Tx); nested {
		return outcome, nil // the caller's own commit waits
	}
	ctx, cancel := context.WithTimeout(ctx, r.store.resolveTimeout)
	defer cancel()
	outcome, err = r.lookForCommit(ctx)
	var leftNothing *leftNothingError
	switch {
	case errors.As(err, &leftNothing):
		return nil, errTryAgain // it went with the server that had it, or has expired
	case errors.Is(err, idempotency.ErrFingerprintMismatch):
		return nil, err
	case err != nil:
		return nil, r.unknown(err)
	case outcome == nil:
		return &idempotency.Outcome{State: idempotency.InProgress}, nil
	}
	return outcome, nil
}

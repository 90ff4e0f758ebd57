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

// Transact calls fn in a transaction of its own, without a key. See
// idempotency.TxStore.
func (s *Store) Transact(ctx context.Context, fn func(ctx context.Context, tx pgx.Tx) error) error {
	return s.retry(ctx, "transact", nil, func(ctx context.Context, connecting *time.Duration) error {
		return s.transact(ctx, connecting, fn)
	})
}

func (s *Store) transact(ctx context.Context, connecting *time.Duration, fn func(ctx context.Context, tx pgx.Tx) error) error {
	var transaction *txhelper.Transaction
	err := s.reach(ctx, connecting, func(ctx context.Context) (err error) {
		transaction, err = s.open(ctx, s.db, &s.options, func(batch *pgx.Batch) { s.queueIdleTimeout(ctx, batch) })
		return err
	})
	if err != nil {
		return explainWithoutKey("transact", lostBeforeCommit(err))
	}
	defer transaction.Rollback(ctx)
	err = fn(ctx, &ownedTx{Tx: transaction.Tx()})
	if cause := transaction.Cause(err); cause != nil {
		if transaction.Tx().Conn().IsClosed() && endedIdle(cause) {
			cause = fmt.Errorf("%w: %w", ErrIdleTimeout, cause)
		}
		return cause
	}
	err = transaction.Commit(ctx, nil)
	var ambiguous *txhelper.AmbiguousCommitError
	switch {
	case errors.As(err, &ambiguous):
		return fmt.Errorf("%w: %w", idempotency.ErrOutcomeUnknown, err)
	case endedIdle(err):
		return fmt.Errorf("%w: %w", ErrIdleTimeout, err)
	case errors.Is(err, txhelper.ErrLostBeforeCommit):
		return &leftNothingError{cause: err}
	}
	return err
}

// queueIdleTimeout queues what KeyTryLock does for a transaction with a key.
func (s *Store) queueIdleTimeout(ctx context.Context, batch *pgx.Batch) {
	if s.idleSetting.Valid {
		_ = s.queries.SetLocal(ctx, txhelper.Queue(batch, nil), &db.SetLocalParams{Name: "idle_in_transaction_session_timeout", Value: s.idleSetting.String})
	}
}

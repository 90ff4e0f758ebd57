package pgxstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/samecommit/samecommit/db"
	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/txhelper"
)

// guard is the constraint that keeps a key which was begun and not completed
// from being committed.
const guard = "idempotency_keys_completed_before_commit"

// ErrConstraintsImmediate means that the transaction has made the guard of
// unfinished keys immediate, by SET CONSTRAINTS ALL IMMEDIATE for one, so that no
// key can be begun in it.
var ErrConstraintsImmediate = errors.New("pgxstore: the guard of unfinished keys is checked at once in this transaction: roll back, and run SET CONSTRAINTS idempotency_keys_completed_before_commit DEFERRED after SET CONSTRAINTS ALL IMMEDIATE")

// isGuard reports whether err is the guard's.
func isGuard(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == codeForeignKey && pgErr.ConstraintName == guard
}

// immediate tells an error of the guard that left the transaction aborted, as it
// does where SET CONSTRAINTS made it immediate, from one that ended a transaction
// of the statement's own.
func (v *verbs) immediate(err error) error {
	if isGuard(err) && txStatus(v.tx) == 'E' {
		return fmt.Errorf("%w: %w", ErrConstraintsImmediate, withoutDetail(err))
	}
	return err
}

// isOwn reports whether the transaction of q has begun the unfinished row.
func (s *Store) isOwn(ctx context.Context, q txhelper.Querier, unfinished *row) (bool, error) {
	return s.queries.KeyIsOwn(ctx, q, &db.KeyIsOwnParams{LockID: lockID(unfinished.key), ClaimID: unfinished.ClaimID})
}

// unfinishedError tells a key that this transaction has begun before from one
// that was committed unfinished, which only disabled triggers allow.
func unfinishedError(key idempotency.Key, own bool) error {
	if own {
		return &idempotency.KeyError{Key: key, Err: idempotency.ErrNested}
	}
	return strayError(key)
}

func strayError(key idempotency.Key) error {
	return &idempotency.KeyError{Key: key, Err: fmt.Errorf("%w: its transaction was committed with the guard disabled, by a replication role or a restore: once you know that its work did not happen, run DELETE FROM idempotency_keys WHERE unfinished IS NOT NULL AND scope = $1 AND id = $2", idempotency.ErrUnfinished)}
}

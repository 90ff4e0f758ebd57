package pgxstore

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/txhelper"
)

// errOwned refuses Commit and Rollback to the functions of callers.
var errOwned = fmt.Errorf("%w: %w", idempotency.ErrOwned, txhelper.ErrOwned)

// ownedTx is the transaction that a caller's function gets.
type ownedTx struct {
	pgx.Tx
	// runKey is the key that Run holds by this transaction, without a row yet.
	runKey idempotency.Key
}

// Begin starts a nested transaction, which still is under the key.
func (tx *ownedTx) Begin(ctx context.Context) (pgx.Tx, error) {
	nested, err := tx.Tx.Begin(ctx)
	if err != nil {
		return nil, err
	}
	return &ownedTx{nested, tx.runKey}, nil
}

// Note is that of the transaction of txhelper's behind it.
func (tx *ownedTx) Note(err error) error {
	if noting, ok := tx.Tx.(interface{ Note(err error) error }); ok {
		return noting.Note(err)
	}
	return err
}

// runKey returns the key that Run holds by tx, zero if tx is not of Run.
func runKey(tx pgx.Tx) idempotency.Key {
	if owned, ok := tx.(*ownedTx); ok {
		return owned.runKey
	}
	return idempotency.Key{}
}

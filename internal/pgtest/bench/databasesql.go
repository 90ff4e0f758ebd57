package bench

import (
	"context"
	"database/sql"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/storetest"
)

// EffectOnSQL is Effect on database/sql.
func EffectOnSQL(ctx context.Context, tx *sql.Tx, name string) error {
	_, err := tx.ExecContext(ctx, insertEffect, name)
	return err
}

// HarnessOnSQL is for a store on db, whose database has the table for effects, and for
// callers' transactions of this level.
func HarnessOnSQL(db *sql.DB, store idempotency.TxStore[*sql.Tx], callers sql.IsolationLevel) storetest.Harness[*sql.Tx] {
	return storetest.Harness[*sql.Tx]{
		Store: store,
		Begin: func(ctx context.Context) (*sql.Tx, func(context.Context) error, func(context.Context) error, error) {
			tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: callers})
			if err != nil {
				return nil, nil, nil, err
			}
			return tx, func(context.Context) error { return tx.Commit() }, func(context.Context) error { return tx.Rollback() }, nil
		},
		Effect: EffectOnSQL,
		Effects: func(ctx context.Context, name string) (count int, err error) {
			err = db.QueryRowContext(ctx, countEffects, name).Scan(&count)
			return count, err
		},
		Commit:       func(_ context.Context, tx *sql.Tx) error { return tx.Commit() },
		Rollback:     func(_ context.Context, tx *sql.Tx) error { return tx.Rollback() },
		CallerMayEnd: true,
	}
}

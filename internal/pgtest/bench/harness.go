package bench

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/idempotency/storetest"
)

// Harness hands the bench to storetest.RunTx. A caller's own transactions begin
// with these options.
func (b *Bench) Harness(callers pgx.TxOptions) storetest.Harness[pgx.Tx] {
	return storetest.Harness[pgx.Tx]{
		Store: b.Store,
		Begin: func(ctx context.Context) (pgx.Tx, func(context.Context) error, func(context.Context) error, error) {
			tx, err := b.Pool.BeginTx(ctx, callers)
			if err != nil {
				return nil, nil, nil, err
			}
			return tx, tx.Commit, tx.Rollback, nil
		},
		Effect: Effect,
		Effects: func(ctx context.Context, name string) (count int, err error) {
			err = b.Pool.QueryRow(ctx, countEffects, name).Scan(&count)
			return count, err
		},
		Commit:   func(ctx context.Context, tx pgx.Tx) error { return tx.Commit(ctx) },
		Rollback: func(ctx context.Context, tx pgx.Tx) error { return tx.Rollback(ctx) },
	}
}

package storemodel_test

import (
	"context"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/samecommit/samecommit/idempotency/memstore"
	"github.com/samecommit/samecommit/idempotency/storetest"
	"github.com/samecommit/samecommit/tests/storemodel"
)

func TestMemstore(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		rapid.SyncTest(t, func(t *rapid.T) {
			store := memstore.New[*memstore.Tx](nil)
			effects := make(map[string]int)
			storemodel.Check(t, storemodel.Harness[*memstore.Tx]{
				Harness: storetest.Harness[*memstore.Tx]{
					Store: store,
					Begin: func(context.Context) (*memstore.Tx, func(context.Context) error, func(context.Context) error, error) {
						tx := store.NewTx()
						return tx, tx.Commit, tx.Rollback, nil
					},
					Effect: func(_ context.Context, tx *memstore.Tx, name string) error {
						tx.OnCommit(func() { effects[name]++ })
						return nil
					},
					Effects: func(_ context.Context, name string) (int, error) { return effects[name], nil },
				},
				Scope: "model",
				Pass: func(_ context.Context, duration time.Duration) error {
					time.Sleep(duration) // the bubble's clock
					return nil
				},
			})
		})
	})
}

package tests_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
	"github.com/samecommit/samecommit/idempotency/storetest"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

func TestStoreContract(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) idempotency.Store {
		t.Helper()
		return bench.NewStore(t, pgtest.DB(t), nil)
	})
}

func TestTransactionContract(t *testing.T) {
	t.Parallel()
	for _, level := range []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable} {
		t.Run(string(level), func(t *testing.T) {
			t.Parallel()
			storetest.RunTx(t, func(t *testing.T) storetest.Harness[pgx.Tx] {
				t.Helper()
				b := bench.New(t, pgtest.DB(t), &pgxstore.Config{TxOptions: pgx.TxOptions{IsoLevel: level}}, nil)
				callers := level
				if level == pgx.Serializable {
					// There the loser of a race may not stay usable, which is
					// right: TestWriteSkewBetweenKeys.
					callers = pgx.RepeatableRead
				}
				return b.Harness(pgx.TxOptions{IsoLevel: callers})
			})
		})
	}
}

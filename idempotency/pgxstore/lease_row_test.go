package pgxstore_test

import (
	"errors"
	"testing"
	"time"

	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

// A lease is renewed without a new entry in any index, which would be one for each
// renewal until a vacuum.
func TestRenewalIsAHeapOnlyUpdate(t *testing.T) {
	t.Parallel()
	pool := pgtest.DB(t)
	b := bench.New(t, pool, nil, nil)
	outcome, err := b.Store.Begin(t.Context(), leased("k", time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	const renewals = 200
	for range renewals {
		if _, err := b.Store.Extend(t.Context(), outcome.Claim, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(b.Store.AddStep(t.Context(), outcome.Claim, stepOf("charge")), b.Store.Suspend(t.Context(), outcome.Claim)); err != nil {
		t.Fatal(err)
	}
	pool.Reset() // a backend hands its counts on when it ends
	var updates, heapOnly int
	bench.WaitFor(t, func() bool {
		if err := pool.QueryRow(t.Context(), `SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relid = 'idempotency_keys'::regclass`).Scan(&updates, &heapOnly); err != nil {
			t.Fatal(err)
		}
		return updates == renewals+2
	})
	// One that finds its page full goes to another page.
	if heapOnly < renewals*9/10 {
		t.Errorf("%d of %d updates are heap-only", heapOnly, updates)
	}
}

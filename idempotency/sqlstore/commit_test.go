package sqlstore_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/sqlstore"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

// A commit that is left alone has its connection until the server replies, and the pool
// gets its place back then.
func TestCommitIsAbandonedNotCancelled(t *testing.T) {
	t.Parallel()
	b := newBench(t, &sqlstore.Config{CommitTimeout: 50 * time.Millisecond, ResolveTimeout: 200 * time.Millisecond})
	b.db.SetMaxOpenConns(2)
	let := bench.SlowCommit(t, b.pool, "effects")
	err := b.do(t.Context(), "slow", func(context.Context, *sql.Tx) error { return nil })
	if !errors.Is(err, idempotency.ErrOutcomeUnknown) {
		t.Errorf("%v, want ErrOutcomeUnknown", err)
	}
	bench.WaitFor(t, func() bool { return bench.Count(t, b.pool, bench.WaitingCommits) == 1 })
	if inUse := b.db.Stats().InUse; inUse != 1 {
		t.Errorf("%d connections are in use, want that of the commit", inUse)
	}
	let()
	bench.WaitFor(t, func() bool { return b.db.Stats().InUse == 0 })
	b.want(t, "slow", 1, true)
}

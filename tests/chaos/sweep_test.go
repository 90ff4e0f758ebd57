//go:build unix

package chaos_test

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/idempotency"
)

// litterSize is how many expired records a sweep finds.
const litterSize = 3

// litter leaves expired records, a live one and one in progress.
func litter(ctx context.Context, tr *trial) error {
	for i := range litterSize {
		params := tr.params()
		params.Key.ID += fmt.Sprintf(" expired %d", i)
		params.TTL = time.Microsecond
		if _, err := idempotency.Do(ctx, tr.client, params, func(context.Context, pgx.Tx) (string, error) { return "", nil }); err != nil {
			return err
		}
	}
	if err := record(ctx, tr); err != nil {
		return err
	}
	begin := tr.beginParams(time.Millisecond)
	begin.Key.ID += " leased"
	_, err := tr.store.Begin(ctx, begin)
	return err
}

func sweep(ctx context.Context, tr *trial) answer {
	deleted, err := tr.cutStore.DeleteExpired(ctx, 0)
	if err == nil && deleted != litterSize {
		err = fmt.Errorf("deleted %d records, want %d: %w", deleted, litterSize, idempotency.ErrClaimLost)
	}
	return leaseAnswer("", err)
}

func auditSweep(ctx context.Context, tr *trial, got answer) (bool, error) {
	if got.kind == failed {
		return false, got.err
	}
	var left, kept int
	if err := tr.pool.QueryRow(ctx, `SELECT count(*) FILTER (WHERE id LIKE $1 || ' expired %'), count(*) FILTER (WHERE id IN ($1, $1 || ' leased'))
		FROM idempotency_keys`, tr.key).Scan(&left, &kept); err != nil {
		return false, err
	}
	if kept != 2 || left != 0 && left != litterSize || left != 0 && got.kind == executed {
		return false, fmt.Errorf("%d expired records are left, and %d others, want 2", left, kept)
	}
	// SKIP LOCKED passes over what the cut sweep has not let go of yet.
	for swept := left; swept > 0; {
		deleted, err := tr.store.DeleteExpired(ctx, 0)
		if err != nil {
			return false, err
		}
		swept -= deleted
	}
	return left == 0, tr.mustReplay(ctx, tr.recorded)
}

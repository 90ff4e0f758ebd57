package pgxstore

import (
	"context"
	"math"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/samecommit/samecommit/db"
	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/txhelper"
)

// sweep remembers where the last DeleteExpired ended: what it deleted stays in
// the index until a vacuum, and would be walked over again.
type sweep struct {
	mu sync.Mutex
	// until is the expiry of the last row that was deleted; zero where the next
	// sweep begins at the oldest.
	until time.Time
}

func (s *sweep) begin() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.until
}

func (s *sweep) end(until time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.until = until
}

// DeleteExpired deletes expired records. See idempotency.Sweeper.
func (s *Store) DeleteExpired(ctx context.Context, limit int) (int, error) {
	if limit < 0 || limit > math.MaxInt32 {
		return 0, &idempotency.ParamError{Field: "limit", Reason: "is not between 0 and 2,147,483,647"}
	}
	if limit == 0 {
		limit = idempotency.DefaultDeleteLimit
	}
	if s.settings != nil {
		// What one caller may see, and so where its sweep ended, tells nothing
		// about another's.
		deleted, _, err := s.deleteExpired(ctx, time.Time{}, limit)
		return deleted, err
	}
	begin := s.sweep.begin()
	deleted, until, err := s.deleteExpired(ctx, begin, limit)
	if err != nil {
		return 0, err
	}
	if deleted == limit {
		s.sweep.end(until)
		return deleted, nil
	}
	s.sweep.end(time.Time{})
	if begin.IsZero() {
		return deleted, nil
	}
	// What was locked before, or came to lie before the place where this sweep
	// began.
	older, _, err := s.deleteExpired(ctx, time.Time{}, limit-deleted)
	return deleted + older, err
}

func (s *Store) deleteExpired(ctx context.Context, after time.Time, limit int) (deleted int, until time.Time, err error) {
	queue, err := s.settingsOf(ctx)
	if err != nil {
		return 0, until, err
	}
	batch := &pgx.Batch{}
	queue(batch)
	_ = s.queries.PlanByIndex(ctx, txhelper.Queue(batch, nil))
	done, _ := s.queries.KeyDeleteExpired(ctx, txhelper.Queue(batch, nil), &db.KeyDeleteExpiredParams{ExpiredAfter: pgtype.Timestamptz{Time: after, Valid: true}, MaxRows: int32(limit)}) //nolint:gosec // The caller has checked it.
	_ = s.queries.PlanAsBefore(ctx, txhelper.Queue(batch, nil))
	if err := s.send(ctx, func(base sender) error { return base.SendBatch(ctx, batch).Close() }); err != nil {
		return 0, until, explainWithoutKey("delete expired", err)
	}
	return int(done.Deleted), done.ExpiredUntil.Time, nil
}

package pgxstore

import (
	"context"
	"math"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/samecommit/samecommit/db"
	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/txhelper"
)

// ListAbandoned returns leased work whose lease has ended. See idempotency.Lister.
func (s *Store) ListAbandoned(ctx context.Context, after *idempotency.Record, limit int) ([]*idempotency.Record, error) {
	if limit < 0 || limit > math.MaxInt32 {
		return nil, &idempotency.ParamError{Field: "limit", Reason: "is not between 0 and 2,147,483,647"}
	}
	if limit == 0 {
		limit = idempotency.DefaultListLimit
	}
	queue, err := s.settingsOf(ctx)
	if err != nil {
		return nil, err
	}
	params := &db.KeyListAbandonedParams{AfterAt: pgtype.Timestamptz{InfinityModifier: pgtype.NegativeInfinity, Valid: true}, MaxRows: int32(limit)} //nolint:gosec // As checked above.
	if after != nil {
		params.AfterAt = pgtype.Timestamptz{Time: after.CreatedAt, Valid: true}
		params.AfterScope, params.AfterID = after.Key.Scope, after.Key.ID
	}
	var found []*db.KeyListAbandonedRow
	batch := &pgx.Batch{}
	queue(batch)
	_ = s.queries.PlanByIndex(ctx, txhelper.Queue(batch, nil))
	txhelper.QueueStep(batch, func(q txhelper.Querier) (err error) {
		found, err = s.queries.KeyListAbandoned(ctx, q, params)
		return err
	})
	_ = s.queries.PlanAsBefore(ctx, txhelper.Queue(batch, nil))
	if err := s.send(ctx, func(base sender) error { return base.SendBatch(ctx, batch).Close() }); err != nil {
		return nil, explainWithoutKey("list abandoned", lostBeforeCommit(err))
	}
	records := make([]*idempotency.Record, len(found))
	for i, one := range found {
		row := &row{key: idempotency.Key{Scope: one.Scope, ID: one.ID}, KeyGetRow: &db.KeyGetRow{
			ClaimID: one.ClaimID, Attempt: one.Attempt, Fingerprint: one.Fingerprint,
			CreatedAt: one.CreatedAt, UpdatedAt: one.UpdatedAt, LockedUntil: one.LockedUntil, Steps: one.Steps,
		}}
		if records[i], err = row.record(); err != nil {
			return nil, err
		}
	}
	return records, nil
}

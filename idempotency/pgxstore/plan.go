package pgxstore

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/txhelper"
)

// sendByIndex sends a statement about many rows in one flight, so that its plan
// never reads the whole table: not even one that is made while the table is small
// and kept while it grows.
func (s *Store) sendByIndex(ctx context.Context, base batcher, step func(q txhelper.Querier) error) error {
	batch := &pgx.Batch{}
	_ = s.queries.PlanByIndex(ctx, txhelper.Queue(batch, nil))
	txhelper.QueueStep(batch, step)
	_ = s.queries.PlanAsBefore(ctx, txhelper.Queue(batch, nil))
	return base.SendBatch(ctx, batch).Close()
}

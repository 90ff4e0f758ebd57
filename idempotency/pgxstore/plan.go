package pgxstore

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/txhelper"
)

// queueByIndex queues a statement about many rows so that its plan never reads
// the whole table, also one that is made while the table is small and kept while
// it grows.
func (s *Store) queueByIndex(ctx context.Context, batch *pgx.Batch, step func(q txhelper.Querier) error) {
	_ = s.queries.PlanByIndex(ctx, txhelper.Queue(batch, nil))
	txhelper.QueueStep(batch, step)
	_ = s.queries.PlanAsBefore(ctx, txhelper.Queue(batch, nil))
}

// sendByIndex sends such a statement in one flight.
func (s *Store) sendByIndex(ctx context.Context, base batcher, step func(q txhelper.Querier) error) error {
	batch := &pgx.Batch{}
	s.queueByIndex(ctx, batch, step)
	return base.SendBatch(ctx, batch).Close()
}

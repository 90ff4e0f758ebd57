package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/examples/internal/provider"
	"github.com/samecommit/samecommit/examples/internal/trial"
)

// The books that are compared: the server's, and the client's.
const (
	charges  = "charges"
	receipts = "receipts"
)

// audit compares the server's books with the client's and with what was said.
func audit(ctx context.Context, pool *pgxpool.Pool, t *trial.Trial, said trial.Answer[provider.Receipt]) error {
	var booked, received int
	var charge string
	if err := pool.QueryRow(ctx, `SELECT count(*), coalesce(min(id), '') FROM charges WHERE order_id = $1`, t.Order).Scan(&booked, &charge); err != nil {
		return fmt.Errorf("read the server's charges: %w", err)
	}
	if err := pool.QueryRow(ctx, `SELECT count(*) FROM payments_outbox WHERE id = $1 AND done AND status = 201`, t.Order).Scan(&received); err != nil {
		return fmt.Errorf("read the client's receipts: %w", err)
	}
	trial.Judge(t, said, said.Value.ID, said.Value.ID == charge, map[string]int{charges: booked, receipts: received})
	return nil
}

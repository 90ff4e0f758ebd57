package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/examples/internal/provider"
	"github.com/samecommit/samecommit/examples/internal/trial"
)

// The books that are compared: the provider's and ours.
const (
	charges  = "charges"
	bookings = "bookings"
)

// audit compares the provider's books with ours and with what was said.
func audit(ctx context.Context, pool *pgxpool.Pool, bank *provider.Server, t *trial.Trial, said trial.Answer[Booking]) error {
	var count int
	var charge string
	if err := pool.QueryRow(ctx, `SELECT count(*), coalesce(min(charge_id), '') FROM bookings WHERE order_id = $1`, t.Order).Scan(&count, &charge); err != nil {
		return fmt.Errorf("read the bookings: %w", err)
	}
	agrees := said.Value == Booking{Order: t.Order, Charge: charge}
	trial.Judge(t, said, said.Value.Charge, agrees, map[string]int{charges: len(bank.Receipts(t.Order)), bookings: count})
	return nil
}

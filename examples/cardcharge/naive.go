package main

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/examples/internal/provider"
)

// naiveOrder is the usual way: is the order booked? If not, charge, then book. What was
// charged is known to this process alone until the booking is committed.
func (s *shop) naiveOrder(ctx context.Context, pool *pgxpool.Pool, request provider.Request) (Booking, error) {
	s.at(claimed)
	booking := Booking{Order: request.Order}
	err := pool.QueryRow(ctx, `SELECT charge_id FROM bookings WHERE order_id = $1`, request.Order).Scan(&booking.Charge)
	if !errors.Is(err, pgx.ErrNoRows) {
		return booking, err
	}
	charge, err := request.Send(ctx, s.providerURL, "")
	s.at(charged)
	if err != nil {
		return booking, err
	}
	s.at(recorded) // it is not
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		booking, err = book(ctx, tx, request.Order, charge)
		s.at(booked)
		return err
	})
	return booking, err
}

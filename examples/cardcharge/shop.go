package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/examples/internal/child"
	"github.com/samecommit/samecommit/examples/internal/provider"
	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
)

// lease is short, so that the next process need not wait for long after a kill.
const lease = time.Second

// Booking is the answer to an order.
type Booking struct {
	Order  string `json:"order"`
	Charge string `json:"charge"`
}

// shop charges a card at the provider, and books it here.
type shop struct {
	client      *idempotency.Client[pgx.Tx]
	providerURL string
	// at is called at each point where the process may be killed.
	at func(child.Point)
}

func newShop(database pgxstore.DB, providerURL string, at func(child.Point)) (*shop, error) {
	store, err := pgxstore.New(database, nil)
	if err != nil {
		return nil, err
	}
	client, err := idempotency.NewClient(store, &idempotency.Config{
		Lease:       lease,
		FinalErrors: []idempotency.FinalKind{idempotency.FinalValue("card_declined", provider.ErrDeclined)},
	})
	return &shop{client: client, providerURL: providerURL, at: at}, err
}

func (s *shop) order(ctx context.Context, request provider.Request) (Booking, error) {
	fingerprint := idempotency.FingerprintOf(request.Account, fmt.Sprint(request.Cents))
	result, err := idempotency.DoExternal(ctx, s.client, idempotency.Params{
		Key:         idempotency.Key{Scope: "demo/orders", ID: request.Order},
		Fingerprint: fingerprint,
		Wait:        10 * time.Second,
	}, func(ctx context.Context, lease *idempotency.Lease) (provider.Receipt, error) {
		s.at(claimed)
		// Recorded once it is made, so that it is not asked for again.
		charge, err := idempotency.Step(ctx, lease, "charge", fingerprint,
			func(ctx context.Context, call idempotency.StepCall) (provider.Receipt, error) {
				// Asked for again where the process dies here: call.MayHaveRun is true
				// then, and call.Key the same.
				charge, err := request.Send(ctx, s.providerURL, call.Key)
				s.at(charged)
				if errors.Is(err, provider.ErrDeclined) {
					err = idempotency.Final(err) // the answer to this order, for good
				}
				return charge, err
			})
		s.at(recorded)
		return charge, err
	}, func(ctx context.Context, tx pgx.Tx, charge provider.Receipt) (Booking, error) {
		booking, err := book(ctx, tx, request.Order, charge)
		s.at(booked)
		return booking, err
	})
	return result.Value, err
}

func book(ctx context.Context, tx pgx.Tx, order string, charge provider.Receipt) (Booking, error) {
	_, err := tx.Exec(ctx, `INSERT INTO bookings (order_id, charge_id) VALUES ($1, $2)`, order, charge.ID)
	return Booking{Order: order, Charge: charge.ID}, err
}

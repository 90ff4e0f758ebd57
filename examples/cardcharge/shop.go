package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
)

// lease is short, so that the next process need not wait for long after a kill.
const lease = time.Second

var errDeclined = errors.New("the card was declined")

// Booking is the answer to an order.
type Booking struct {
	Order  string `json:"order"`
	Charge string `json:"charge"`
}

// shop charges a card at the provider, and books it here.
type shop struct {
	client   *idempotency.Client[pgx.Tx]
	provider string
	// at is called at each point where the process may be killed.
	at func(point)
}

func newShop(database pgxstore.DB, provider string, at func(point)) (*shop, error) {
	store, err := pgxstore.New(database, nil)
	if err != nil {
		return nil, err
	}
	client, err := idempotency.NewClient(store, &idempotency.Config{
		Lease:       lease,
		FinalErrors: []idempotency.FinalKind{idempotency.FinalValue("card_declined", errDeclined)},
	})
	return &shop{client: client, provider: provider, at: at}, err
}

func (s *shop) order(ctx context.Context, order string, cents int) (Booking, error) {
	result, err := idempotency.DoExternal(ctx, s.client, idempotency.Params{
		Key:         idempotency.Key{Scope: "demo/orders", ID: order},
		Fingerprint: idempotency.FingerprintOf(order, fmt.Sprint(cents)),
		Wait:        10 * time.Second,
	}, func(ctx context.Context, lease *idempotency.Lease) (charge, error) {
		s.at(claimed)
		// Recorded once it is made, so that it is not asked for again.
		made, err := idempotency.Step(ctx, lease, "charge", idempotency.FingerprintOf(order, fmt.Sprint(cents)),
			func(ctx context.Context, call idempotency.StepCall) (charge, error) {
				// Asked for again where the process dies here: call.MayHaveRun is true
				// then, and call.Key the same.
				made, err := s.charge(ctx, call.Key, chargeRequest{order, cents})
				s.at(charged)
				return made, err
			})
		s.at(recorded)
		return made, err
	}, func(ctx context.Context, tx pgx.Tx, made charge) (Booking, error) {
		booking, err := book(ctx, tx, order, made)
		s.at(booked)
		return booking, err
	})
	return result.Value, err
}

func book(ctx context.Context, tx pgx.Tx, order string, made charge) (Booking, error) {
	_, err := tx.Exec(ctx, `INSERT INTO bookings (order_id, charge_id) VALUES ($1, $2)`, order, made.ID)
	return Booking{Order: order, Charge: made.ID}, err
}

// charge asks the provider. Without a key every request is a charge.
func (s *shop) charge(ctx context.Context, key string, request chargeRequest) (made charge, err error) {
	body, err := json.Marshal(request)
	if err != nil {
		return made, err
	}
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, s.provider, bytes.NewReader(body))
	if err != nil {
		return made, err
	}
	// net/http sends a request again by itself where a connection that it had kept
	// breaks and the request has this header.
	if key != "" {
		post.Header.Set("Idempotency-Key", key)
	}
	reply, err := http.DefaultClient.Do(post)
	if err != nil {
		return made, fmt.Errorf("ask the provider: %w", err)
	}
	defer func() { _ = reply.Body.Close() }()
	switch reply.StatusCode {
	case http.StatusOK:
		return made, json.NewDecoder(reply.Body).Decode(&made)
	case http.StatusPaymentRequired:
		return made, idempotency.Final(errDeclined) // the answer to this order, for good
	default:
		return made, fmt.Errorf("ask the provider: %s", reply.Status)
	}
}

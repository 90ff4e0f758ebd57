package main

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
)

// safe charges with the key, the money and the answer in one commit.
type safe struct {
	client *idempotency.Client[pgx.Tx]
	work   func(context.Context)
}

func newSafe(pool *pgxpool.Pool, work func(context.Context)) (*safe, error) {
	store, err := pgxstore.New(pool, nil)
	if err != nil {
		return nil, err
	}
	client, err := idempotency.NewClient(store, &idempotency.Config{
		FinalErrors: []idempotency.FinalKind{idempotency.FinalType[*InsufficientFundsError]("insufficient_funds")},
	})
	return &safe{client: client, work: work}, err
}

func (s *safe) charge(ctx context.Context, key string, fingerprint idempotency.Fingerprint, request *chargeRequest) (Charge, bool, error) {
	result, err := idempotency.Do(ctx, s.client, idempotency.Params{
		Key:         idempotency.Key{Scope: "demo/charges", ID: key},
		Fingerprint: fingerprint,
	}, func(ctx context.Context, tx pgx.Tx) (Charge, error) {
		return transfer(ctx, tx, request, s.work)
	})
	return result.Value, result.Replayed, err
}

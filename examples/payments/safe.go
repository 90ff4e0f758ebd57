package main

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
)

// duplicateWait is how long a duplicate waits for the answer of the charge that
// is running before the client is told to come back.
const duplicateWait = 200 * time.Millisecond

// safe charges with the key, the money and the answer in one commit.
type safe struct {
	client *idempotency.Client[pgx.Tx]
	pause  time.Duration
}

func newSafe(pool *pgxpool.Pool, pause time.Duration) (*safe, error) {
	client, err := idempotency.NewClient(pgxstore.New(pool, nil), &idempotency.Config{
		Wait:        duplicateWait,
		FinalErrors: []idempotency.FinalKind{idempotency.FinalType[*InsufficientFundsError]("insufficient_funds")},
	})
	return &safe{client: client, pause: pause}, err
}

func (s *safe) charge(ctx context.Context, key string, fingerprint idempotency.Fingerprint, request *chargeRequest) (Charge, bool, error) {
	result, err := idempotency.Do(ctx, s.client, idempotency.Params{
		Key:         idempotency.Key{Scope: "demo/charges", ID: key},
		Fingerprint: fingerprint,
	}, func(ctx context.Context, tx pgx.Tx) (Charge, error) {
		return transfer(ctx, tx, request, s.pause)
	})
	return result.Value, result.Replayed, err
}

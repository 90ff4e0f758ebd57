package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/samecommit/samecommit/examples/internal/child"
	"github.com/samecommit/samecommit/examples/internal/provider"
	"github.com/samecommit/samecommit/idempotency"
)

// lease is short, so that the next process need not wait for long after a kill.
const lease = 2 * time.Second

// shop sells top-ups of a provider.
type shop struct {
	client      *idempotency.LeaseClient
	providerURL string
	// at is called at each point where the process may be killed.
	at func(child.Point)
}

func newShop(keys idempotency.Store, providerURL string, at func(child.Point)) (*shop, error) {
	client, err := idempotency.NewLeaseClient(keys, &idempotency.Config{
		Lease:       lease,
		FinalErrors: []idempotency.FinalKind{idempotency.FinalValue("top_up_declined", provider.ErrDeclined)},
	})
	return &shop{client: client, providerURL: providerURL, at: at}, err
}

// order is the same on every store.
func (s *shop) order(ctx context.Context, request provider.Request) (provider.Receipt, error) {
	fingerprint := idempotency.FingerprintOf(request.Account, fmt.Sprint(request.Cents))
	result, err := idempotency.DoLeased(ctx, s.client, idempotency.Params{
		Key:         idempotency.Key{Scope: "demo/orders", ID: request.Order},
		Fingerprint: fingerprint,
		Wait:        10 * time.Second,
	}, func(ctx context.Context, lease *idempotency.Lease) (provider.Receipt, error) {
		s.at(claimed)
		// Recorded once it is made, so that it is not asked for again.
		receipt, err := idempotency.Step(ctx, lease, "top up", fingerprint,
			func(ctx context.Context, call idempotency.StepCall) (provider.Receipt, error) {
				// Asked for again where the process dies here: call.MayHaveRun is true
				// then, and call.Key the same.
				receipt, err := request.Send(ctx, s.providerURL, call.Key)
				s.at(toppedUp)
				if errors.Is(err, provider.ErrDeclined) {
					err = idempotency.Final(err) // the answer to this order, for good
				}
				return receipt, err
			})
		s.at(recorded)
		return receipt, err
	})
	return result.Value, err
}

package main

import (
	"context"

	"github.com/samecommit/samecommit/examples/internal/provider"
)

// naiveOrder is the usual way: is there an answer to the order? If not, top up, then keep
// the answer. Until it is kept, what was done is known to this process alone.
func (s *shop) naiveOrder(ctx context.Context, answers answers, request provider.Request) (provider.Receipt, error) {
	s.at(claimed)
	receipt, found, err := answers.find(ctx, request.Order)
	if err != nil || found {
		return receipt, err
	}
	receipt, err = request.Send(ctx, s.providerURL, "")
	s.at(toppedUp)
	if err != nil {
		return receipt, err
	}
	s.at(recorded) // it is not
	return receipt, answers.keep(ctx, request.Order, receipt)
}

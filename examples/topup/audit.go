package main

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/samecommit/samecommit/examples/internal/provider"
	"github.com/samecommit/samecommit/examples/internal/trial"
)

// topUps is the provider's book.
const topUps = "top-ups"

// laterCalls is how often an order that has its answer is sent again.
const laterCalls = 2

// audit sends the order until it has its answer, and then again: is the answer that of the
// provider's only top-up, and does it stay the same?
func audit(ctx context.Context, operator *provider.Server, t *trial.Trial, order task, stderr io.Writer) error {
	said, err := trial.Send[task, provider.Receipt](ctx, t, order, stderr)
	if err != nil {
		return err
	}
	for range laterCalls {
		later, err := trial.Send[task, provider.Receipt](ctx, t, order, stderr)
		if err != nil {
			return err
		}
		if later != said {
			said = trial.Answer[provider.Receipt]{Err: fmt.Sprintf("%s%s, and later %s%s", said.Value.ID, said.Err, later.Value.ID, later.Err)}
			break
		}
	}
	receipts := operator.Receipts(t.Order)
	agrees := slices.Equal(receipts, []provider.Receipt{said.Value})
	trial.Judge(t, said, said.Value.ID, agrees, map[string]int{topUps: len(receipts)})
	return nil
}

package idempotency

import (
	"context"
	"sync/atomic"
)

// budget is how many bytes of answers that they share calls may turn into
// results at one time. An answer can meet thousands of waiting calls, and the
// results that each makes of it are its own.
type budget struct {
	max  int64
	used atomic.Int64
	// head has an element while a call waits for room, or takes it. The others
	// wait for this one.
	head chan struct{}
	// freed has an element where room was given back since the head looked.
	freed chan struct{}
}

func newBudget(most int) *budget {
	return &budget{max: int64(most), head: make(chan struct{}, 1), freed: make(chan struct{}, 1)}
}

// take waits until there is room for an answer of that many bytes, and returns
// the function that gives it back. What is larger than the budget goes alone.
func (b *budget) take(ctx context.Context, bytes int) (give func(), err error) {
	select {
	case b.head <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-b.head }()
	size := min(int64(bytes), b.max)
	for b.used.Load()+size > b.max {
		select {
		case <-b.freed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	b.used.Add(size)
	return func() {
		b.used.Add(-size)
		select {
		case b.freed <- struct{}{}:
		default:
		}
	}, nil
}

package idempotency

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"
)

const (
	firstPoll         = 2 * time.Millisecond
	longestPoll       = 250 * time.Millisecond
	defaultRetryAfter = time.Second
)

// waitWhileInProgress calls try until its outcome is not InProgress or the wait
// is over; then it returns an *InProgressError. Between tries nothing is held.
func waitWhileInProgress(ctx context.Context, key Key, wait time.Duration, try func() (*Outcome, error)) (*Outcome, error) {
	start := time.Now()
	for poll := firstPoll; ; poll = min(2*poll, longestPoll) {
		outcome, err := try()
		if err != nil || outcome.State != InProgress {
			return outcome, err
		}
		left := wait - time.Since(start)
		if left <= 0 {
			retryAfter := outcome.RetryAfter
			if retryAfter <= 0 {
				retryAfter = defaultRetryAfter
			}
			return outcome, &InProgressError{Key: key, RetryAfter: retryAfter}
		}
		// Half of every pause is random, so that duplicates which arrived
		// together do not keep trying together.
		pause := poll/2 + rand.N(poll/2+1)
		timer := time.NewTimer(min(pause, left))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return outcome, &KeyError{Key: key, Err: fmt.Errorf("%w: gave up waiting: %w", ErrInProgress, context.Cause(ctx))}
		}
	}
}

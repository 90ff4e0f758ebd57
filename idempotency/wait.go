package idempotency

import (
	"context"
	"time"
)

const (
	firstPoll         = 2 * time.Millisecond
	longestPoll       = 250 * time.Millisecond
	defaultRetryAfter = time.Second
)

// waitWhileInProgress calls try until its outcome is not InProgress or the wait
// is over; then it returns an *InProgressError. It is for callers that wait on a
// connection of their own; the others go through the gate.
func waitWhileInProgress(ctx context.Context, key Key, wait time.Duration, try func() (*Outcome, error)) (*Outcome, error) {
	start := time.Now()
	for poll := firstPoll; ; poll = min(2*poll, longestPoll) {
		outcome, err := try()
		if err != nil || outcome.State != InProgress {
			return outcome, err
		}
		left := wait - time.Since(start)
		if left <= 0 {
			return outcome, newInProgressError(key, outcome.RetryAfter, nil)
		}
		if !sleep(ctx, min(jitter(poll), left)) {
			return outcome, newInProgressError(key, outcome.RetryAfter, context.Cause(ctx))
		}
	}
}

// sleep reports whether it lasted to its end, and not only to that of ctx.
func sleep(ctx context.Context, duration time.Duration) bool {
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// jitter makes half of a pause random, so that duplicates which arrived together
// do not keep trying together. It takes the nanoseconds of the clock for chance:
// they differ from process to process, and a test on a fake clock can repeat a
// run.
func jitter(pause time.Duration) time.Duration {
	const scatter = 0x9e3779b97f4a7c15 // 2^64 by the golden ratio: near instants end up far apart
	chance := uint64(time.Now().UnixNano()) * scatter >> 32
	return pause/2 + time.Duration(chance*uint64(pause/2+1)>>32)
}

func newInProgressError(key Key, retryAfter time.Duration, cause error) *InProgressError {
	if retryAfter <= 0 {
		retryAfter = defaultRetryAfter
	}
	return &InProgressError{Key: key, RetryAfter: retryAfter, Err: cause}
}

package idempotency

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	maxSteps = 100
	// settleTimeout bounds how long is tried to complete a key, or to find out what
	// became of a claim whose reply was lost. A request that does not answer costs a
	// part of it.
	settleTimeout = 10 * time.Second
	settleAttempt = settleTimeout / 4
)

// Lease is a hold on a key for as long as the function of DoLeased, or the first one of
// DoExternal, is at work. It is renewed in the background. A Lease is safe for concurrent use.
type Lease struct {
	client *LeaseClient
	// first is the claim as it was made.
	first *Claim
	// cancel ends the context of the function, with the reason.
	cancel context.CancelCauseFunc

	mu       sync.Mutex
	deadline time.Time
	// over is why no step starts any more, whatever context it is given: the claim
	// is lost, or about to be given up. Nil until then.
	over error
	// changed is the first sign of another program's steps. It keeps an answer from
	// being recorded, also where the function takes it for a refusal.
	changed error
	// asked are the steps that this attempt has asked for.
	asked map[string]bool
	// acted says that the function of a step was called.
	acted bool
	// recorded counts the steps of the record, and their bytes.
	recorded, size int
}

// Key is the key as the store has it: see Config.KeySecret.
func (l *Lease) Key() Key { return l.first.Key }

// Attempt is 1, and one more for each lease of this key that has ended before an
// answer.
func (l *Lease) Attempt() int { return l.first.Attempt }

// Deadline is when the lease ends on this process's monotonic clock, unless it is
// renewed until then. No step starts after it.
func (l *Lease) Deadline() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.deadline
}

// StepKey returns an idempotency key for what a step asks of somebody else: 43
// letters, digits, - and _, from scope, key and step, the same on every attempt
// and in every process. A provider that keeps it does nothing twice, also where a
// holder was paused between its last look at the lease and its request. Scopes must
// differ between all who share an account at that provider: stages, schemas of
// tenants, services.
func (l *Lease) StepKey(step string) string {
	sum := sha256.Sum256(appendParts([]byte("samecommit step 1"), l.first.Key.Scope, l.first.Key.ID, step))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// errReturned is for steps that something started by the function asks for later.
var errReturned = errors.New("idempotency: the function that the lease was given to has returned")

func newLease(client *LeaseClient, claim *Claim, cancel context.CancelCauseFunc) *Lease {
	l := &Lease{client: client, first: claim, cancel: cancel, deadline: claim.Deadline, asked: make(map[string]bool), recorded: len(claim.Steps)}
	for _, step := range claim.Steps {
		l.size += len(step.Response.Body)
	}
	return l
}

// end lets no other step start, and ends the context of the function.
func (l *Lease) end(reason error) {
	l.mu.Lock()
	l.stopSteps(reason)
	l.mu.Unlock()
	l.cancel(reason)
}

// stopSteps lets no other step start. The lease is locked.
func (l *Lease) stopSteps(reason error) {
	if l.over == nil {
		l.over = reason
	}
}

// renew moves the end of the lease until ctx, the function's, has ended. A lease
// that cannot be renewed in time ends it, and so does a claim that is lost.
func (l *Lease) renew(ctx context.Context, length time.Duration) {
	claim, pause := l.first, length/3
	for {
		if !sleep(ctx, min(pause, time.Until(claim.Deadline))) {
			return
		}
		if !time.Now().Before(claim.Deadline) {
			// Not over: it may still be renewed, or completed, by nobody but us.
			l.cancel(l.keyError(ErrLeaseEnded))
			return
		}
		// Not beyond the deadline, and not for long: a connection that has gone silent
		// must leave time for another one.
		patience := time.Now().Add(max(length/6, MinLease/6))
		if patience.After(claim.Deadline) {
			patience = claim.Deadline
		}
		request, cancel := context.WithDeadline(ctx, patience)
		extended, err := l.client.store.Extend(request, claim, length)
		cancel()
		switch {
		case err == nil:
			claim, pause = extended, length/3
			l.mu.Lock()
			l.deadline = claim.Deadline
			l.mu.Unlock()
		case errors.Is(err, ErrClaimLost):
			l.end(err)
			return
		default:
			pause = length / 10
		}
	}
}

func (l *Lease) keyError(err error) error { return &KeyError{Key: l.first.Key, Err: err} }

// finish lets no other step start, and returns an error if the recorded steps are
// not those that this attempt has asked for.
func (l *Lease) finish() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopSteps(l.keyError(errReturned))
	if l.changed != nil {
		return l.changed
	}
	for _, step := range l.first.Steps {
		if !l.asked[step.Name] {
			return l.keyError(fmt.Errorf("%w: step %q is recorded, and this attempt has not asked for it", ErrStepChanged, step.Name))
		}
	}
	return nil
}

// letGo gives the key up after a failure. It is deleted only where nothing can
// have been done under it: somebody who was told that nobody has begun would else
// do it again.
func (l *Lease) letGo(ctx context.Context) {
	l.mu.Lock()
	l.stopSteps(l.keyError(errReturned))
	acted := l.acted || l.first.Resumed
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleAttempt)
	defer cancel()
	// Where it fails, the lease ends by itself.
	if acted {
		_ = l.client.store.Suspend(ctx, l.first)
	} else {
		_ = l.client.store.Release(ctx, l.first)
	}
}

// complete records the response, however late: only the claim id decides. A reply
// that was lost is looked for.
func (l *Lease) complete(ctx context.Context, response *Response) (*Record, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	for pause := firstPoll; ; pause = min(2*pause, longestPoll) {
		// All of the time: to give it up would also give up its wait for a synchronous
		// standby.
		record, err := l.client.store.Complete(ctx, l.first, response)
		if err == nil || errors.Is(err, ErrInvalidParams) {
			return record, err
		}
		found, getErr := bounded(ctx, func(ctx context.Context) (*Record, error) {
			return l.client.store.Get(ctx, l.first.Key)
		})
		switch {
		case getErr == nil && found.ClaimID == l.first.ID && found.State == Completed:
			return found, nil
		case getErr == nil && found.ClaimID != l.first.ID, errors.Is(getErr, ErrNotFound):
			return nil, l.keyError(ErrClaimLost)
		}
		if !sleep(ctx, jitter(pause)) {
			return nil, l.keyError(fmt.Errorf("%w: the completion of leased work: %w", ErrOutcomeUnknown, err))
		}
	}
}

// bounded gives one request of several a part of the time.
func bounded[T any](ctx context.Context, request func(ctx context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, settleAttempt)
	defer cancel()
	return request(ctx)
}

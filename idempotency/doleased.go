package idempotency

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// DoLeased runs fn once per key, for work that leaves the database: no transaction
// is open, and the key is held by a lease that is renewed until fn returns. A later
// call with the same key returns the recorded result and does not run fn.
//
// What fn does elsewhere cannot be undone, so it goes into steps: see Step. Where
// the process dies, the lease ends, and the next call runs fn again; steps that
// were recorded are not repeated, and a step that may have run is told so. Where fn
// returns an error it is returned, and the next call continues the work in the same
// way; an error that Final marks is recorded as the answer. fn's context ends with
// the cause ErrLeaseEnded where the lease could not be renewed in time, ErrClaimLost
// where the key was taken over, and ErrHoldExceeded after Config.MaxHold; what fn
// returns then is recorded all the same, unless the claim is lost.
//
// The store is used from several goroutines at once, so on PostgreSQL it needs a pool.
// Params.Lease is how long the key stays held after this process has died. While
// another call holds the key, DoLeased waits as Do does. Errors are Do's, and
// ErrClaimLost, ErrNeedsAttention, ErrStepChanged, ErrLeaseEnded and
// ErrHoldExceeded. ErrOutcomeUnknown: call again with the same key.
func DoLeased[T any](ctx context.Context, client *LeaseClient, params Params, fn func(ctx context.Context, lease *Lease) (T, error)) (Result[T], error) {
	op, err := newLeasedOperation[T](client, &params)
	if err != nil {
		return Result[T]{}, err
	}
	if fn == nil {
		return Result[T]{}, &ParamError{Field: "fn", Reason: "is nil"}
	}
	op.fn = fn
	return op.do(ctx, OperationDoLeased, params.waitOr(client.settings.Wait))
}

// leasedOperation is one call of DoLeased or DoExternal.
type leasedOperation[T any] struct {
	client *LeaseClient
	begin  BeginParams
	typedAnswer[T]
	fn func(ctx context.Context, lease *Lease) (T, error)
	// commit makes the answer, of what fn has done, and records it. Where it is nil,
	// what fn returns is the answer.
	commit func(ctx context.Context, claim *Claim) (*Record, error)
	// unheard says that a claim of this call may have been made without its hearing
	// of that.
	unheard bool
	// running says that a function of the caller's has not returned.
	running bool
}

func newLeasedOperation[T any](client *LeaseClient, params *Params) (*leasedOperation[T], error) {
	if client == nil {
		return nil, &ParamError{Field: "client", Reason: "is nil"}
	}
	op := &leasedOperation[T]{client: client}
	if err := client.settings.fillLeaseParams(&op.begin, params); err != nil {
		return nil, err
	}
	// One for all tries of this call: a claim whose reply was lost is found again.
	op.begin.ClaimID = NewClaimID()
	var err error
	op.codec, err = newResultCodec[T](client.settings.Codec)
	return op, err
}

func (o *leasedOperation[T]) do(ctx context.Context, operation Operation, wait time.Duration) (result Result[T], err error) {
	client := o.client
	ctx, end := client.settings.trace(ctx, operation, o.begin.Key)
	state := State(0)
	defer func() {
		replayed := result.Replayed
		if o.running {
			state, replayed, err = 0, false, ErrNotReturned
		}
		end(state, replayed, err)
	}()
	if err := client.settings.checkNesting(ctx, o.begin.Key); err != nil {
		return Result[T]{}, err
	}
	outcome, shared, err := client.gate.do(ctx, &o.begin, wait, func(p *pass) (*Outcome, error) {
		return o.try(ctx, p)
	})
	state = outcomeState(outcome)
	if err != nil {
		if o.unheard && errors.Is(err, ErrInProgress) {
			err = o.giveUp(ctx, err) // it may be this call's own that is in progress
		}
		return Result[T]{}, err
	}
	return o.gatedResult(ctx, client.gate, client.settings, outcome, shared)
}

// try claims the key once, and does the work if it got it.
func (o *leasedOperation[T]) try(ctx context.Context, p *pass) (*Outcome, error) {
	outcome, err := o.claim(ctx)
	if err != nil || outcome.State != New {
		return outcome, err
	}
	p.running()
	record, err := o.work(ctx, outcome.Claim)
	if err != nil {
		return nil, err
	}
	return &Outcome{State: Completed, Record: record, Executed: true}, nil
}

// claim asks again where a reply was lost: under the same claim id that is the same
// claim, which nobody would hold otherwise until its lease ends.
func (o *leasedOperation[T]) claim(ctx context.Context) (*Outcome, error) {
	end := time.Now().Add(settleAttempt)
	for pause := firstPoll; ; pause = min(2*pause, longestPoll) {
		outcome, err := o.client.store.Begin(ctx, &o.begin)
		switch {
		case err == nil:
			return outcome, nil
		case refused(err):
			return nil, err
		case errors.Is(err, ErrUnavailable) && !o.unheard:
			return nil, err // nothing was committed
		}
		o.unheard = true
		if !sleep(ctx, jitter(pause)) || time.Now().After(end) {
			return nil, o.giveUp(ctx, err)
		}
	}
}

// giveUp lets go of a claim that may have been made. It is suspended and not
// released: it may have taken over work that had begun.
func (o *leasedOperation[T]) giveUp(ctx context.Context, err error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleAttempt)
	defer cancel()
	// Where it fails, the lease ends by itself.
	_ = o.client.store.Suspend(ctx, &Claim{Key: o.begin.Key, ID: o.begin.ClaimID})
	if errors.Is(err, ErrUnavailable) {
		// Of the last try that is true. An earlier one may have been committed.
		return &KeyError{Key: o.begin.Key, Err: fmt.Errorf("%w: whether the key was claimed: %v", ErrOutcomeUnknown, err)} //nolint:errorlint // It would say that nothing was committed.
	}
	return err
}

// refused reports whether the error is the store's answer to the claim, which was
// not made.
func refused(err error) bool {
	for _, known := range []error{
		ErrInvalidParams, ErrFingerprintMismatch, ErrNeedsAttention, ErrStepChanged, ErrNested, ErrUnfinished, ErrReadOnly,
	} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

// work runs fn under the claim, and completes or lets go of the key.
func (o *leasedOperation[T]) work(ctx context.Context, claim *Claim) (*Record, error) {
	inside, cancel := context.WithCancelCause(ctx)
	lease := newLease(o.client, claim, cancel)
	renewed := make(chan struct{})
	go func() {
		defer close(renewed)
		lease.renew(inside, o.begin.Lease)
	}()
	hold := time.AfterFunc(o.client.settings.MaxHold, func() { lease.end(lease.keyError(ErrHoldExceeded)) })
	stop := func() {
		hold.Stop()
		cancel(nil)
		<-renewed
	}
	kept := false
	// Also on panic and runtime.Goexit, which pass through unchanged.
	defer func() {
		stop()
		if !kept {
			lease.letGo(ctx)
		}
	}()

	value, err := o.call(inside, func(ctx context.Context) (T, error) { return o.fn(ctx, lease) })
	commits := err == nil && o.commit != nil
	var answer Answer
	if !commits {
		answer, err = o.answer(value, err)
	}
	if err == nil {
		err = lease.finish()
	}
	if err != nil {
		return nil, ended(inside, ctx, err)
	}
	var record *Record
	if commits {
		stop() // a renewal would wait for the row of the key
		record, err = o.commit(ctx, claim)
	} else {
		record, err = lease.complete(ctx, answer.Response)
	}
	// Where that failed the key is let go of, which an answer that was recorded
	// nevertheless does not mind.
	kept = err == nil
	return record, err
}

// ended adds why fn's context has ended, where it was not the caller who did it.
func ended(inside, ctx context.Context, err error) error {
	if cause := context.Cause(inside); cause != nil && ctx.Err() == nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}

// call calls a function of the caller's, in a context that marks the key as held.
func (o *leasedOperation[T]) call(ctx context.Context, fn func(ctx context.Context) (T, error)) (T, error) {
	ctx, done := o.client.settings.hold(ctx, o.begin.Key)
	defer done()
	o.running = true
	value, err := fn(ctx)
	o.running = false
	return value, err
}

// answer encodes what a function of the caller's has returned.
func (o *leasedOperation[T]) answer(value T, err error) (Answer, error) {
	settings := o.client.settings
	return settings.recordable(o.encode(settings, o.begin.Key, value, err))
}

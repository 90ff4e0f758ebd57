package idempotency

import (
	"context"
	"errors"
	"fmt"
)

// DoExternal does work elsewhere and then records it in the database, once per key:
// charge a card, then book it. external runs as the function of DoLeased does, with
// no transaction open and under a lease, and what it does elsewhere goes into steps.
// What it returns goes to commit, which runs in a transaction: its writes and the
// result commit together with the key, or not at all. A later call with the same key
// returns the recorded result and runs neither.
//
// Where the process dies, or an error keeps the result from being recorded, the next
// call runs external again, whose recorded steps are not repeated, and commit with
// what it returns then. So commit acts through tx only; it may also run again before
// its commit, after a serialization failure or a deadlock, as the function of Do may.
// An error that Final marks is recorded as the answer: of external without running
// commit, of commit with its writes undone.
//
// The lease is not renewed while commit runs: the transaction holds the key then, and
// others find it in progress. Where the key was taken over before, commit does not
// run: ErrClaimLost. commit has no limit of time but its context's, and the store's.
//
// Errors are those of DoLeased, and of Do about its transaction: ErrOwned,
// ErrTxAborted, ErrUnavailable, ErrSerializationFailure and ErrReadOnly. They say that
// the transaction has not committed; what external did stands, so call again with the
// same key, also after ErrOutcomeUnknown.
func DoExternal[T, E, TTx any](ctx context.Context, client *Client[TTx], params Params,
	external func(ctx context.Context, lease *Lease) (E, error),
	commit func(ctx context.Context, tx TTx, done E) (T, error),
) (Result[T], error) {
	var leases *LeaseClient
	if client != nil {
		leases = client.Leases()
	}
	op, err := newLeasedOperation[T](leases, &params)
	switch {
	case err != nil:
		return Result[T]{}, err
	case external == nil:
		return Result[T]{}, &ParamError{Field: "external", Reason: "is nil"}
	case commit == nil:
		return Result[T]{}, &ParamError{Field: "commit", Reason: "is nil"}
	}
	var done E
	op.fn = func(ctx context.Context, lease *Lease) (none T, err error) {
		done, err = external(ctx, lease)
		return none, err
	}
	op.commit = func(ctx context.Context, claim *Claim) (*Record, error) {
		record, err := client.store.RunHeld(ctx, claim, func(ctx context.Context, tx TTx) (Answer, error) {
			return op.answer(op.call(ctx, func(ctx context.Context) (T, error) { return commit(ctx, tx, done) }))
		})
		if errors.Is(err, ErrUnavailable) {
			err = fmt.Errorf("idempotency: what was done elsewhere stands, and only its transaction is not committed: %w", err)
		}
		return record, err
	}
	return op.do(ctx, OperationDoExternal, params.waitOr(client.settings.Wait))
}

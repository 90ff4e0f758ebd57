package idempotency

import (
	"errors"
	"fmt"
	"time"
)

// What errors.Is finds in an error of this package. Those about a key come
// inside a *KeyError, or a type of their own that has the key as a field.
var (
	// ErrInvalidParams means that a parameter was refused before anything ran; the error
	// is a *ParamError.
	ErrInvalidParams = errors.New("idempotency: invalid parameter")
	// ErrInProgress means that another call holds the key and did not finish within the
	// wait; the error is an *InProgressError. Try again later.
	ErrInProgress = errors.New("idempotency: key is in progress")
	// ErrFingerprintMismatch means that the key was used before for another request. The
	// client must choose a new key.
	ErrFingerprintMismatch = errors.New("idempotency: key was used for another request")
	// ErrClaimLost means that the claim is not, or no longer, the key's. The transaction
	// that did the work must not commit, and on PostgreSQL it cannot.
	ErrClaimLost = errors.New("idempotency: claim is not held")
	// ErrNotClaimed means that Complete was called without a claim from Begin.
	ErrNotClaimed = errors.New("idempotency: key was not claimed")
	// ErrNotFound means that the key has no record, or it has expired.
	ErrNotFound = errors.New("idempotency: no record of key")
	// ErrNested means that the key was begun again inside the operation that holds it.
	ErrNested = errors.New("idempotency: key is already held by this operation")
	// ErrOwned means that the operation tried to commit or roll back the transaction it
	// was given, which belongs to the call that opened it.
	ErrOwned = errors.New("idempotency: transaction belongs to its caller")
	// ErrUnfinished means that a key was begun in a transaction and never completed.
	ErrUnfinished = errors.New("idempotency: key was begun and not completed")
	// ErrOutcomeUnknown means that the reply to a commit was lost, and what became of it
	// could not be found out in time. Call again with the same key: that
	// replays the answer if it was committed and runs the operation if not. Transact
	// has no key: after it, calling again may do the work twice.
	ErrOutcomeUnknown = errors.New("idempotency: outcome of commit is unknown")
	// ErrOverloaded means that this process could not ask the store about the key in
	// time: more calls wait than Config.MaxWaiters allows, or the store has not
	// answered within the wait. Nothing was run, and nothing is known of the key.
	ErrOverloaded = errors.New("idempotency: too many calls wait, or the store does not answer")
	// ErrUnavailable means that the store could not be reached, or lost its connection
	// before the commit was sent: nothing was committed. Call again, with the same
	// key. Where the context of the call ended first, the error is also its cause.
	ErrUnavailable = errors.New("idempotency: store is unavailable, nothing was committed: call again, with the same key if there is one")
	// ErrStepChanged means that the steps recorded under the key are not those of this
	// program: another operation, or another version of it, has begun the work. Nothing
	// was recorded or run. A call that takes no lease gets it for work that has steps
	// or was suspended, which only leased work can continue.
	ErrStepChanged = errors.New("idempotency: recorded steps are of another program")
	// ErrNeedsAttention means that the lease of the key has ended as often as
	// Config.MaxAttempts allows: the work may end its process. Nothing was changed.
	// Find out what became of it, then complete or release the record's claim.
	ErrNeedsAttention = errors.New("idempotency: too many attempts have ended without an answer: an operator must decide")
	// ErrLeaseEnded means that the lease ended before it could be renewed. It is the
	// cause that ends the context of leased work, and what a step gets that would
	// start later. The work may go on, and be completed, while nobody takes it over.
	ErrLeaseEnded = errors.New("idempotency: lease has ended")
	// ErrHoldExceeded means that leased work took longer than Config.MaxHold. It is
	// the cause that ends its context.
	ErrHoldExceeded = errors.New("idempotency: leased work took longer than Config.MaxHold")
	// ErrSerializationFailure means that the database could not fit the transaction in
	// among concurrent ones, by a serialization failure or a deadlock. Roll it back
	// and run all of it again. Do has done that already, as often as the store allows.
	ErrSerializationFailure = errors.New("idempotency: serialization failure")
	// ErrTxAborted means that an earlier statement has failed in the caller's
	// transaction, which PostgreSQL lets only roll back.
	ErrTxAborted = errors.New("idempotency: transaction is aborted by an earlier error: roll it back and begin another")
	// ErrTxEnded means that the caller's transaction has been committed, rolled back or
	// prepared for a two-phase commit.
	ErrTxEnded = errors.New("idempotency: transaction has ended: begin another")
	// ErrReadOnly means that no key can be claimed here: the transaction is read-only, or
	// the server is a standby. Use a read-write transaction on the primary.
	ErrReadOnly = errors.New("idempotency: transaction or server is read-only: use a read-write transaction on the primary")
	// ErrFinalUnlisted means that an error was marked Final and is not listed in
	// Config.FinalErrors. Nothing was recorded. The text says what to list; the error
	// that was marked is not in the chain.
	ErrFinalUnlisted = errors.New("idempotency: final error is not listed in Config.FinalErrors")
	// ErrNotReturned is what a Tracer is told where the function panicked or called
	// runtime.Goexit. No call returns it: the panic goes on to the caller.
	ErrNotReturned = errors.New("idempotency: the function panicked or called runtime.Goexit")
	// ErrNoAnswer means that TxResult.Answer was called though DoTx returned an error.
	ErrNoAnswer = errors.New("idempotency: no answer: DoTx returned an error")
)

// ParamError is a parameter that was refused before anything ran. It is
// ErrInvalidParams.
type ParamError struct {
	// Field is the name of the parameter, as in "Key.ID".
	Field string
	// Reason says what is wrong with it. It never holds the value.
	Reason string
}

// Error returns the field and the reason.
func (e *ParamError) Error() string {
	return "idempotency: invalid parameter: " + e.Field + " " + e.Reason
}

// Is reports whether target is ErrInvalidParams.
func (e *ParamError) Is(target error) bool { return target == ErrInvalidParams }

// KeyError is an error about a key. Err is, or wraps, one of this package's
// sentinels, or the cause of the end of a context in which a call of Do waited
// and had heard nothing of the key.
type KeyError struct {
	// Key is the key as the store has it: see Config.KeySecret. Printing it
	// prints a hash.
	Key Key
	Err error
}

// Error returns what happened and the hash of the key.
func (e *KeyError) Error() string { return fmt.Sprintf("%v (%v)", e.Err, e.Key) }

// Unwrap returns Err.
func (e *KeyError) Unwrap() error { return e.Err }

// InProgressError is ErrInProgress with advice on when to try again.
type InProgressError struct {
	// Key is zero where BeginMany could not tell which of its keys it is.
	Key Key
	// RetryAfter is how long to wait before the next try; positive.
	RetryAfter time.Duration
	// Err is why the call stopped waiting before its wait was over: the cause of
	// its context's end. Nil otherwise.
	Err error
}

// Error returns the hash of the key and the advice.
func (e *InProgressError) Error() string {
	of := e.Key.String()
	if e.Key == (Key{}) {
		of = "one of a batch"
	}
	text := fmt.Sprintf("%v: try again in %s (%s)", ErrInProgress, e.RetryAfter, of)
	if e.Err != nil {
		text += ": the context ended before the wait was over: " + e.Err.Error()
	}
	return text
}

// Unwrap returns Err.
func (e *InProgressError) Unwrap() error { return e.Err }

// Is reports whether target is ErrInProgress.
func (e *InProgressError) Is(target error) bool { return target == ErrInProgress }

// ResultTypeError is a recorded answer of another type than the one asked for:
// two operations share a key, or a result type was renamed. A method
// ResultType() string gives a type a name that survives renaming.
type ResultTypeError struct {
	Key Key
	// Recorded is the type of the recorded answer, as in Response.Type.
	Recorded string
	// Wanted is the type that the caller asked for.
	Wanted string
}

// Error returns both types.
func (e *ResultTypeError) Error() string {
	return fmt.Sprintf("idempotency: recorded answer is %q, not %q: two operations share a key, or a type was renamed (%v)", e.Recorded, e.Wanted, e.Key)
}

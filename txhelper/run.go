package txhelper

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
)

// Defaults of Options.
const (
	DefaultMaxAttempts     = 8
	DefaultCommitTimeout   = 10 * time.Second
	DefaultRollbackTimeout = 5 * time.Second
)

const (
	firstBackoff   = 5 * time.Millisecond
	longestBackoff = 250 * time.Millisecond
)

// Options changes how a transaction is run. Nil and the zero value mean all
// defaults.
type Options struct {
	// TxOptions sets the isolation level and access mode; BeginQuery and
	// CommitQuery are refused.
	// Defaults to the server's, READ COMMITTED unless it was configured.
	TxOptions pgx.TxOptions
	// MaxAttempts is how often the function runs at most. Defaults to 8.
	MaxAttempts int
	// Backoff returns the pause before the given attempt, 2 and up. Defaults to
	// a random pause of up to 5 ms, doubled with every attempt, of at most
	// 250 ms.
	Backoff func(attempt int) time.Duration
	// Retryable decides which errors are tried again; an *AmbiguousCommitError
	// never is. Defaults to IsRetryable.
	Retryable func(error) bool
	// Owned is the error with which the transaction that a function gets refuses
	// Commit and Rollback, and with which the whole then fails. Defaults to
	// ErrOwned.
	Owned error
	// CommitTimeout bounds the wait for the reply to a commit, which the context's
	// cancellation does not interrupt: see Transaction.Commit. Defaults to 10
	// seconds.
	CommitTimeout time.Duration
	// RollbackTimeout bounds a rollback, likewise. Defaults to 5 seconds.
	RollbackTimeout time.Duration
}

func (o *Options) withDefaults() Options {
	var options Options
	if o != nil {
		options = *o
	}
	if options.MaxAttempts <= 0 {
		options.MaxAttempts = DefaultMaxAttempts
	}
	if options.Backoff == nil {
		options.Backoff = fullJitter
	}
	if options.Retryable == nil {
		options.Retryable = IsRetryable
	}
	if options.Owned == nil {
		options.Owned = ErrOwned
	}
	if options.CommitTimeout <= 0 {
		options.CommitTimeout = DefaultCommitTimeout
	}
	if options.RollbackTimeout <= 0 {
		options.RollbackTimeout = DefaultRollbackTimeout
	}
	return options
}

func fullJitter(attempt int) time.Duration {
	ceiling := firstBackoff << min(attempt-2, 16)
	return rand.N(min(ceiling, longestBackoff)) + time.Microsecond
}

// Run calls fn in a transaction and commits it where fn returns nil. Where fn
// returns an error, panics or calls runtime.Goexit, it rolls back.
//
// After a serialization failure or a deadlock, also one whose error fn ignored,
// fn runs again in a fresh transaction, so it should act through tx only. A
// connection that breaks before the transaction began is replaced. The last such
// error comes in an *AttemptsExceededError. A lost reply to the
// commit is an *AmbiguousCommitError and is not retried. Where db is itself a
// transaction, Run works in a savepoint and never retries.
func Run(ctx context.Context, db DB, options *Options, fn func(ctx context.Context, tx pgx.Tx) error) error {
	return Retry(ctx, db, options, func(ctx context.Context) error {
		transaction, err := Open(ctx, db, options, nil)
		if err != nil {
			return err
		}
		defer transaction.Rollback(ctx)
		if err := fn(ctx, transaction.Tx()); err != nil {
			return transaction.Cause(err)
		}
		return transaction.Commit(ctx, nil)
	})
}

// RunValue is Run for a function that also returns a value.
func RunValue[T any](ctx context.Context, db DB, options *Options, fn func(ctx context.Context, tx pgx.Tx) (T, error)) (T, error) {
	var value T
	err := Run(ctx, db, options, func(ctx context.Context, tx pgx.Tx) (err error) {
		value, err = fn(ctx, tx)
		return err
	})
	if err != nil {
		var zero T
		return zero, err
	}
	return value, nil
}

// Retry calls try until it returns nil or an error that is not retryable, with
// the pauses and at most as often as options say. It is the loop of Run, for
// callers that open their own transactions.
func Retry(ctx context.Context, db DB, options *Options, try func(ctx context.Context) error) error {
	withDefaults := options.withDefaults()
	attempts := withDefaults.MaxAttempts
	if _, nested := db.(pgx.Tx); nested {
		attempts = 1 // a savepoint keeps the snapshot that failed
	}
	for attempt := 1; ; attempt++ {
		err := try(ctx)
		if err == nil {
			return nil
		}
		// An ambiguous commit may have done the work, whatever lost its reply.
		if _, ambiguous := errors.AsType[*AmbiguousCommitError](err); ambiguous || !withDefaults.Retryable(err) {
			return err
		}
		if attempt >= attempts {
			return &AttemptsExceededError{Attempts: attempt, Err: err}
		}
		timer := time.NewTimer(withDefaults.Backoff(attempt + 1))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w: gave up trying again: %w", err, context.Cause(ctx))
		}
	}
}

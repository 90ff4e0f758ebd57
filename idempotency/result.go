package idempotency

import (
	"context"
	"log/slog"
)

// Result is the answer of an operation.
type Result[T any] struct {
	// Value is decoded from the bytes that are recorded, for the first caller too,
	// so first and replayed answers cannot differ.
	Value T
	// Replayed says that an earlier call ran the operation, not this one.
	Replayed bool
	// Record is the caller's own, but for the bytes of Record.Response.Body: calls
	// of Do that waited for one answer may have them in common. Do not change them.
	Record *Record
}

// LogValue returns, for slog, what Record reveals, and not the value.
func (r Result[T]) LogValue() slog.Value {
	return slog.GroupValue(slog.Bool("replayed", r.Replayed), slog.Any("record", r.Record))
}

// TxResult is what DoTx returns. The answer holds once the caller's transaction
// has committed.
type TxResult[T any] struct {
	result Result[T]
	err    error
	valid  bool
}

// Answer returns the result, or the *FinalError that the operation recorded.
// The caller commits in both cases. It is the only way to the value, so that a
// recorded error is not mistaken for a reason to roll back.
func (r TxResult[T]) Answer() (Result[T], error) {
	if !r.valid {
		return Result[T]{}, ErrNoAnswer
	}
	return r.result, r.err
}

// NoResult adapts an operation that returns only an error.
func NoResult[TTx any](fn func(ctx context.Context, tx TTx) error) func(ctx context.Context, tx TTx) (None, error) {
	return func(ctx context.Context, tx TTx) (None, error) {
		return None{}, fn(ctx, tx)
	}
}

// resultOf turns a completed record into what the caller asked for. The error is
// a *FinalError where that is what was recorded.
func resultOf[T any](settings *settings, codec resultCodec[T], record *Record, replayed bool) (Result[T], error) {
	result := Result[T]{Replayed: replayed, Record: record}
	if final := settings.finalError(record); final != nil {
		return result, final
	}
	value, err := codec.decode(record.Key, record.Response)
	if err != nil {
		return Result[T]{Record: record, Replayed: replayed}, err
	}
	result.Value = value
	return result, nil
}

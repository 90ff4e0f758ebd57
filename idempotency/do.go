package idempotency

import (
	"context"
)

// Do runs fn once per key, in a transaction that it opens: the claim, fn's
// writes and the recorded result commit together or not at all. A later call
// with the same key returns the recorded result and does not run fn.
//
// fn may run again before that commit, after a serialization failure or a
// deadlock, so it must act through tx only. An error from fn rolls everything
// back, frees the key and is returned; wrap it in Final to record it instead.
// The tx given to fn refuses Commit and Rollback.
//
// While another call holds the key, Do waits up to Params.Wait without holding
// a connection, and then fails with ErrInProgress. Calls of one client for one
// key wait in memory, and one of them asks the store for all. Other errors are
// ErrInvalidParams, ErrFingerprintMismatch, ErrNested, ErrUnfinished, ErrOwned,
// ErrStepChanged, ErrTxAborted, ErrOverloaded, ErrUnavailable, ErrSerializationFailure,
// ErrReadOnly, ErrOutcomeUnknown, ErrFinalUnlisted, *FinalError and
// *ResultTypeError.
func Do[T, TTx any](ctx context.Context, client *Client[TTx], params Params,
	fn func(ctx context.Context, tx TTx) (T, error),
) (result Result[T], err error) {
	op, err := newTypedOperation(client, &params, fn)
	if err != nil {
		return Result[T]{}, err
	}
	ctx, end := client.settings.trace(ctx, OperationDo, op.begin.Key)
	defer func() { op.traced(end, result.Replayed, err) }()

	outcome, shared, err := op.run(ctx, params.waitOr(client.settings.Wait))
	if err != nil {
		return Result[T]{}, err
	}
	return op.gatedResult(ctx, client.gate, client.settings, outcome, shared)
}

// DoTx is Do inside the caller's own transaction. Where it returns an error the
// caller must roll back; otherwise the caller commits and takes the result, or
// the recorded final error, from TxResult.Answer. Until that commit the answer
// is not yet true for anybody else.
//
// Everything else in tx is outside of the key: writes before or after DoTx
// happen again on a replay. ErrInProgress leaves tx usable. After
// ErrSerializationFailure, which only the owner of tx can repair, roll back and
// run all of tx again. ErrTxAborted, ErrTxEnded and ErrReadOnly are about tx.
func DoTx[T, TTx any](ctx context.Context, client *Client[TTx], tx TTx, params Params,
	fn func(ctx context.Context, tx TTx) (T, error),
) (result TxResult[T], err error) {
	op, err := newTypedOperation(client, &params, fn)
	if err != nil {
		return TxResult[T]{}, err
	}
	ctx, end := client.settings.trace(ctx, OperationDoTx, op.begin.Key)
	defer func() { op.traced(end, result.result.Replayed, err) }()

	outcome, err := op.runTx(ctx, tx, params.waitOr(NoWait))
	if err != nil {
		return TxResult[T]{}, err
	}
	given, err := op.result(client.settings, outcome)
	if err != nil && !isFinal(err) {
		return TxResult[T]{}, err
	}
	return TxResult[T]{result: given, err: err, valid: true}, nil
}

// typedOperation is an operation whose answers are results of type T.
type typedOperation[T, TTx any] struct {
	operation[TTx]
	typedAnswer[T]
	fn func(ctx context.Context, tx TTx) (T, error)
}

func newTypedOperation[T, TTx any](client *Client[TTx], params *Params, fn func(context.Context, TTx) (T, error)) (*typedOperation[T, TTx], error) {
	op := &typedOperation[T, TTx]{fn: fn}
	if err := op.init(client, params); err != nil {
		return nil, err
	}
	if fn == nil {
		return nil, &ParamError{Field: "fn", Reason: "is nil"}
	}
	var err error
	if op.codec, err = newResultCodec[T](client.settings.Codec); err != nil {
		return nil, err
	}
	op.asked = op
	return op, nil
}

func (o *typedOperation[T, TTx]) answer(ctx context.Context, tx TTx) (Answer, error) {
	value, err := o.fn(ctx, tx)
	return o.encode(o.client.settings, o.begin.Key, value, err)
}

// typedAnswer is what a function has answered, and its way into a record.
type typedAnswer[T any] struct {
	codec resultCodec[T]
	// given is the result of the function's last run as it has been read back, and
	// givenErr its final error.
	given    Result[T]
	givenErr error
}

// encode makes an answer of what the function has returned.
func (a *typedAnswer[T]) encode(settings *settings, key Key, value T, err error) (answer Answer, _ error) {
	if err != nil {
		answer, err = settings.finalAnswer(key, err)
	} else {
		answer.Response, err = a.codec.encode(value)
	}
	if err != nil {
		return Answer{}, err
	}
	// What cannot be read back must not be committed: every replay would fail.
	a.given, a.givenErr = resultOf(settings, a.codec, &Record{Key: key, Response: answer.Response}, false)
	if a.givenErr != nil && !isFinal(a.givenErr) {
		return Answer{}, a.givenErr
	}
	return answer, nil
}

// result is what the outcome means to the caller.
func (a *typedAnswer[T]) result(settings *settings, outcome *Outcome) (Result[T], error) {
	if !outcome.Executed {
		return resultOf(settings, a.codec, outcome.Record, true)
	}
	a.given.Record = outcome.Record
	return a.given, a.givenErr
}

// gatedResult is result, in its turn where other calls make results of the same bytes.
func (a *typedAnswer[T]) gatedResult(ctx context.Context, gate *gate, settings *settings, outcome *Outcome, shared bool) (Result[T], error) {
	if shared {
		give, err := gate.room(ctx, outcome.Record)
		if err != nil {
			return Result[T]{}, err
		}
		defer give()
	}
	return a.result(settings, outcome)
}

// isFinal reports whether err, from resultOf, is what was recorded.
func isFinal(err error) bool {
	_, final := err.(*FinalError) //nolint:errorlint // resultOf does not wrap it.
	return final
}

package idempotency

import (
	"context"
	"fmt"
	"sync/atomic"
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
// ErrTxAborted, ErrOverloaded, ErrUnavailable, ErrSerializationFailure,
// ErrReadOnly, ErrOutcomeUnknown, ErrFinalUnlisted, *FinalError and
// *ResultTypeError.
func Do[T, TTx any](ctx context.Context, client *Client[TTx], params Params,
	fn func(ctx context.Context, tx TTx) (T, error),
) (result Result[T], err error) {
	op, err := newOperation(client, &params, fn)
	if err != nil {
		return Result[T]{}, err
	}
	config := &client.config
	ctx, end := config.trace(ctx, OperationDo, op.begin.Key)
	var outcome *Outcome
	defer func() { op.traced(end, outcomeState(outcome), result.Replayed, err) }()

	if err := config.checkNesting(ctx, op.begin.Key); err != nil {
		return Result[T]{}, err
	}
	executed, shared := false, false
	outcome, shared, err = client.gate.do(ctx, op.begin, params.waitOr(config.Wait), func(p *pass) (outcome *Outcome, _ bool, err error) {
		outcome, executed, err = client.store.Run(ctx, op.begin, func(ctx context.Context, tx TTx) (*Response, error) {
			p.running()
			return op.body(ctx, tx)
		})
		return outcome, executed, err
	})
	if err != nil {
		return Result[T]{}, err
	}
	if shared {
		give, err := client.gate.budget.take(ctx, len(outcome.Record.Response.Body))
		if err != nil {
			return Result[T]{}, &KeyError{Key: op.begin.Key, Err: fmt.Errorf("idempotency: gave up waiting for room in Config.MaxSharedBytes: %w", err)}
		}
		defer give()
	}
	return answer(config, op.codec, outcome.Record, !executed)
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
	op, err := newOperation(client, &params, fn)
	if err != nil {
		return TxResult[T]{}, err
	}
	config := &client.config
	ctx, end := config.trace(ctx, OperationDoTx, op.begin.Key)
	var outcome *Outcome
	defer func() {
		state := outcomeState(outcome)
		if result.valid {
			state = Completed
		}
		op.traced(end, state, result.result.Replayed, err)
	}()

	if err := config.checkNesting(ctx, op.begin.Key); err != nil {
		return TxResult[T]{}, err
	}
	verbs := client.store.WithTx(tx)
	outcome, err = waitWhileInProgress(ctx, op.begin.Key, params.waitOr(NoWait), func() (*Outcome, error) {
		return verbs.Begin(ctx, op.begin)
	})
	if err != nil {
		return TxResult[T]{}, err
	}
	if outcome.State == Completed {
		return newTxResult(config, op.codec, outcome.Record, true)
	}

	var response *Response
	err = client.store.Savepoint(ctx, tx, func(ctx context.Context, tx TTx) error {
		response, err = op.body(ctx, tx)
		if err == nil && response.RolledBack {
			return errUndo
		}
		return err
	})
	if err != nil && err != errUndo { //nolint:errorlint // Savepoint returns this very value.
		return TxResult[T]{}, err
	}
	record, err := verbs.Complete(ctx, outcome.Claim, response)
	if err != nil {
		return TxResult[T]{}, err
	}
	return newTxResult(config, op.codec, record, false)
}

func newTxResult[T any](config *Config, codec resultCodec[T], record *Record, replayed bool) (TxResult[T], error) {
	result, err := answer(config, codec, record, replayed)
	if err != nil && !isFinal(err) {
		return TxResult[T]{}, err
	}
	return TxResult[T]{result: result, err: err, valid: true}, nil
}

// operation is what Do and DoTx have in common: a user's function, seen by the
// store as one that returns a response.
type operation[T, TTx any] struct {
	client *Client[TTx]
	params BeginParams
	begin  *BeginParams // which is &params
	codec  resultCodec[T]
	fn     func(ctx context.Context, tx TTx) (T, error)
	// running says that fn was called and has not returned.
	running bool
}

func newOperation[T, TTx any](client *Client[TTx], params *Params, fn func(context.Context, TTx) (T, error)) (*operation[T, TTx], error) {
	if client == nil {
		return nil, &ParamError{Field: "client", Reason: "is nil"}
	}
	if fn == nil {
		return nil, &ParamError{Field: "fn", Reason: "is nil"}
	}
	codec, err := newResultCodec[T](client.config.Codec)
	if err != nil {
		return nil, err
	}
	op := &operation[T, TTx]{client: client, codec: codec, fn: fn}
	op.begin = &op.params
	if err := client.config.fillBeginParams(op.begin, params); err != nil {
		return nil, err
	}
	return op, nil
}

// call calls fn in a context that marks the key as held until fn has returned.
func (o *operation[T, TTx]) call(ctx context.Context, tx TTx) (T, error) {
	outer, _ := ctx.Value(heldKey{}).(*held)
	h := &held{config: &o.client.config, key: o.begin.Key, outer: outer}
	h.running.Store(true)
	defer h.running.Store(false)
	o.running = true
	value, err := o.fn(context.WithValue(ctx, heldKey{}, h), tx)
	o.running = false
	return value, err
}

// traced ends the trace of the call, also where fn panicked or called
// runtime.Goexit: then nothing else was set.
func (o *operation[T, TTx]) traced(end func(State, bool, error), state State, replayed bool, err error) {
	if o.running {
		state, replayed, err = 0, false, ErrNotReturned
	}
	end(state, replayed, err)
}

func (o *operation[T, TTx]) body(ctx context.Context, tx TTx) (*Response, error) {
	config := &o.client.config
	value, err := o.call(ctx, tx)
	var response *Response
	if err != nil {
		response, err = config.finalResponse(o.begin.Key, err)
	} else {
		response, err = o.codec.encode(value)
	}
	if err != nil {
		return nil, err
	}
	if err := response.validateSize(config.MaxResponseSize); err != nil {
		return nil, err
	}
	// What cannot be read back must not be committed: every replay would fail.
	_, err = answer(config, o.codec, &Record{Key: o.begin.Key, Response: response}, false)
	if err != nil && !isFinal(err) {
		return nil, err
	}
	return response, nil
}

// isFinal reports whether err, from answer, is what was recorded.
func isFinal(err error) bool {
	_, final := err.(*FinalError) //nolint:errorlint // answer does not wrap it.
	return final
}

// heldKey finds, in the context that fn gets, the *held of this call of fn.
type heldKey struct{}

// held is a key that a call of fn runs under. The config stands for the client.
type held struct {
	config *Config
	key    Key
	// running ends with fn: what fn left running may keep the context for longer.
	running atomic.Bool
	// outer is what that call runs in, if it is itself nested in another key's.
	outer *held
}

// checkNesting refuses to begin a key inside the operation that holds it: it
// would wait for itself, or on the operation's own transaction not even that.
func (c *Config) checkNesting(ctx context.Context, key Key) error {
	for h, _ := ctx.Value(heldKey{}).(*held); h != nil; h = h.outer {
		if h.config == c && h.key == key && h.running.Load() {
			return &KeyError{Key: key, Err: ErrNested}
		}
	}
	return nil
}

// errUndo makes Savepoint undo the writes of an operation that ended in a final
// error.
var errUndo = undoError{}

type undoError struct{}

func (undoError) Error() string { return "idempotency: undo the writes of a final error" }

func outcomeState(outcome *Outcome) State {
	if outcome == nil {
		return 0
	}
	return outcome.State
}

package idempotency

import "context"

// Run is Do without a codec, for what answers in bytes of its own, as HTTP does.
// fn returns the response itself, of any Type, and Outcome.Record.Response is that
// response byte for byte, whoever ran fn; Outcome.Executed tells whether this call
// did. Where Answer.UndoWrites is set, fn's writes are undone and the response is
// recorded all the same. An error from fn is never recorded, also one that Final
// marks.
//
// Calls that waited for one answer may have the bytes of the body in common, also
// with the response that fn returned: do not change them. The outcome is Completed
// where err is nil; the errors are Do's.
func (c *Client[TTx]) Run(ctx context.Context, params Params, fn func(ctx context.Context, tx TTx) (Answer, error)) (outcome *Outcome, err error) {
	op := &operation[TTx]{asked: answerFunc[TTx](fn)}
	if err := op.init(c, &params); err != nil {
		return nil, err
	}
	if fn == nil {
		return nil, &ParamError{Field: "fn", Reason: "is nil"}
	}
	ctx, end := c.settings.trace(ctx, OperationRun, op.begin.Key)
	defer func() { op.traced(end, outcome != nil && !outcome.Executed, err) }()
	outcome, _, err = op.run(ctx, params.waitOr(c.settings.Wait))
	return outcome, err
}

// Transact runs fn in a transaction like Do's, without a key: for a request that
// came without one. fn's writes commit together or not at all. fn may run again
// before that commit, after a serialization failure or a deadlock, so it must act
// through tx only. An error from fn rolls back and is returned. The tx given to fn
// refuses Commit and Rollback.
//
// A lost reply to the commit is ErrOutcomeUnknown, and without a key nobody can
// find out: calling again may do the work twice. Other errors are ErrInvalidParams,
// ErrOwned, ErrTxAborted, ErrUnavailable and ErrSerializationFailure.
func (c *Client[TTx]) Transact(ctx context.Context, fn func(ctx context.Context, tx TTx) error) (err error) {
	switch {
	case c == nil:
		return &ParamError{Field: "client", Reason: "is nil"}
	case fn == nil:
		return &ParamError{Field: "fn", Reason: "is nil"}
	}
	ctx, end := c.settings.trace(ctx, OperationTransact, Key{})
	running := false
	defer func() {
		if running {
			err = ErrNotReturned
		}
		end(0, false, err)
	}()
	return c.store.Transact(ctx, func(ctx context.Context, tx TTx) error {
		running = true
		err := fn(ctx, tx)
		running = false
		return err
	})
}

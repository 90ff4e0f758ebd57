package idempotency

import (
	"context"
	"errors"
	"time"
)

// operation is one call of Do, DoTx or Run, seen without the type of its result:
// a function that runs under a key.
type operation[TTx any] struct {
	client *Client[TTx]
	begin  BeginParams
	asked  answerer[TTx]
	// running says that asked has not answered yet.
	running bool
	// state is where the key stands, as far as the call has found out.
	state State
}

// answerer is the function of an operation. It is an interface so that a typed
// operation is its own: a method value would be one more allocation.
type answerer[TTx any] interface {
	answer(ctx context.Context, tx TTx) (Answer, error)
}

type answerFunc[TTx any] func(ctx context.Context, tx TTx) (Answer, error)

func (f answerFunc[TTx]) answer(ctx context.Context, tx TTx) (Answer, error) { return f(ctx, tx) }

func (o *operation[TTx]) init(client *Client[TTx], params *Params) error {
	if client == nil {
		return &ParamError{Field: "client", Reason: "is nil"}
	}
	o.client = client
	return client.settings.fillBeginParams(&o.begin, params)
}

// run is Do without a codec. shared says that other calls of this client have the
// bytes of the answer too.
func (o *operation[TTx]) run(ctx context.Context, wait time.Duration) (outcome *Outcome, shared bool, err error) {
	if err := o.client.settings.checkNesting(ctx, o.begin.Key); err != nil {
		return nil, false, err
	}
	outcome, shared, err = o.client.gate.do(ctx, &o.begin, wait, func(p *pass) (*Outcome, error) {
		return o.client.store.Run(ctx, &o.begin, func(ctx context.Context, tx TTx) (Answer, error) {
			p.running()
			return o.ask(ctx, tx)
		})
	})
	o.state = outcomeState(outcome)
	if err != nil {
		return nil, false, err
	}
	return outcome, shared, nil
}

// runTx is DoTx without a codec.
func (o *operation[TTx]) runTx(ctx context.Context, tx TTx, wait time.Duration) (*Outcome, error) {
	if err := o.client.settings.checkNesting(ctx, o.begin.Key); err != nil {
		return nil, err
	}
	verbs := o.client.store.WithTx(tx)
	outcome, err := waitWhileInProgress(ctx, o.begin.Key, wait, func() (*Outcome, error) {
		return verbs.Begin(ctx, &o.begin)
	})
	o.state = outcomeState(outcome)
	if err != nil {
		return nil, err
	}
	if outcome.State == Completed {
		return outcome, nil
	}
	var answer Answer
	err = o.client.store.Savepoint(ctx, tx, func(ctx context.Context, tx TTx) error {
		answer, err = o.ask(ctx, tx)
		if err == nil && answer.UndoWrites {
			return errUndo
		}
		return err
	})
	if err != nil && err != errUndo { //nolint:errorlint // Savepoint returns this very value.
		return nil, err
	}
	record, err := verbs.Complete(ctx, outcome.Claim, answer.Response)
	if err != nil {
		return nil, err
	}
	o.state = Completed
	return &Outcome{State: Completed, Record: record, Executed: true}, nil
}

// ask calls the function in a context that marks the key as held until it has
// returned, and refuses what is not to be recorded.
func (o *operation[TTx]) ask(ctx context.Context, tx TTx) (Answer, error) {
	ctx, done := o.client.settings.hold(ctx, o.begin.Key)
	defer done()
	o.running = true
	answer, err := o.asked.answer(ctx, tx)
	o.running = false
	return o.client.settings.recordable(answer, err)
}

// traced ends the trace of the call, also where the function panicked or called
// runtime.Goexit: then nothing else was set.
func (o *operation[TTx]) traced(end func(State, bool, error), replayed bool, err error) {
	if o.running {
		o.state, replayed, err = 0, false, ErrNotReturned
	}
	end(o.state, replayed, err)
}

// errUndo makes Savepoint undo the writes of an operation whose answer asks for it.
var errUndo = errors.New("idempotency: undo the writes of the operation")

func outcomeState(outcome *Outcome) State {
	if outcome == nil {
		return 0
	}
	return outcome.State
}

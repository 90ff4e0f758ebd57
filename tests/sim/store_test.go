package sim_test

import (
	"context"
	"errors"
	"time"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

// fault is what the store does to one call.
type fault int

const (
	slowCall    fault = iota // it arrives late
	slowReply                // it is carried out, and the reply is late
	refused                  // it fails and is not carried out
	lostReply                // it is carried out and fails; a commit is unknown then
	undone                   // the commit is unknown, and was rolled back
	ghost                    // the commit is unknown, and happens later
	ghostUndone              // the commit is unknown, and is rolled back later
	rerun                    // the function runs, is undone, and runs again later
	faults
)

var fault2name = [...]string{
	"slow call", "slow reply", "refused", "lost reply", "undone", "ghost", "ghost undone", "rerun",
}

// faultyStore is a memstore that fails as the call's seed says.
type faultyStore struct {
	*memstore.Store[*memstore.Tx]
	world *world
}

// draw returns the fault of the next request of the call, with all of faults
// meaning none.
func (c *call) draw(kinds ...fault) fault {
	if c.calm || c.random.IntN(3) > 0 {
		return faults
	}
	return kinds[c.random.IntN(len(kinds))]
}

// lateness is mostly less than any wait, sometimes more than all of them.
func (c *call) lateness() time.Duration {
	return pick(c.random, []int{12, 4, 1}, within(c.random, 20*time.Millisecond), within(c.random, time.Second), within(c.random, 5*time.Second))
}

// travel takes the time of a request that is on its way, or until ctx ends.
func (c *call) travel(ctx context.Context, drawn fault) error {
	duration := within(c.random, 200*time.Microsecond)
	if drawn == slowCall {
		c.faults[slowCall] = true
		duration = c.lateness()
	}
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if drawn == refused {
		c.faults[refused] = true
		return errInjected
	}
	return nil
}

func (c *call) travelBack(drawn fault) {
	duration := within(c.random, 200*time.Microsecond)
	if drawn == slowReply {
		c.faults[slowReply] = true
		duration = c.lateness()
	}
	time.Sleep(duration)
}

// Run is asked by a call of this world, or by nobody it knows.
func (s *faultyStore) Run(ctx context.Context, params *idempotency.BeginParams,
	fn func(ctx context.Context, tx *memstore.Tx) (idempotency.Answer, error),
) (outcome *idempotency.Outcome, err error) {
	c := callOf(ctx)
	began := time.Now()
	ran := false
	defer func() {
		c.inStore += time.Since(began)
		if !ran {
			c.asking = append(c.asking, span{began, time.Now()})
		}
	}()
	drawn := c.draw(slowCall, slowReply, refused, lostReply, undone, ghost, ghostUndone, rerun)
	if err := c.travel(ctx, drawn); err != nil {
		return nil, err
	}

	held := s.world.hold(c)
	defer held.end()
	watched := func(ctx context.Context, tx *memstore.Tx) (idempotency.Answer, error) {
		held.confirm()
		if !ran {
			ran = true
			c.asking = append(c.asking, span{began, time.Now()})
		}
		answer, err := fn(ctx, tx)
		if err == nil {
			time.Sleep(within(c.random, 200*time.Microsecond)) // on the way to its commit
		}
		return answer, err
	}
	switch drawn {
	case undone, ghost, ghostUndone:
		return s.runUnknown(ctx, c, params, held, drawn, watched)
	case rerun:
		outcome, first, err := s.runUndone(ctx, params, watched)
		if !first {
			c.travelBack(drawn)
			return outcome, err
		}
		c.faults[rerun] = true
		time.Sleep(c.lateness())
	}
	outcome, err = s.Store.Run(ctx, params, watched)
	executed := err == nil && outcome.Executed
	if executed {
		s.world.answer(c, outcome.Record)
	}
	held.end()
	c.travelBack(drawn)
	switch {
	case drawn != lostReply || err != nil:
		return outcome, err
	case executed:
		c.faults[lostReply] = true
		return nil, unknownOutcome(params.Key)
	default:
		c.faults[lostReply] = true
		return nil, errInjected
	}
}

func unknownOutcome(key idempotency.Key) error {
	return &idempotency.KeyError{Key: key, Err: idempotency.ErrOutcomeUnknown}
}

// runByHand is Run up to its commit, which is left to the caller. A nil record
// means that there is nothing to commit.
func (s *faultyStore) runByHand(ctx context.Context, tx *memstore.Tx, params *idempotency.BeginParams,
	fn func(ctx context.Context, tx *memstore.Tx) (idempotency.Answer, error),
) (outcome *idempotency.Outcome, record *idempotency.Record, err error) {
	verbs := s.Store.WithTx(tx)
	outcome, err = verbs.Begin(ctx, params)
	if err != nil || outcome.State != idempotency.New {
		return outcome, nil, err
	}
	errUndo := errors.New("sim: undo")
	var answer idempotency.Answer
	err = s.Savepoint(ctx, tx, func(ctx context.Context, tx *memstore.Tx) (err error) {
		answer, err = fn(ctx, tx)
		if err == nil && answer.UndoWrites {
			return errUndo
		}
		return err
	})
	if err != nil && !errors.Is(err, errUndo) {
		return nil, nil, err
	}
	record, err = verbs.Complete(ctx, outcome.Claim, answer.Response)
	return outcome, record, err
}

// runUnknown runs the function and loses the commit, in one of three ways.
func (s *faultyStore) runUnknown(ctx context.Context, c *call, params *idempotency.BeginParams, held *hold, how fault,
	fn func(ctx context.Context, tx *memstore.Tx) (idempotency.Answer, error),
) (outcome *idempotency.Outcome, err error) {
	tx := s.NewTx()
	left := false
	defer func() {
		if !left {
			_ = tx.Rollback(ctx) // a panic and runtime.Goexit pass through here too
		}
	}()
	outcome, record, err := s.runByHand(ctx, tx, params, fn)
	if record == nil {
		c.travelBack(how)
		return outcome, err
	}
	c.faults[how] = true
	c.expires = record.ExpiresAt
	left = true
	if how == undone {
		s.world.rollback(ctx, c, tx)
		held.end()
		c.travelBack(how)
	} else {
		s.world.haunt(ctx, c, tx, record, held, how == ghost)
	}
	return nil, unknownOutcome(params.Key)
}

// runUndone runs the function once in vain, as before a retry.
func (s *faultyStore) runUndone(ctx context.Context, params *idempotency.BeginParams,
	fn func(ctx context.Context, tx *memstore.Tx) (idempotency.Answer, error),
) (outcome *idempotency.Outcome, ran bool, err error) {
	tx := s.NewTx()
	defer func() { _ = tx.Rollback(ctx) }()
	outcome, record, err := s.runByHand(ctx, tx, params, fn)
	return outcome, record != nil, err
}

// WithTx returns verbs that fail as the call's seed says.
func (s *faultyStore) WithTx(tx *memstore.Tx) idempotency.Verbs {
	return &faultyVerbs{inner: s.Store.WithTx(tx), tx: tx, world: s.world}
}

type faultyVerbs struct {
	inner idempotency.Verbs
	tx    *memstore.Tx
	world *world
}

func (v *faultyVerbs) Begin(ctx context.Context, params *idempotency.BeginParams) (*idempotency.Outcome, error) {
	return request(ctx, func(c *call) (*idempotency.Outcome, error) {
		held := v.world.hold(c)
		outcome, err := v.inner.Begin(ctx, params)
		if err == nil && outcome.State == idempotency.New {
			held.confirm()
			v.world.holdBy(v.tx, held)
		} else {
			held.end()
		}
		return outcome, err
	})
}

func (v *faultyVerbs) AddStep(ctx context.Context, claim *idempotency.Claim, step *idempotency.StepRecord) error {
	return v.inner.AddStep(ctx, claim, step)
}

func (v *faultyVerbs) Complete(ctx context.Context, claim *idempotency.Claim, response *idempotency.Response) (*idempotency.Record, error) {
	return request(ctx, func(c *call) (*idempotency.Record, error) {
		record, err := v.inner.Complete(ctx, claim, response)
		if err == nil {
			c.expires = record.ExpiresAt
		}
		return record, err
	})
}

func (v *faultyVerbs) Get(ctx context.Context, key idempotency.Key) (*idempotency.Record, error) {
	return v.inner.Get(ctx, key)
}

// request sends one request of a transaction that the call owns.
func request[T any](ctx context.Context, send func(*call) (*T, error)) (*T, error) {
	c := callOf(ctx)
	began := time.Now()
	defer func() { c.inStore += time.Since(began) }()
	drawn := c.draw(slowCall, slowReply, refused, lostReply)
	if err := c.travel(ctx, drawn); err != nil {
		return nil, err
	}
	answer, err := send(c)
	c.travelBack(drawn)
	if drawn == lostReply && err == nil {
		c.faults[lostReply] = true
		return nil, errInjected
	}
	return answer, err
}

package sim_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

// verb is the way in which a call asks for its key.
type verb int

const (
	verbDo verb = iota
	verbDoTx
	verbWithTx
)

func (v verb) String() string { return [...]string{"Do", "DoTx", "WithTx"}[v] }

// behaviour is what the user's function does in the end.
type behaviour int

const (
	succeeds behaviour = iota
	failsPlainly
	failsFinally
	panics
	exits
	// forgets and forges are mistakes that only the verbs allow: no Complete,
	// and a Complete with a claim id that no Begin returned.
	forgets
	forges
)

func (b behaviour) String() string {
	return [...]string{"succeeds", "fails", "fails for good", "panics", "exits", "forgets to complete", "forges a claim"}[b]
}

// outcome is how a call ended.
type outcome int

const (
	exited outcome = iota // what is left where the goroutine just ends
	executed
	executedFinal
	replayed
	replayedFinal
	inProgress
	mismatch
	unknown
	overloaded
	failed
	cancelled
	panicked
	outcomes
)

func (o outcome) String() string {
	return [...]string{
		"exited", "executed", "executed final", "replayed", "replayed final", "in progress",
		"mismatch", "unknown", "overloaded", "failed", "cancelled", "panicked",
	}[o]
}

func (o outcome) isAnswer() bool {
	return o == executed || o == executedFinal || o == replayed || o == replayedFinal
}

func (o outcome) ran() bool { return o == executed || o == executedFinal }

var (
	errInjected  = errors.New("sim: injected")
	errOperation = errors.New("sim: the operation fails")
	errDeclined  = errors.New("sim: declined")
)

const finalCode = "declined"

// finalBody is what stands for the recorded body in the history of a final
// error, whose value carries no effect id.
const finalBody = "final"

// call is one call of the library: its plan, drawn before it begins, and its
// history.
type call struct {
	world       *world
	id          int // the effect id, unique in the world
	process     int
	client      *idempotency.Client[*memstore.Tx]
	name        string
	random      *rand.Rand
	calm        bool // no faults
	verb        verb
	key         idempotency.Key
	fingerprint int
	wait        time.Duration
	timeout     time.Duration
	ttl         time.Duration
	behaviour   behaviour
	work        time.Duration
	obeys       bool // the function returns when its context ends
	padding     int

	called, returned     int64 // in the order of events
	calledAt, returnedAt time.Time
	inStore              time.Duration
	asking               []span // when it asked the store and did not run
	working              time.Duration
	given                [][]byte
	expires              time.Time // of what was completed before its commit
	outcome              outcome
	err                  error
	body                 string
	by                   int // the call whose answer it is; 0 for a final error
	record               *idempotency.Record
	faults               [faults]bool
	runs                 int
}

var fingerprints = [...]idempotency.Fingerprint{
	idempotency.FingerprintOf("the request"),
	idempotency.FingerprintOf("another request"),
	idempotency.NoFingerprint,
}

// pick returns one of the values, as often as its weight says.
func pick[T any](random *rand.Rand, weights []int, values ...T) T {
	total := 0
	for _, weight := range weights {
		total += weight
	}
	n := random.IntN(total)
	for i, weight := range weights {
		if n < weight {
			return values[i]
		}
		n -= weight
	}
	panic("unreachable")
}

// within returns an odd number of nanoseconds, mostly few: two timers of one
// instant would fire in an order that no seed decides.
func within(random *rand.Rand, limit time.Duration) time.Duration {
	return time.Duration(random.Int64N(int64(limit))) | 1
}

func (w *world) plan(process, actor, op, attempt int, random *rand.Rand) *call {
	c := &call{
		world:       w,
		process:     process,
		client:      w.clients[process],
		name:        fmt.Sprintf("p%d a%d op%d.%d", process, actor, op, attempt),
		random:      random,
		verb:        pick(random, []int{6, 2, 2}, verbDo, verbDoTx, verbWithTx),
		key:         w.keys[random.IntN(len(w.keys))],
		fingerprint: pick(random, []int{12, 2, 1}, 0, 1, 2),
		wait: pick(random, []int{3, 2, 4, 3}, idempotency.NoWait, 1+within(random, 20*time.Millisecond),
			1+within(random, 2*time.Second), time.Minute),
		timeout: pick(random, []int{6, 1, 1}, 0, within(random, 30*time.Millisecond), within(random, 3*time.Second)),
		ttl:     pick(random, []int{3, 1, 1}, time.Hour, time.Microsecond+within(random, 20*time.Millisecond), time.Microsecond+within(random, time.Second)),
		behaviour: pick(random, []int{10, 3, 2, 1, 1}, succeeds, failsPlainly, failsFinally,
			panics, exits),
		work:    pick(random, []int{2, 4, 1}, 0, within(random, 20*time.Millisecond), within(random, time.Second)),
		obeys:   random.IntN(2) == 0,
		padding: random.IntN(40),
	}
	if c.verb == verbWithTx {
		switch random.IntN(8) {
		case 0:
			c.behaviour = forgets
		case 1:
			c.behaviour = forges
		}
	}
	return c
}

func (c *call) params() idempotency.Params {
	return idempotency.Params{Key: c.key, Fingerprint: fingerprints[c.fingerprint], TTL: c.ttl, Wait: c.wait}
}

type callKey struct{}

// callOf returns the call that ctx belongs to.
func callOf(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	return c
}

// run makes the call, in a goroutine of its own: the function may end it.
func (c *call) run(ctx context.Context) {
	w := c.world
	ctx = context.WithValue(ctx, callKey{}, c)
	if c.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.timeout)
		defer cancel()
	}
	w.begin(c)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if value := recover(); value != nil {
				if value != any(errOperation) {
					w.violation("I4: %s panicked with %v, which is not what its function panicked with", c, value)
				}
				c.outcome = panicked
			}
		}()
		result, err := c.invoke(ctx)
		c.conclude(result, err)
	}()
	<-done
	w.end(c)
	// Nothing that a caller does with its answer may reach another caller.
	for _, given := range c.given {
		scribble(given)
	}
}

func (c *call) invoke(ctx context.Context) (idempotency.Result[[]byte], error) {
	if c.verb == verbDo {
		return idempotency.Do(ctx, c.client, c.params(), c.function)
	}
	tx := c.world.store.NewTx()
	defer c.world.rollback(ctx, c, tx)
	if c.verb == verbWithTx {
		return c.invokeVerbs(ctx, tx)
	}
	txResult, err := idempotency.DoTx(ctx, c.client, tx, c.params(), c.function)
	if err != nil {
		return idempotency.Result[[]byte]{}, err
	}
	result, err := txResult.Answer()
	if !result.Replayed {
		if commitErr := c.world.commit(ctx, c, tx, result.Record); commitErr != nil {
			return idempotency.Result[[]byte]{}, commitErr
		}
	}
	return result, err
}

func (c *call) invokeVerbs(ctx context.Context, tx *memstore.Tx) (result idempotency.Result[[]byte], err error) {
	verbs := c.client.WithTx(tx)
	outcome, err := verbs.Begin(ctx, c.params())
	if err != nil {
		return result, err
	}
	switch outcome.State {
	case idempotency.InProgress:
		return result, &idempotency.InProgressError{Key: c.key, RetryAfter: outcome.RetryAfter}
	case idempotency.Completed:
		result = idempotency.Result[[]byte]{Replayed: true, Record: outcome.Record, Value: outcome.Record.Response.Body}
		if strings.HasPrefix(outcome.Record.Response.Type, idempotency.TypeErrorPrefix) {
			err = &idempotency.FinalError{Key: c.key}
		}
		return result, err
	}
	value, err := c.function(ctx, tx)
	if err != nil {
		return result, err
	}
	switch c.behaviour {
	case forgets:
		return result, c.mustNotCommit(ctx, tx, idempotency.ErrUnfinished)
	case forges:
		forged := *outcome.Claim
		forged.ID = idempotency.NewClaimID()
		_, err := verbs.Complete(ctx, &forged, &idempotency.Response{Type: idempotency.TypeBytes, Body: value})
		if errors.Is(err, errInjected) || errors.Is(err, context.DeadlineExceeded) {
			return result, err // it did not get there, or its reply did not
		}
		if !errors.Is(err, idempotency.ErrClaimLost) {
			c.world.violation("I10: %s completed with a forged claim: %v", c, err)
		}
		return result, c.mustNotCommit(ctx, tx, idempotency.ErrClaimLost)
	}
	record, err := verbs.Complete(ctx, outcome.Claim, &idempotency.Response{Type: idempotency.TypeBytes, Body: value})
	if err != nil {
		return result, err
	}
	if err := c.world.commit(ctx, c, tx, record); err != nil {
		return result, err
	}
	return idempotency.Result[[]byte]{Record: record, Value: record.Response.Body}, nil
}

// mustNotCommit commits a transaction that must not, and returns errOperation.
func (c *call) mustNotCommit(ctx context.Context, tx *memstore.Tx, want error) error {
	if err := tx.Commit(ctx); !errors.Is(err, want) {
		c.world.violation("I3: %s committed a transaction that must not commit: %v; want %v", c, err, want)
	}
	return errOperation
}

// function is the user's.
func (c *call) function(ctx context.Context, tx *memstore.Tx) ([]byte, error) {
	c.runs++
	began := time.Now()
	tx.OnCommit(func() { c.world.effect(c) })
	if c.work > 0 {
		timer := time.NewTimer(c.work)
		defer timer.Stop()
		ended := ctx.Done()
		if !c.obeys {
			ended = nil
		}
		select {
		case <-timer.C:
		case <-ended:
			c.working += time.Since(began)
			return nil, context.Cause(ctx)
		}
	}
	c.working += time.Since(began)
	switch c.behaviour {
	case failsPlainly:
		return nil, errOperation
	case failsFinally:
		if c.verb == verbWithTx {
			return nil, errOperation
		}
		return nil, idempotency.Final(errDeclined)
	case panics:
		panic(errOperation)
	case exits:
		runtime.Goexit()
	}
	value := fmt.Appendf(nil, "%d:%s", c.id, strings.Repeat("x", c.padding))
	c.given = append(c.given, value)
	return value, nil
}

// conclude writes down how the call ended, and spoils what it was given.
func (c *call) conclude(result idempotency.Result[[]byte], err error) {
	_, final := errors.AsType[*idempotency.FinalError](err)
	switch {
	case final && result.Replayed:
		c.outcome = replayedFinal
	case final:
		c.outcome = executedFinal
	case err == nil && result.Replayed:
		c.outcome = replayed
	case err == nil:
		c.outcome = executed
	case errors.Is(err, idempotency.ErrInProgress):
		c.outcome = inProgress
	case errors.Is(err, idempotency.ErrFingerprintMismatch):
		c.outcome = mismatch
	case errors.Is(err, idempotency.ErrOutcomeUnknown):
		c.outcome = unknown
	case errors.Is(err, idempotency.ErrOverloaded):
		c.outcome = overloaded
	case errors.Is(err, context.DeadlineExceeded):
		c.outcome = cancelled
	case errors.Is(err, errInjected), errors.Is(err, errOperation):
		c.outcome = failed
	default:
		c.outcome = failed
		c.world.violation("I11: %s failed with an error that nothing explains: %v", c, err)
	}
	c.err = err
	if !c.outcome.isAnswer() {
		if result.Record != nil || result.Value != nil {
			c.world.violation("I7: %s is %s and came with an answer", c, c.outcome)
		}
		return
	}
	c.body = string(result.Value)
	if final {
		c.body = finalBody
	} else {
		id, _, _ := strings.Cut(c.body, ":")
		c.by, _ = strconv.Atoi(id)
		if string(result.Record.Response.Body) != c.body {
			c.world.violation("I4: %s got %q and a record with %q", c, c.body, result.Record.Response.Body)
		}
	}
	record := *result.Record
	c.record = &record
	scribble(result.Value)
	if c.verb != verbWithTx && !final && string(result.Record.Response.Body) != c.body {
		c.world.violation("I4: %s got a value and a record that share their bytes", c)
	}
	if c.outcome.ran() || c.verb != verbDo { // else calls that waited have it in common
		scribble(result.Record.Response.Body)
	}
	*result.Record = idempotency.Record{}
}

func scribble(bytes []byte) {
	for i := range bytes {
		bytes[i] = '#'
	}
}

func (c *call) String() string {
	text := fmt.Sprintf("#%d %s %s %s", c.id, c.name, c.verb, c.key.ID)
	if c.fingerprint > 0 {
		text += [...]string{"", " wrong fingerprint", " no fingerprint"}[c.fingerprint]
	}
	return text
}

// history is the whole call in one line.
func (c *call) history(start time.Time) string {
	text := fmt.Sprintf("%12s..%-12s [%d..%d] %s wait=%s timeout=%s ttl=%s %s after %s",
		c.calledAt.Sub(start), c.returnedAt.Sub(start), c.called, c.returned, c, c.wait, c.timeout, c.ttl, c.behaviour, c.work)
	for fault, met := range c.faults {
		if met {
			text += fmt.Sprintf(" <%s>", fault2name[fault])
		}
	}
	text += fmt.Sprintf(" => %s, %d runs", c.outcome, c.runs)
	if c.outcome.isAnswer() {
		text += fmt.Sprintf(", of #%d until %s", c.by, c.record.ExpiresAt.Sub(start))
	}
	if c.err != nil {
		text += ": " + c.err.Error()
	}
	return text
}

package idempotency

import (
	"container/list"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// answerGrace is how long after its wait a call still hopes to hear what the
// call whose turn it is finds out.
const answerGrace = time.Second

// gate lets one call of this process at a time ask the store about a key. The
// others wait in memory, in the order in which they came, and get what it finds
// out. A call that runs its operation gives its turn away, so that the next one
// watches the store, for answers of other processes too.
//
// It saves connections and nothing else: what may run, the store decides.
type gate struct {
	maxWaiters int
	budget     *budget
	// perCaller keeps answers from being shared. See PerCallerStore.
	perCaller bool
	// namespace is NamespaceStore's, nil without one.
	namespace func(ctx context.Context) (string, error)

	waiters atomic.Int64 // of all queues

	// mu is held to find a queue and no longer. What happens in a queue, however
	// many wait in it, is under its own lock, and so does not hold up other keys.
	mu     sync.Mutex
	queues map[queueKey]*queue
}

// queueKey is what calls have in common that wait for one another.
type queueKey struct {
	Key
	namespace string
}

// queue is the calls of this process that want one key.
type queue struct {
	gate *gate
	key  queueKey

	mu sync.Mutex
	// closed says that later calls start another queue.
	closed bool
	calls  int // in the queue, waiting or not
	asking bool
	line   list.List // of the passes that wait, in the order in which they came
	// hurry has an element where there was a reason to ask again since the last
	// look began. It ends the pause of the call that asks.
	hurry chan struct{}

	// lookedAt is when the last look began that found the key in progress.
	lookedAt   time.Time
	retryAfter time.Duration
	looked     chan struct{} // closed at the end of such a look

	answer *Record
	// goodAt is a time at which the answer had certainly not expired.
	goodAt   time.Time
	answered chan struct{} // closed when there is an answer

	// first is the pass of the call that started the queue, most often its only
	// one: one allocation for both.
	first pass
}

// pass is one call's way through the gate. A nil pass is that of a call which
// does not wait.
type pass struct {
	queue *queue
	came  time.Time
	turn  bool // guarded by the queue's lock while the call is in line
	// place is the call's in the line, nil where it is not in it.
	place *list.Element
	// turned is closed when a call in line gets the turn.
	turned chan struct{}
	// ran says that the key was this call's for a while, and may be free again.
	ran bool
}

// newGate returns the gate to a store, which is a TxStore.
func newGate(store any, settings *settings) *gate {
	g := &gate{maxWaiters: settings.MaxWaiters, budget: newBudget(settings.MaxSharedBytes), queues: make(map[queueKey]*queue)}
	if perCaller, ok := store.(PerCallerStore); ok && perCaller.PerCaller() {
		g.perCaller = true
		if namespaces, ok := store.(NamespaceStore); ok {
			g.namespace = namespaces.Namespace
		}
	}
	return g
}

// do calls ask until its outcome is not InProgress, another call has an answer
// for this one, which is then shared, or the wait is over; then it returns an
// *InProgressError. ask calls running once nobody else needs to wait for what it
// finds out.
func (g *gate) do(ctx context.Context, params *BeginParams, wait time.Duration,
	ask func(p *pass) (*Outcome, error),
) (outcome *Outcome, shared bool, err error) {
	if wait <= 0 {
		outcome, err := ask(nil)
		if err == nil && outcome.State == InProgress {
			err = newInProgressError(params.Key, outcome.RetryAfter, nil)
		}
		return outcome, false, err
	}

	p, err := g.enter(ctx, params.Key)
	if err != nil {
		return nil, false, err
	}
	defer p.leave()
	deadline := p.came.Add(wait)
	for poll := firstPoll; ; poll = min(2*poll, longestPoll) {
		if !p.turn {
			answer, err := p.waitForTurn(ctx, deadline)
			if err != nil {
				return nil, false, err
			}
			if answer != nil {
				outcome, err := replay(params, answer)
				return outcome, true, err
			}
		}
		asked := p.look()
		outcome, err := ask(p)
		if err != nil {
			return nil, false, err
		}
		if outcome.State != InProgress {
			goodAt := asked
			if outcome.Executed && time.Since(asked) < params.TTL {
				goodAt = time.Now() // it was recorded since, and has not expired
			}
			p.tellAnswer(outcome.Record, goodAt)
			return outcome, false, nil
		}
		p.tellInProgress(asked, outcome.RetryAfter)
		if !p.turn {
			continue // it ran, and lost a race
		}
		left := time.Until(deadline)
		if left <= 0 {
			return outcome, false, newInProgressError(params.Key, outcome.RetryAfter, nil)
		}
		if err := p.pause(ctx, min(jitter(poll), left)); err != nil {
			return outcome, false, newInProgressError(params.Key, outcome.RetryAfter, err)
		}
		if answer := p.answer(); answer != nil {
			outcome, err := replay(params, answer)
			return outcome, true, err
		}
	}
}

// room waits until an answer that is shared may be made a result of, and returns
// the function to call when that is done.
func (g *gate) room(ctx context.Context, shared *Record) (give func(), err error) {
	give, err = g.budget.take(ctx, len(shared.Response.Body))
	if err != nil {
		return nil, &KeyError{Key: shared.Key, Err: fmt.Errorf("idempotency: gave up waiting for room in Config.MaxSharedBytes: %w", err)}
	}
	return give, nil
}

// replay judges an answer that another call of this process got, as a store
// judges a row.
func replay(params *BeginParams, answer *Record) (*Outcome, error) {
	if !params.Fingerprint.Matches(answer.Fingerprint) {
		return nil, &KeyError{Key: params.Key, Err: ErrFingerprintMismatch}
	}
	return &Outcome{State: Completed, Record: answer.share()}, nil
}

// enter takes the turn where nobody has it.
func (g *gate) enter(ctx context.Context, key Key) (*pass, error) {
	came := time.Now()
	wanted := queueKey{Key: key}
	if g.namespace != nil {
		var err error
		if wanted.namespace, err = g.namespace(ctx); err != nil {
			return nil, err
		}
	}
	for {
		q, started := g.queue(wanted)
		if started {
			q.first = pass{queue: q, came: came, turn: true}
			return &q.first, nil
		}
		if p := q.join(came); p != nil {
			return p, nil
		}
		g.forget(q)
	}
}

// queue returns the queue of the key, or starts one with the caller as its first
// call.
func (g *gate) queue(key queueKey) (q *queue, started bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if q := g.queues[key]; q != nil {
		return q, false
	}
	q = &queue{gate: g, key: key, calls: 1, asking: true}
	g.queues[key] = q
	return q, true
}

// forget makes later calls for the key start another queue.
func (g *gate) forget(q *queue) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.queues[q.key] == q {
		delete(g.queues, q.key)
	}
}

// join returns nil where the queue takes no more calls.
func (q *queue) join(came time.Time) *pass {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil
	}
	p := &pass{queue: q, came: came, turn: !q.asking}
	q.calls++
	q.asking = true
	return p
}

// leave is the end of the call, however it ended.
func (p *pass) leave() {
	q := p.queue
	q.mu.Lock()
	p.giveTurn()
	q.calls--
	last := q.calls == 0
	if last {
		q.closed = true
	} else if p.ran {
		q.hurryUp()
	}
	q.mu.Unlock()
	if last {
		q.gate.forget(q)
	}
}

// look begins a look at the store, newer than every reason for one so far.
func (p *pass) look() time.Time {
	p.queue.mu.Lock()
	defer p.queue.mu.Unlock()
	select {
	case <-p.queue.hurry:
	default:
	}
	return time.Now()
}

// running says that the call has the key, and need not be waited for by the one
// that would ask the store next.
func (p *pass) running() {
	if p == nil {
		return
	}
	p.queue.mu.Lock()
	defer p.queue.mu.Unlock()
	p.ran = true
	p.giveTurn()
}

// giveTurn lets the next call ask the store. The queue is locked.
func (p *pass) giveTurn() {
	if !p.turn {
		return
	}
	p.turn = false
	first := p.queue.line.Front()
	if first == nil {
		p.queue.asking = false
		return
	}
	next := first.Value.(*pass)
	next.quit()
	next.turn = true
	close(next.turned)
}

// waitForTurn returns nil when it is this call's turn, or the answer that
// another call has got.
func (p *pass) waitForTurn(ctx context.Context, deadline time.Time) (*Record, error) {
	q := p.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	if answer := q.answerFor(p); answer != nil {
		return answer, nil
	}
	if !q.asking {
		q.asking, p.turn = true, true
		return nil, nil
	}
	if !p.line() {
		return nil, &KeyError{Key: q.key.Key, Err: fmt.Errorf("%w: %d calls wait already, which is Config.MaxWaiters", ErrOverloaded, q.gate.maxWaiters)}
	}
	defer p.quit()

	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	var (
		over         bool  // the wait has ended: "in progress" is an answer now
		cause, quits error // why it ended early; what to fail with, if nothing was heard
	)
	for {
		answered, looked := q.signals(over)
		q.mu.Unlock()
		select {
		case <-p.turned:
		case <-answered:
		case <-looked:
		case <-timer.C:
			if over {
				quits = &KeyError{Key: q.key.Key, Err: fmt.Errorf("%w: nothing was heard of the key", ErrOverloaded)}
			}
			over = true
			timer.Reset(answerGrace)
		case <-ctx.Done():
			over, cause = true, context.Cause(ctx)
			quits = &KeyError{Key: q.key.Key, Err: fmt.Errorf("idempotency: gave up waiting for another call of this process: %w", cause)}
		}
		q.mu.Lock()
		// An answer comes before the turn, which the next in line gets then.
		if answer := q.answerFor(p); answer != nil || p.turn {
			return answer, nil
		}
		if over && q.lookedAt.After(p.came) { // an older look may be out of date
			return nil, newInProgressError(q.key.Key, q.retryAfter, cause)
		}
		if quits != nil {
			return nil, quits
		}
		if over {
			q.hurryUp()
		}
	}
}

// line puts the call into the line, unless too many wait. The queue is locked.
func (p *pass) line() bool {
	g := p.queue.gate
	for {
		waiters := g.waiters.Load()
		if waiters >= int64(g.maxWaiters) {
			return false
		}
		if g.waiters.CompareAndSwap(waiters, waiters+1) {
			break
		}
	}
	p.turned = make(chan struct{})
	p.place = p.queue.line.PushBack(p)
	return true
}

// quit takes the call out of the line, if it is in it. The queue is locked.
func (p *pass) quit() {
	if p.place == nil {
		return
	}
	p.queue.line.Remove(p.place)
	p.place = nil
	p.queue.gate.waiters.Add(-1)
}

// signals returns what a call in line waits for besides its turn. The queue is
// locked.
func (q *queue) signals(over bool) (answered, looked <-chan struct{}) {
	if q.answered == nil {
		q.answered = make(chan struct{})
	}
	if !over {
		return q.answered, nil
	}
	if q.looked == nil {
		q.looked = make(chan struct{})
	}
	return q.answered, q.looked
}

// tellAnswer gives the answer to those who wait; one that pauses finds it when
// this call leaves. Calls that come later ask the store again, and so do those
// that came since goodAt: the answer may have expired before they came.
func (p *pass) tellAnswer(record *Record, goodAt time.Time) {
	q := p.queue
	if q.gate.perCaller {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.calls == 1 || q.answer != nil && !goodAt.After(q.goodAt) {
		return
	}
	// This call's caller may write to its own.
	q.answer, q.goodAt, q.closed = record.Clone(), goodAt, true
	if q.answered != nil {
		close(q.answered)
		q.answered = nil
	}
}

// tellInProgress tells it to those whose wait is over.
func (p *pass) tellInProgress(asked time.Time, retryAfter time.Duration) {
	q := p.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	q.lookedAt, q.retryAfter = asked, retryAfter
	if q.looked != nil {
		close(q.looked)
		q.looked = nil
	}
}

func (p *pass) answer() *Record {
	p.queue.mu.Lock()
	defer p.queue.mu.Unlock()
	return p.queue.answerFor(p)
}

// answerFor returns the answer if the call may share it, or nil. The queue is
// locked.
func (q *queue) answerFor(p *pass) *Record {
	if p.came.After(q.goodAt) {
		return nil
	}
	return q.answer
}

// pause waits for the given time, or until there is a reason to ask at once.
func (p *pass) pause(ctx context.Context, duration time.Duration) error {
	p.queue.mu.Lock()
	hurry := p.queue.hurries()
	p.queue.mu.Unlock()
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-hurry:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// hurryUp ends the pause of the call that asks the store, or leaves out its next
// one. The queue is locked.
func (q *queue) hurryUp() {
	select {
	case q.hurries() <- struct{}{}:
	default:
	}
}

func (q *queue) hurries() chan struct{} {
	if q.hurry == nil {
		q.hurry = make(chan struct{}, 1)
	}
	return q.hurry
}

package idempotency

import (
	"context"
	"fmt"
	"slices"
	"sync"
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
	// perCaller keeps answers from being shared. See PerCallerStore.
	perCaller bool

	mu      sync.Mutex
	queues  map[Key]*queue
	waiters int // of all queues
}

// queue is the calls of this process that want one key. Its gate's lock guards it.
type queue struct {
	calls   int // in the queue, waiting or not
	asking  bool
	waiters []*waiter
	// wake ends the pause of the call that asks; nil where it does not pause.
	wake chan struct{}
	// hurried says that there was a reason to ask again since the last look began.
	hurried bool
	// lookedAt is when the last look began that found the key in progress.
	lookedAt   time.Time
	retryAfter time.Duration
	answer     *Record
	// goodAt is a time at which, or after which, the answer was certainly good.
	goodAt time.Time
}

// waiter is a call that waits for its turn, or for what others find out. It is
// told one thing, once.
type waiter struct {
	came time.Time
	// over says that its wait has ended, so that it will take "in progress" for
	// an answer.
	over bool
	news chan news
}

// news is a turn to ask the store where nothing is set.
type news struct {
	answer     *Record
	inProgress bool
	retryAfter time.Duration
}

// pass is one call's way through the gate.
type pass struct {
	gate  *gate
	key   Key
	queue *queue
	came  time.Time
	turn  bool
	// ran says that the key was this call's for a while, and may be free again.
	ran bool
}

// do calls ask until its outcome is not InProgress, another call has an answer
// for this one, or the wait is over; then it returns an *InProgressError. ask
// calls running once nobody else needs to wait for what it finds out.
func (g *gate) do(ctx context.Context, params *BeginParams, wait time.Duration,
	ask func(running func()) (outcome *Outcome, executed bool, err error),
) (*Outcome, error) {
	if wait <= 0 {
		outcome, _, err := ask(func() {})
		if err == nil && outcome.State == InProgress {
			err = newInProgressError(params.Key, outcome.RetryAfter, nil)
		}
		return outcome, err
	}

	p := g.enter(params.Key)
	defer p.leave()
	deadline := p.came.Add(wait)
	for poll := firstPoll; ; poll = min(2*poll, longestPoll) {
		if !p.turn {
			answer, err := p.waitForTurn(ctx, deadline)
			if err != nil {
				return nil, err
			}
			if answer != nil {
				return replay(params, answer)
			}
		}
		asked := p.look()
		outcome, executed, err := ask(p.running)
		if err != nil {
			return nil, err
		}
		if outcome.State != InProgress {
			goodAt := asked
			if executed && time.Since(asked) < params.TTL {
				goodAt = time.Now() // it was recorded since, and has not expired
			}
			p.tellAnswer(outcome.Record, goodAt)
			return outcome, nil
		}
		p.tellInProgress(asked, outcome.RetryAfter)
		if !p.turn {
			continue // it ran, and lost a race
		}
		left := time.Until(deadline)
		if left <= 0 {
			return outcome, newInProgressError(params.Key, outcome.RetryAfter, nil)
		}
		if err := p.pause(ctx, min(jitter(poll), left)); err != nil {
			return outcome, newInProgressError(params.Key, outcome.RetryAfter, err)
		}
		if answer := p.answer(); answer != nil {
			return replay(params, answer)
		}
	}
}

// replay judges an answer that another call of this process got, as a store
// judges a row.
func replay(params *BeginParams, answer *Record) (*Outcome, error) {
	if !params.Fingerprint.Matches(answer.Fingerprint) {
		return nil, &KeyError{Key: params.Key, Err: ErrFingerprintMismatch}
	}
	return &Outcome{State: Completed, Record: answer.clone()}, nil
}

// enter takes the turn where nobody has it.
func (g *gate) enter(key Key) *pass {
	g.mu.Lock()
	defer g.mu.Unlock()
	q := g.queues[key]
	if q == nil {
		if g.queues == nil {
			g.queues = make(map[Key]*queue)
		}
		q = &queue{}
		g.queues[key] = q
	}
	p := &pass{gate: g, key: key, queue: q, came: time.Now(), turn: !q.asking}
	q.calls++
	q.asking = true
	return p
}

// leave is the end of the call, however it ended.
func (p *pass) leave() {
	p.giveTurn()
	p.gate.mu.Lock()
	defer p.gate.mu.Unlock()
	if p.ran {
		p.queue.ask()
	}
	p.queue.calls--
	if p.queue.calls == 0 {
		p.gate.forget(p.key, p.queue)
	}
}

// look begins a look at the store, newer than every reason for one so far.
func (p *pass) look() time.Time {
	p.gate.mu.Lock()
	defer p.gate.mu.Unlock()
	p.queue.wake, p.queue.hurried = nil, false
	return time.Now()
}

func (p *pass) running() {
	p.ran = true
	p.giveTurn()
}

// giveTurn lets the next call ask the store.
func (p *pass) giveTurn() {
	p.gate.mu.Lock()
	defer p.gate.mu.Unlock()
	if !p.turn {
		return
	}
	p.turn = false
	if len(p.queue.waiters) == 0 {
		p.queue.asking = false
		return
	}
	next := p.queue.waiters[0]
	p.queue.waiters = p.queue.waiters[1:]
	p.gate.tell(next, news{})
}

// waitForTurn returns nil when it is this call's turn, or the answer that
// another call has got.
func (p *pass) waitForTurn(ctx context.Context, deadline time.Time) (*Record, error) {
	w, answer, err := p.line()
	if w == nil {
		return answer, err
	}
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	for {
		select {
		case heard := <-w.news:
			return p.hear(heard)
		case <-ctx.Done():
			p.waitIsOver(w)
			heard, told := p.quit(w)
			if told && !heard.inProgress {
				return p.hear(heard)
			}
			if told {
				return nil, newInProgressError(p.key, heard.retryAfter, context.Cause(ctx))
			}
			return nil, &KeyError{Key: p.key, Err: fmt.Errorf("idempotency: gave up waiting for another call of this process: %w", context.Cause(ctx))}
		case <-timer.C:
			if p.waitIsOver(w) {
				timer.Reset(answerGrace)
				continue
			}
			if heard, told := p.quit(w); told {
				return p.hear(heard)
			}
			return nil, &KeyError{Key: p.key, Err: fmt.Errorf("%w: nothing was heard of the key", ErrOverloaded)}
		}
	}
}

// line puts the call into the line, where it has to wait: it is not its turn,
// and there is no answer.
func (p *pass) line() (*waiter, *Record, error) {
	p.gate.mu.Lock()
	defer p.gate.mu.Unlock()
	switch {
	case p.queue.answerFor(p.came) != nil:
		return nil, p.queue.answer, nil
	case !p.queue.asking:
		p.queue.asking, p.turn = true, true
		return nil, nil, nil
	case p.gate.waiters >= p.gate.maxWaiters:
		return nil, nil, &KeyError{Key: p.key, Err: fmt.Errorf("%w: %d calls wait already, which is Config.MaxWaiters", ErrOverloaded, p.gate.waiters)}
	}
	w := &waiter{came: p.came, news: make(chan news, 1)}
	p.queue.waiters = append(p.queue.waiters, w)
	p.gate.waiters++
	return w, nil, nil
}

func (p *pass) hear(heard news) (*Record, error) {
	if heard.inProgress {
		return nil, newInProgressError(p.key, heard.retryAfter, nil)
	}
	p.turn = heard.answer == nil
	return heard.answer, nil
}

// waitIsOver marks the waiter as one that takes "in progress" for an answer, and
// hurries the call that asks. It reports false the second time.
func (p *pass) waitIsOver(w *waiter) bool {
	p.gate.mu.Lock()
	defer p.gate.mu.Unlock()
	if w.over {
		return false
	}
	w.over = true
	p.gate.tellInProgress(p.queue)
	if len(w.news) == 0 {
		p.queue.ask()
	}
	return true
}

// quit takes the waiter out of the line, unless it has been told something.
func (p *pass) quit(w *waiter) (heard news, told bool) {
	p.gate.mu.Lock()
	defer p.gate.mu.Unlock()
	select {
	case heard = <-w.news:
		return heard, true
	default:
	}
	p.queue.waiters = slices.DeleteFunc(p.queue.waiters, func(other *waiter) bool { return other == w })
	p.gate.waiters--
	return news{}, false
}

// tellAnswer gives the answer to those who wait; one that pauses finds it when
// this call leaves. Calls that come later ask the store again, and so do those
// that came since goodAt: the answer may have expired before they came.
func (p *pass) tellAnswer(record *Record, goodAt time.Time) {
	if p.gate.perCaller {
		return
	}
	p.gate.mu.Lock()
	defer p.gate.mu.Unlock()
	q := p.queue
	if q.answer != nil && !goodAt.After(q.goodAt) {
		return
	}
	q.answer, q.goodAt = record.clone(), goodAt
	p.gate.forget(p.key, q)
	q.waiters = slices.DeleteFunc(q.waiters, func(w *waiter) bool {
		answer := q.answerFor(w.came)
		if answer != nil {
			p.gate.tell(w, news{answer: answer})
		}
		return answer != nil
	})
}

// tellInProgress tells it to those whose wait is over.
func (p *pass) tellInProgress(asked time.Time, retryAfter time.Duration) {
	p.gate.mu.Lock()
	defer p.gate.mu.Unlock()
	p.queue.lookedAt, p.queue.retryAfter = asked, retryAfter
	p.gate.tellInProgress(p.queue)
}

func (p *pass) answer() *Record {
	p.gate.mu.Lock()
	defer p.gate.mu.Unlock()
	return p.queue.answerFor(p.came)
}

// pause waits for the given time, or until there is a reason to ask at once.
func (p *pass) pause(ctx context.Context, duration time.Duration) error {
	wake := make(chan struct{})
	p.gate.mu.Lock()
	if p.queue.answerFor(p.came) == nil && !p.queue.hurried {
		p.queue.wake = wake
	} else {
		close(wake)
	}
	p.gate.mu.Unlock()
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-wake:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// tellInProgress tells those whose wait is over that the key is in progress, if
// that was seen after they came: an older look may be out of date.
func (g *gate) tellInProgress(q *queue) {
	q.waiters = slices.DeleteFunc(q.waiters, func(w *waiter) bool {
		if !w.over || !q.lookedAt.After(w.came) {
			return false
		}
		g.tell(w, news{inProgress: true, retryAfter: q.retryAfter})
		return true
	})
}

// tell tells a waiter that its caller takes out of the line.
func (g *gate) tell(w *waiter, heard news) {
	g.waiters--
	w.news <- heard
}

// forget makes later calls for the key start another queue.
func (g *gate) forget(key Key, q *queue) {
	if g.queues[key] == q {
		delete(g.queues, key)
	}
}

// answerFor returns the answer that a call which came then may share, or nil.
func (q *queue) answerFor(came time.Time) *Record {
	if came.After(q.goodAt) {
		return nil
	}
	return q.answer
}

// ask ends the pause of the call that asks the store, or leaves out its next one.
func (q *queue) ask() {
	q.hurried = true
	if q.wake != nil {
		close(q.wake)
		q.wake = nil
	}
}

func (r *Record) clone() *Record {
	cloned := *r
	if r.Response != nil {
		response := *r.Response
		response.Body = slices.Clone(response.Body)
		cloned.Response = &response
	}
	return &cloned
}

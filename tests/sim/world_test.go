package sim_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

// world is one seed: processes that share nothing but a store, and the truth
// about what they did, which no process sees.
type world struct {
	seed    uint64
	start   time.Time
	store   *faultyStore
	clients []*idempotency.Client[*memstore.Tx]
	limits  []int // MaxWaiters of each client
	keys    []idempotency.Key
	ghosts  sync.WaitGroup

	mu         sync.Mutex
	order      int64
	calls      []*call
	effects    []effect
	answers    []answerOf
	holds      []*hold
	holders    map[*memstore.Tx]*hold
	violations []string
	audits     int
	sweeps     int
}

// effect is a committed business write.
type effect struct {
	call    *call
	expires time.Time
}

// answerOf is a committed record.
type answerOf struct {
	call    *call
	created time.Time
	expires time.Time
	claim   idempotency.ClaimID
	final   bool
	body    string
}

// hold is the time in which a call may have held its key, by order of events.
type hold struct {
	world     *world
	call      *call
	from, to  int64
	confirmed bool
	haunted   bool
}

// random returns the generator of one actor or call. Streams of their own keep
// the draws of one apart from how often another one polled.
func (w *world) random(stream ...int) *rand.Rand {
	var mixed uint64
	for _, n := range stream {
		mixed = mixed*1_000_003 + uint64(n) + 1
	}
	return rand.New(rand.NewPCG(w.seed, mixed))
}

func newWorld(t *testing.T, seed uint64) *world {
	t.Helper()
	w := &world{seed: seed, start: time.Now(), holders: make(map[*memstore.Tx]*hold)}
	w.store = &faultyStore{Store: memstore.New[*memstore.Tx](nil), world: w}
	random := w.random(0)
	for i := range 1 + random.IntN(3) {
		w.keys = append(w.keys, idempotency.Key{Scope: "tenant-7/charge", ID: fmt.Sprint("key-", i)})
	}
	for range 1 + random.IntN(3) {
		limit := pick(random, []int{1, 4}, 2, 0)
		shared := pick(random, []int{1, 1}, 1, 0)
		client, err := idempotency.NewClient(w.store, &idempotency.Config{
			MaxWaiters:     limit,
			MaxSharedBytes: shared,
			FinalErrors:    []idempotency.FinalKind{idempotency.FinalValue(finalCode, errDeclined)},
		})
		if err != nil {
			t.Fatal(err)
		}
		w.clients = append(w.clients, client)
		w.limits = append(w.limits, limit)
	}
	return w
}

// live runs the world to its end.
func (w *world) live(ctx context.Context) {
	var actors, others sync.WaitGroup
	random := w.random(1)
	actor := 0
	for process := range w.clients {
		for range 2 + random.IntN(3) {
			actor++
			ops := 2 + random.IntN(3)
			number := actor
			actors.Go(func() { w.act(ctx, process, number, ops) })
		}
	}
	stop := make(chan struct{})
	others.Go(func() { w.audit(ctx, stop) })
	actors.Wait()
	w.settle(ctx)
	close(stop)
	others.Wait()
	w.ghosts.Wait()
}

// act is one caller of a process.
func (w *world) act(ctx context.Context, process, actor, ops int) {
	pauses := w.random(2, actor)
	for op := range ops {
		time.Sleep(pick(pauses, []int{3, 1}, within(pauses, 10*time.Millisecond), within(pauses, 2*time.Second)))
		for attempt := range 3 {
			c := w.plan(process, actor, op, attempt, w.random(3, actor, op, 0))
			if attempt > 0 { // the same request again; what befalls it is new
				c.random = w.random(3, actor, op, attempt)
				c.behaviour = pick(c.random, []int{3, 1}, succeeds, c.behaviour)
				c.timeout = 0
			}
			c.run(ctx)
			if c.outcome.isAnswer() || c.outcome == mismatch || pauses.IntN(3) == 0 {
				break
			}
			time.Sleep(within(pauses, 20*time.Millisecond))
		}
	}
}

// settle is I9: once faults have stopped, every key can be had by everybody, and
// nobody is turned away for calls that have gone.
func (w *world) settle(ctx context.Context) {
	var group sync.WaitGroup
	for process, client := range w.clients {
		calm := func(key idempotency.Key, number int) {
			group.Go(func() {
				c := &call{
					world: w, process: process, client: client, name: fmt.Sprintf("p%d settle", process), calm: true,
					random: w.random(4, process, number), key: key, fingerprint: 2, wait: time.Minute, ttl: time.Hour, work: 5*time.Millisecond + 1,
				}
				c.run(ctx)
				if !c.outcome.isAnswer() {
					w.violation("I9: %s is %s after faults have stopped: %v", c, c.outcome, c.err)
				}
			})
		}
		for i, key := range w.keys {
			calm(key, i)
		}
		for i := range w.limits[process] + 1 {
			calm(idempotency.Key{Scope: "settle", ID: fmt.Sprint("process-", process)}, len(w.keys)+i)
		}
		group.Wait() // together they might be more than the limit
	}
}

// audit is I3: whoever looks sees effect and record, or neither. It sweeps too.
func (w *world) audit(ctx context.Context, stop <-chan struct{}) {
	random := w.random(5)
	for {
		timer := time.NewTimer(within(random, 200*time.Millisecond))
		select {
		case <-timer.C:
		case <-stop:
			timer.Stop()
			return
		}
		if random.IntN(4) == 0 {
			if _, err := w.clients[0].DeleteExpired(ctx, random.IntN(3)); err != nil {
				w.violation("DeleteExpired: %v", err)
			}
			w.sweeps++
			continue
		}
		w.auditKey(ctx, w.keys[random.IntN(len(w.keys))])
	}
}

func (w *world) auditKey(ctx context.Context, key idempotency.Key) {
	before, _ := w.lastEffect(key)
	record, err := w.clients[0].Get(ctx, key)
	after, last := w.lastEffect(key)
	if before != after {
		return // the two looks are not of one moment
	}
	w.audits++
	now := time.Now()
	switch {
	case err != nil:
		if last != nil && last.expires.After(now) {
			w.violation("I3: %s has the effect of %s and no record: %v", key.ID, last.call, err)
		}
	case record.State != idempotency.Completed:
		w.violation("I3: %s shows a record that is %s", key.ID, record.State)
	case record.Response.Type == idempotency.TypeErrorPrefix+finalCode:
		if last != nil && last.expires.After(record.UpdatedAt) {
			w.violation("I3: %s has the effect of %s and the record of a final error", key.ID, last.call)
		}
	case last == nil || !hasID(record.Response.Body, last.call.id):
		w.violation("I3: %s has the record %q without its effect", key.ID, record.Response.Body)
	}
}

func hasID(body []byte, id int) bool {
	prefix := fmt.Sprint(id, ":")
	return len(body) >= len(prefix) && string(body[:len(prefix)]) == prefix
}

func (w *world) lastEffect(key idempotency.Key) (count int, last *effect) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.effects {
		if w.effects[i].call.key == key {
			last = &w.effects[i]
		}
	}
	return len(w.effects), last
}

func (w *world) violation(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.violations = append(w.violations, text)
}

func (w *world) begin(c *call) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls = append(w.calls, c)
	c.id = len(w.calls)
	w.order++
	c.called, c.calledAt = w.order, time.Now()
}

func (w *world) end(c *call) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.order++
	c.returned, c.returnedAt = w.order, time.Now()
}

// effect is called by the store as part of a commit.
func (w *world) effect(c *call) {
	w.mu.Lock()
	defer w.mu.Unlock()
	expires := c.expires
	if expires.IsZero() {
		expires = time.Now().Add(c.ttl)
	}
	w.effects = append(w.effects, effect{call: c, expires: expires})
}

func (w *world) answer(c *call, record *idempotency.Record) {
	final := record.Response.Type == idempotency.TypeErrorPrefix+finalCode
	body := string(record.Response.Body)
	if final {
		body = finalBody
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answers = append(w.answers, answerOf{
		call: c, created: record.UpdatedAt, expires: record.ExpiresAt, claim: record.ClaimID, final: final, body: body,
	})
}

// commit ends the transaction of a call that owns it, in one of many ways. An
// answer is recorded when it is completed, so its time starts before the commit.
func (w *world) commit(ctx context.Context, c *call, tx *memstore.Tx, record *idempotency.Record) error {
	copied := *record
	response := *record.Response
	response.Body = slices.Clone(response.Body)
	copied.Response = &response
	drawn := c.draw(slowCall, slowReply, refused, lostReply, undone, ghost, ghostUndone)
	if err := c.travel(ctx, drawn); err != nil {
		return err
	}
	switch drawn {
	case undone:
		c.faults[undone] = true
		w.rollback(ctx, c, tx)
		return unknownOutcome(c.key)
	case ghost, ghostUndone:
		c.faults[drawn] = true
		w.haunt(ctx, c, tx, &copied, w.holderOf(tx), drawn == ghost)
		return unknownOutcome(c.key)
	}
	if err := tx.Commit(ctx); err != nil {
		w.violation("I11: %s could not commit: %v", c, err)
		return err
	}
	w.answer(c, &copied)
	w.holderOf(tx).end()
	c.travelBack(drawn)
	if drawn == lostReply {
		c.faults[lostReply] = true
		return unknownOutcome(c.key)
	}
	return nil
}

// haunt ends the transaction some time after its owner has given it up.
func (w *world) haunt(ctx context.Context, c *call, tx *memstore.Tx, record *idempotency.Record, held *hold, commits bool) {
	later := c.lateness()
	held.haunt()
	w.ghosts.Go(func() {
		time.Sleep(later)
		if !commits {
			_ = tx.Rollback(ctx)
			held.exorcise()
			return
		}
		if err := tx.Commit(ctx); err != nil {
			w.violation("I11: the ghost of %s could not commit: %v", c, err)
			return
		}
		w.answer(c, record)
		held.exorcise()
	})
}

// rollback ends what the call has not committed and not left to a ghost.
func (w *world) rollback(ctx context.Context, c *call, tx *memstore.Tx) {
	if c.faults[ghost] || c.faults[ghostUndone] {
		return
	}
	_ = tx.Rollback(ctx)
	if held := w.holderOf(tx); held != nil {
		held.end()
	}
}

func (w *world) hold(c *call) *hold {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.order++
	held := &hold{world: w, call: c, from: w.order}
	w.holds = append(w.holds, held)
	return held
}

func (w *world) holdBy(tx *memstore.Tx, held *hold) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.holders[tx] = held
}

func (w *world) holderOf(tx *memstore.Tx) *hold {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.holders[tx]
}

func (h *hold) confirm() {
	h.world.mu.Lock()
	defer h.world.mu.Unlock()
	h.confirmed = true
}

// haunt leaves the hold to a ghost.
func (h *hold) haunt() {
	h.world.mu.Lock()
	defer h.world.mu.Unlock()
	h.haunted = true
}

// exorcise is the end of the ghost.
func (h *hold) exorcise() {
	h.world.mu.Lock()
	h.haunted = false
	h.world.mu.Unlock()
	h.end()
}

func (h *hold) end() {
	h.world.mu.Lock()
	defer h.world.mu.Unlock()
	if h.to == 0 && !h.haunted {
		h.world.order++
		h.to = h.world.order
	}
}

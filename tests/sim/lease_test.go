package sim_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

// leaseWorld is holders of one key that come, pause, die and come back over
// many days. Every request is compared with a model of the key.
type leaseWorld struct {
	*world
	key idempotency.Key

	model  sync.Mutex
	counts [leaseEvents]int
	seen   map[idempotency.ClaimID]bool
	// current is the newest claim, as the store last gave it out.
	current *idempotency.Claim
	state   idempotency.State // Completed, InProgress, or zero where the key is free
	tx      *memstore.Tx      // that has completed current and not ended
	expires time.Time         // of the answer of current
	body    string
	stop    time.Time // when the last holder of a lease had to stop
	writes  map[idempotency.ClaimID]int
}

// leaseEvent is what befell a claim.
type leaseEvent int

const (
	granted leaseEvent = iota
	takenOver
	refusedLive
	replayedDone
	completedInTime
	completedLate
	completedWithWrites
	lostClaim
	lostWrites
	extendedLease
	lostExtension
	releasedClaim
	lostRelease
	lostRequest
	lostAnswer
	diedHolding
	rolledBack
	leaseEvents
)

func (e leaseEvent) String() string {
	return [...]string{
		"granted", "taken over", "in progress", "replayed", "completed in time", "completed late, nobody took over",
		"completed with writes", "completion refused", "completion with writes refused", "extended", "extension refused",
		"released", "release refused", "request lost", "reply lost", "died holding",
		"completion rolled back",
	}[e]
}

func TestLeases(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var counts [leaseEvents]int
	var virtual time.Duration
	seeds := eachSeed(t, func(t *testing.T, seed uint64) {
		t.Helper()
		bubble(t, seed, "TestLeases", func(t *testing.T) {
			t.Helper()
			w := newLeaseWorld(seed)
			w.live(t.Context())
			w.report(t, "TestLeases")
			mu.Lock()
			defer mu.Unlock()
			for event, count := range w.counts {
				counts[event] += count
			}
			virtual += time.Since(w.start)
		})
	})
	t.Logf("%d seeds, %.0f virtual days", seeds, virtual.Hours()/24)
	for event, count := range counts {
		t.Logf("%-34s%10d", leaseEvent(event), count)
		if count == 0 && seeds >= seedsForEveryCell {
			t.Errorf("no claim was %s: this tests nothing of it", leaseEvent(event))
		}
	}
}

func newLeaseWorld(seed uint64) *leaseWorld {
	w := &leaseWorld{
		world:  &world{seed: seed, start: time.Now()},
		key:    idempotency.Key{Scope: "tenant-7/charge", ID: "leased"},
		seen:   make(map[idempotency.ClaimID]bool),
		writes: make(map[idempotency.ClaimID]int),
	}
	w.store = &faultyStore{Store: memstore.New[*memstore.Tx](nil), world: w.world}
	return w
}

func (w *leaseWorld) live(ctx context.Context) {
	var holders sync.WaitGroup
	for number := range 3 {
		holders.Go(func() {
			h := &holder{leaseWorld: w, random: w.random(6, number)}
			for range 12 {
				time.Sleep(pick(h.random, []int{2, 1}, 1, within(h.random, 6*time.Hour)))
				h.turn(ctx)
			}
		})
	}
	holders.Wait()
	for id, writes := range w.writes {
		if writes != 1 || !w.seen[id] {
			w.violation("I10: claim %s committed its writes %d times", id, writes)
		}
	}
}

// holder is one process that wants the key.
type holder struct {
	*leaseWorld
	random *rand.Rand
}

func (h *holder) happens(percent int) bool { return h.random.IntN(100) < percent }

// turn is one attempt to do the work.
func (h *holder) turn(ctx context.Context) {
	if h.happens(10) {
		h.sweep(ctx)
	}
	outcome := h.begin(ctx)
	if outcome != nil && outcome.State == idempotency.InProgress {
		time.Sleep(max(outcome.RetryAfter, 1)) // to the very end of the lease
		outcome = h.begin(ctx)
	}
	if outcome == nil || outcome.State != idempotency.New {
		return
	}
	claim := outcome.Claim
	for range h.random.IntN(3) {
		h.work(claim)
		if claim = h.extend(ctx, claim); claim == nil {
			return // it knows that it has lost
		}
	}
	h.work(claim)
	switch pick(h.random, []int{4, 4, 1, 2}, 0, 1, 2, 3) {
	case 0:
		if h.complete(ctx, claim) {
			h.complete(ctx, claim) // again, as after a lost reply
		}
	case 1:
		h.completeWithWrites(ctx, claim)
	case 2:
		h.release(ctx, claim)
	case 3:
		h.count(diedHolding)
	}
}

// work takes less than the lease, just the lease, or more.
func (h *holder) work(claim *idempotency.Claim) {
	left := time.Until(claim.LockedUntil)
	time.Sleep(pick(h.random, []int{4, 1, 2}, max(left, 2)/2, left, left+within(h.random, 3*time.Hour)))
}

func (h *holder) count(event leaseEvent) {
	h.model.Lock()
	defer h.model.Unlock()
	h.counts[event]++
}

// lost reports whether the request does not get to the store.
func (h *holder) lost() bool {
	if h.happens(10) {
		h.counts[lostRequest]++
		return true
	}
	return false
}

// unanswered reports whether the reply does not come back.
func (h *holder) unanswered() bool {
	if h.happens(10) {
		h.counts[lostAnswer]++
		return true
	}
	return false
}

// holds reports whether the claim is the key's, by the model.
func (w *leaseWorld) holds(claim *idempotency.Claim) bool {
	return w.state == idempotency.InProgress && w.current.ID == claim.ID && w.tx == nil
}

// judge compares the error of a request about the claim with the model.
func (w *leaseWorld) judge(what string, claim *idempotency.Claim, err error, refused leaseEvent) bool {
	if w.holds(claim) {
		if err != nil {
			w.violation("%s of the key's claim failed: %v", what, err)
		}
		return err == nil
	}
	if !errors.Is(err, idempotency.ErrClaimLost) {
		w.violation("I10: %s of a claim that is not the key's: %v; want ErrClaimLost", what, err)
	}
	w.counts[refused]++
	return false
}

func (h *holder) begin(ctx context.Context) *idempotency.Outcome {
	h.model.Lock()
	defer h.model.Unlock()
	if h.lost() {
		return nil
	}
	lease := pick(h.random, []int{1, 2}, time.Millisecond, time.Millisecond+within(h.random, 2*time.Hour))
	now := time.Now()
	outcome, err := h.store.Begin(ctx, &idempotency.BeginParams{
		Key: h.key, Fingerprint: fingerprints[0], Lease: lease,
		TTL: pick(h.random, []int{1, 2}, time.Hour, time.Microsecond+within(h.random, 12*time.Hour)),
	})
	if err != nil {
		h.violation("Begin: %v", err)
		return nil
	}
	held := h.state == idempotency.InProgress
	want := idempotency.New
	switch {
	case h.state == idempotency.Completed && h.expires.After(now):
		want = idempotency.Completed
	case held && (h.tx != nil || h.current.LockedUntil.After(now)):
		want = idempotency.InProgress
	}
	if outcome.State != want {
		h.violation("I10: Begin gave %s, %s after the lease ended; want %s", outcome.State, now.Sub(h.stop), want)
		return nil
	}
	switch want {
	case idempotency.Completed:
		h.counts[replayedDone]++
		if outcome.Record.ClaimID != h.current.ID || string(outcome.Record.Response.Body) != h.body {
			h.violation("I4: the answer is not the one of the claim that completed")
		}
	case idempotency.InProgress:
		h.counts[refusedLive]++
		// Not the rest of a long lease, which says nothing of when the work ends.
		if left := h.current.LockedUntil.Sub(now); left > 0 && outcome.RetryAfter != min(left, 5*time.Second) {
			h.violation("in progress for %s, and not for %s, or 5 s of it", outcome.RetryAfter, left)
		}
	case idempotency.New:
		attempt := 1
		if held {
			attempt = h.current.Attempt + 1
			h.counts[takenOver]++
		}
		h.counts[granted]++
		claim := outcome.Claim
		switch {
		case h.seen[claim.ID]:
			h.violation("I10: claim %s was handed out twice", claim.ID)
		case claim.Attempt != attempt:
			h.violation("I16: attempt %d; want %d", claim.Attempt, attempt)
		case held && now.Before(h.stop):
			h.violation("I10: taken over %s before the holder has to stop", h.stop.Sub(now))
		case !claim.LockedUntil.Equal(now.Add(lease)) || claim.Deadline.After(claim.LockedUntil):
			h.violation("the lease of %s ends at %s and its holder stops at %s", lease, claim.LockedUntil, claim.Deadline)
		}
		copied := *claim
		h.seen[claim.ID], h.current, h.state, h.stop = true, &copied, idempotency.InProgress, claim.Deadline
	}
	if h.unanswered() {
		return nil
	}
	return outcome
}

func (h *holder) extend(ctx context.Context, claim *idempotency.Claim) *idempotency.Claim {
	h.model.Lock()
	defer h.model.Unlock()
	if h.lost() {
		return claim
	}
	lease := time.Millisecond + within(h.random, time.Hour)
	extended, err := h.store.Extend(ctx, claim, lease)
	if !h.judge("Extend", claim, err, lostExtension) {
		return nil
	}
	h.counts[extendedLease]++
	copied := *extended
	h.current, h.stop = &copied, extended.Deadline
	if h.unanswered() {
		return claim
	}
	return extended
}

func (h *holder) response(claim *idempotency.Claim) *idempotency.Response {
	return &idempotency.Response{Type: idempotency.TypeBytes, Body: []byte(claim.ID.String())}
}

// completed is what a completion changes in the model.
func (w *leaseWorld) completed(claim *idempotency.Claim, record *idempotency.Record) {
	w.counts[completedInTime]++
	if !w.current.LockedUntil.After(record.UpdatedAt) {
		w.counts[completedInTime]--
		w.counts[completedLate]++
	}
	if !record.ExpiresAt.Equal(record.UpdatedAt.Add(claim.TTL)) || record.ClaimID != claim.ID {
		w.violation("the record of claim %s is of %s and expires after %s; want %s", claim.ID, record.ClaimID, record.ExpiresAt.Sub(record.UpdatedAt), claim.TTL)
	}
	w.state, w.tx, w.expires, w.body = idempotency.Completed, nil, record.ExpiresAt, string(record.Response.Body)
}

func (h *holder) complete(ctx context.Context, claim *idempotency.Claim) (unanswered bool) {
	h.model.Lock()
	defer h.model.Unlock()
	if h.lost() {
		return true
	}
	record, err := h.store.Complete(ctx, claim, h.response(claim))
	if !h.judge("Complete", claim, err, lostClaim) {
		return false
	}
	h.completed(claim, record)
	return h.unanswered()
}

// completeWithWrites commits writes and the completion together, and pauses in
// between.
func (h *holder) completeWithWrites(ctx context.Context, claim *idempotency.Claim) {
	tx := h.store.NewTx()
	defer func() { _ = tx.Rollback(ctx) }()
	tx.OnCommit(func() { h.writes[claim.ID]++ })
	record, ok := h.completeIn(ctx, tx, claim)
	if !ok {
		h.model.Lock()
		defer h.model.Unlock()
		if err := tx.Commit(ctx); !errors.Is(err, idempotency.ErrClaimLost) {
			h.violation("I10: the writes of a lost claim were committed: %v", err)
		}
		return
	}
	time.Sleep(within(h.random, time.Hour))
	switch h.random.IntN(10) { // a mistake: the claim is in use
	case 0:
		h.complete(ctx, claim)
	case 1:
		h.extend(ctx, claim)
	case 2:
		h.release(ctx, claim)
	}
	h.model.Lock()
	defer h.model.Unlock()
	if h.happens(20) {
		if err := tx.Rollback(ctx); err != nil {
			h.violation("Rollback: %v", err)
		}
		h.tx = nil
		h.counts[rolledBack]++
		return
	}
	if err := tx.Commit(ctx); err != nil {
		h.violation("I10: the completion of the key's claim did not commit: %v", err)
		return
	}
	h.counts[completedWithWrites]++
	h.completed(claim, record)
}

func (h *holder) completeIn(ctx context.Context, tx *memstore.Tx, claim *idempotency.Claim) (*idempotency.Record, bool) {
	h.model.Lock()
	defer h.model.Unlock()
	record, err := h.store.Store.WithTx(tx).Complete(ctx, claim, h.response(claim))
	ok := h.judge("Complete with writes", claim, err, lostWrites)
	if ok {
		h.tx = tx
	}
	return record, ok
}

func (h *holder) release(ctx context.Context, claim *idempotency.Claim) {
	h.model.Lock()
	defer h.model.Unlock()
	if h.judge("Release", claim, h.store.Release(ctx, claim), lostRelease) {
		h.counts[releasedClaim]++
		h.state = 0
	}
}

func (h *holder) sweep(ctx context.Context) {
	h.model.Lock()
	defer h.model.Unlock()
	gone := 0
	if h.state == idempotency.Completed && !h.expires.After(time.Now()) {
		gone, h.state = 1, 0
	}
	if deleted, err := h.store.DeleteExpired(ctx, 0); err != nil || deleted != gone {
		h.violation("I14: the sweep deleted %d of %d expired records: %v", deleted, gone, err)
	}
}

package storetest

import (
	"math"
	"time"

	"github.com/samecommit/samecommit/idempotency"
)

var leaseCases = []testCase[*suite]{
	{"a lease that ended is taken over and its holder has lost", (*suite).takeover},
	{"a late completion counts while nobody took over", (*suite).lateCompletion},
	{"a completed key is not taken over when its lease ends", (*suite).noTakeoverOfCompleted},
	{"extend moves the deadline", (*suite).extend},
	{"release frees the key", (*suite).release},
	{"lease verbs refuse a claim that is not held", (*suite).notHeld},
	{"lease verbs refuse bad parameters", (*suite).badLeases},
	{"the holder's deadline is counted from before the claim", (*suite).deadline},
	{"a lease and a TTL as long as can be are kept", (*suite).longest},
}

func (t *suite) claimShort(id string) *idempotency.Claim {
	t.Helper()
	params := t.params(id)
	params.Lease = shortLease
	return t.begin(t.store, params, idempotency.New).Claim
}

func (t *suite) takeover() {
	first := t.claimShort("a")
	second := t.untilNew(t.params("a"))
	if first.Attempt != 1 || second.Attempt != 2 || first.ID == second.ID {
		t.Fatalf("attempts are %d and %d, ids equal: %t; want 1 and 2 and two ids", first.Attempt, second.Attempt, first.ID == second.ID)
	}
	t.wantLost(first)
	if record := t.get(t.store, "a", idempotency.InProgress); record.ClaimID != second.ID || record.Attempt != 2 {
		t.Fatal("the record is not the second claim's")
	}
	t.checkAnswer(t.complete(t.store, second, response("of the second")), response("of the second"))
	t.wantLost(first)
	t.checkAnswer(t.get(t.store, "a", idempotency.Completed), response("of the second"))
}

// wantLost checks that every verb refuses the claim.
func (t *suite) wantLost(claim *idempotency.Claim) {
	t.Helper()
	t.completeErr(t.store, claim, idempotency.ErrClaimLost)
	extended, err := t.store.Extend(t.Context(), claim, longLease)
	t.wantErr("Extend", err, idempotency.ErrClaimLost)
	if extended != nil {
		t.Fatal("a failed Extend returned a claim")
	}
	t.wantErr("Release", t.store.Release(t.Context(), claim), idempotency.ErrClaimLost)
}

func (t *suite) lateCompletion() {
	claim := t.claimShort("a")
	t.untilLeasesEnd()
	t.complete(t.store, claim, response("late"))
	t.checkAnswer(t.begin(t.store, t.params("a"), idempotency.Completed).Record, response("late"))
}

func (t *suite) noTakeoverOfCompleted() {
	t.complete(t.store, t.claimShort("a"), response("done"))
	t.untilLeasesEnd()
	t.begin(t.store, t.params("a"), idempotency.Completed)
}

func (t *suite) extend() {
	claim := t.claimShort("a")
	start := time.Now()
	extended, err := t.store.Extend(t.Context(), claim, longLease)
	if err != nil {
		t.Fatalf("Extend: %v", err)
	}
	if extended.ID != claim.ID || extended.Key != claim.Key || extended.Attempt != claim.Attempt || extended.TTL != claim.TTL {
		t.Fatal("the extended claim is another one")
	}
	t.checkDeadline(extended, start, longLease)
	if !extended.LockedUntil.After(claim.LockedUntil) {
		t.Fatalf("the lease ended at %v and ends at %v", claim.LockedUntil, extended.LockedUntil)
	}
	t.untilLeasesEnd()
	t.begin(t.store, t.params("a"), idempotency.InProgress)
	t.complete(t.store, extended, response("done"))
}

func (t *suite) release() {
	claim := t.claim("a")
	if err := t.store.Release(t.Context(), claim); err != nil {
		t.Fatalf("Release: %v", err)
	}
	t.notFound(t.store, "a")
	t.wantLost(claim)
	t.complete(t.store, t.claim("a"), response("done"))
}

func (t *suite) notHeld() {
	claim := t.claim("a")
	unknown := &idempotency.Claim{Key: t.key("b"), ID: idempotency.NewClaimID(), Attempt: 1, TTL: longTTL}
	t.wantLost(unknown)
	other := *claim
	other.ID = idempotency.NewClaimID()
	t.wantLost(&other)
	t.complete(t.store, claim, response("done"))
	t.wantLost(claim)
}

func (t *suite) badLeases() {
	claim := t.claim("a")
	for _, lease := range []time.Duration{0, -time.Second} {
		_, err := t.store.Extend(t.Context(), claim, lease)
		t.wantParamErr("Extend", err, "Lease")
	}
	for _, claim := range []*idempotency.Claim{nil, {Key: t.key("a"), TTL: longTTL}} {
		_, err := t.store.Extend(t.Context(), claim, longLease)
		t.wantErr("Extend", err, idempotency.ErrNotClaimed)
		t.wantErr("Release", t.store.Release(t.Context(), claim), idempotency.ErrNotClaimed)
	}
	t.complete(t.store, claim, response("done"))
}

func (t *suite) deadline() {
	start := time.Now()
	claim := t.claim("a")
	t.checkDeadline(claim, start, longLease)
	if claim.TTL != longTTL || claim.Key != t.key("a") {
		t.Fatalf("the claim has TTL %s of %v", claim.TTL, claim.Key)
	}
}

// longest is for stores that would reckon past the end of a number.
func (t *suite) longest() {
	params := t.params("a")
	params.Lease, params.TTL = math.MaxInt64, math.MaxInt64
	claim := t.begin(t.store, params, idempotency.New).Claim
	t.begin(t.store, t.params("a"), idempotency.InProgress)
	extended, err := t.store.Extend(t.Context(), claim, math.MaxInt64)
	if err != nil {
		t.Fatalf("Extend: %v", err)
	}
	t.begin(t.store, t.params("a"), idempotency.InProgress)
	t.complete(t.store, extended, response("done"))
	t.checkAnswer(t.begin(t.store, t.params("a"), idempotency.Completed).Record, response("done"))
}

// checkDeadline checks a deadline by the only clock that is this process's. The
// lease itself ends by the store's.
func (t *suite) checkDeadline(claim *idempotency.Claim, start time.Time, lease time.Duration) {
	t.Helper()
	if claim.Deadline.Before(start.Add(lease)) || claim.Deadline.After(time.Now().Add(lease)) {
		t.Fatalf("the deadline is %s after the call; want the lease of %s, counted from within the call", claim.Deadline.Sub(start), lease)
	}
	if claim.LockedUntil.IsZero() {
		t.Fatal("the claim of a lease does not say when the lease ends")
	}
}

package storetest

import "github.com/samecommit/samecommit/idempotency"

var sweepCases = []testCase[*suite]{
	{"delete expired takes the oldest first and honours its limit", (*suite).sweepOldest},
	{"delete expired keeps live answers and keys in progress", (*suite).sweepKeeps},
	{"delete expired refuses a negative limit", (*suite).sweepNegative},
}

func (t *suite) sweeper() idempotency.Sweeper {
	t.Helper()
	sweeper, ok := t.store.(idempotency.Sweeper)
	if !ok {
		t.Fatalf("%T is a Sweeper no more", t.store)
	}
	return sweeper
}

func (t *suite) completeShort(id string) {
	t.Helper()
	params := t.params(id)
	params.TTL = shortTTL
	t.complete(t.store, t.begin(t.store, params, idempotency.New).Claim, response("expires"))
}

func (t *suite) sweep(limit, want int) {
	t.Helper()
	deleted, err := t.sweeper().DeleteExpired(t.Context(), limit)
	if err != nil || deleted != want {
		t.Fatalf("DeleteExpired(%d) deleted %d, %v; want %d", limit, deleted, err, want)
	}
}

func (t *suite) sweepOldest() {
	for _, id := range []string{"a", "b", "c"} {
		t.completeShort(id)
		t.untilExpired(id)
	}
	t.sweep(1, 1)
	// Expired records cannot be seen, but they can be claimed again. With the
	// two youngest claimed, what is left to delete tells which one went.
	t.claim("b")
	t.claim("c")
	t.sweep(0, 0)

	for _, id := range []string{"d", "e", "f"} {
		t.completeShort(id)
		t.untilExpired(id)
	}
	t.sweep(2, 2)
	t.sweep(2, 1)
	t.sweep(2, 0)
}

func (t *suite) sweepKeeps() {
	live := t.complete(t.store, t.claim("live"), response("live"))
	t.claim("running")
	abandoned := t.claimShort("abandoned")
	t.completeShort("expired")
	t.untilExpired("expired")
	t.untilLeasesEnd()
	t.sweep(0, 1)
	t.checkAnswer(t.get(t.store, "live", idempotency.Completed), live.Response)
	t.get(t.store, "running", idempotency.InProgress)
	t.complete(t.store, abandoned, response("late"))
}

func (t *suite) sweepNegative() {
	_, err := t.sweeper().DeleteExpired(t.Context(), -1)
	t.wantParamErr("DeleteExpired", err, "")
}

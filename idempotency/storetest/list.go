package storetest

import "github.com/samecommit/samecommit/idempotency"

var listCases = []testCase[*suite]{
	{"list abandoned finds what nobody is at, oldest first", (*suite).listAbandoned},
	{"list abandoned honours its limit, and goes on behind a record", (*suite).listPages},
}

func (t *suite) lister() idempotency.Lister {
	t.Helper()
	lister, ok := t.store.(idempotency.Lister)
	if !ok {
		t.Fatalf("%T is a Lister no more", t.store)
	}
	return lister
}

// list lists, and checks which keys are found.
func (t *suite) list(after *idempotency.Record, limit int, want ...string) []*idempotency.Record {
	t.Helper()
	records, err := t.lister().ListAbandoned(t.Context(), after, limit)
	if err != nil {
		t.Fatalf("ListAbandoned: %v", err)
	}
	if len(records) != len(want) {
		t.Fatalf("ListAbandoned(%d) gave %d records; want %d", limit, len(records), len(want))
	}
	for i, record := range records {
		if record.Key != t.key(want[i]) || record.State != idempotency.InProgress {
			t.Fatalf("record %d is %v of %v; want in progress of %v", i+1, record.State, record.Key, t.key(want[i]))
		}
	}
	return records
}

func (t *suite) listAbandoned() {
	ended := t.claimShort("ended")
	t.addStep(t.store, ended, step("one", "1"))
	suspended := t.claim("suspended")
	if err := t.store.Suspend(t.Context(), suspended); err != nil {
		t.Fatalf("Suspend: %v", err)
	}
	t.claim("running")
	t.complete(t.store, t.claim("completed"), response("done"))
	t.completeShort("expired")
	t.untilExpired("expired")
	t.untilLeasesEnd()
	records := t.list(nil, 0, "ended", "suspended")
	if records[0].Suspended() || !records[1].Suspended() {
		t.Fatalf("suspended are %t and %t; want the second alone", records[0].Suspended(), records[1].Suspended())
	}
	if records[0].ClaimID != ended.ID || records[0].Attempt != 1 || records[0].Fingerprint != fingerprint {
		t.Fatal("the record is not that of the claim")
	}
	t.checkSteps(records[0].Steps, step("one", "1"))

	// An operator completes or releases it by its claim id.
	if err := t.store.Release(t.Context(), &idempotency.Claim{Key: records[1].Key, ID: records[1].ClaimID}); err != nil {
		t.Fatalf("Release: %v", err)
	}
	t.complete(t.store, &idempotency.Claim{Key: records[0].Key, ID: records[0].ClaimID, TTL: longTTL}, response("by hand"))
	t.list(nil, 0)
}

func (t *suite) listPages() {
	for _, id := range []string{"a", "b", "c"} {
		if err := t.store.Suspend(t.Context(), t.claim(id)); err != nil {
			t.Fatalf("Suspend: %v", err)
		}
	}
	first := t.list(nil, 2, "a", "b")
	t.list(first[1], 2, "c")
	t.list(first[0], 1, "b")
	t.list(t.list(first[1], 0, "c")[0], 0)
	t.begin(t.store, t.params("a"), idempotency.New)
	t.list(nil, 1, "b")
	t.list(first[0], 0, "b", "c")
	_, err := t.lister().ListAbandoned(t.Context(), nil, -1)
	t.wantParamErr("ListAbandoned", err, "limit")
}

package storetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/samecommit/samecommit/idempotency"
)

var stepCases = []testCase[*suite]{
	{"of concurrent takeovers of an ended lease one gets the claim", (*suite).racingTakeovers},
	{"of a completion and a takeover one wins", (*suite).completionRacesTakeover},
	{"a claim begun again with its own id is the same one", (*suite).ownClaim},
	{"a leased key refuses another request", (*suite).otherRequest},
	{"steps are kept byte for byte and gone at completion", (*suite).steps},
	{"steps go with a release", (*suite).stepsReleased},
	{"the first step of a name stays", (*suite).firstStep},
	{"a step of a lost claim is refused", (*suite).lostStep},
	{"a step counts after the end of the lease, and does not move it", (*suite).lateStep},
	{"bad steps are refused by name", (*suite).badSteps},
	{"a suspended key is taken over at once, as the same attempt", (*suite).suspend},
	{"a step of a suspended key leaves it suspended", (*suite).stepOfSuspended},
	{"a late extension does not undo a suspension", (*suite).lateExtension},
	{"who compares nothing leaves leased work its request", (*suite).keepsFingerprint},
	{"attempts are bounded", (*suite).maxAttempts},
}

func step(name, body string) *idempotency.StepRecord {
	return &idempotency.StepRecord{Name: name, Arguments: idempotency.FingerprintOf("arguments of", name), Response: response(body)}
}

func (t *suite) addStep(verbs idempotency.Verbs, claim *idempotency.Claim, step *idempotency.StepRecord) {
	t.Helper()
	if err := verbs.AddStep(t.Context(), claim, step); err != nil {
		t.Fatalf("AddStep: %v", err)
	}
}

// checkSteps compares everything but when it was recorded.
func (t *suite) checkSteps(got []idempotency.StepRecord, want ...*idempotency.StepRecord) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d steps; want %d", len(got), len(want))
	}
	for i, w := range want {
		g := got[i]
		if g.Name != w.Name || g.Arguments != w.Arguments || g.Response == nil || g.Response.Type != w.Response.Type ||
			string(g.Response.Body) != string(w.Response.Body) || (g.Response.Body == nil) != (w.Response.Body == nil) {
			t.Fatalf("step %d is %q with %#v; want %q with %#v", i+1, g.Name, g.Response, w.Name, w.Response)
		}
		if g.RecordedAt.IsZero() || i > 0 && g.RecordedAt.Before(got[i-1].RecordedAt) {
			t.Fatalf("step %d was recorded at %v; want a time that is not before the last step's", i+1, g.RecordedAt)
		}
	}
}

const rivals = 8

// race calls fn so often at once and returns how often it was true.
func (t *suite) race(fn func(i int) bool) int {
	t.Helper()
	var group sync.WaitGroup
	var mu sync.Mutex
	won, start := 0, make(chan struct{})
	for i := range rivals {
		group.Go(func() {
			<-start
			if fn(i) {
				mu.Lock()
				defer mu.Unlock()
				won++
			}
		})
	}
	close(start)
	group.Wait()
	return won
}

func (t *suite) racingTakeovers() {
	for round := range 10 {
		id := fmt.Sprint(round)
		first := t.claimShort(id)
		t.untilLeasesEnd()
		won := t.race(func(int) bool {
			outcome, err := t.store.Begin(t.Context(), t.params(id))
			if err != nil {
				t.Errorf("Begin: %v", err)
				return false
			}
			return outcome.State == idempotency.New
		})
		if won != 1 {
			t.Fatalf("%d of %d took the key over; want 1", won, rivals)
		}
		t.wantLost(first)
	}
}

func (t *suite) completionRacesTakeover() {
	t.raceTakeovers(func(_ string, claim *idempotency.Claim) error {
		_, err := t.store.Complete(t.Context(), claim, response("late"))
		return err
	}, nil)
}

// raceTakeovers lets the holder of a lease that has ended do something with its claim
// while others take the key over: one of them wins. check is told who it was.
func (t *suite) raceTakeovers(holder func(id string, claim *idempotency.Claim) error, check func(id string, holderWon bool)) {
	t.Helper()
	for round := range 10 {
		id := fmt.Sprint(round)
		claim := t.claimShort(id)
		t.untilLeasesEnd()
		var holderWon atomic.Bool
		won := t.race(func(i int) bool {
			if i == 0 {
				err := holder(id, claim)
				if err != nil && !errors.Is(err, idempotency.ErrClaimLost) {
					t.Errorf("the holder of the lease: %v", err)
				}
				holderWon.Store(err == nil)
				return err == nil
			}
			outcome, err := t.store.Begin(t.Context(), t.params(id))
			if err != nil {
				t.Errorf("Begin: %v", err)
				return false
			}
			return outcome.State == idempotency.New
		})
		if won != 1 {
			t.Fatalf("%d won, of the holder (%t) and takeovers; want 1", won, holderWon.Load())
		}
		if check != nil {
			check(id, holderWon.Load())
		}
	}
}

func (t *suite) ownClaim() {
	params := t.params("a")
	params.ClaimID, params.Lease = idempotency.NewClaimID(), shortLease
	first := t.begin(t.store, params, idempotency.New).Claim
	if first.ID != params.ClaimID || first.Resumed {
		t.Fatalf("the claim has another id, or is resumed (%t)", first.Resumed)
	}
	t.addStep(t.store, first, step("one", "1"))
	again := func() {
		t.Helper()
		start := time.Now()
		claim := t.begin(t.store, params, idempotency.New).Claim
		if claim.ID != first.ID || claim.Attempt != 1 || !claim.Resumed {
			t.Fatalf("begun again, the claim has the id: %t, attempt %d, resumed %t; want the same, 1 and true", claim.ID == first.ID, claim.Attempt, claim.Resumed)
		}
		t.checkSteps(claim.Steps, step("one", "1"))
		t.checkDeadline(claim, start, params.Lease)
	}
	again()
	t.untilLeasesEnd()
	again()
	params.Lease = longLease
	again()
	t.begin(t.store, t.params("a"), idempotency.InProgress)
	t.complete(t.store, first, response("done"))
	t.checkAnswer(t.begin(t.store, params, idempotency.Completed).Record, response("done"))
}

func (t *suite) otherRequest() {
	other := func(id string) *idempotency.BeginParams {
		params := t.params(id)
		params.Fingerprint = idempotency.FingerprintOf("another request")
		return params
	}
	refused := func(what, id string) {
		t.Helper()
		outcome, err := t.store.Begin(t.Context(), other(id))
		t.wantErr("Begin beside "+what, err, idempotency.ErrFingerprintMismatch)
		if outcome != nil {
			t.Fatal("a refused Begin returned an outcome")
		}
	}
	t.claim("running")
	refused("a running lease", "running")
	t.claimShort("ended")
	suspended := t.claim("suspended")
	if err := t.store.Suspend(t.Context(), suspended); err != nil {
		t.Fatalf("Suspend: %v", err)
	}
	t.untilLeasesEnd()
	refused("an ended lease", "ended")
	refused("a suspended lease", "suspended")
	t.begin(t.store, t.params("ended"), idempotency.New)
	t.begin(t.store, t.params("suspended"), idempotency.New)
}

func (t *suite) steps() {
	claim := t.claim("a")
	if claim.Resumed || len(claim.Steps) > 0 {
		t.Fatalf("a new key is resumed: %t, with %d steps", claim.Resumed, len(claim.Steps))
	}
	longest := strings.Repeat("é", 127) + "x"
	bytes := &idempotency.StepRecord{Name: longest, Arguments: idempotency.NoFingerprint, Response: response("\x00\xff\"'\\ \n")}
	empty := &idempotency.StepRecord{Name: "empty", Arguments: idempotency.NoFingerprint, Response: &idempotency.Response{Type: "my type", Body: []byte{}}}
	nothing := &idempotency.StepRecord{Name: `"{}" <&>`, Arguments: idempotency.NoFingerprint, Response: &idempotency.Response{Type: idempotency.TypeNone}}
	want := []*idempotency.StepRecord{step("one", "1"), bytes, empty, nothing}
	for _, s := range want {
		t.addStep(t.store, claim, s)
	}
	record := t.get(t.store, "a", idempotency.InProgress)
	t.checkSteps(record.Steps, want...)
	if record.ClaimID != claim.ID || record.Attempt != 1 {
		t.Fatal("a step has changed the claim")
	}
	record.Steps[0].Response.Body[0] = 'x' // the caller's own
	t.checkSteps(t.get(t.store, "a", idempotency.InProgress).Steps, want...)
	t.checkSteps(t.begin(t.store, t.params("a"), idempotency.InProgress).Record.Steps, want...)
	if done := t.complete(t.store, claim, response("done")); len(done.Steps) > 0 {
		t.Fatalf("%d steps are in the completed record; want none", len(done.Steps))
	}
	t.checkSteps(t.get(t.store, "a", idempotency.Completed).Steps)
	t.wantErr("AddStep", t.store.AddStep(t.Context(), claim, step("late", "")), idempotency.ErrClaimLost)
}

func (t *suite) stepsReleased() {
	claim := t.claim("a")
	t.addStep(t.store, claim, step("one", "1"))
	if err := t.store.Release(t.Context(), claim); err != nil {
		t.Fatalf("Release: %v", err)
	}
	if again := t.claim("a"); again.Resumed || len(again.Steps) > 0 || again.Attempt != 1 {
		t.Fatalf("after a release: resumed %t, %d steps, attempt %d; want a new key", again.Resumed, len(again.Steps), again.Attempt)
	}
}

func (t *suite) firstStep() {
	claim := t.claim("a")
	t.addStep(t.store, claim, step("one", "first"))
	t.addStep(t.store, claim, step("one", "second"))
	t.addStep(t.store, claim, step("two", "2"))
	t.checkSteps(t.get(t.store, "a", idempotency.InProgress).Steps, step("one", "first"), step("two", "2"))
}

func (t *suite) lostStep() {
	first := t.claimShort("a")
	t.addStep(t.store, first, step("one", "1"))
	second := t.untilNew(t.params("a"))
	if !second.Resumed || second.Attempt != 2 {
		t.Fatalf("taken over: resumed %t, attempt %d; want true and 2", second.Resumed, second.Attempt)
	}
	t.checkSteps(second.Steps, step("one", "1"))
	t.wantErr("AddStep", t.store.AddStep(t.Context(), first, step("two", "of a zombie")), idempotency.ErrClaimLost)
	t.wantErr("Suspend", t.store.Suspend(t.Context(), first), idempotency.ErrClaimLost)
	t.addStep(t.store, second, step("two", "2"))
	t.checkSteps(t.get(t.store, "a", idempotency.InProgress).Steps, step("one", "1"), step("two", "2"))
}

func (t *suite) lateStep() {
	claim := t.claimShort("a")
	before := t.get(t.store, "a", idempotency.InProgress)
	t.untilLeasesEnd()
	t.addStep(t.store, claim, step("one", "late"))
	record := t.get(t.store, "a", idempotency.InProgress)
	t.checkSteps(record.Steps, step("one", "late"))
	if !record.LockedUntil.Equal(before.LockedUntil) || !record.UpdatedAt.After(before.UpdatedAt) {
		t.Fatalf("the lease ended at %v and ends at %v, the record changed at %v and at %v; want the lease as it was and a later change",
			before.LockedUntil, record.LockedUntil, before.UpdatedAt, record.UpdatedAt)
	}
	if next := t.begin(t.store, t.params("a"), idempotency.New).Claim; next.Attempt != 2 {
		t.Fatalf("attempt %d; want 2, since the lease had ended", next.Attempt)
	}
}

func (t *suite) badSteps() {
	claim := t.claim("a")
	spoil := func(spoil func(*idempotency.StepRecord)) *idempotency.StepRecord {
		s := step("one", "1")
		spoil(s)
		return s
	}
	for field, bad := range map[string][]*idempotency.StepRecord{
		"StepRecord": {nil},
		"StepRecord.Name": {
			spoil(func(s *idempotency.StepRecord) { s.Name = "" }),
			spoil(func(s *idempotency.StepRecord) { s.Name = strings.Repeat("x", 256) }),
			spoil(func(s *idempotency.StepRecord) { s.Name = "a\x00b" }),
			spoil(func(s *idempotency.StepRecord) { s.Name = "a\xffb" }),
		},
		"StepRecord.Arguments": {spoil(func(s *idempotency.StepRecord) { s.Arguments = idempotency.Fingerprint{} })},
		"Response":             {spoil(func(s *idempotency.StepRecord) { s.Response = nil })},
		"Response.Type":        {spoil(func(s *idempotency.StepRecord) { s.Response = &idempotency.Response{} })},
	} {
		for _, s := range bad {
			t.wantParamErr("AddStep", t.store.AddStep(t.Context(), claim, s), field)
		}
	}
	for _, claim := range []*idempotency.Claim{nil, {Key: t.key("a"), TTL: longTTL}} {
		t.wantErr("AddStep", t.store.AddStep(t.Context(), claim, step("one", "1")), idempotency.ErrNotClaimed)
		t.wantErr("Suspend", t.store.Suspend(t.Context(), claim), idempotency.ErrNotClaimed)
	}
	other := *claim
	other.ID = idempotency.NewClaimID()
	t.wantErr("AddStep", t.store.AddStep(t.Context(), &other, step("one", "1")), idempotency.ErrClaimLost)
	t.checkSteps(t.get(t.store, "a", idempotency.InProgress).Steps)
}

func (t *suite) suspend() {
	claim := t.claim("a")
	t.addStep(t.store, claim, step("one", "1"))
	if err := t.store.Suspend(t.Context(), claim); err != nil {
		t.Fatalf("Suspend: %v", err)
	}
	record := t.get(t.store, "a", idempotency.InProgress)
	if !record.Suspended() || record.ClaimID != claim.ID {
		t.Fatalf("the record is suspended: %t, of the claim: %t; want true and true", record.Suspended(), record.ClaimID == claim.ID)
	}
	second := t.begin(t.store, t.params("a"), idempotency.New).Claim
	if second.Attempt != 1 || !second.Resumed {
		t.Fatalf("attempt %d, resumed %t; want 1 and true", second.Attempt, second.Resumed)
	}
	t.checkSteps(second.Steps, step("one", "1"))
	t.wantLost(claim)
	if t.get(t.store, "a", idempotency.InProgress).Suspended() {
		t.Fatal("a key that was taken over is still suspended")
	}
	t.complete(t.store, second, response("done"))
}

func (t *suite) stepOfSuspended() {
	claim := t.claim("a")
	if err := t.store.Suspend(t.Context(), claim); err != nil {
		t.Fatalf("Suspend: %v", err)
	}
	t.addStep(t.store, claim, step("one", "1"))
	if record := t.get(t.store, "a", idempotency.InProgress); !record.Suspended() {
		t.Fatal("a step has undone the suspension")
	}
	second := t.begin(t.store, t.params("a"), idempotency.New).Claim
	if second.Attempt != 1 {
		t.Fatalf("attempt %d; want 1", second.Attempt)
	}
	t.checkSteps(second.Steps, step("one", "1"))
}

func (t *suite) lateExtension() {
	claim := t.claim("a")
	if err := t.store.Suspend(t.Context(), claim); err != nil {
		t.Fatalf("Suspend: %v", err)
	}
	_, err := t.store.Extend(t.Context(), claim, longLease)
	t.wantErr("Extend", err, idempotency.ErrClaimLost)
	if again := t.begin(t.store, t.params("a"), idempotency.New).Claim; again.Attempt != 1 {
		t.Fatalf("attempt %d; want 1", again.Attempt)
	}
}

func (t *suite) keepsFingerprint() {
	anybody := t.params("a")
	anybody.Fingerprint = idempotency.NoFingerprint
	for range 2 {
		claim := t.begin(t.store, t.params("a"), idempotency.New).Claim
		if err := t.store.Suspend(t.Context(), claim); err != nil {
			t.Fatalf("Suspend: %v", err)
		}
		claim = t.begin(t.store, anybody, idempotency.New).Claim
		if err := t.store.Suspend(t.Context(), claim); err != nil {
			t.Fatalf("Suspend: %v", err)
		}
		other := t.params("a")
		other.Fingerprint = idempotency.FingerprintOf("another request")
		_, err := t.store.Begin(t.Context(), other)
		t.wantErr("Begin", err, idempotency.ErrFingerprintMismatch)
	}
}

func (t *suite) maxAttempts() {
	params := t.params("a")
	params.MaxAttempts, params.Lease = 2, shortLease
	t.begin(t.store, params, idempotency.New)
	t.untilNew(params)
	t.untilLeasesEnd()
	before := t.get(t.store, "a", idempotency.InProgress)
	outcome, err := t.store.Begin(t.Context(), params)
	t.wantErr("Begin", err, idempotency.ErrNeedsAttention)
	if outcome != nil {
		t.Fatal("a refused Begin returned an outcome")
	}
	if after := t.get(t.store, "a", idempotency.InProgress); after.ClaimID != before.ClaimID || after.Attempt != 2 || !after.UpdatedAt.Equal(before.UpdatedAt) {
		t.Fatal("a refused Begin has changed the record")
	}
	// Other attempts are not bounded, or not so.
	params.MaxAttempts = 3
	third := t.begin(t.store, params, idempotency.New).Claim
	if err := t.store.Suspend(t.Context(), third); err != nil {
		t.Fatalf("Suspend: %v", err)
	}
	if again := t.begin(t.store, params, idempotency.New).Claim; again.Attempt != 3 {
		t.Fatalf("attempt %d; want 3: a suspended one is not counted", again.Attempt)
	}
	params.MaxAttempts = -1
	_, err = t.store.Begin(t.Context(), params)
	t.wantParamErr("Begin", err, "MaxAttempts")
}

func stepTxCases[TTx any]() []testCase[*txSuite[TTx]] {
	return []testCase[*txSuite[TTx]]{
		{"a step commits with the effect", (*txSuite[TTx]).stepCommits},
		{"a step is undone with the effect", (*txSuite[TTx]).stepUndone},
		{"a step of a lost claim cannot commit", (*txSuite[TTx]).stepLost},
		{"a claim of the transaction has no steps", (*txSuite[TTx]).stepOfTx},
		{"a claim without a lease does not continue leased work", (*txSuite[TTx]).stepsNotTakenOver},
		{"a claim without a lease that takes over is resumed", (*txSuite[TTx]).resumedInTx},
	}
}

func (t *txSuite[TTx]) stepCommits() {
	claim := t.claim("a")
	tx := t.open()
	t.effect(tx.tx, "a")
	t.addStep(tx, claim, step("one", "1"))
	t.checkSteps(t.get(tx, "a", idempotency.InProgress).Steps, step("one", "1"))
	t.checkSteps(t.get(t.store, "a", idempotency.InProgress).Steps)
	t.commit(tx)
	t.effects("a", 1)
	t.checkSteps(t.get(t.store, "a", idempotency.InProgress).Steps, step("one", "1"))
	t.complete(t.store, claim, response("done"))
}

func (t *txSuite[TTx]) stepUndone() {
	claim := t.claim("a")
	tx := t.open()
	t.effect(tx.tx, "a")
	t.addStep(tx, claim, step("one", "1"))
	t.rollback(tx)
	t.effects("a", 0)
	t.checkSteps(t.get(t.store, "a", idempotency.InProgress).Steps)
	t.complete(t.store, claim, response("done"))
}

func (t *txSuite[TTx]) stepLost() {
	first := t.claimShort("a")
	t.untilNew(t.params("a"))
	for _, lost := range []*idempotency.Claim{first, nil} {
		want := idempotency.ErrClaimLost
		if lost == nil {
			want = idempotency.ErrNotClaimed
		}
		tx := t.open()
		t.effect(tx.tx, "a")
		t.wantErr("AddStep", tx.AddStep(t.Context(), lost, step("one", "of a zombie")), want)
		t.cannotCommit(tx, "a")
	}
	t.checkSteps(t.get(t.store, "a", idempotency.InProgress).Steps)
}

func (t *txSuite[TTx]) stepOfTx() {
	tx := t.open()
	claim := t.begin(tx, t.txParams("a"), idempotency.New).Claim
	t.wantParamErr("AddStep", tx.AddStep(t.Context(), claim, step("one", "1")), "Claim")
	t.cannotCommit(tx, "a")
	t.notFound(t.store, "a")
}

func (t *txSuite[TTx]) stepsNotTakenOver() {
	stepped := t.claimShort("stepped")
	t.addStep(t.store, stepped, step("one", "1"))
	suspended := t.claim("suspended")
	if err := t.store.Suspend(t.Context(), suspended); err != nil {
		t.Fatalf("Suspend: %v", err)
	}
	t.untilLeasesEnd()
	for _, id := range []string{"stepped", "suspended"} {
		tx := t.open()
		_, err := tx.Begin(t.Context(), t.txParams(id))
		t.wantErr("Begin", err, idempotency.ErrStepChanged)
		t.rollback(tx)
		if batch, ok := t.h.Store.WithTx(t.open().tx).(idempotency.BatchVerbs); ok {
			results, err := batch.BeginMany(t.Context(), []*idempotency.BeginParams{t.txParams(id)})
			if err != nil {
				t.Fatalf("BeginMany: %v", err)
			}
			t.wantErr("BeginMany", results[0].Err, idempotency.ErrStepChanged)
		}
		_, err = t.h.Store.Run(t.Context(), t.txParams(id), func(context.Context, TTx) (idempotency.Answer, error) {
			t.Error("the function ran")
			return answer("must not be recorded"), nil
		})
		t.wantErr("Run", err, idempotency.ErrStepChanged)
	}
	second := t.begin(t.store, t.params("stepped"), idempotency.New).Claim
	t.checkSteps(second.Steps, step("one", "1"))
}

func (t *txSuite[TTx]) resumedInTx() {
	for _, id := range []string{"a", "b"} {
		t.claimShort(id)
	}
	t.untilLeasesEnd()
	tx := t.open()
	if claim := t.begin(tx, t.txParams("a"), idempotency.New).Claim; !claim.Resumed || claim.Attempt != 2 {
		t.Fatalf("resumed %t, attempt %d; want true and 2", claim.Resumed, claim.Attempt)
	}
	if batch, ok := tx.Verbs.(idempotency.BatchVerbs); ok {
		results, err := batch.BeginMany(t.Context(), []*idempotency.BeginParams{t.txParams("b"), t.txParams("c")})
		if err != nil {
			t.Fatalf("BeginMany: %v", err)
		}
		for i, want := range []bool{true, false} {
			t.checkOutcome(results[i].Outcome, idempotency.New)
			if got := results[i].Outcome.Claim.Resumed; got != want {
				t.Fatalf("key %d of the batch is resumed: %t; want %t", i+1, got, want)
			}
		}
	}
}

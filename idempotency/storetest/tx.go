package storetest

import (
	"context"

	"github.com/samecommit/samecommit/idempotency"
)

// txSuite is one subtest of a store with transactions.
type txSuite[TTx any] struct {
	*suite
	h Harness[TTx]
}

// openTx is a transaction that the caller began, and the verbs in it.
type openTx[TTx any] struct {
	idempotency.Verbs
	tx               TTx
	commit, rollback func(context.Context) error
}

func txCases[TTx any]() []testCase[*txSuite[TTx]] {
	return []testCase[*txSuite[TTx]]{
		{"effect and record appear together at commit", (*txSuite[TTx]).together},
		{"rollback frees the key", (*txSuite[TTx]).rollbackFrees},
		{"a transaction sees its own claim and others do not", (*txSuite[TTx]).visibility},
		{"of two transactions one claims and the other stays usable", (*txSuite[TTx]).race},
		{"after a rollback the other transaction claims", (*txSuite[TTx]).raceRollback},
		{"a lease cannot claim what a transaction holds", (*txSuite[TTx]).leaseAgainstTx},
		{"a transaction cannot claim what a lease holds", (*txSuite[TTx]).txAgainstLease},
		{"a forgotten completion cannot commit", (*txSuite[TTx]).forgotten},
		{"completing twice cannot commit", (*txSuite[TTx]).completesTwice},
		{"completing without a claim cannot commit", (*txSuite[TTx]).completesNothing},
		{"completing another's claim cannot commit", (*txSuite[TTx]).completesOther},
		{"completing a claim without a TTL cannot commit", (*txSuite[TTx]).completesNoTTL},
		{"completing after a rollback cannot commit", (*txSuite[TTx]).completesRolledBack},
		{"an own key begun again is nested", (*txSuite[TTx]).nested},
		{"another fingerprint is refused inside a transaction", (*txSuite[TTx]).txMismatch},
		{"an expired answer is claimed inside a transaction", (*txSuite[TTx]).txExpired},
		{"a leased claim completes with the effect", (*txSuite[TTx]).leasedCommits},
		{"a leased claim's completion rolls back with the effect", (*txSuite[TTx]).leasedRollsBack},
		{"a leased claim that was taken over cannot commit an effect", (*txSuite[TTx]).leasedLost},
		{"a lease that ended is taken over by a transaction", (*txSuite[TTx]).txTakeover},
		{"bad parameters are refused inside a transaction", (*txSuite[TTx]).txBadParams},
		{"a transaction that has ended is dead", (*txSuite[TTx]).txEnded},
	}
}

// txParams has no lease, which a claim inside a transaction must not have.
func (t *txSuite[TTx]) txParams(id string) *idempotency.BeginParams {
	params := t.params(id)
	params.Lease = 0
	return params
}

func (t *txSuite[TTx]) open() *openTx[TTx] {
	t.Helper()
	tx, commit, rollback, err := t.h.Begin(t.Context())
	if err != nil {
		t.Fatalf("begin a transaction: %v", err)
	}
	// A test that failed half way must not keep a connection; after the end
	// this is an error of no interest.
	t.Cleanup(func() { _ = rollback(context.WithoutCancel(t.Context())) })
	return &openTx[TTx]{Verbs: t.h.Store.WithTx(tx), tx: tx, commit: commit, rollback: rollback}
}

func (t *txSuite[TTx]) commit(tx *openTx[TTx]) {
	t.Helper()
	if err := tx.commit(t.Context()); err != nil {
		t.Fatalf("commit: %v", err)
	}
}

func (t *txSuite[TTx]) rollback(tx *openTx[TTx]) {
	t.Helper()
	if err := tx.rollback(t.Context()); err != nil {
		t.Fatalf("rollback: %v", err)
	}
}

// cannotCommit checks that the transaction's commit fails and that neither its
// effect nor its key is left.
func (t *txSuite[TTx]) cannotCommit(tx *openTx[TTx], effect string) {
	t.Helper()
	if err := tx.commit(t.Context()); err == nil {
		t.Fatal("the transaction committed")
	}
	t.effects(effect, 0)
}

func (t *txSuite[TTx]) effect(tx TTx, name string) {
	t.Helper()
	if err := t.h.Effect(t.Context(), tx, t.effectName(name)); err != nil {
		t.Fatalf("write an effect: %v", err)
	}
}

func (t *txSuite[TTx]) effects(name string, want int) {
	t.Helper()
	got, err := t.h.Effects(t.Context(), t.effectName(name))
	if err != nil {
		t.Fatalf("count effects: %v", err)
	}
	if got != want {
		t.Fatalf("%d effects %q are committed; want %d", got, name, want)
	}
}

// effectName keeps apart the subtests that share a database.
func (t *txSuite[TTx]) effectName(name string) string { return t.scope + "/" + name }

// free checks that a key can be claimed, and leaves it free.
func (t *txSuite[TTx]) free(id string) {
	t.Helper()
	tx := t.open()
	t.begin(tx, t.txParams(id), idempotency.New)
	t.rollback(tx)
}

func (t *txSuite[TTx]) together() {
	tx := t.open()
	claim := t.begin(tx, t.txParams("a"), idempotency.New).Claim
	if !claim.LockedUntil.IsZero() || !claim.Deadline.IsZero() {
		t.Fatal("a claim inside a transaction has a lease")
	}
	t.effect(tx.tx, "a")
	t.complete(tx, claim, response("done"))
	t.checkAnswer(t.get(tx, "a", idempotency.Completed), response("done"))
	t.notFound(t.store, "a")
	t.effects("a", 0)
	t.commit(tx)
	t.checkAnswer(t.get(t.store, "a", idempotency.Completed), response("done"))
	t.effects("a", 1)
	t.begin(t.store, t.params("a"), idempotency.Completed)
	t.checkAnswer(t.begin(t.open(), t.txParams("a"), idempotency.Completed).Record, response("done"))
}

func (t *txSuite[TTx]) rollbackFrees() {
	tx := t.open()
	claim := t.begin(tx, t.txParams("a"), idempotency.New).Claim
	t.effect(tx.tx, "a")
	t.complete(tx, claim, response("undone"))
	t.rollback(tx)
	t.notFound(t.store, "a")
	t.effects("a", 0)
	t.complete(t.store, t.claim("a"), response("done"))
}

func (t *txSuite[TTx]) visibility() {
	tx := t.open()
	t.notFound(tx, "a")
	claim := t.begin(tx, t.txParams("a"), idempotency.New).Claim
	record := t.get(tx, "a", idempotency.InProgress)
	if record.ClaimID != claim.ID || record.Response != nil || !record.LockedUntil.IsZero() {
		t.Fatal("the record inside is another claim's, or has an answer or a lease")
	}
	t.notFound(t.store, "a")
	t.notFound(t.open(), "a")
}

func (t *txSuite[TTx]) race() {
	winner, loser := t.open(), t.open()
	claim := t.begin(winner, t.txParams("a"), idempotency.New).Claim
	t.begin(loser, t.txParams("a"), idempotency.InProgress)

	other := t.begin(loser, t.txParams("b"), idempotency.New).Claim
	t.effect(loser.tx, "b")
	t.complete(loser, other, response("of b"))
	t.commit(loser)
	t.effects("b", 1)

	t.complete(winner, claim, response("of a"))
	t.commit(winner)
	t.checkAnswer(t.begin(t.open(), t.txParams("a"), idempotency.Completed).Record, response("of a"))
}

func (t *txSuite[TTx]) raceRollback() {
	winner, loser := t.open(), t.open()
	t.begin(winner, t.txParams("a"), idempotency.New)
	t.begin(loser, t.txParams("a"), idempotency.InProgress)
	t.rollback(winner)
	claim := t.begin(loser, t.txParams("a"), idempotency.New).Claim
	t.complete(loser, claim, response("of the other"))
	t.commit(loser)
	t.checkAnswer(t.get(t.store, "a", idempotency.Completed), response("of the other"))
}

func (t *txSuite[TTx]) leaseAgainstTx() {
	tx := t.open()
	t.begin(tx, t.txParams("a"), idempotency.New)
	t.begin(t.store, t.params("a"), idempotency.InProgress)
	t.rollback(tx)
	t.begin(t.store, t.params("a"), idempotency.New)
}

func (t *txSuite[TTx]) txAgainstLease() {
	claim := t.claim("a")
	tx := t.open()
	if outcome := t.begin(tx, t.txParams("a"), idempotency.InProgress); outcome.Record == nil || outcome.RetryAfter <= 0 {
		t.Fatalf("in progress under a lease came with record %+v and RetryAfter %s; want both", outcome.Record, outcome.RetryAfter)
	}
	t.effect(tx.tx, "a")
	t.commit(tx)
	t.effects("a", 1)
	t.complete(t.store, claim, response("done"))
}

func (t *txSuite[TTx]) forgotten() {
	tx := t.open()
	t.begin(tx, t.txParams("a"), idempotency.New)
	t.effect(tx.tx, "a")
	t.cannotCommit(tx, "a")
	t.notFound(t.store, "a")
	t.free("a")
}

func (t *txSuite[TTx]) completesTwice() {
	tx := t.open()
	claim := t.begin(tx, t.txParams("a"), idempotency.New).Claim
	t.effect(tx.tx, "a")
	t.complete(tx, claim, response("first"))
	t.completeErr(tx, claim, idempotency.ErrClaimLost)
	t.cannotCommit(tx, "a")
	t.free("a")
}

func (t *txSuite[TTx]) completesNothing() {
	for _, claim := range []*idempotency.Claim{nil, {Key: t.key("a"), TTL: longTTL}} {
		tx := t.open()
		t.effect(tx.tx, "a")
		t.completeErr(tx, claim, idempotency.ErrNotClaimed)
		t.cannotCommit(tx, "a")
	}
}

func (t *txSuite[TTx]) completesOther() {
	unknown := &idempotency.Claim{Key: t.key("a"), ID: idempotency.NewClaimID(), Attempt: 1, TTL: longTTL}
	tx := t.open()
	t.effect(tx.tx, "a")
	t.completeErr(tx, unknown, idempotency.ErrClaimLost)
	t.cannotCommit(tx, "a")

	held := t.claim("b")
	other := *held
	other.ID = idempotency.NewClaimID()
	tx = t.open()
	t.effect(tx.tx, "b")
	t.completeErr(tx, &other, idempotency.ErrClaimLost)
	t.cannotCommit(tx, "b")
	t.complete(t.store, held, response("done"))
}

// Of a lease, since there nothing but the refusal itself stands in the way of
// the commit.
func (t *txSuite[TTx]) completesNoTTL() {
	leased := t.claim("a")
	for _, ttl := range badTTLs {
		tx := t.open()
		t.effect(tx.tx, "a")
		_, err := tx.Complete(t.Context(), withTTL(leased, ttl), response("must not be recorded"))
		t.wantParamErr("Complete with a TTL of "+ttl.String(), err, "Claim.TTL")
		t.cannotCommit(tx, "a")
	}
	t.complete(t.store, leased, response("done"))
}

func (t *txSuite[TTx]) completesRolledBack() {
	tx := t.open()
	claim := t.begin(tx, t.txParams("a"), idempotency.New).Claim
	t.rollback(tx)
	tx = t.open()
	t.effect(tx.tx, "a")
	t.completeErr(tx, claim, idempotency.ErrClaimLost)
	t.cannotCommit(tx, "a")
	t.completeErr(t.store, claim, idempotency.ErrClaimLost)
}

func (t *txSuite[TTx]) nested() {
	tx := t.open()
	t.begin(tx, t.txParams("a"), idempotency.New)
	outcome, err := tx.Begin(t.Context(), t.txParams("a"))
	t.wantErr("Begin", err, idempotency.ErrNested)
	if outcome != nil {
		t.Fatal("ErrNested came with an outcome")
	}
	t.rollback(tx)
	t.free("a")
}

func (t *txSuite[TTx]) txMismatch() {
	t.complete(t.store, t.claim("a"), response("secret"))
	params := t.txParams("a")
	params.Fingerprint = otherFingerprint
	tx := t.open()
	outcome, err := tx.Begin(t.Context(), params)
	t.wantMismatch(outcome, err, "a")
	t.rollback(tx)
}

func (t *txSuite[TTx]) txExpired() {
	t.completeShort("a")
	t.untilExpired("a")
	tx := t.open()
	t.notFound(tx, "a")
	claim := t.begin(tx, t.txParams("a"), idempotency.New).Claim
	t.complete(tx, claim, response("new"))
	t.commit(tx)
	t.checkAnswer(t.get(t.store, "a", idempotency.Completed), response("new"))
}

func (t *txSuite[TTx]) leasedCommits() {
	claim := t.claim("a")
	tx := t.open()
	t.effect(tx.tx, "a")
	t.complete(tx, claim, response("done"))
	t.get(t.store, "a", idempotency.InProgress)
	t.effects("a", 0)
	t.commit(tx)
	t.checkAnswer(t.get(t.store, "a", idempotency.Completed), response("done"))
	t.effects("a", 1)
	t.wantLost(claim)
}

func (t *txSuite[TTx]) leasedRollsBack() {
	claim := t.claim("a")
	tx := t.open()
	t.effect(tx.tx, "a")
	t.complete(tx, claim, response("undone"))
	t.rollback(tx)
	t.effects("a", 0)
	t.get(t.store, "a", idempotency.InProgress)
	t.complete(t.store, claim, response("done"))
}

func (t *txSuite[TTx]) leasedLost() {
	first := t.claimShort("a")
	second := t.untilNew(t.params("a"))
	tx := t.open()
	t.effect(tx.tx, "a")
	t.completeErr(tx, first, idempotency.ErrClaimLost)
	t.cannotCommit(tx, "a")
	t.complete(t.store, second, response("of the second"))
}

func (t *txSuite[TTx]) txTakeover() {
	first := t.claimShort("a")
	t.untilLeasesEnd()
	tx := t.open()
	second := t.begin(tx, t.txParams("a"), idempotency.New).Claim
	if second.Attempt != 2 {
		t.Fatalf("the claim that took over has attempt %d; want 2", second.Attempt)
	}
	t.complete(tx, second, response("of the second"))
	t.commit(tx)
	t.wantLost(first)
	t.checkAnswer(t.get(t.store, "a", idempotency.Completed), response("of the second"))
}

func (t *txSuite[TTx]) txBadParams() {
	tx := t.open()
	fn := func(context.Context, TTx) (idempotency.Answer, error) {
		t.Error("Run called its function with bad parameters")
		return answer("no"), nil
	}
	for _, bad := range append(badParamsOfAll(),
		badParams{"a lease", "Lease", func(p *idempotency.BeginParams) { p.Lease = longLease }}) {
		params := t.txParams("a")
		bad.spoil(params)
		_, err := tx.Begin(t.Context(), params)
		t.wantParamErr("Begin with "+bad.name, err, bad.field)
		_, err = t.h.Store.Run(t.Context(), params, fn)
		t.wantParamErr("Run with "+bad.name, err, bad.field)
	}
	claim := t.begin(tx, t.txParams("a"), idempotency.New).Claim
	_, err := tx.Complete(t.Context(), claim, nil)
	t.wantParamErr("Complete without a response", err, "Response")
	t.rollback(tx)
}

func (t *txSuite[TTx]) txEnded() {
	tx := t.open()
	claim := t.begin(tx, t.txParams("a"), idempotency.New).Claim
	t.complete(tx, claim, response("done"))
	t.commit(tx)
	t.wantDead(tx.tx)
}

// wantDead checks that nothing can be done any more in a transaction that has
// ended.
func (t *txSuite[TTx]) wantDead(tx TTx) {
	t.Helper()
	verbs := t.h.Store.WithTx(tx)
	_, err := verbs.Begin(t.Context(), t.txParams("dead"))
	t.wantErr("Begin", err, idempotency.ErrTxEnded)
	_, err = verbs.Complete(t.Context(), &idempotency.Claim{Key: t.key("dead"), ID: idempotency.NewClaimID(), TTL: longTTL}, response("dead"))
	t.wantErr("Complete", err, idempotency.ErrTxEnded)
	_, err = verbs.Get(t.Context(), t.key("dead"))
	t.wantErr("Get", err, idempotency.ErrTxEnded)
	called := false
	err = t.h.Store.Savepoint(t.Context(), tx, func(context.Context, TTx) error { called = true; return nil })
	t.wantErr("Savepoint", err, idempotency.ErrTxEnded)
	if called {
		t.Fatal("Savepoint called its function in a transaction that has ended")
	}
	// Whether this is an error is up to the transaction.
	_ = t.h.Effect(t.Context(), tx, t.effectName("dead"))
	t.effects("dead", 0)
	t.free("dead")
}

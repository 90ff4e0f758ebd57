package storetest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/samecommit/samecommit/idempotency"
)

func batchCases[TTx any]() []testCase[*txSuite[TTx]] {
	return []testCase[*txSuite[TTx]]{
		{"a batch commits its keys with the effects", (*txSuite[TTx]).batchTogether},
		{"a batch keeps the order of its params and gives repeats the first answer", (*txSuite[TTx]).batchRepeats},
		{"a batch tells every key's state", (*txSuite[TTx]).batchMixture},
		{"a repeat gets what became of the first of its key", (*txSuite[TTx]).batchRepeatsOfOthers},
		{"a batch claims what has expired or been abandoned", (*txSuite[TTx]).batchExpired},
		{"a batch keeps bodies byte for byte", (*txSuite[TTx]).batchBodies},
		{"a batch that is rolled back frees every key", (*txSuite[TTx]).batchRollback},
		{"a batch that is not completed cannot commit", (*txSuite[TTx]).batchForgotten},
		{"a batch that is completed twice cannot commit", (*txSuite[TTx]).batchTwice},
		{"a batch whose claim is lost cannot commit", (*txSuite[TTx]).batchLost},
		{"a batch refuses a missing response and records nothing", (*txSuite[TTx]).batchBadResponses},
		{"a batch refuses bad parameters by index", (*txSuite[TTx]).batchBadParams},
		{"a batch finds its own transaction's keys nested", (*txSuite[TTx]).batchNested},
		{"a batch in a transaction that has ended is refused", (*txSuite[TTx]).batchEnded},
	}
}

// batchTx is the client's view of a transaction.
func (t *txSuite[TTx]) batchTx(tx *openTx[TTx]) *idempotency.TxClient {
	t.Helper()
	client, err := idempotency.NewClient(t.h.Store, &idempotency.Config{TTL: longTTL, MaxResponseSize: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return client.WithTx(tx.tx)
}

func (t *txSuite[TTx]) batchParams(ids ...string) []idempotency.Params {
	params := make([]idempotency.Params, len(ids))
	for i, id := range ids {
		params[i] = idempotency.Params{Key: t.key(id), Fingerprint: fingerprint}
	}
	return params
}

func (t *txSuite[TTx]) beginMany(tx *openTx[TTx], params []idempotency.Params) *idempotency.Batch {
	t.Helper()
	batch, err := t.batchTx(tx).BeginMany(t.Context(), params)
	if err != nil {
		t.Fatalf("BeginMany: %v", err)
	}
	if len(batch.Items) != len(params) {
		t.Fatalf("%d items of %d params", len(batch.Items), len(params))
	}
	for i, item := range batch.Items {
		if item.Key != params[i].Key {
			t.Fatalf("item %d has the key of another", i)
		}
		if (item.RetryAfter > 0) != (item.State == idempotency.InProgress) || (item.Err != nil) != (item.State == 0) {
			t.Fatalf("item %d is %v with RetryAfter %s and error %v", i, item.State, item.RetryAfter, item.Err)
		}
	}
	return batch
}

// answer sets the response of every new item to its id.
func (t *txSuite[TTx]) answer(batch *idempotency.Batch) {
	for _, item := range batch.Items {
		if item.State == idempotency.New {
			item.Response = response("of " + item.Key.ID)
		}
	}
}

func (t *txSuite[TTx]) completeBatch(batch *idempotency.Batch) {
	t.Helper()
	t.answer(batch)
	if err := batch.Complete(t.Context()); err != nil {
		t.Fatalf("Batch.Complete: %v", err)
	}
}

func (t *txSuite[TTx]) wantStates(batch *idempotency.Batch, want ...idempotency.State) {
	t.Helper()
	var got []idempotency.State
	for _, item := range batch.Items {
		got = append(got, item.State)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("states are %v; want %v", got, want)
	}
}

// recorded commits an answer "of id" for each id.
func (t *txSuite[TTx]) recorded(ids ...string) {
	t.Helper()
	for _, id := range ids {
		t.complete(t.store, t.claim(id), response("of "+id))
	}
}

func (t *txSuite[TTx]) batchTogether() {
	tx := t.open()
	batch := t.beginMany(tx, t.batchParams("c", "a", "b"))
	t.wantStates(batch, idempotency.New, idempotency.New, idempotency.New)
	t.effect(tx.tx, "all")
	t.completeBatch(batch)
	t.notFound(t.store, "a")
	t.effects("all", 0)
	t.commit(tx)
	t.effects("all", 1)
	for _, item := range batch.Items {
		t.checkAnswer(item.Record, response("of "+item.Key.ID))
		kept := t.get(t.store, item.Key.ID, idempotency.Completed)
		t.checkAnswer(kept, response("of "+item.Key.ID))
		if item.Record.Key != item.Key || item.Record.Attempt != 1 || item.Record.ClaimID != kept.ClaimID || !item.Record.ExpiresAt.Equal(kept.ExpiresAt) ||
			!item.Record.CreatedAt.Equal(kept.CreatedAt) || !item.Record.UpdatedAt.Equal(kept.UpdatedAt) || !fingerprint.Matches(item.Record.Fingerprint) {
			t.Fatalf("the record of the batch %+v is not the one that was kept %+v", item.Record, kept)
		}
	}

	replay := t.open()
	again := t.beginMany(replay, t.batchParams("a", "b", "c"))
	t.wantStates(again, idempotency.Completed, idempotency.Completed, idempotency.Completed)
	t.checkAnswer(again.Items[2].Record, response("of c"))
	t.completeBatch(again) // nothing to do
	t.commit(replay)

	empty := t.open()
	t.completeBatch(t.beginMany(empty, nil))
	t.commit(empty)
}

func (t *txSuite[TTx]) batchRepeats() {
	params := t.batchParams("b", "a", "b", "b", "a")
	params[3].Fingerprint = otherFingerprint
	params[4].Fingerprint = idempotency.NoFingerprint
	tx := t.open()
	batch := t.beginMany(tx, params)
	t.wantStates(batch, idempotency.New, idempotency.New, idempotency.Completed, 0, idempotency.Completed)
	if batch.Items[2].Record != nil {
		t.Fatal("a repeat has a record before there is one")
	}
	t.wantErr("a repeat with another fingerprint", batch.Items[3].Err, idempotency.ErrFingerprintMismatch)
	t.effect(tx.tx, "b")
	t.completeBatch(batch)
	t.commit(tx)
	t.effects("b", 1)
	t.checkAnswer(batch.Items[2].Record, response("of b"))
	t.checkAnswer(batch.Items[4].Record, response("of a"))
	if batch.Items[3].Record != nil {
		t.Fatal("a mismatch came with a record; it must reveal nothing")
	}
}

func (t *txSuite[TTx]) batchMixture() {
	t.recorded("completed", "mismatch")
	t.claim("leased")
	other := t.open()
	t.begin(other, t.txParams("elsewhere"), idempotency.New)

	params := t.batchParams("new", "mismatch", "elsewhere", "completed", "leased", "another")
	params[1].Fingerprint = otherFingerprint
	tx := t.open()
	batch := t.beginMany(tx, params)
	t.wantStates(batch, idempotency.New, 0, idempotency.InProgress, idempotency.Completed, idempotency.InProgress, idempotency.New)
	t.wantErr("a mismatch", batch.Items[1].Err, idempotency.ErrFingerprintMismatch)
	if keyErr, ok := errors.AsType[*idempotency.KeyError](batch.Items[1].Err); !ok || keyErr.Key != params[1].Key || batch.Items[1].Record != nil {
		t.Fatalf("a mismatch is %v with record %v; want a *KeyError of its key and nothing else", batch.Items[1].Err, batch.Items[1].Record)
	}
	t.checkAnswer(batch.Items[3].Record, response("of completed"))
	t.effect(tx.tx, "mixture")
	t.completeBatch(batch)
	t.commit(tx)
	t.effects("mixture", 1)
	t.get(t.store, "new", idempotency.Completed)
	t.get(t.store, "another", idempotency.Completed)
	t.get(t.store, "leased", idempotency.InProgress)
	t.rollback(other)
	t.free("elsewhere")
}

func (t *txSuite[TTx]) batchRepeatsOfOthers() {
	t.recorded("completed", "mismatch")
	other := t.open()
	t.begin(other, t.txParams("elsewhere"), idempotency.New)
	params := t.batchParams("completed", "completed", "completed", "mismatch", "mismatch", "elsewhere", "elsewhere")
	params[0].Fingerprint = idempotency.NoFingerprint
	params[1].Fingerprint = otherFingerprint
	params[3].Fingerprint = otherFingerprint
	params[4].Fingerprint = otherFingerprint
	tx := t.open()
	batch := t.beginMany(tx, params)
	t.wantStates(batch, idempotency.Completed, 0, idempotency.Completed, 0, 0, idempotency.InProgress, idempotency.InProgress)
	for _, i := range []int{1, 3, 4} {
		t.wantErr("a mismatch", batch.Items[i].Err, idempotency.ErrFingerprintMismatch)
	}
	t.checkAnswer(batch.Items[2].Record, response("of completed"))
	t.completeBatch(batch)
	t.commit(tx)
}

func (t *txSuite[TTx]) batchExpired() {
	short := t.params("expired")
	short.TTL = shortTTL
	t.complete(t.store, t.begin(t.store, short, idempotency.New).Claim, response("old"))
	first := t.claimShort("abandoned")
	t.untilExpired("expired")
	t.untilLeasesEnd()
	t.recorded("live")

	tx := t.open()
	params := t.batchParams("live", "expired", "new", "abandoned")
	params[1].Fingerprint = otherFingerprint
	batch := t.beginMany(tx, params)
	t.wantStates(batch, idempotency.Completed, idempotency.New, idempotency.New, idempotency.New)
	t.completeBatch(batch)
	t.commit(tx)
	if a, b := batch.Items[1].Record.Attempt, batch.Items[3].Record.Attempt; a != 1 || b != 2 {
		t.Fatalf("attempts are %d after an answer and %d after a lease; want 1 and 2", a, b)
	}
	t.wantLost(first)
	expired := t.get(t.store, "expired", idempotency.Completed)
	t.checkAnswer(expired, response("of expired"))
	if !otherFingerprint.Matches(expired.Fingerprint) {
		t.Fatal("the record has the fingerprint of the expired one")
	}
}

func (t *txSuite[TTx]) batchBodies() {
	bodies := bodiesToKeep()
	var params []idempotency.Params
	for id := range bodies {
		params = append(params, t.batchParams(id)...)
	}
	tx := t.open()
	batch := t.beginMany(tx, params)
	for _, item := range batch.Items {
		item.Response = &idempotency.Response{Type: "é " + item.Key.ID, Body: bodies[item.Key.ID]}
	}
	if err := batch.Complete(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.commit(tx)
	again := t.beginMany(t.open(), params)
	for i, item := range again.Items {
		t.checkAnswer(batch.Items[i].Record, &idempotency.Response{Type: "é " + item.Key.ID, Body: bodies[item.Key.ID]})
		t.checkAnswer(item.Record, &idempotency.Response{Type: "é " + item.Key.ID, Body: bodies[item.Key.ID]})
	}
}

func (t *txSuite[TTx]) batchRollback() {
	tx := t.open()
	batch := t.beginMany(tx, t.batchParams("a", "b"))
	t.effect(tx.tx, "a")
	t.completeBatch(batch)
	other := t.beginMany(t.open(), t.batchParams("b", "a"))
	t.wantStates(other, idempotency.InProgress, idempotency.InProgress)
	t.rollback(tx)
	t.effects("a", 0)
	t.free("a")
	t.wantStates(t.beginMany(t.open(), t.batchParams("b", "a")), idempotency.New, idempotency.New)
}

func (t *txSuite[TTx]) batchForgotten() {
	tx := t.open()
	t.beginMany(tx, t.batchParams("a", "b"))
	t.effect(tx.tx, "a")
	t.cannotCommit(tx, "a")
	t.free("a")
	t.free("b")
}

func (t *txSuite[TTx]) batchTwice() {
	tx := t.open()
	batch := t.beginMany(tx, t.batchParams("a", "b"))
	t.effect(tx.tx, "a")
	t.completeBatch(batch)
	t.wantErr("Complete", batch.Complete(t.Context()), idempotency.ErrClaimLost)
	t.cannotCommit(tx, "a")
	t.free("a")
}

// One of several claims is lost: to a Complete of its own.
func (t *txSuite[TTx]) batchLost() {
	tx := t.open()
	batch := t.beginMany(tx, t.batchParams("a", "b"))
	t.effect(tx.tx, "a")
	id := t.get(tx, "b", idempotency.InProgress).ClaimID
	t.complete(tx, &idempotency.Claim{Key: t.key("b"), ID: id, Attempt: 1, TTL: longTTL}, response("first"))
	t.answer(batch)
	t.wantErr("Complete", batch.Complete(t.Context()), idempotency.ErrClaimLost)
	t.cannotCommit(tx, "a")
}

func (t *txSuite[TTx]) batchBadResponses() {
	tx := t.open()
	batch := t.beginMany(tx, t.batchParams("a", "b", "a"))
	bad := badResponsesOfAll()
	bad["Response.Body"] = response(strings.Repeat("x", 1<<20+1))
	for field, one := range bad {
		batch.Items[0].Response, batch.Items[1].Response = response("of a"), one
		t.wantParamErr("Complete", batch.Complete(t.Context()), "Items[1]."+strings.TrimRight(field, " "))
	}
	t.get(tx, "a", idempotency.InProgress)
	t.completeBatch(batch)
	t.commit(tx)
}

func (t *txSuite[TTx]) batchBadParams() {
	tx := t.open()
	verbs := t.batchTx(tx)
	for _, bad := range badParamsOfAll() {
		if bad.name == "zero TTL" {
			continue // the client's default
		}
		begin := t.txParams("c")
		bad.spoil(begin)
		params := append(t.batchParams("a", "b"), idempotency.Params{Key: begin.Key, Fingerprint: begin.Fingerprint, TTL: begin.TTL})
		_, err := verbs.BeginMany(t.Context(), params)
		t.wantParamErr("BeginMany with "+bad.name, err, fmt.Sprintf("Params[2].%s", bad.field))
	}
	waits := t.batchParams("a", "b")
	waits[1].Wait = time.Second
	_, err := verbs.BeginMany(t.Context(), waits)
	t.wantParamErr("BeginMany with a wait", err, "Params[1].Wait")
	waits[1].Wait = idempotency.NoWait
	t.completeBatch(t.beginMany(tx, waits))
	t.commit(tx)
}

func (t *txSuite[TTx]) batchNested() {
	tx := t.open()
	claim := t.begin(tx, t.txParams("single"), idempotency.New).Claim
	first := t.beginMany(tx, t.batchParams("a"))
	batch := t.beginMany(tx, t.batchParams("single", "b", "a", "a"))
	t.wantStates(batch, 0, idempotency.New, 0, 0)
	for _, i := range []int{0, 2, 3} {
		t.wantErr("an own key", batch.Items[i].Err, idempotency.ErrNested)
	}
	_, err := tx.Begin(t.Context(), t.txParams("b"))
	t.wantErr("Begin of a batch's key", err, idempotency.ErrNested)
	t.complete(tx, claim, response("of single"))
	t.completeBatch(first)
	t.completeBatch(batch)
	t.wantStates(t.beginMany(tx, t.batchParams("a", "b")), idempotency.Completed, idempotency.Completed)
	t.commit(tx)
}

func (t *txSuite[TTx]) batchEnded() {
	tx := t.open()
	batch := t.beginMany(tx, t.batchParams("a"))
	verbs := t.batchTx(tx)
	t.rollback(tx)
	t.answer(batch)
	t.wantErr("Complete", batch.Complete(t.Context()), idempotency.ErrTxEnded)
	_, err := verbs.BeginMany(t.Context(), t.batchParams("b"))
	t.wantErr("BeginMany", err, idempotency.ErrTxEnded)
}

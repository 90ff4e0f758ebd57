package storetest

import (
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/samecommit/samecommit/idempotency"
)

var verbCases = []testCase[*suite]{
	{"new then in progress then completed replay", (*suite).lifecycle},
	{"distinct keys are independent", (*suite).distinctKeys},
	{"completing an unknown key is an error", (*suite).completeUnknown},
	{"get exposes the lifecycle", (*suite).getLifecycle},
	{"completing twice is an error and keeps the first answer", (*suite).completeTwice},
	{"completing with another claim's id is an error", (*suite).completeOther},
	{"completing without a claim is an error", (*suite).completeNoClaim},
	{"completing a claim without a TTL is an error and leaves the claim", (*suite).completeNoTTL},
	{"another fingerprint is refused and reveals nothing", (*suite).mismatch},
	{"no fingerprint replays for any request", (*suite).noFingerprint},
	{"the same id in two scopes is two keys", (*suite).twoScopes},
	{"the longest key is accepted", (*suite).longestKey},
	{"response bodies are kept byte for byte", (*suite).bodies},
	{"response types are kept", (*suite).types},
	{"changing a response afterwards changes nothing", (*suite).copies},
	{"an expired answer is gone and its key is free", (*suite).expiry},
	{"an answer replays for its TTL from completion on", (*suite).ttl},
	{"concurrent begins of one key give one claim", (*suite).concurrentBegins},
	{"bad parameters are refused by name", (*suite).badParams},
	{"bad responses are refused and leave the claim", (*suite).badResponses},
	{"get with an invalid key finds nothing", (*suite).getInvalid},
}

func (t *suite) lifecycle() {
	claim := t.claim("a")
	running := t.begin(t.store, t.params("a"), idempotency.InProgress)
	if running.Record == nil || running.RetryAfter <= 0 {
		t.Fatalf("in progress under a lease came with record %+v and RetryAfter %s; want both", running.Record, running.RetryAfter)
	}
	t.complete(t.store, claim, response("done"))
	replay := t.begin(t.store, t.params("a"), idempotency.Completed)
	t.checkAnswer(replay.Record, response("done"))
	if replay.Record.Key != claim.Key || replay.Record.ClaimID != claim.ID {
		t.Fatal("the replayed record is of another key or claim")
	}
}

func (t *suite) distinctKeys() {
	a, b := t.claim("a"), t.claim("b")
	if a.ID == b.ID {
		t.Fatal("two claims have one id")
	}
	t.complete(t.store, a, response("of a"))
	t.begin(t.store, t.params("b"), idempotency.InProgress)
	t.complete(t.store, b, response("of b"))
	t.checkAnswer(t.get(t.store, "a", idempotency.Completed), response("of a"))
	t.checkAnswer(t.get(t.store, "b", idempotency.Completed), response("of b"))
}

func (t *suite) completeUnknown() {
	claim := &idempotency.Claim{Key: t.key("a"), ID: idempotency.NewClaimID(), Attempt: 1, TTL: longTTL}
	t.completeErr(t.store, claim, idempotency.ErrClaimLost)
	t.notFound(t.store, "a")
}

func (t *suite) getLifecycle() {
	t.notFound(t.store, "a")
	claim := t.claim("a")
	running := t.get(t.store, "a", idempotency.InProgress)
	if running.Response != nil || running.ClaimID != claim.ID || running.Attempt != claim.Attempt {
		t.Fatal("the running record has an answer, or is another claim's")
	}
	if running.CreatedAt.IsZero() || running.UpdatedAt.IsZero() || running.LockedUntil.IsZero() || !running.ExpiresAt.IsZero() {
		t.Fatalf("the running record has created %v, updated %v, locked until %v, expires %v; want all but the last",
			running.CreatedAt, running.UpdatedAt, running.LockedUntil, running.ExpiresAt)
	}
	t.complete(t.store, claim, response("done"))
	completed := t.get(t.store, "a", idempotency.Completed)
	t.checkAnswer(completed, response("done"))
	if !fingerprint.Matches(completed.Fingerprint) || otherFingerprint.Matches(completed.Fingerprint) {
		t.Fatal("the record does not have the fingerprint of its request")
	}
	if completed.UpdatedAt.Before(completed.CreatedAt) {
		t.Fatalf("updated at %v, before it was created at %v", completed.UpdatedAt, completed.CreatedAt)
	}
}

func (t *suite) completeTwice() {
	claim := t.claim("a")
	t.complete(t.store, claim, response("first"))
	t.completeErr(t.store, claim, idempotency.ErrClaimLost)
	t.checkAnswer(t.get(t.store, "a", idempotency.Completed), response("first"))
}

func (t *suite) completeOther() {
	claim := t.claim("a")
	other := *claim
	other.ID = idempotency.NewClaimID()
	t.completeErr(t.store, &other, idempotency.ErrClaimLost)
	t.get(t.store, "a", idempotency.InProgress)
	t.complete(t.store, claim, response("done"))
}

func (t *suite) completeNoClaim() {
	claim := t.claim("a")
	t.completeErr(t.store, nil, idempotency.ErrNotClaimed)
	t.completeErr(t.store, &idempotency.Claim{Key: t.key("a"), TTL: longTTL}, idempotency.ErrNotClaimed)
	t.complete(t.store, claim, response("done"))
}

func (t *suite) completeNoTTL() {
	claim := t.claim("a")
	for _, ttl := range badTTLs {
		record, err := t.store.Complete(t.Context(), withTTL(claim, ttl), response("must not be recorded"))
		t.wantParamErr("Complete with a TTL of "+ttl.String(), err, "Claim.TTL")
		if record != nil {
			t.Fatal("a refused Complete returned a record")
		}
		t.get(t.store, "a", idempotency.InProgress)
	}
	t.complete(t.store, withTTL(claim, time.Hour), response("done"))
}

func (t *suite) mismatch() {
	t.complete(t.store, t.claim("a"), response("secret"))
	params := t.params("a")
	params.Fingerprint = otherFingerprint
	outcome, err := t.store.Begin(t.Context(), params)
	t.wantMismatch(outcome, err, "a")
	t.checkAnswer(t.get(t.store, "a", idempotency.Completed), response("secret"))
}

// wantMismatch checks the refusal of a recorded answer "secret".
func (t *suite) wantMismatch(outcome *idempotency.Outcome, err error, id string) {
	t.Helper()
	t.wantErr("Begin", err, idempotency.ErrFingerprintMismatch)
	if outcome != nil {
		t.Fatal("a mismatch came with an outcome; it must reveal nothing of the record")
	}
	if strings.Contains(err.Error(), "secret") {
		t.Fatal("the error of a mismatch has the recorded answer")
	}
	if keyErr, ok := errors.AsType[*idempotency.KeyError](err); !ok || keyErr.Key != t.key(id) {
		t.Fatalf("mismatch is %T; want a *KeyError of the key", err)
	}
}

func (t *suite) noFingerprint() {
	without := t.params("a")
	without.Fingerprint = idempotency.NoFingerprint
	t.complete(t.store, t.begin(t.store, without, idempotency.New).Claim, response("done"))
	t.begin(t.store, t.params("a"), idempotency.Completed)

	t.complete(t.store, t.claim("b"), response("done"))
	without.Key = t.key("b")
	t.begin(t.store, without, idempotency.Completed)
}

func (t *suite) twoScopes() {
	t.complete(t.store, t.claim("a"), response("of one"))
	params := t.params("a")
	params.Key.Scope += "/other"
	t.complete(t.store, t.begin(t.store, params, idempotency.New).Claim, response("of the other"))
	t.checkAnswer(t.get(t.store, "a", idempotency.Completed), response("of one"))
}

func (t *suite) longestKey() {
	params := t.params(strings.Repeat("i", idempotency.MaxKeyLength))
	params.Key.Scope += strings.Repeat("s", idempotency.MaxKeyLength-len(params.Key.Scope))
	t.complete(t.store, t.begin(t.store, params, idempotency.New).Claim, response("done"))
	if record := t.begin(t.store, params, idempotency.Completed).Record; record.Key != params.Key {
		t.Fatal("the record has another key")
	}
}

// bodiesToKeep are bodies that a store could mistake for another.
func bodiesToKeep() map[string][]byte {
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	return map[string][]byte{
		"every": every,
		"nil":   nil,
		"empty": {},
		"json":  []byte("{ \"b\": 1.0,\n \"a\": 1e2, \"a\": 2 }"),
		"large": []byte(strings.Repeat("0123456789abcdef", 1<<14)),
	}
}

func (t *suite) bodies() {
	for id, body := range bodiesToKeep() {
		want := &idempotency.Response{Type: idempotency.TypeBytes, Body: body}
		t.complete(t.store, t.claim(id), want)
		t.checkAnswer(t.get(t.store, id, idempotency.Completed), want)
		t.checkAnswer(t.begin(t.store, t.params(id), idempotency.Completed).Record, want)
	}
}

func (t *suite) types() {
	for _, name := range []string{"none", "bytes", "json:payments.Charge", "error:card_declined", "é", strings.Repeat("t", 255)} {
		want := &idempotency.Response{Type: name, Body: []byte("x")}
		t.complete(t.store, t.claim(name[:min(len(name), 200)]), want)
		t.checkAnswer(t.get(t.store, name[:min(len(name), 200)], idempotency.Completed), want)
	}
}

func (t *suite) copies() {
	given := response("done")
	completed := t.complete(t.store, t.claim("a"), given)
	given.Body[0] = 'x'
	completed.Response.Body[0] = 'y'
	replayed := t.begin(t.store, t.params("a"), idempotency.Completed).Record
	t.checkAnswer(replayed, response("done"))
	replayed.Response.Body[0] = 'z'
	t.checkAnswer(t.get(t.store, "a", idempotency.Completed), response("done"))
}

func (t *suite) expiry() {
	short := t.params("a")
	short.TTL = shortTTL
	t.complete(t.store, t.begin(t.store, short, idempotency.New).Claim, response("old"))
	t.untilExpired("a")

	// Another request may have the key now.
	params := t.params("a")
	params.Fingerprint = otherFingerprint
	claim := t.begin(t.store, params, idempotency.New).Claim
	if record := t.get(t.store, "a", idempotency.InProgress); record.Response != nil {
		t.Fatal("the new claim still has the expired answer")
	}
	t.complete(t.store, claim, response("new"))
	t.checkAnswer(t.begin(t.store, params, idempotency.Completed).Record, response("new"))
}

func (t *suite) ttl() {
	record := t.complete(t.store, t.claim("a"), response("done"))
	if ttl := record.ExpiresAt.Sub(record.UpdatedAt); (ttl - longTTL).Abs() > time.Second {
		t.Fatalf("the answer replays for %s after completion; want %s", ttl, longTTL)
	}
}

const racers = 16

func (t *suite) concurrentBegins() {
	outcomes := make([]*idempotency.Outcome, racers)
	errs := make([]error, racers)
	var group sync.WaitGroup
	for i := range racers {
		group.Go(func() { outcomes[i], errs[i] = t.store.Begin(t.Context(), t.params("a")) })
	}
	group.Wait()
	claims := 0
	for i := range racers {
		if errs[i] != nil {
			t.Fatalf("Begin: %v", errs[i])
		}
		t.checkOutcome(outcomes[i], outcomes[i].State)
		switch outcomes[i].State {
		case idempotency.New:
			claims++
		case idempotency.InProgress:
		default:
			t.Fatalf("outcome is %v, and nobody completed", outcomes[i].State)
		}
	}
	if claims != 1 {
		t.Fatalf("%d of %d callers claimed the key; want 1", claims, racers)
	}
}

func (t *suite) badParams() {
	for _, bad := range append(badParamsOfAll(),
		badParams{"zero lease", "Lease", func(p *idempotency.BeginParams) { p.Lease = 0 }},
		badParams{"negative lease", "Lease", func(p *idempotency.BeginParams) { p.Lease = -time.Second }}) {
		params := t.params("a")
		bad.spoil(params)
		_, err := t.store.Begin(t.Context(), params)
		t.wantParamErr("Begin with "+bad.name, err, bad.field)
	}
	_, err := t.store.Begin(t.Context(), nil)
	t.wantParamErr("Begin without parameters", err, "BeginParams")
	t.notFound(t.store, "a")
}

func (t *suite) badResponses() {
	claim := t.claim("a")
	for field, bad := range badResponsesOfAll() {
		_, err := t.store.Complete(t.Context(), claim, bad)
		t.wantParamErr("Complete", err, strings.TrimRight(field, " "))
	}
	t.complete(t.store, claim, response("done"))
}

// badResponsesOfAll is by the field at fault; spaces keep the entries apart.
func badResponsesOfAll() map[string]*idempotency.Response {
	return map[string]*idempotency.Response{
		"Response":         nil,
		"Response.Type":    {},
		"Response.Type ":   {Type: strings.Repeat("t", 256)},
		"Response.Type  ":  {Type: "a\x00b"},
		"Response.Type   ": {Type: "a\xffb"},
	}
}

func (t *suite) getInvalid() {
	for _, bad := range badParamsOfAll() {
		params := t.params("a")
		bad.spoil(params)
		record, err := t.store.Get(t.Context(), params.Key)
		if record != nil || !errors.Is(err, idempotency.ErrNotFound) && !errors.Is(err, idempotency.ErrInvalidParams) {
			t.Fatalf("Get with %s returned %v, %v; want ErrNotFound or a *ParamError", bad.name, record, err)
		}
	}
}

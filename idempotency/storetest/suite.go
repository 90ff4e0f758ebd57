package storetest

import (
	"crypto/rand"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/samecommit/samecommit/idempotency"
)

const (
	// shortLease and shortTTL end soon enough to wait for.
	shortLease = 5 * time.Millisecond
	shortTTL   = time.Millisecond
	// longLease and longTTL outlast every test.
	longLease = time.Hour
	longTTL   = 24 * time.Hour

	pollInterval = 2 * time.Millisecond
	pollDeadline = 30 * time.Second
)

var (
	fingerprint      = idempotency.FingerprintOf("POST /charges", `{"amount":100}`)
	otherFingerprint = idempotency.FingerprintOf("POST /charges", `{"amount":999}`)
)

// suite is one subtest: its store and a scope that nobody else uses.
type suite struct {
	*testing.T
	store idempotency.Store
	scope string
}

func newSuite(t *testing.T, store idempotency.Store) *suite {
	t.Helper()
	return &suite{T: t, store: store, scope: "storetest/" + rand.Text()}
}

func (t *suite) key(id string) idempotency.Key {
	return idempotency.Key{Scope: t.scope, ID: id}
}

func (t *suite) params(id string) *idempotency.BeginParams {
	return &idempotency.BeginParams{Key: t.key(id), Fingerprint: fingerprint, TTL: longTTL, Lease: longLease}
}

func response(body string) *idempotency.Response {
	return &idempotency.Response{Type: idempotency.TypeBytes, Body: []byte(body)}
}

// begin begins and checks the state of the outcome and what comes with it.
func (t *suite) begin(verbs idempotency.Verbs, params *idempotency.BeginParams, want idempotency.State) *idempotency.Outcome {
	t.Helper()
	outcome, err := verbs.Begin(t.Context(), params)
	if err != nil {
		t.Fatalf("Begin: %v; want %v", err, want)
	}
	t.checkOutcome(outcome, want)
	return outcome
}

func (t *suite) checkOutcome(outcome *idempotency.Outcome, want idempotency.State) {
	t.Helper()
	if outcome == nil || outcome.State != want {
		t.Fatalf("outcome is %+v; want %v", outcome, want)
	}
	if hasClaim := outcome.Claim != nil; hasClaim != (want == idempotency.New) {
		t.Fatalf("outcome %v has a claim: %t", want, hasClaim)
	}
	switch want {
	case idempotency.New:
		if outcome.Claim.ID == (idempotency.ClaimID{}) || outcome.Claim.Attempt < 1 {
			t.Fatalf("claim has id %v and attempt %d; want a random id and at least 1", outcome.Claim.ID, outcome.Claim.Attempt)
		}
	case idempotency.Completed:
		if outcome.Record == nil || outcome.Record.Response == nil {
			t.Fatalf("completed outcome has no answer: %+v", outcome.Record)
		}
	}
}

// claim claims a key under a lease.
func (t *suite) claim(id string) *idempotency.Claim {
	t.Helper()
	return t.begin(t.store, t.params(id), idempotency.New).Claim
}

func (t *suite) complete(verbs idempotency.Verbs, claim *idempotency.Claim, response *idempotency.Response) *idempotency.Record {
	t.Helper()
	record, err := verbs.Complete(t.Context(), claim, response)
	if err != nil {
		t.Fatalf("Complete: %v", err)
	}
	t.checkAnswer(record, response)
	return record
}

func (t *suite) completeErr(verbs idempotency.Verbs, claim *idempotency.Claim, want error) {
	t.Helper()
	record, err := verbs.Complete(t.Context(), claim, response("must not be recorded"))
	t.wantErr("Complete", err, want)
	if record != nil {
		t.Fatalf("a failed Complete returned a record")
	}
}

func (t *suite) checkAnswer(record *idempotency.Record, want *idempotency.Response) {
	t.Helper()
	if record == nil || record.State != idempotency.Completed || record.Response == nil {
		t.Fatalf("record is %+v; want a completed one", record)
	}
	got := record.Response
	if got.Type != want.Type {
		t.Fatalf("response type is %q; want %q", got.Type, want.Type)
	}
	if string(got.Body) != string(want.Body) || (got.Body == nil) != (want.Body == nil) {
		t.Fatalf("response body is %#v; want %#v", got.Body, want.Body)
	}
	if !record.ExpiresAt.After(record.UpdatedAt) {
		t.Fatalf("record expires at %v and was completed at %v", record.ExpiresAt, record.UpdatedAt)
	}
}

func (t *suite) get(verbs idempotency.Verbs, id string, want idempotency.State) *idempotency.Record {
	t.Helper()
	record, err := verbs.Get(t.Context(), t.key(id))
	if err != nil {
		t.Fatalf("Get: %v; want %v", err, want)
	}
	if record.State != want || record.Key != t.key(id) {
		t.Fatalf("Get returned %v of %v; want %v of %v", record.State, record.Key, want, t.key(id))
	}
	return record
}

func (t *suite) notFound(verbs idempotency.Verbs, id string) {
	t.Helper()
	record, err := verbs.Get(t.Context(), t.key(id))
	t.wantErr("Get", err, idempotency.ErrNotFound)
	if record != nil {
		t.Fatal("Get returned a record with ErrNotFound")
	}
}

// wantErr checks what an error is, and that it does not reveal a key.
func (t *suite) wantErr(call string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("%s returned %v; want an error that is %q", call, err, want)
	}
	if strings.Contains(err.Error(), t.scope) {
		t.Fatalf("the error of %s has the text of the key", call)
	}
}

func (t *suite) wantParamErr(call string, err error, field string) {
	t.Helper()
	param, ok := errors.AsType[*idempotency.ParamError](err)
	if !ok || !errors.Is(err, idempotency.ErrInvalidParams) {
		t.Fatalf("%s returned %v; want a *ParamError of %s", call, err, field)
	}
	if field != "" && param.Field != field {
		t.Fatalf("%s refused %q; want %q", call, param.Field, field)
	}
}

// until polls the condition.
func (t *suite) until(what string, condition func() bool) {
	t.Helper()
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	deadline := time.After(pollDeadline)
	for !condition() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("gave up after %s waiting until %s", pollDeadline, what)
		}
	}
}

// untilNew takes over a key whose lease ends.
func (t *suite) untilNew(params *idempotency.BeginParams) *idempotency.Claim {
	t.Helper()
	var outcome *idempotency.Outcome
	t.until("the lease has ended", func() bool {
		var err error
		if outcome, err = t.store.Begin(t.Context(), params); err != nil {
			t.Fatalf("Begin: %v", err)
		}
		return outcome.State == idempotency.New
	})
	return outcome.Claim
}

// untilLeasesEnd returns once every shortLease granted so far has ended, by the
// store's own clock: one that was granted later has.
func (t *suite) untilLeasesEnd() {
	t.Helper()
	probe := t.params("probe-" + rand.Text())
	probe.Lease = shortLease
	t.begin(t.store, probe, idempotency.New)
	probe.Lease = longLease
	t.untilNew(probe)
}

func (t *suite) untilExpired(id string) {
	t.Helper()
	t.until("the answer has expired", func() bool {
		_, err := t.store.Get(t.Context(), t.key(id))
		return errors.Is(err, idempotency.ErrNotFound)
	})
}

// badParams are parameters that every Begin refuses, each by the field at fault.
type badParams struct {
	name, field string
	spoil       func(*idempotency.BeginParams)
}

func badParamsOfAll() []badParams {
	bad := []badParams{
		{"missing fingerprint", "Fingerprint", func(p *idempotency.BeginParams) { p.Fingerprint = idempotency.Fingerprint{} }},
		{"zero TTL", "TTL", func(p *idempotency.BeginParams) { p.TTL = 0 }},
		{"negative TTL", "TTL", func(p *idempotency.BeginParams) { p.TTL = -time.Second }},
		{"a TTL below a microsecond", "TTL", func(p *idempotency.BeginParams) { p.TTL = time.Microsecond - 1 }},
	}
	for name, text := range map[string]string{
		"empty":         "",
		"over-long":     strings.Repeat("x", idempotency.MaxKeyLength+1),
		"NUL in":        "a\x00b",
		"invalid UTF-8": "a\xffb",
	} {
		bad = append(bad,
			badParams{name + " scope", "Key.Scope", func(p *idempotency.BeginParams) { p.Key.Scope = text }},
			badParams{name + " id", "Key.ID", func(p *idempotency.BeginParams) { p.Key.ID = text }})
	}
	return bad
}

// badTTLs would make of a completion an answer that never replays.
var badTTLs = []time.Duration{0, -time.Hour, time.Microsecond - 1}

// withTTL returns the claim as somebody might put it together who kept only its
// key and id.
func withTTL(claim *idempotency.Claim, ttl time.Duration) *idempotency.Claim {
	rebuilt := *claim
	rebuilt.TTL = ttl
	return &rebuilt
}

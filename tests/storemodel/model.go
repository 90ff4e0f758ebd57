// Package storemodel compares a store, request by request, with the smallest
// model of its contract. The requests are drawn by rapid, which also finds the
// shortest list of them that shows a difference.
package storemodel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"pgregory.net/rapid"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/storetest"
)

// Harness is what Check needs to know about a store.
type Harness[TTx any] struct {
	storetest.Harness[TTx]
	// Scope is that of every key. No other key is in the store.
	Scope string
	// Pass lets time pass for the keys of the scope. It is called while no
	// transaction has written to them.
	Pass func(ctx context.Context, duration time.Duration) error
}

// entry is what the model knows of a key that is not free.
type entry struct {
	state       idempotency.State
	claim       idempotency.ClaimID
	attempt     int
	fingerprint idempotency.Fingerprint
	leased      bool
	until       time.Duration // the end of the lease
	suspended   bool
	steps       []*idempotency.StepRecord
	expires     time.Duration
	response    *idempotency.Response
}

// view is what one reader sees: what is committed, or a transaction's own writes
// over it.
type view map[idempotency.Key]entry

// openTx is a transaction that the check has opened.
type openTx[TTx any] struct {
	tx       TTx
	commit   func(context.Context) error
	rollback func(context.Context) error
	writes   view
	effects  []string
	failed   bool
}

// machine is a store and its model.
type machine[TTx any] struct {
	h         Harness[TTx]
	now       time.Duration
	committed view
	txs       []*openTx[TTx] // nil where none is open
	claims    []*idempotency.Claim
	effects   map[string]int // by name, of all that were ever tried
}

const transactions = 2

// Check runs one random list of requests.
func Check[TTx any](t *rapid.T, harness Harness[TTx]) {
	m := &machine[TTx]{
		h: harness, committed: make(view), txs: make([]*openTx[TTx], transactions), effects: make(map[string]int),
	}
	defer func() {
		for _, tx := range m.txs {
			if tx != nil {
				_ = tx.rollback(context.WithoutCancel(t.Context()))
			}
		}
	}()
	t.Repeat(map[string]func(*rapid.T){
		"":                    m.compare,
		"begin a lease":       m.beginLease,
		"extend":              m.extend,
		"release":             m.release,
		"suspend":             m.suspend,
		"add step":            m.addStep,
		"add step in tx":      m.addStepTx,
		"complete":            m.complete,
		"run":                 m.run,
		"run held":            m.runHeld,
		"list":                m.list,
		"sweep":               m.sweep,
		"pass":                m.pass,
		"begin in tx":         m.beginTx,
		"complete in tx":      m.completeTx,
		"effect in tx":        m.effectTx,
		"commit or roll back": m.end,
	})
	m.compareEffects(t)
}

func (m *machine[TTx]) key(t *rapid.T) idempotency.Key {
	return idempotency.Key{Scope: m.h.Scope, ID: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "key")}
}

func fingerprint(t *rapid.T) idempotency.Fingerprint {
	name := rapid.SampledFrom([]string{"one", "one", "other", "none"}).Draw(t, "fingerprint")
	if name == "none" {
		return idempotency.NoFingerprint
	}
	return idempotency.FingerprintOf(name)
}

func response(t *rapid.T) *idempotency.Response {
	body := rapid.SliceOfN(rapid.Byte(), -1, 4).Draw(t, "body")
	if rapid.Bool().Draw(t, "nil") {
		body = nil
	}
	return &idempotency.Response{Type: rapid.SampledFrom([]string{"bytes", "json:T", "error:e"}).Draw(t, "type"), Body: body}
}

func hours(t *rapid.T, name string) time.Duration {
	return time.Duration(rapid.IntRange(1, 3).Draw(t, name)) * time.Hour
}

func (m *machine[TTx]) params(t *rapid.T, leased bool) *idempotency.BeginParams {
	params := &idempotency.BeginParams{Key: m.key(t), Fingerprint: fingerprint(t), TTL: hours(t, "ttl")}
	if leased {
		params.Lease = hours(t, "lease")
		params.MaxAttempts = rapid.SampledFrom([]int{0, 0, 1, 2, 3}).Draw(t, "max attempts")
	}
	return params
}

// find returns what tx sees of the key, and whether it wrote that. A nil tx sees
// what is committed.
func (m *machine[TTx]) find(tx *openTx[TTx], key idempotency.Key) (found entry, ok, own bool) {
	if tx != nil {
		if found, ok = tx.writes[key]; ok {
			return found, true, true
		}
	}
	found, ok = m.committed[key]
	return found, ok, false
}

// heldElsewhere reports whether another transaction than tx has written to the
// key.
func (m *machine[TTx]) heldElsewhere(tx *openTx[TTx], key idempotency.Key) bool {
	for _, other := range m.txs {
		if other != nil && other != tx {
			if _, ok := other.writes[key]; ok {
				return true
			}
		}
	}
	return false
}

// wouldBlock reports whether a store may make a request wait for another
// transaction, which a single goroutine must not ask for: it would change the
// very row which that transaction changes. What a transaction that has failed
// still holds is up to the store.
func (m *machine[TTx]) wouldBlock(tx *openTx[TTx], key idempotency.Key, claim idempotency.ClaimID) bool {
	for _, other := range m.txs {
		if other == nil || other == tx {
			continue
		}
		if _, wrote := other.writes[key]; !wrote {
			continue
		}
		row, ok := m.committed[key]
		if other.failed || ok && (row.claim == claim || claim == idempotency.ClaimID{} && row.state == idempotency.InProgress && row.until <= m.now) {
			return true
		}
	}
	return false
}

func (m *machine[TTx]) put(tx *openTx[TTx], key idempotency.Key, written entry) {
	if tx == nil {
		m.committed[key] = written
	} else {
		tx.writes[key] = written
	}
}

// judgeBegin compares the answer to Begin, or Run, with the model and returns
// whether the key was free.
func (m *machine[TTx]) judgeBegin(t *rapid.T, tx *openTx[TTx], params *idempotency.BeginParams, outcome *idempotency.Outcome, err error) (free bool) {
	seen, ok, own := m.find(tx, params.Key)
	live := ok && seen.state == idempotency.Completed && seen.expires > m.now
	leased := ok && seen.state == idempotency.InProgress && seen.leased
	var want idempotency.State
	var wantErr error
	switch {
	case (live || leased) && !params.Fingerprint.Matches(seen.fingerprint):
		wantErr = idempotency.ErrFingerprintMismatch
	case live:
		want = idempotency.Completed
	case leased && seen.until > m.now:
		want = idempotency.InProgress
	case leased && params.Lease == 0 && (seen.suspended || len(seen.steps) > 0):
		wantErr = idempotency.ErrStepChanged
	case leased && params.MaxAttempts > 0 && seen.nextAttempt() > params.MaxAttempts:
		wantErr = idempotency.ErrNeedsAttention
	case own && seen.state == idempotency.InProgress:
		wantErr = idempotency.ErrNested
	case m.heldElsewhere(tx, params.Key):
		want = idempotency.InProgress
	default:
		return true
	}
	if wantErr != nil {
		if !errors.Is(err, wantErr) || outcome != nil {
			t.Fatalf("%+v, %v; want %q and nothing else", outcome, err, wantErr)
		}
		return false
	}
	if err != nil || outcome.State != want || outcome.Claim != nil {
		t.Fatalf("%+v, %v; want %s", outcome, err, want)
	}
	if want == idempotency.Completed {
		sameRecord(t, outcome.Record, seen)
	}
	return false
}

// claimed is what a Begin that found the key free changes.
func (m *machine[TTx]) claimed(t *rapid.T, tx *openTx[TTx], params *idempotency.BeginParams, outcome *idempotency.Outcome, err error) {
	seen, ok, _ := m.find(tx, params.Key)
	if err != nil || outcome.State != idempotency.New || outcome.Claim == nil {
		t.Fatalf("%+v, %v; want a claim of a free key", outcome, err)
	}
	claim := outcome.Claim
	attempt, resumed := 1, ok && seen.state == idempotency.InProgress
	var steps []*idempotency.StepRecord
	if resumed {
		attempt = seen.nextAttempt()
	}
	if resumed && params.Lease > 0 {
		steps = seen.steps
	}
	if claim.Resumed != resumed {
		t.Fatalf("claim is resumed: %t; want %t", claim.Resumed, resumed)
	}
	sameSteps(t, claim.Steps, steps)
	for _, other := range m.claims {
		if other.ID == claim.ID {
			t.Fatalf("claim %s was handed out twice", claim.ID)
		}
	}
	if claim.Key != params.Key || claim.Attempt != attempt || claim.TTL != params.TTL || claim.LockedUntil.IsZero() != (params.Lease == 0) {
		t.Fatalf("claim %+v; want attempt %d for %+v", claim, attempt, params)
	}
	m.claims = append(m.claims, claim)
	asked := params.Fingerprint
	if resumed && asked == idempotency.NoFingerprint && params.Lease > 0 {
		asked = seen.fingerprint
	}
	m.put(tx, params.Key, entry{
		state: idempotency.InProgress, claim: claim.ID, attempt: attempt, fingerprint: asked,
		leased: params.Lease > 0, until: m.now + params.Lease, steps: steps,
	})
}

func (m *machine[TTx]) beginLease(t *rapid.T) {
	params := m.params(t, true)
	if m.wouldBlock(nil, params.Key, idempotency.ClaimID{}) {
		t.Skip("it would wait")
	}
	outcome, err := m.h.Store.Begin(t.Context(), params)
	if m.judgeBegin(t, nil, params, outcome, err) {
		m.claimed(t, nil, params, outcome, err)
	}
}

// claim draws one of all claims ever made, mostly of the newest.
func (m *machine[TTx]) claim(t *rapid.T, tx *openTx[TTx]) *idempotency.Claim {
	if len(m.claims) == 0 {
		t.Skip("no claim yet")
	}
	back := min(rapid.SampledFrom([]int{0, 0, 0, 1, 2, 5}).Draw(t, "claim"), len(m.claims)-1)
	claim := *m.claims[len(m.claims)-1-back]
	if rapid.IntRange(0, 9).Draw(t, "forged") == 0 {
		claim.ID = idempotency.NewClaimID()
	}
	if m.wouldBlock(tx, claim.Key, claim.ID) {
		t.Skip("it would wait")
	}
	return &claim
}

// holds returns what the claim holds, if it does.
func (m *machine[TTx]) holds(tx *openTx[TTx], claim *idempotency.Claim) (entry, bool) {
	seen, ok, _ := m.find(tx, claim.Key)
	return seen, ok && seen.state == idempotency.InProgress && seen.claim == claim.ID && !m.heldElsewhere(tx, claim.Key)
}

func (m *machine[TTx]) judge(t *rapid.T, tx *openTx[TTx], claim *idempotency.Claim, err error) (entry, bool) {
	seen, ok := m.holds(tx, claim)
	if ok && err != nil || !ok && !errors.Is(err, idempotency.ErrClaimLost) {
		t.Fatalf("claim is held: %t, and the answer is %v", ok, err)
	}
	return seen, ok
}

func (m *machine[TTx]) extend(t *rapid.T) {
	claim, lease := m.claim(t, nil), hours(t, "lease")
	extended, err := m.h.Store.Extend(t.Context(), claim, lease)
	if seen, ok := m.holds(nil, claim); ok && seen.suspended {
		if !errors.Is(err, idempotency.ErrClaimLost) {
			t.Fatalf("%v; want ErrClaimLost of a suspended claim", err)
		}
		return
	}
	if seen, ok := m.judge(t, nil, claim, err); ok {
		if extended.ID != claim.ID || extended.Attempt != claim.Attempt || extended.Deadline.After(extended.LockedUntil.Add(time.Hour)) {
			t.Fatalf("%+v was extended to %+v", claim, extended)
		}
		seen.until = m.now + lease
		m.put(nil, claim.Key, seen)
	}
}

func (m *machine[TTx]) release(t *rapid.T) {
	claim := m.claim(t, nil)
	if _, ok := m.judge(t, nil, claim, m.h.Store.Release(t.Context(), claim)); ok {
		delete(m.committed, claim.Key)
	}
}

func (m *machine[TTx]) suspend(t *rapid.T) {
	claim := m.claim(t, nil)
	if seen, ok := m.judge(t, nil, claim, m.h.Store.Suspend(t.Context(), claim)); ok {
		seen.until, seen.suspended = m.now, true
		m.put(nil, claim.Key, seen)
	}
}

func (m *machine[TTx]) addStep(t *rapid.T) {
	m.stepAdded(t, nil, func(claim *idempotency.Claim, step *idempotency.StepRecord) error {
		return m.h.Store.AddStep(t.Context(), claim, step)
	})
}

func (m *machine[TTx]) addStepTx(t *rapid.T) {
	tx := m.tx(t)
	m.stepAdded(t, tx, func(claim *idempotency.Claim, step *idempotency.StepRecord) error {
		err := m.h.Store.WithTx(tx.tx).AddStep(t.Context(), claim, step)
		tx.failed = err != nil
		return err
	})
}

// stepAdded compares the answer to AddStep with the model.
func (m *machine[TTx]) stepAdded(t *rapid.T, tx *openTx[TTx], add func(*idempotency.Claim, *idempotency.StepRecord) error) {
	claim := m.claim(t, tx)
	step := &idempotency.StepRecord{
		Name:      rapid.SampledFrom([]string{"charge", "mail", `"quoted" <é>`}).Draw(t, "step"),
		Arguments: fingerprint(t), Response: response(t),
	}
	err := add(claim, step)
	if claim.LockedUntil.IsZero() {
		if !errors.Is(err, idempotency.ErrInvalidParams) {
			t.Fatalf("%v; want a step of a claim without a lease to be refused", err)
		}
		return
	}
	seen, ok := m.judge(t, tx, claim, err)
	if !ok {
		return
	}
	if !slices.ContainsFunc(seen.steps, func(s *idempotency.StepRecord) bool { return s.Name == step.Name }) {
		kept := *step
		kept.Response = clone(step.Response)
		seen.steps = append(slices.Clone(seen.steps), &kept)
	}
	spoil(step.Response.Body)
	m.put(tx, claim.Key, seen)
}

// nextAttempt is the number of the claim that takes over.
func (e *entry) nextAttempt() int {
	if e.suspended {
		return e.attempt
	}
	return e.attempt + 1
}

// loseTTL makes of a claim, now and then, one that no store completes.
func loseTTL(t *rapid.T, claim *idempotency.Claim) bool {
	lost := rapid.IntRange(0, 9).Draw(t, "without a TTL") == 0
	if lost {
		claim.TTL = 0
	}
	return lost
}

func wantRefused(t *rapid.T, record *idempotency.Record, err error) {
	if record != nil || !errors.Is(err, idempotency.ErrInvalidParams) {
		t.Fatalf("%+v, %v; want a claim without a TTL to be refused", record, err)
	}
}

// completed is what a completion changes.
func (m *machine[TTx]) completed(t *rapid.T, tx *openTx[TTx], seen entry, claim *idempotency.Claim, response *idempotency.Response, record *idempotency.Record) {
	seen.state, seen.response, seen.expires, seen.until = idempotency.Completed, clone(response), m.now+claim.TTL, 0
	seen.leased, seen.suspended, seen.steps = false, false, nil
	sameRecord(t, record, seen)
	spoil(response.Body)
	m.put(tx, claim.Key, seen)
}

func (m *machine[TTx]) complete(t *rapid.T) {
	claim, response := m.claim(t, nil), response(t)
	refused := loseTTL(t, claim)
	record, err := m.h.Store.Complete(t.Context(), claim, response)
	if refused {
		wantRefused(t, record, err)
		return
	}
	if seen, ok := m.judge(t, nil, claim, err); ok {
		m.completed(t, nil, seen, claim, response, record)
	}
}

var errFails = errors.New("the function fails")

// work is a function for Run or RunHeld, with an effect.
type work[TTx any] struct {
	m           *machine[TTx]
	name        string
	response    *idempotency.Response
	undo, fails bool
	ran         bool
}

func (m *machine[TTx]) drawWork(t *rapid.T, response *idempotency.Response) *work[TTx] {
	return &work[TTx]{
		m: m, name: m.newEffect(), response: response,
		undo: rapid.Bool().Draw(t, "undo writes"), fails: rapid.IntRange(0, 3).Draw(t, "fails") == 0,
	}
}

func (w *work[TTx]) do(ctx context.Context, tx TTx) (idempotency.Answer, error) {
	w.ran = true
	if err := w.m.h.Effect(ctx, tx, w.name); err != nil {
		return idempotency.Answer{}, err
	}
	if w.fails {
		return idempotency.Answer{}, errFails
	}
	return idempotency.Answer{Response: w.response, UndoWrites: w.undo}, nil
}

func (w *work[TTx]) committed() {
	if !w.undo {
		w.m.effects[w.name] = 1
	}
}

func (m *machine[TTx]) runHeld(t *rapid.T) {
	claim, response := m.claim(t, nil), response(t)
	if m.heldElsewhere(nil, claim.Key) || m.failedHold() {
		t.Skip("it would wait")
	}
	refused := loseTTL(t, claim) || claim.LockedUntil.IsZero()
	work := m.drawWork(t, response)
	record, err := m.h.Store.RunHeld(t.Context(), claim, work.do)
	seen, ok := m.holds(nil, claim)
	if want := ok && !refused; work.ran != want {
		t.Fatalf("the function ran: %t; want %t", work.ran, want)
	}
	switch {
	case refused:
		wantRefused(t, record, err)
	case !ok && !errors.Is(err, idempotency.ErrClaimLost), ok && work.fails != errors.Is(err, errFails), ok && !work.fails && err != nil:
		t.Fatalf("the claim is held: %t, its function fails: %t, and the answer is %v", ok, work.fails, err)
	case err == nil:
		work.committed()
		m.completed(t, nil, seen, claim, response, record)
	}
}

func (m *machine[TTx]) list(t *rapid.T) {
	lister, ok := m.h.Store.(idempotency.Lister)
	if !ok {
		t.Fatalf("%T is no Lister", m.h.Store)
	}
	records, err := lister.ListAbandoned(t.Context(), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	want := 0
	for _, row := range m.committed {
		if row.state == idempotency.InProgress && row.leased && row.until <= m.now {
			want++
		}
	}
	if len(records) != want {
		t.Fatalf("%d listed; want %d", len(records), want)
	}
	for i, record := range records {
		sameRecord(t, record, m.committed[record.Key])
		if i > 0 && record.CreatedAt.Before(records[i-1].CreatedAt) {
			t.Fatal("the younger lease comes first")
		}
	}
}

func (m *machine[TTx]) run(t *rapid.T) {
	params, response := m.params(t, false), response(t)
	if m.wouldBlock(nil, params.Key, idempotency.ClaimID{}) {
		t.Skip("it would wait")
	}
	work := m.drawWork(t, response)
	outcome, err := m.h.Store.Run(t.Context(), params, work.do)
	executed := outcome != nil && outcome.Executed
	free := m.judgeBegin(t, nil, params, outcome, err)
	if work.ran != free || executed != (free && !work.fails) {
		t.Fatalf("the key was free: %t; the function ran: %t, and was committed: %t", free, work.ran, executed)
	}
	switch {
	case free && work.fails && !errors.Is(err, errFails):
		t.Fatalf("%v; want the function's own error", err)
	case executed:
		if err != nil || outcome.State != idempotency.Completed {
			t.Fatalf("%+v, %v; want the answer", outcome, err)
		}
		work.committed()
		attempt := 1
		if seen, ok := m.committed[params.Key]; ok && seen.state == idempotency.InProgress {
			attempt = seen.nextAttempt()
		}
		done := entry{
			state: idempotency.Completed, claim: outcome.Record.ClaimID, attempt: attempt, fingerprint: params.Fingerprint,
			expires: m.now + params.TTL, response: clone(response),
		}
		sameRecord(t, outcome.Record, done)
		spoil(response.Body)
		m.committed[params.Key] = done
	}
}

func (m *machine[TTx]) sweep(t *rapid.T) {
	if m.failedHold() {
		t.Skip("what a failed transaction still holds is up to the store")
	}
	want := 0
	for key, row := range m.committed {
		if row.state == idempotency.Completed && row.expires <= m.now && !m.heldElsewhere(nil, key) {
			want++
			delete(m.committed, key)
		}
	}
	sweeper, ok := m.h.Store.(idempotency.Sweeper)
	if !ok {
		t.Fatalf("%T is no Sweeper", m.h.Store)
	}
	deleted, err := sweeper.DeleteExpired(t.Context(), 0)
	if err != nil || deleted != want {
		t.Fatalf("%d deleted, %v; want %d", deleted, err, want)
	}
}

func (m *machine[TTx]) failedHold() bool {
	for _, tx := range m.txs {
		if tx != nil && tx.failed {
			return true
		}
	}
	return false
}

func (m *machine[TTx]) pass(t *rapid.T) {
	for _, tx := range m.txs {
		if tx != nil && len(tx.writes) > 0 {
			t.Skip("a transaction is at work")
		}
	}
	duration := time.Duration(rapid.IntRange(1, 4).Draw(t, "half hours")) * 30 * time.Minute
	if err := m.h.Pass(t.Context(), duration); err != nil {
		t.Fatal(err)
	}
	m.now += duration
}

// tx draws a transaction that has not failed, and opens it if it must.
func (m *machine[TTx]) tx(t *rapid.T) *openTx[TTx] {
	i := rapid.IntRange(0, transactions-1).Draw(t, "tx")
	if m.txs[i] == nil {
		tx, commit, rollback, err := m.h.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		m.txs[i] = &openTx[TTx]{tx: tx, commit: commit, rollback: rollback, writes: make(view)}
	}
	if m.txs[i].failed {
		t.Skip("it has failed")
	}
	return m.txs[i]
}

func (m *machine[TTx]) beginTx(t *rapid.T) {
	tx, params := m.tx(t), m.params(t, false)
	if m.wouldBlock(tx, params.Key, idempotency.ClaimID{}) {
		t.Skip("it would wait")
	}
	outcome, err := m.h.Store.WithTx(tx.tx).Begin(t.Context(), params)
	if m.judgeBegin(t, tx, params, outcome, err) {
		m.claimed(t, tx, params, outcome, err)
	}
}

func (m *machine[TTx]) completeTx(t *rapid.T) {
	tx := m.tx(t)
	claim, response := m.claim(t, tx), response(t)
	refused := loseTTL(t, claim)
	record, err := m.h.Store.WithTx(tx.tx).Complete(t.Context(), claim, response)
	if refused {
		wantRefused(t, record, err)
		tx.failed = true
		return
	}
	if seen, ok := m.judge(t, tx, claim, err); ok {
		m.completed(t, tx, seen, claim, response, record)
	} else {
		tx.failed = true
	}
}

func (m *machine[TTx]) newEffect() string {
	name := fmt.Sprintf("%s %d", m.h.Scope, len(m.effects))
	m.effects[name] = 0
	return name
}

func (m *machine[TTx]) effectTx(t *rapid.T) {
	tx, name := m.tx(t), m.newEffect()
	if err := m.h.Effect(t.Context(), tx.tx, name); err != nil {
		t.Fatal(err)
	}
	tx.effects = append(tx.effects, name)
}

func (m *machine[TTx]) end(t *rapid.T) {
	i := rapid.IntRange(0, transactions-1).Draw(t, "tx")
	tx := m.txs[i]
	if tx == nil {
		t.Skip("none is open")
	}
	m.txs[i] = nil
	if rapid.Bool().Draw(t, "roll back") {
		if err := tx.rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		return
	}
	finished := !tx.failed
	for _, written := range tx.writes {
		finished = finished && (written.state == idempotency.Completed || written.leased)
	}
	if err := tx.commit(t.Context()); (err == nil) != finished {
		t.Fatalf("commit of a transaction that may commit (%t): %v", finished, err)
	}
	if !finished {
		return
	}
	for key, written := range tx.writes {
		m.committed[key] = written
	}
	for _, name := range tx.effects {
		m.effects[name]++
	}
}

// compare looks at every key as everybody may.
func (m *machine[TTx]) compare(t *rapid.T) {
	for _, id := range []string{"a", "b"} {
		key := idempotency.Key{Scope: m.h.Scope, ID: id}
		m.compareKey(t, m.h.Store, nil, key)
		for _, tx := range m.txs {
			if tx != nil && !tx.failed {
				m.compareKey(t, m.h.Store.WithTx(tx.tx), tx, key)
			}
		}
	}
}

// compareEffects counts every effect that was ever tried.
func (m *machine[TTx]) compareEffects(t *rapid.T) {
	for name, want := range m.effects {
		got, err := m.h.Effects(t.Context(), name)
		if err != nil || got != want {
			t.Fatalf("effect %q is there %d times, %v; want %d", name, got, err, want)
		}
	}
}

func (m *machine[TTx]) compareKey(t *rapid.T, verbs idempotency.Verbs, tx *openTx[TTx], key idempotency.Key) {
	want, ok, _ := m.find(tx, key)
	record, err := verbs.Get(t.Context(), key)
	if !ok || want.state == idempotency.Completed && want.expires <= m.now {
		if !errors.Is(err, idempotency.ErrNotFound) || record != nil {
			t.Fatalf("key %q: %+v, %v; want ErrNotFound", key.ID, record, err)
		}
		return
	}
	if err != nil {
		t.Fatalf("key %q: %v; want a record", key.ID, err)
	}
	sameRecord(t, record, want)
}

func clone(response *idempotency.Response) *idempotency.Response {
	return &idempotency.Response{Type: response.Type, Body: bytes.Clone(response.Body)}
}

// spoil changes what is the caller's own and must not reach the record.
func spoil(body []byte) {
	for i := range body {
		body[i]++
	}
}

// sameRecord compares a record with the model, and spoils it: it is the
// caller's own.
func sameRecord(t *rapid.T, record *idempotency.Record, want entry) {
	if record == nil || record.State != want.state || record.ClaimID != want.claim || record.Attempt != want.attempt ||
		!bytes.Equal(record.Fingerprint.Bytes(), want.fingerprint.Bytes()) {
		t.Fatalf("record %+v; want %+v", record, want)
	}
	sameSteps(t, record.Steps, want.steps)
	if record.State == idempotency.InProgress && record.Suspended() != want.suspended {
		t.Fatalf("record is suspended: %t; want %t", record.Suspended(), want.suspended)
	}
	if want.response == nil {
		if record.Response != nil || !record.ExpiresAt.IsZero() {
			t.Fatalf("record in progress with an answer: %+v", record)
		}
		return
	}
	body := record.Response.Body
	if record.Response.Type != want.response.Type || !bytes.Equal(body, want.response.Body) || (body == nil) != (want.response.Body == nil) {
		t.Fatalf("response %s %#v; want %s %#v", record.Response.Type, body, want.response.Type, want.response.Body)
	}
	spoil(body)
	if record.ExpiresAt.IsZero() || !record.LockedUntil.IsZero() {
		t.Fatalf("completed record expires at %s and is locked until %s", record.ExpiresAt, record.LockedUntil)
	}
}

// sameSteps compares steps with the model, and spoils them: they are the caller's
// own.
func sameSteps(t *rapid.T, steps []idempotency.StepRecord, want []*idempotency.StepRecord) {
	if len(steps) != len(want) {
		t.Fatalf("%d steps; want %d", len(steps), len(want))
	}
	for i, step := range steps {
		body, wanted := step.Response.Body, want[i].Response.Body
		if step.Name != want[i].Name || step.Arguments != want[i].Arguments || step.Response.Type != want[i].Response.Type ||
			!bytes.Equal(body, wanted) || (body == nil) != (wanted == nil) {
			t.Fatalf("step %q %#v; want %q %#v", step.Name, body, want[i].Name, wanted)
		}
		spoil(body)
	}
}

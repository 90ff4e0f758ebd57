package memstore

import (
	"bytes"
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/samecommit/samecommit/idempotency"
)

// ledger is what all transactions of a store share. It knows nothing of the
// caller's transaction type. Its methods are called with mu held.
type ledger struct {
	mu sync.Mutex
	// records are the committed ones. A record is replaced and never changed in
	// place, so that an undo is a matter of keeping the old map.
	records map[idempotency.Key]*idempotency.Record
	// holders are the open transactions that have written to a key.
	holders map[idempotency.Key]*work
}

// find returns the record as w sees it, nil if there is none, and whether w
// wrote it. A nil w sees what is committed.
func (l *ledger) find(w *work, key idempotency.Key) (record *idempotency.Record, own bool) {
	if w != nil {
		if record, own = w.writes[key]; own {
			return record, true
		}
	}
	return l.records[key], false
}

func (l *ledger) get(w *work, key idempotency.Key) (*idempotency.Record, error) {
	record, _ := l.find(w, key)
	if record == nil || record.Expired(time.Now()) {
		return nil, &idempotency.KeyError{Key: key, Err: idempotency.ErrNotFound}
	}
	return record.Clone(), nil
}

// begin claims the key for w, or under a lease where w is nil.
func (l *ledger) begin(w *work, params *idempotency.BeginParams) (*idempotency.Outcome, error) {
	key, now := params.Key, time.Now()
	record, own := l.find(w, key)
	holder := l.holders[key]
	if w != nil && w.held == key {
		return nil, &idempotency.KeyError{Key: key, Err: idempotency.ErrNested}
	}
	outcome, err := record.Judge(params, now)
	switch {
	case err != nil:
		return nil, err
	case outcome != nil:
		outcome.Record = outcome.Record.Clone()
		return outcome, nil
	case own && record.State == idempotency.InProgress:
		return nil, &idempotency.KeyError{Key: key, Err: idempotency.ErrNested}
	case holder != nil && holder != w:
		return &idempotency.Outcome{State: idempotency.InProgress}, nil
	}

	claimed := &idempotency.Record{
		Key: key, State: idempotency.InProgress, ClaimID: params.ClaimID, Attempt: record.NextAttempt(params.ClaimID),
		Fingerprint: record.NextFingerprint(params), CreatedAt: now, UpdatedAt: now,
	}
	if claimed.ClaimID == (idempotency.ClaimID{}) {
		claimed.ClaimID = idempotency.NewClaimID()
	}
	resumed := record != nil && record.State == idempotency.InProgress
	if w == nil {
		claimed.LockedUntil = now.Add(params.Lease)
		if resumed {
			claimed.Steps = record.Steps
		}
	}
	l.put(w, claimed)
	return &idempotency.Outcome{State: idempotency.New, Claim: &idempotency.Claim{
		Key: key, ID: claimed.ClaimID, Attempt: claimed.Attempt, TTL: params.TTL, LockedUntil: claimed.LockedUntil,
		Resumed: resumed, Steps: claimed.Clone().Steps,
	}}, nil
}

// held returns the record in progress that the claim holds.
func (l *ledger) held(w *work, claim *idempotency.Claim) (*idempotency.Record, error) {
	if err := claim.Validate(); err != nil {
		return nil, err
	}
	record, _ := l.find(w, claim.Key)
	holder := l.holders[claim.Key]
	if record == nil || record.State != idempotency.InProgress || record.ClaimID != claim.ID || holder != nil && holder != w {
		return nil, &idempotency.KeyError{Key: claim.Key, Err: idempotency.ErrClaimLost}
	}
	return record, nil
}

// complete returns the record itself, for the caller to clone.
func (l *ledger) complete(w *work, claim *idempotency.Claim, response *idempotency.Response) (*idempotency.Record, error) {
	if err := claim.ValidateComplete(); err != nil {
		return nil, err
	}
	record, err := l.held(w, claim)
	if err != nil {
		return nil, err
	}
	completed := *record
	completed.State = idempotency.Completed
	completed.Response = &idempotency.Response{Type: response.Type, Body: bytes.Clone(response.Body)}
	completed.UpdatedAt = time.Now()
	completed.ExpiresAt = completed.UpdatedAt.Add(claim.TTL)
	completed.LockedUntil, completed.Steps = time.Time{}, nil
	l.put(w, &completed)
	return &completed, nil
}

func (l *ledger) addStep(w *work, claim *idempotency.Claim, step *idempotency.StepRecord) error {
	record, err := l.held(w, claim)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(record.Steps, func(s idempotency.StepRecord) bool { return s.Name == step.Name }) {
		return nil
	}
	suspended, now := record.Suspended(), time.Now()
	// A copy: whoever has the record keeps the steps as they were.
	added := *record
	added.Steps = append(slices.Clone(record.Steps), idempotency.StepRecord{
		Name: step.Name, Arguments: step.Arguments, RecordedAt: now,
		Response: &idempotency.Response{Type: step.Response.Type, Body: bytes.Clone(step.Response.Body)},
	})
	// When it changed tells whether it is suspended.
	if !suspended {
		if added.UpdatedAt = now; added.Suspended() {
			added.UpdatedAt = now.Add(1)
		}
	}
	l.put(w, &added)
	return nil
}

// put writes the record as part of w, or for everybody at once where w is nil.
func (l *ledger) put(w *work, record *idempotency.Record) {
	if w == nil {
		l.records[record.Key] = record
		return
	}
	w.writes[record.Key] = record
	l.holders[record.Key] = w
}

func (l *ledger) listAbandoned(after *idempotency.Record, limit int) []*idempotency.Record {
	var found []*idempotency.Record
	now := time.Now()
	for _, record := range l.records {
		if record.State == idempotency.InProgress && !record.LockedUntil.After(now) && (after == nil || compareLeases(record, after) > 0) {
			found = append(found, record)
		}
	}
	slices.SortFunc(found, compareLeases)
	found = found[:min(limit, len(found))]
	for i, record := range found {
		found[i] = record.Clone()
	}
	return found
}

// compareLeases orders records by when their lease began.
func compareLeases(a, b *idempotency.Record) int {
	return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.Key.Scope, b.Key.Scope), cmp.Compare(a.Key.ID, b.Key.ID))
}

func (l *ledger) deleteExpired(limit int) int {
	var found []*idempotency.Record
	now := time.Now()
	for key, record := range l.records {
		// What an open transaction has claimed again is that transaction's.
		if record.Expired(now) && l.holders[key] == nil {
			found = append(found, record)
		}
	}
	slices.SortFunc(found, func(a, b *idempotency.Record) int { return a.ExpiresAt.Compare(b.ExpiresAt) })
	found = found[:min(limit, len(found))]
	for _, record := range found {
		delete(l.records, record.Key)
	}
	return len(found)
}

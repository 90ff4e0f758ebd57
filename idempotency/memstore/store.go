package memstore

import (
	"context"
	"time"

	"github.com/samecommit/samecommit/idempotency"
)

// Store keeps keys in memory. It is an idempotency.TxStore, safe for concurrent
// use.
type Store[TTx any] struct {
	ledger *ledger
	newTx  func(*Tx) TTx
}

var (
	_ idempotency.TxStore[*Tx] = (*Store[*Tx])(nil)
	_ idempotency.Sweeper      = (*Store[*Tx])(nil)
	_ idempotency.Lister       = (*Store[*Tx])(nil)
)

// New returns an empty store. newTx makes the caller's transaction type out of
// the one in memory. Where it is nil, functions given to Run, Transact and
// Savepoint get the *Tx itself if TTx can hold it, and the zero TTx otherwise.
func New[TTx any](newTx func(*Tx) TTx) *Store[TTx] {
	if newTx == nil {
		newTx = func(tx *Tx) TTx {
			same, _ := any(tx).(TTx)
			return same
		}
	}
	return &Store[TTx]{newTx: newTx, ledger: &ledger{
		records: make(map[idempotency.Key]*idempotency.Record),
		holders: make(map[idempotency.Key]*work),
	}}
}

// NewTx opens a transaction that the caller commits or rolls back.
func (s *Store[TTx]) NewTx() *Tx { return newTx(s.ledger) }

// Begin claims the key under a lease. See idempotency.Verbs.
func (s *Store[TTx]) Begin(_ context.Context, params *idempotency.BeginParams) (*idempotency.Outcome, error) {
	// Before anything else: the holder's deadline must not be after the lease's.
	start := time.Now()
	if err := params.ValidateLease(); err != nil {
		return nil, err
	}
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	outcome, err := s.ledger.begin(nil, params)
	if err == nil && outcome.State == idempotency.New {
		outcome.Claim.Deadline = start.Add(params.Lease)
	}
	return outcome, err
}

// Complete records the response. See idempotency.Verbs.
func (s *Store[TTx]) Complete(_ context.Context, claim *idempotency.Claim, response *idempotency.Response) (*idempotency.Record, error) {
	if err := response.Validate(); err != nil {
		return nil, err
	}
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	record, err := s.ledger.complete(nil, claim, response)
	if err != nil {
		return nil, err
	}
	return record.Clone(), nil
}

// Get returns the committed record. See idempotency.Verbs.
func (s *Store[TTx]) Get(_ context.Context, key idempotency.Key) (*idempotency.Record, error) {
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	return s.ledger.get(nil, key)
}

// Extend moves the end of the lease. See idempotency.Store.
func (s *Store[TTx]) Extend(_ context.Context, claim *idempotency.Claim, lease time.Duration) (*idempotency.Claim, error) {
	start := time.Now()
	if err := idempotency.ValidateLease(lease); err != nil {
		return nil, err
	}
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	record, err := s.ledger.held(nil, claim)
	if err == nil && record.Suspended() {
		err = &idempotency.KeyError{Key: claim.Key, Err: idempotency.ErrClaimLost}
	}
	if err != nil {
		return nil, err
	}
	extended, moved := *record, *claim
	extended.UpdatedAt = time.Now()
	extended.LockedUntil = extended.UpdatedAt.Add(lease)
	s.ledger.put(nil, &extended)
	moved.LockedUntil, moved.Deadline = extended.LockedUntil, start.Add(lease)
	return &moved, nil
}

// AddStep records a step. See idempotency.Verbs.
func (s *Store[TTx]) AddStep(_ context.Context, claim *idempotency.Claim, step *idempotency.StepRecord) error {
	if err := step.Validate(); err != nil {
		return err
	}
	if err := claim.ValidateAddStep(); err != nil {
		return err
	}
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	return s.ledger.addStep(nil, claim, step)
}

// Suspend ends the lease. See idempotency.Store.
func (s *Store[TTx]) Suspend(_ context.Context, claim *idempotency.Claim) error {
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	record, err := s.ledger.held(nil, claim)
	if err != nil {
		return err
	}
	suspended := *record
	suspended.UpdatedAt = time.Now()
	suspended.LockedUntil = suspended.UpdatedAt
	s.ledger.put(nil, &suspended)
	return nil
}

// Release frees the key. See idempotency.Store.
func (s *Store[TTx]) Release(_ context.Context, claim *idempotency.Claim) error {
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	record, err := s.ledger.held(nil, claim)
	if err != nil {
		return err
	}
	delete(s.ledger.records, record.Key)
	return nil
}

// DeleteExpired deletes expired records, oldest first. See idempotency.Sweeper.
func (s *Store[TTx]) DeleteExpired(_ context.Context, limit int) (int, error) {
	if limit < 0 {
		return 0, &idempotency.ParamError{Field: "limit", Reason: "is negative; 0 means 1,000"}
	}
	if limit == 0 {
		limit = idempotency.DefaultDeleteLimit
	}
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	return s.ledger.deleteExpired(limit), nil
}

// ListAbandoned returns leased work whose lease has ended. See idempotency.Lister.
func (s *Store[TTx]) ListAbandoned(_ context.Context, after *idempotency.Record, limit int) ([]*idempotency.Record, error) {
	if limit < 0 {
		return nil, &idempotency.ParamError{Field: "limit", Reason: "is negative; 0 means 100"}
	}
	if limit == 0 {
		limit = idempotency.DefaultListLimit
	}
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	return s.ledger.listAbandoned(after, limit), nil
}

// WithTx returns the verbs as part of tx: a *Tx, or anything with a method
// MemTx() *Tx. With any other transaction every verb returns a *ParamError.
func (s *Store[TTx]) WithTx(tx TTx) idempotency.Verbs {
	memTx, err := s.memTx(tx)
	return &txVerbs{tx: memTx, err: err}
}

// Run calls fn in a transaction of its own and commits its OnCommit functions
// together with the response. See idempotency.TxStore.
func (s *Store[TTx]) Run(ctx context.Context, params *idempotency.BeginParams,
	fn func(ctx context.Context, tx TTx) (idempotency.Answer, error),
) (*idempotency.Outcome, error) {
	tx := s.NewTx()
	// After a commit there is nothing left to roll back; a panic and
	// runtime.Goexit pass through here too.
	defer func() { _ = tx.Rollback(ctx) }()
	outcome, err := (&txVerbs{tx: tx}).Begin(ctx, params)
	if err != nil || outcome.State != idempotency.New {
		return outcome, err
	}
	record, err := s.run(ctx, tx, outcome.Claim, fn)
	if err != nil {
		return nil, err
	}
	return &idempotency.Outcome{State: idempotency.Completed, Record: record, Executed: true}, nil
}

// RunHeld is Run under the claim of a lease. See idempotency.TxStore.
func (s *Store[TTx]) RunHeld(ctx context.Context, claim *idempotency.Claim,
	fn func(ctx context.Context, tx TTx) (idempotency.Answer, error),
) (*idempotency.Record, error) {
	tx := s.NewTx()
	defer func() { _ = tx.Rollback(ctx) }()
	if err := tx.hold(claim); err != nil {
		return nil, err
	}
	return s.run(ctx, tx, claim, fn)
}

// run calls fn in tx, which holds the claim, and commits.
func (s *Store[TTx]) run(ctx context.Context, tx *Tx, claim *idempotency.Claim,
	fn func(ctx context.Context, tx TTx) (idempotency.Answer, error),
) (*idempotency.Record, error) {
	var answer idempotency.Answer
	err := tx.nested(func(view *Tx) (err error) {
		if answer, err = fn(ctx, s.newTx(view)); err != nil {
			return err
		}
		if err := answer.Response.Validate(); err != nil {
			return err
		}
		if answer.UndoWrites {
			return errUndo
		}
		return nil
	})
	if err != nil && err != errUndo { //nolint:errorlint // nested returns this very value.
		return nil, err
	}
	return tx.finish(claim, answer.Response)
}

// Transact calls fn in a transaction of its own. See idempotency.TxStore.
func (s *Store[TTx]) Transact(ctx context.Context, fn func(ctx context.Context, tx TTx) error) error {
	tx := s.NewTx()
	defer func() { _ = tx.Rollback(ctx) }()
	if err := tx.nested(func(view *Tx) error { return fn(ctx, s.newTx(view)) }); err != nil {
		return err
	}
	return tx.Commit(ctx)
}

// Savepoint calls fn with a nested transaction. See idempotency.TxStore.
func (s *Store[TTx]) Savepoint(ctx context.Context, tx TTx, fn func(ctx context.Context, tx TTx) error) error {
	memTx, err := s.memTx(tx)
	if err != nil {
		return err
	}
	return memTx.nested(func(view *Tx) error { return fn(ctx, s.newTx(view)) })
}

func (s *Store[TTx]) memTx(tx TTx) (*Tx, error) {
	var memTx *Tx
	if holder, ok := any(tx).(interface{ MemTx() *Tx }); ok {
		memTx = holder.MemTx()
	}
	switch {
	case memTx == nil:
		return nil, &idempotency.ParamError{Field: "tx", Reason: "is no transaction of memstore; pass a *memstore.Tx, or a type with a method MemTx() *memstore.Tx"}
	case memTx.ledger != s.ledger:
		return nil, &idempotency.ParamError{Field: "tx", Reason: "belongs to another store; open it with NewTx of this one"}
	}
	return memTx, nil
}

package memstore

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/samecommit/samecommit/idempotency"
)

// ErrTxClosed means that the transaction has been committed or rolled back, or
// that the call which handed it out has returned. Open a new one.
var ErrTxClosed = fmt.Errorf("memstore: %w", idempotency.ErrTxEnded)

var errOwned = fmt.Errorf("memstore: commit and rollback are refused inside Run, Transact and Savepoint; return from the function instead: %w", idempotency.ErrOwned)

// errUndo makes nested undo the writes of an operation whose answer is recorded
// nevertheless.
var errUndo = errors.New("memstore: undo")

// Tx is a transaction in memory: keys, and functions that stand for the
// caller's writes. Store.NewTx opens one; Run, Transact and Savepoint hand out
// theirs.
type Tx struct {
	ledger *ledger
	work   *work
	// owned marks what Run, Transact and Savepoint hand out. misused is set when such a
	// transaction was told to end, closed when it was taken back.
	owned, misused, closed bool
}

// work is what a transaction has done so far. The transactions that Run, Transact
// and Savepoint hand out share it with the one they were made from.
type work struct {
	writes  map[idempotency.Key]*idempotency.Record
	effects []func()
	// held is the key that RunHeld holds by this transaction.
	held idempotency.Key
	// failed is why the transaction cannot commit any more.
	failed error
	ended  bool
}

func newTx(l *ledger) *Tx {
	return &Tx{ledger: l, work: &work{writes: make(map[idempotency.Key]*idempotency.Record)}}
}

// MemTx returns t. A caller's transaction type that has this method too is
// accepted by Store.WithTx and Store.Savepoint.
func (t *Tx) MemTx() *Tx { return t }

// OnCommit lets fn run if and when the transaction commits, under the lock of
// the store: whoever sees the record sees what fn did. So fn must not call the
// store. It never runs where the transaction is rolled back or was closed
// before.
func (t *Tx) OnCommit(fn func()) {
	t.ledger.mu.Lock()
	defer t.ledger.mu.Unlock()
	if t.usable() == nil {
		t.work.effects = append(t.work.effects, fn)
	}
}

// Commit makes the keys visible to everybody and runs what OnCommit was given.
// Where it returns an error everything is rolled back: ErrUnfinished for a key
// that was begun and not completed, the first error for a transaction in which
// Complete failed. It is ErrTxClosed after the end, and ErrOwned in Run,
// Transact and Savepoint.
func (t *Tx) Commit(context.Context) error {
	t.ledger.mu.Lock()
	defer t.ledger.mu.Unlock()
	if err := t.mayEnd(); err != nil {
		return err
	}
	return t.commit()
}

// Rollback frees the keys and forgets what OnCommit was given. It is
// ErrTxClosed after the end, which a deferred call can ignore, and ErrOwned in
// Run, Transact and Savepoint.
func (t *Tx) Rollback(context.Context) error {
	t.ledger.mu.Lock()
	defer t.ledger.mu.Unlock()
	if err := t.mayEnd(); err != nil {
		return err
	}
	t.rollback()
	return nil
}

// Methods from here to undoTo are called with the ledger's lock held.

func (t *Tx) mayEnd() error {
	if t.closed || t.work.ended {
		return ErrTxClosed
	}
	if t.owned {
		t.misused = true
		return errOwned
	}
	return nil
}

// usable refuses, as PostgreSQL does, to go on in a transaction that has failed.
func (t *Tx) usable() error {
	if t.closed || t.work.ended {
		return ErrTxClosed
	}
	if t.work.failed != nil {
		return fmt.Errorf("memstore: transaction has failed, roll it back: %w", t.work.failed)
	}
	return nil
}

func (t *Tx) commit() error {
	if err := t.work.failed; err != nil {
		t.rollback()
		return fmt.Errorf("memstore: transaction had failed and was rolled back: %w", err)
	}
	for key, record := range t.work.writes {
		// One under a lease has got a step.
		if record.State == idempotency.InProgress && record.LockedUntil.IsZero() {
			t.rollback()
			return &idempotency.KeyError{Key: key, Err: idempotency.ErrUnfinished}
		}
	}
	t.work.ended = true
	for key, record := range t.work.writes {
		t.ledger.records[key] = record
		delete(t.ledger.holders, key)
	}
	for _, effect := range t.work.effects {
		effect()
	}
	return nil
}

func (t *Tx) rollback() {
	if !t.work.ended {
		t.undoTo(work{ended: true})
	}
}

func (t *Tx) undoTo(before work) {
	for key := range t.work.writes {
		if _, kept := before.writes[key]; !kept {
			delete(t.ledger.holders, key)
		}
	}
	*t.work = before
}

// nested calls fn with a transaction that shares the work of t, and undoes what
// was done meanwhile unless fn returns nil. It does so in a deferred function
// without recover: a panic keeps its value and its stack, and runtime.Goexit
// is undone as well.
func (t *Tx) nested(fn func(view *Tx) error) error {
	view, before, err := t.enter()
	if err != nil {
		return err
	}
	keep := false
	defer func() {
		t.ledger.mu.Lock()
		defer t.ledger.mu.Unlock()
		view.closed = true
		if !keep && !t.work.ended {
			t.undoTo(before)
		}
	}()
	err = fn(view)
	if view.wasMisused() && !errors.Is(err, idempotency.ErrOwned) {
		err = errors.Join(errOwned, err)
	}
	keep = err == nil
	return err
}

// hold makes the key of a lease the transaction's, until that ends.
func (t *Tx) hold(claim *idempotency.Claim) error {
	if err := claim.ValidateRunHeld(); err != nil {
		return err
	}
	t.ledger.mu.Lock()
	defer t.ledger.mu.Unlock()
	record, err := t.ledger.held(t.work, claim)
	if err == nil {
		t.work.held = claim.Key
		t.ledger.put(t.work, record)
	}
	return err
}

// finish records the response of Run or RunHeld and commits. A row that is written
// once, as Run's is, was created when it was last changed.
func (t *Tx) finish(claim *idempotency.Claim, response *idempotency.Response) (*idempotency.Record, error) {
	t.ledger.mu.Lock()
	defer t.ledger.mu.Unlock()
	if err := t.usable(); err != nil {
		return nil, err
	}
	begun, _ := t.ledger.find(t.work, claim.Key)
	record, err := t.ledger.complete(t.work, claim, response)
	if err != nil {
		return nil, err
	}
	if begun.LockedUntil.IsZero() {
		record.CreatedAt = record.UpdatedAt
	}
	if err := t.commit(); err != nil {
		return nil, err
	}
	return record.Clone(), nil
}

func (t *Tx) enter() (view *Tx, before work, err error) {
	t.ledger.mu.Lock()
	defer t.ledger.mu.Unlock()
	if err := t.usable(); err != nil {
		return nil, work{}, err
	}
	before = *t.work
	before.writes = maps.Clone(before.writes)
	return &Tx{ledger: t.ledger, work: t.work, owned: true}, before, nil
}

func (t *Tx) wasMisused() bool {
	t.ledger.mu.Lock()
	defer t.ledger.mu.Unlock()
	return t.misused
}

// txVerbs is what Store.WithTx returns. err is what is wrong with the
// transaction it was given: WithTx itself cannot fail.
type txVerbs struct {
	tx  *Tx
	err error
}

func (v *txVerbs) Begin(_ context.Context, params *idempotency.BeginParams) (*idempotency.Outcome, error) {
	if v.err != nil {
		return nil, v.err
	}
	if err := params.ValidateTx(); err != nil {
		return nil, err
	}
	v.tx.ledger.mu.Lock()
	defer v.tx.ledger.mu.Unlock()
	if err := v.tx.usable(); err != nil {
		return nil, err
	}
	return v.tx.ledger.begin(v.tx.work, params)
}

func (v *txVerbs) Complete(_ context.Context, claim *idempotency.Claim, response *idempotency.Response) (*idempotency.Record, error) {
	if v.err != nil {
		return nil, v.err
	}
	if err := response.Validate(); err != nil {
		return nil, err
	}
	v.tx.ledger.mu.Lock()
	defer v.tx.ledger.mu.Unlock()
	if err := v.tx.usable(); err != nil {
		return nil, err
	}
	record, err := v.tx.ledger.complete(v.tx.work, claim, response)
	if err != nil {
		// A caller that ignores this error must not commit its writes.
		v.tx.work.failed = err
		return nil, err
	}
	return record.Clone(), nil
}

func (v *txVerbs) AddStep(_ context.Context, claim *idempotency.Claim, step *idempotency.StepRecord) error {
	if v.err != nil {
		return v.err
	}
	if err := step.Validate(); err != nil {
		return err
	}
	v.tx.ledger.mu.Lock()
	defer v.tx.ledger.mu.Unlock()
	if err := v.tx.usable(); err != nil {
		return err
	}
	err := claim.ValidateAddStep()
	if err == nil {
		err = v.tx.ledger.addStep(v.tx.work, claim, step)
	}
	if err != nil {
		v.tx.work.failed = err // as for Complete
	}
	return err
}

func (v *txVerbs) Get(_ context.Context, key idempotency.Key) (*idempotency.Record, error) {
	if v.err != nil {
		return nil, v.err
	}
	v.tx.ledger.mu.Lock()
	defer v.tx.ledger.mu.Unlock()
	if err := v.tx.usable(); err != nil {
		return nil, err
	}
	return v.tx.ledger.get(v.tx.work, key)
}

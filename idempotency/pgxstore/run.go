package pgxstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/db"
	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/txhelper"
)

// Run claims the key in a transaction of its own, calls fn in it and commits
// fn's writes and its response together. See idempotency.TxStore.
func (s *Store) Run(ctx context.Context, params *idempotency.BeginParams, fn func(ctx context.Context, tx pgx.Tx) (idempotency.Answer, error)) (outcome *idempotency.Outcome, err error) {
	if err := params.ValidateTx(); err != nil {
		return nil, err
	}
	err = s.retry(ctx, "run", &params.Key, func(ctx context.Context, connecting *time.Duration) error {
		r := &run{store: s, params: params, claimID: idempotency.NewClaimID(), connecting: connecting}
		outcome, err = r.try(ctx, fn)
		return err
	})
	if err != nil {
		return nil, err
	}
	return outcome, nil
}

// run is one try of Run, or of RunHeld: one claim id, one transaction.
type run struct {
	store   *Store
	params  *idempotency.BeginParams
	claimID idempotency.ClaimID
	// connecting is what is left of Config.ConnectTimeout, for all tries.
	connecting *time.Duration
	// tx is what fn gets.
	tx ownedTx
	// found is what KeyGet returns, once its result has been read.
	found *db.KeyGetRow
	// writeErr is the error of the statement that writes the answer; errNotSent until
	// it is read.
	writeErr error
	// seen is the row that the answer replaces: an expired answer, or a claim
	// whose lease has ended. Nil where the key had no row.
	seen *row
}

func (r *run) try(ctx context.Context, fn func(ctx context.Context, tx pgx.Tx) (idempotency.Answer, error)) (*idempotency.Outcome, error) {
	lookInside := r.store.options.TxOptions.IsoLevel != pgx.Serializable && !r.store.serializable.Load()
	if !lookInside {
		// Inside, the read would leave a predicate lock in the index and abort
		// neighbours that have nothing to do with this key.
		err := r.store.reach(ctx, r.connecting, func(ctx context.Context) (err error) {
			r.seen, err = r.store.lookUpAlone(ctx, r.params.Key)
			return err
		})
		if err != nil {
			return nil, r.explain(err)
		}
		if outcome, err := r.decided(); outcome != nil || err != nil {
			return r.replay(ctx, r.seen, outcome, err)
		}
	}
	var lock *db.KeyTryLockRow
	transaction, err := r.begin(ctx, func(ctx context.Context) (transaction *txhelper.Transaction, err error) {
		transaction, lock, err = r.open(ctx, r.store.db, &r.store.options, lookInside)
		return transaction, err
	})
	if err != nil {
		return nil, r.explain(err)
	}
	// Also on panic and runtime.Goexit, which pass through unchanged.
	defer transaction.Rollback(ctx)

	if lookInside && lock.Serializable && !transaction.Nested() {
		// The server's default is SERIALIZABLE, unlike our options.
		r.store.serializable.Store(true)
		transaction.Rollback(ctx)
		return r.try(ctx, fn)
	}
	if err := usable(transaction, lock); err != nil {
		return nil, err
	}
	if outcome, err := r.decided(); outcome != nil || err != nil {
		transaction.Rollback(ctx) // what confirms looks again, over one connection
		return r.replay(ctx, r.seen, outcome, err)
	}
	if lock.ReadOnly {
		return nil, &idempotency.KeyError{Key: r.params.Key, Err: idempotency.ErrReadOnly}
	}
	if !lock.Locked {
		return &idempotency.Outcome{State: idempotency.InProgress}, nil
	}

	answer, err := r.call(ctx, transaction, fn)
	if err != nil {
		transaction.Rollback(ctx)
		return r.afterFailure(ctx, err)
	}
	if answer.UndoWrites {
		// A new transaction: fn's may have been aborted by an SQL error, which
		// is what it wants recorded.
		if err := r.undo(ctx, transaction); err != nil {
			return nil, err
		}
		transaction, err = r.begin(ctx, func(ctx context.Context) (*txhelper.Transaction, error) {
			return r.store.open(ctx, r.store.db, &r.store.options, func(batch *pgx.Batch) { r.queueTryLock(ctx, batch) })
		})
		if err != nil {
			return nil, r.explain(err)
		}
		defer transaction.Rollback(ctx)
	}
	return r.finish(ctx, transaction, answer.Response)
}

// usable refuses a connection on which the key would be another one, or in another
// table.
func usable(transaction *txhelper.Transaction, lock *db.KeyTryLockRow) error {
	if err := checkEncoding(transaction.Tx().Conn()); err != nil {
		return err
	}
	if lock.Temporary {
		return ErrTemporaryTable
	}
	return nil
}

// undo rolls back what fn has written. It fails where fn has ended its transaction and
// begun another one, by SQL: what it wrote before may be committed.
func (r *run) undo(ctx context.Context, transaction *txhelper.Transaction) error {
	defer transaction.Rollback(ctx)
	conn := transaction.Tx().Conn()
	if transaction.Nested() || conn.IsClosed() || conn.PgConn().IsBusy() || conn.PgConn().TxStatus() != 'T' {
		return nil // it cannot be asked
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), txhelper.DefaultRollbackTimeout)
	defer cancel()
	// One flight, as for the ROLLBACK alone.
	batch := &pgx.Batch{}
	_ = r.store.queries.KeyCheckBegan(ctx, txhelper.Queue(batch, nil), &db.KeyCheckBeganParams{ClaimID: uuid(r.claimID)})
	batch.Queue("rollback")
	if err := conn.SendBatch(ctx, batch).Close(); says(err, beganText) && !says(err, uuid(r.claimID).String()) {
		return txhelper.ErrEnded
	}
	return nil
}

// begin opens a transaction once there is a server to open it on.
func (r *run) begin(ctx context.Context, open func(ctx context.Context) (*txhelper.Transaction, error)) (transaction *txhelper.Transaction, err error) {
	err = r.store.reach(ctx, r.connecting, func(ctx context.Context) (err error) {
		transaction, err = open(ctx)
		return err
	})
	return transaction, err
}

// call calls fn, and says why its work cannot be committed.
func (r *run) call(ctx context.Context, transaction *txhelper.Transaction, fn func(ctx context.Context, tx pgx.Tx) (idempotency.Answer, error)) (idempotency.Answer, error) {
	r.tx = ownedTx{transaction.Tx(), r.params.Key}
	answer, err := fn(ctx, &r.tx)
	if err == nil {
		err = answer.Response.Validate()
	}
	cause := transaction.Cause(err)
	if cause != nil && transaction.Tx().Conn().IsClosed() && endedIdle(cause) {
		cause = r.idle(cause)
	}
	return answer, cause
}

// decided judges the row that was seen, if there was one that leaves no choice.
func (r *run) decided() (*idempotency.Outcome, error) {
	if r.seen.unfinished() {
		if _, nested := r.store.db.(pgx.Tx); nested {
			return nil, &idempotency.KeyError{Key: r.params.Key, Err: idempotency.ErrNested}
		}
		return nil, strayError(r.params.Key)
	}
	return r.seen.outcome(r.params)
}

// explain is for the errors of statements that no COMMIT came with, or that made
// the server skip it.
func (r *run) explain(err error) error {
	return r.store.explain(r.params.Key, "run", lostBeforeCommit(err))
}

func (r *run) idle(err error) error {
	return &idempotency.KeyError{Key: r.params.Key, Err: fmt.Errorf("%w: %w", ErrIdleTimeout, err)}
}

// open begins a transaction and tries the lock, and with look set also takes the
// look that decides, all in one flight.
func (r *run) open(ctx context.Context, database txhelper.DB, options *txhelper.Options, look bool) (transaction *txhelper.Transaction, lock *db.KeyTryLockRow, err error) {
	transaction, err = r.store.open(ctx, database, options, func(batch *pgx.Batch) {
		// Two statements: under READ COMMITTED the snapshot of one would be older
		// than its lock, and miss the answer of the holder that has just let go
		// of it. Under REPEATABLE READ it is older all the same: fn may then run
		// in vain, and the unique index undoes it.
		lock = r.queueTryLock(ctx, batch)
		if look {
			r.queueLookUp(ctx, batch)
		}
	})
	return transaction, lock, err
}

// queueLookUp queues the look, whose result is r.seen once it has been read.
func (r *run) queueLookUp(ctx context.Context, batch *pgx.Batch) {
	key := r.params.Key
	r.found, _ = r.store.queries.KeyGet(ctx, txhelper.Queue(batch, r.looked), &db.KeyGetParams{Scope: key.Scope, ID: key.ID})
}

func (r *run) looked(err error) error {
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err == nil {
		r.seen = &row{r.found, r.params.Key}
	}
	return err
}

// queueTryLock is in the first flight of every transaction here. It also leaves
// the claim id with the transaction, which the last statement asks for.
func (r *run) queueTryLock(ctx context.Context, batch *pgx.Batch) *db.KeyTryLockRow {
	lock, _ := r.store.queries.KeyTryLock(ctx, txhelper.Queue(batch, nil), &db.KeyTryLockParams{
		LockID: lockID(r.params.Key), ClaimID: uuid(r.claimID), IdleTimeout: r.store.idleSetting,
	})
	return lock
}

// finish writes the finished row and commits, in one flight. Where the row
// cannot be written the server skips the commit.
func (r *run) finish(ctx context.Context, transaction *txhelper.Transaction, response *idempotency.Response) (*idempotency.Outcome, error) {
	var written *db.KeyInsertCompletedRow
	r.writeErr = errNotSent
	sent := time.Now()
	err := transaction.Commit(ctx, func(batch *pgx.Batch) {
		written = r.queueInsert(ctx, batch, response)
	})
	if err == nil {
		return r.finished(response, written), nil
	}
	if ambiguous, ok := errors.AsType[*txhelper.AmbiguousCommitError](err); ok {
		// wrote may still be at work.
		return r.resolve(ctx, ambiguous, sent)
	}
	return r.afterFailure(ctx, r.notCommitted(err))
}

// notCommitted says why the last flight, which has committed nothing, failed with
// err.
func (r *run) notCommitted(err error) error {
	switch {
	case endedIdle(err):
		return r.idle(err)
	case errors.Is(err, txhelper.ErrLostBeforeCommit):
		return &leftNothingError{cause: err}
	case r.writeErr == nil:
		return err // of the commit itself
	}
	// Ours is known by its position: a constraint of the caller's, deferred to
	// the commit, may raise the same codes.
	switch state := sqlState(err); {
	case state == codeUniqueViolation, state == codeDivisionByZero, state == codeLockTimeout:
		return errTryAgain
	case says(err, beganText) && says(err, uuid(r.claimID).String()):
		// The mark is there, with another table's oid.
		return &idempotency.KeyError{Key: r.params.Key, Err: ErrTableMoved}
	case says(err, beganText):
		return txhelper.ErrEnded
	case says(err, suppressedText):
		return &idempotency.KeyError{Key: r.params.Key, Err: ErrRowSuppressed}
	default:
		return r.explain(err)
	}
}

// finished is the outcome of a commit. One allocation, where most calls have three.
func (r *run) finished(response *idempotency.Response, written *db.KeyInsertCompletedRow) *idempotency.Outcome {
	f := &struct {
		outcome  idempotency.Outcome
		record   idempotency.Record
		response idempotency.Response
	}{}
	f.response = idempotency.Response{Type: response.Type, Body: response.Body}
	at := written.CreatedAt.Time
	ttl := r.params.TTL.Truncate(time.Microsecond) // as interval sent it
	f.record = idempotency.Record{
		Key: r.params.Key, State: idempotency.Completed, ClaimID: r.claimID, Attempt: r.attempt(),
		Fingerprint: r.params.Fingerprint, Response: &f.response,
		CreatedAt: at, UpdatedAt: at, ExpiresAt: at.Add(ttl),
	}
	f.outcome = idempotency.Outcome{State: idempotency.Completed, Record: &f.record, Executed: true}
	return &f.outcome
}

// errNotSent stands for the result of the statement that writes the answer until it
// is read.
var errNotSent = errors.New("pgxstore: statement was not sent")

// attempt is the number of this claim. What was suspended, and is not counted, Run
// does not take over.
func (r *run) attempt() int {
	if r.seen != nil && !r.seen.completed() {
		return int(r.seen.Attempt) + 1
	}
	return 1
}

// queueInsert queues the statement that writes the finished row.
func (r *run) queueInsert(ctx context.Context, batch *pgx.Batch, response *idempotency.Response) *db.KeyInsertCompletedRow {
	key, queries, q := r.params.Key, r.store.queries, txhelper.Queue(batch, r.wrote)
	if r.seen == nil {
		written, _ := queries.KeyInsertCompleted(ctx, q, &db.KeyInsertCompletedParams{
			Scope: key.Scope, ID: key.ID, ClaimID: uuid(r.claimID), Fingerprint: r.params.Fingerprint.Bytes(),
			Response: response.Body, ResponseType: response.Type, TTL: interval(r.params.TTL),
		})
		return written
	}
	replaced, _ := queries.KeyReplaceCompleted(ctx, q, &db.KeyReplaceCompletedParams{
		Scope: key.Scope, ID: key.ID, ClaimID: uuid(r.claimID), Fingerprint: r.params.Fingerprint.Bytes(), Attempt: int32(r.attempt()), //nolint:gosec // It was an int32.
		Response: response.Body, ResponseType: response.Type, TTL: interval(r.params.TTL),
		SeenClaimID: r.seen.ClaimID, SeenExpiresAt: r.seen.ExpiresAt, SeenLockedUntil: r.seen.LockedUntil,
	})
	return (*db.KeyInsertCompletedRow)(replaced) // the same columns
}

func (r *run) wrote(err error) error {
	r.writeErr = err
	return err
}

// afterFailure looks, in a fresh snapshot, whether a rival has answered
// meanwhile, and otherwise returns cause. Nothing of this try is committed,
// unless cause is txhelper.ErrEnded.
func (r *run) afterFailure(ctx context.Context, cause error) (*idempotency.Outcome, error) {
	for _, mistake := range []error{txhelper.ErrOwned, txhelper.ErrEnded, ErrTableMoved, ErrRowSuppressed} {
		if errors.Is(cause, mistake) {
			return nil, cause // which a replay would hide
		}
	}
	found, err := r.store.lookUpAlone(ctx, r.params.Key)
	if err != nil || !found.live() {
		return nil, cause //nolint:nilerr // cause is what went wrong; the look was an extra.
	}
	outcome, err := found.outcome(r.params)
	return r.replay(ctx, found, outcome, err)
}

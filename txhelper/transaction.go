package txhelper

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// DB opens transactions. It is a *pgxpool.Pool or another Acquirer, a Lender, a
// *pgx.Conn, a *pgxpool.Conn or a pgx.Tx; with a pgx.Tx, a transaction here is a
// savepoint in it. Any other type is refused.
type DB interface {
	Begin(ctx context.Context) (pgx.Tx, error)
}

// Transaction is the owner's side of a transaction: it alone commits and rolls
// back. Tx is the side that other code gets.
type Transaction struct {
	options Options
	tx      Tx
	shared  txShared
	base    pgx.Tx
	conn    *pgx.Conn
	// borrowed is conn where it came from a pool, zero where it is the caller's own.
	borrowed Borrowed
	// nested says that base is a savepoint, which ends through base itself.
	nested bool
	// abandoned says that conn is left to a commit that has not ended.
	abandoned bool
}

// Open begins a transaction. The statements that first queues go to the server
// in the same flight as BEGIN; their callbacks have run when Open returns. After
// an error no transaction is open.
func Open(ctx context.Context, db DB, options *Options, first func(batch *pgx.Batch)) (*Transaction, error) {
	t := &Transaction{options: options.withDefaults()}
	t.shared.owned = t.options.Owned
	if t.options.TxOptions.BeginQuery != "" || t.options.TxOptions.CommitQuery != "" {
		return nil, errCustomQuery
	}
	switch db := db.(type) {
	case Acquirer, Lender:
		var err error
		if t.borrowed, _, err = Borrow(ctx, db); err != nil {
			return nil, err
		}
		t.conn = t.borrowed.Conn()
	case *pgxpool.Conn:
		t.conn = db.Conn()
	case *pgx.Conn:
		t.conn = db
	case pgx.Tx, savepointOf:
		return openNested(ctx, db, t, first)
	default:
		// Its Begin could open a transaction or a savepoint, and a lost reply
		// means something else in each.
		return nil, fmt.Errorf("txhelper: cannot tell what kind of database a %T is: pass a *pgxpool.Pool, a *pgx.Conn, a pgx.Tx, an Acquirer or a Lender", db)
	}
	if t.conn.IsClosed() {
		t.borrowed.Release()
		return nil, fmt.Errorf("%w: it is closed: open another", ErrNoConnection)
	}
	if t.conn.PgConn().TxStatus() != 'I' {
		t.borrowed.Release()
		return nil, errors.New("txhelper: connection is already in a transaction: pass that transaction instead")
	}
	batch := &pgx.Batch{}
	batch.BeginTx(t.options.TxOptions)
	if first != nil {
		first(batch)
	}
	results := t.conn.SendBatch(ctx, batch)
	t.base = results.Tx()
	t.tx = Tx{Tx: t.base, shared: &t.shared}
	if err := results.Close(); err != nil {
		if t.conn.IsClosed() && ctx.Err() == nil {
			err = fmt.Errorf("%w: %w", ErrConnectionLost, err)
		}
		t.Rollback(ctx)
		return nil, fmt.Errorf("txhelper: begin: %w", err)
	}
	return t, nil
}

func openNested(ctx context.Context, db DB, t *Transaction, first func(batch *pgx.Batch)) (*Transaction, error) {
	if t.options.TxOptions != (pgx.TxOptions{}) {
		return nil, errors.New("txhelper: TxOptions cannot be set inside a transaction")
	}
	base, err := db.Begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("txhelper: begin: %w", err)
	}
	t.base, t.conn, t.nested = base, base.Conn(), true
	t.tx = Tx{Tx: base, shared: &t.shared}
	batch := &pgx.Batch{}
	if first != nil {
		first(batch)
	}
	if batch.Len() > 0 {
		if err := base.SendBatch(ctx, batch).Close(); err != nil {
			t.Rollback(ctx)
			return nil, fmt.Errorf("txhelper: begin: %w", err)
		}
	}
	return t, nil
}

// Tx returns the transaction as other code may use it: Commit and Rollback
// return Options.Owned and doom it. It fails with pgx.ErrTxClosed once this
// Transaction has ended.
func (t *Transaction) Tx() pgx.Tx { return &t.tx }

// Nested reports whether the transaction is a savepoint in another.
func (t *Transaction) Nested() bool { return t.nested }

// Cause returns the error that decides what to do after the function that used
// Tx returned err: a retryable error that the function met and turned into
// another one, Options.Owned or ErrEnded where it tried to end the transaction or has
// done so, or err.
func (t *Transaction) Cause(err error) error {
	if t.abandoned {
		return err // the connection is another goroutine's
	}
	if !t.conn.IsClosed() && !t.conn.PgConn().IsBusy() && t.conn.PgConn().TxStatus() == 'I' {
		return errors.Join(ErrEnded, err)
	}
	if owned := t.options.Owned; t.tx.shared.doomed.Load() && !errors.Is(err, owned) {
		return errors.Join(owned, err)
	}
	if seen := t.tx.shared.retryable(); seen != nil && !t.options.Retryable(err) && t.options.Retryable(seen) {
		return seen
	}
	return err
}

// Check returns nil if the transaction can be committed, and otherwise why not:
// Options.Owned, ErrEnded, ErrAborted, ErrRowsOpen, ErrLostBeforeCommit, or a
// retryable error that the user of Tx met and ignored.
func (t *Transaction) Check() error {
	if t.tx.shared.closed.Load() {
		return pgx.ErrTxClosed
	}
	if err := t.Cause(nil); err != nil {
		return err
	}
	if t.conn.IsClosed() {
		if lost := t.tx.shared.lost.Load(); lost != nil {
			return fmt.Errorf("%w: %w", ErrLostBeforeCommit, *lost)
		}
		return ErrLostBeforeCommit
	}
	if t.conn.PgConn().IsBusy() {
		return ErrRowsOpen
	}
	if t.conn.PgConn().TxStatus() == 'E' {
		return ErrAborted
	}
	return nil
}

// Commit commits, after Check. The statements that last queues go to the server
// in the same flight, before COMMIT: where one of them fails, the server skips
// the COMMIT. The context's cancellation does not interrupt it. Either way the
// transaction has ended for its user when Commit returns.
//
// An *AmbiguousCommitError means that nobody knows, and that callbacks of last
// may still run: do not read what they write. Any other error means that nothing
// was committed, but for ErrEnded, which says what it means.
//
// After CommitTimeout without a reply Commit gives up the wait and not the
// commit. To cancel it would also end its wait for a synchronous standby, after
// which its work is seen on the primary and may be lost with it. So the
// connection leaves the pool, which may open another in its place, and stays
// with a goroutine until the server replies or TCP gives the connection up: the
// keepalives of the client's dialer and of the server decide how long that takes
// at most. A pool can be closed meanwhile. There are as many such connections as
// commits that were given up. A Lender lends no other in their place.
//
// A connection that breaks is another matter: pgx asks the server to cancel what
// runs on a connection that it loses, the commit too. And a connection of the
// caller's own, a *pgx.Conn or *pgxpool.Conn, must be free when Commit returns:
// there CommitTimeout is a deadline, after which pgx closes the connection and
// sends that request. To a commit that waits for its standby PostgreSQL answers
// such a request, and pg_cancel_backend, with success and a warning (01000): what
// others cancel in that moment looks committed to everybody.
func (t *Transaction) Commit(ctx context.Context, last func(batch *pgx.Batch)) error {
	defer t.Rollback(ctx)
	if err := t.Check(); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	batch := &pgx.Batch{}
	if last != nil {
		last(batch)
	}
	if t.nested {
		return t.commitNested(ctx, batch)
	}
	// As a batch COMMIT takes the extended protocol. After a lost reply to a
	// simple-protocol COMMIT, pgx from 5.9 on calls the error safe to retry.
	batch.Queue("commit").Fn = readCommit
	if t.borrowed.Conn() == nil {
		return t.commitInTime(ctx, batch)
	}
	return t.commitOrAbandon(ctx, batch)
}

func readCommit(results pgx.BatchResults) error {
	tag, err := results.Exec()
	if err == nil && tag.String() == "ROLLBACK" {
		return pgx.ErrTxCommitRollback
	}
	return err
}

// commitInTime sends the last flight under a deadline.
func (t *Transaction) commitInTime(ctx context.Context, batch *pgx.Batch) error {
	ctx, cancel := context.WithTimeout(ctx, t.options.CommitTimeout)
	defer cancel()
	err := t.conn.SendBatch(ctx, batch).Close()
	if err == nil && ctx.Err() != nil {
		// A pgconn.CancelRequestContextWatcherHandler waits for the reply to its
		// request: a commit that no longer waited for the standby.
		return &AmbiguousCommitError{Err: ctx.Err()}
	}
	return t.outcome(err)
}

// commitOrAbandon sends the last flight without a deadline, in a goroutine that
// has the connection until then.
func (t *Transaction) commitOrAbandon(ctx context.Context, batch *pgx.Batch) error {
	f := &lastFlight{borrowed: t.borrowed, batch: batch, replied: make(chan struct{}), died: true}
	go f.fly(ctx, t.options.RollbackTimeout)
	timer := time.NewTimer(t.options.CommitTimeout)
	defer timer.Stop()
	select {
	case <-f.replied:
		return t.outcome(f.get())
	case <-timer.C:
	}
	if !f.decided.CompareAndSwap(false, true) {
		<-f.replied
		return t.outcome(f.get())
	}
	t.abandoned = true
	t.borrowed.abandon()
	return &AmbiguousCommitError{Err: fmt.Errorf("no reply in %s", t.options.CommitTimeout)}
}

// lastFlight is the flight that carries COMMIT, in its goroutine.
type lastFlight struct {
	borrowed Borrowed
	batch    *pgx.Batch
	// decided is set by the reply or by the timer, whichever comes first.
	decided atomic.Bool
	// replied is closed where that was the reply. What follows is set then.
	replied chan struct{}
	err     error
	// died says that a callback panicked, or called runtime.Goexit where
	// panicked is nil.
	died     bool
	panicked any
}

func (f *lastFlight) fly(ctx context.Context, closeTimeout time.Duration) {
	defer func() {
		if f.died {
			f.panicked = recover()
		}
		if f.decided.CompareAndSwap(false, true) {
			close(f.replied)
			return
		}
		ctx, cancel := context.WithTimeout(ctx, closeTimeout)
		defer cancel()
		_ = f.borrowed.Conn().Close(ctx) // nobody is left to be told
		f.borrowed.left()
	}()
	f.err = f.borrowed.Conn().SendBatch(ctx, f.batch).Close()
	f.died = false
}

// get returns the error, or ends as the callback has.
func (f *lastFlight) get() error {
	switch {
	case f.panicked != nil:
		panic(f.panicked)
	case f.died:
		runtime.Goexit()
	}
	return f.err
}

// outcome says what the error of the last flight means.
func (t *Transaction) outcome(err error) error {
	if err == nil {
		return nil
	}
	inSync := !t.conn.IsClosed() && !t.conn.PgConn().IsBusy()
	var preprocessing pgx.ErrPreprocessingBatch
	switch {
	case errors.Is(err, pgx.ErrTxCommitRollback), isDefinite(err, inSync):
		return err
	case errors.As(err, &preprocessing):
		// COMMIT is sent once every statement has been prepared and encoded.
		if t.conn.IsClosed() {
			return fmt.Errorf("%w: %w", ErrLostBeforeCommit, err)
		}
		return err
	case inSync && t.conn.PgConn().TxStatus() != 'I':
		return err // pgx could not send it: the transaction is still open
	}
	return &AmbiguousCommitError{Err: err}
}

// commitNested releases a savepoint, which leaves nothing unknown: the outer
// transaction still decides.
func (t *Transaction) commitNested(ctx context.Context, batch *pgx.Batch) error {
	ctx, cancel := context.WithTimeout(ctx, t.options.CommitTimeout)
	defer cancel()
	if batch.Len() > 0 {
		if err := t.base.SendBatch(ctx, batch).Close(); err != nil {
			return err
		}
	}
	return t.base.Commit(ctx)
}

// Rollback rolls back what has not been committed and gives the connection
// back. The context's cancellation does not stop it. It is safe to call more
// than once and after Commit. A connection that cannot be rolled back is closed,
// which makes the server roll back.
func (t *Transaction) Rollback(ctx context.Context) {
	if t.tx.shared.closed.Swap(true) || t.abandoned {
		return
	}
	defer t.borrowed.Release()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.options.RollbackTimeout)
	defer cancel()
	if t.nested {
		if err := t.base.Rollback(ctx); err != nil && !errors.Is(err, pgx.ErrTxClosed) {
			_ = t.conn.Close(ctx) // the outer transaction must not commit half of this one
		}
		return
	}
	if t.conn.IsClosed() || t.conn.PgConn().TxStatus() == 'I' && !t.conn.PgConn().IsBusy() {
		return
	}
	if _, err := t.conn.Exec(ctx, "rollback"); err != nil {
		_ = t.conn.Close(ctx)
	}
}

// Savepoint calls fn with a transaction nested in tx. Where fn returns an error
// or panics, what it did is undone; the error is returned as it is. The nested
// transaction refuses Commit and Rollback, as in Run. Of the options only Owned,
// CommitTimeout and RollbackTimeout apply; nil means their defaults.
func Savepoint(ctx context.Context, tx pgx.Tx, options *Options, fn func(ctx context.Context, tx pgx.Tx) error) error {
	var nested Options
	if options != nil {
		nested = Options{Owned: options.Owned, CommitTimeout: options.CommitTimeout, RollbackTimeout: options.RollbackTimeout}
	}
	t, err := Open(ctx, savepointOf{tx}, &nested, nil)
	if err != nil {
		return err
	}
	defer t.Rollback(ctx)
	if err := fn(ctx, t.Tx()); err != nil {
		return t.Cause(err)
	}
	return t.Commit(ctx, nil)
}

// savepointOf hides the type of tx from Open: whatever it is, Begin nests.
type savepointOf struct{ tx pgx.Tx }

func (s savepointOf) Begin(ctx context.Context) (pgx.Tx, error) { return s.tx.Begin(ctx) }

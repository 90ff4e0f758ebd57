package txhelper

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Tx is a transaction that belongs to somebody else: everything of a pgx.Tx
// works but Commit and Rollback, which return Options.Owned and keep the
// transaction from being committed. Begin nests as usual.
//
// It remembers a serialization failure or deadlock that any statement met, so
// that its owner retries even where the error was ignored. What rolls back a
// nested transaction also undoes the failure that it met, and that is forgotten:
// a whole transaction that cannot go on under SERIALIZABLE says so at its commit.
type Tx struct {
	// Embedded so that methods pgx adds to its interface keep working.
	pgx.Tx
	shared *txShared
	// parent is what this transaction is nested in, nil where in none.
	parent *Tx
}

// txShared is what a transaction and those nested in it have in common.
type txShared struct {
	// owned is Options.Owned.
	owned  error
	doomed atomic.Bool
	closed atomic.Bool
	// lost is the error that a statement met when the connection broke.
	lost atomic.Pointer[error]

	mu   sync.Mutex
	seen []seenError
}

// seenError is a retryable error and the transaction whose statement met it.
type seenError struct {
	err error
	tx  *Tx
}

// Note remembers a retryable error, or that the connection has been lost, and returns
// err. The methods of Tx do so; it is for what sends statements on Conn itself.
func (tx *Tx) Note(err error) error {
	if err == nil {
		return nil
	}
	if IsRetryable(err) {
		tx.shared.mu.Lock()
		tx.shared.seen = append(tx.shared.seen, seenError{err, tx})
		tx.shared.mu.Unlock()
	}
	if tx.Conn().IsClosed() {
		lost := err // so that err, which is nil most often, is on the stack
		tx.shared.lost.CompareAndSwap(nil, &lost)
	}
	return err
}

// retryable returns the first retryable error that was met and not undone.
func (s *txShared) retryable() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.seen) == 0 {
		return nil
	}
	return s.seen[0].err
}

// forget drops what was met in tx and in transactions nested in it.
func (s *txShared) forget(tx *Tx) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = slices.DeleteFunc(s.seen, func(seen seenError) bool { return seen.tx.in(tx) })
}

// in reports whether tx is outer or nested in it.
func (tx *Tx) in(outer *Tx) bool {
	for ; tx != nil; tx = tx.parent {
		if tx == outer {
			return true
		}
	}
	return false
}

// Begin starts a nested transaction, a savepoint, which the caller does commit
// or roll back.
func (tx *Tx) Begin(ctx context.Context) (pgx.Tx, error) {
	if tx.shared.closed.Load() {
		return nil, pgx.ErrTxClosed
	}
	base, err := tx.Tx.Begin(ctx)
	if err != nil {
		return nil, tx.Note(err)
	}
	return &Tx{Tx: base, shared: tx.shared, parent: tx}, nil
}

// Commit releases a nested transaction. Otherwise it returns Options.Owned and
// keeps the transaction from being committed.
func (tx *Tx) Commit(ctx context.Context) error {
	if tx.shared.closed.Load() {
		return pgx.ErrTxClosed
	}
	if tx.parent != nil {
		return tx.Note(tx.Tx.Commit(ctx))
	}
	tx.shared.doomed.Store(true)
	return tx.shared.owned
}

// Rollback undoes a nested transaction. Otherwise it returns Options.Owned and
// keeps the transaction from being committed.
func (tx *Tx) Rollback(ctx context.Context) error {
	if tx.shared.closed.Load() {
		return pgx.ErrTxClosed
	}
	if tx.parent != nil {
		err := tx.Tx.Rollback(ctx)
		if err == nil {
			tx.shared.forget(tx)
		}
		return tx.Note(err)
	}
	tx.shared.doomed.Store(true)
	return tx.shared.owned
}

// Exec runs a statement.
func (tx *Tx) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	if tx.shared.closed.Load() {
		return pgconn.CommandTag{}, pgx.ErrTxClosed
	}
	tag, err := tx.Tx.Exec(ctx, sql, args...)
	return tag, tx.Note(err)
}

// Query runs a query.
func (tx *Tx) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if tx.shared.closed.Load() {
		// pgx callers may use the rows before they look at the error.
		results := pgx.FailedBatchResults(&pgx.Batch{}, pgx.ErrTxClosed)
		return results.Query() //nolint:rowserrcheck // The caller reads the rows.
	}
	rows, err := tx.Tx.Query(ctx, sql, args...) //nolint:rowserrcheck // As above.
	return &notedRows{Rows: rows, tx: tx}, tx.Note(err)
}

// QueryRow runs a query for one row.
func (tx *Tx) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	if tx.shared.closed.Load() {
		return errorRow{pgx.ErrTxClosed}
	}
	return notedRow{tx.Tx.QueryRow(ctx, sql, args...), tx}
}

// SendBatch sends a batch.
func (tx *Tx) SendBatch(ctx context.Context, batch *pgx.Batch) pgx.BatchResults {
	if tx.shared.closed.Load() {
		return pgx.FailedBatchResults(batch, pgx.ErrTxClosed)
	}
	return &notedResults{tx.Tx.SendBatch(ctx, batch), tx}
}

// CopyFrom copies rows into a table.
func (tx *Tx) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, source pgx.CopyFromSource) (int64, error) {
	if tx.shared.closed.Load() {
		return 0, pgx.ErrTxClosed
	}
	count, err := tx.Tx.CopyFrom(ctx, table, columns, source)
	return count, tx.Note(err)
}

// Prepare prepares a statement.
func (tx *Tx) Prepare(ctx context.Context, name, sql string) (*pgconn.StatementDescription, error) {
	if tx.shared.closed.Load() {
		return nil, pgx.ErrTxClosed
	}
	description, err := tx.Tx.Prepare(ctx, name, sql)
	return description, tx.Note(err)
}

// LargeObjects returns the large objects of the transaction.
func (tx *Tx) LargeObjects() pgx.LargeObjects {
	if tx.shared.closed.Load() {
		// A batch that failed before it was sent has a closed transaction.
		batch := &pgx.Batch{}
		batch.BeginTx(pgx.TxOptions{})
		return pgx.FailedBatchResults(batch, pgx.ErrTxClosed).Tx().LargeObjects()
	}
	return tx.Tx.LargeObjects()
}

type notedRow struct {
	pgx.Row
	tx *Tx
}

func (r notedRow) Scan(dest ...any) error { return r.tx.Note(r.Row.Scan(dest...)) }

// notedRows looks at the error when the rows end, because a caller that ignores
// errors does not ask for it.
type notedRows struct {
	pgx.Rows
	tx *Tx
}

func (r *notedRows) Next() bool {
	if r.Rows.Next() {
		return true
	}
	_ = r.tx.Note(r.Err())
	return false
}

func (r *notedRows) Close() {
	r.Rows.Close()
	_ = r.tx.Note(r.Err())
}

type notedResults struct {
	pgx.BatchResults
	tx *Tx
}

func (r *notedResults) Exec() (pgconn.CommandTag, error) {
	tag, err := r.BatchResults.Exec()
	return tag, r.tx.Note(err)
}

func (r *notedResults) Query() (pgx.Rows, error) {
	rows, err := r.BatchResults.Query() //nolint:rowserrcheck // The caller reads the rows.
	return &notedRows{Rows: rows, tx: r.tx}, r.tx.Note(err)
}

func (r *notedResults) QueryRow() pgx.Row { return notedRow{r.BatchResults.QueryRow(), r.tx} }

func (r *notedResults) Close() error { return r.tx.Note(r.BatchResults.Close()) }

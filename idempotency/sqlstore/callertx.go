package sqlstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/txhelper"
)

// callerTx is the caller's own transaction. Statements go through the *sql.Tx, so that the
// caller's tracing sees them, one by one. It never keeps the connection: once the
// transaction has ended, that is somebody else's.
type callerTx struct{ tx *sql.Tx }

// Look calls fn with the connection, under database/sql's own lock and before the statement
// is sent: a pgx.QueryRewriter is asked then. What pgx may send before is the removal of
// statements that its cache has dropped, which a connection that is busy with rows does not
// take: driver.ErrBadConn, as for one that is lost. It is ErrDriver where the driver is not
// pgx's. The caller's tracing sees a statement with no text that fails.
func (t *callerTx) Look(fn func(conn *pgx.Conn) error) error {
	looked := &lookRewriter{fn: fn}
	ctx, cancel := context.WithTimeout(context.Background(), txhelper.DefaultRollbackTimeout)
	defer cancel()
	_, err := t.tx.ExecContext(ctx, "", looked)
	var network net.Error
	switch {
	case looked.called:
		return looked.err
	case errors.Is(err, sql.ErrTxDone):
		return t.explain(err)
	case errors.Is(err, driver.ErrBadConn):
		return fmt.Errorf("%w: %w", t.unusable(), err)
	case errors.As(err, &network), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), errors.Is(err, pgconn.ErrConnClosed):
		return fmt.Errorf("%w: %w", txhelper.ErrLostBeforeCommit, err)
	case err == nil: // it ran
		return ErrDriver
	default:
		return fmt.Errorf("%w; it says: %w", ErrDriver, err)
	}
}

// lookRewriter is an argument that stops its statement.
type lookRewriter struct {
	fn     func(conn *pgx.Conn) error
	called bool
	err    error
}

var errLooked = errors.New("sqlstore: this is a look at the connection, no statement")

// RewriteQuery calls fn. See pgx.QueryRewriter.
func (l *lookRewriter) RewriteQuery(_ context.Context, conn *pgx.Conn, _ string, _ []any) (string, []any, error) {
	l.called, l.err = true, l.fn(conn)
	return "", nil, errLooked
}

// explain puts an error of database/sql in the terms of pgx and txhelper.
func (t *callerTx) explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, sql.ErrNoRows) && !errors.Is(err, pgx.ErrNoRows):
		return pgx.ErrNoRows
	case errors.Is(err, sql.ErrTxDone):
		return fmt.Errorf("%w: by its Commit or Rollback, or by the end of the context that began it: %w", pgx.ErrTxClosed, err)
	}
	return err
}

// explainSent is explain for a statement. pgx makes driver.ErrBadConn of a connection that
// is lost, and of one that is still busy with rows.
func (t *callerTx) explainSent(err error) error {
	if !errors.Is(err, driver.ErrBadConn) {
		return t.explain(err)
	}
	return fmt.Errorf("%w: %w", t.unusable(), err)
}

// unusable says why a statement was driver.ErrBadConn. Of a statement that is prepared it
// is so for a closed connection alone; one that is busy with rows says so.
func (t *callerTx) unusable() error {
	stmt, err := t.tx.PrepareContext(context.Background(), "SELECT")
	switch {
	case err == nil:
		_ = stmt.Close()            //nolint:sqlclosecheck // At once.
		return txhelper.ErrRowsOpen // they are closed by now
	case errors.Is(err, driver.ErrBadConn), errors.Is(err, sql.ErrTxDone):
		return txhelper.ErrLostBeforeCommit
	}
	return txhelper.ErrRowsOpen
}

func (t *callerTx) Exec(ctx context.Context, query string, args ...any) (pgconn.CommandTag, error) {
	result, err := t.tx.ExecContext(ctx, query, args...)
	if err != nil {
		return pgconn.CommandTag{}, t.explainSent(err) //nolint:contextcheck // Look sends nothing.
	}
	affected, err := result.RowsAffected()
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	return pgconn.NewCommandTag(fmt.Sprintf("EXEC %d", affected)), nil
}

func (t *callerTx) Query(ctx context.Context, query string, args ...any) (pgx.Rows, error) {
	rows, err := t.tx.QueryContext(ctx, query, args...) //nolint:rowserrcheck,sqlclosecheck // The caller reads them.
	if err != nil {
		return nil, t.explainSent(err) //nolint:contextcheck // As above.
	}
	return &callerRows{rows: rows, tx: t}, nil
}

func (t *callerTx) QueryRow(ctx context.Context, query string, args ...any) pgx.Row {
	return callerRow{t.tx.QueryRowContext(ctx, query, args...), t}
}

// SendBatch sends the statements one by one.
func (t *callerTx) SendBatch(ctx context.Context, batch *pgx.Batch) pgx.BatchResults {
	return &callerResults{ctx: ctx, tx: t, queries: batch.QueuedQueries}
}

// Conn returns nil: pgxstore then asks Look.
func (t *callerTx) Conn() *pgx.Conn { return nil }

// savepoint is the name of those of ours. One name nests: the innermost is meant.
const savepoint = "samecommit"

// Savepoint calls fn between a savepoint and its release, for pgxstore.
func (t *callerTx) Savepoint(ctx context.Context, fn func(ctx context.Context, tx pgx.Tx) error) (err error) {
	if err := t.Look(func(*pgx.Conn) error { return nil }); err != nil { //nolint:contextcheck // Look sends nothing.
		return err
	}
	if _, err := t.Exec(ctx, "SAVEPOINT "+savepoint); err != nil {
		return err
	}
	released := false
	defer func() {
		if released {
			return
		}
		if ended := t.undo(ctx); ended != nil && !errors.Is(err, idempotency.ErrTxEnded) {
			err = errors.Join(ended, err)
		}
	}()
	if err := fn(ctx, t); err != nil {
		return err
	}
	_, err = t.Exec(ctx, "RELEASE SAVEPOINT "+savepoint)
	released = err == nil
	if sqlState(err) == "25P02" {
		return fmt.Errorf("%w: %w", txhelper.ErrAborted, err)
	}
	return t.endedBySQL(err)
}

// undo undoes what was done behind the savepoint. Its error says that the transaction has
// ended, and may be committed.
func (t *callerTx) undo(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), txhelper.DefaultRollbackTimeout)
	defer cancel()
	// Without arguments pgx uses the simple protocol: one flight for both. Where the
	// server refuses it, the transaction is aborted or has ended.
	_, err := t.Exec(ctx, "ROLLBACK TO SAVEPOINT "+savepoint+"; RELEASE SAVEPOINT "+savepoint)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, pgx.ErrTxClosed):
		return fmt.Errorf("%w: %w", idempotency.ErrTxEnded, err)
	case sqlState(err) != "":
		if ended := t.endedBySQL(err); errors.Is(ended, idempotency.ErrTxEnded) {
			return ended
		}
		return nil // aborted
	}
	// Rows were in the way. The transaction must not commit what stays in it.
	if err := t.Look(func(conn *pgx.Conn) error { return conn.Close(ctx) }); err != nil { //nolint:contextcheck // Look sends nothing.
		_ = t.tx.Rollback() // which closes the rows; or it has ended
	}
	return nil
}

// endedBySQL tells the errors of a savepoint that is not there because the transaction has
// ended, or another one has begun.
func (t *callerTx) endedBySQL(err error) error {
	switch sqlState(err) {
	case "25P01", "3B001":
		return fmt.Errorf("%w: by an SQL statement of the function's: %w", idempotency.ErrTxEnded, err)
	}
	return err
}

func sqlState(err error) string {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pgErr.Code
	}
	return ""
}

// The rest of pgx.Tx, which pgxstore does not use.

func (t *callerTx) Begin(context.Context) (pgx.Tx, error) { return nil, errors.ErrUnsupported }
func (t *callerTx) Commit(context.Context) error          { return errors.ErrUnsupported }
func (t *callerTx) Rollback(context.Context) error        { return errors.ErrUnsupported }
func (t *callerTx) LargeObjects() pgx.LargeObjects        { return pgx.LargeObjects{} }

func (t *callerTx) CopyFrom(context.Context, pgx.Identifier, []string, pgx.CopyFromSource) (int64, error) {
	return 0, errors.ErrUnsupported
}

func (t *callerTx) Prepare(context.Context, string, string) (*pgconn.StatementDescription, error) {
	return nil, errors.ErrUnsupported
}

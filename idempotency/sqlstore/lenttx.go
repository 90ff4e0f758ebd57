package sqlstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/txhelper"
)

// lentTxs has the transaction behind each *sql.Tx that is lent, by any store.
var lentTxs sync.Map

func findLent(tx *sql.Tx) (*lentTx, bool) {
	found, _ := lentTxs.Load(tx)
	lent, ok := found.(*lentTx)
	return lent, ok
}

// lentTx is a transaction of ours that is lent as a *sql.Tx. That is of a *sql.DB with
// this as its only connection, on which BEGIN sends nothing.
type lentTx struct {
	pgx.Tx
	conn driver.Conn
	// ending is set by us, who may end the *sql.Tx.
	ending atomic.Bool
	// openRows counts rows that are not closed.
	openRows atomic.Int32
}

// lend calls fn with tx as a *sql.Tx, which has ended when lend returns, also where fn
// panics or calls runtime.Goexit. conn is the driver's connection.
func lend(ctx context.Context, tx pgx.Tx, conn driver.Conn, fn func(ctx context.Context, tx *sql.Tx) error) error {
	l := &lentTx{Tx: tx, conn: conn}
	// For each call: one for all would leave a goroutine of database/sql's behind.
	db := sql.OpenDB(connector{l})
	defer func() { _ = db.Close() }() // closes nothing
	// Where this context ended, database/sql would end the transaction from a goroutine of
	// its own, beside a statement.
	lent, err := db.BeginTx(context.WithoutCancel(ctx), nil)
	if err != nil {
		return err
	}
	lentTxs.Store(lent, l)
	defer func() {
		l.ending.Store(true)
		_ = lent.Rollback() // waits for statements, closes rows and what was prepared, and rolls nothing back
		lentTxs.Delete(lent)
	}()
	if err := fn(ctx, lent); err != nil {
		return err
	}
	if l.openRows.Load() > 0 {
		return txhelper.ErrRowsOpen
	}
	return nil
}

// Note is that of the transaction behind it.
func (l *lentTx) Note(err error) error {
	if noting, ok := l.Tx.(interface{ Note(err error) error }); ok {
		return noting.Note(err)
	}
	return err
}

// connector connects to a transaction.
type connector struct{ tx *lentTx }

func (c connector) Connect(context.Context) (driver.Conn, error) { return lentConn(c), nil }
func (c connector) Driver() driver.Driver                        { return lentDriver{} }

// lentDriver is for DB.Driver, which nobody can call.
type lentDriver struct{}

func (lentDriver) Open(string) (driver.Conn, error) { return nil, errors.ErrUnsupported }

// lentConn passes statements to the driver's connection.
type lentConn struct{ tx *lentTx }

var (
	_ driver.ConnBeginTx        = lentConn{}
	_ driver.ConnPrepareContext = lentConn{}
	_ driver.ExecerContext      = lentConn{}
	_ driver.QueryerContext     = lentConn{}
	_ driver.NamedValueChecker  = lentConn{}
)

func (c lentConn) Close() error { return nil }

func (c lentConn) Begin() (driver.Tx, error) { return lentEnd(c), nil }

func (c lentConn) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) {
	return lentEnd(c), nil
}

func (c lentConn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

func (c lentConn) PrepareContext(ctx context.Context, query string) (stmt driver.Stmt, err error) {
	if preparer, ok := c.tx.conn.(driver.ConnPrepareContext); ok {
		stmt, err = preparer.PrepareContext(ctx, query)
	} else {
		stmt, err = c.tx.conn.Prepare(query)
	}
	if err != nil {
		return nil, c.tx.Note(err)
	}
	return &lentStmt{stmt, c.tx}, nil
}

func (c lentConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	execer, ok := c.tx.conn.(driver.ExecerContext)
	if !ok {
		return nil, driver.ErrSkip
	}
	result, err := execer.ExecContext(ctx, query, args)
	return result, c.tx.Note(err)
}

func (c lentConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	queryer, ok := c.tx.conn.(driver.QueryerContext)
	if !ok {
		return nil, driver.ErrSkip
	}
	rows, err := queryer.QueryContext(ctx, query, args)
	return lendRows(c.tx, rows, err)
}

func (c lentConn) CheckNamedValue(value *driver.NamedValue) error {
	if checker, ok := c.tx.conn.(driver.NamedValueChecker); ok {
		return checker.CheckNamedValue(value)
	}
	return driver.ErrSkip
}

// lentEnd refuses Commit and Rollback to all but us.
type lentEnd struct{ tx *lentTx }

func (e lentEnd) Commit() error { return e.tx.Commit(context.Background()) }

func (e lentEnd) Rollback() error {
	if e.tx.ending.Load() {
		return nil
	}
	return e.tx.Rollback(context.Background())
}

// lentStmt is a prepared statement.
type lentStmt struct {
	driver.Stmt
	tx *lentTx
}

var (
	_ driver.StmtExecContext   = (*lentStmt)(nil)
	_ driver.StmtQueryContext  = (*lentStmt)(nil)
	_ driver.NamedValueChecker = (*lentStmt)(nil)
)

func (s *lentStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	execer, ok := s.Stmt.(driver.StmtExecContext)
	if !ok {
		return nil, errWithoutContext
	}
	result, err := execer.ExecContext(ctx, args)
	return result, s.tx.Note(err)
}

func (s *lentStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	queryer, ok := s.Stmt.(driver.StmtQueryContext)
	if !ok {
		return nil, errWithoutContext
	}
	rows, err := queryer.QueryContext(ctx, args)
	return lendRows(s.tx, rows, err)
}

func (s *lentStmt) CheckNamedValue(value *driver.NamedValue) error {
	if checker, ok := s.Stmt.(driver.NamedValueChecker); ok {
		return checker.CheckNamedValue(value)
	}
	return lentConn{s.tx}.CheckNamedValue(value)
}

var errWithoutContext = errors.New("sqlstore: a wrapper of the driver has prepared statements without ExecContext and QueryContext")

package sqlstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"sync"
	"sync/atomic"
	"time"

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

	// mu guards the connection, which is somebody else's once ended is set: database/sql may
	// go on with it in a goroutine of the function's that ends the transaction, or closes a
	// statement.
	mu    sync.Mutex
	ended bool
}

// use calls fn with the connection, unless that is somebody else's by now.
func (l *lentTx) use(fn func(conn driver.Conn) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return sql.ErrTxDone
	}
	return fn(l.conn)
}

// end ends the *sql.Tx, and takes the connection away from it.
func (l *lentTx) end(lent *sql.Tx) {
	l.ending.Store(true)
	rollback := func() { _ = lent.Rollback() } // waits for statements, closes rows and what was prepared, and rolls nothing back
	if l.openRows.Load() == 0 {
		rollback()
	} else {
		// Rows that were scanned into a sql.RawBytes close when they are read on. What is
		// left of them costs the connection.
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			rollback()
		}()
		timer := time.NewTimer(txhelper.DefaultRollbackTimeout)
		defer timer.Stop()
		select {
		case <-closed:
		case <-timer.C:
		}
	}
	lentTxs.Delete(lent)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
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
	defer l.end(lent)
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

func (c lentConn) PrepareContext(ctx context.Context, query string) (prepared driver.Stmt, err error) {
	err = c.tx.use(func(conn driver.Conn) (err error) {
		var stmt driver.Stmt
		if preparer, ok := conn.(driver.ConnPrepareContext); ok {
			stmt, err = preparer.PrepareContext(ctx, query)
		} else {
			stmt, err = conn.Prepare(query)
		}
		prepared = &lentStmt{stmt, c.tx}
		return c.tx.Note(err)
	})
	if err != nil {
		return nil, err
	}
	return prepared, nil
}

func (c lentConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (result driver.Result, err error) {
	err = c.tx.use(func(conn driver.Conn) (err error) {
		execer, ok := conn.(driver.ExecerContext)
		if !ok {
			return driver.ErrSkip
		}
		result, err = execer.ExecContext(ctx, query, args)
		return c.tx.Note(err)
	})
	return result, err
}

func (c lentConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (rows driver.Rows, err error) {
	err = c.tx.use(func(conn driver.Conn) error {
		queryer, ok := conn.(driver.QueryerContext)
		if !ok {
			return driver.ErrSkip
		}
		found, err := queryer.QueryContext(ctx, query, args)
		rows, err = lendRows(c.tx, found, err)
		return err
	})
	return rows, err
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

func (s *lentStmt) Close() error {
	return s.tx.use(func(driver.Conn) error { return s.Stmt.Close() })
}

func (s *lentStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (result driver.Result, err error) {
	err = s.tx.use(func(driver.Conn) (err error) {
		execer, ok := s.Stmt.(driver.StmtExecContext)
		if !ok {
			return errWithoutContext
		}
		result, err = execer.ExecContext(ctx, args)
		return s.tx.Note(err)
	})
	return result, err
}

func (s *lentStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (rows driver.Rows, err error) {
	err = s.tx.use(func(driver.Conn) error {
		queryer, ok := s.Stmt.(driver.StmtQueryContext)
		if !ok {
			return errWithoutContext
		}
		found, err := queryer.QueryContext(ctx, args)
		rows, err = lendRows(s.tx, found, err)
		return err
	})
	return rows, err
}

func (s *lentStmt) CheckNamedValue(value *driver.NamedValue) error {
	if checker, ok := s.Stmt.(driver.NamedValueChecker); ok {
		return checker.CheckNamedValue(value)
	}
	return lentConn{s.tx}.CheckNamedValue(value)
}

var errWithoutContext = errors.New("sqlstore: a wrapper of the driver has prepared statements without ExecContext and QueryContext")

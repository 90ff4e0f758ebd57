package sqlstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/txhelper"
)

// lender lends the pgx connections of a *sql.DB.
type lender struct {
	db *sql.DB
	// lent has the driver.Conn around each *pgx.Conn that is lent.
	lent sync.Map
}

var _ txhelper.Lender = (*lender)(nil)

// Begin is for the interface only: who can borrow does not begin here.
func (l *lender) Begin(context.Context) (pgx.Tx, error) { return nil, errors.ErrUnsupported }

// Lend calls fn with a connection. See txhelper.Lender.
func (l *lender) Lend(ctx context.Context, fn func(conn *pgx.Conn) error) (err error) {
	lent, err := l.db.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = lent.Close() }() // it goes back, or has gone with Raw
	raw := lent.Raw(func(outer any) error {
		conn := pgxConn(outer)
		if conn == nil {
			err = fmt.Errorf("%w; it has a %T", ErrDriver, outer)
			return nil
		}
		l.lent.Store(conn, outer)
		defer l.lent.Delete(conn)
		err = fn(conn)
		if pg := conn.PgConn(); conn.IsClosed() || pg.IsBusy() || pg.TxStatus() != 'I' {
			return driver.ErrBadConn // the pool drops it
		}
		return nil
	})
	if err == nil && raw != nil && !errors.Is(raw, driver.ErrBadConn) {
		err = raw
	}
	return err
}

// driverConn returns what database/sql has of a connection that is lent: with the
// caller's wrappers around it, such as those that trace.
func (l *lender) driverConn(conn *pgx.Conn) driver.Conn {
	outer, _ := l.lent.Load(conn)
	return outer.(driver.Conn) //nolint:forcetypeassert // Raw's is one.
}

// pgxConn returns the connection inside a driver's, nil where there is none.
func pgxConn(outer any) *pgx.Conn {
	for range 10 { // wrappers in wrappers
		switch conn := outer.(type) {
		case interface{ Conn() *pgx.Conn }: // that of pgx/stdlib
			return conn.Conn()
		case interface{ Raw() driver.Conn }: // as otelsql has it
			outer = conn.Raw()
		default:
			return nil
		}
	}
	return nil
}

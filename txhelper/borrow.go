package txhelper

import (
	"context"
	"errors"
	"runtime"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Acquirer is a pool of pgx's: a *pgxpool.Pool, or a type that wraps one.
type Acquirer interface {
	Acquire(ctx context.Context) (*pgxpool.Conn, error)
}

// Lender is a pool that is not pgx's own and has pgx connections, as that of database/sql
// may have.
type Lender interface {
	// Lend calls fn with a connection, which is fn's until it returns, and returns fn's
	// error, or ErrNotPgx. The pool drops a connection that is then closed, busy or in a
	// transaction.
	Lend(ctx context.Context, fn func(conn *pgx.Conn) error) error
}

// Borrowed is a connection out of a pool.
type Borrowed struct {
	conn   *pgx.Conn
	pooled *pgxpool.Conn
	loan   *loan
}

// loan is a connection of a Lender, which a goroutine holds by staying in Lend.
type loan struct {
	// lent has the connection, and is closed when the lender has it again. What follows
	// is set then.
	lent chan *pgx.Conn
	// over is closed to end it.
	over chan struct{}
	err  error
	// died says that Lend panicked, or called runtime.Goexit where panicked is nil.
	died     bool
	panicked any
}

// Borrow takes a connection out of a pool, to be released by the caller. ok is false where
// db is none.
func Borrow(ctx context.Context, db DB) (borrowed Borrowed, ok bool, err error) {
	switch db := db.(type) {
	case Acquirer:
		conn, err := db.Acquire(ctx)
		if err != nil {
			return Borrowed{}, true, noConnection(ctx, err)
		}
		return Borrowed{conn: conn.Conn(), pooled: conn}, true, nil
	case Lender:
		borrowed, err := borrow(ctx, db)
		if err != nil && !errors.Is(err, ErrNotPgx) {
			err = noConnection(ctx, err)
		}
		return borrowed, true, err
	}
	return Borrowed{}, false, nil
}

func borrow(ctx context.Context, lender Lender) (Borrowed, error) {
	l := &loan{lent: make(chan *pgx.Conn), over: make(chan struct{}), died: true}
	go l.hold(ctx, lender)
	conn, ok := <-l.lent
	if !ok {
		l.rethrow()
		return Borrowed{}, l.err
	}
	return Borrowed{conn: conn, loan: l}, nil
}

func (l *loan) hold(ctx context.Context, lender Lender) {
	defer func() {
		if l.died {
			l.panicked = recover()
		}
		close(l.lent)
	}()
	l.err = lender.Lend(ctx, func(conn *pgx.Conn) error {
		l.lent <- conn
		<-l.over
		return nil
	})
	l.died = false
}

// rethrow ends the borrower as the goroutine has, whose panic nobody could recover.
func (l *loan) rethrow() {
	switch {
	case l.panicked != nil:
		panic(l.panicked)
	case l.died:
		runtime.Goexit()
	}
}

// Conn returns the connection, nil of the zero value.
func (b *Borrowed) Conn() *pgx.Conn { return b.conn }

// Release gives the connection back. Of the zero value it does nothing.
func (b *Borrowed) Release() {
	switch {
	case b.pooled != nil:
		b.pooled.Release()
	case b.loan != nil:
		close(b.loan.over)
		<-b.loan.lent
		b.loan.rethrow()
	}
}

// abandon takes the connection away from its pool, if that can do without. The caller
// closes it and then calls left.
func (b *Borrowed) abandon() {
	if b.pooled != nil {
		b.pooled.Hijack()
	}
}

// left tells the pool that an abandoned connection is closed.
func (b *Borrowed) left() {
	if b.loan != nil {
		b.Release()
	}
}

package txhelper

import (
	"context"
	"errors"
	"runtime"
	"time"

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
	over   chan struct{}
	search searchContext
	err    error
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

// connectLimit is how long a connection may still be looked for when its borrower has
// gone. It is the next one's then, as with pgxpool: who comes again and again, each time for
// less than it takes to connect, would never have one.
const connectLimit = time.Minute

func borrow(ctx context.Context, lender Lender) (Borrowed, error) {
	if ctx.Err() != nil {
		return Borrowed{}, context.Cause(ctx)
	}
	l := &loan{lent: make(chan *pgx.Conn), over: make(chan struct{}), died: true}
	l.search = searchContext{Context: ctx, ended: make(chan struct{})}
	go l.hold(lender) //nolint:contextcheck // It has l.search.
	select {
	case conn, ok := <-l.lent:
		if ok {
			return Borrowed{conn: conn, loan: l}, nil
		}
		l.rethrow()
		return Borrowed{}, l.err
	case <-ctx.Done():
		close(l.over)
		time.AfterFunc(connectLimit, func() { close(l.search.ended) })
		return Borrowed{}, context.Cause(ctx)
	}
}

// searchContext is what a connection is looked for with: the borrower's context, with an
// end of its own. One of package context would take four allocations more.
type searchContext struct {
	context.Context
	ended chan struct{}
}

func (c *searchContext) Deadline() (deadline time.Time, ok bool) { return time.Time{}, false }
func (c *searchContext) Done() <-chan struct{}                   { return c.ended }

func (c *searchContext) Err() error {
	select {
	case <-c.ended:
		return context.Canceled
	default:
		return nil
	}
}

func (l *loan) hold(lender Lender) {
	defer func() {
		if l.died {
			l.panicked = recover()
		}
		close(l.lent)
	}()
	l.err = lender.Lend(&l.search, func(conn *pgx.Conn) error {
		select {
		case l.lent <- conn:
			<-l.over
		case <-l.over: // the borrower has gone
		}
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

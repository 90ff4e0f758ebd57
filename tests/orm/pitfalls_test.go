package orm_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"

	"entgo.io/ent/dialect"
	entsql "entgo.io/ent/dialect/sql"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jmoiron/sqlx"
	"github.com/uptrace/bun"
	"gorm.io/gorm"

	"github.com/samecommit/samecommit/idempotency"
)

// inDo calls fn in a Do that is to succeed.
func (b *bench) inDo(fn func(ctx context.Context, tx *sql.Tx) error) {
	b.Helper()
	if _, err := idempotency.Do(b.Context(), b.client, params, func(ctx context.Context, tx *sql.Tx) (int, error) { return 1, fn(ctx, tx) }); err != nil {
		b.Error(err)
	}
}

func TestGORMNestedTransaction(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]bool{"plain": false, "PrepareStmt": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, openPgx)
			gdb := openGORMDB(b, prepare)
			fn := func(ctx context.Context, tx *sql.Tx) error {
				g := bindGORM(ctx, gdb, tx)
				// It fails by an error of SQL, which the savepoint takes back with all else.
				if err := g.Transaction(func(t *gorm.DB) error {
					return errors.Join(t.Create(&Charge{Account: "undone"}).Error, t.Create(&Charge{}).Error)
				}); err == nil {
					b.Error("the nested transaction did not fail")
				}
				return g.Transaction(func(t *gorm.DB) error { return t.Create(&Charge{Account: "anna"}).Error })
			}
			if _, err := idempotency.Do(t.Context(), b.client, params, func(ctx context.Context, tx *sql.Tx) (int, error) {
				return 1, errors.Join(fn(ctx, tx), errDeclined)
			}); !errors.Is(err, errDeclined) {
				t.Error(err)
			}
			b.want(0, 0)
			b.inDo(fn)
			b.want(1, 1)
		})
	}
}

// Begin is for a transaction that there is not yet.
func TestGORMBegin(t *testing.T) {
	t.Parallel()
	b := newBench(t, openPgx)
	gdb := openGORMDB(b, false)
	b.inDo(func(ctx context.Context, tx *sql.Tx) error {
		if err := bindGORM(ctx, gdb, tx).Begin().Error; !errors.Is(err, gorm.ErrInvalidTransaction) {
			b.Errorf("Begin in the transaction: %v", err)
		}
		return nil
	})
}

func TestGORMSessionWithoutContext(t *testing.T) {
	t.Parallel()
	b := newBench(t, openPgx)
	gdb := openGORMDB(b, false)
	if _, err := idempotency.Do(t.Context(), b.client, params, func(ctx context.Context, tx *sql.Tx) (int, error) {
		bindGORM(ctx, gdb, tx)
		if gdb.Statement.ConnPool != gorm.ConnPool(b.db) {
			t.Error("the session with Context has changed the shared *gorm.DB")
		}
		g := gdb.Session(&gorm.Session{NewDB: true})
		g.Statement.ConnPool = tx
		return 1, errors.Join(gdb.Create(&Charge{Account: "somebody else's"}).Error, errDeclined)
	}); !errors.Is(err, errDeclined) {
		t.Error(err)
	}
	b.want(0, 0) // also of that one
	if err := gdb.WithContext(t.Context()).Create(&Charge{Account: "anna"}).Error; !errors.Is(err, sql.ErrTxDone) {
		t.Errorf("the shared *gorm.DB after a session without Context: %v, want ErrTxDone: it has the transaction", err)
	}
}

func TestSQLXDoesNotKnowItsDriver(t *testing.T) {
	t.Parallel()
	b := newBench(t, openPgx)
	_, err := idempotency.Do(t.Context(), b.client, params, func(ctx context.Context, tx *sql.Tx) (int, error) {
		xtx := &sqlx.Tx{Tx: tx, Mapper: sqlx.NewDb(b.db, "pgx").Mapper}
		_, err := xtx.NamedExecContext(ctx, `INSERT INTO charges (account) VALUES (:account)`, Charge{Account: "anna"})
		return 1, err
	})
	if sqlState(err) != "42601" {
		t.Errorf("a named query: %v, want a syntax error", err)
	}
	b.want(0, 0)
}

// panics returns whether fn does.
func panics(fn func()) (panicked bool) {
	defer func() { panicked = recover() != nil }()
	fn()
	return false
}

func TestBunTxOfOnesOwn(t *testing.T) {
	t.Parallel()
	b := newBench(t, openPgx)
	b.inDo(func(ctx context.Context, tx *sql.Tx) error {
		if !panics(func() { _, _ = bun.Tx{Tx: tx}.NewInsert().Model(&Charge{Account: "anna"}).Exec(ctx) }) {
			b.Error("bun.Tx{Tx: tx} works")
		}
		return nil
	})
	b.want(0, 1)
}

func TestEntWithoutNopTx(t *testing.T) {
	t.Parallel()
	b := newBench(t, openPgx)
	b.inDo(func(ctx context.Context, tx *sql.Tx) error {
		driver := entsql.NewDriver(dialect.Postgres, entsql.Conn{ExecQuerier: tx})
		if !panics(func() { _, _ = driver.Tx(ctx) }) {
			b.Error("a driver of ent's begins a transaction on a *sql.Tx")
		}
		return nil
	})
}

// Only the server can refuse the end of a transaction that is the caller's.
func TestFunctionOfDoTxEndsTheTransaction(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		end   func(tx *sql.Tx) error
		state string
	}{
		"Commit":   {(*sql.Tx).Commit, "23503"},
		"Rollback": {(*sql.Tx).Rollback, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, openPgx)
			o := openSQL(b)
			err := o.own(t.Context(), func(tx *sql.Tx, write charge) error {
				_, err := idempotency.DoTx(t.Context(), b.client, tx, params, func(ctx context.Context, tx *sql.Tx) (int, error) {
					if err := write(ctx, "anna"); err != nil {
						return 0, err
					}
					if err := c.end(tx); sqlState(err) != c.state {
						t.Errorf("it ended with %v, want %q", err, c.state)
					}
					return 1, nil
				})
				return err
			})
			if !errors.Is(err, idempotency.ErrTxEnded) {
				t.Errorf("%v, want ErrTxEnded", err)
			}
			b.want(0, 0)
		})
	}
}

func sqlState(err error) string {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pgErr.Code
	}
	return ""
}

// A statement that was prepared on the *sql.DB belongs to that.
func TestStatementOfTheDB(t *testing.T) {
	t.Parallel()
	b := newBench(t, openPgx)
	statement, err := b.db.PrepareContext(t.Context(), insertCharge)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = statement.Close() }()
	o := b.ownTx(func(tx *sql.Tx) charge {
		return func(ctx context.Context, account string) error {
			bound := tx.StmtContext(ctx, statement)
			defer func() { _ = bound.Close() }()
			_, err := bound.ExecContext(ctx, account)
			return err
		}
	})
	write := func(ctx context.Context, write charge) error { return write(ctx, "anna") }
	if _, err := b.do(o)(t.Context(), write); err == nil || !strings.Contains(err.Error(), "statement from different database used") {
		t.Errorf("in the transaction of Do: %v", err)
	}
	b.want(0, 0)
	if _, err := b.doTx(o)(t.Context(), write); err != nil {
		t.Errorf("in the caller's own transaction: %v", err)
	}
	b.want(1, 1)
}

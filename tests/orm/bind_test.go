package orm_test

import (
	"context"
	"database/sql"
	"time"

	"entgo.io/ent/dialect"
	entsql "entgo.io/ent/dialect/sql"
	"github.com/jmoiron/sqlx"
	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/pgdialect"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

const insertCharge = `INSERT INTO charges (account) VALUES ($1)`

// Charge is the model of GORM, sqlx and bun.
type Charge struct {
	ID      int64 `bun:",pk,autoincrement"`
	Account string
}

// ownTx is the own of packages that have no transaction that says what its *sql.Tx is: it
// is begun on the *sql.DB.
func (b *bench) ownTx(bind func(tx *sql.Tx) charge) orm {
	return orm{bind, func(ctx context.Context, fn func(tx *sql.Tx, write charge) error) error {
		tx, err := b.db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }() // sql.ErrTxDone behind Commit
		if err := fn(tx, bind(tx)); err != nil {
			return err
		}
		return tx.Commit()
	}}
}

func openSQL(b *bench) orm {
	return b.ownTx(func(tx *sql.Tx) charge {
		return func(ctx context.Context, account string) error {
			_, err := tx.ExecContext(ctx, insertCharge, account)
			return err
		}
	})
}

func openGORMDB(b *bench, prepare bool) *gorm.DB {
	b.Helper()
	gdb, err := gorm.Open(postgres.New(postgres.Config{Conn: b.db}), &gorm.Config{
		PrepareStmt: prepare, Logger: logger.Discard,
		// What GORM takes for ever: with any other it leaves a goroutine behind.
		PrepareStmtTTL: 10 * 365 * 24 * time.Hour,
	})
	if err != nil {
		b.Fatal(err)
	}
	return gdb
}

// bindGORM returns a *gorm.DB that works in tx.
func bindGORM(ctx context.Context, gdb *gorm.DB, tx *sql.Tx) *gorm.DB {
	g := gdb.Session(&gorm.Session{NewDB: true, Context: ctx})
	g.Statement.ConnPool = tx
	return g
}

// openGORM takes a function that returns the *sql.Tx of a transaction of GORM's.
func openGORM(prepare bool, sqlTx func(t *gorm.DB) *sql.Tx) func(b *bench) orm {
	return func(b *bench) orm {
		gdb := openGORMDB(b, prepare)
		return orm{
			bind: func(tx *sql.Tx) charge {
				return func(ctx context.Context, account string) error {
					return bindGORM(ctx, gdb, tx).Create(&Charge{Account: account}).Error
				}
			},
			own: func(ctx context.Context, fn func(tx *sql.Tx, write charge) error) error {
				return gdb.WithContext(ctx).Transaction(func(t *gorm.DB) error {
					return fn(sqlTx(t), func(_ context.Context, account string) error { return t.Create(&Charge{Account: account}).Error })
				})
			},
		}
	}
}

func gormTx(t *gorm.DB) *sql.Tx {
	tx := t.Statement.ConnPool.(*sql.Tx)
	return tx
}

func gormPreparedTx(t *gorm.DB) *sql.Tx {
	tx := t.Statement.ConnPool.(*gorm.PreparedStmtTX).Tx.(*sql.Tx)
	return tx
}

func openSQLX(b *bench) orm {
	xdb := sqlx.NewDb(b.db, "pgx")
	return orm{
		bind: func(tx *sql.Tx) charge {
			return func(ctx context.Context, account string) error {
				xtx := &sqlx.Tx{Tx: tx, Mapper: xdb.Mapper}
				query, args, err := sqlx.Named(`INSERT INTO charges (account) VALUES (:account) RETURNING *`, Charge{Account: account})
				if err != nil {
					return err
				}
				var charge Charge
				return xtx.GetContext(ctx, &charge, sqlx.Rebind(sqlx.DOLLAR, query), args...)
			}
		},
		own: func(ctx context.Context, fn func(tx *sql.Tx, write charge) error) error {
			xtx, err := xdb.BeginTxx(ctx, nil)
			if err != nil {
				return err
			}
			defer func() { _ = xtx.Rollback() }() // sql.ErrTxDone behind Commit
			if err := fn(xtx.Tx, func(ctx context.Context, account string) error {
				_, err := xtx.NamedExecContext(ctx, `INSERT INTO charges (account) VALUES (:account)`, Charge{Account: account})
				return err
			}); err != nil {
				return err
			}
			return xtx.Commit()
		},
	}
}

func openBun(b *bench) orm {
	bdb := bun.NewDB(b.db, pgdialect.New())
	return orm{
		bind: func(tx *sql.Tx) charge {
			return func(ctx context.Context, account string) error {
				_, err := bdb.NewInsert().Conn(tx).Model(&Charge{Account: account}).Exec(ctx)
				return err
			}
		},
		own: func(ctx context.Context, fn func(tx *sql.Tx, write charge) error) error {
			return bdb.RunInTx(ctx, nil, func(ctx context.Context, btx bun.Tx) error {
				return fn(btx.Tx, func(ctx context.Context, account string) error {
					_, err := btx.NewInsert().Model(&Charge{Account: account}).Exec(ctx)
					return err
				})
			})
		},
	}
}

// txDriver is a driver of ent's in a transaction that is there already.
type txDriver struct{ *entsql.Driver }

func newTxDriver(tx *sql.Tx) txDriver {
	return txDriver{entsql.NewDriver(dialect.Postgres, entsql.Conn{ExecQuerier: tx})}
}

func (d txDriver) Tx(context.Context) (dialect.Tx, error) { return dialect.NopTx(d), nil }

func (d txDriver) BeginTx(context.Context, *sql.TxOptions) (dialect.Tx, error) {
	return dialect.NopTx(d), nil
}

func openEnt(b *bench) orm {
	return b.ownTx(func(tx *sql.Tx) charge {
		return func(ctx context.Context, account string) error {
			// As generated code does, which begins a transaction for some of its calls.
			etx, err := newTxDriver(tx).Tx(ctx)
			if err != nil {
				return err
			}
			query, args := entsql.Dialect(dialect.Postgres).Insert("charges").Columns("account").Values(account).Returning("id").Query()
			rows := &entsql.Rows{}
			if err := etx.Query(ctx, query, args, rows); err != nil {
				return err
			}
			defer func() { _ = rows.Close() }()
			if _, err := entsql.ScanInt64(rows); err != nil {
				return err
			}
			return etx.Commit()
		}
	})
}

// DBTX, Queries, New and CreateCharge are what sqlc generates for database/sql.
type DBTX interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

type Queries struct{ db DBTX }

func New(db DBTX) *Queries { return &Queries{db} }

func (q *Queries) CreateCharge(ctx context.Context, account string) error {
	_, err := q.db.ExecContext(ctx, insertCharge, account)
	return err
}

func openSQLC(b *bench) orm {
	return b.ownTx(func(tx *sql.Tx) charge { return New(tx).CreateCharge })
}

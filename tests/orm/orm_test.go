package orm_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/sqlstore"
	"github.com/samecommit/samecommit/internal/pgtest"
)

// bench is a client on a *sql.DB, and a table of charges.
type bench struct {
	*testing.T
	db     *sql.DB
	client *idempotency.Client[*sql.Tx]
}

// newBench opens a database of its own.
func newBench(t *testing.T, open func(dsn string) (*sql.DB, error)) *bench {
	t.Helper()
	pool := pgtest.DB(t)
	if _, err := pool.Exec(t.Context(), `CREATE TABLE charges (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, account text NOT NULL CHECK (account <> ''))`); err != nil {
		t.Fatal(err)
	}
	db, err := open(pool.Config().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	store, err := sqlstore.New(db, nil)
	if err != nil {
		t.Fatal(err)
	}
	client, err := idempotency.NewClient(store, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &bench{t, db, client}
}

func openPgx(dsn string) (*sql.DB, error) { return sql.Open("pgx", dsn) }

var params = idempotency.Params{Key: idempotency.Key{Scope: "charges", ID: "order-1001"}, Fingerprint: idempotency.FingerprintOf("charge")}

// want fails where the database has other than these numbers of charges and keys.
func (b *bench) want(charges, keys int) {
	b.Helper()
	var gotCharges, gotKeys int
	if err := b.db.QueryRowContext(b.Context(), `SELECT (SELECT count(*) FROM charges), (SELECT count(*) FROM idempotency_keys)`).Scan(&gotCharges, &gotKeys); err != nil {
		b.Fatal(err)
	}
	if gotCharges != charges || gotKeys != keys {
		b.Errorf("%d charges and %d keys, want %d and %d", gotCharges, gotKeys, charges, keys)
	}
}

// charge writes a row of charges. That of no account is an SQL error, which aborts the
// transaction.
type charge func(ctx context.Context, account string) error

// orm is a way to write charges.
type orm struct {
	// bind returns a charge that writes through a transaction that is lent.
	bind func(tx *sql.Tx) charge
	// own calls fn in a transaction of the ORM's own, with the *sql.Tx of it, and commits
	// it where fn returns nil.
	own func(ctx context.Context, fn func(tx *sql.Tx, write charge) error) error
}

var orms = map[string]func(b *bench) orm{
	"database/sql":          openSQL,
	"GORM":                  openGORM(false, gormTx),
	"GORM with PrepareStmt": openGORM(true, gormPreparedTx),
	"sqlx":                  openSQLX,
	"bun":                   openBun,
	"ent":                   openEnt,
	"sqlc":                  openSQLC,
}

// call is Do or DoTx, of a function whose answer is 1.
type call func(ctx context.Context, fn func(ctx context.Context, write charge) error) (idempotency.Result[int], error)

var entries = map[string]func(*bench, orm) call{"Do": (*bench).do, "DoTx": (*bench).doTx}

func (b *bench) do(o orm) call {
	return func(ctx context.Context, fn func(ctx context.Context, write charge) error) (idempotency.Result[int], error) {
		return idempotency.Do(ctx, b.client, params, func(ctx context.Context, tx *sql.Tx) (int, error) { return 1, fn(ctx, o.bind(tx)) })
	}
}

func (b *bench) doTx(o orm) call {
	return func(ctx context.Context, fn func(ctx context.Context, write charge) error) (idempotency.Result[int], error) {
		var result idempotency.TxResult[int]
		err := o.own(ctx, func(tx *sql.Tx, write charge) (err error) {
			result, err = idempotency.DoTx(ctx, b.client, tx, params, func(ctx context.Context, _ *sql.Tx) (int, error) { return 1, fn(ctx, write) })
			return err
		})
		if err != nil {
			return idempotency.Result[int]{}, err
		}
		return result.Answer()
	}
}

var errDeclined = errors.New("the charge is declined")

func TestORMs(t *testing.T) {
	t.Parallel()
	for name, open := range orms {
		for entry, newCall := range entries {
			t.Run(name+"/"+entry, func(t *testing.T) {
				t.Parallel()
				b := newBench(t, openPgx)
				b.once(newCall(b, open(b)))
			})
		}
	}
}

// once holds call to what Do promises of fn's writes.
func (b *bench) once(call call) {
	b.Helper()
	ctx := b.Context()
	if _, err := call(ctx, func(ctx context.Context, write charge) error {
		return errors.Join(write(ctx, "anna"), errDeclined)
	}); !errors.Is(err, errDeclined) {
		b.Errorf("a function that fails: %v", err)
	}
	b.want(0, 0)

	if _, err := call(ctx, func(ctx context.Context, write charge) error {
		err := write(ctx, "anna")
		if write(ctx, "") == nil {
			b.Error("the charge of no account was taken")
		}
		return err
	}); !errors.Is(err, idempotency.ErrTxAborted) {
		b.Errorf("a function that ignores an error of SQL: %v, want ErrTxAborted", err)
	}
	b.want(0, 0)

	for _, replayed := range []bool{false, true} {
		result, err := call(ctx, func(ctx context.Context, write charge) error {
			if replayed {
				b.Error("the function runs again on a replay")
			}
			return write(ctx, "anna")
		})
		if err != nil {
			b.Fatal(err)
		}
		if result.Value != 1 || result.Replayed != replayed {
			b.Errorf("%+v, want 1, replayed %t", result, replayed)
		}
		b.want(1, 1)
	}
}

package sqlstore_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/sqlstore"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

// otherDriver is a driver that is not pgx's. It counts what it is asked to send.
type otherDriver struct {
	sent atomic.Int32
	// lenient takes any argument.
	lenient bool
}

func (d *otherDriver) Connect(context.Context) (driver.Conn, error) { return &otherConn{d}, nil }
func (d *otherDriver) Driver() driver.Driver                        { return nil }

type otherConn struct{ driver *otherDriver }

func (c *otherConn) Prepare(string) (driver.Stmt, error) { return nil, errors.ErrUnsupported }
func (c *otherConn) Close() error                        { return nil }
func (c *otherConn) Begin() (driver.Tx, error)           { return c, nil }
func (c *otherConn) Commit() error                       { return nil }
func (c *otherConn) Rollback() error                     { return nil }

func (c *otherConn) ExecContext(_ context.Context, query string, _ []driver.NamedValue) (driver.Result, error) {
	if query != "" {
		c.driver.sent.Add(1)
	}
	return driver.RowsAffected(0), nil
}

func (c *otherConn) QueryContext(context.Context, string, []driver.NamedValue) (driver.Rows, error) {
	c.driver.sent.Add(1)
	return nil, errors.ErrUnsupported
}

func (c *otherConn) CheckNamedValue(*driver.NamedValue) error {
	if c.driver.lenient {
		return nil
	}
	return driver.ErrSkip
}

func TestOtherDriver(t *testing.T) {
	t.Parallel()
	for name, lenient := range map[string]bool{"strict": false, "lenient": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			other := &otherDriver{lenient: lenient}
			db := closed(t, sql.OpenDB(other))
			store, err := sqlstore.New(db, nil)
			if err != nil {
				t.Fatal(err)
			}
			client, err := idempotency.NewClient(store, nil)
			if err != nil {
				t.Fatal(err)
			}
			mustNotRun := func(context.Context, *sql.Tx) (string, error) { t.Error("the function ran"); return "", nil }
			want := func(call string, err error) {
				if !errors.Is(err, sqlstore.ErrDriver) || errors.Is(err, idempotency.ErrUnavailable) || !strings.Contains(err.Error(), `sql.Open("pgx", dsn)`) {
					t.Errorf("%s: %v, want ErrDriver with the line that mends it", call, err)
				}
				if strings.Contains(err.Error(), "%!") {
					t.Errorf("%s: %v", call, err)
				}
			}
			_, err = idempotency.Do(t.Context(), client, bench.Params("k"), mustNotRun)
			want("Do", err)
			if !strings.Contains(err.Error(), "*sqlstore_test.otherConn") {
				t.Errorf("%v does not name the type", err)
			}
			_, err = client.Get(t.Context(), bench.Params("k").Key)
			want("Get", err)
			want("Transact", store.Transact(t.Context(), func(context.Context, *sql.Tx) error { t.Error("the function ran"); return nil }))

			tx, err := db.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback() }()
			_, err = idempotency.DoTx(t.Context(), client, tx, bench.Params("k"), mustNotRun)
			want("DoTx", err)
			_, err = client.WithTx(tx).BeginMany(t.Context(), []idempotency.Params{bench.Params("k")})
			want("BeginMany", err)
			_, err = client.WithTx(tx).Get(t.Context(), bench.Params("k").Key)
			want("WithTx.Get", err)
			want("Savepoint", store.Savepoint(t.Context(), tx, func(context.Context, *sql.Tx) error { t.Error("the function ran"); return nil }))
			if sent := other.sent.Load(); sent != 0 {
				t.Errorf("%d statements were sent", sent)
			}
			if stats := db.Stats(); stats.InUse != 1 { // the caller's transaction
				t.Errorf("%d connections in use", stats.InUse)
			}
		})
	}
}

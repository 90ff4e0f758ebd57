package sqlstore_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/sqlstore"
)

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	db := closed(t, sql.OpenDB(&otherDriver{}))
	if _, err := sqlstore.New(db, nil); err != nil {
		t.Errorf("no config: %v", err)
	}
	for field, make := range map[string]func() (*sqlstore.Store, error){
		"db": func() (*sqlstore.Store, error) { return sqlstore.New(nil, nil) },
		"Config.TxOptions": func() (*sqlstore.Store, error) {
			return sqlstore.New(db, &sqlstore.Config{TxOptions: sql.TxOptions{Isolation: sql.LevelWriteCommitted}})
		},
		"Config.TxOptions ": func() (*sqlstore.Store, error) {
			return sqlstore.New(db, &sqlstore.Config{TxOptions: sql.TxOptions{Isolation: sql.LevelLinearizable}})
		},
		"Config.MaxAttempts": func() (*sqlstore.Store, error) { return sqlstore.New(db, &sqlstore.Config{MaxAttempts: -1}) },
	} {
		var paramErr *idempotency.ParamError
		if store, err := make(); !errors.As(err, &paramErr) || paramErr.Field != strings.TrimSpace(field) || store != nil {
			t.Errorf("%v, want a *ParamError of %s", err, field)
		}
	}
}

func TestNoTransactionIsRefused(t *testing.T) {
	t.Parallel()
	b := newSingleBench(t, nil)
	var paramErr *idempotency.ParamError
	if err := b.doIn(t.Context(), nil, "k", func(context.Context, *sql.Tx) error { return nil }); !errors.As(err, &paramErr) || paramErr.Field != "tx" {
		t.Errorf("%v, want a *ParamError of tx", err)
	}
	if err := b.store.Savepoint(t.Context(), nil, func(context.Context, *sql.Tx) error { return nil }); !errors.As(err, &paramErr) || paramErr.Field != "tx" {
		t.Errorf("Savepoint: %v, want a *ParamError of tx", err)
	}
}

func TestLevels(t *testing.T) {
	t.Parallel()
	b := newSingleBench(t, nil)
	for level, want := range map[sql.IsolationLevel]string{
		sql.LevelDefault: "read committed", sql.LevelReadUncommitted: "read uncommitted", sql.LevelReadCommitted: "read committed",
		sql.LevelRepeatableRead: "repeatable read", sql.LevelSnapshot: "repeatable read", sql.LevelSerializable: "serializable",
	} {
		store, err := sqlstore.New(b.db, &sqlstore.Config{TxOptions: sql.TxOptions{Isolation: level}})
		if err != nil {
			t.Fatal(err)
		}
		if err := store.Transact(t.Context(), func(ctx context.Context, tx *sql.Tx) error {
			var got string
			err := tx.QueryRowContext(ctx, `SHOW transaction_isolation`).Scan(&got)
			if got != want {
				t.Errorf("%v: %q, want %q", level, got, want)
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	}
}

func TestReadOnlyIsRefused(t *testing.T) {
	t.Parallel()
	b := newSingleBench(t, &sqlstore.Config{TxOptions: sql.TxOptions{ReadOnly: true}})
	err := b.do(t.Context(), "k", func(context.Context, *sql.Tx) error { t.Error("the function ran"); return nil })
	if !errors.Is(err, idempotency.ErrReadOnly) {
		t.Errorf("Do: %v, want ErrReadOnly", err)
	}
	tx, err := b.db.BeginTx(t.Context(), &sql.TxOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.doIn(t.Context(), tx, "k", func(context.Context, *sql.Tx) error { return nil }); !errors.Is(err, idempotency.ErrReadOnly) {
		t.Errorf("DoTx: %v, want ErrReadOnly", err)
	}
	_ = tx.Rollback()
	b.want(t, "k", 0, false)
}

type tenantKey struct{}

// The settings are those of the function's statements, and end with the transaction.
func TestSettings(t *testing.T) {
	t.Parallel()
	b := newSingleBench(t, &sqlstore.Config{Settings: func(ctx context.Context) (map[string]string, error) {
		tenant, _ := ctx.Value(tenantKey{}).(string)
		return map[string]string{"app.tenant": tenant}, nil
	}})
	if !b.store.PerCaller() {
		t.Error("the store does not say that it has settings of each caller's")
	}
	for _, tenant := range []string{"one", "two"} {
		if err := b.do(context.WithValue(t.Context(), tenantKey{}, tenant), tenant, func(ctx context.Context, tx *sql.Tx) error {
			var got string
			err := tx.QueryRowContext(ctx, `SELECT current_setting('app.tenant')`).Scan(&got)
			if got != tenant {
				t.Errorf("%q, want %q", got, tenant)
			}
			return err
		}); err != nil {
			t.Error(err)
		}
		b.want(t, tenant, 1, true)
	}
	var left string
	if err := b.db.QueryRowContext(t.Context(), `SELECT current_setting('app.tenant')`).Scan(&left); err != nil || left != "" {
		t.Errorf("%q is left of it, %v", left, err)
	}
}

package tests_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
	"github.com/samecommit/samecommit/internal/pgtest"
)

// The answer must be in the table that was asked for it: in another one no later
// call would find it.
func TestFunctionThatHidesTheTable(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		sql  string
		want error
	}{
		"another schema's":              {`SET LOCAL search_path TO tenant_7, public`, pgxstore.ErrTableMoved},
		"a temporary one":               {`CREATE TEMPORARY TABLE idempotency_keys (LIKE idempotency_keys INCLUDING ALL) ON COMMIT DROP`, pgxstore.ErrTableMoved},
		"none":                          {`SET LOCAL search_path TO empty`, pgxstore.ErrNotMigrated},
		"another schema's, not locally": {`SET search_path TO tenant_7, public`, pgxstore.ErrTableMoved},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, pgtest.DB(t), nil, nil)
			if _, err := b.pool.Exec(t.Context(), `
				CREATE SCHEMA empty;
				CREATE SCHEMA tenant_7;
				CREATE TABLE tenant_7.idempotency_keys (LIKE idempotency_keys INCLUDING ALL)`, pgx.QueryExecModeSimpleProtocol); err != nil {
				t.Fatal(err)
			}
			runs := 0
			hide := func(ctx context.Context, tx pgx.Tx) (string, error) {
				runs++
				if err := effect(ctx, tx, "k"); err != nil {
					return "", err
				}
				_, err := tx.Exec(ctx, test.sql)
				return "k", err
			}
			// Twice: the second call has its statements prepared.
			for range 2 {
				runs = 0
				_, err := idempotency.Do(t.Context(), b.client, params("k"), hide)
				if !errors.Is(err, test.want) || runs != 1 {
					t.Errorf("%v after %d runs, want %v after 1", err, runs, test.want)
				}
			}
			b.wantNothing(t, "k")
		})
	}
}

// A temporary table that an earlier call left on a pooled connection ends with
// that connection, and every key in it.
func TestTemporaryTableInFrontOfTheTable(t *testing.T) {
	t.Parallel()
	config := pgtest.Config(t)
	config.MaxConns = 1
	b := newBench(t, poolWith(t, config), nil, nil)
	if _, err := b.pool.Exec(t.Context(), `CREATE TEMPORARY TABLE idempotency_keys (LIKE idempotency_keys INCLUDING ALL)`); err != nil {
		t.Fatal(err)
	}
	_, err := idempotency.Do(t.Context(), b.client, params("k"), charge("k"))
	if !errors.Is(err, pgxstore.ErrTemporaryTable) {
		t.Errorf("error is %v, want ErrTemporaryTable", err)
	}
	if n := b.effects(t, "k"); n != 0 {
		t.Errorf("%d effects, want none", n)
	}

	// Another temporary table is nobody's business.
	if _, err := b.pool.Exec(t.Context(), `ALTER TABLE pg_temp.idempotency_keys RENAME TO other`); err != nil {
		t.Fatal(err)
	}
	if _, err := idempotency.Do(t.Context(), b.client, params("k"), charge("k")); err != nil {
		t.Error(err)
	}
}

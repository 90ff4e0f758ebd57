package pgxstore_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
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
			b := bench.New(t, pgtest.DB(t), nil, nil)
			if _, err := b.Pool.Exec(t.Context(), `
				CREATE SCHEMA empty;
				CREATE SCHEMA tenant_7;
				CREATE TABLE tenant_7.idempotency_keys (LIKE idempotency_keys INCLUDING ALL)`, pgx.QueryExecModeSimpleProtocol); err != nil {
				t.Fatal(err)
			}
			runs := 0
			hide := func(ctx context.Context, tx pgx.Tx) (string, error) {
				runs++
				if err := bench.Effect(ctx, tx, "k"); err != nil {
					return "", err
				}
				_, err := tx.Exec(ctx, test.sql)
				return "k", err
			}
			// Twice: the second call has its statements prepared.
			for range 2 {
				runs = 0
				_, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), hide)
				if !errors.Is(err, test.want) || runs != 1 {
					t.Errorf("%v after %d runs, want %v after 1", err, runs, test.want)
				}
			}
			wantNothing(t, b, "k")
		})
	}
}

// A temporary table that an earlier call left on a pooled connection ends with
// that connection, and every key in it.
func TestTemporaryTableInFrontOfTheTable(t *testing.T) {
	t.Parallel()
	config := pgtest.Config(t)
	config.MaxConns = 1
	b := bench.New(t, bench.PoolWith(t, config), nil, nil)
	if _, err := b.Pool.Exec(t.Context(), `CREATE TEMPORARY TABLE idempotency_keys (LIKE idempotency_keys INCLUDING ALL)`); err != nil {
		t.Fatal(err)
	}
	_, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), bench.Charge("k"))
	if !errors.Is(err, pgxstore.ErrTemporaryTable) {
		t.Errorf("error is %v, want ErrTemporaryTable", err)
	}
	if n := b.Effects(t, "k"); n != 0 {
		t.Errorf("%d effects, want none", n)
	}

	// Another temporary table is nobody's business.
	if _, err := b.Pool.Exec(t.Context(), `ALTER TABLE pg_temp.idempotency_keys RENAME TO other`); err != nil {
		t.Fatal(err)
	}
	if _, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), bench.Charge("k")); err != nil {
		t.Error(err)
	}
}

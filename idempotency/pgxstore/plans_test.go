package pgxstore_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

// tableReads is what PostgreSQL counted of idempotency_keys.
type tableReads struct{ seqScans, indexRows, inserted, deleted int64 }

func readsOf(t *testing.T, pool *pgxpool.Pool) (reads tableReads) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), `SELECT seq_scan, coalesce(idx_tup_fetch, 0), n_tup_ins, n_tup_del
		FROM pg_stat_user_tables WHERE relid = 'idempotency_keys'::regclass`).Scan(&reads.seqScans, &reads.indexRows, &reads.inserted, &reads.deleted); err != nil {
		t.Fatal(err)
	}
	return reads
}

// everyStatement makes calls that send each statement of ours, with keys of its
// own, and returns how many rows it has inserted.
func everyStatement(t *testing.T, b *bench.Bench, round string) (inserted int64) {
	t.Helper()
	ctx := t.Context()
	expiring := func(p idempotency.Params) idempotency.Params {
		p.TTL = time.Microsecond
		return p
	}
	id := func(name string) string { return round + name }
	inTx := func(fn func(tx pgx.Tx) error) {
		t.Helper()
		if err := pgx.BeginFunc(ctx, b.Pool, fn); err != nil {
			t.Fatal(err)
		}
	}
	noWork := func(context.Context, pgx.Tx) (string, error) { return "done", nil }
	// Seven times, as PostgreSQL chooses a generic plan for the sixth.
	for i := range 7 {
		name := id(fmt.Sprintf("do-%d", i))
		for range 2 { // KeyTryLock, KeyGet, KeyInsertCompleted, KeyReplaceCompleted
			if _, err := idempotency.Do(ctx, b.Client, expiring(bench.Params(name)), noWork); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := b.Client.Get(ctx, bench.Params(name).Key); !errors.Is(err, idempotency.ErrNotFound) {
			t.Fatal(err)
		}
		name = id(fmt.Sprintf("tx-%d", i))
		for range 2 { // KeyClaim, KeyComplete, KeyReclaim
			inTx(func(tx pgx.Tx) error {
				_, err := idempotency.DoTx(ctx, b.Client, tx, expiring(bench.Params(name)), noWork)
				return err
			})
		}
		outcome, err := b.Store.Begin(ctx, leased(id(fmt.Sprintf("lease-%d", i)), time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		extended, err := b.Store.Extend(ctx, outcome.Claim, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(b.Store.AddStep(ctx, extended, stepOf("charge")), b.Store.Suspend(ctx, extended), b.Store.Release(ctx, extended)); err != nil {
			t.Fatal(err)
		}
		// KeyHold, KeyCheckBegan; KeyListAbandoned
		if outcome, err = b.Store.Begin(ctx, leased(id(fmt.Sprintf("held-%d", i)), time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Store.RunHeld(ctx, outcome.Claim, func(context.Context, pgx.Tx) (idempotency.Answer, error) {
			return idempotency.Answer{Response: bytesResponse("done")}, nil
		}); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Store.ListAbandoned(ctx, nil, 10); err != nil {
			t.Fatal(err)
		}
		var all []idempotency.Params
		for k := range 20 {
			all = append(all, expiring(bench.Params(id(fmt.Sprintf("many-%d-%d", i, k)))))
		}
		for range 2 { // KeyClaimMany, KeyCompleteMany; KeyGetMany, KeyReclaimMany
			inTx(func(tx pgx.Tx) error {
				batch, err := b.Client.WithTx(tx).BeginMany(ctx, all)
				if err != nil {
					return err
				}
				for _, item := range batch.Items {
					item.Response = bytesResponse("done")
				}
				return batch.Complete(ctx)
			})
		}
		if _, err := b.Client.DeleteExpired(ctx, 10); err != nil {
			t.Fatal(err)
		}
		inserted += 1 + 1 + 1 + 1 + 20
	}
	return inserted
}

// growth makes narrow or wide rows that nobody asks for.
func growth(rows, body int) string {
	return fmt.Sprintf(`INSERT INTO idempotency_keys (scope, id, claim_id, attempt, fingerprint, response, response_type, created_at, updated_at, expires_at)
		SELECT 'g', n::text, gen_random_uuid(), 1, '\x00', convert_to(repeat('x', %d), 'UTF8'), 'b', now(), now(), now() + interval '1 day' FROM generate_series(1, %d) AS n`, body, rows)
}

// firstAutovacuum is how many changed rows make autovacuum read a new table.
func firstAutovacuum(t *testing.T, pool *pgxpool.Pool) int {
	t.Helper()
	return bench.Count(t, pool, `SELECT min(coalesce(own.option_value, setting)::integer)
		FROM pg_settings
		LEFT JOIN (SELECT (pg_options_to_table(reloptions)).* FROM pg_class WHERE oid = 'idempotency_keys'::regclass) AS own ON option_name = name
		WHERE name IN ('autovacuum_vacuum_threshold', 'autovacuum_analyze_threshold')`)
}

// A plan that reads the whole table may be made while it is small and kept while
// it grows: none is ever made.
func TestNoStatementReadsTheWholeTable(t *testing.T) {
	t.Parallel()
	rows := 200_000
	if testing.Short() {
		rows = 20_000
	}
	for _, mode := range []string{"auto", "force_generic_plan", "force_custom_plan"} {
		for _, shape := range []struct {
			name    string
			emptied bool
			body    int
			after   []string
		}{
			{name: "narrow"},
			{name: "wide", body: 500},
			{name: "narrow, analyzed", after: []string{`ANALYZE idempotency_keys`}},
			{name: "emptied", emptied: true},
		} {
			t.Run(mode+", "+shape.name, func(t *testing.T) {
				t.Parallel()
				admin := pgtest.DB(t)
				exec := func(statements ...string) {
					t.Helper()
					for _, sql := range statements {
						if _, err := admin.Exec(t.Context(), sql); err != nil {
							t.Fatal(err)
						}
					}
				}
				// Its statistics must be those of a new table, and stay so.
				exec(`ALTER TABLE idempotency_keys SET (autovacuum_enabled = false)`)
				var before tableReads
				if shape.emptied {
					// By the sweep, once autovacuum has been there as soon as it comes.
					some := firstAutovacuum(t, admin)
					exec(growth(some, 0), `VACUUM (ANALYZE) idempotency_keys`, `DELETE FROM idempotency_keys`, `VACUUM (ANALYZE) idempotency_keys`)
					admin.Reset() // a backend hands its counts on when it ends
					bench.WaitFor(t, func() bool {
						before = readsOf(t, admin)
						return before.deleted >= int64(some)
					})
				}
				config := admin.Config().Copy()
				config.MaxConns = 1 // whose plans are kept
				config.ConnConfig.RuntimeParams["plan_cache_mode"] = mode
				pool, err := pgxpool.NewWithConfig(t.Context(), config)
				if err != nil {
					t.Fatal(err)
				}
				defer pool.Close()
				b := bench.New(t, pool, nil, nil)
				inserted := everyStatement(t, b, "empty ")
				exec(growth(rows, shape.body))
				exec(shape.after...)
				inserted += everyStatement(t, b, "grown ")
				pool.Close()
				admin.Reset()
				bench.WaitFor(t, func() bool { return readsOf(t, admin).inserted >= before.inserted+inserted+int64(rows) })
				got := readsOf(t, admin)
				if scans := got.seqScans - before.seqScans; scans != 0 {
					t.Errorf("the whole table was read %d times", scans)
				}
				// Nor by way of an index.
				if limit := 20 * inserted; got.indexRows-before.indexRows > limit {
					t.Errorf("%d rows were read by index for %d keys, want at most %d", got.indexRows-before.indexRows, inserted, limit)
				}
			})
		}
	}
}

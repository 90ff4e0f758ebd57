package pgxstore_test

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

// insertExpired writes answers that have expired, the first one longest ago.
func insertExpired(t *testing.T, pool *pgxpool.Pool, from, to int) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), `
		INSERT INTO idempotency_keys (scope, id, claim_id, attempt, fingerprint, response_type, created_at, updated_at, expires_at)
		SELECT 'expired', n::text, gen_random_uuid(), 1, '\x00', 'bytes', now(), now(), now() - interval '1 day' + n * interval '1 ms'
		FROM generate_series($1::integer, $2) AS n`, from, to); err != nil {
		t.Fatal(err)
	}
}

// What a sweep has deleted stays in the index while a snapshot could still want
// it. It is not walked over again, and neither is what has not been reached yet.
func TestSweepReadsEachRowOnce(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"force_generic_plan", "force_custom_plan"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			admin := pgtest.DB(t)
			if _, err := admin.Exec(t.Context(), `ALTER TABLE idempotency_keys SET (autovacuum_enabled = false)`); err != nil {
				t.Fatal(err)
			}
			const rows, limit = 10_000, 500
			insertExpired(t, admin, 1, rows)
			old, err := admin.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
			if err != nil {
				t.Fatal(err)
			}
			defer old.Rollback(t.Context())
			if _, err := old.Exec(t.Context(), `SELECT`); err != nil {
				t.Fatal(err)
			}

			config := admin.Config().Copy()
			config.ConnConfig.RuntimeParams["plan_cache_mode"] = mode
			pool, err := pgxpool.NewWithConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			b := bench.New(t, pool, nil, nil)
			deleted := 0
			for {
				n, err := b.Client.DeleteExpired(t.Context(), limit)
				if err != nil {
					t.Fatal(err)
				}
				deleted += n
				if n < limit {
					break
				}
			}
			if deleted != rows {
				t.Errorf("%d rows deleted, want %d", deleted, rows)
			}
			pool.Close()
			reads := func() (deleted, read int64) {
				if err := admin.QueryRow(t.Context(), `SELECT n_tup_del, idx_tup_read
					FROM pg_stat_user_tables JOIN pg_stat_user_indexes USING (relid)
					WHERE relid = 'idempotency_keys'::regclass AND indexrelname = 'idempotency_keys_expires_at_idx'`).Scan(&deleted, &read); err != nil {
					t.Fatal(err)
				}
				return deleted, read
			}
			bench.WaitFor(t, func() bool { n, _ := reads(); return n == rows })
			// Once to delete it, and once at the end, where the sweep makes sure
			// that nothing older came meanwhile.
			if _, read := reads(); read > 2*rows+rows/10 {
				t.Errorf("%d index entries were read to delete %d rows, want about %d", read, rows, 2*rows)
			}
		})
	}
}

// A row that was locked, or came to lie before the place that the sweep has
// reached, goes with a later call of the same round.
func TestSweepComesBackForWhatItLeft(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	insertExpired(t, b.Pool, 10, 40)
	tx, err := b.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	if _, err := tx.Exec(t.Context(), `SELECT FROM idempotency_keys WHERE id = '10' FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	sweep := func(limit, want int) {
		t.Helper()
		if n, err := b.Client.DeleteExpired(t.Context(), limit); err != nil || n != want {
			t.Errorf("DeleteExpired(%d): %d, %v; want %d", limit, n, err, want)
		}
	}
	sweep(10, 10) // 11 to 20
	insertExpired(t, b.Pool, 1, 5)
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	sweep(10, 10) // 21 to 30
	sweep(12, 12) // 31 to 40, and from the oldest on
	sweep(12, 4)
	sweep(12, 0)
	if n := bench.Count(t, b.Pool, `SELECT count(*) FROM idempotency_keys`); n != 0 {
		t.Errorf("%d rows are left", n)
	}
	// The next sweep begins at the oldest again.
	for i := range 3 {
		insertExpired(t, b.Pool, 1, 10)
		if n, err := b.Client.DeleteExpired(t.Context(), 100); err != nil || n != 10 {
			t.Errorf("%s: %d, %v; want 10", fmt.Sprintf("round %d", i), n, err)
		}
	}
}

// A row that somebody claims again is not waited for, nor deleted.
func TestSweepLeavesLockedRowsAlone(t *testing.T) {
	t.Parallel()
	config := pgtest.Config(t)
	// Waiting for the row would be an error.
	config.ConnConfig.RuntimeParams["lock_timeout"] = "10ms"
	pool := bench.PoolWith(t, config)
	b := bench.New(t, pool, nil, nil)
	expireAll(t, b, batchParams(0, 3))
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	if outcome, err := b.Client.WithTx(tx).Begin(t.Context(), batchParams(1, 2)[0]); err != nil || outcome.State != idempotency.New {
		t.Fatalf("%+v, %v; want a new claim", outcome, err)
	}
	if deleted, err := b.Client.DeleteExpired(t.Context(), 0); err != nil || deleted != 2 {
		t.Errorf("%d deleted, %v; want the two that nobody has locked", deleted, err)
	}
}

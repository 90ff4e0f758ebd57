package sqlstore_test

import (
	"context"
	"database/sql"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/stdlib"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

// countedBench counts what its *sql.DB sends.
func countedBench(t *testing.T) (*sqlBench, *bench.QueryCounter) {
	t.Helper()
	counter := &bench.QueryCounter{}
	pool := pgtest.DB(t)
	config := pool.Config().ConnConfig.Copy()
	config.Tracer = counter
	b := newBenchOn(t, pool, closed(t, sql.OpenDB(stdlib.GetConnector(*config))), nil)
	b.db.SetMaxOpenConns(1)
	return b, counter
}

func TestFlights(t *testing.T) {
	t.Parallel()
	b, counter := countedBench(t)
	more := func(count int) func(context.Context, *sql.Tx) error {
		return func(ctx context.Context, tx *sql.Tx) error {
			for range count {
				if err := statement("SELECT 1")(ctx, tx); err != nil {
					return err
				}
			}
			return nil
		}
	}
	if err := b.do(t.Context(), "warm up", more(1)); err != nil {
		t.Fatal(err)
	}
	if err := b.doTx(t.Context(), "warm up DoTx", more(1)); err != nil {
		t.Fatal(err)
	}
	get := func(key idempotency.Key) error {
		_, err := b.client.Get(t.Context(), key)
		return err
	}
	for _, test := range []struct {
		name string
		call func() error
		want int
	}{
		{"Do with 1 statement", func() error { return b.do(t.Context(), "one", more(0)) }, 3},
		{"Do with 4 statements", func() error { return b.do(t.Context(), "four", more(3)) }, 6},
		{"a replay", func() error { return b.do(t.Context(), "one", more(0)) }, 2},
		{"Get", func() error { return get(bench.Params("one").Key) }, 1},
		// BEGIN, the claim, a savepoint and its release, the answer, COMMIT, each alone.
		{"DoTx with 1 statement", func() error { return b.doTx(t.Context(), "one of DoTx", more(0)) }, 7},
		{"DoTx with 4 statements", func() error { return b.doTx(t.Context(), "four of DoTx", more(3)) }, 10},
		// BEGIN, the claim, the look at the answer, COMMIT.
		{"a replay of DoTx", func() error { return b.doTx(t.Context(), "one of DoTx", more(0)) }, 4},
	} {
		_, sent := counter.Count(func() {
			if err := test.call(); err != nil {
				t.Errorf("%s: %v", test.name, err)
			}
		})
		flights := counter.Flights()
		for _, text := range sent {
			if text == "" { // a look at the connection: nothing was sent
				flights--
			}
		}
		if flights != test.want {
			t.Errorf("%s: %d flights, want %d\n%s", test.name, flights, test.want, strings.Join(sent, "\n"))
		}
	}
}

// A *sql.Tx is lent for 33 allocations more than a pgx.Tx, as measured.
func TestAllocations(t *testing.T) { //nolint:paralleltest // Other tests allocate too.
	const most = 35
	b := newSingleBench(t, nil)
	other := bench.New(t, b.pool, nil, nil)
	id := 0
	name := func() string { id++; return strings.Repeat("x", id) }
	nothing := func(context.Context, *sql.Tx) error { return nil }
	lent := testing.AllocsPerRun(50, func() {
		if err := b.do(t.Context(), name(), nothing); err != nil {
			t.Error(err)
		}
	})
	direct := testing.AllocsPerRun(50, func() {
		n := name()
		if _, err := idempotency.Do(t.Context(), other.Client, bench.Params(n), bench.Charge(n)); err != nil {
			t.Error(err)
		}
	})
	t.Logf("%.0f allocations, %.0f by pgxstore", lent, direct)
	if lent-direct > most {
		t.Errorf("%.0f allocations, %.0f by pgxstore: want at most %d more", lent, direct, most)
	}
}

package pgxstore_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

func leased(id string, lease time.Duration) *idempotency.BeginParams {
	return &idempotency.BeginParams{Key: bench.Params(id).Key, Fingerprint: bench.Params(id).Fingerprint, TTL: time.Minute, Lease: lease}
}

// The database's clock is the only one that decides. Here it is an hour ahead
// for one of two clients: a function of ours goes before PostgreSQL's.
func TestDatabasesClockDecides(t *testing.T) {
	t.Parallel()
	config := pgtest.Config(t)
	pool := bench.PoolWith(t, config)
	b := bench.New(t, pool, nil, nil)
	if _, err := pool.Exec(t.Context(), `CREATE SCHEMA ahead; CREATE FUNCTION ahead.statement_timestamp() RETURNS timestamptz
		LANGUAGE sql STABLE AS $$ SELECT pg_catalog.statement_timestamp() + interval '1 hour' $$`); err != nil {
		t.Fatal(err)
	}
	config = config.Copy()
	config.ConnConfig.RuntimeParams["search_path"] = "ahead, pg_catalog, public"
	ahead := bench.PoolWith(t, config)
	later := bench.Open(t, ahead, nil, nil)

	begin := func(b *bench.Bench, id string, want idempotency.State) *idempotency.Outcome {
		t.Helper()
		outcome, err := b.Store.Begin(t.Context(), leased(id, time.Minute))
		if err != nil || outcome.State != want {
			t.Fatalf("Begin of %q: %+v, %v; want %v", id, outcome, err, want)
		}
		return outcome
	}
	begin(b, "lease", idempotency.New)
	begin(b, "lease", idempotency.InProgress)
	if claim := begin(later, "lease", idempotency.New).Claim; claim.Attempt != 2 {
		t.Errorf("attempt %d, want the second", claim.Attempt)
	}
	// By the other clock that lease lasts for an hour and a minute.
	if left := time.Until(begin(b, "lease", idempotency.InProgress).Record.LockedUntil); left < time.Hour {
		t.Errorf("the lease ends in %s, want over an hour", left)
	}

	response := &idempotency.Response{Type: idempotency.TypeNone}
	if _, err := b.Store.Complete(t.Context(), begin(b, "answer", idempotency.New).Claim, response); err != nil {
		t.Fatal(err)
	}
	begin(b, "answer", idempotency.Completed)
	if _, err := b.Store.Get(t.Context(), leased("answer", 0).Key); err != nil {
		t.Errorf("Get of the answer: %v", err)
	}
	if _, err := later.Store.Get(t.Context(), leased("answer", 0).Key); !errors.Is(err, idempotency.ErrNotFound) {
		t.Errorf("Get by the other clock: %v, want ErrNotFound", err)
	}
	begin(later, "answer", idempotency.New)
}

// Time is that of the statement, not of the begin of its transaction, which may
// be long ago.
func TestTimeOfALongTransaction(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	err := pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) error {
		var began time.Time
		if err := tx.QueryRow(t.Context(), `SELECT now()`).Scan(&began); err != nil {
			return err
		}
		p := bench.Params("k")
		p.TTL = time.Microsecond
		if _, err := idempotency.Do(t.Context(), b.Client, p, bench.Charge("k")); err != nil {
			return err
		}
		bench.WaitFor(t, func() bool {
			var expired bool
			err := b.Pool.QueryRow(t.Context(), `SELECT expires_at < clock_timestamp() FROM idempotency_keys`).Scan(&expired)
			return err == nil && expired
		})
		verbs := b.Client.WithTx(tx)
		p.TTL = time.Hour
		outcome, err := verbs.Begin(t.Context(), p)
		if err != nil {
			return err
		}
		if outcome.State != idempotency.New {
			t.Fatalf("%+v; want a new claim: the answer has expired meanwhile", outcome)
		}
		record, err := verbs.Complete(t.Context(), outcome.Claim, &idempotency.Response{Type: idempotency.TypeNone})
		if err != nil {
			return err
		}
		if replays := record.ExpiresAt.Sub(record.UpdatedAt); replays != p.TTL || !record.UpdatedAt.After(began) {
			t.Errorf("completed %s after the begin of the transaction, replays for %s; want later, and %s", record.UpdatedAt.Sub(began), replays, p.TTL)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// Between the look that finds a lease ended and the takeover, everything may
// happen to the row.
func TestTakeoverComparesTheRow(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		rival func(ctx context.Context, b *bench.Bench, claim *idempotency.Claim) error
		want  idempotency.State
	}{
		"taken over": {func(ctx context.Context, b *bench.Bench, claim *idempotency.Claim) error {
			_, err := b.Store.Begin(ctx, leased(claim.Key.ID, time.Minute))
			return err
		}, idempotency.InProgress},
		"extended": {func(ctx context.Context, b *bench.Bench, claim *idempotency.Claim) error {
			_, err := b.Store.Extend(ctx, claim, time.Minute)
			return err
		}, idempotency.InProgress},
		"completed": {func(ctx context.Context, b *bench.Bench, claim *idempotency.Claim) error {
			_, err := b.Store.Complete(ctx, claim, &idempotency.Response{Type: idempotency.TypeNone})
			return err
		}, idempotency.Completed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := pgtest.Config(t)
			rivals := bench.PoolWith(t, config)
			rival := bench.New(t, rivals, nil, nil)
			outcome, err := rival.Store.Begin(t.Context(), leased("k", time.Millisecond))
			if err != nil {
				t.Fatal(err)
			}
			bench.WaitFor(t, func() bool {
				var ended bool
				err := rivals.QueryRow(t.Context(), `SELECT locked_until < clock_timestamp() FROM idempotency_keys`).Scan(&ended)
				return err == nil && ended
			})
			acted := false
			config = config.Copy()
			config.ConnConfig.Tracer = &rivalTracer{name: "KeyReclaim :", rival: func() {
				acted = true
				if err := test.rival(t.Context(), rival, outcome.Claim); err != nil {
					t.Error(err)
				}
			}}
			pool := bench.PoolWith(t, config)
			late, err := bench.Open(t, pool, nil, nil).Store.Begin(t.Context(), leased("k", time.Minute))
			if err != nil || late.State != test.want || !acted {
				t.Errorf("%+v, %v, the rival acted: %t; want %v", late, err, acted, test.want)
			}
		})
	}
}

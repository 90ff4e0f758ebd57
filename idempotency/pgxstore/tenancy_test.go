package pgxstore_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
	"github.com/samecommit/samecommit/migrations"
)

// scoped is params in the scope of a tenant.
func scoped(tenant, id string) idempotency.Params {
	p := bench.Params(id)
	p.Key.Scope = tenant + "/charges"
	p.Wait = idempotency.NoWait
	return p
}

func leaseOf(tenant, id string) *idempotency.BeginParams {
	p := scoped(tenant, id)
	return &idempotency.BeginParams{Key: p.Key, Fingerprint: p.Fingerprint, TTL: time.Hour, Lease: time.Hour}
}

func answerOf(id string) *idempotency.Response {
	return &idempotency.Response{Type: idempotency.TypeBytes, Body: []byte(id)}
}

// visible is all that a tenant can learn from its calls.
type visible struct {
	// calls holds, for each call, its outcome, its error and what it sent.
	calls []string
	// statements are all that was sent, once each.
	statements []string
}

var retryAfter = regexp.MustCompile(`try again in [^ ]+`)

// allCalls makes every public call as tenant a on the ids k, f, l and v. With
// the claim of another tenant's key l, if there is one, it tries to complete
// its own.
func allCalls(t *testing.T, b *bench.Bench, counter *bench.QueryCounter, stolen idempotency.ClaimID) *visible {
	t.Helper()
	seen := &visible{}
	call := func(name string, fn func() (any, error)) {
		t.Helper()
		outcome := ""
		flights, statements := counter.Count(func() {
			value, err := fn()
			outcome = fmt.Sprintf("%v, %T %v", value, err, err)
		})
		outcome = retryAfter.ReplaceAllString(outcome, "try again later")
		seen.calls = append(seen.calls, fmt.Sprintf("%s: %s; %d flights: %q", name, outcome, flights, statements))
		for _, sql := range statements {
			if !slices.Contains(seen.statements, sql) {
				seen.statements = append(seen.statements, sql)
			}
		}
	}
	ctx := t.Context()
	do := func(p idempotency.Params) func() (any, error) {
		return func() (any, error) {
			result, err := idempotency.Do(ctx, b.Client, p, bench.Charge(p.Key.ID))
			return fmt.Sprint(result.Value, result.Replayed), err
		}
	}
	get := func(id string) func() (any, error) {
		return func() (any, error) {
			record, err := b.Client.Get(ctx, scoped("a", id).Key)
			if err != nil {
				return nil, err
			}
			return fmt.Sprint(record.State, record.Attempt), nil
		}
	}
	state := func(outcome *idempotency.Outcome, err error) (any, error) {
		if err != nil {
			return nil, err
		}
		return outcome.State, nil
	}
	inTx := func(fn func(tx pgx.Tx) (any, error)) func() (any, error) {
		return func() (value any, err error) {
			err = pgx.BeginFunc(ctx, b.Pool, func(tx pgx.Tx) (err error) {
				value, err = fn(tx)
				return err
			})
			return value, err
		}
	}

	call("Get of no key", get("k"))
	call("Do", do(scoped("a", "k")))
	call("Do, replay", do(scoped("a", "k")))
	mismatch := scoped("a", "k")
	mismatch.Fingerprint = idempotency.FingerprintOf("another request")
	call("Do, mismatch", do(mismatch))
	call("Get", get("k"))
	call("DoTx, replay", inTx(func(tx pgx.Tx) (any, error) {
		result, err := idempotency.DoTx(ctx, b.Client, tx, scoped("a", "k"), bench.Charge("k"))
		if err != nil {
			return nil, err
		}
		answer, err := result.Answer()
		return fmt.Sprint(answer.Value, answer.Replayed), err
	}))
	for range 2 {
		call("Do, final error", func() (any, error) {
			_, err := idempotency.Do(ctx, b.Client, scoped("a", "f"), func(context.Context, pgx.Tx) (string, error) {
				return "", idempotency.Final(errClosed)
			})
			return nil, err
		})
	}

	call("WithTx", inTx(func(tx pgx.Tx) (any, error) {
		outcome, err := b.Client.WithTx(tx).Begin(ctx, scoped("a", "v"))
		if err != nil {
			return nil, err
		}
		_, doErr := do(scoped("a", "v"))()
		if !errors.Is(doErr, idempotency.ErrInProgress) {
			t.Errorf("Do of a key that is in progress: %v", doErr)
		}
		_, err = b.Client.WithTx(tx).Complete(ctx, outcome.Claim, answerOf("v"))
		return outcome.State, err
	}))

	var claim *idempotency.Claim
	call("Begin", func() (any, error) {
		outcome, err := b.Store.Begin(ctx, leaseOf("a", "l"))
		if err != nil {
			return nil, err
		}
		claim = outcome.Claim
		return outcome.State, nil
	})
	call("Begin, in progress", func() (any, error) { return state(b.Store.Begin(ctx, leaseOf("a", "l"))) })
	call("Do, in progress", do(scoped("a", "l")))
	theirs := &idempotency.Claim{Key: scoped("a", "l").Key, ID: stolen, TTL: time.Hour, LockedUntil: time.Now()}
	for _, c := range []*idempotency.Claim{theirs, claim} {
		call("Extend", func() (any, error) {
			_, err := b.Store.Extend(ctx, c, time.Hour)
			return nil, err
		})
		call("AddStep", func() (any, error) { return nil, b.Store.AddStep(ctx, c, stepOf("charge")) })
		call("Suspend", func() (any, error) { return nil, b.Store.Suspend(ctx, c) })
	}
	for _, c := range []*idempotency.Claim{theirs, claim, claim} {
		call("Complete", func() (any, error) {
			_, err := b.Store.Complete(ctx, c, answerOf("l"))
			return nil, err
		})
	}
	call("Release", func() (any, error) { return nil, b.Store.Release(ctx, theirs) })
	return seen
}

// Whatever another tenant does with the same ids, a tenant sees the same, sends
// the same and waits for nobody. Time is not measured: the same statements, each
// by the primary key, stand for it.
func TestAnotherScopesKeyIsNeverVisible(t *testing.T) {
	t.Parallel()
	ids := []string{"k", "f", "l", "v"}
	do := func(t *testing.T, b *bench.Bench, change func(*idempotency.Params)) idempotency.ClaimID {
		t.Helper()
		for _, id := range ids {
			p := scoped("b", id)
			change(&p)
			if _, err := idempotency.Do(t.Context(), b.Client, p, bench.Charge(id)); err != nil {
				t.Fatal(err)
			}
		}
		record, err := b.Client.Get(t.Context(), scoped("b", "l").Key)
		if errors.Is(err, idempotency.ErrNotFound) {
			return idempotency.NewClaimID()
		}
		if err != nil {
			t.Fatal(err)
		}
		return record.ClaimID
	}
	// Each makes b's keys and returns the claim id of its key l.
	states := map[string]func(t *testing.T, b *bench.Bench) idempotency.ClaimID{
		"running": func(t *testing.T, b *bench.Bench) idempotency.ClaimID {
			t.Helper()
			ctx := context.WithoutCancel(t.Context()) // it ends in the cleanup
			release := make(chan struct{})
			running, ended := make(chan struct{}, len(ids)), make(chan error, len(ids))
			for _, id := range ids {
				go func() {
					_, err := idempotency.Do(ctx, b.Client, scoped("b", id), func(context.Context, pgx.Tx) (string, error) {
						running <- struct{}{}
						<-release
						return id, nil
					})
					ended <- err
				}()
			}
			for range ids {
				select {
				case <-running:
				case err := <-ended:
					close(release)
					t.Fatalf("Do of another tenant ended before its function ran: %v", err)
				}
			}
			t.Cleanup(func() {
				close(release)
				for range ids {
					if err := <-ended; err != nil {
						t.Error(err)
					}
				}
			})
			return idempotency.NewClaimID()
		},
		"begun in an open transaction": func(t *testing.T, b *bench.Bench) (claimID idempotency.ClaimID) {
			t.Helper()
			tx, err := b.Pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) })
			for _, id := range ids {
				outcome, err := b.Client.WithTx(tx).Begin(t.Context(), scoped("b", id))
				if err != nil {
					t.Fatal(err)
				}
				if id == "l" {
					claimID = outcome.Claim.ID
				}
			}
			return claimID
		},
		"leased": func(t *testing.T, b *bench.Bench) (claimID idempotency.ClaimID) {
			t.Helper()
			for _, id := range ids {
				outcome, err := b.Store.Begin(t.Context(), leaseOf("b", id))
				if err != nil {
					t.Fatal(err)
				}
				if id == "l" {
					claimID = outcome.Claim.ID
				}
			}
			return claimID
		},
		"completed": func(t *testing.T, b *bench.Bench) idempotency.ClaimID {
			t.Helper()
			return do(t, b, func(*idempotency.Params) {})
		},
		"completed for another request": func(t *testing.T, b *bench.Bench) idempotency.ClaimID {
			t.Helper()
			return do(t, b, func(p *idempotency.Params) { p.Fingerprint = idempotency.FingerprintOf("of b") })
		},
		"expired": func(t *testing.T, b *bench.Bench) idempotency.ClaimID {
			t.Helper()
			return do(t, b, func(p *idempotency.Params) { p.TTL = time.Microsecond })
		},
	}
	observe := func(t *testing.T, make func(t *testing.T, b *bench.Bench) idempotency.ClaimID) (*bench.Bench, *visible) {
		t.Helper()
		config := pgtest.Config(t)
		other := bench.New(t, bench.PoolWith(t, config.Copy()), nil, finalConfig())
		counter := &bench.QueryCounter{}
		config.ConnConfig.Tracer = counter
		config.ConnConfig.RuntimeParams["statement_timeout"] = "10s" // a wait is an error
		b := bench.New(t, bench.PoolWith(t, config), nil, finalConfig())
		return b, allCalls(t, b, counter, make(t, other))
	}

	alone, want := observe(t, func(*testing.T, *bench.Bench) idempotency.ClaimID { return idempotency.NewClaimID() })
	for name, state := range states {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, got := observe(t, state)
			for i, call := range want.calls {
				if got.calls[i] != call {
					t.Fatalf("call %d depends on another tenant's key\ngot  %s\nwant %s", i, got.calls[i], call)
				}
			}
		})
	}
	wantPrimaryKeyOnly(t, alone.Pool, alone.Pool, want.statements)
}

// wantPrimaryKeyOnly explains each statement as pool's role, in a table that
// admin fills with many tenants.
func wantPrimaryKeyOnly(t *testing.T, admin, pool *pgxpool.Pool, statements []string) {
	t.Helper()
	if _, err := admin.Exec(t.Context(), `
		INSERT INTO idempotency_keys (scope, id, claim_id, attempt, fingerprint, response_type, created_at, updated_at, expires_at)
		SELECT n % 10 || '/charges', n, gen_random_uuid(), 1, '\x00', 'bytes', now(), now(), now() + interval '1 hour' FROM generate_series(1, 10000) AS n;
		ANALYZE idempotency_keys`); err != nil {
		t.Fatal(err)
	}
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if _, err := conn.Exec(t.Context(), `SET plan_cache_mode = force_generic_plan`); err != nil {
		t.Fatal(err)
	}
	scans := 0
	for _, sql := range statements {
		if !strings.Contains(sql, "idempotency_keys") {
			continue
		}
		prepared, err := conn.Conn().Prepare(t.Context(), "explained", sql)
		if err != nil {
			t.Fatal(err)
		}
		arguments := ""
		if n := len(prepared.ParamOIDs); n > 0 {
			arguments = "(" + strings.Repeat("NULL, ", n-1) + "NULL)"
		}
		rows, err := conn.Query(t.Context(), "EXPLAIN (COSTS OFF) EXECUTE explained"+arguments, pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			t.Fatal(err)
		}
		plan, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range plan {
			if !strings.Contains(line, "Scan") || !strings.Contains(line, " on idempotency_keys") {
				continue
			}
			scans++
			if !strings.Contains(line, "Index Scan using idempotency_keys_pkey") && !strings.Contains(line, "Index Only Scan using idempotency_keys_pkey") {
				t.Errorf("not by the primary key: %s\n%s", sql, strings.Join(plan, "\n"))
			}
		}
		if err := conn.Conn().Deallocate(t.Context(), "explained"); err != nil {
			t.Fatal(err)
		}
	}
	if scans < 4 {
		t.Errorf("%d scans of the table were seen; the plans were not read as they are written", scans)
	}
}

// A tenant in a schema of its own: the same scope and id there is another key.
func TestSchemasDoNotShareKeys(t *testing.T) {
	t.Parallel()
	config := pgtest.Config(t)
	here := bench.New(t, bench.PoolWith(t, config.Copy()), nil, nil)
	if _, err := here.Pool.Exec(t.Context(), `CREATE SCHEMA other`); err != nil {
		t.Fatal(err)
	}
	config.ConnConfig.RuntimeParams["search_path"] = "other"
	pool := bench.PoolWith(t, config)
	if err := migrations.Up(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	there := bench.New(t, pool, nil, nil)
	ctx := t.Context() // without what Do leaves in its own context
	_, err := idempotency.Do(ctx, here.Client, scoped("a", "k"), func(_ context.Context, tx pgx.Tx) (string, error) {
		outcome, err := there.Store.Begin(ctx, leaseOf("a", "k")) //nolint:contextcheck // As above.
		if err != nil || outcome.State != idempotency.New {
			t.Errorf("Begin in the other schema: %+v, %v; want New", outcome, err)
		}
		if err := there.Store.Release(ctx, outcome.Claim); err != nil { //nolint:contextcheck // As above.
			t.Error(err)
		}
		result, err := idempotency.Do(ctx, there.Client, scoped("a", "k"), bench.Charge("k")) //nolint:contextcheck // As above.
		if err != nil || result.Replayed {
			t.Errorf("Do in the other schema: %+v, %v; want a run", result, err)
		}
		return "k", bench.Effect(ctx, tx, "k") //nolint:contextcheck // As above.
	})
	if err != nil {
		t.Error(err)
	}
	if here.Effects(t, "k") != 1 || there.Effects(t, "k") != 1 {
		t.Errorf("%d and %d effects, want 1 in each schema", here.Effects(t, "k"), there.Effects(t, "k"))
	}
}

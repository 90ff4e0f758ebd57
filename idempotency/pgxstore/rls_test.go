package pgxstore_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

type tenantKey struct{}

func asTenant(ctx context.Context, tenant string) context.Context {
	return context.WithValue(ctx, tenantKey{}, tenant)
}

var errNoTenant = errors.New("no tenant in the context")

// tenantSettings is the function of docs/tenancy.md.
func tenantSettings(ctx context.Context) (map[string]string, error) {
	tenant, ok := ctx.Value(tenantKey{}).(string)
	if !ok {
		return nil, errNoTenant
	}
	return map[string]string{"app.tenant": tenant}, nil
}

var sqlBlock = regexp.MustCompile("(?ms)^```sql\n(.*?)^```$")

// walled is a database under the SQL of docs/tenancy.md.
type walled struct {
	config *pgxpool.Config
	// admin is a superuser's pool, which row-level security does not bind.
	admin *pgxpool.Pool
	// Roles. The owner of the tables has run the SQL.
	owner, app, sweeper string
}

func newWalled(t *testing.T) *walled {
	t.Helper()
	doc, err := os.ReadFile("../../docs/tenancy.md")
	if err != nil {
		t.Fatal(err)
	}
	// Roles belong to the whole server, which other runs may share.
	suffix := "_" + strings.ToLower(rand.Text())
	config := pgtest.Config(t)
	w := &walled{
		config: config, admin: bench.PoolWith(t, config.Copy()),
		owner: "samecommit_test_owner" + suffix, app: "samecommit_test_app" + suffix, sweeper: "samecommit_test_sweeper" + suffix,
	}
	t.Cleanup(func() {
		for _, role := range []string{w.app, w.sweeper, w.owner} {
			if _, err := w.admin.Exec(context.WithoutCancel(t.Context()), "DROP OWNED BY "+role+"; DROP ROLE "+role); err != nil {
				t.Error(err)
			}
		}
	})
	w.exec(t, w.admin, `CREATE TABLE effects (name text NOT NULL);
		GRANT SELECT, INSERT ON effects TO PUBLIC;
		CREATE ROLE `+w.owner+` CREATEROLE;
		ALTER TABLE idempotency_keys OWNER TO `+w.owner+`;
		ALTER TABLE idempotency_unfinished OWNER TO `+w.owner)
	blocks := 0
	for _, block := range sqlBlock.FindAllStringSubmatch(string(doc), -1) {
		blocks++
		w.exec(t, w.pool(t, w.owner), strings.NewReplacer("idempotency_app", w.app, "idempotency_sweeper", w.sweeper).Replace(block[1]))
	}
	if blocks != 2 {
		t.Fatalf("docs/tenancy.md has %d SQL blocks, want the recipe and the grant for leases", blocks)
	}
	return w
}

func (w *walled) exec(t *testing.T, pool *pgxpool.Pool, sql string) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

func (w *walled) pool(t *testing.T, role string) *pgxpool.Pool {
	t.Helper()
	config := w.config.Copy()
	config.ConnConfig.RuntimeParams["role"] = role
	return bench.PoolWith(t, config)
}

// benchOn is newBench for a role that creates no tables.
func benchOn(t *testing.T, pool *pgxpool.Pool, config *pgxstore.Config) *bench.Bench {
	t.Helper()
	store := bench.NewStore(t, pool, config)
	client, err := idempotency.NewClient(store, finalConfig())
	if err != nil {
		t.Fatal(err)
	}
	return &bench.Bench{Pool: pool, Store: store, Client: client}
}

func setTenant(ctx context.Context, tx pgx.Tx, tenant string) error {
	_, err := tx.Exec(ctx, `SELECT set_config('app.tenant', $1, true)`, tenant)
	return err
}

// insertAnswer is a rival of a call, without the library.
func insertAnswer(ctx context.Context, tx pgx.Tx, p idempotency.Params, answer string) error {
	_, err := tx.Exec(ctx, `INSERT INTO idempotency_keys
		(scope, id, claim_id, attempt, fingerprint, response, response_type, created_at, updated_at, expires_at)
		VALUES ($1, $2, gen_random_uuid(), 1, $3, $4, 'json:string', now(), now(), now() + interval '1 hour')`,
		p.Key.Scope, p.Key.ID, p.Fingerprint.Bytes(), []byte(`"`+answer+`"`))
	return err
}

// Every call works under the recipe, and on a pool of one connection none of
// them leaves the tenant behind.
func TestRowLevelSecurityRecipe(t *testing.T) {
	t.Parallel()
	w := newWalled(t)
	rivals := w.pool(t, w.app)
	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
		pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
	} {
		for _, level := range []pgx.TxIsoLevel{"", pgx.Serializable} {
			t.Run(fmt.Sprintf("%s %s", mode, level), func(t *testing.T) {
				t.Parallel()
				config := w.config.Copy()
				config.ConnConfig.RuntimeParams["role"] = w.app
				config.ConnConfig.DefaultQueryExecMode = mode
				config.MaxConns = 1
				b := benchOn(t, bench.PoolWith(t, config), &pgxstore.Config{TxOptions: pgx.TxOptions{IsoLevel: level}, Settings: tenantSettings})
				ctx := asTenant(t.Context(), "a")
				p := func(id string) idempotency.Params { return scoped("a", fmt.Sprintf("%s %s %s", id, mode, level)) }
				for _, step := range recipeSteps(b, rivals, p) {
					if err := step.call(ctx); err != nil {
						t.Errorf("%s: %v", step.name, err)
					}
					var left string
					if err := b.Pool.QueryRow(t.Context(), `SELECT coalesce(current_setting('app.tenant', true), '')`).Scan(&left); err != nil {
						t.Fatal(err)
					}
					if left != "" {
						t.Errorf("%s left app.tenant = %q on the connection", step.name, left)
					}
				}
			})
		}
	}
}

type recipeStep struct {
	name string
	call func(ctx context.Context) error
}

func recipeSteps(b *bench.Bench, rivals *pgxpool.Pool, p func(id string) idempotency.Params) []recipeStep {
	do := func(p idempotency.Params, replayed bool) func(context.Context) error {
		return func(ctx context.Context) error {
			ran := false
			result, err := idempotency.Do(ctx, b.Client, p, func(ctx context.Context, tx pgx.Tx) (tenant string, err error) {
				ran = true
				err = tx.QueryRow(ctx, `SELECT current_setting('app.tenant')`).Scan(&tenant)
				return tenant, err
			})
			if err == nil && (result.Value != "a" || result.Replayed != replayed || ran == replayed) {
				err = fmt.Errorf("got %+v, the function ran: %t; want the tenant a that the function sees, replayed: %t", result, ran, replayed)
			}
			return err
		}
	}
	final := func(ctx context.Context) error {
		_, err := idempotency.Do(ctx, b.Client, p("final"), func(context.Context, pgx.Tx) (string, error) {
			return "", idempotency.Final(errClosed)
		})
		if !errors.Is(err, errClosed) {
			return fmt.Errorf("got %w, want the final error", err)
		}
		return nil
	}
	expired := p("expired")
	expired.TTL = time.Microsecond
	other := p("do")
	other.Fingerprint = idempotency.FingerprintOf("another request")
	lease := &idempotency.BeginParams{Key: p("lease").Key, Fingerprint: p("lease").Fingerprint, TTL: time.Hour, Lease: time.Hour}
	return []recipeStep{
		{"Do", do(p("do"), false)},
		{"Do, replay", do(p("do"), true)},
		{"Do, mismatch", func(ctx context.Context) error {
			if err := do(other, true)(ctx); !errors.Is(err, idempotency.ErrFingerprintMismatch) {
				return fmt.Errorf("got %w, want ErrFingerprintMismatch", err)
			}
			return nil
		}},
		{"Do, final error", final},
		{"Do, replayed final error", final},
		{"Do, expiring", do(expired, false)},
		{"Do, expired", do(expired, false)},
		{"Do, lost race", func(ctx context.Context) error {
			result, err := idempotency.Do(ctx, b.Client, p("race"), func(ctx context.Context, tx pgx.Tx) (string, error) {
				return "mine", errors.Join(bench.Effect(ctx, tx, p("race").Key.ID), pgx.BeginFunc(ctx, rivals, func(rival pgx.Tx) error {
					return errors.Join(setTenant(ctx, rival, "a"), insertAnswer(ctx, rival, p("race"), "rival"))
				}))
			})
			if err == nil && (result.Value != "rival" || !result.Replayed) {
				err = fmt.Errorf("got %+v, want the rival's answer", result)
			}
			return err
		}},
		{"Do, rival answered and the function failed", func(ctx context.Context) error {
			result, err := idempotency.Do(ctx, b.Client, p("failed"), func(ctx context.Context, _ pgx.Tx) (string, error) {
				return "", errors.Join(errors.New("business failed"), pgx.BeginFunc(ctx, rivals, func(rival pgx.Tx) error {
					return errors.Join(setTenant(ctx, rival, "a"), insertAnswer(ctx, rival, p("failed"), "rival"))
				}))
			})
			if err == nil && result.Value != "rival" {
				err = fmt.Errorf("got %+v, want the rival's answer", result)
			}
			return err
		}},
		{"Get", func(ctx context.Context) error {
			_, err := b.Client.Get(ctx, p("do").Key)
			return err
		}},
		{"leases", func(ctx context.Context) error {
			for range 2 { // the second time after Release
				outcome, err := b.Store.Begin(ctx, lease)
				if err != nil || outcome.State != idempotency.New {
					return fmt.Errorf("begin: %+v, %w", outcome, err)
				}
				if again, err := b.Store.Begin(ctx, lease); err != nil || again.State != idempotency.InProgress {
					return fmt.Errorf("begin again: %+v, %w", again, err)
				}
				claim, err := b.Store.Extend(ctx, outcome.Claim, time.Hour)
				if err != nil {
					return err
				}
				if err := b.Store.Release(ctx, claim); err != nil {
					return err
				}
			}
			outcome, err := b.Store.Begin(ctx, lease)
			if err != nil {
				return err
			}
			if _, err := b.Store.Complete(ctx, outcome.Claim, answerOf("lease")); err != nil {
				return err
			}
			if outcome, err = b.Store.Begin(ctx, lease); err != nil || outcome.State != idempotency.Completed {
				return fmt.Errorf("begin of a completed key: %+v, %w", outcome, err)
			}
			return nil
		}},
		{"DoTx and WithTx, the tenant set by the caller", func(ctx context.Context) error {
			return pgx.BeginFunc(ctx, b.Pool, func(tx pgx.Tx) error {
				if err := setTenant(ctx, tx, "a"); err != nil {
					return err
				}
				if _, err := idempotency.DoTx(ctx, b.Client, tx, p("dotx"), bench.Charge("dotx")); err != nil {
					return err
				}
				outcome, err := b.Client.WithTx(tx).Begin(ctx, p("withtx"))
				if err != nil {
					return err
				}
				_, err = b.Client.WithTx(tx).Complete(ctx, outcome.Claim, answerOf("withtx"))
				return err
			})
		}},
		{"DeleteExpired", func(ctx context.Context) error {
			_, err := b.Client.DeleteExpired(ctx, 0)
			return err
		}},
	}
}

func TestSweepUnderRowLevelSecurity(t *testing.T) {
	t.Parallel()
	w := newWalled(t)
	b := benchOn(t, w.pool(t, w.app), &pgxstore.Config{Settings: tenantSettings})
	for _, tenant := range []string{"a", "b"} {
		for _, id := range []string{"live", "expired 1", "expired 2"} {
			p := scoped(tenant, id)
			if id != "live" {
				p.TTL = time.Microsecond
			}
			if _, err := idempotency.Do(asTenant(t.Context(), tenant), b.Client, p, bench.Charge(id)); err != nil {
				t.Fatal(err)
			}
		}
	}
	deleted, err := b.Store.DeleteExpired(asTenant(t.Context(), "a"), 0)
	if err != nil || deleted != 2 {
		t.Errorf("tenant a swept %d rows, %v; want its own 2", deleted, err)
	}
	sweeper := w.pool(t, w.sweeper)
	deleted, err = bench.NewStore(t, sweeper, nil).DeleteExpired(t.Context(), 0)
	if err != nil || deleted != 2 {
		t.Errorf("the sweeper swept %d rows, %v; want the other 2", deleted, err)
	}
	if n := bench.Count(t, sweeper, `SELECT count(*) FROM idempotency_keys`); n != 0 {
		t.Errorf("the sweeper sees %d live answers", n)
	}
	if n := bench.Count(t, w.admin, `SELECT count(*) FROM idempotency_keys WHERE id = 'live'`); n != 2 {
		t.Errorf("%d live answers are left, want 2", n)
	}
}

func TestRowLevelSecurityWallsOffTenants(t *testing.T) {
	t.Parallel()
	w := newWalled(t)
	b := benchOn(t, w.pool(t, w.app), &pgxstore.Config{Settings: tenantSettings})
	theirs := asTenant(t.Context(), "b")
	if _, err := idempotency.Do(theirs, b.Client, scoped("b", "done"), bench.Charge("done")); err != nil {
		t.Fatal(err)
	}
	expired := scoped("b", "expired")
	expired.TTL = time.Microsecond
	if _, err := idempotency.Do(theirs, b.Client, expired, bench.Charge("expired")); err != nil {
		t.Fatal(err)
	}
	leased, err := b.Store.Begin(theirs, leaseOf("b", "leased"))
	if err != nil {
		t.Fatal(err)
	}
	content := func() string {
		return strings.Join(bench.Lines(t, w.admin, `SELECT concat_ws(' ', xmin, ctid, k) FROM idempotency_keys k WHERE scope LIKE 'b/%' ORDER BY id`), "\n")
	}
	before := content()
	if strings.Count(before, "\n") != 2 {
		t.Fatalf("b has these rows, want 3:\n%s", before)
	}

	refused := func(t *testing.T, name string, err error) {
		t.Helper()
		var pgErr *pgconn.PgError
		if !errors.Is(err, pgxstore.ErrInsufficientPrivilege) || !errors.As(err, &pgErr) || pgErr.Code != "42501" || !strings.Contains(err.Error(), "Config.Settings") {
			t.Errorf("%s: %v, want ErrInsufficientPrivilege that says what to check", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "b/charges") {
			t.Errorf("%s: the error holds the scope: %v", name, err)
		}
	}
	is := func(t *testing.T, name string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	// A scope that is not the session's: every call meets the wall.
	walledOff := func(t *testing.T, ctx context.Context, b *bench.Bench) {
		t.Helper()
		for _, id := range []string{"done", "expired", "leased", "none"} {
			runs := 0
			_, err := idempotency.Do(ctx, b.Client, scoped("b", id), func(ctx context.Context, tx pgx.Tx) (string, error) {
				runs++
				return "stolen", bench.Effect(ctx, tx, "stolen")
			})
			refused(t, "Do "+id, err)
			if runs != 1 {
				t.Errorf("Do %s ran %d times, want once: the row is refused, not raced for", id, runs)
			}
			_, err = b.Store.Begin(ctx, leaseOf("b", id))
			refused(t, "Begin "+id, err)
			_, err = b.Client.Get(ctx, scoped("b", id).Key)
			is(t, "Get "+id, err, idempotency.ErrNotFound)
		}
		_, err := b.Store.Extend(ctx, leased.Claim, time.Hour)
		is(t, "Extend", err, idempotency.ErrClaimLost)
		_, err = b.Store.Complete(ctx, leased.Claim, answerOf("stolen"))
		is(t, "Complete", err, idempotency.ErrClaimLost)
		is(t, "Release", b.Store.Release(ctx, leased.Claim), idempotency.ErrClaimLost)
		if n, err := b.Store.DeleteExpired(ctx, 0); n != 0 || err != nil {
			t.Errorf("DeleteExpired: %d, %v; want 0 rows", n, err)
		}
		if n := b.Effects(t, "stolen"); n != 0 { //nolint:contextcheck // The test's own is as good.
			t.Errorf("%d effects of refused calls", n)
		}
	}

	ours := asTenant(t.Context(), "a")
	t.Run("another tenant", func(t *testing.T) { //nolint:paralleltest // The rows are compared behind it.
		walledOff(t, ours, b)
	})
	t.Run("no settings", func(t *testing.T) { //nolint:paralleltest // As above.
		walledOff(t, t.Context(), benchOn(t, b.Pool, nil))
	})
	for _, level := range []pgx.TxIsoLevel{pgx.RepeatableRead, pgx.Serializable} { //nolint:paralleltest // As above.
		t.Run(string(level), func(t *testing.T) {
			walledOff(t, ours, benchOn(t, b.Pool, &pgxstore.Config{TxOptions: pgx.TxOptions{IsoLevel: level}, Settings: tenantSettings}))
		})
	}
	t.Run("the owner", func(t *testing.T) { //nolint:paralleltest // As above.
		owner := w.pool(t, w.owner)                                                      //nolint:contextcheck // The test's own is as good.
		if n := bench.Count(t, owner, `SELECT count(*) FROM idempotency_keys`); n != 0 { //nolint:contextcheck // As above.
			t.Errorf("the owner sees %d rows", n)
		}
		walledOff(t, ours, benchOn(t, owner, &pgxstore.Config{Settings: tenantSettings}))
	})
	t.Run("a caller's transaction", func(t *testing.T) { //nolint:paralleltest // As above.
		for _, tenant := range []string{"", "a"} {
			err := pgx.BeginFunc(ours, b.Pool, func(tx pgx.Tx) error {
				if err := setTenant(ours, tx, tenant); err != nil {
					return err
				}
				_, err := idempotency.DoTx(ours, b.Client, tx, scoped("b", "done"), bench.Charge("stolen"))
				return err
			})
			refused(t, "DoTx", err)
		}
	})
	t.Run("SQL", func(t *testing.T) { //nolint:paralleltest // As above.
		if _, err := idempotency.Do(ours, b.Client, scoped("a", "own"), bench.Charge("own")); err != nil {
			t.Fatal(err)
		}
		as := func(sql string) (tag pgconn.CommandTag, err error) {
			err = pgx.BeginFunc(ours, b.Pool, func(tx pgx.Tx) (err error) {
				if err := setTenant(ours, tx, "a"); err != nil {
					return err
				}
				tag, err = tx.Exec(ours, sql)
				return err
			})
			return tag, err
		}
		for _, sql := range []string{
			`SELECT FROM idempotency_keys WHERE scope <> 'a/charges'`,
			`UPDATE idempotency_keys SET response = 'stolen' WHERE scope <> 'a/charges'`,
			`DELETE FROM idempotency_keys WHERE scope <> 'a/charges'`,
		} {
			if tag, err := as(sql); err != nil || tag.RowsAffected() != 0 {
				t.Errorf("%s: %v, %v; want 0 rows", sql, tag, err)
			}
		}
		const insert = `INSERT INTO idempotency_keys (scope, id, claim_id, attempt, fingerprint, created_at, updated_at, locked_until)
			SELECT 'b/charges', '%s', claim_id, 1, fingerprint, now(), now(), now() FROM idempotency_keys`
		for _, sql := range []string{
			`UPDATE idempotency_keys SET scope = 'b/charges'`,
			fmt.Sprintf(insert, "squatted"),
			fmt.Sprintf(insert, "done"),
			fmt.Sprintf(insert, "done") + ` ON CONFLICT DO NOTHING`,
			fmt.Sprintf(insert, "done") + ` ON CONFLICT (scope, id) DO UPDATE SET attempt = 2`,
		} {
			var pgErr *pgconn.PgError
			if _, err := as(sql); !errors.As(err, &pgErr) || pgErr.Code != "42501" {
				t.Errorf("%s: %v, want 42501", sql, err)
			}
		}
	})
	if after := content(); after != before {
		t.Errorf("another tenant changed b's rows\nbefore %s\nafter  %s", before, after)
	}
}

// Names of tenants that other forms of the policy would let through.
// Calls that wait for one key share its answer, but not with a call that could
// not have read it.
func TestRowLevelSecurityWallsOffWaitingCalls(t *testing.T) {
	t.Parallel()
	w := newWalled(t)
	arrived := &bench.Arrivals{}
	b := benchOn(t, w.pool(t, w.app), &pgxstore.Config{Settings: tenantSettings})
	client, err := idempotency.NewClient(b.Store, &idempotency.Config{Tracer: arrived})
	if err != nil {
		t.Fatal(err)
	}
	running, release := make(chan struct{}), make(chan struct{})
	do := func(ctx context.Context, answer string) (idempotency.Result[string], error) {
		params := scoped("b", "k")
		params.Wait = time.Minute
		return idempotency.Do(ctx, client, params, func(ctx context.Context, tx pgx.Tx) (string, error) {
			if answer == "b's" {
				close(running)
				<-release
			}
			return answer, bench.Effect(ctx, tx, answer)
		})
	}
	var calls sync.WaitGroup
	calls.Go(func() {
		if _, err := do(asTenant(t.Context(), "b"), "b's"); err != nil {
			t.Error(err)
		}
	})
	<-running
	for i := range 10 {
		tenant := []string{"a", "b"}[i%2]
		calls.Go(func() {
			result, err := do(asTenant(t.Context(), tenant), "stolen")
			switch {
			case tenant == "b" && (err != nil || result.Value != "b's" || !result.Replayed):
				t.Errorf("b: %+v, %v; want a replay", result, err)
			case tenant == "a" && (!errors.Is(err, pgxstore.ErrInsufficientPrivilege) || result.Value != ""):
				t.Errorf("a: %+v, %v; want ErrInsufficientPrivilege", result, err)
			}
		})
	}
	bench.WaitFor(t, func() bool { return arrived.Load() == 11 })
	close(release)
	calls.Wait()
	if n := b.Effects(t, "stolen"); n != 0 {
		t.Errorf("%d effects of refused calls", n)
	}
}

func TestPolicyComparesWholeTenants(t *testing.T) {
	t.Parallel()
	w := newWalled(t)
	b := benchOn(t, w.pool(t, w.app), &pgxstore.Config{Settings: tenantSettings})
	for _, test := range []struct{ tenant, scope string }{
		{"", "/charges"},
		{"", "charges"},
		{"%", "b/charges"},
		{"_", "b/charges"},
		{"a", "ab/charges"},
		{"a/b", "a/b/charges"},
		{"A", "a/charges"},
	} {
		p := scoped("", "k")
		p.Key.Scope = test.scope
		// A connection that has had a tenant, which a fresh one reads as null.
		if _, err := idempotency.Do(asTenant(t.Context(), "x"), b.Client, scoped("x", "k "+test.scope+test.tenant), bench.Charge("k")); err != nil {
			t.Fatal(err)
		}
		if _, err := idempotency.Do(asTenant(t.Context(), test.tenant), b.Client, p, bench.Charge("k")); !errors.Is(err, pgxstore.ErrInsufficientPrivilege) {
			t.Errorf("tenant %q in scope %q: %v, want ErrInsufficientPrivilege", test.tenant, test.scope, err)
		}
	}
	p := scoped("", "k")
	p.Key.Scope = "a"
	if _, err := idempotency.Do(asTenant(t.Context(), "a"), b.Client, p, bench.Charge("k")); err != nil {
		t.Errorf("a scope that is the tenant alone: %v", err)
	}
}

// The policy's own condition must not come before the primary key's.
func TestRowLevelSecurityKeepsThePrimaryKey(t *testing.T) {
	t.Parallel()
	w := newWalled(t)
	config, counter := w.config.Copy(), &bench.QueryCounter{}
	config.ConnConfig.Tracer = counter
	config.ConnConfig.RuntimeParams["role"] = w.app
	config.ConnConfig.RuntimeParams["app.tenant"] = "a" // also for transactions of the caller's
	b := benchOn(t, bench.PoolWith(t, config), nil)
	wantPrimaryKeyOnly(t, w.admin, b.Pool, allCalls(t, b, counter, idempotency.NewClaimID()).statements)
}

// Under a policy that lets a role insert what it cannot see, a hidden row could
// be taken for one that comes and goes, and be raced for.
func TestPolicyThatHidesWhatItLetsIn(t *testing.T) {
	t.Parallel()
	w := newWalled(t)
	w.exec(t, w.admin, `CREATE POLICY anything ON idempotency_keys FOR INSERT WITH CHECK (true)`)
	b := benchOn(t, w.pool(t, w.app), &pgxstore.Config{Settings: tenantSettings})
	ctx, runs := asTenant(t.Context(), "a"), 0
	if _, err := idempotency.Do(asTenant(t.Context(), "b"), b.Client, scoped("b", "k"), bench.Charge("b")); err != nil {
		t.Fatal(err)
	}
	_, doErr := idempotency.Do(ctx, b.Client, scoped("b", "k"), func(context.Context, pgx.Tx) (string, error) {
		runs++
		return "a", nil
	})
	_, beginErr := b.Store.Begin(ctx, leaseOf("b", "k"))
	for _, err := range []error{doErr, beginErr} {
		if !errors.Is(err, pgxstore.ErrInsufficientPrivilege) || runs != 1 {
			t.Errorf("got %v, %d runs; want ErrInsufficientPrivilege and one run", err, runs)
		}
	}
}

// A policy's own error is not taken for the sign that a transaction has ended,
// though it has the same SQLSTATE.
func TestPolicyThatFails(t *testing.T) {
	t.Parallel()
	w := newWalled(t)
	w.exec(t, w.admin, `DROP POLICY idempotency_tenant ON idempotency_keys;
		CREATE POLICY idempotency_tenant ON idempotency_keys USING (current_setting('app.tenant', true)::uuid IS NOT NULL)`)
	b := benchOn(t, w.pool(t, w.app), &pgxstore.Config{Settings: tenantSettings})
	_, err := idempotency.Do(asTenant(t.Context(), ""), b.Client, scoped("a", "k"), bench.Charge("k"))
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != "22P02" || errors.Is(err, idempotency.ErrOwned) {
		t.Errorf("got %v; want the policy's 22P02, and not ErrOwned", err)
	}
}

func TestLostReplyToCommitUnderRowLevelSecurity(t *testing.T) {
	t.Parallel()
	w := newWalled(t)
	for name, afterCommit := range map[string]bool{"committed": true, "not committed": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy := &bench.CommitProxy{AfterCommit: afterCommit}
			config := proxy.Through(t, w.config.Copy())
			config.ConnConfig.RuntimeParams["role"] = w.app
			config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec // every COMMIT is sent as text
			b := benchOn(t, bench.PoolWith(t, config), &pgxstore.Config{Settings: tenantSettings})
			proxy.Armed.Store(true)
			result, err := idempotency.Do(asTenant(t.Context(), "a"), b.Client, scoped("a", name), bench.Charge(name))
			if err != nil || result.Value != name || result.Replayed || proxy.Cuts.Load() != 1 || b.Effects(t, name) != 1 {
				t.Errorf("%+v, %v, %d cuts, %d effects; want the answer of this very call, 1 and 1", result, err, proxy.Cuts.Load(), b.Effects(t, name))
			}
		})
	}
}

// Every privilege that docs/tenancy.md lists for a call is enough with the
// others, and is missed without.
func TestGrantsOfTheRecipe(t *testing.T) {
	t.Parallel()
	w := newWalled(t)
	b := benchOn(t, w.pool(t, w.app), &pgxstore.Config{Settings: tenantSettings})
	superuser := bench.NewStore(t, w.admin, nil)
	ctx := asTenant(t.Context(), "a")
	next := 0
	id := func() string {
		next++
		return fmt.Sprint(next)
	}
	// leaseBySuperuser is a claim that the call under test did not need a
	// privilege for.
	leaseBySuperuser := func(t *testing.T) *idempotency.Claim {
		t.Helper()
		outcome, err := superuser.Begin(ctx, leaseOf("a", id()))
		if err != nil {
			t.Fatal(err)
		}
		return outcome.Claim
	}
	do := func(t *testing.T) error {
		t.Helper()
		_, err := idempotency.Do(ctx, b.Client, scoped("a", id()), bench.Charge("k"))
		return err
	}
	for _, test := range []struct { //nolint:paralleltest // Grants belong to the role.
		name  string
		needs []string
		call  func(t *testing.T) error
	}{
		{"Do", []string{"SELECT", "INSERT"}, do},
		{"Do, replacing an expired answer", []string{"SELECT", "INSERT", "UPDATE"}, func(t *testing.T) error {
			t.Helper()
			p := scoped("a", id())
			if err := pgx.BeginFunc(ctx, w.admin, func(tx pgx.Tx) error {
				if err := insertAnswer(ctx, tx, p, "old"); err != nil {
					return err
				}
				_, err := tx.Exec(ctx, `UPDATE idempotency_keys SET expires_at = now() WHERE id = $1`, p.Key.ID)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			_, err := idempotency.Do(ctx, b.Client, p, bench.Charge("k"))
			return err
		}},
		{"DoTx", []string{"SELECT", "INSERT", "UPDATE"}, func(*testing.T) error {
			return pgx.BeginFunc(ctx, b.Pool, func(tx pgx.Tx) error {
				if err := setTenant(ctx, tx, "a"); err != nil {
					return err
				}
				_, err := idempotency.DoTx(ctx, b.Client, tx, scoped("a", id()), bench.Charge("k"))
				return err
			})
		}},
		{"Begin and Complete under a lease", []string{"SELECT", "INSERT", "UPDATE"}, func(*testing.T) error {
			outcome, err := b.Store.Begin(ctx, leaseOf("a", id()))
			if err != nil {
				return err
			}
			_, err = b.Store.Complete(ctx, outcome.Claim, answerOf("k"))
			return err
		}},
		{"Get", []string{"SELECT"}, func(t *testing.T) error {
			t.Helper()
			_, err := b.Store.Get(ctx, leaseBySuperuser(t).Key)
			return err
		}},
		{"Extend", []string{"SELECT", "UPDATE"}, func(t *testing.T) error {
			t.Helper()
			_, err := b.Store.Extend(ctx, leaseBySuperuser(t), time.Hour)
			return err
		}},
		{"AddStep", []string{"SELECT", "UPDATE"}, func(t *testing.T) error {
			t.Helper()
			return b.Store.AddStep(ctx, leaseBySuperuser(t), stepOf("charge"))
		}},
		{"Suspend", []string{"SELECT", "UPDATE"}, func(t *testing.T) error {
			t.Helper()
			return b.Store.Suspend(ctx, leaseBySuperuser(t))
		}},
		{"Release", []string{"SELECT", "DELETE"}, func(t *testing.T) error {
			t.Helper()
			return b.Store.Release(ctx, leaseBySuperuser(t))
		}},
		{"DeleteExpired", []string{"SELECT", "UPDATE", "DELETE"}, func(*testing.T) error {
			_, err := b.Store.DeleteExpired(ctx, 0)
			return err
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w.exec(t, w.admin, fmt.Sprintf("REVOKE ALL ON idempotency_keys FROM %s; GRANT %s ON idempotency_keys TO %[1]s", w.app, strings.Join(test.needs, ", ")))
			if err := test.call(t); err != nil {
				t.Errorf("with %s: %v", test.needs, err)
			}
			for _, privilege := range test.needs {
				w.exec(t, w.admin, fmt.Sprintf("REVOKE %s ON idempotency_keys FROM %s", privilege, w.app))
				if err := test.call(t); !errors.Is(err, pgxstore.ErrInsufficientPrivilege) {
					t.Errorf("without %s: %v, want ErrInsufficientPrivilege", privilege, err)
				}
				w.exec(t, w.admin, fmt.Sprintf("GRANT %s ON idempotency_keys TO %s", privilege, w.app))
			}
		})
	}
}

func TestFlightsWithSettings(t *testing.T) {
	t.Parallel()
	config, counter := pgtest.Config(t), &bench.QueryCounter{}
	config.ConnConfig.Tracer = counter
	pool := bench.PoolWith(t, config)
	ctx := asTenant(t.Context(), "a")
	for level, want := range map[pgx.TxIsoLevel]struct{ fresh, replay int }{
		"": {3, 2}, pgx.Serializable: {4, 1},
	} {
		b := bench.New(t, pool, &pgxstore.Config{TxOptions: pgx.TxOptions{IsoLevel: level}, Settings: tenantSettings}, nil)
		do := func(id string) func() {
			return func() {
				if _, err := idempotency.Do(ctx, b.Client, scoped("a", id), bench.Charge(id)); err != nil {
					t.Error(err)
				}
			}
		}
		do("warm up" + string(level))()
		key := "k" + string(level)
		flights, statements := counter.Count(do(key))
		if flights != want.fresh {
			t.Errorf("%q: a fresh Do: %d flights, want %d, as without settings\n%q", level, flights, want.fresh, statements)
		}
		if flights, statements = counter.Count(do(key)); flights != want.replay {
			t.Errorf("%q: a replay: %d flights, want %d, as without settings\n%q", level, flights, want.replay, statements)
		}
		flights, statements = counter.Count(func() {
			if _, err := b.Client.Get(ctx, scoped("a", key).Key); err != nil {
				t.Error(err)
			}
		})
		if flights != 1 || len(statements) != 2 {
			t.Errorf("Get: %d flights, want 1 with the setting and the statement\n%q", flights, statements)
		}
	}

	// Without a tenant nothing is sent.
	b := bench.New(t, pool, &pgxstore.Config{Settings: tenantSettings}, nil)
	p := scoped("a", "none")
	for name, call := range map[string]func() error{
		"Do": func() error {
			_, err := idempotency.Do(t.Context(), b.Client, p, bench.Charge("none"))
			return err
		},
		"Get":   func() error { _, err := b.Client.Get(t.Context(), p.Key); return err },
		"Begin": func() error { _, err := b.Store.Begin(t.Context(), leaseOf("a", "none")); return err },
		"Release": func() error {
			return b.Store.Release(t.Context(), &idempotency.Claim{Key: p.Key, ID: idempotency.NewClaimID()})
		},
		"DeleteExpired": func() error {
			_, err := b.Client.DeleteExpired(t.Context(), 0)
			return err
		},
	} {
		flights, statements := counter.Count(func() {
			if err := call(); !errors.Is(err, errNoTenant) {
				t.Errorf("%s: %v, want the error of Settings", name, err)
			}
		})
		if flights != 0 {
			t.Errorf("%s sent %q", name, statements)
		}
	}
}

func TestRefusedSettingIsNamedWithoutItsValue(t *testing.T) {
	t.Parallel()
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeSimpleProtocol} {
		config := pgtest.Config(t)
		config.ConnConfig.DefaultQueryExecMode = mode
		pool := bench.PoolWith(t, config)
		for _, name := range []string{"app tenant", "tenant", "work_mem", "", "app.tenant'; SELECT '"} {
			t.Run(fmt.Sprintf("%s %q", mode, name), func(t *testing.T) {
				t.Parallel()
				b := benchOn(t, pool, &pgxstore.Config{Settings: func(context.Context) (map[string]string, error) {
					return map[string]string{"app.first": "1", name: "secret"}, nil
				}})
				_, doErr := idempotency.Do(t.Context(), b.Client, bench.Params("k"), func(context.Context, pgx.Tx) (string, error) {
					t.Error("the function ran")
					return "", nil
				})
				_, getErr := b.Client.Get(t.Context(), bench.Params("k").Key)
				_, beginErr := b.Store.Begin(t.Context(), leaseOf("a", "k"))
				for _, err := range []error{doErr, getErr, beginErr} {
					if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("setting %q", name)) || !strings.Contains(err.Error(), "SQLSTATE 42") && !strings.Contains(err.Error(), "SQLSTATE 22") {
						t.Errorf("got %v, want an error that names the setting", err)
					}
					var pgErr *pgconn.PgError
					if errors.As(err, &pgErr) || strings.Contains(fmt.Sprintf("%+v", err), "secret") {
						t.Errorf("the error holds the value, or the server's message: %v", err)
					}
				}
			})
		}
	}
}

func TestSettingsOfAStoreInsideATransaction(t *testing.T) {
	t.Parallel()
	w := newWalled(t)
	pool := w.pool(t, w.app)
	ctx := asTenant(t.Context(), "a")
	if err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		store := bench.NewStore(t, tx, &pgxstore.Config{Settings: tenantSettings})
		client, err := idempotency.NewClient(store, nil)
		if err != nil {
			return err
		}
		// First of all, since a call that takes effect leaves its settings.
		outcome, err := store.Begin(ctx, leaseOf("a", "l"))
		if err != nil {
			return err
		}
		for range 2 {
			if _, err := idempotency.Do(ctx, client, scoped("a", "k"), bench.Charge("k")); err != nil {
				return err
			}
		}
		return store.Release(ctx, outcome.Claim)
	}); err != nil {
		t.Fatal(err)
	}
	record, err := bench.NewStore(t, pool, &pgxstore.Config{Settings: tenantSettings}).Get(ctx, scoped("a", "k").Key)
	if err != nil || record.State != idempotency.Completed {
		t.Errorf("%+v, %v; want the record that was committed", record, err)
	}
}

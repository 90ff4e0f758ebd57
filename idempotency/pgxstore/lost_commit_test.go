package pgxstore_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
	"github.com/samecommit/samecommit/txhelper"
)

// bench is a database behind the proxy.
func proxiedBench(t *testing.T, c *bench.CommitProxy, config *pgxstore.Config) *bench.Bench {
	t.Helper()
	poolConfig := c.Through(t, pgtest.Config(t))
	poolConfig.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec // every COMMIT is sent as text
	pool := bench.PoolWith(t, poolConfig)
	return bench.New(t, pool, config, nil)
}

func TestLostReplyToCommitIsResolved(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		afterCommit bool
		runs        int
	}{
		"committed":     {afterCommit: true, runs: 1},
		"not committed": {afterCommit: false, runs: 2},
	} {
		check := func(t *testing.T, call func(b *bench.Bench, work func(ctx context.Context, tx pgx.Tx) (string, error)) (idempotency.Result[string], error)) {
			t.Helper()
			proxy := &bench.CommitProxy{AfterCommit: test.afterCommit}
			b := proxiedBench(t, proxy, nil)
			runs := 0
			result, err := call(b, func(ctx context.Context, tx pgx.Tx) (string, error) {
				runs++
				proxy.Armed.Store(runs == 1)
				return "answer", bench.Effect(ctx, tx, "k")
			})
			if err != nil || result.Value != "answer" || result.Replayed || result.Record.Attempt != 1 || result.Record.Response == nil {
				t.Errorf("%+v, %v; want the answer of this very call", result, err)
			}
			if proxy.Cuts.Load() != 1 {
				t.Errorf("%d commits were cut, want 1", proxy.Cuts.Load())
			}
			if runs != test.runs || b.Effects(t, "k") != 1 {
				t.Errorf("%d runs, %d effects; want %d and 1", runs, b.Effects(t, "k"), test.runs)
			}
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			check(t, func(b *bench.Bench, work func(ctx context.Context, tx pgx.Tx) (string, error)) (idempotency.Result[string], error) {
				return idempotency.Do(t.Context(), b.Client, bench.Params("k"), work)
			})
		})
		// The claim of a lease stays after a commit that left nothing.
		t.Run("DoExternal, "+name, func(t *testing.T) {
			t.Parallel()
			charges := 0
			check(t, func(b *bench.Bench, work func(ctx context.Context, tx pgx.Tx) (string, error)) (idempotency.Result[string], error) {
				return idempotency.DoExternal(t.Context(), b.Client, bench.Params("k"), func(ctx context.Context, lease *idempotency.Lease) (idempotency.None, error) {
					return idempotency.Step(ctx, lease, "charge", idempotency.NoFingerprint, func(context.Context, idempotency.StepCall) (idempotency.None, error) {
						charges++
						return idempotency.None{}, nil
					})
				}, func(ctx context.Context, tx pgx.Tx, _ idempotency.None) (string, error) { return work(ctx, tx) })
			})
			if charges != 1 {
				t.Errorf("%d charges, want 1", charges)
			}
		})
	}
}

// What an answer that has expired leaves behind does not tell whether it was
// ever there.
func TestLostReplyToACommitThatExpired(t *testing.T) {
	t.Parallel()
	proxy := &bench.CommitProxy{AfterCommit: true, DownAfterCut: true}
	config := pgtest.Config(t)
	direct := bench.New(t, bench.PoolWith(t, config.Copy()), nil, nil)
	config = proxy.Through(t, config)
	config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec // COMMIT is sent as text
	b := bench.Open(t, bench.PoolWith(t, config), nil, nil)
	proxy.Armed.Store(true)
	p := bench.Params("k")
	p.TTL = time.Millisecond
	var runs atomic.Int32
	done := make(chan error, 1)
	go func() {
		_, err := idempotency.Do(t.Context(), b.Client, p, func(ctx context.Context, tx pgx.Tx) (string, error) {
			runs.Add(1)
			return "answer", bench.Effect(ctx, tx, "k")
		})
		done <- err
	}()
	bench.WaitFor(t, func() bool {
		n, err := direct.Store.DeleteExpired(t.Context(), 0)
		return err == nil && n == 1
	})
	proxy.Down.Store(false)
	if err := <-done; !errors.Is(err, idempotency.ErrOutcomeUnknown) {
		t.Errorf("%v, want ErrOutcomeUnknown", err)
	}
	if runs.Load() != 1 || direct.Effects(t, "k") != 1 {
		t.Errorf("%d runs, %d effects, want 1 and 1: the call ran again though it had committed", runs.Load(), direct.Effects(t, "k"))
	}
}

// A commit is not the caller's to cancel.
func TestCommitOutlivesItsCaller(t *testing.T) {
	t.Parallel()
	t.Run("cancelled before it is sent", func(t *testing.T) {
		t.Parallel()
		// Here an interruption cannot come too late to be seen.
		b := bench.New(t, pgtest.DB(t), nil, nil)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		result, err := idempotency.Do(ctx, b.Client, bench.Params("k"), func(ctx context.Context, tx pgx.Tx) (string, error) {
			defer cancel()
			return "k", bench.Effect(ctx, tx, "k")
		})
		if err != nil || result.Value != "k" || result.Replayed || b.Effects(t, "k") != 1 {
			t.Errorf("%+v, %v, %d effects; want a run", result, err, b.Effects(t, "k"))
		}
	})
	t.Run("cancelled while the server is at it", func(t *testing.T) {
		t.Parallel()
		config := pgtest.Config(t)
		observer := bench.New(t, bench.PoolWith(t, config.Copy()), nil, nil)
		let := bench.SlowCommit(t, observer.Pool, "effects")
		// Without the time to find out, a commit that was interrupted would show.
		b := bench.Open(t, bench.PoolWith(t, config), &pgxstore.Config{CommitTimeout: time.Minute, ResolveTimeout: time.Nanosecond}, nil)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		type answer struct {
			result idempotency.Result[string]
			err    error
		}
		done := make(chan answer, 1)
		go func() {
			result, err := idempotency.Do(ctx, b.Client, bench.Params("k"), bench.Charge("k"))
			done <- answer{result, err}
		}()
		bench.WaitFor(t, func() bool { return bench.Count(t, observer.Pool, bench.WaitingCommits) == 1 })
		// What the same context does interrupt, it has interrupted before the commit
		// goes on.
		interrupted := make(chan error, 1)
		go func() {
			_, err := observer.Pool.Exec(ctx, `SELECT pg_sleep(600)`)
			interrupted <- err
		}()
		bench.WaitFor(t, func() bool {
			return bench.Count(t, observer.Pool, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'`) == 1
		})
		cancel()
		if err := <-interrupted; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want context.Canceled", err)
		}
		let()
		got := <-done
		if got.err != nil || got.result.Value != "k" || got.result.Replayed || observer.Effects(t, "k") != 1 {
			t.Errorf("%+v, %v, %d effects; want a run", got.result, got.err, observer.Effects(t, "k"))
		}
	})
}

func TestSilentCommitIsResolved(t *testing.T) {
	t.Parallel()
	proxy := &bench.CommitProxy{AfterCommit: true, Silent: true}
	b := proxiedBench(t, proxy, &pgxstore.Config{CommitTimeout: 100 * time.Millisecond})
	proxy.Armed.Store(true)
	result, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), bench.Charge("k"))
	if err != nil || result.Value != "k" || result.Replayed || b.Effects(t, "k") != 1 || proxy.Cuts.Load() != 1 {
		t.Errorf("%+v, %v, %d effects, %d replies lost; want a run and one each", result, err, b.Effects(t, "k"), proxy.Cuts.Load())
	}
}

// A commit that nobody hears of any more can still be at work, here in a
// deferred trigger, and succeed later. Whoever looks meanwhile sees no row.
func TestCommitThatIsStillAtWorkIsWaitedFor(t *testing.T) {
	t.Parallel()
	b := bench.New(t, bench.PoolWith(t, pgtest.Config(t)), &pgxstore.Config{CommitTimeout: 100 * time.Millisecond}, nil)
	let := bench.SlowCommit(t, b.Pool, "effects")
	var runs atomic.Int32
	type answer struct {
		result idempotency.Result[string]
		err    error
	}
	done := make(chan answer, 1)
	go func() {
		result, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), func(ctx context.Context, tx pgx.Tx) (string, error) {
			runs.Add(1)
			return "k", bench.Effect(ctx, tx, "k")
		})
		done <- answer{result, err}
	}()
	// Somebody has looked for it, in vain, and rolled back.
	bench.WaitFor(t, func() bool {
		var tries int
		if err := b.Pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'idle' AND query = 'rollback'`).Scan(&tries); err != nil {
			t.Error(err)
			return true
		}
		return tries > 0
	})
	let()
	got := <-done
	if got.err != nil || got.result.Replayed || got.result.Value != "k" || runs.Load() != 1 || b.Effects(t, "k") != 1 {
		t.Errorf("%+v, %v, %d runs, %d effects; want the answer of the one run", got.result, got.err, runs.Load(), b.Effects(t, "k"))
	}
}

// A commit that has ended and left nothing is tried once more, and what breaks
// it again is nobody else's doing.
func TestCommitThatLeavesNothing(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]*pgxstore.Config{
		"twice":                       nil,
		"where one try is allowed":    {MaxAttempts: 1},
		"where two tries are allowed": {MaxAttempts: 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want := 2
			if config != nil {
				want = config.MaxAttempts
			}
			proxy := &bench.CommitProxy{}
			b := proxiedBench(t, proxy, config)
			runs := 0
			_, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), func(ctx context.Context, tx pgx.Tx) (string, error) {
				runs++
				proxy.Armed.Store(true)
				return "k", bench.Effect(ctx, tx, "k")
			})
			var keyErr *idempotency.KeyError
			if !errors.Is(err, idempotency.ErrUnavailable) || !errors.As(err, &keyErr) || keyErr.Key != bench.Params("k").Key || runs != want {
				t.Errorf("%v after %d runs, want ErrUnavailable with the key after %d", err, runs, want)
			}
			if errors.Is(err, idempotency.ErrSerializationFailure) || errors.Is(err, idempotency.ErrOutcomeUnknown) || strings.Contains(fmt.Sprint(err), "another") {
				t.Errorf("%v blames another transaction", err)
			}
			if !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("%v does not say how the reply was lost", err)
			}
			wantNothing(t, b, "k")
			wantRun(t, b, "k")
		})
	}
}

// What the server, or pgx before it has sent anything, refuses for certain is
// the caller's to see, once.
func TestCommitThatIsRefused(t *testing.T) {
	t.Parallel()
	for _, code := range []string{"08006", "40003", "57014"} {
		t.Run("with "+code, func(t *testing.T) {
			t.Parallel()
			for _, mode := range bench.ExecModes {
				config := pgtest.Config(t)
				config.ConnConfig.DefaultQueryExecMode = mode
				b := bench.New(t, bench.PoolWith(t, config), nil, nil)
				for _, sql := range []string{
					`CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''test'' USING ERRCODE = ''` + code + `''; END'`,
					`CREATE CONSTRAINT TRIGGER fail AFTER INSERT ON effects DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fail()`,
				} {
					if _, err := b.Pool.Exec(t.Context(), sql); err != nil {
						t.Fatal(err)
					}
				}
				wantRefused(t, b, "", func(t *testing.T, err error) { t.Helper(); bench.WantPgError(t, err, code, "") })
			}
		})
	}
	t.Run("before it is sent", func(t *testing.T) {
		t.Parallel()
		config := pgtest.Config(t)
		config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
		b := bench.New(t, bench.PoolWith(t, config), nil, nil)
		wantRefused(t, b, `SET LOCAL standard_conforming_strings = off`, func(t *testing.T, err error) {
			t.Helper()
			if err == nil || !strings.Contains(err.Error(), "standard_conforming_strings") {
				t.Errorf("%v, want what pgx says", err)
			}
		})
	})
}

// A role may have lost the right to the function that confirms an answer. What it
// would be asked again for ResolveTimeout is told at once.
func TestLostReplyThatMayNotBeConfirmed(t *testing.T) {
	t.Parallel()
	config := pgtest.Config(t)
	owner := bench.New(t, bench.PoolWith(t, config.Copy()), nil, nil)
	role := "unconfirmed_" + config.ConnConfig.Database
	for _, sql := range []string{
		`CREATE ROLE ` + role + ` LOGIN PASSWORD 'p'`,
		`GRANT ALL ON ALL TABLES IN SCHEMA public TO ` + role,
		// Its arguments differ from version to version.
		`DO $$ DECLARE f regprocedure; BEGIN
			FOR f IN SELECT oid FROM pg_proc WHERE proname = 'pg_logical_emit_message' LOOP
				EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', f);
			END LOOP; END $$`,
	} {
		if _, err := owner.Pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, sql := range []string{`DROP OWNED BY ` + role, `DROP ROLE ` + role} {
			if _, err := owner.Pool.Exec(context.WithoutCancel(t.Context()), sql); err != nil {
				t.Error(err)
			}
		}
	})
	proxy := &bench.CommitProxy{AfterCommit: true}
	config.ConnConfig.User, config.ConnConfig.Password = role, "p"
	config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec // every COMMIT is sent as text
	counter := &bench.QueryCounter{}
	config.ConnConfig.Tracer = counter
	b := bench.Open(t, bench.PoolWith(t, proxy.Through(t, config)), nil, nil)
	defer b.Pool.Close() // before the role is dropped
	proxy.Armed.Store(true)
	var err error
	_, statements := counter.Count(func() {
		_, err = idempotency.Do(t.Context(), b.Client, bench.Params("k"), bench.Charge("k"))
	})
	if asked := strings.Count(strings.Join(statements, ""), "pg_logical_emit_message"); asked != 1 {
		t.Errorf("the function was asked for %d times, want once", asked)
	}
	if !errors.Is(err, idempotency.ErrOutcomeUnknown) || !strings.Contains(fmt.Sprint(err), "pg_logical_emit_message") {
		t.Errorf("got %v, want ErrOutcomeUnknown that names the function", err)
	}
	bench.WantPgError(t, err, "42501", "")
	result, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), mustNotRun(t, "k"))
	if err != nil || !result.Replayed {
		t.Errorf("%+v, %v; want a replay", result, err)
	}
}

// wantRefused calls Do with a function that also runs last, and checks its error.
func wantRefused(t *testing.T, b *bench.Bench, last string, check func(t *testing.T, err error)) {
	t.Helper()
	runs := 0
	_, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), func(ctx context.Context, tx pgx.Tx) (string, error) {
		runs++
		if err := bench.Effect(ctx, tx, "k"); err != nil {
			return "", err
		}
		_, err := tx.Exec(ctx, last)
		return "k", err
	})
	check(t, err)
	if runs != 1 || errors.Is(err, idempotency.ErrUnavailable) || errors.Is(err, idempotency.ErrOutcomeUnknown) || errors.Is(err, idempotency.ErrSerializationFailure) {
		t.Errorf("%v after %d runs, want the error as it is after one", err, runs)
	}
	wantNothing(t, b, "k")
}

func TestUnresolvedCommitIsSettledByTheNextCall(t *testing.T) {
	t.Parallel()
	for name, committed := range map[string]bool{"committed": true, "not committed": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy := &bench.CommitProxy{AfterCommit: committed, DownAfterCut: true}
			b := proxiedBench(t, proxy, &pgxstore.Config{ResolveTimeout: 100 * time.Millisecond})
			b.Pool.Reset() // no other connection may outlive the cut
			proxy.Armed.Store(true)
			_, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), bench.Charge("k"))
			var keyErr *idempotency.KeyError
			if !errors.Is(err, idempotency.ErrOutcomeUnknown) || !errors.As(err, &keyErr) || keyErr.Key != bench.Params("k").Key {
				t.Fatalf("got %v, want ErrOutcomeUnknown with the key", err)
			}
			if strings.Contains(err.Error(), `"k"`) {
				t.Errorf("the error prints the key: %v", err)
			}
			proxy.Down.Store(false)
			result, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), bench.Charge("k"))
			if err != nil || result.Replayed != committed || b.Effects(t, "k") != 1 {
				t.Errorf("%+v, %v, %d effects; want one effect, replayed: %t", result, err, b.Effects(t, "k"), committed)
			}
		})
	}
}

// wrappedPool is what a tracing or lazily connecting pool looks like.
type wrappedPool struct{ *pgxpool.Pool }

// opaquePool can begin, and nobody can tell what.
type opaquePool struct{ pool *pgxpool.Pool }

func (p opaquePool) Begin(ctx context.Context) (pgx.Tx, error) { return p.pool.Begin(ctx) }

func TestLostReplyThroughAWrappedPool(t *testing.T) {
	t.Parallel()
	proxy := &bench.CommitProxy{AfterCommit: true}
	b := proxiedBench(t, proxy, nil)
	proxy.Armed.Store(true)
	runs := 0
	err := txhelper.Run(t.Context(), wrappedPool{b.Pool}, &txhelper.Options{Retryable: func(error) bool { return true }}, func(ctx context.Context, tx pgx.Tx) error {
		runs++
		return bench.Effect(ctx, tx, "k")
	})
	var ambiguous *txhelper.AmbiguousCommitError
	if !errors.As(err, &ambiguous) || runs != 1 || b.Effects(t, "k") != 1 {
		t.Errorf("%v after %d runs; want an AmbiguousCommitError after one, whatever Retryable says", err, runs)
	}
	err = txhelper.Run(t.Context(), opaquePool{b.Pool}, nil, func(context.Context, pgx.Tx) error {
		t.Error("fn ran")
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "opaquePool") {
		t.Errorf("got %v, want a refusal that names the type", err)
	}
}

// pgx from 5.9 on calls a committed simple-protocol COMMIT safe to retry when
// its reply is lost. We never ask it; this pins why. If it fails because pgx has
// changed, the comment in txhelper.Transaction.Commit can go.
func TestPgxSafeToRetryAfterALostCommit(t *testing.T) {
	t.Parallel()
	proxy := &bench.CommitProxy{AfterCommit: true}
	b := proxiedBench(t, proxy, nil)
	proxy.Armed.Store(true)
	err := pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) error { return bench.Effect(t.Context(), tx, "k") })
	if err == nil {
		t.Fatal("the commit was not cut")
	}
	if n := b.Effects(t, "k"); n != 1 {
		t.Fatalf("%d effects; the commit was to go through", n)
	}
	if !pgconn.SafeToRetry(err) {
		t.Errorf("pgx reports %v as unsafe to retry: it has been repaired", err)
	}
}

// A pool can hand out a connection that the server has closed meanwhile.
func TestConnectionLostBeforeBeginIsReplaced(t *testing.T) {
	t.Parallel()
	config := pgtest.Config(t)
	observer := bench.New(t, bench.PoolWith(t, config.Copy()), nil, nil)
	config.MaxConns = 1
	for name, run := range map[string]func(pool *pgxpool.Pool) error{
		"Do": func(pool *pgxpool.Pool) error {
			_, err := idempotency.Do(t.Context(), bench.Open(t, pool, &pgxstore.Config{MaxAttempts: 1}, nil).Client, bench.Params("Do"), bench.Charge("Do"))
			return err
		},
		"txhelper.Run": func(pool *pgxpool.Pool) error {
			return txhelper.Run(t.Context(), pool, nil, func(ctx context.Context, tx pgx.Tx) error { return bench.Effect(ctx, tx, "txhelper.Run") })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := bench.PoolWith(t, config.Copy())
			killElsewhere(t, observer.Pool, uint32(bench.Count(t, pool, `SELECT pg_backend_pid()`)))
			if err := run(pool); err != nil || observer.Effects(t, name) != 1 {
				t.Errorf("%v, %d effects; want a run on another connection", err, observer.Effects(t, name))
			}
		})
	}
}

// Whatever is killed and whenever: one effect for each key that was answered.
func TestKilledBackends(t *testing.T) {
	t.Parallel()
	config := pgtest.Config(t)
	config.ConnConfig.RuntimeParams["application_name"] = "victim"
	pool := bench.PoolWith(t, config)
	b := bench.New(t, pool, nil, nil)
	killer, err := pgx.Connect(t.Context(), config.ConnString())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := killer.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	// One kill for a call, after a number of flights of the killer's own: at what
	// time of the call, the machine's speed does not decide.
	calls, stopped := make(chan struct{}), make(chan struct{})
	kills := 0
	go func() {
		defer close(stopped)
		for range calls {
			for range rand.IntN(8) {
				if err := killer.Ping(t.Context()); err != nil {
					t.Error(err)
				}
			}
			var killed bool
			err := killer.QueryRow(t.Context(), `SELECT coalesce(bool_or(pg_terminate_backend(pid)), false) FROM
				(SELECT pid FROM pg_stat_activity WHERE application_name = 'victim' AND datname = current_database() ORDER BY random() LIMIT 1) AS v`).Scan(&killed)
			if err != nil {
				t.Error(err)
			}
			if killed {
				kills++
			}
		}
	}()
	const keys = 150
	for k := range keys {
		name := strings.Repeat("k", k+1)
		p := bench.Params(name)
		bench.WaitFor(t, func() bool {
			select {
			case calls <- struct{}{}:
			default: // the last kill is still to come
			}
			_, err := idempotency.Do(t.Context(), b.Client, p, bench.Charge(name))
			return err == nil
		})
	}
	close(calls)
	<-stopped
	var effects, doubles int
	if err := killer.QueryRow(t.Context(), `SELECT count(*), count(*) FILTER (WHERE n > 1) FROM (SELECT count(*) AS n FROM effects GROUP BY name) AS e`).Scan(&effects, &doubles); err != nil {
		t.Fatal(err)
	}
	if effects != keys || doubles != 0 || kills == 0 {
		t.Errorf("%d keys with an effect, %d with two, after %d kills; want %d and 0", effects, doubles, kills, keys)
	}
}

// A pool that was failed over to a standby which lags does not see the commit,
// and gets the lock: locks are not replicated. Neither says anything about the
// primary. The stand-in is another database, empty and read-only.
func TestLostReplyIsNotResolvedByAStandby(t *testing.T) {
	t.Parallel()
	standby := pgtest.Config(t).ConnConfig.Database
	proxy := &bench.CommitProxy{AfterCommit: true}
	config := proxy.Through(t, pgtest.Config(t))
	config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec // every COMMIT is sent as text
	primary := bench.PoolWith(t, config.Copy())
	config.BeforeConnect = func(_ context.Context, conn *pgx.ConnConfig) error {
		if proxy.Cuts.Load() > 0 {
			conn.Database, conn.RuntimeParams["default_transaction_read_only"] = standby, "on"
		}
		return nil
	}
	// A quarter of it must do for a new connection, on a busy machine too.
	b := bench.New(t, bench.PoolWith(t, config), &pgxstore.Config{ResolveTimeout: 3 * time.Second}, nil)
	proxy.Armed.Store(true)
	result, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), bench.Charge("k"))
	if !errors.Is(err, idempotency.ErrOutcomeUnknown) || errors.Is(err, idempotency.ErrReadOnly) {
		t.Errorf("%+v, %v; want ErrOutcomeUnknown, as the commit has succeeded", result, err)
	}
	again := bench.Open(t, primary, nil, nil)
	result, err = idempotency.Do(t.Context(), again.Client, bench.Params("k"), mustNotRun(t, "k"))
	if err != nil || !result.Replayed || again.Effects(t, "k") != 1 {
		t.Errorf("%+v, %v, %d effects on the primary; want a replay of one", result, err, again.Effects(t, "k"))
	}
}

// brokenConn loses the reply to the next request, once it is told to, and fails
// from then on. The server hears nothing of it.
type brokenConn struct {
	net.Conn
	breaks *atomic.Bool
	broken atomic.Bool
}

func (c *brokenConn) Read(data []byte) (int, error) {
	n, err := c.Conn.Read(data)
	if n > 0 && c.breaks.Load() {
		c.broken.Store(true)
	}
	if c.broken.Load() {
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}

func (c *brokenConn) Write(data []byte) (int, error) {
	if c.broken.Load() {
		return 0, io.ErrClosedPipe
	}
	return c.Conn.Write(data)
}

func (c *brokenConn) Close() error {
	if c.broken.Load() {
		return nil
	}
	return c.Conn.Close()
}

// A try that lost its connection right after BEGIN is still at work on the
// server until that notices, and the next try of the same call finds it.
func TestTryThatLostItsConnectionIsInProgress(t *testing.T) {
	t.Parallel()
	config := pgtest.Config(t)
	b := bench.New(t, openPool(t, config), nil, nil)
	var breaks atomic.Bool
	var first net.Conn
	lossy := config.Copy()
	lossy.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec // BEGIN is in the first request
	dial := lossy.ConnConfig.DialFunc
	lossy.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil || first != nil {
			return conn, err
		}
		first = conn
		return &brokenConn{Conn: conn, breaks: &breaks}, nil
	}
	pool := openPool(t, lossy)
	if err := pool.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	lost := bench.New(t, pool, nil, nil)

	breaks.Store(true)
	hasty := bench.Params("k")
	hasty.Wait = idempotency.NoWait
	_, err := idempotency.Do(t.Context(), lost.Client, hasty, bench.Charge("k"))
	if !errors.Is(err, idempotency.ErrInProgress) {
		t.Errorf("got %v, want ErrInProgress: the server still has the first try", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	result, err := idempotency.Do(t.Context(), lost.Client, bench.Params("k"), bench.Charge("k"))
	if err != nil || result.Replayed || b.Effects(t, "k") != 1 {
		t.Errorf("%+v, %v, %d effects; want a run once the server knows", result, err, b.Effects(t, "k"))
	}
}

func openPool(t *testing.T, config *pgxpool.Config) *pgxpool.Pool {
	t.Helper()
	pool := bench.PoolWith(t, config.Copy())
	return pool
}

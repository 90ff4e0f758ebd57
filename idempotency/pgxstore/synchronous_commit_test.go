package pgxstore_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
	"github.com/samecommit/samecommit/internal/pgserver"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
	"github.com/samecommit/samecommit/migrations"
)

// waitingServer is a server whose commits wait for a standby that is not there.
type waitingServer struct {
	config *pgxpool.Config
	// local does not wait.
	local *bench.Bench
}

func startWaitingServer(t *testing.T) *waitingServer {
	t.Helper()
	server, err := pgserver.StartLocal(t.Context(), nil)
	if errors.Is(err, pgserver.ErrNoBinaries) {
		t.Skipf("this machine has no PostgreSQL server installed, which this test needs one of its own of: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	config, err := pgxpool.ParseConfig(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	local := config.Copy()
	local.ConnConfig.RuntimeParams["synchronous_commit"] = "local"
	pool := bench.PoolWith(t, local)
	if err := migrations.Up(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	s := &waitingServer{config: config, local: bench.New(t, pool, nil, nil)}
	s.setStandby(t, "nobody")
	return s
}

// setStandby names the standby that commits wait for.
func (s *waitingServer) setStandby(t *testing.T, name string) {
	t.Helper()
	for _, sql := range []string{`ALTER SYSTEM SET synchronous_standby_names = '` + name + `'`, `SELECT pg_reload_conf()`} {
		if _, err := s.local.Pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	bench.WaitFor(t, func() bool {
		return bench.Count(t, s.local.Pool, `SELECT count(*) FROM pg_settings WHERE name = 'synchronous_standby_names' AND setting = $1`, name) == 1
	})
}

// waitForCommit waits until the commit of the application waits for the standby,
// and returns its backend's process id.
func (s *waitingServer) waitForCommit(t *testing.T, application string) (pid int) {
	t.Helper()
	bench.WaitFor(t, func() bool {
		pid = bench.Count(t, s.local.Pool, `SELECT CASE count(*) WHEN 1 THEN min(pid) ELSE 0 END FROM pg_stat_activity WHERE application_name = $1 AND wait_event = 'SyncRep'`, application)
		return pid != 0
	})
	return pid
}

// doTerminated calls Do, ends the connection of its commit, which ends the wait
// and shows what was committed, and returns the error of Do. What it finds then
// is to wait for the standby once more.
func (s *waitingServer) doTerminated(t *testing.T, b *bench.Bench, name string, fn func(context.Context, pgx.Tx) (string, error)) error {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		_, err := idempotency.Do(t.Context(), b.Client, bench.Params(name), fn)
		done <- err
	}()
	waiting := s.waitForCommit(t, name)
	if n := bench.Count(t, s.local.Pool, `SELECT pg_terminate_backend($1)::integer`, waiting); n != 1 {
		t.Errorf("%d connections were ended, want 1", n)
	}
	bench.WaitFor(t, func() bool {
		return len(done) == 1 || bench.Count(t, s.local.Pool, `SELECT count(*) FROM pg_stat_activity
			WHERE application_name = $1 AND wait_event = 'SyncRep' AND pid <> $2`, name, waiting) == 1
	})
	if len(done) == 1 {
		t.Error("Do has returned, and has not waited for the standby once more")
	}
	return <-done
}

// cancelling makes pgx answer the end of a context with a request to cancel, and
// read on.
func cancelling(config *pgx.ConnConfig) {
	config.BuildContextWatcherHandler = func(conn *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.CancelRequestContextWatcherHandler{Conn: conn, DeadlineDelay: 30 * time.Second}
	}
}

// What only the primary has is lost with it. It must not be acknowledged, whoever
// ends the wait for the standby: our own deadline, an operator, pgx.
func TestCommitThatWaitsForAStandby(t *testing.T) {
	t.Parallel()
	s := startWaitingServer(t)
	open := func(t *testing.T, name string, change func(*pgxpool.Config), config *pgxstore.Config) *bench.Bench {
		t.Helper()
		poolConfig := s.config.Copy()
		poolConfig.ConnConfig.RuntimeParams["application_name"] = name
		if change != nil {
			change(poolConfig)
		}
		return bench.Open(t, bench.PoolWith(t, poolConfig), config, nil)
	}
	const commitTimeout, resolveTimeout = 100 * time.Millisecond, 3 * time.Second
	wantUnknown := func(t *testing.T, err error) {
		t.Helper()
		if !errors.Is(err, idempotency.ErrOutcomeUnknown) {
			t.Errorf("got %v, want ErrOutcomeUnknown", err)
		}
	}

	t.Run("meanwhile", func(t *testing.T) {
		t.Run("is left waiting after the commit timeout", func(t *testing.T) {
			t.Parallel()
			b := open(t, "abandoned", nil, &pgxstore.Config{CommitTimeout: commitTimeout, ResolveTimeout: resolveTimeout})
			_, err := idempotency.Do(t.Context(), b.Client, bench.Params("abandoned"), bench.Charge("abandoned"))
			wantUnknown(t, err)
			s.waitForCommit(t, "abandoned")
			if n := s.local.Effects(t, "abandoned"); n != 0 {
				t.Errorf("%d effects are seen, want none before the standby has it", n)
			}
			wantInProgress(t, s.local, "abandoned")
		})

		for _, mode := range bench.ExecModes {
			for name, settings := range map[string]func(context.Context) (map[string]string, error){
				"":               nil,
				" with settings": func(context.Context) (map[string]string, error) { return map[string]string{"app.tenant": "t"}, nil },
			} {
				name := "terminated " + mode.String() + name
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					change := func(config *pgxpool.Config) { config.ConnConfig.DefaultQueryExecMode = mode }
					b := open(t, name, change, &pgxstore.Config{ResolveTimeout: resolveTimeout, Settings: settings})
					wantUnknown(t, s.doTerminated(t, b, name, bench.Charge(name)))
					if n := s.local.Effects(t, name); n != 1 {
						t.Errorf("%d effects are seen, want the one that the primary has", n)
					}

					// A call that comes later cannot know why it is seen.
					result, err := idempotency.Do(t.Context(), b.Client, bench.Params(name), mustNotRun(t, name))
					if err != nil || !result.Replayed {
						t.Errorf("%+v, %v; want a replay, as replays are not confirmed", result, err)
					}
					for within, want := range map[time.Duration]error{time.Hour: idempotency.ErrOutcomeUnknown, time.Nanosecond: nil} {
						confirming := open(t, name, change, &pgxstore.Config{ResolveTimeout: resolveTimeout, Settings: settings, ConfirmReplays: within})
						if _, err := idempotency.Do(t.Context(), confirming.Client, bench.Params(name), mustNotRun(t, name)); !errors.Is(err, want) {
							t.Errorf("got %v, want %v where replays are confirmed for %s", err, want, within)
						}
					}
				})
			}
		}

		t.Run("where only the function's transaction waits", func(t *testing.T) {
			t.Parallel()
			const name = "function waits"
			b := open(t, name, func(config *pgxpool.Config) { config.ConnConfig.RuntimeParams["synchronous_commit"] = "off" }, &pgxstore.Config{ResolveTimeout: resolveTimeout})
			wantUnknown(t, s.doTerminated(t, b, name, func(ctx context.Context, tx pgx.Tx) (string, error) {
				if _, err := tx.Exec(ctx, `SET LOCAL synchronous_commit = on`); err != nil {
					return "", err
				}
				return name, bench.Effect(ctx, tx, name)
			}))
		})

		t.Run("where pgx reads on after its own request to cancel", func(t *testing.T) {
			t.Parallel()
			const name = "cancelling pool"
			b := open(t, name, func(config *pgxpool.Config) { cancelling(config.ConnConfig) }, &pgxstore.Config{ResolveTimeout: resolveTimeout})
			wantUnknown(t, s.doTerminated(t, b, name, bench.Charge(name)))
		})

		// PostgreSQL's own rule, which nobody can see through: the reply to COMMIT is
		// success, with a warning.
		t.Run("is acknowledged if an operator cancels it", func(t *testing.T) {
			t.Parallel()
			const name = "cancelled"
			var warnings atomic.Int32
			b := open(t, name, func(config *pgxpool.Config) {
				config.ConnConfig.OnNotice = func(_ *pgconn.PgConn, notice *pgconn.Notice) {
					if notice.Code == "01000" {
						warnings.Add(1)
					}
				}
			}, nil)
			done := make(chan error, 1)
			go func() {
				_, err := idempotency.Do(t.Context(), b.Client, bench.Params(name), bench.Charge(name))
				done <- err
			}()
			s.waitForCommit(t, name)
			if n := bench.Count(t, s.local.Pool, `SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE application_name = $1 AND wait_event = 'SyncRep'`, name); n != 1 {
				t.Errorf("%d commits were cancelled, want 1", n)
			}
			if err := <-done; err != nil || warnings.Load() != 1 {
				t.Errorf("%v, %d warnings; want success with one", err, warnings.Load())
			}
		})

		t.Run("on a connection of the caller's", func(t *testing.T) {
			t.Parallel()
			const name = "cancelling connection"
			config := s.config.ConnConfig.Copy()
			cancelling(config)
			conn, err := pgx.ConnectConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := conn.Close(context.WithoutCancel(t.Context())); err != nil {
					t.Error(err)
				}
			})
			client, err := idempotency.NewClient(bench.NewStore(t, conn, &pgxstore.Config{CommitTimeout: commitTimeout}), nil)
			if err != nil {
				t.Fatal(err)
			}
			_, err = idempotency.Do(t.Context(), client, bench.Params(name), bench.Charge(name))
			wantUnknown(t, err)
		})
	})

	t.Run("is committed once the standby is back", func(t *testing.T) { //nolint:paralleltest // For the others it must stay away.
		const name = "later"
		b := open(t, name, nil, &pgxstore.Config{CommitTimeout: commitTimeout, ResolveTimeout: resolveTimeout, ConfirmReplays: time.Hour})
		_, err := idempotency.Do(t.Context(), b.Client, bench.Params(name), bench.Charge(name))
		wantUnknown(t, err)
		abandoned := s.waitForCommit(t, name)
		s.setStandby(t, "")
		result, err := idempotency.Do(t.Context(), b.Client, bench.Params(name), mustNotRun(t, name))
		if err != nil || !result.Replayed || s.local.Effects(t, name) != 1 {
			t.Errorf("%+v, %v, %d effects; want a replay", result, err, s.local.Effects(t, name))
		}
		bench.WaitFor(t, func() bool {
			return bench.Count(t, s.local.Pool, `SELECT count(*) FROM pg_stat_activity WHERE pid = $1`, abandoned) == 0
		})
	})
}

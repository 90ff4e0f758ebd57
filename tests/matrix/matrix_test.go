package matrix_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
	"github.com/samecommit/samecommit/idempotency/storetest"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

var execModes = []pgx.QueryExecMode{
	pgx.QueryExecModeCacheStatement,
	pgx.QueryExecModeCacheDescribe,
	pgx.QueryExecModeDescribeExec,
	pgx.QueryExecModeExec,
	pgx.QueryExecModeSimpleProtocol,
}

var isolationLevels = []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable}

// TestMatrix runs the contracts of package storetest, and what they leave to the
// store, in every exec mode: directly and, where SAMECOMMIT_PGBOUNCER names that
// program, through it in transaction mode. The server's version is up to the
// caller: make matrix takes each one that is supported, and gathers the lines
// that this prints.
func TestMatrix(t *testing.T) { //nolint:paralleltest // A cell's time is to be its own.
	server := pgtest.Config(t).ConnConfig
	pool, err := pgxpool.New(t.Context(), pgtest.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	var version string
	if err := pool.QueryRow(t.Context(), `SHOW server_version`).Scan(&version); err != nil {
		t.Fatal(err)
	}
	routes := map[string]*pgbouncer{"direct": nil}
	order := []string{"direct"}
	if program := os.Getenv(pgbouncerVariable); program != "" {
		routes["pgbouncer"] = startPgbouncer(t, program, server)
		order = append(order, "pgbouncer")
	}
	for _, route := range order {
		for _, mode := range execModes {
			began := time.Now()
			outcome := "" // not run, by the -run flag
			if !t.Run(route+" "+mode.String(), func(t *testing.T) {
				c := &cell{bouncer: routes[route], mode: mode}
				outcome = "ok"
				switch {
				case c.bouncer != nil && mode == pgx.QueryExecModeCacheStatement:
					outcome = "42P05"
					refusesNamedStatements(t, c)
				case c.bouncer != nil && mode == pgx.QueryExecModeDescribeExec:
					outcome = "08P01"
					mixesUnnamedStatements(t, c)
				default:
					conforms(t, c)
				}
			}) {
				outcome = "FAIL"
			}
			if outcome != "" {
				fmt.Printf("matrix;%s;%s;%s;%s;%.1f\n", version, route, mode, outcome, time.Since(began).Seconds())
			}
		}
	}
}

// cell is one exec mode on one way to the server.
type cell struct {
	bouncer *pgbouncer
	mode    pgx.QueryExecMode
}

// config returns the configuration of a pool on a new database, which is made
// and migrated without pgbouncer.
func (c *cell) config(t *testing.T) *pgxpool.Config {
	t.Helper()
	config := pgtest.Config(t)
	config.ConnConfig.DefaultQueryExecMode = c.mode
	if c.bouncer != nil {
		config.ConnConfig.Host, config.ConnConfig.Port = "127.0.0.1", c.bouncer.port
		config.ConnConfig.Fallbacks, config.ConnConfig.TLSConfig = nil, nil
	}
	return config
}

// bench returns a bench on a new database of the cell.
func (c *cell) bench(t *testing.T, storeConfig *pgxstore.Config) *bench.Bench {
	t.Helper()
	return bench.New(t, bench.PoolWith(t, c.config(t)), storeConfig, nil)
}

func wantEffects(t *testing.T, b *bench.Bench, name string, want int) {
	t.Helper()
	if count := b.Effects(t, name); count != want {
		t.Errorf("%d effects of %s, want %d", count, name, want)
	}
}

// conforms is what every supported cell passes.
func conforms(t *testing.T, c *cell) {
	t.Helper()
	t.Run("store", func(t *testing.T) {
		t.Parallel()
		storetest.Run(t, func(t *testing.T) idempotency.Store {
			t.Helper()
			return c.bench(t, nil).Store
		})
	})
	t.Run("transaction", func(t *testing.T) {
		t.Parallel()
		storetest.RunTx(t, func(t *testing.T) storetest.Harness[pgx.Tx] {
			t.Helper()
			return c.bench(t, nil).Harness(pgx.TxOptions{})
		})
	})
	for _, level := range isolationLevels {
		t.Run(string(level), func(t *testing.T) {
			t.Parallel()
			b := c.bench(t, &pgxstore.Config{TxOptions: pgx.TxOptions{IsoLevel: level}})
			runsOnce(t, b)
			killedBackend(t, b)
			batch(t, b)
		})
	}
	t.Run("settings", func(t *testing.T) {
		t.Parallel()
		settings(t, c)
	})
	conformsOnSQL(t, c)
}

// runsOnce runs, replays and runs again what has expired.
func runsOnce(t *testing.T, b *bench.Bench) {
	t.Helper()
	for i := range 2 {
		result, err := idempotency.Do(t.Context(), b.Client, bench.Params("once"), bench.Charge("once"))
		if err != nil || result.Value != "once" || result.Replayed != (i == 1) {
			t.Fatalf("call %d: %+v, %v; want one run and one replay", i, result, err)
		}
	}
	wantEffects(t, b, "once", 1)
	expiring := bench.Params("expiring")
	expiring.TTL = time.Microsecond
	for range 2 {
		result, err := idempotency.Do(t.Context(), b.Client, expiring, bench.Charge("expiring"))
		if err != nil || result.Replayed {
			t.Fatalf("%+v, %v; want a run, the answer has expired", result, err)
		}
	}
	wantEffects(t, b, "expiring", 2)
}

// killedBackend loses the server's end between the function and the commit,
// unnoticed until the commit is sent.
func killedBackend(t *testing.T, b *bench.Bench) {
	t.Helper()
	runs := 0
	result, err := idempotency.Do(t.Context(), b.Client, bench.Params("killed"), func(ctx context.Context, tx pgx.Tx) (string, error) {
		var pid int
		if err := tx.QueryRow(ctx, `SELECT pg_backend_pid()`).Scan(&pid); err != nil {
			return "", err
		}
		if runs++; runs == 1 {
			if _, err := b.Pool.Exec(ctx, `SELECT pg_terminate_backend($1)`, pid); err != nil {
				return "", err
			}
			for there := true; there; {
				if err := b.Pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)`, pid).Scan(&there); err != nil {
					return "", err
				}
			}
			return "killed", nil
		}
		return "killed", bench.Effect(ctx, tx, "killed")
	})
	if err != nil || result.Replayed || runs != 2 {
		t.Errorf("%+v, %v, %d runs; want an answer of the second run", result, err, runs)
	}
	wantEffects(t, b, "killed", 1)
}

// batch commits two keys with their effects, and replays them.
func batch(t *testing.T, b *bench.Bench) {
	t.Helper()
	all := []idempotency.Params{bench.Params("b2"), bench.Params("b1")}
	for i := range 2 {
		want := []idempotency.State{idempotency.New, idempotency.Completed}[i]
		err := pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) error {
			batch, err := b.Client.WithTx(tx).BeginMany(t.Context(), all)
			if err != nil {
				return err
			}
			for _, item := range batch.Items {
				if item.State != want || item.Err != nil {
					return fmt.Errorf("%v, %w; want %v", item.State, item.Err, want)
				}
				if item.State == idempotency.Completed {
					if string(item.Record.Response.Body) != "\x00"+item.Key.ID+"\xff" {
						return fmt.Errorf("replayed %q", item.Record.Response.Body)
					}
					continue
				}
				item.Response = &idempotency.Response{Type: idempotency.TypeBytes, Body: []byte("\x00" + item.Key.ID + "\xff")}
				if err := bench.Effect(t.Context(), tx, item.Key.ID); err != nil {
					return err
				}
			}
			return batch.Complete(t.Context())
		})
		if err != nil {
			t.Fatalf("batch %d: %v", i, err)
		}
	}
	wantEffects(t, b, "b1", 1)
	wantEffects(t, b, "b2", 1)
}

// settings sets a role and a tenant for each transaction, and leaves neither
// with the connection. The role is one that every server has.
func settings(t *testing.T, c *cell) {
	t.Helper()
	tenant := bench.Params("walled").Key.Scope
	b := c.bench(t, &pgxstore.Config{Settings: func(context.Context) (map[string]string, error) {
		return map[string]string{"role": "pg_monitor", "app.tenant": tenant}, nil
	}})
	for _, sql := range []string{
		`ALTER TABLE idempotency_keys ENABLE ROW LEVEL SECURITY`,
		`CREATE POLICY tenant ON idempotency_keys USING (scope = current_setting('app.tenant'))`,
		`GRANT SELECT, INSERT, UPDATE, DELETE ON idempotency_keys, effects TO pg_monitor`,
	} {
		if _, err := b.Pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 2 {
		result, err := idempotency.Do(t.Context(), b.Client, bench.Params("walled"), bench.Charge("walled"))
		if err != nil || result.Replayed != (i == 1) {
			t.Fatalf("call %d: %+v, %v; want one run and one replay", i, result, err)
		}
	}
	if _, err := b.Store.Get(t.Context(), bench.Params("walled").Key); err != nil {
		t.Error(err)
	}
	tenant = "another"
	if _, err := idempotency.Do(t.Context(), b.Client, bench.Params("walled"), bench.Charge("hidden")); !errors.Is(err, pgxstore.ErrInsufficientPrivilege) {
		t.Errorf("got %v, want ErrInsufficientPrivilege", err)
	}
	if _, err := b.Store.Get(t.Context(), bench.Params("walled").Key); !errors.Is(err, idempotency.ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
	wantEffects(t, b, "hidden", 0)
	var role, left string
	if err := b.Pool.QueryRow(t.Context(), `SELECT current_setting('role'), coalesce(current_setting('app.tenant', true), '')`).Scan(&role, &left); err != nil || role != "none" || left != "" {
		t.Errorf("role %q and tenant %q are left, %v", role, left, err)
	}
}

// refusesNamedStatements is a cell that is not supported: pgx names the
// statements that it caches, and pgbouncer before 1.21 hands one server
// connection with such names to many clients. The second client is refused, and
// nothing of its call is committed.
func refusesNamedStatements(t *testing.T, c *cell) {
	t.Helper()
	config := c.config(t)
	first := bench.Open(t, bench.PoolWith(t, config), nil, nil)
	if _, err := first.Pool.Exec(t.Context(), `CREATE TABLE effects (name text NOT NULL)`, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	if _, err := idempotency.Do(t.Context(), first.Client, bench.Params("first"), bench.Charge("first")); err != nil {
		t.Fatal(err)
	}
	second := bench.Open(t, bench.PoolWith(t, config), nil, nil)
	_, err := idempotency.Do(t.Context(), second.Client, bench.Params("second"), bench.Charge("second"))
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != "42P05" {
		t.Errorf("got %v; want 42P05 from pgbouncer before 1.21. A later one may support this cell, with max_prepared_statements", err)
	}
	var count int
	if err := second.Pool.QueryRow(t.Context(), `SELECT count(*) FROM effects WHERE name = 'second'`, pgx.QueryExecModeSimpleProtocol).Scan(&count); err != nil || count != 0 {
		t.Errorf("%d effects of the call that was refused, %v", count, err)
	}
}

// mixesUnnamedStatements is a cell that is not supported: pgx describes a
// statement in one flight and runs it in the next, and outside of a transaction
// another client's may take its place on the server connection in between.
func mixesUnnamedStatements(t *testing.T, c *cell) {
	t.Helper()
	config := c.config(t)
	other := bench.Open(t, bench.PoolWith(t, config), nil, nil)
	config = config.Copy()
	config.ConnConfig.Tracer = betweenFlights(func() {
		var two int
		if err := other.Pool.QueryRow(t.Context(), `SELECT 1 + $1::integer`, 1).Scan(&two); err != nil {
			t.Error(err)
		}
	})
	_, err := bench.Open(t, bench.PoolWith(t, config), nil, nil).Store.Begin(t.Context(), &idempotency.BeginParams{
		Key: bench.Params("mixed").Key, Fingerprint: idempotency.NoFingerprint, TTL: time.Hour, Lease: time.Hour,
	})
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != "08P01" {
		t.Errorf("got %v; want 08P01, as the statement is another client's", err)
	}
}

// betweenFlights is called after a statement was described.
type betweenFlights func()

func (betweenFlights) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}
func (betweenFlights) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
func (betweenFlights) TracePrepareStart(ctx context.Context, _ *pgx.Conn, _ pgx.TracePrepareStartData) context.Context {
	return ctx
}
func (f betweenFlights) TracePrepareEnd(context.Context, *pgx.Conn, pgx.TracePrepareEndData) { f() }

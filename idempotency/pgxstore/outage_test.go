package pgxstore_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
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

// outage refuses connections while it is on, and counts them.
type outage struct {
	on    atomic.Bool
	dials atomic.Int32
}

func (o *outage) through(config *pgxpool.Config) *pgxpool.Config {
	dial := config.ConnConfig.DialFunc
	config.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		o.dials.Add(1)
		if o.on.Load() {
			return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
		}
		return dial(ctx, network, address)
	}
	return config
}

func wantUnavailable(t *testing.T, err error, key idempotency.Key) {
	t.Helper()
	var keyErr *idempotency.KeyError
	if !errors.Is(err, idempotency.ErrUnavailable) || !errors.As(err, &keyErr) || keyErr.Key != key {
		t.Errorf("got %v, want ErrUnavailable with the key", err)
	}
	if errors.Is(err, idempotency.ErrSerializationFailure) || errors.Is(err, idempotency.ErrOutcomeUnknown) || errors.Is(err, idempotency.ErrTxEnded) {
		t.Errorf("%v is more than ErrUnavailable", err)
	}
}

// A failover takes seconds, in which there is no server. Nothing has run yet, so
// waiting is all that a call has to do.
func TestDoWaitsForAServer(t *testing.T) {
	t.Parallel()
	isolation := map[string]pgx.TxIsoLevel{"": "", " serializable": pgx.Serializable}
	for suffix, level := range isolation {
		t.Run("that refuses connections"+suffix, func(t *testing.T) {
			t.Parallel()
			config := pgtest.Config(t)
			observer := bench.New(t, bench.PoolWith(t, config.Copy()), nil, nil)
			o := &outage{}
			o.on.Store(true)
			b := bench.Open(t, bench.PoolWith(t, o.through(config)), &pgxstore.Config{
				TxOptions: pgx.TxOptions{IsoLevel: level}, MaxAttempts: 1, ConnectTimeout: time.Minute,
			}, nil)
			done := make(chan error, 1)
			go func() {
				_, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), bench.Charge("k"))
				done <- err
			}()
			bench.WaitFor(t, func() bool { return o.dials.Load() > 4 || len(done) == 1 })
			o.on.Store(false)
			if err := <-done; err != nil || observer.Effects(t, "k") != 1 {
				t.Errorf("%v, %d effects; want a run", err, observer.Effects(t, "k"))
			}
		})
	}

	t.Run("that has no place for a connection", func(t *testing.T) {
		t.Parallel()
		config := pgtest.Config(t)
		owner := bench.New(t, bench.PoolWith(t, config.Copy()), nil, nil)
		dbName := pgx.Identifier{config.ConnConfig.Database}.Sanitize()
		role := "limited_" + config.ConnConfig.Database
		for _, sql := range []string{
			`CREATE ROLE ` + role + ` LOGIN PASSWORD 'p' CONNECTION LIMIT 0`,
			`GRANT ALL ON DATABASE ` + dbName + ` TO ` + role,
			`GRANT ALL ON ALL TABLES IN SCHEMA public TO ` + role,
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
		o := &outage{}
		config.ConnConfig.User, config.ConnConfig.Password = role, "p"
		b := bench.Open(t, bench.PoolWith(t, o.through(config)), &pgxstore.Config{MaxAttempts: 1, ConnectTimeout: time.Minute}, nil)
		done := make(chan error, 1)
		go func() {
			_, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), bench.Charge("k"))
			done <- err
		}()
		bench.WaitFor(t, func() bool { return o.dials.Load() > 2 || len(done) == 1 })
		if _, err := owner.Pool.Exec(t.Context(), `ALTER ROLE `+role+` CONNECTION LIMIT 10`); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil || owner.Effects(t, "k") != 1 {
			t.Errorf("%v, %d effects; want a run", err, owner.Effects(t, "k"))
		}
		b.Pool.Close() // so that the role can be dropped
	})

	t.Run("that is not read-write", func(t *testing.T) {
		t.Parallel()
		config := pgtest.Config(t)
		owner := bench.New(t, bench.PoolWith(t, config.Copy()), nil, nil)
		setReadOnly := func(value string) {
			t.Helper()
			if _, err := owner.Pool.Exec(t.Context(), `ALTER DATABASE `+pgx.Identifier{config.ConnConfig.Database}.Sanitize()+` SET default_transaction_read_only = `+value); err != nil {
				t.Fatal(err)
			}
		}
		setReadOnly("on")
		o := &outage{}
		config.ConnConfig.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
		b := bench.Open(t, bench.PoolWith(t, o.through(config)), &pgxstore.Config{MaxAttempts: 1, ConnectTimeout: time.Minute}, nil)
		done := make(chan error, 1)
		go func() {
			_, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), bench.Charge("k"))
			done <- err
		}()
		bench.WaitFor(t, func() bool { return o.dials.Load() > 2 || len(done) == 1 })
		setReadOnly("off")
		if err := <-done; err != nil || owner.Effects(t, "k") != 1 {
			t.Errorf("%v, %d effects; want a run", err, owner.Effects(t, "k"))
		}
	})
}

func TestDoWaitsForAServerInBounds(t *testing.T) {
	t.Parallel()
	open := func(t *testing.T, config *pgxstore.Config) (*bench.Bench, *outage) {
		t.Helper()
		o := &outage{}
		o.on.Store(true)
		return bench.Open(t, bench.PoolWith(t, o.through(pgtest.Config(t))), config, nil), o
	}
	t.Run("of ConnectTimeout", func(t *testing.T) {
		t.Parallel()
		b, o := open(t, &pgxstore.Config{ConnectTimeout: 100 * time.Millisecond})
		_, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), mustNotRun(t, "k"))
		wantUnavailable(t, err, bench.Params("k").Key)
		if !errors.Is(err, syscall.ECONNREFUSED) || o.dials.Load() < 2 {
			t.Errorf("%v after %d dials, want the cause after several", err, o.dials.Load())
		}
	})
	t.Run("of a negative ConnectTimeout", func(t *testing.T) {
		t.Parallel()
		b, o := open(t, &pgxstore.Config{ConnectTimeout: -1})
		_, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), mustNotRun(t, "k"))
		wantUnavailable(t, err, bench.Params("k").Key)
		if o.dials.Load() != 1 {
			t.Errorf("%d dials, want 1", o.dials.Load())
		}
	})
	t.Run("of the context", func(t *testing.T) {
		t.Parallel()
		b, o := open(t, &pgxstore.Config{ConnectTimeout: time.Hour})
		errMine := errors.New("mine")
		ctx, cancel := context.WithCancelCause(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := idempotency.Do(ctx, b.Client, bench.Params("k"), mustNotRun(t, "k"))
			done <- err
		}()
		bench.WaitFor(t, func() bool { return o.dials.Load() > 2 })
		cancel(errMine)
		err := <-done
		wantUnavailable(t, err, bench.Params("k").Key)
		if !errors.Is(err, errMine) {
			t.Errorf("%v does not say why the context ended", err)
		}
	})
}

// What another try would meet again is told at once.
func TestDoDoesNotWaitForWhatDoesNotHeal(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(config *pgxpool.Config)
		code   string
	}{
		"a wrong password": {func(config *pgxpool.Config) { config.ConnConfig.Password += "x" }, "28P01"},
		"a wrong password beside a server that is away": {func(config *pgxpool.Config) {
			config.ConnConfig.Password += "x"
			config.ConnConfig.Fallbacks = []*pgconn.FallbackConfig{{Host: config.ConnConfig.Host, Port: config.ConnConfig.Port}}
			config.ConnConfig.Host = "192.0.2.1"
			dial := config.ConnConfig.DialFunc
			config.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
				if strings.HasPrefix(address, "192.0.2.1:") {
					return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
				}
				return dial(ctx, network, address)
			}
		}, "28P01"},
		"a database that is not there": {func(config *pgxpool.Config) { config.ConnConfig.Database += "_x" }, "3D000"},
		"a setting that is not there":  {func(config *pgxpool.Config) { config.ConnConfig.RuntimeParams["samecommit"] = "x" }, "42704"},
		"an error of the pool's own": {func(config *pgxpool.Config) {
			config.BeforeConnect = func(context.Context, *pgx.ConnConfig) error { return errors.New("test") }
		}, ""},
		"a server that cannot prove who it is": {func(config *pgxpool.Config) {
			config.ConnConfig.TLSConfig = &tls.Config{ServerName: "localhost", MinVersion: tls.VersionTLS12}
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := &outage{}
			config := o.through(pgtest.Config(t))
			if config.ConnConfig.Password == "" {
				t.Fatal("the server asks for no password, which this test is about")
			}
			test.change(config)
			b := bench.Open(t, bench.PoolWith(t, config), &pgxstore.Config{ConnectTimeout: 2 * time.Second}, nil)
			_, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), mustNotRun(t, "k"))
			wantUnavailable(t, err, bench.Params("k").Key)
			if test.code != "" {
				bench.WantPgError(t, err, test.code, "")
			}
			if o.dials.Load() > 1 {
				t.Errorf("%d dials, want 1", o.dials.Load())
			}
		})
	}
	t.Run("a closed pool", func(t *testing.T) {
		t.Parallel()
		pool := bench.PoolWith(t, pgtest.Config(t))
		pool.Close()
		b := bench.Open(t, pool, &pgxstore.Config{ConnectTimeout: 2 * time.Second}, nil)
		_, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), mustNotRun(t, "k"))
		wantUnavailable(t, err, bench.Params("k").Key)
	})
	t.Run("a connection of the caller's that is closed", func(t *testing.T) {
		t.Parallel()
		conn, err := pgx.ConnectConfig(t.Context(), pgtest.Config(t).ConnConfig)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		client, err := idempotency.NewClient(bench.NewStore(t, conn, nil), nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = idempotency.Do(t.Context(), client, bench.Params("k"), mustNotRun(t, "k"))
		wantUnavailable(t, err, bench.Params("k").Key)
	})
}

// acquireCounter counts how often a connection is asked for.
type acquireCounter struct{ started atomic.Int32 }

func (c *acquireCounter) TraceAcquireStart(ctx context.Context, _ *pgxpool.Pool, _ pgxpool.TraceAcquireStartData) context.Context {
	c.started.Add(1)
	return ctx
}

func (*acquireCounter) TraceAcquireEnd(context.Context, *pgxpool.Pool, pgxpool.TraceAcquireEndData) {
}

func (*acquireCounter) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

func (*acquireCounter) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// A pool whose connections are all lent is no server that is away: the call waits
// for one as long as its context lets it.
func TestDoWithoutAFreeConnection(t *testing.T) {
	t.Parallel()
	config := pgtest.Config(t)
	config.MaxConns = 1
	acquires := &acquireCounter{}
	config.ConnConfig.Tracer = acquires
	b := bench.New(t, bench.PoolWith(t, config), &pgxstore.Config{ConnectTimeout: -1}, nil)
	held, err := b.Pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	before := acquires.started.Load()
	errMine := errors.New("mine")
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := idempotency.Do(ctx, b.Client, bench.Params("k"), mustNotRun(t, "k"))
		done <- err
	}()
	bench.WaitFor(t, func() bool { return acquires.started.Load() > before })
	cancel(errMine)
	err = <-done
	wantUnavailable(t, err, bench.Params("k").Key)
	if !errors.Is(err, errMine) || !errors.Is(err, context.Canceled) {
		t.Errorf("%v does not say why the context ended", err)
	}
	held.Release()
	wantRun(t, b, "k")
}

// Whatever the function returns is its own, also where it looks like the store's.
func TestFunctionsErrorIsNotUnavailable(t *testing.T) {
	t.Parallel()
	refused, err := pgx.ParseConfig("postgres://127.0.0.1:1/?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	refused.DialFunc = func(context.Context, string, string) (net.Conn, error) { return nil, syscall.ECONNREFUSED }
	_, connectErr := pgx.ConnectConfig(t.Context(), refused)
	b := bench.New(t, pgtest.DB(t), nil, nil)
	for i, want := range []error{
		&pgconn.PgError{Severity: "FATAL", Code: "57P01"}, &pgconn.PgError{Severity: "ERROR", Code: "08006"},
		&pgconn.PgError{Severity: "ERROR", Code: "53100"}, io.ErrUnexpectedEOF, connectErr,
	} {
		runs := 0
		_, err := idempotency.Do(t.Context(), b.Client, bench.Params(fmt.Sprint(i)), func(context.Context, pgx.Tx) (string, error) {
			runs++
			return "", want
		})
		if err != want || runs != 1 { //nolint:errorlint // as it is, not wrapped
			t.Errorf("%v after %d runs, want %v as it is after one", err, runs, want)
		}
	}
	_, err = idempotency.Do(t.Context(), b.Client, bench.Params("killed"), func(ctx context.Context, tx pgx.Tx) (string, error) {
		_, err := tx.Exec(ctx, `SELECT pg_terminate_backend(pg_backend_pid())`)
		return "", err
	})
	if errors.Is(err, idempotency.ErrUnavailable) {
		t.Errorf("%v is the function's error", err)
	}
	bench.WantPgError(t, err, "57P01", "")

	settings := bench.Open(t, b.Pool, &pgxstore.Config{ConnectTimeout: time.Hour, Settings: func(context.Context) (map[string]string, error) {
		return nil, io.ErrUnexpectedEOF
	}}, nil)
	_, doErr := idempotency.Do(t.Context(), settings.Client, bench.Params("settings"), mustNotRun(t, "settings"))
	_, getErr := settings.Client.Get(t.Context(), bench.Params("settings").Key)
	for _, err := range []error{doErr, getErr} {
		if !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, idempotency.ErrUnavailable) {
			t.Errorf("got %v, want the error of Settings", err)
		}
	}
}

// Where the store's own statement meets it, before COMMIT is sent, nothing is
// committed.
func TestLostConnectionIsUnavailable(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), &pgxstore.Config{ConnectTimeout: -1}, nil)
	kill := func(ctx context.Context, tx pgx.Tx) {
		_, _ = tx.Exec(ctx, `SELECT pg_terminate_backend(pg_backend_pid())`)
	}
	_, err := idempotency.Do(t.Context(), b.Client, bench.Params("Do"), func(ctx context.Context, tx pgx.Tx) (string, error) {
		if err := bench.Effect(ctx, tx, "Do"); err != nil {
			return "", err
		}
		kill(ctx, tx)
		return "", nil
	})
	wantUnavailable(t, err, bench.Params("Do").Key)
	bench.WantPgError(t, err, "57P01", "")
	wantNothing(t, b, "Do")

	err = pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) error {
		_, err := idempotency.DoTx(t.Context(), b.Client, tx, bench.Params("within"), func(ctx context.Context, tx pgx.Tx) (string, error) {
			kill(ctx, tx)
			return "", nil
		})
		return err
	})
	if !errors.Is(err, idempotency.ErrUnavailable) {
		t.Errorf("DoTx: %v, want ErrUnavailable", err)
	}

	for name, call := range map[string]func(tx pgx.Tx, claim *idempotency.Claim) error{
		"Begin": func(tx pgx.Tx, _ *idempotency.Claim) error {
			_, err := b.Client.WithTx(tx).Begin(t.Context(), bench.Params("Begin"))
			return err
		},
		"DoTx": func(tx pgx.Tx, _ *idempotency.Claim) error {
			_, err := idempotency.DoTx(t.Context(), b.Client, tx, bench.Params("DoTx"), mustNotRun(t, "DoTx"))
			return err
		},
		"Get": func(tx pgx.Tx, _ *idempotency.Claim) error {
			_, err := b.Client.WithTx(tx).Get(t.Context(), bench.Params("Get").Key)
			return err
		},
		"Complete": func(tx pgx.Tx, claim *idempotency.Claim) error {
			_, err := b.Client.WithTx(tx).Complete(t.Context(), claim, bytesResponse("x"))
			return err
		},
	} {
		tx, err := b.Pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		claim := begin(t, b, tx, name+" before")
		killElsewhere(t, b.Pool, tx.Conn().PgConn().PID())
		err = call(tx, claim)
		wantUnavailable(t, err, map[bool]idempotency.Key{true: claim.Key, false: bench.Params(name).Key}[name == "Complete"])
		_ = tx.Rollback(t.Context())
	}
	tx, err := b.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	killElsewhere(t, b.Pool, tx.Conn().PgConn().PID())
	if _, err := b.Client.WithTx(tx).BeginMany(t.Context(), []idempotency.Params{bench.Params("a"), bench.Params("b")}); !errors.Is(err, idempotency.ErrUnavailable) {
		t.Errorf("BeginMany: %v, want ErrUnavailable", err)
	}
	_ = tx.Rollback(t.Context())
}

// killElsewhere ends a connection behind its user's back.
func killElsewhere(t *testing.T, pool *pgxpool.Pool, pid uint32) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), `SELECT pg_terminate_backend($1)`, pid); err != nil {
		t.Fatal(err)
	}
	bench.WaitFor(t, func() bool {
		return bench.Count(t, pool, `SELECT count(*) FROM pg_stat_activity WHERE pid = $1`, pid) == 0
	})
}

// A statement that takes effect by itself is known to have had none only where it
// was not sent, or where the server has refused it.
func TestLeasedVerbsAreUnavailable(t *testing.T) {
	t.Parallel()
	o := &outage{}
	config := pgtest.Config(t)
	b := bench.New(t, bench.PoolWith(t, o.through(config)), nil, nil)
	ctx := t.Context()
	leased := func(name string) *idempotency.BeginParams {
		p := bench.Params(name)
		return &idempotency.BeginParams{Key: p.Key, Fingerprint: p.Fingerprint, TTL: time.Hour, Lease: time.Minute}
	}
	outcome, err := b.Store.Begin(ctx, leased("held"))
	if err != nil {
		t.Fatal(err)
	}
	claim := outcome.Claim
	calls := map[string]func() error{
		"Begin":    func() error { _, err := b.Store.Begin(ctx, leased("other")); return err },
		"Complete": func() error { _, err := b.Store.Complete(ctx, claim, bytesResponse("x")); return err },
		"Extend":   func() error { _, err := b.Store.Extend(ctx, claim, time.Minute); return err },
		"AddStep":  func() error { return b.Store.AddStep(ctx, claim, stepOf("charge")) },
		"Suspend":  func() error { return b.Store.Suspend(ctx, claim) },
		"Release":  func() error { return b.Store.Release(ctx, claim) },
	}
	o.on.Store(true)
	b.Pool.Reset()
	for name, call := range calls {
		key := claim.Key
		if name == "Begin" {
			key = bench.Params("other").Key
		}
		wantUnavailable(t, call(), key)
	}
	if _, err := b.Store.Get(ctx, claim.Key); !errors.Is(err, idempotency.ErrUnavailable) {
		t.Errorf("Get: %v, want ErrUnavailable", err)
	}
	if _, err := b.Store.DeleteExpired(ctx, 0); !errors.Is(err, idempotency.ErrUnavailable) {
		t.Errorf("DeleteExpired: %v, want ErrUnavailable", err)
	}
	o.on.Store(false)

	// The server ends the connection while it works: nobody knows.
	for _, sql := range []string{
		`CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(10); RETURN NEW; END'`,
		`CREATE TRIGGER die BEFORE INSERT OR UPDATE ON idempotency_keys FOR EACH ROW EXECUTE FUNCTION die()`,
	} {
		if _, err := b.Pool.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"Begin", "Complete", "Extend", "AddStep", "Suspend"} { //nolint:paralleltest // No subtests.
		if err := calls[name](); err == nil || errors.Is(err, idempotency.ErrUnavailable) {
			t.Errorf("%s: %v says that nothing was committed, which nobody knows", name, err)
		}
	}
}

// A function that ignores a failed statement, or leaves rows open, cannot commit.
func TestFunctionThatLeavesItsTransactionUnusable(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	for name, spoil := range map[string]func(ctx context.Context, tx pgx.Tx){
		"aborted": func(ctx context.Context, tx pgx.Tx) { _, _ = tx.Exec(ctx, `SELECT 1/0`) },
		"open rows": func(ctx context.Context, tx pgx.Tx) {
			_, _ = tx.Query(ctx, `SELECT generate_series(1, 100000)`) //nolint:rowserrcheck,sqlclosecheck // on purpose
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			runs := 0
			_, err := idempotency.Do(t.Context(), b.Client, bench.Params(name), func(ctx context.Context, tx pgx.Tx) (string, error) {
				runs++
				if err := bench.Effect(ctx, tx, name); err != nil {
					return "", err
				}
				spoil(ctx, tx)
				return "", nil
			})
			if !errors.Is(err, idempotency.ErrTxAborted) || runs != 1 {
				t.Errorf("%v after %d runs, want ErrTxAborted after one", err, runs)
			}
			wantNothing(t, b, name)
			wantRun(t, b, name)
		})
	}
}

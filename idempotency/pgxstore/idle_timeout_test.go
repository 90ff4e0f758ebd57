package pgxstore_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

// network can fall silent: whatever goes over the connections made until then
// is lost, without a word to either end. Later connections work.
type network struct {
	silences atomic.Int32
	mu       sync.Mutex
	conns    []*networkConn
}

// through returns config with the network in its connections.
func (n *network) through(config *pgxpool.Config) *pgxpool.Config {
	dial := config.ConnConfig.DialFunc
	config.ConnConfig.DialFunc = func(ctx context.Context, protocol, address string) (net.Conn, error) {
		conn, err := dial(ctx, protocol, address)
		if err != nil {
			return nil, err
		}
		nothing, farEnd := net.Pipe()
		made := &networkConn{Conn: conn, network: n, madeAt: n.silences.Load(), nothing: nothing, farEnd: farEnd}
		n.mu.Lock()
		defer n.mu.Unlock()
		n.conns = append(n.conns, made)
		return made, nil
	}
	return config
}

// end tells both ends at last. pgx listens to a closing connection for 15
// seconds.
func (n *network) end(t *testing.T) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, conn := range n.conns {
		if err := conn.farEnd.Close(); err != nil {
			t.Error(err)
		}
	}
}

type networkConn struct {
	net.Conn
	network *network
	madeAt  int32
	// nothing is read from in silence: a pipe into which nobody writes.
	nothing, farEnd net.Conn
}

func (c *networkConn) silent() bool { return c.network.silences.Load() > c.madeAt }

func (c *networkConn) Read(data []byte) (int, error) {
	if c.silent() {
		return c.nothing.Read(data)
	}
	return c.Conn.Read(data)
}

func (c *networkConn) Write(data []byte) (int, error) {
	if c.silent() {
		return len(data), nil
	}
	return c.Conn.Write(data)
}

func (c *networkConn) SetDeadline(at time.Time) error {
	return errors.Join(c.Conn.SetDeadline(at), c.nothing.SetDeadline(at))
}

func (c *networkConn) SetReadDeadline(at time.Time) error {
	return errors.Join(c.Conn.SetReadDeadline(at), c.nothing.SetReadDeadline(at))
}

func (c *networkConn) Close() error {
	return errors.Join(c.Conn.Close(), c.nothing.Close(), c.farEnd.Close())
}

func TestSilentNetworkFreesTheKey(t *testing.T) {
	t.Parallel()
	for name, idle := range map[string]int{"fresh connections": 0, "idle connections that are silent too": 2} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := pgtest.Config(t)
			rival := bench.New(t, bench.PoolWith(t, config.Copy()), nil, nil)
			// The lost connections keep their places for a while.
			config.MaxConns = 4
			lost := &network{}
			b := bench.Open(t, bench.PoolWith(t, lost.through(config)), &pgxstore.Config{
				// A quarter of ResolveTimeout must do for a new connection, on a busy machine too.
				IdleTimeout: 300 * time.Millisecond, CommitTimeout: 200 * time.Millisecond, ResolveTimeout: 12 * time.Second,
			}, nil)
			t.Cleanup(func() { lost.end(t) }) // before the pool is closed
			holdConnections(t, b.Pool, 1+idle)

			result, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), func(ctx context.Context, tx pgx.Tx) (string, error) {
				if err := bench.Effect(ctx, tx, "k"); err != nil {
					return "", err
				}
				lost.silences.Add(1)
				p := bench.Params("k")
				p.Wait = 30 * time.Second
				result, err := idempotency.Do(ctx, rival.Client, p, func(ctx context.Context, tx pgx.Tx) (string, error) {
					return "rival", bench.Effect(ctx, tx, "k")
				})
				if err != nil || result.Replayed {
					t.Errorf("rival: %+v, %v; want it to run", result, err)
				}
				return "first", nil
			})
			if err != nil || !result.Replayed || result.Value != "rival" {
				t.Errorf("%+v, %v; want a replay of the rival's answer", result, err)
			}
			if n := rival.Effects(t, "k"); n != 1 {
				t.Errorf("%d effects, want 1", n)
			}
		})
	}
}

// holdConnections makes the pool open that many connections and keep them.
func holdConnections(t *testing.T, pool *pgxpool.Pool, number int) {
	t.Helper()
	var held []*pgxpool.Conn
	for range number {
		conn, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, conn)
	}
	for _, conn := range held {
		conn.Release()
	}
}

func TestIdleTimeoutEndsWithTheTransaction(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		config time.Duration
		inside string
	}{
		"set":                      {42 * time.Second, "42s"},
		"rounded up":               {42*time.Second + time.Nanosecond, "42001ms"},
		"default":                  {0, "1min"},
		"left as the server's own": {-1, "17min"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := pgtest.Config(t)
			config.MaxConns = 1
			config.ConnConfig.RuntimeParams["idle_in_transaction_session_timeout"] = "17min"
			b := bench.New(t, bench.PoolWith(t, config), &pgxstore.Config{IdleTimeout: test.config}, nil)
			setting := func(ctx context.Context, row func(ctx context.Context, sql string, args ...any) pgx.Row, want string) {
				t.Helper()
				var got string
				if err := row(ctx, `SHOW idle_in_transaction_session_timeout`).Scan(&got); err != nil || got != want {
					t.Errorf("the setting is %q, %v; want %q", got, err, want)
				}
			}
			setting(t.Context(), b.Pool.QueryRow, "17min")
			errUndo := errors.New("undo")
			for _, want := range []error{errUndo, nil} {
				_, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), func(ctx context.Context, tx pgx.Tx) (string, error) {
					setting(ctx, tx.QueryRow, test.inside)
					return "", want
				})
				if !errors.Is(err, want) {
					t.Errorf("got %v, want %v", err, want)
				}
				setting(t.Context(), b.Pool.QueryRow, "17min")
			}
		})
	}
}

// The server was waiting for a command when it ended the transaction, so it has
// not read COMMIT: the function need not run again to find that out.
func TestQuietFunctionRunsOnce(t *testing.T) {
	t.Parallel()
	errMine := errors.New("mine")
	for name, test := range map[string]struct {
		then func(ctx context.Context, tx pgx.Tx) error
		want error
	}{
		"and returns": {then: func(context.Context, pgx.Tx) error { return nil }},
		"and runs a statement": {then: func(ctx context.Context, tx pgx.Tx) error {
			return errors.Join(errMine, bench.Effect(ctx, tx, "k"))
		}, want: errMine},
		"and ignores a statement's error": {then: func(ctx context.Context, tx pgx.Tx) error {
			_ = bench.Effect(ctx, tx, "k")
			return nil
		}},
	} {
		for _, mode := range bench.ExecModes {
			t.Run(name+" "+mode.String(), func(t *testing.T) {
				t.Parallel()
				config := pgtest.Config(t)
				rival := bench.New(t, bench.PoolWith(t, config.Copy()), nil, nil)
				config.ConnConfig.DefaultQueryExecMode = mode
				b := bench.Open(t, bench.PoolWith(t, config), nil, nil)
				runs := 0
				_, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), func(ctx context.Context, tx pgx.Tx) (string, error) {
					runs++
					if err := beQuiet(ctx, t, rival.Pool, tx); err != nil {
						return "", err
					}
					return "k", test.then(ctx, tx)
				})
				var keyErr *idempotency.KeyError
				if !errors.Is(err, pgxstore.ErrIdleTimeout) || !errors.As(err, &keyErr) || keyErr.Key != bench.Params("k").Key || runs != 1 {
					t.Errorf("%v after %d runs, want ErrIdleTimeout with the key after one", err, runs)
				}
				if test.want != nil && !errors.Is(err, test.want) {
					t.Errorf("%v, want it to be the function's own too", err)
				}
				bench.WantPgError(t, err, "25P03", "")
				if errors.Is(err, idempotency.ErrUnavailable) || errors.Is(err, idempotency.ErrSerializationFailure) || errors.Is(err, idempotency.ErrOutcomeUnknown) {
					t.Errorf("%v blames somebody else", err)
				}
				if n := rival.Effects(t, "k"); n != 0 {
					t.Errorf("%d effects, want none", n)
				}

				// Whoever has used the freed key has answered for it.
				result, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), func(ctx context.Context, tx pgx.Tx) (string, error) {
					if err := beQuiet(ctx, t, rival.Pool, tx); err != nil {
						return "", err
					}
					if _, err := idempotency.Do(ctx, rival.Client, bench.Params("k"), bench.Charge("k")); err != nil {
						return "", err
					}
					return "k", test.then(ctx, tx)
				})
				if err != nil || !result.Replayed || rival.Effects(t, "k") != 1 {
					t.Errorf("%+v, %v, %d effects; want a replay of the rival's", result, err, rival.Effects(t, "k"))
				}
			})
		}
	}
}

// beQuiet writes an effect and then waits until the server has ended the
// transaction, as the observer sees.
func beQuiet(ctx context.Context, t *testing.T, observer *pgxpool.Pool, tx pgx.Tx) error {
	t.Helper()
	pid := tx.Conn().PgConn().PID()
	if err := bench.Effect(ctx, tx, "k"); err != nil {
		return err
	}
	// As Config.IdleTimeout does, which would count from BEGIN on.
	if _, err := tx.Exec(ctx, `SET LOCAL idle_in_transaction_session_timeout = 1`); err != nil {
		return err
	}
	bench.WaitFor(t, func() bool {
		var connected bool
		err := observer.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)`, pid).Scan(&connected)
		return err == nil && !connected
	})
	return nil
}

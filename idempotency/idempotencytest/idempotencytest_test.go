package idempotencytest_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/idempotencytest"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

// handler is what a test of the kit makes of a pool.
type handler func(t *testing.T, pool *pgxpool.Pool) idempotencytest.Call

// operation counts the effects of the handler's calls by key.
func (h handler) operation(pool *pgxpool.Pool) idempotencytest.Operation {
	return idempotencytest.Operation{
		New: h,
		Effects: func(ctx context.Context, key string) (idempotencytest.Counts, error) {
			var count int
			err := pool.QueryRow(ctx, `SELECT count(*) FROM effects WHERE name = $1`, key).Scan(&count)
			return idempotencytest.Counts{"": count}, err
		},
	}
}

// prepareForKit makes the tables that the handlers below use.
func prepareForKit(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	bench.New(t, pool, nil, nil)
	if _, err := pool.Exec(t.Context(), `CREATE TABLE seen (key text PRIMARY KEY)`); err != nil {
		t.Fatal(err)
	}
}

func correctHandlers() map[string]handler {
	var cached sync.Once
	var ordered atomic.Int32
	return map[string]handler{
		"Do": func(t *testing.T, pool *pgxpool.Pool) idempotencytest.Call {
			t.Helper()
			b := bench.Open(t, pool, nil, nil)
			return func(ctx context.Context, key string) error {
				_, err := idempotency.Do(ctx, b.Client, bench.Params(key), bench.Charge(key))
				return err
			}
		},
		"DoTx": func(t *testing.T, pool *pgxpool.Pool) idempotencytest.Call {
			t.Helper()
			b := bench.Open(t, pool, nil, nil)
			return func(ctx context.Context, key string) error {
				return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
					_, err := idempotency.DoTx(ctx, b.Client, tx, bench.Params(key), bench.Charge(key))
					return err
				})
			}
		},
		"Begin and Complete": func(t *testing.T, pool *pgxpool.Pool) idempotencytest.Call {
			t.Helper()
			b := bench.Open(t, pool, nil, nil)
			return func(ctx context.Context, key string) error {
				return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
					verbs := b.Client.WithTx(tx)
					outcome, err := verbs.Begin(ctx, bench.Params(key))
					switch {
					case err != nil:
						return err
					case outcome.State == idempotency.Completed:
						return nil
					case outcome.State == idempotency.InProgress:
						return idempotency.ErrInProgress
					}
					if err := bench.Effect(ctx, tx, key); err != nil {
						return err
					}
					_, err = verbs.Complete(ctx, outcome.Claim, &idempotency.Response{Type: idempotency.TypeNone})
					return err
				})
			}
		},
		"HTTP": func(t *testing.T, pool *pgxpool.Pool) idempotencytest.Call {
			t.Helper()
			b := bench.Open(t, pool, nil, nil)
			handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				key := r.Header.Get("Idempotency-Key")
				if _, err := idempotency.Do(r.Context(), b.Client, bench.Params(key), bench.Charge(key)); err != nil {
					http.Error(w, "try again", http.StatusServiceUnavailable)
					return
				}
				w.WriteHeader(http.StatusCreated)
			})
			return func(ctx context.Context, key string) error {
				request := httptest.NewRequestWithContext(ctx, http.MethodPost, "/charges", nil)
				request.Header.Set("Idempotency-Key", key)
				response := httptest.NewRecorder()
				handler.ServeHTTP(response, request)
				if response.Code/100 != 2 {
					return fmt.Errorf("status %d", response.Code)
				}
				return nil
			}
		},
		// Without a client of ours, and without a COMMIT.
		"one statement": func(_ *testing.T, pool *pgxpool.Pool) idempotencytest.Call {
			return func(ctx context.Context, key string) error {
				_, err := pool.Exec(ctx, `WITH first AS (INSERT INTO seen (key) VALUES ($1) ON CONFLICT DO NOTHING RETURNING key)
					INSERT INTO effects (name) SELECT key FROM first`, key)
				return err
			}
		},
		// A client calls again until it is answered.
		"busy after a failure": func(t *testing.T, pool *pgxpool.Pool) idempotencytest.Call {
			t.Helper()
			b := bench.Open(t, pool, nil, nil)
			var failed sync.Map
			return func(ctx context.Context, key string) error {
				if _, ok := failed.LoadAndDelete(key); ok {
					return errors.New("busy")
				}
				err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
					_, err := idempotency.DoTx(ctx, b.Client, tx, bench.Params(key), bench.Charge(key))
					return err
				})
				if err != nil {
					failed.Store(key, true)
				}
				return err
			}
		},
		// Goroutines may do that to those before the transaction.
		"another order": func(t *testing.T, pool *pgxpool.Pool) idempotencytest.Call {
			t.Helper()
			b := bench.Open(t, pool, nil, nil)
			reads := []func(ctx context.Context, key string) error{
				func(ctx context.Context, key string) error {
					_, err := pool.Exec(ctx, `SELECT FROM seen WHERE key = $1`, key)
					return err
				},
				func(ctx context.Context, key string) error {
					_, err := pool.Exec(ctx, `SELECT FROM effects WHERE name = $1`, pgx.QueryExecModeSimpleProtocol, key)
					return err
				},
			}
			return func(ctx context.Context, key string) error {
				reads := reads
				if ordered.Add(1) > 6 { // 6 calls are made before anything is cut
					reads = []func(context.Context, string) error{reads[1], reads[0]}
				}
				for _, read := range reads {
					if err := read(ctx, key); err != nil {
						return err
					}
				}
				_, err := idempotency.Do(ctx, b.Client, bench.Params(key), bench.Charge(key))
				return err
			}
		},
		"reads at once": func(t *testing.T, pool *pgxpool.Pool) idempotencytest.Call {
			t.Helper()
			b := bench.Open(t, pool, nil, nil)
			return func(ctx context.Context, key string) error {
				if err := readAtOnce(ctx, pool); err != nil {
					return err
				}
				_, err := idempotency.Do(ctx, b.Client, bench.Params(key), bench.Charge(key))
				return err
			}
		},
		// What is sent once in a process is not counted.
		"cached": func(t *testing.T, pool *pgxpool.Pool) idempotencytest.Call {
			t.Helper()
			b := bench.Open(t, pool, nil, nil)
			return func(ctx context.Context, key string) error {
				var err error
				cached.Do(func() { _, err = pool.Exec(ctx, `SELECT 1`) })
				if err != nil {
					return err
				}
				_, err = idempotency.Do(ctx, b.Client, bench.Params(key), bench.Charge(key))
				return err
			}
		},
	}
}

// readAtOnce reads on three connections. Which of them is fastest is chance.
func readAtOnce(ctx context.Context, pool *pgxpool.Pool) error {
	var running sync.WaitGroup
	var acquired sync.WaitGroup
	acquired.Add(3)
	errs := make([]error, 3)
	for i, query := range []string{`SELECT count(*) FROM seen`, `SELECT count(*) FROM effects`, `SELECT count(*) FROM effects WHERE name = 'x'`} {
		running.Go(func() {
			conn, err := pool.Acquire(ctx)
			acquired.Done()
			if errs[i] = err; err != nil {
				return
			}
			defer conn.Release()
			acquired.Wait()
			_, errs[i] = conn.Exec(ctx, query)
		})
	}
	running.Wait()
	return errors.Join(errs...)
}

func TestKitPassesCorrectHandlers(t *testing.T) {
	t.Parallel()
	for name, correct := range correctHandlers() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.DB(t)
			prepareForKit(t, pool)
			idempotencytest.Run(t, pool, correct.operation(pool))
		})
	}
}

var errRefused = errors.New("refused")

// refusing is a handler that takes errRefused for an answer.
func refusing(charge func(ctx context.Context, tx pgx.Tx, key string) (string, error)) handler {
	return func(t *testing.T, pool *pgxpool.Pool) idempotencytest.Call {
		t.Helper()
		b := bench.Open(t, pool, nil, &idempotency.Config{FinalErrors: []idempotency.FinalKind{idempotency.FinalValue("refused", errRefused)}})
		return func(ctx context.Context, key string) error {
			_, err := idempotency.Do(ctx, b.Client, bench.Params(key), func(ctx context.Context, tx pgx.Tx) (string, error) {
				return charge(ctx, tx, key)
			})
			if errors.Is(err, errRefused) {
				return nil
			}
			return err
		}
	}
}

func TestKitPassesARefusal(t *testing.T) {
	t.Parallel()
	pool := pgtest.DB(t)
	prepareForKit(t, pool)
	operation := refusing(func(ctx context.Context, tx pgx.Tx, key string) (string, error) {
		return "", errors.Join(bench.Effect(ctx, tx, key), idempotency.Final(errRefused))
	}).operation(pool)
	operation.Refused = true
	idempotencytest.Run(t, pool, operation)
}

// mistake is a handler that the kit must find out.
type mistake struct {
	handler handler
	// effects counts, in place of one kind of effect by key.
	effects func(ctx context.Context, key string) (idempotencytest.Counts, error)
	// refused is Operation.Refused.
	refused bool
	// sslmode is the pool's, "" for that of pgtest.
	sslmode string
	// point is the subtest that fails, "" for the test itself.
	point string
	// says is a part of what it says.
	says string
	// passes is a subtest that passes, "" for none.
	passes string
}

func mistakes(captured *pgxpool.Pool) map[string]mistake {
	insert := func(ctx context.Context, tx pgx.Tx, key string) (fresh bool, err error) {
		tag, err := tx.Exec(ctx, `INSERT INTO seen (key) VALUES ($1) ON CONFLICT DO NOTHING`, key)
		return tag.RowsAffected() == 1, err
	}
	isSeen := func(ctx context.Context, pool *pgxpool.Pool, key string) (seen bool, err error) {
		err = pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM seen WHERE key = $1)`, key).Scan(&seen)
		return seen, err
	}
	write := func(ctx context.Context, pool *pgxpool.Pool, key string) error {
		_, err := pool.Exec(ctx, `INSERT INTO effects (name) VALUES ($1)`, key)
		return err
	}
	var calls, moves, repeats atomic.Int32 // 6 calls are made before anything is cut
	var forgotten atomic.Pointer[string]
	return map[string]mistake{
		"the pool inside the function": {
			handler: func(t *testing.T, pool *pgxpool.Pool) idempotencytest.Call {
				t.Helper()
				b := bench.Open(t, pool, nil, nil)
				return func(ctx context.Context, key string) error {
					_, err := idempotency.Do(ctx, b.Client, bench.Params(key), idempotency.NoResult(func(ctx context.Context, _ pgx.Tx) error {
						return write(ctx, pool, key)
					}))
					return err
				}
			},
			point: "COMMIT,_not_sent", says: "2 effects of a single call, want 1: the connection was reset before the server got statement",
			passes: "COMMIT,_reply_lost",
		},
		"the *sql.DB inside the function": {
			handler: func(t *testing.T, pool *pgxpool.Pool) idempotencytest.Call {
				t.Helper()
				db := stdlib.OpenDBFromPool(pool)
				t.Cleanup(func() { _ = db.Close() })
				service, err := newCharges(db)
				if err != nil {
					t.Fatal(err)
				}
				return func(ctx context.Context, key string) error {
					_, err := idempotency.Do(ctx, service.client, bench.Params(key), idempotency.NoResult(func(ctx context.Context, _ *sql.Tx) error {
						_, err := db.ExecContext(ctx, `INSERT INTO effects (name) VALUES ($1)`, key)
						return err
					}))
					return err
				}
			},
			point: "COMMIT,_not_sent", says: "2 effects of a single call, want 1: the connection was reset before the server got statement",
			passes: "COMMIT,_reply_lost",
		},
		"the key first": {
			handler: func(_ *testing.T, pool *pgxpool.Pool) idempotencytest.Call {
				return func(ctx context.Context, key string) error {
					fresh := false
					if err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) (err error) {
						fresh, err = insert(ctx, tx, key)
						return err
					}); err != nil || !fresh {
						return err
					}
					return write(ctx, pool, key)
				}
			},
			point: "INSERT_INTO_effects_name_VALUES,_not_sent", says: "0 effects after the call was made again and acknowledged, want 1",
			passes: "COMMIT,_not_sent",
		},
		"the key first, and in progress for ever": {
			handler: func(_ *testing.T, pool *pgxpool.Pool) idempotencytest.Call {
				return func(ctx context.Context, key string) error {
					seen, err := isSeen(ctx, pool, key+" done")
					if err != nil || seen {
						return err
					}
					if _, err := pool.Exec(ctx, `INSERT INTO seen (key) VALUES ($1)`, key); err != nil {
						return err
					}
					return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
						if err := bench.Effect(ctx, tx, key); err != nil {
							return err
						}
						_, err := insert(ctx, tx, key+" done")
						return err
					})
				}
			},
			point: "INSERT_INTO_seen_key_VALUES,_reply_lost", says: "the same call again was not acknowledged for 5s",
			passes: "INSERT_INTO_seen_key_VALUES,_not_sent",
		},
		"the effect first": {
			handler: func(_ *testing.T, pool *pgxpool.Pool) idempotencytest.Call {
				return func(ctx context.Context, key string) error {
					seen, err := isSeen(ctx, pool, key)
					if err != nil || seen {
						return err
					}
					if err := write(ctx, pool, key); err != nil {
						return err
					}
					_, err = pool.Exec(ctx, `INSERT INTO seen (key) VALUES ($1)`, key)
					return err
				}
			},
			point: "INSERT_INTO_seen_key_VALUES,_not_sent", says: "2 effects after the call was made again, want 1: the connection was reset before the server got statement 3 of 3 (INSERT INTO seen key VALUES)",
			passes: "INSERT_INTO_seen_key_VALUES,_reply_lost",
		},
		"SafeToRetry": {
			handler: func(_ *testing.T, pool *pgxpool.Pool) idempotencytest.Call {
				return func(ctx context.Context, key string) error {
					seen, err := isSeen(ctx, pool, key)
					if err != nil || seen {
						return err
					}
					for {
						err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
							if err := bench.Effect(ctx, tx, key); err != nil {
								return err
							}
							_, err := insert(ctx, tx, key)
							return err
						})
						if err == nil || !pgconn.SafeToRetry(err) {
							return err
						}
					}
				}
			},
			point: "COMMIT,_reply_lost", says: "2 effects of a single call, want 1: the server had done statement 5 of 5 (COMMIT)",
			passes: "COMMIT,_not_sent",
		},
		"no key": {
			handler: func(_ *testing.T, pool *pgxpool.Pool) idempotencytest.Call {
				return func(ctx context.Context, key string) error { return write(ctx, pool, key) }
			},
			says: "Effects counts 2 effects after the same call twice, want 1",
		},
		"a swallowed error": {
			handler: func(_ *testing.T, pool *pgxpool.Pool) idempotencytest.Call {
				return func(ctx context.Context, key string) error {
					tx, err := pool.Begin(ctx)
					if err != nil {
						return err
					}
					defer func() { _ = tx.Commit(ctx) }()
					if fresh, err := insert(ctx, tx, key); err != nil || !fresh {
						return err
					}
					return bench.Effect(ctx, tx, key)
				}
			},
			point: "COMMIT,_not_sent", says: "the call was acknowledged with 0 effects, want 1",
			passes: "COMMIT,_reply_lost",
		},
		"a key in memory": {
			handler: func(_ *testing.T, pool *pgxpool.Pool) idempotencytest.Call {
				var done sync.Map
				return func(ctx context.Context, key string) error {
					if _, ok := done.Load(key); ok {
						return nil
					}
					err := write(ctx, pool, key)
					if err == nil {
						done.Store(key, true)
					}
					return err
				}
			},
			says: "2 effects after another instance was called, want 1",
		},
		"a duplicate is an error": {
			handler: func(_ *testing.T, pool *pgxpool.Pool) idempotencytest.Call {
				return func(ctx context.Context, key string) error {
					return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
						if _, err := tx.Exec(ctx, `INSERT INTO seen (key) VALUES ($1)`, key); err != nil {
							return err
						}
						return bench.Effect(ctx, tx, key)
					})
				}
			},
			says: "the same call again failed: ERROR: duplicate key value",
		},
		"a key that is forgotten": {
			handler: func(t *testing.T, pool *pgxpool.Pool) idempotencytest.Call {
				t.Helper()
				call := correctHandlers()["one statement"](t, pool)
				return func(ctx context.Context, key string) error {
					if forgotten.CompareAndSwap(nil, &key); *forgotten.Load() == key && repeats.Add(1) > 3 {
						if _, err := captured.Exec(ctx, `DELETE FROM seen WHERE key = $1`, key); err != nil {
							return err
						}
					}
					return call(ctx, key)
				}
			},
			says: "2 effects after a call was made again that was done",
		},
		"a connection that is kept": {
			handler: func(t *testing.T, pool *pgxpool.Pool) idempotencytest.Call {
				t.Helper()
				b := bench.Open(t, pool, nil, nil)
				return func(ctx context.Context, key string) error {
					conn, err := pool.Acquire(ctx)
					if err != nil {
						return err
					}
					if err := conn.Conn().Ping(ctx); err != nil {
						return err // and not Release
					}
					conn.Release()
					_, err = idempotency.Do(ctx, b.Client, bench.Params(key), bench.Charge(key))
					return err
				}
			},
			point: "ping,_not_sent", says: "1 connection(s) were not given back",
			passes: "begin,_not_sent",
		},
		"another pool": {
			handler: func(t *testing.T, _ *pgxpool.Pool) idempotencytest.Call {
				t.Helper()
				return correctHandlers()["Do"](t, captured)
			},
			says: "the call has sent nothing through the pool that New was given",
		},
		"one of two effects beside the transaction": {
			handler: func(t *testing.T, pool *pgxpool.Pool) idempotencytest.Call {
				t.Helper()
				b := bench.Open(t, pool, nil, nil)
				return func(ctx context.Context, key string) error {
					result, err := idempotency.Do(ctx, b.Client, bench.Params(key), bench.Charge(key))
					if err != nil || result.Replayed {
						return err
					}
					_, err = pool.Exec(ctx, `INSERT INTO seen (key) VALUES ($1)`, key)
					return err
				}
			},
			effects: func(ctx context.Context, key string) (idempotencytest.Counts, error) {
				var charges, events int
				err := captured.QueryRow(ctx, `SELECT (SELECT count(*) FROM effects WHERE name = $1), (SELECT count(*) FROM seen WHERE key = $1)`, key).Scan(&charges, &events)
				return idempotencytest.Counts{"charges": charges, "events": events}, err
			},
			point: "INSERT_INTO_seen_key_VALUES,_not_sent", says: "1 charges and 0 events after the call was made again and acknowledged, want 1",
		},
		"a refusal that is not recorded": {
			handler: refusing(func(ctx context.Context, tx pgx.Tx, key string) (string, error) {
				return "", errors.Join(bench.Effect(ctx, tx, key), errRefused)
			}),
			refused: true,
			says:    "was seen to commit its effect",
		},
		"a refusal whose effect stays": {
			handler: refusing(func(ctx context.Context, tx pgx.Tx, key string) (string, error) {
				return "refused", bench.Effect(ctx, tx, key)
			}),
			refused: true,
			says:    "Effects counts 1 effect, want 0",
		},
		"effects of no kind": {
			handler: correctHandlers()["Do"],
			effects: func(context.Context, string) (idempotencytest.Counts, error) { return nil, nil },
			says:    "Effects returned no count",
		},
		"another pool for the writes": {
			handler: func(t *testing.T, pool *pgxpool.Pool) idempotencytest.Call {
				t.Helper()
				call := correctHandlers()["Do"](t, captured)
				return func(ctx context.Context, key string) error {
					if seen, err := isSeen(ctx, pool, key); err != nil || seen {
						return err
					}
					return call(ctx, key)
				}
			},
			says:   "none of the 1 statements of a call was seen to commit its effect",
			passes: "SELECT_EXISTS_SELECT_FROM_seen_WHERE_key,_reply_lost",
		},
		"statements that differ": {
			handler: func(t *testing.T, pool *pgxpool.Pool) idempotencytest.Call {
				t.Helper()
				b := bench.Open(t, pool, nil, nil)
				return func(ctx context.Context, key string) error {
					if _, err := idempotency.Do(ctx, b.Client, bench.Params(key), bench.Charge(key)); err != nil || calls.Add(1) > 6 {
						return err
					}
					_, err := pool.Exec(ctx, `SELECT 1`)
					return err
				}
			},
			point: "SELECT,_not_sent", says: "in 3 runs the point \"SELECT, not sent\" was not met",
			passes: "COMMIT,_reply_lost",
		},
		"statements that move": {
			handler: func(t *testing.T, pool *pgxpool.Pool) idempotencytest.Call {
				t.Helper()
				call := correctHandlers()["DoTx"](t, pool)
				return func(ctx context.Context, key string) error {
					if moves.Add(1) <= 6 {
						if _, err := pool.Exec(ctx, `SELECT 1`, pgx.QueryExecModeSimpleProtocol); err != nil {
							return err
						}
					}
					return call(ctx, key)
				}
			},
			point: "SELECT,_not_sent", says: "in 3 runs the point \"SELECT, not sent\" was not met",
			passes: "begin,_not_sent",
		},
		"an encrypted connection": {
			handler: correctHandlers()["Do"], sslmode: "require",
			says: "cannot read the messages of an encrypted connection: set sslmode=disable",
		},
		"a call that fails": {
			handler: func(_ *testing.T, _ *pgxpool.Pool) idempotencytest.Call {
				return func(context.Context, string) error { return errors.New("no such route") }
			},
			says: "nothing was cut, and the call failed: no such route",
		},
	}
}

// kitVariable makes TestKitFindsMistakes run the kit on the mistakes, in the
// database of this URL, and fail.
const kitVariable = "SAMECOMMIT_TESTS_MISTAKES"

// The kit fails a *testing.T, so the mistakes are tested in a process of their
// own, and its output tells which subtests failed and why.
func TestKitFindsMistakes(t *testing.T) {
	t.Parallel()
	if address := os.Getenv(kitVariable); address != "" {
		pool, err := pgxpool.New(t.Context(), address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		for name, m := range mistakes(pool) {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				given := pool
				if m.sslmode != "" {
					given = withSSLMode(t, pool, m.sslmode)
				}
				operation := m.handler.operation(pool)
				operation.Refused = m.refused
				if m.effects != nil {
					operation.Effects = m.effects
				}
				idempotencytest.Run(t, given, operation)
			})
		}
		return
	}

	pool := pgtest.DB(t)
	prepareForKit(t, pool)
	output := runMistakes(t, pool, "")
	results := readResults(output)
	if after, ok := results["TestKitFindsMistakes/the_key_first,_and_in_progress_for_ever/begin,_not_sent"]; ok {
		t.Errorf("after a point at which the call is stuck another one ran: %+v", after)
	}
	for name, m := range mistakes(pool) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			parent := "TestKitFindsMistakes/" + strings.ReplaceAll(name, " ", "_")
			failing := parent
			if m.point != "" {
				failing += "/" + m.point
			}
			if got := results[failing]; got.verdict != "FAIL" || !strings.Contains(got.output, m.says) {
				t.Errorf("%s: %s %q, want a failure with %q\n%s", failing, got.verdict, got.output, m.says, output)
			}
			if got := results[parent+"/"+m.passes]; m.passes != "" && got.verdict != "PASS" {
				t.Errorf("%s: %s %q, want a pass", m.passes, got.verdict, got.output)
			}
		})
	}
}

// A point can be run again alone, by the name that go test prints.
func TestKitRunsOnePointAlone(t *testing.T) {
	t.Parallel()
	pool := pgtest.DB(t)
	prepareForKit(t, pool)
	output := runMistakes(t, pool, "/^SafeToRetry$/COMMIT,_reply_lost"+
		"|^TestKitFindsMistakes$/^another_pool_for_the_writes$/SELECT_EXISTS_SELECT_FROM_seen_WHERE_key,_not_sent")
	var got []string
	for name, result := range readResults(output) {
		if name != "" {
			got = append(got, result.verdict+" "+strings.TrimPrefix(name, "TestKitFindsMistakes/"))
		}
	}
	slices.Sort(got)
	want := []string{
		"FAIL SafeToRetry",
		"FAIL SafeToRetry/COMMIT,_reply_lost",
		"FAIL TestKitFindsMistakes",
		// That no commit was seen is for a run of all points to say.
		"PASS another_pool_for_the_writes",
		"PASS another_pool_for_the_writes/SELECT_EXISTS_SELECT_FROM_seen_WHERE_key,_not_sent",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q\n%s", got, want, output)
	}
}

// Settings and hooks are the pool's. What the hooks send, and connections that
// the pool makes by itself, are not the call's.
func TestKitKeepsThePoolsSettings(t *testing.T) {
	t.Parallel()
	pool := pgtest.DB(t)
	prepareForKit(t, pool)
	config := withSSLMode(t, pool, "prefer").Config() // pgx's default: not encrypted, where it may be
	config.MinConns, config.MaxConns = 2, 3
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `SET app.name = 'ours'`)
		return err
	}
	given := bench.PoolWith(t, config)
	var points []string
	h := handler(func(t *testing.T, pool *pgxpool.Pool) idempotencytest.Call {
		t.Helper()
		// The call to another instance is on the pool itself.
		if config := pool.Config(); config.MaxConns != 3 || config.MinConns != 0 && pool != given {
			t.Errorf("the pool has %d to %d connections, want 0 to 3", config.MinConns, config.MaxConns)
		}
		if !slices.Contains(points, t.Name()) {
			points = append(points, t.Name())
		}
		return func(ctx context.Context, key string) error {
			// On a second connection, which has to be made.
			err := pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
				for _, query := range []string{"SELECT FROM seen", "-- name: KeyOfACall :one\nSELECT"} {
					if _, err := pool.Exec(ctx, query); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
			_, err = pool.Exec(ctx, `WITH first AS (INSERT INTO seen (key) SELECT $1 WHERE current_setting('app.name') = 'ours'
				ON CONFLICT DO NOTHING RETURNING key) INSERT INTO effects (name) SELECT key FROM first`, key)
			return err
		}
	})
	idempotencytest.Run(t, given, h.operation(pool))
	want := []string{t.Name()}
	for _, statement := range []string{"SELECT_FROM_seen", "KeyOfACall", "WITH_first_AS_INSERT_INTO_seen_key_SELECT_WHERE"} {
		want = append(want, t.Name()+"/"+statement+",_not_sent", t.Name()+"/"+statement+",_reply_lost")
	}
	if !slices.Equal(points, want) {
		t.Errorf("ran %q, want %q", points, want)
	}
}

func withSSLMode(t *testing.T, pool *pgxpool.Pool, mode string) *pgxpool.Pool {
	t.Helper()
	address, err := url.Parse(pool.Config().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	query := address.Query()
	query.Set("sslmode", mode)
	address.RawQuery = query.Encode()
	other, err := pgxpool.New(t.Context(), address.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(other.Close)
	return other
}

// runMistakes runs subtests of TestKitFindsMistakes in another process.
func runMistakes(t *testing.T, pool *pgxpool.Pool, subtests string) string {
	t.Helper()
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKitFindsMistakes$"+subtests, "-test.v")
	child.Env = append(os.Environ(), kitVariable+"="+pool.Config().ConnString())
	output, err := child.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("the tests of the mistakes ended with %v, want failures\n%s", err, output)
	}
	return string(output)
}

// testResult is what go test -v says of a test.
type testResult struct{ verdict, output string }

var (
	verdictLine = regexp.MustCompile(`^ *--- (PASS|FAIL|SKIP): (\S+) \(`)
	stateLine   = regexp.MustCompile(`^=== [A-Z]+ +(\S+)`)
)

func readResults(output string) map[string]testResult {
	results := make(map[string]testResult)
	current := ""
	for line := range strings.Lines(output) {
		if found := stateLine.FindStringSubmatch(line); found != nil {
			current = found[1]
		} else if found := verdictLine.FindStringSubmatch(line); found != nil {
			result := results[found[2]]
			result.verdict = found[1]
			results[found[2]] = result
		} else {
			result := results[current]
			result.output += line
			results[current] = result
		}
	}
	return results
}

package tests_test

import (
	"context"
	"errors"
	"fmt"
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
)

// bench is one test's database, with a table for effects and a client.
type bench struct {
	pool   *pgxpool.Pool
	store  *pgxstore.Store
	client *idempotency.Client[pgx.Tx]
}

func newBench(t testing.TB, pool *pgxpool.Pool, storeConfig *pgxstore.Config, config *idempotency.Config) *bench {
	t.Helper()
	if _, err := pool.Exec(t.Context(), `CREATE TABLE IF NOT EXISTS effects (name text NOT NULL)`); err != nil {
		t.Fatal(err)
	}
	return openBench(t, pool, storeConfig, config)
}

// openBench is newBench on a database that has the table for effects.
func openBench(t testing.TB, pool *pgxpool.Pool, storeConfig *pgxstore.Config, config *idempotency.Config) *bench {
	t.Helper()
	store := newStore(t, pool, storeConfig)
	client, err := idempotency.NewClient(store, config)
	if err != nil {
		t.Fatal(err)
	}
	return &bench{pool: pool, store: store, client: client}
}

func newStore(t testing.TB, database pgxstore.DB, config *pgxstore.Config) *pgxstore.Store {
	t.Helper()
	store, err := pgxstore.New(database, config)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// unusedPool is a pool that could not connect, for what must not get so far.
func unusedPool(t testing.TB) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), "postgres://127.0.0.1:1/unused")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func effect(ctx context.Context, tx pgx.Tx, name string) error {
	_, err := tx.Exec(ctx, `INSERT INTO effects (name) VALUES ($1)`, name)
	return err
}

func (b *bench) effects(t *testing.T, name string) int {
	t.Helper()
	var count int
	if err := b.pool.QueryRow(t.Context(), `SELECT count(*) FROM effects WHERE name = $1`, name).Scan(&count); err != nil {
		t.Fatal(err)
	}
	return count
}

func params(id string) idempotency.Params {
	return idempotency.Params{
		Key:         idempotency.Key{Scope: "test", ID: id},
		Fingerprint: idempotency.FingerprintOf("request", id),
	}
}

// charge writes one effect and returns its name.
func charge(name string) func(context.Context, pgx.Tx) (string, error) {
	return func(ctx context.Context, tx pgx.Tx) (string, error) {
		return name, effect(ctx, tx, name)
	}
}

func TestDoRunsOnceInEveryExecMode(t *testing.T) {
	t.Parallel()
	modes := []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement,
		pgx.QueryExecModeCacheDescribe,
		pgx.QueryExecModeDescribeExec,
		pgx.QueryExecModeExec,
		pgx.QueryExecModeSimpleProtocol,
	}
	levels := []pgx.TxIsoLevel{"", pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable}
	for _, mode := range modes {
		for _, level := range levels {
			t.Run(fmt.Sprintf("%s %s", mode, level), func(t *testing.T) {
				t.Parallel()
				config := pgtest.Config(t)
				config.ConnConfig.DefaultQueryExecMode = mode
				pool, err := pgxpool.NewWithConfig(t.Context(), config)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(pool.Close)
				b := newBench(t, pool, &pgxstore.Config{TxOptions: pgx.TxOptions{IsoLevel: level}}, nil)

				first, err := idempotency.Do(t.Context(), b.client, params("k"), charge("k"))
				if err != nil {
					t.Fatal(err)
				}
				second, err := idempotency.Do(t.Context(), b.client, params("k"), charge("k"))
				if err != nil {
					t.Fatal(err)
				}
				if first.Replayed || !second.Replayed || first.Value != "k" || second.Value != "k" {
					t.Errorf("first %+v, second %+v; want one run and one replay of \"k\"", first, second)
				}
				if !first.Record.CreatedAt.Equal(second.Record.CreatedAt) || !first.Record.ExpiresAt.Equal(second.Record.ExpiresAt) {
					t.Errorf("records differ: %+v, %+v", first.Record, second.Record)
				}
				if n := b.effects(t, "k"); n != 1 {
					t.Errorf("%d effects, want 1", n)
				}

				// An expired answer is replaced by a new one.
				expiring := params("expiring")
				expiring.TTL = time.Microsecond
				for range 2 {
					again, err := idempotency.Do(t.Context(), b.client, expiring, charge("expiring"))
					if err != nil || again.Replayed {
						t.Fatalf("%+v, %v; want a run, the answer has expired", again, err)
					}
				}

				// The verbs and the lease.
				if err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
					verbs := b.client.WithTx(tx)
					outcome, err := verbs.Begin(t.Context(), params("verbs"))
					if err != nil {
						return err
					}
					_, err = verbs.Complete(t.Context(), outcome.Claim, &idempotency.Response{Type: idempotency.TypeBytes, Body: []byte{0, 1, 0xff}})
					return err
				}); err != nil {
					t.Fatal(err)
				}
				record, err := b.client.Get(t.Context(), params("verbs").Key)
				if err != nil || string(record.Response.Body) != "\x00\x01\xff" {
					t.Errorf("%+v, %v; want the bytes that were recorded", record, err)
				}
				outcome, err := b.store.Begin(t.Context(), &idempotency.BeginParams{
					Key: params("lease").Key, Fingerprint: idempotency.NoFingerprint, TTL: time.Hour, Lease: time.Minute,
				})
				if err != nil {
					t.Fatal(err)
				}
				extended, err := b.store.Extend(t.Context(), outcome.Claim, time.Hour)
				if err != nil {
					t.Fatal(err)
				}
				if err := b.store.Release(t.Context(), extended); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func TestRacingDoRunsOnce(t *testing.T) {
	t.Parallel()
	for _, level := range []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable} {
		t.Run(string(level), func(t *testing.T) {
			t.Parallel()
			b := newBench(t, pgtest.DB(t), &pgxstore.Config{TxOptions: pgx.TxOptions{IsoLevel: level}}, nil)
			const callers, keys = 8, 20
			for k := range keys {
				name := fmt.Sprintf("key-%d", k)
				var group sync.WaitGroup
				replayed := make([]bool, callers)
				for i := range callers {
					group.Go(func() {
						p := params(name)
						p.Wait = 30 * time.Second
						result, err := idempotency.Do(t.Context(), b.client, p, charge(name))
						if err != nil {
							t.Error(err)
						}
						replayed[i] = result.Replayed
					})
				}
				group.Wait()
				runs := 0
				for _, r := range replayed {
					if !r {
						runs++
					}
				}
				if n := b.effects(t, name); n != 1 || runs != 1 {
					t.Fatalf("%d effects, %d callers that ran; want 1 and 1", n, runs)
				}
			}
		})
	}
}

// A rival without the advisory lock, as an older version would be: the unique
// index alone must decide.
func TestUniqueIndexDecidesWithoutTheLock(t *testing.T) {
	t.Parallel()
	b := newBench(t, pgtest.DB(t), nil, nil)
	rival := func(ctx context.Context, id string) error {
		fingerprint := params(id).Fingerprint
		_, err := b.pool.Exec(ctx, `INSERT INTO idempotency_keys
			(scope, id, claim_id, attempt, fingerprint, response, response_type, created_at, updated_at, expires_at)
			VALUES ('test', $1, gen_random_uuid(), 1, $2, '"rival"', 'json:string', now(), now(), now() + interval '1 hour')`, id, fingerprint.Bytes())
		return err
	}

	result, err := idempotency.Do(t.Context(), b.client, params("k"), func(ctx context.Context, tx pgx.Tx) (string, error) {
		if err := effect(ctx, tx, "k"); err != nil {
			return "", err
		}
		return "mine", rival(ctx, "k")
	})
	if err != nil || !result.Replayed || result.Value != "rival" {
		t.Errorf("%+v, %v; want the rival's answer", result, err)
	}
	if n := b.effects(t, "k"); n != 0 {
		t.Errorf("%d effects of the loser were committed", n)
	}

	t.Run("also when fn fails", func(t *testing.T) {
		t.Parallel()
		result, err := idempotency.Do(t.Context(), b.client, params("f"), func(ctx context.Context, _ pgx.Tx) (string, error) {
			return "", errors.Join(errors.New("business failed"), rival(ctx, "f"))
		})
		if err != nil || result.Value != "rival" {
			t.Errorf("%+v, %v; want the rival's answer", result, err)
		}
	})

	t.Run("also when an expired row is replaced", func(t *testing.T) {
		t.Parallel()
		p := params("e")
		p.TTL = time.Microsecond
		if _, err := idempotency.Do(t.Context(), b.client, p, charge("e")); err != nil {
			t.Fatal(err)
		}
		runs := 0
		result, err := idempotency.Do(t.Context(), b.client, params("e"), func(ctx context.Context, tx pgx.Tx) (string, error) {
			if runs++; runs == 1 {
				// A rival takes the expired key with a lease, and extends it: the
				// claim is another's, then the same claim with another end.
				if _, err := b.pool.Exec(ctx, `UPDATE idempotency_keys SET expires_at = now() + interval '1 hour', response = '"rival"', claim_id = gen_random_uuid() WHERE id = 'e'`); err != nil {
					return "", err
				}
			}
			return "mine", effect(ctx, tx, "e2")
		})
		if err != nil || result.Value != "rival" || !result.Replayed {
			t.Errorf("%+v, %v; want the rival's answer", result, err)
		}
		if n := b.effects(t, "e2"); n != 0 {
			t.Errorf("%d effects of the loser were committed", n)
		}
	})

	t.Run("a zombie's completion under the same claim id", func(t *testing.T) {
		t.Parallel()
		begin := &idempotency.BeginParams{Key: params("z").Key, Fingerprint: params("z").Fingerprint, TTL: time.Hour, Lease: time.Millisecond}
		zombie, err := b.store.Begin(t.Context(), begin)
		if err != nil {
			t.Fatal(err)
		}
		waitFor(t, func() bool {
			record, err := b.store.Get(t.Context(), begin.Key)
			var now time.Time
			if err == nil {
				err = b.pool.QueryRow(t.Context(), `SELECT clock_timestamp()`).Scan(&now)
			}
			return err == nil && now.After(record.LockedUntil)
		})
		result, err := idempotency.Do(t.Context(), b.client, params("z"), func(ctx context.Context, tx pgx.Tx) (string, error) {
			_, completeErr := b.store.Complete(ctx, zombie.Claim, &idempotency.Response{Type: "json:string", Body: []byte(`"zombie"`)})
			return "mine", errors.Join(completeErr, effect(ctx, tx, "z"))
		})
		if err != nil || result.Value != "zombie" || b.effects(t, "z") != 0 {
			t.Errorf("%+v, %v, %d effects; want the zombie's answer and no effect of ours", result, err, b.effects(t, "z"))
		}
	})
}

func TestRunningDuplicateIsInProgress(t *testing.T) {
	t.Parallel()
	b := newBench(t, pgtest.DB(t), nil, nil)
	p := params("k")
	p.Wait = idempotency.NoWait
	// Without what Do leaves in its own context. Nothing here waits for the key;
	// what did would wait for this very test.
	otherCaller, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, err := idempotency.Do(t.Context(), b.client, p, func(ctx context.Context, tx pgx.Tx) (string, error) {
		_, err := idempotency.Do(otherCaller, b.client, p, charge("k")) //nolint:contextcheck // As above.
		var inProgress *idempotency.InProgressError
		if !errors.As(err, &inProgress) || inProgress.RetryAfter <= 0 || inProgress.Key != p.Key {
			t.Errorf("duplicate got %v, want an InProgressError with its key and a RetryAfter", err)
		}
		if _, err := b.client.Get(ctx, p.Key); !errors.Is(err, idempotency.ErrNotFound) {
			t.Errorf("Get of a running key: %v, want ErrNotFound", err)
		}

		// In a caller's transaction: reported, and the transaction stays usable.
		return "k", pgx.BeginFunc(otherCaller, b.pool, func(other pgx.Tx) error {
			outcome, err := b.client.WithTx(other).Begin(otherCaller, p)
			if err != nil || outcome.State != idempotency.InProgress {
				t.Errorf("Begin got %+v, %v, want in progress", outcome, err)
			}
			if _, err := idempotency.DoTx(otherCaller, b.client, other, p, charge("k")); !errors.Is(err, idempotency.ErrInProgress) {
				t.Errorf("DoTx got %v, want ErrInProgress", err)
			}
			return effect(otherCaller, other, "other work")
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := b.effects(t, "other work"); n != 1 {
		t.Errorf("%d effects of the caller's own work, want 1", n)
	}
}

func TestPositiveWaitInTransactionGetsTheAnswer(t *testing.T) {
	t.Parallel()
	b := newBench(t, pgtest.DB(t), nil, nil)
	running, release := make(chan struct{}), make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		if _, err := idempotency.Do(t.Context(), b.client, params("k"), func(context.Context, pgx.Tx) (string, error) {
			close(running)
			<-release
			return "answer", nil
		}); err != nil {
			t.Error(err)
		}
	})
	<-running
	err := pgx.BeginFunc(t.Context(), b.pool, func(tx pgx.Tx) error {
		p := params("k")
		p.Wait = time.Minute
		close(release)
		result, err := idempotency.DoTx(t.Context(), b.client, tx, p, charge("k"))
		if err != nil {
			return err
		}
		answer, err := result.Answer()
		if err != nil || answer.Value != "answer" || !answer.Replayed {
			t.Errorf("%+v, %v; want the running call's answer", answer, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	group.Wait()
}

// queryCounter counts flights: a batch is one, and so is a single statement.
type queryCounter struct {
	mu         sync.Mutex
	flights    int
	statements []string
}

func (c *queryCounter) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flights++
	c.statements = append(c.statements, data.SQL)
	return ctx
}

func (*queryCounter) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (c *queryCounter) TraceBatchStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchStartData) context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flights++
	for _, query := range data.Batch.QueuedQueries {
		c.statements = append(c.statements, query.SQL)
	}
	return ctx
}

func (*queryCounter) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (*queryCounter) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}

func (c *queryCounter) count(fn func()) (flights int, statements []string) {
	c.mu.Lock()
	c.flights, c.statements = 0, nil
	c.mu.Unlock()
	fn()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.flights, c.statements
}

func TestFlights(t *testing.T) {
	t.Parallel()
	counter := &queryCounter{}
	config := pgtest.Config(t)
	config.ConnConfig.Tracer = counter
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	b := newBench(t, pool, nil, nil)
	do := func(id string) func() {
		return func() {
			if _, err := idempotency.Do(t.Context(), b.client, params(id), charge(id)); err != nil {
				t.Error(err)
			}
		}
	}
	do("warm up")()

	flights, statements := counter.count(do("k"))
	if flights != 3 || len(statements) != 6 {
		t.Errorf("a fresh Do with 1 statement: %d flights, %d statements; want 3 and 6\n%s", flights, len(statements), strings.Join(statements, "\n"))
	}
	flights, statements = counter.count(do("k"))
	if flights != 2 || statements[len(statements)-1] != "rollback" {
		t.Errorf("a replay: %d flights; want 2, the second the rollback\n%s", flights, strings.Join(statements, "\n"))
	}
	serializable := newBench(t, pool, &pgxstore.Config{TxOptions: pgx.TxOptions{IsoLevel: pgx.Serializable}}, finalConfig())
	doSerializable := func(id string) func() {
		return func() {
			if _, err := idempotency.Do(t.Context(), serializable.client, params(id), charge(id)); err != nil {
				t.Error(err)
			}
		}
	}
	doSerializable("warm up serializable")()
	if flights, _ = counter.count(doSerializable("s")); flights != 4 {
		t.Errorf("a fresh Do at serializable: %d flights, want 4", flights)
	}
	if flights, _ = counter.count(doSerializable("s")); flights != 1 {
		t.Errorf("a replay at serializable: %d flights, want 1", flights)
	}
	doFinal := func(id string) func() {
		return func() {
			_, err := idempotency.Do(t.Context(), serializable.client, params(id), func(ctx context.Context, tx pgx.Tx) (string, error) {
				return "", errors.Join(effect(ctx, tx, id), idempotency.Final(errClosed))
			})
			if !errors.Is(err, errClosed) {
				t.Error(err)
			}
		}
	}
	if flights, _ = counter.count(doFinal("final")); flights != 6 {
		t.Errorf("a final error at serializable: %d flights, want 6", flights)
	}
	flights, _ = counter.count(func() {
		if _, err := b.client.Get(t.Context(), params("k").Key); err != nil {
			t.Error(err)
		}
	})
	if flights != 1 {
		t.Errorf("Get: %d flights, want 1", flights)
	}
}

func TestReplayWritesNothing(t *testing.T) {
	t.Parallel()
	b := newBench(t, pgtest.DB(t), nil, nil)
	if _, err := idempotency.Do(t.Context(), b.client, params("k"), charge("k")); err != nil {
		t.Fatal(err)
	}
	// One session that has assigned no transaction id: a replay in it must not
	// assign one, and without one nothing can have been written.
	conn, err := b.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	result, err := idempotency.DoTx(t.Context(), b.client, tx, params("k"), charge("k"))
	if err != nil {
		t.Fatal(err)
	}
	if answer, err := result.Answer(); err != nil || !answer.Replayed {
		t.Fatalf("%+v, %v; want a replay", answer, err)
	}
	var xid *string
	if err := tx.QueryRow(t.Context(), `SELECT pg_current_xact_id_if_assigned()::text`).Scan(&xid); err != nil {
		t.Fatal(err)
	}
	if xid != nil {
		t.Errorf("the replay was assigned transaction id %s", *xid)
	}
}

func TestBystanderDoesNotPinTheKey(t *testing.T) {
	t.Parallel()
	b := newBench(t, pgtest.DB(t), nil, nil)
	short := params("k")
	short.TTL = time.Microsecond
	if _, err := idempotency.Do(t.Context(), b.client, params("live"), charge("live")); err != nil {
		t.Fatal(err)
	}
	tx, err := b.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	if _, err := b.client.WithTx(tx).Begin(t.Context(), params("live")); err != nil {
		t.Fatal(err)
	}
	var locks int
	if err := b.pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`).Scan(&locks); err != nil {
		t.Fatal(err)
	}
	if locks != 0 {
		t.Errorf("a transaction that only replayed holds %d advisory locks", locks)
	}
}

func TestStoreInsideATransactionThatRollsBack(t *testing.T) {
	t.Parallel()
	pool := pgtest.DB(t)
	b := newBench(t, pool, nil, nil)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	client, err := idempotency.NewClient(newStore(t, tx, nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		result, err := idempotency.Do(t.Context(), client, params("k"), charge("k"))
		if err != nil || result.Replayed != (i == 1) {
			t.Fatalf("call %d: %+v, %v", i, result, err)
		}
	}
	// One store's call inside another's, in one transaction.
	_, err = idempotency.Do(t.Context(), client, params("outer"), func(ctx context.Context, tx pgx.Tx) (string, error) {
		inner, err := idempotency.NewClient(newStore(t, tx, nil), nil)
		if err != nil {
			return "", err
		}
		result, err := idempotency.Do(ctx, inner, params("inner"), charge("inner"))
		return result.Value, err
	})
	if err != nil {
		t.Errorf("a call inside another's transaction: %v", err)
	}
	// A key that the transaction itself has begun.
	if _, err := b.client.WithTx(tx).Begin(t.Context(), params("own")); err != nil {
		t.Fatal(err)
	}
	if _, err := idempotency.Do(t.Context(), client, params("own"), charge("own")); !errors.Is(err, idempotency.ErrNested) {
		t.Errorf("got %v, want ErrNested", err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := b.client.Get(t.Context(), params("k").Key); !errors.Is(err, idempotency.ErrNotFound) || b.effects(t, "k") != 0 {
		t.Errorf("Get after the rollback: %v, %d effects; want ErrNotFound and none", err, b.effects(t, "k"))
	}
}

func TestForgottenCompletionCannotCommit(t *testing.T) {
	t.Parallel()
	b := newBench(t, pgtest.DB(t), nil, nil)
	err := pgx.BeginFunc(t.Context(), b.pool, func(tx pgx.Tx) error {
		if _, err := b.client.WithTx(tx).Begin(t.Context(), params("k")); err != nil {
			return err
		}
		return effect(t.Context(), tx, "k")
	})
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.ConstraintName != "idempotency_keys_completed_before_commit" {
		t.Errorf("commit: %v, want the guard's constraint", err)
	}
	if n := b.effects(t, "k"); n != 0 {
		t.Errorf("%d effects without a key", n)
	}
}

// A constraint of the caller's can fail the commit, with the code of a lost race
// for the key. That is the caller's error, and not a reason to run again.
func TestDeferredConstraintFailsTheCommit(t *testing.T) {
	t.Parallel()
	b := newBench(t, pgtest.DB(t), nil, nil)
	if _, err := b.pool.Exec(t.Context(), `ALTER TABLE effects ADD CONSTRAINT once UNIQUE (name) DEFERRABLE INITIALLY DEFERRED`); err != nil {
		t.Fatal(err)
	}
	runs := 0
	_, err := idempotency.Do(t.Context(), b.client, params("k"), func(ctx context.Context, tx pgx.Tx) (string, error) {
		runs++
		return "k", errors.Join(effect(ctx, tx, "k"), effect(ctx, tx, "k"))
	})
	wantPgError(t, err, "23505", "once")
	if runs != 1 || b.effects(t, "k") != 0 {
		t.Errorf("%d runs, %d effects; want 1 and 0", runs, b.effects(t, "k"))
	}
	if _, err := b.client.Get(t.Context(), params("k").Key); !errors.Is(err, idempotency.ErrNotFound) {
		t.Errorf("Get: %v, want ErrNotFound", err)
	}
}

// A row that somebody claims again is not waited for, nor deleted.
func TestSweepLeavesLockedRowsAlone(t *testing.T) {
	t.Parallel()
	config := pgtest.Config(t)
	// Waiting for the row would be an error.
	config.ConnConfig.RuntimeParams["lock_timeout"] = "10ms"
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	b := newBench(t, pool, nil, nil)
	b.expire(t, batchParams(0, 3))
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	if outcome, err := b.client.WithTx(tx).Begin(t.Context(), batchParams(1, 2)[0]); err != nil || outcome.State != idempotency.New {
		t.Fatalf("%+v, %v; want a new claim", outcome, err)
	}
	if deleted, err := b.client.DeleteExpired(t.Context(), 0); err != nil || deleted != 2 {
		t.Errorf("%d deleted, %v; want the two that nobody has locked", deleted, err)
	}
}

// waitFor polls a condition in the database; it is not a pause.
func waitFor(t testing.TB, condition func() bool) {
	t.Helper()
	ticker := time.NewTicker(2 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(30 * time.Second)
	for !condition() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatal("condition did not come true in 30 seconds")
		}
	}
}

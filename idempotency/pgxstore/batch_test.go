package pgxstore_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

// batchParams returns the params of keys from-to, in ascending order.
func batchParams(from, to int) []idempotency.Params {
	var all []idempotency.Params
	for i := from; i < to; i++ {
		all = append(all, bench.Params(fmt.Sprintf("key-%05d", i)))
	}
	return all
}

// work does the work of a batch: one effect and an answer for every key that is
// new.
func work(ctx context.Context, tx pgx.Tx, batch *idempotency.Batch) error {
	var names []string
	for _, item := range batch.Items {
		if item.State == idempotency.New {
			names = append(names, item.Key.ID)
			item.Response = &idempotency.Response{Type: idempotency.TypeBytes, Body: []byte("of " + item.Key.ID)}
		}
	}
	_, err := tx.Exec(ctx, `INSERT INTO effects (name) SELECT unnest($1::text[])`, names)
	return errors.Join(err, batch.Complete(ctx))
}

// runBatch begins and completes a batch in a transaction of its own.
func runBatch(ctx context.Context, b *bench.Bench, all []idempotency.Params) (batch *idempotency.Batch, err error) {
	err = pgx.BeginFunc(ctx, b.Pool, func(tx pgx.Tx) error {
		if batch, err = b.Client.WithTx(tx).BeginMany(ctx, all); err != nil {
			return err
		}
		return work(ctx, tx, batch)
	})
	return batch, err
}

func wantStates(t *testing.T, batch *idempotency.Batch, want func(i int) idempotency.State) {
	t.Helper()
	for i, item := range batch.Items {
		if item.State != want(i) || item.Err != nil {
			t.Fatalf("item %d of %d is %v, %v; want %v", i, len(batch.Items), item.State, item.Err, want(i))
		}
	}
}

func always(state idempotency.State) func(int) idempotency.State {
	return func(int) idempotency.State { return state }
}

// expire writes answers that have expired.
func expireAll(t *testing.T, b *bench.Bench, all []idempotency.Params) {
	t.Helper()
	expired := slices.Clone(all)
	for i := range expired {
		expired[i].TTL = time.Microsecond
	}
	batch, err := runBatch(t.Context(), b, expired)
	if err != nil {
		t.Fatal(err)
	}
	wantStates(t, batch, always(idempotency.New))
}

func TestBatchFlights(t *testing.T) {
	t.Parallel()
	counter := &bench.QueryCounter{}
	config := pgtest.Config(t)
	config.ConnConfig.Tracer = counter
	pool := bench.PoolWith(t, config)
	b := bench.New(t, pool, nil, nil)
	next := 0
	for _, size := range []int{1, 10, 100, 1000} {
		all := batchParams(next, next+size)
		next += size
		run := func(name string, state idempotency.State, wantFlights, wantStatements int) {
			t.Helper()
			tx, err := pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback(t.Context())
			flights, statements := counter.Count(func() {
				batch, err := b.Client.WithTx(tx).BeginMany(t.Context(), all)
				if err != nil {
					t.Fatal(err)
				}
				for _, item := range batch.Items {
					item.Response = &idempotency.Response{Type: idempotency.TypeNone}
				}
				if err := batch.Complete(t.Context()); err != nil {
					t.Fatal(err)
				}
				wantStates(t, batch, always(state))
			})
			if flights != wantFlights || len(statements) != wantStatements {
				t.Errorf("%s of %d keys: %d flights, %d statements; want %d and %d\n%s",
					name, size, flights, len(statements), wantFlights, wantStatements, strings.Join(statements, "\n"))
			}
		}
		run("fresh", idempotency.New, 2, 8)
		expireAll(t, b, all)
		run("expired", idempotency.New, 5, 17)
		if _, err := runBatch(t.Context(), b, all); err != nil {
			t.Fatal(err)
		}
		run("replay", idempotency.Completed, 2, 8)
	}
}

func TestBatchRefusesBadInputBeforeAnySQL(t *testing.T) {
	t.Parallel()
	counter := &bench.QueryCounter{}
	config := pgtest.Config(t)
	config.ConnConfig.Tracer = counter
	pool := bench.PoolWith(t, config)
	b := bench.New(t, pool, nil, nil)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	verbs := b.Client.WithTx(tx)
	batch, err := verbs.BeginMany(t.Context(), batchParams(0, 2))
	if err != nil {
		t.Fatal(err)
	}
	bad := batchParams(0, 3)
	bad[2].Key.ID = ""
	flights, statements := counter.Count(func() {
		if _, err := verbs.BeginMany(t.Context(), nil); err != nil {
			t.Error(err)
		}
		if _, err := verbs.BeginMany(t.Context(), bad); !errors.Is(err, idempotency.ErrInvalidParams) {
			t.Errorf("a bad key: %v", err)
		}
		if err := batch.Complete(t.Context()); !errors.Is(err, idempotency.ErrInvalidParams) {
			t.Errorf("no responses: %v", err)
		}
	})
	if flights != 0 {
		t.Errorf("%d flights:\n%s", flights, strings.Join(statements, "\n"))
	}
}

func TestBatchReplayWritesNothing(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	all := batchParams(0, 150)
	if _, err := runBatch(t.Context(), b, all); err != nil {
		t.Fatal(err)
	}
	for _, some := range [][]idempotency.Params{all, all[:50]} {
		tx, err := b.Pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(t.Context())
		batch, err := b.Client.WithTx(tx).BeginMany(t.Context(), some)
		if err != nil {
			t.Fatal(err)
		}
		wantStates(t, batch, always(idempotency.Completed))
		var xid *string
		var locks int
		if err := tx.QueryRow(t.Context(), `SELECT pg_current_xact_id_if_assigned()::text,
			(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())`).Scan(&xid, &locks); err != nil {
			t.Fatal(err)
		}
		if xid != nil || locks != 0 {
			t.Errorf("a replay of %d keys was assigned transaction id %v and holds %d locks", len(some), xid, locks)
		}
	}
}

func TestBatchInEveryExecMode(t *testing.T) {
	t.Parallel()
	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
		pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
	} {
		for _, level := range []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable} {
			t.Run(fmt.Sprintf("%s %s", mode, level), func(t *testing.T) {
				t.Parallel()
				config := pgtest.Config(t)
				config.ConnConfig.DefaultQueryExecMode = mode
				config.ConnConfig.RuntimeParams["default_transaction_isolation"] = string(level)
				pool := bench.PoolWith(t, config)
				b := bench.New(t, pool, nil, nil)

				// Texts that an array literal could get wrong.
				var all []idempotency.Params
				for _, id := range []string{"plain", "NULL", `"`, `\`, "{a,b}", "'; --", "é", " ", "\n"} {
					all = append(all, bench.Params(id))
				}
				expireAll(t, b, all[:2])
				abandoned := all[2]
				if _, err := b.Store.Begin(t.Context(), &idempotency.BeginParams{
					Key: abandoned.Key, Fingerprint: abandoned.Fingerprint, TTL: time.Hour, Lease: time.Millisecond,
				}); err != nil {
					t.Fatal(err)
				}
				bench.WaitFor(t, func() bool {
					var over bool
					err := pool.QueryRow(t.Context(), `SELECT bool_and(locked_until < statement_timestamp()) FROM idempotency_keys`).Scan(&over)
					return err == nil && over
				})
				bodies := [][]byte{nil, {}, {0}, []byte(`\x00`), {0xff, '"', ','}, []byte("NULL"), []byte("{}"), []byte("'"), []byte("é")}
				if err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
					batch, err := b.Client.WithTx(tx).BeginMany(t.Context(), all)
					if err != nil {
						return err
					}
					wantStates(t, batch, always(idempotency.New))
					for i, item := range batch.Items {
						item.Response = &idempotency.Response{Type: "type " + all[i].Key.ID, Body: bodies[i]}
					}
					return batch.Complete(t.Context())
				}); err != nil {
					t.Fatal(err)
				}
				replay, err := runBatch(t.Context(), b, all)
				if err != nil {
					t.Fatal(err)
				}
				wantStates(t, replay, always(idempotency.Completed))
				for i, item := range replay.Items {
					got := item.Record.Response
					if got.Type != "type "+all[i].Key.ID || string(got.Body) != string(bodies[i]) || (got.Body == nil) != (bodies[i] == nil) {
						t.Errorf("key %q: %q, %#v; want %#v", all[i].Key.ID, got.Type, got.Body, bodies[i])
					}
				}
				if ttl := replay.Items[0].Record.ExpiresAt.Sub(replay.Items[0].Record.UpdatedAt); ttl != idempotency.DefaultTTL {
					t.Errorf("an answer replays for %s, want %s", ttl, idempotency.DefaultTTL)
				}

				// Over the limit of hints.
				large, err := runBatch(t.Context(), b, batchParams(0, 150))
				if err != nil {
					t.Fatal(err)
				}
				wantStates(t, large, always(idempotency.New))

				tx, err := pool.Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer tx.Rollback(t.Context())
				batch, err := b.Client.WithTx(tx).BeginMany(t.Context(), batchParams(200, 202))
				if err != nil {
					t.Fatal(err)
				}
				if err := work(t.Context(), tx, batch); err != nil {
					t.Fatal(err)
				}
				if err := batch.Complete(t.Context()); !errors.Is(err, idempotency.ErrClaimLost) {
					t.Errorf("completed twice: %v, want ErrClaimLost", err)
				}
				if err := tx.Commit(t.Context()); err == nil || b.Effects(t, "key-00200") != 0 {
					t.Errorf("commit after that: %v, %d effects", err, b.Effects(t, "key-00200"))
				}
			})
		}
	}
}

// Batches of every size over the same keys in any order, some of them expired,
// beside single claims in ascending order. A circle of waiting transactions
// would be found at once, as deadlock_timeout is far below the bound on a wait.
func TestOverlappingBatchesDoNotDeadlock(t *testing.T) {
	t.Parallel()
	const keys, rounds, batchesOfRound = 250, 12, 4
	sizes := []int{2, 40, 100, 101, keys, keys}
	config := pgtest.Config(t)
	config.MaxConns = int32(len(sizes) + 2)
	config.ConnConfig.RuntimeParams["deadlock_timeout"] = "1ms"
	pool := bench.PoolWith(t, config)
	b := bench.New(t, pool, nil, nil)
	inProgress, refused, effects := 0, 0, 0
	for round := range rounds {
		all := batchParams(round*keys, (round+1)*keys)
		for i := range all {
			if i%3 == 0 {
				all[i].TTL = time.Microsecond
			}
		}
		if _, err := runBatch(t.Context(), b, slices.DeleteFunc(slices.Clone(all), func(p idempotency.Params) bool { return p.TTL == 0 })); err != nil {
			t.Fatal(err)
		}
		for i := range all {
			all[i].TTL = 0
		}
		if _, err := pool.Exec(t.Context(), `TRUNCATE effects`); err != nil {
			t.Fatal(err)
		}

		var group sync.WaitGroup
		var mu sync.Mutex
		start := make(chan struct{})
		for _, size := range sizes {
			group.Go(func() {
				<-start
				for range batchesOfRound {
					some := slices.Clone(all)
					rand.Shuffle(len(some), func(i, j int) { some[i], some[j] = some[j], some[i] })
					batch, err := runBatch(t.Context(), b, some[:size])
					mu.Lock()
					switch {
					case errors.Is(err, idempotency.ErrInProgress):
						refused++
					case err != nil:
						t.Errorf("a batch of %d keys: %v", size, err)
					default:
						for _, item := range batch.Items {
							if item.State == idempotency.InProgress {
								inProgress++
							}
						}
					}
					mu.Unlock()
				}
			})
		}
		group.Go(func() { // single claims
			<-start
			err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
				for i := 0; i < keys; i += 10 {
					outcome, err := b.Client.WithTx(tx).Begin(t.Context(), all[i])
					if err != nil {
						return err
					}
					if outcome.State != idempotency.New {
						continue
					}
					_, err = b.Client.WithTx(tx).Complete(t.Context(), outcome.Claim, &idempotency.Response{Type: idempotency.TypeNone})
					if err := errors.Join(err, bench.Effect(t.Context(), tx, all[i].Key.ID)); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				t.Errorf("single claims: %v", err)
			}
		})
		close(start)
		group.Wait()
		if _, err := runBatch(t.Context(), b, all); err != nil { // what is left
			t.Fatal(err)
		}
		rows, err := pool.Query(t.Context(), `SELECT count(*) FROM effects GROUP BY name`)
		if err != nil {
			t.Fatal(err)
		}
		counts, err := pgx.CollectRows(rows, pgx.RowTo[int])
		if err != nil {
			t.Fatal(err)
		}
		effects += len(counts)
		if len(counts) != keys || slices.Max(counts) != 1 {
			t.Fatalf("%d keys have effects, one of them %d; want %d and 1", len(counts), slices.Max(counts), keys)
		}
	}
	t.Logf("%d keys with one effect each; %d times a key was in progress, %d times a batch", effects, inProgress, refused)
	if inProgress == 0 {
		t.Error("no batch met another: nothing was tested")
	}
	pool.Close() // backends count their deadlocks when they end
	observer := pgtest.Empty(t)
	database := config.ConnConfig.Database
	bench.WaitFor(t, func() bool {
		var backends int
		err := observer.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE datname = $1`, database).Scan(&backends)
		return err == nil && backends == 0
	})
	var deadlocks int
	if err := observer.QueryRow(t.Context(), `SELECT deadlocks FROM pg_stat_database WHERE datname = $1`, database).Scan(&deadlocks); err != nil {
		t.Fatal(err)
	}
	if deadlocks != 0 {
		t.Errorf("the server found %d deadlocks", deadlocks)
	}
}

func TestBatchOfTenThousandKeys(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	const size = 10_000
	all := batchParams(0, size)
	rand.Shuffle(size, func(i, j int) { all[i], all[j] = all[j], all[i] })
	expireAll(t, b, all[:size/10])

	// Two of the keys are at work elsewhere: begun, and, an expired one, under a
	// Do, which has no row of its own yet.
	begun, underDo := size-1, 0
	other, err := b.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Rollback(t.Context())
	if _, err := b.Client.WithTx(other).Begin(t.Context(), all[begun]); err != nil {
		t.Fatal(err)
	}
	otherCaller := t.Context()
	result, err := idempotency.Do(t.Context(), b.Client, all[underDo], func(ctx context.Context, _ pgx.Tx) (string, error) {
		return "done", pgx.BeginFunc(ctx, b.Pool, func(tx pgx.Tx) error {
			batch, err := b.Client.WithTx(tx).BeginMany(otherCaller, all) //nolint:contextcheck // Without what Do leaves in its own.
			if err != nil {
				return err
			}
			wantStates(t, batch, func(i int) idempotency.State {
				if i == begun || i == underDo {
					return idempotency.InProgress
				}
				return idempotency.New
			})
			if err := work(ctx, tx, batch); err != nil {
				return err
			}
			var locks int
			if err := tx.QueryRow(ctx, `SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid()`).Scan(&locks); err != nil {
				return err
			}
			if locks > 50 {
				t.Errorf("the batch holds %d locks", locks)
			}
			return nil
		})
	})
	if err != nil || result.Replayed {
		t.Fatalf("%+v, %v; want Do to run", result, err)
	}
	if err := other.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	batch, err := runBatch(t.Context(), b, all)
	if err != nil {
		t.Fatal(err)
	}
	wantStates(t, batch, func(i int) idempotency.State {
		if i == begun {
			return idempotency.New
		}
		return idempotency.Completed
	})
	if string(batch.Items[1].Record.Response.Body) != "of "+all[1].Key.ID {
		t.Error("a key has the answer of another")
	}
}

// What a batch over the limit of hints has inserted can be told neither from a
// row nor from a lock: whoever comes waits, and a batch for a bounded time.
func TestBatchBesideALargeOne(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	large, err := b.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer large.Rollback(t.Context())
	if _, err := b.Client.WithTx(large).BeginMany(t.Context(), batchParams(100, 250)); err != nil {
		t.Fatal(err)
	}
	for _, all := range [][]idempotency.Params{batchParams(60, 160), batchParams(0, 300)} { // with hints, and without
		err := pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(t.Context(), `SELECT set_config('lock_timeout', '7s', true), set_config('enable_seqscan', 'on', true)`); err != nil {
				return err
			}
			verbs := b.Client.WithTx(tx)
			_, err := verbs.BeginMany(t.Context(), all)
			inProgress, ok := errors.AsType[*idempotency.InProgressError](err)
			if !ok || inProgress.Key != (idempotency.Key{}) || inProgress.RetryAfter <= 0 {
				t.Errorf("a batch of %d keys: %v; want an *InProgressError without a key", len(all), err)
			}
			// The transaction is as it was.
			free, err := verbs.BeginMany(t.Context(), all[:10])
			if err != nil {
				return err
			}
			wantStates(t, free, always(idempotency.New))
			wantSettings := func() {
				t.Helper()
				var settings string
				err := tx.QueryRow(t.Context(), `SELECT concat_ws(' ', current_setting('lock_timeout'), current_setting('enable_seqscan'), current_setting('enable_bitmapscan'))`).Scan(&settings)
				if err != nil || settings != "7s on on" {
					t.Errorf("lock_timeout, enable_seqscan and enable_bitmapscan are %s, %v; want the caller's", settings, err)
				}
			}
			wantSettings()
			if err := work(t.Context(), tx, free); err != nil {
				return err
			}
			wantSettings()
			return tx.Rollback(t.Context())
		})
		if !errors.Is(err, pgx.ErrTxClosed) {
			t.Error(err)
		}
	}
}

// Whoever waits for the table, to be made larger or to be changed, waits for no
// key.
func TestBatchThatWaitsForTheTable(t *testing.T) {
	t.Parallel()
	config := pgtest.Config(t)
	admin := bench.PoolWith(t, config.Copy())
	flights := &flightTracer{}
	config.ConnConfig.Tracer = flights
	config.MaxConns = 1 // whose statements are prepared: that too would wait, without a bound
	b := bench.New(t, bench.PoolWith(t, config), nil, nil)
	if _, err := runBatch(t.Context(), b, batchParams(0, 10)); err != nil { // which prepares the statements
		t.Fatal(err)
	}
	holder, err := admin.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Rollback(t.Context())
	if _, err := holder.Exec(t.Context(), `LOCK TABLE idempotency_keys IN SHARE MODE`); err != nil {
		t.Fatal(err)
	}
	before, done := flights.ended.Load(), make(chan error, 1)
	go func() {
		batch, err := runBatch(t.Context(), b, batchParams(10, 20))
		if err == nil {
			wantStates(t, batch, func(int) idempotency.State { return idempotency.New })
		}
		done <- err
	}()
	bench.WaitFor(t, func() bool { return flights.ended.Load() > before || len(done) == 1 })
	if err := holder.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Where no lock tells, a single key waits for the end of the transaction that
// has it, and gets what that has left.
func TestSingleKeyBesideALargeBatch(t *testing.T) {
	t.Parallel()
	for _, commits := range []bool{true, false} {
		t.Run(fmt.Sprintf("commits %t", commits), func(t *testing.T) {
			t.Parallel()
			b := bench.New(t, pgtest.DB(t), nil, nil)
			all := batchParams(0, 150)
			large, err := b.Pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer large.Rollback(t.Context())
			batch, err := b.Client.WithTx(large).BeginMany(t.Context(), all)
			if err != nil {
				t.Fatal(err)
			}
			if err := work(t.Context(), large, batch); err != nil {
				t.Fatal(err)
			}

			want := idempotency.New
			if commits {
				want = idempotency.Completed
			}
			var calls sync.WaitGroup
			calls.Go(func() {
				err := pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) error {
					outcome, err := b.Client.WithTx(tx).Begin(t.Context(), all[0])
					if err != nil || outcome.State != want {
						t.Errorf("Begin: %+v, %v; want %v", outcome, err, want)
						return err
					}
					if err := bench.Effect(t.Context(), tx, "the transaction is usable"); err != nil {
						return err
					}
					if commits {
						return nil
					}
					_, err = b.Client.WithTx(tx).Complete(t.Context(), outcome.Claim, &idempotency.Response{Type: idempotency.TypeNone})
					return err
				})
				if err != nil {
					t.Error(err)
				}
			})
			calls.Go(func() {
				result, err := idempotency.Do(t.Context(), b.Client, all[1], func(ctx context.Context, tx pgx.Tx) ([]byte, error) {
					return []byte("of " + all[1].Key.ID), bench.Effect(ctx, tx, all[1].Key.ID)
				})
				if err != nil || result.Replayed != commits || string(result.Value) != "of "+all[1].Key.ID {
					t.Errorf("Do: %+v, %v; want replayed: %t", result, err, commits)
				}
			})
			bench.WaitFor(t, func() bool {
				var waiting int
				err := b.Pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&waiting)
				return err == nil && waiting == 2
			})
			end := large.Rollback
			if commits {
				end = large.Commit
			}
			if err := end(t.Context()); err != nil {
				t.Error(err)
			}
			calls.Wait()
			if n := b.Effects(t, all[1].Key.ID); n != 1 {
				t.Errorf("%d effects of the key of Do, want 1", n)
			}
		})
	}
}

// Nothing of a batch is left on its connection for the next user.
func TestBatchSettingsEndWithTheTransaction(t *testing.T) {
	t.Parallel()
	config := pgtest.Config(t)
	config.MaxConns = 1
	pool := bench.PoolWith(t, config)
	b := bench.New(t, pool, nil, nil)
	settings := func() (text string) {
		t.Helper()
		if err := pool.QueryRow(t.Context(), `SELECT concat_ws('|', current_setting('lock_timeout'),
			nullif(current_setting('samecommit.lock_timeout', true), ''), nullif(current_setting('samecommit.claim_ids', true), ''))`).Scan(&text); err != nil {
			t.Fatal(err)
		}
		return text
	}
	before := settings()
	if _, err := runBatch(t.Context(), b, batchParams(0, 2)); err != nil {
		t.Fatal(err)
	}
	if after := settings(); after != before {
		t.Errorf("the settings were %q and are %q", before, after)
	}
}

func TestBatchOwnAndStrayKeys(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	if err := pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), `SET LOCAL session_replication_role = replica`); err != nil {
			return err
		}
		_, err := b.Client.WithTx(tx).BeginMany(t.Context(), []idempotency.Params{bench.Params("stray")})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	wantErr := func(item *idempotency.BatchItem, want error) {
		t.Helper()
		if _, ok := errors.AsType[*idempotency.KeyError](item.Err); !ok || !errors.Is(item.Err, want) {
			t.Errorf("got %v, want a *KeyError that is %q", item.Err, want)
		}
	}

	outside := t.Context() // without what Do leaves in its own context
	_, err := idempotency.Do(t.Context(), b.Client, bench.Params("do"), func(ctx context.Context, tx pgx.Tx) (string, error) {
		verbs := b.Client.WithTx(tx)
		for _, ctx := range []context.Context{ctx, outside} {
			own, err := verbs.BeginMany(ctx, []idempotency.Params{bench.Params("do"), bench.Params("do"), bench.Params("stray")}) //nolint:contextcheck // As above.
			if err != nil {
				return "", err
			}
			wantErr(own.Items[0], idempotency.ErrNested)
			wantErr(own.Items[1], idempotency.ErrNested)
			wantErr(own.Items[2], idempotency.ErrUnfinished)
		}
		// A large batch has no locks to tell its own keys by.
		large, err := verbs.BeginMany(ctx, batchParams(0, 150))
		if err != nil {
			return "", err
		}
		again, err := verbs.BeginMany(ctx, append(batchParams(0, 1), bench.Params("stray")))
		if err != nil {
			return "", err
		}
		wantErr(again.Items[0], idempotency.ErrNested)
		wantErr(again.Items[1], idempotency.ErrUnfinished)
		if _, err := verbs.Begin(ctx, batchParams(0, 1)[0]); !errors.Is(err, idempotency.ErrNested) {
			t.Errorf("Begin: %v, want ErrNested", err)
		}
		if err := work(ctx, tx, large); err != nil {
			return "", err
		}

		// A savepoint that is rolled back takes the keys with it.
		savepoint, err := tx.Begin(ctx)
		if err != nil {
			return "", err
		}
		if _, err := b.Client.WithTx(savepoint).BeginMany(ctx, batchParams(200, 400)); err != nil {
			return "", err
		}
		if err := savepoint.Rollback(ctx); err != nil {
			return "", err
		}
		batch, err := verbs.BeginMany(ctx, batchParams(200, 203))
		if err != nil {
			return "", err
		}
		wantStates(t, batch, always(idempotency.New))
		return "done", work(ctx, tx, batch)
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := b.Effects(t, "key-00200"); n != 1 {
		t.Errorf("%d effects, want 1", n)
	}
}

func TestBatchErrorsOfTheTransaction(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	for name, test := range map[string]struct {
		sql  string
		want error
	}{
		"aborted":   {`SELECT 1 / 0`, idempotency.ErrTxAborted},
		"read-only": {`SET TRANSACTION READ ONLY`, idempotency.ErrReadOnly},
		"ended":     {`COMMIT`, idempotency.ErrTxEnded},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tx, err := b.Pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback(t.Context())
			if _, err := tx.Exec(t.Context(), test.sql); (err != nil) != (name == "aborted") {
				t.Fatal(err)
			}
			if _, err := b.Client.WithTx(tx).BeginMany(t.Context(), batchParams(0, 2)); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
	t.Run("serialization failure", func(t *testing.T) {
		t.Parallel()
		b := bench.New(t, pgtest.DB(t), &pgxstore.Config{}, nil)
		err := pgx.BeginTxFunc(t.Context(), b.Pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) error {
			if err := bench.Effect(t.Context(), tx, "snapshot"); err != nil {
				return err
			}
			if _, err := runBatch(t.Context(), b, batchParams(1, 2)); err != nil {
				return err
			}
			_, err := b.Client.WithTx(tx).BeginMany(t.Context(), batchParams(0, 2))
			return err
		})
		if !errors.Is(err, idempotency.ErrSerializationFailure) {
			t.Errorf("got %v, want ErrSerializationFailure", err)
		}
	})
}

// rivalTracer calls rival once, before the first statement whose text has name.
type rivalTracer struct {
	name  string
	once  sync.Once
	rival func()
}

func (r *rivalTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if strings.Contains(data.SQL, r.name) {
		r.once.Do(r.rival)
	}
	return ctx
}

func (*rivalTracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (r *rivalTracer) TraceBatchStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceBatchStartData) context.Context {
	for _, query := range data.Batch.QueuedQueries {
		r.TraceQueryStart(ctx, conn, pgx.TraceQueryStartData{SQL: query.SQL})
	}
	return ctx
}

func (*rivalTracer) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (*rivalTracer) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}

func TestBatchAgainstRivalsForExpiredKeys(t *testing.T) {
	t.Parallel()
	t.Run("a row that another transaction has locked is left alone", func(t *testing.T) {
		t.Parallel()
		b := bench.New(t, pgtest.DB(t), nil, nil)
		all := batchParams(0, 150)
		expireAll(t, b, all)
		sweep, err := b.Pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer sweep.Rollback(t.Context())
		if _, err := sweep.Exec(t.Context(), `SELECT FROM idempotency_keys WHERE id = 'key-00003' FOR UPDATE`); err != nil {
			t.Fatal(err)
		}
		for _, size := range []int{20, 150} {
			tx, err := b.Pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			// Waiting for the row would be an error.
			if _, err := tx.Exec(t.Context(), `SET LOCAL lock_timeout = '10ms'`); err != nil {
				t.Fatal(err)
			}
			batch, err := b.Client.WithTx(tx).BeginMany(t.Context(), all[:size])
			if err != nil {
				t.Fatal(err)
			}
			wantStates(t, batch, func(i int) idempotency.State {
				if i == 3 {
					return idempotency.InProgress
				}
				return idempotency.New
			})
			if err := tx.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("a row that has changed since the look is judged again", func(t *testing.T) {
		t.Parallel()
		config := pgtest.Config(t)
		rivals := bench.PoolWith(t, config)
		rival := bench.New(t, rivals, nil, nil)
		all := batchParams(0, 10)
		expireAll(t, rival, all)
		config = config.Copy()
		config.ConnConfig.Tracer = &rivalTracer{name: "KeyReclaimMany", rival: func() {
			batch, err := runBatch(t.Context(), rival, all[2:4])
			if err != nil {
				t.Error(err)
				return
			}
			wantStates(t, batch, always(idempotency.New))
		}}
		pool := bench.PoolWith(t, config)
		b := bench.New(t, pool, nil, nil)
		batch, err := runBatch(t.Context(), b, all)
		if err != nil {
			t.Fatal(err)
		}
		wantStates(t, batch, func(i int) idempotency.State {
			if i == 2 || i == 3 {
				return idempotency.Completed
			}
			return idempotency.New
		})
		if n := b.Effects(t, "key-00002"); n != 2 { // one of the expired answer
			t.Errorf("%d effects, want 2", n)
		}
	})
}

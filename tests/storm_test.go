package tests_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

// stormSize is how many duplicates of one key arrive at once.
const stormSize = 1000

// lentPool is a pool that knows how many connections it has lent at one time.
type lentPool struct {
	*pgxpool.Pool
	most atomic.Int32
}

func newLentPool(tb testing.TB, config *pgxpool.Config, size int32) *lentPool {
	tb.Helper()
	lent := &lentPool{}
	config = config.Copy()
	config.MaxConns = size
	config.PrepareConn = func(context.Context, *pgx.Conn) (bool, error) {
		now := lent.Stat().AcquiredConns() // with the one that is being lent
		for most := lent.most.Load(); now > most && !lent.most.CompareAndSwap(most, now); most = lent.most.Load() {
		}
		return true, nil
	}
	pool, err := pgxpool.NewWithConfig(tb.Context(), config)
	if err != nil {
		tb.Fatal(err)
	}
	lent.Pool = pool
	tb.Cleanup(pool.Close)
	// Open them all: whoever waits for one then waits for somebody to return it.
	conns := make([]*pgxpool.Conn, size)
	for i := range conns {
		if conns[i], err = pool.Acquire(tb.Context()); err != nil {
			tb.Fatal(err)
		}
	}
	for _, conn := range conns {
		conn.Release()
	}
	lent.most.Store(0)
	return lent
}

// storm is a key whose operation runs until release is called, and stormSize
// duplicates of it that have arrived.
type storm struct {
	release func()
	calls   sync.WaitGroup
	// What became of the calls.
	executed, replayed atomic.Int32
}

// startStorm starts the operation on holder and then its duplicates on others.
func startStorm(tb testing.TB, holder, others *idempotency.Client[pgx.Tx], arrived *bench.Arrivals) *storm {
	tb.Helper()
	released, held := make(chan struct{}), make(chan struct{})
	s := &storm{release: sync.OnceFunc(func() { close(released) })}
	tb.Cleanup(s.release)
	var once atomic.Bool
	call := func(client *idempotency.Client[pgx.Tx]) {
		params := bench.Params("storm")
		params.Wait = time.Minute
		result, err := idempotency.Do(tb.Context(), client, params, func(ctx context.Context, tx pgx.Tx) (string, error) {
			if !once.CompareAndSwap(false, true) {
				return "", errors.New("the operation runs a second time")
			}
			close(held)
			<-released
			return "storm", bench.Effect(ctx, tx, "storm")
		})
		switch {
		case err != nil:
			tb.Error(err)
		case result.Replayed:
			s.replayed.Add(1)
		default:
			s.executed.Add(1)
		}
	}
	s.calls.Go(func() { call(holder) })
	<-held
	before := arrived.Load()
	for range stormSize {
		s.calls.Go(func() { call(others) })
	}
	bench.WaitFor(tb, func() bool { return arrived.Load() == before+stormSize })
	return s
}

func (s *storm) end(tb testing.TB) {
	tb.Helper()
	s.release()
	s.calls.Wait()
	if s.executed.Load() != 1 || s.replayed.Load() != stormSize {
		tb.Errorf("%d executed, %d replayed; want 1 and %d", s.executed.Load(), s.replayed.Load(), stormSize)
	}
}

// A storm of duplicates leaves the pool to others: of 8 connections one is with
// the operation and at most one with all those who wait.
func TestStormOfDuplicates(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"in one process", "in one process, each with settings", "of another process"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config, arrived := pgtest.Config(t), &bench.Arrivals{}
			pool := newLentPool(t, config, 8)
			var storeConfig *pgxstore.Config
			if name == "in one process, each with settings" {
				var requests atomic.Int64
				storeConfig = &pgxstore.Config{Settings: func(context.Context) (map[string]string, error) {
					return map[string]string{"search_path": "public", "app.request_id": fmt.Sprint(requests.Add(1))}, nil
				}}
			}
			b := bench.New(t, pool.Pool, storeConfig, &idempotency.Config{Tracer: arrived})
			holder, allowed := b.Client, int32(2)
			if name == "of another process" {
				holder, allowed = bench.New(t, newLentPool(t, config, 1).Pool, nil, nil).Client, 1
			}
			storm := startStorm(t, holder, b.Client, arrived)

			waited, most := pool.Stat().EmptyAcquireCount(), pool.most.Load()
			for i := range 500 {
				if _, err := pool.Exec(t.Context(), `SELECT`); err != nil {
					t.Error(err)
					break
				}
				if pool.Stat().EmptyAcquireCount() > waited {
					t.Errorf("unrelated query %d of 500 waited for a connection", i+1)
					break
				}
			}
			storm.end(t)
			if most > allowed || pool.most.Load() > allowed+1 {
				t.Errorf("%d connections were held, %d with an unrelated query; want %d and one more", most, pool.most.Load(), allowed)
			}
			if n := b.Effects(t, "storm"); n != 1 {
				t.Errorf("%d effects, want 1", n)
			}
		})
	}
}

// Duplicates that wait do not keep the operation from a second connection, here
// the last of the pool.
func TestStormLeavesTheOperationASecondConnection(t *testing.T) {
	t.Parallel()
	pool := newLentPool(t, pgtest.Config(t), 2)
	b := bench.New(t, pool.Pool, nil, nil)
	// The same pool, and no memory in common: the gate of one does not know the
	// other's calls.
	other, err := idempotency.NewClient(bench.NewStore(t, pool.Pool, nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	var calls sync.WaitGroup
	for i := range 100 {
		client := b.Client
		if i%2 == 0 {
			client = other
		}
		calls.Go(func() {
			params := bench.Params("k")
			params.Wait = time.Minute
			_, err := idempotency.Do(t.Context(), client, params, func(ctx context.Context, tx pgx.Tx) (string, error) {
				for range 20 {
					if _, err := pool.Exec(ctx, `SELECT`); err != nil {
						return "", err
					}
				}
				return "k", bench.Effect(ctx, tx, "k")
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	calls.Wait()
	if n := b.Effects(t, "k"); n != 1 {
		t.Errorf("%d effects, want 1", n)
	}
}

// BenchmarkUnrelatedQueryDuringStorm compares an unrelated query's 99th
// percentile on an idle pool of 8 with that during storms of 1,000 duplicates,
// in turns:
//
//	go test -run '^$' -bench UnrelatedQueryDuringStorm -benchtime 2000x ./tests
func BenchmarkUnrelatedQueryDuringStorm(b *testing.B) {
	arrived := &bench.Arrivals{}
	pool := newLentPool(b, pgtest.Config(b), 8)
	query := func() time.Duration {
		start := time.Now()
		if _, err := pool.Exec(b.Context(), `SELECT`); err != nil {
			b.Fatal(err)
		}
		return time.Since(start)
	}
	quantile := func(of []time.Duration, q float64) float64 {
		slices.Sort(of)
		return float64(of[int(float64(len(of)-1)*q)].Microseconds())
	}
	var idle, during []time.Duration
	const turns = 10
	for range turns {
		for range b.N/turns + 1 {
			idle = append(idle, query())
		}
		bench := bench.New(b, pool.Pool, nil, &idempotency.Config{Tracer: arrived})
		if _, err := pool.Exec(b.Context(), `DELETE FROM idempotency_keys`); err != nil {
			b.Fatal(err)
		}
		storm := startStorm(b, bench.Client, bench.Client, arrived)
		for range b.N/turns + 1 {
			during = append(during, query())
		}
		storm.end(b)
	}
	for _, q := range []float64{0.5, 0.99} {
		b.ReportMetric(quantile(idle, q), fmt.Sprintf("idle-p%.0f-µs", q*100))
		b.ReportMetric(quantile(during, q), fmt.Sprintf("storm-p%.0f-µs", q*100))
	}
	b.ReportMetric(quantile(during, 0.99)/quantile(idle, 0.99), "p99-ratio")
}

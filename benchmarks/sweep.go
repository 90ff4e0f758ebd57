package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
)

const (
	sweepLimit = 1000
	// sweepWorkers are those beside whom is swept.
	sweepWorkers = 8
)

// backlogs returns the number of expired rows of a small and of a large backlog.
func (o *options) backlogs() (small, large int) {
	if o.short {
		return 1000, 3000
	}
	return 6000, 240_000
}

// backlog is expired rows that can be had again and again.
type backlog struct {
	pool    *pgxpool.Pool
	columns string
}

// newBacklog makes rows that have expired. Pool has one connection.
func newBacklog(ctx context.Context, pool *pgxpool.Pool, rows int) (*backlog, error) {
	b := &backlog{pool: pool}
	if err := fill(ctx, pool, newIDs(rows), time.Microsecond); err != nil {
		return nil, err
	}
	// Of the table nothing is assumed but its name.
	var columns []string
	err := pool.QueryRow(ctx, `
SELECT array_agg(quote_ident(attname))
FROM pg_attribute
WHERE attrelid = 'idempotency_keys'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''`).Scan(&columns)
	if err != nil {
		return nil, err
	}
	b.columns = strings.Join(columns, ", ")
	_, err = pool.Exec(ctx, "CREATE TABLE expired AS SELECT "+b.columns+" FROM idempotency_keys")
	return b, err
}

// restore leaves the table with so many expired rows and no other, and without
// what earlier sweeps left behind.
func (b *backlog) restore(ctx context.Context, rows int) error {
	if _, err := b.pool.Exec(ctx, "TRUNCATE orders, idempotency_keys"); err != nil {
		return err
	}
	_, err := b.pool.Exec(ctx, "INSERT INTO idempotency_keys ("+b.columns+") SELECT "+b.columns+" FROM expired LIMIT $1", rows)
	return err
}

// sweep deletes until nothing is left that has expired, or for about as long as
// limit, and returns how many rows.
func sweep(ctx context.Context, client *idempotency.Client[pgx.Tx], limit time.Duration) (swept int, err error) {
	for start := time.Now(); time.Since(start) < limit; {
		deleted, err := client.DeleteExpired(ctx, sweepLimit)
		swept += deleted
		if err != nil || deleted < sweepLimit {
			return swept, err
		}
	}
	return swept, nil
}

// measureSweepOfBacklogs compares what 1,000 rows cost in a small backlog and in
// a large one, under a plan that was made for neither.
func measureSweepOfBacklogs(ctx context.Context, s *server, opts *options) error {
	db, err := s.empty(ctx, "sweep")
	if err != nil {
		return err
	}
	filling, err := db.open(ctx, 1)
	if err != nil {
		return err
	}
	defer filling.Close()
	config, err := db.config(1)
	if err != nil {
		return err
	}
	config.ConnConfig.RuntimeParams["plan_cache_mode"] = "force_generic_plan"
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return err
	}
	defer pool.Close()
	client, err := newClient(pool)
	if err != nil {
		return err
	}
	small, large := opts.backlogs()
	b, err := newBacklog(ctx, filling, large)
	if err != nil {
		return err
	}
	// Connects, outside of what is timed.
	if _, err := client.DeleteExpired(ctx, 1); err != nil {
		return err
	}
	times := make(map[int][]float64)
	for range opts.rounds {
		for _, rows := range []int{small, large} {
			if err := b.restore(ctx, rows); err != nil {
				return err
			}
			start := time.Now()
			swept, err := sweep(ctx, client, 10*opts.slot)
			if err != nil {
				return err
			}
			times[rows] = append(times[rows], milliseconds(time.Since(start))*1000/float64(swept))
			if err := checkCount(ctx, filling, "idempotency_keys", rows-swept); err != nil {
				return err
			}
		}
	}
	fmt.Printf("\nsweep: ms for each 1,000 rows, DeleteExpired(%d) until nothing is left or for %s, plan_cache_mode=force_generic_plan, %d times each\n", sweepLimit, 10*opts.slot, opts.rounds)
	ofSmall, ofLarge := spreadOf(times[small]), spreadOf(times[large])
	fmt.Printf("  of %d: %s\n  of %d: %s\n  ratio of the medians: %.1f\n", small, ofSmall, large, ofLarge, ofLarge.median/ofSmall.median)
	return nil
}

// measureSweepBesideLoad compares a load of Do alone with one beside a sweep.
func measureSweepBesideLoad(ctx context.Context, s *server, opts *options) error {
	db, err := s.empty(ctx, "sweep beside a load")
	if err != nil {
		return err
	}
	pool, err := db.open(ctx, sweepWorkers)
	if err != nil {
		return err
	}
	defer pool.Close()
	do, err := openDo(pool)
	if err != nil {
		return err
	}
	work := &load{op: do, newID: newID, workers: sweepWorkers, backends: &backends{}}
	sweeping, err := db.open(ctx, 1)
	if err != nil {
		return err
	}
	defer sweeping.Close()
	client, err := newClient(sweeping)
	if err != nil {
		return err
	}
	_, rows := opts.backlogs()
	b, err := newBacklog(ctx, sweeping, rows)
	if err != nil {
		return err
	}

	var deleted int
	during := []func(ctx context.Context) error{
		func(ctx context.Context) error { return pause(ctx, opts.slot) },
		func(ctx context.Context) (err error) {
			deleted, err = sweep(ctx, client, 5*opts.slot)
			return err
		},
	}
	var swept, rates, latencies []float64
	for round := range opts.rounds {
		before := work.done.Load()
		if err := b.restore(ctx, rows); err != nil {
			return err
		}
		slots := make([]*slot, len(during))
		for i := range during {
			i = (round + i) % len(during)
			if slots[i], err = work.run(ctx, opts.slot/5, during[i]); err != nil {
				return err
			}
		}
		if err := checkCount(ctx, sweeping, "idempotency_keys", rows-deleted+int(work.done.Load()-before)); err != nil {
			return err
		}
		alone, beside := slots[0], slots[1]
		swept = append(swept, float64(deleted)/beside.elapsed.Seconds())
		rates = append(rates, beside.rate()/alone.rate())
		latencies = append(latencies, beside.latency(0.99).Seconds()/alone.latency(0.99).Seconds())
	}
	fmt.Printf("\nsweep beside a load: DeleteExpired(%d) in a backlog of %d rows, beside %d workers of Do, %d times\n", sweepLimit, rows, sweepWorkers, opts.rounds)
	perSecond := spreadOf(swept)
	fmt.Printf("  rows/s swept: %.0f [%.0f-%.0f]\n", perSecond.median, perSecond.lower, perSecond.upper)
	fmt.Printf("  p99 of the load, to that without a sweep: %s\n  operations/s of the load, likewise: %s\n", spreadOf(latencies), spreadOf(rates))
	return nil
}

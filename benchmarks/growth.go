package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// fill answers fresh keys, in transactions of 1,000. The answers expire after
// ttl.
func fill(ctx context.Context, pool *pgxpool.Pool, ids []string, ttl time.Duration) error {
	client, err := newClient(pool)
	if err != nil {
		return err
	}
	for some := range slices.Chunk(ids, 1000) {
		err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			keys, err := beginMany(ctx, client, tx, some, ttl)
			if err != nil {
				return err
			}
			return keys.Complete(ctx)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// measureGrowth times batches on one connection before and after the table has
// grown: a plan that was made for the small table must suit the large one. What
// would make the server plan anew, autovacuum's ANALYZE, is off.
func measureGrowth(ctx context.Context, s *server, opts *options) error {
	const batches = 10 // a generic plan, if there is one, is there from the sixth on
	grown := 200_000
	if opts.short {
		grown = 3000
	}
	db, err := s.empty(ctx, "growth")
	if err != nil {
		return err
	}
	pool, err := db.open(ctx, 1)
	if err != nil {
		return err
	}
	defer pool.Close()
	// Whoever lets it grow needs a connection, and plans, of its own.
	filling, err := db.open(ctx, 1)
	if err != nil {
		return err
	}
	defer filling.Close()
	if _, err := pool.Exec(ctx, "ALTER TABLE idempotency_keys SET (autovacuum_enabled = false)"); err != nil {
		return err
	}
	small, err := timeBatches(ctx, pool, batches)
	if err != nil {
		return err
	}
	if err := fill(ctx, filling, newIDs(grown), time.Hour); err != nil {
		return err
	}
	large, err := timeBatches(ctx, pool, batches)
	if err != nil {
		return err
	}
	if err := checkCount(ctx, pool, "idempotency_keys", 2*batches*batchSize+grown); err != nil {
		return err
	}
	fmt.Printf("\ngrowth: ms for BeginMany and Complete of %d keys, on one connection, %d times each\n", batchSize, batches)
	fmt.Printf("  in an empty table: %s\n  %d rows later: %s\n  ratio of the medians: %.1f\n", small, grown, large, large.median/small.median)
	return nil
}

// timeBatches returns the times of the two calls, without BEGIN and COMMIT, in
// milliseconds.
func timeBatches(ctx context.Context, pool *pgxpool.Pool, batches int) (spread, error) {
	client, err := newClient(pool)
	if err != nil {
		return spread{}, err
	}
	var times []float64
	for range batches {
		ids := newIDs(batchSize)
		err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			start := time.Now()
			keys, err := beginMany(ctx, client, tx, ids, 0)
			if err != nil {
				return err
			}
			err = keys.Complete(ctx)
			times = append(times, milliseconds(time.Since(start)))
			return err
		})
		if err != nil {
			return spread{}, err
		}
	}
	return spreadOf(times), nil
}

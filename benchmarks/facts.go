package main

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// printFacts prints what the figures depend on.
func (s *server) printFacts(ctx context.Context, opts *options) error {
	version, err := s.setting(ctx, "server_version")
	if err != nil {
		return err
	}
	fmt.Printf("PostgreSQL %s, %s\n", version, s.From)
	fmt.Printf("%d cores, %s/%s, %s", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version())
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, module := range info.Deps {
			if module.Path == "github.com/jackc/pgx/v5" {
				fmt.Printf(", pgx %s", module.Version)
			}
		}
	}
	fmt.Println()
	for i, name := range []string{"fsync", "synchronous_commit", "full_page_writes", "wal_level", "shared_buffers", "max_wal_size", "checkpoint_timeout", "autovacuum"} {
		value, err := s.setting(ctx, name)
		if err != nil {
			return err
		}
		if i > 0 {
			fmt.Print(", ")
		}
		fmt.Printf("%s=%s", name, value)
	}
	fmt.Println()
	if s.local {
		median, err := syncTime()
		if err != nil {
			return err
		}
		fmt.Printf("an fsync of one page takes %s\n", median.Round(time.Microsecond))
	}
	fmt.Printf("%d rounds of slots of %s; answers of %d bytes under random ids; ratio: median [quartiles] of the rounds\n",
		opts.rounds, opts.slot, responseSize)
	if opts.short {
		fmt.Println("-short: these figures say nothing")
	}
	return nil
}

// printRoundTrip prints how long a statement takes that does nothing.
func (s *server) printRoundTrip(ctx context.Context, link *proxy) error {
	config, err := s.template.config(1)
	if err != nil {
		return err
	}
	if link != nil {
		link.through(config)
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return err
	}
	defer pool.Close()
	times := make([]time.Duration, 101)
	for i := range times {
		start := time.Now()
		if _, err := pool.Exec(ctx, "SELECT"); err != nil {
			return err
		}
		times[i] = time.Since(start)
	}
	slices.Sort(times)
	fmt.Printf("\na statement that does nothing%s: %s\n", link, times[len(times)/2].Round(time.Microsecond))
	return nil
}

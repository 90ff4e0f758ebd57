// Program benchmarks measures what a key costs, side by side with code that does
// less: a transaction without a key, and the five statements that one writes by
// hand. Run it from any folder of the workspace:
//
//	go run ./benchmarks                            # everything: about twenty minutes
//	go run ./benchmarks -run fresh -workers 8      # one group, at 8 workers
//	go run ./benchmarks -short                     # does everything once, measures nothing well
//	go run ./benchmarks -instructions              # instructions of the server, under valgrind
//
// Time is measured in slots. The peers of a group take turns, one slot each, and
// begin each round with another peer; a ratio compares two slots of one round,
// so that what else the machine does meets both. Printed are medians and
// quartiles over the rounds. No figure makes the program fail. Rows that do not
// add up to the operations do.
//
// Unless the environment chooses a server, as for tests, it starts one from the
// machine's own binaries with fsync on and its data in TMPDIR, which should be on
// a disk: the time of an fsync is printed. The rest is in CONTRIBUTING.md, part
// "How tests find PostgreSQL".
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchmarks:", err)
		os.Exit(1)
	}
}

// options are what the flags say.
type options struct {
	selected *regexp.Regexp
	workers  []int
	rtts     []time.Duration
	slot     time.Duration
	rounds   int
	short    bool
}

func run(ctx context.Context) (err error) {
	opts, instructions, err := parseFlags()
	if err != nil {
		return err
	}
	if instructions {
		return countInstructions(ctx, opts.selected)
	}
	s, err := startServer(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop(context.WithoutCancel(ctx))) }()
	if err := s.printFacts(ctx, opts); err != nil {
		return err
	}
	for _, rtt := range opts.rtts {
		if err := measureGroups(ctx, s, opts, rtt); err != nil {
			return err
		}
	}
	for _, section := range []struct {
		name    string
		measure func(ctx context.Context, s *server, opts *options) error
	}{
		{"stores", measureStores},
		{"http", measureHTTP},
		{"growth", measureGrowth},
		{"sweep", measureSweepOfBacklogs},
		{"sweep beside a load", measureSweepBesideLoad},
	} {
		if !opts.selected.MatchString(section.name) {
			continue
		}
		if err := section.measure(ctx, s, opts); err != nil {
			return fmt.Errorf("%s: %w", section.name, err)
		}
	}
	return nil
}

// measureGroups measures each group with each number of workers.
func measureGroups(ctx context.Context, s *server, opts *options, rtt time.Duration) (err error) {
	if !slices.ContainsFunc(groups, func(g group) bool { return g.chosen(opts) != nil }) {
		return nil
	}
	var link *proxy
	if rtt > 0 {
		config, err := s.template.config(1)
		if err != nil {
			return err
		}
		if link, err = startProxy(ctx, config, rtt); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, link.close()) }()
	}
	if err := s.printRoundTrip(ctx, link); err != nil {
		return err
	}
	for _, workers := range opts.workers {
		for _, g := range groups {
			if err := g.measure(ctx, s, opts, workers, link); err != nil {
				return fmt.Errorf("%s, %d workers: %w", g.name, workers, err)
			}
		}
	}
	return nil
}

func parseFlags() (opts *options, instructions bool, err error) {
	selected := flag.String("run", "", "only what this `regexp` matches: a group (fresh, replay, batch), group/peer, stores, http, growth, sweep, \"sweep beside a load\"; a group's first peer always runs")
	workers := flag.String("workers", "", "how many calls run at once, each on a connection of its own (default 1,8,32; with -short 8)")
	rtts := flag.String("rtt", "0s,1ms", "round trips that a proxy adds to the loopback's own; 0s is without the proxy")
	opts = &options{}
	flag.DurationVar(&opts.slot, "duration", 0, "how long a slot is (default 1s, with -short 300ms)")
	flag.IntVar(&opts.rounds, "rounds", 0, "how many slots each peer has (default 6, with -short 1)")
	flag.BoolVar(&opts.short, "short", false, "do everything once and check the rows: for CI, where a figure would say nothing")
	flag.BoolVar(&instructions, "instructions", false, "count the server's instructions for each operation instead; needs valgrind and PostgreSQL's binaries")
	flag.Parse()
	if flag.NArg() > 0 {
		return nil, false, fmt.Errorf("%q is no flag: see -help", flag.Arg(0))
	}
	if opts.selected, err = regexp.Compile(*selected); err != nil {
		return nil, false, fmt.Errorf("-run: %w", err)
	}
	opts.setDefaults(workers)
	if opts.workers, err = parseList(*workers, strconv.Atoi); err != nil {
		return nil, false, fmt.Errorf("-workers: %w", err)
	}
	if slices.Contains(opts.workers, 0) {
		return nil, false, errors.New("-workers: nothing is measured with 0 workers")
	}
	if opts.rtts, err = parseList(*rtts, time.ParseDuration); err != nil {
		return nil, false, fmt.Errorf("-rtt: %w", err)
	}
	return opts, instructions, nil
}

// setDefaults fills in what no flag has set.
func (o *options) setDefaults(workers *string) {
	defaults := options{slot: time.Second, rounds: 6}
	atOnce := "1,8,32"
	if o.short {
		defaults = options{slot: 300 * time.Millisecond, rounds: 1}
		atOnce = "8"
	}
	o.slot, o.rounds, *workers = cmp.Or(o.slot, defaults.slot), cmp.Or(o.rounds, defaults.rounds), cmp.Or(*workers, atOnce)
}

// parseList reads values that commas part, none of them negative.
func parseList[T int | time.Duration](text string, parse func(string) (T, error)) (values []T, err error) {
	for item := range strings.SplitSeq(text, ",") {
		value, err := parse(strings.TrimSpace(item))
		if err != nil {
			return nil, err
		}
		if value < 0 {
			return nil, fmt.Errorf("%q is negative", item)
		}
		values = append(values, value)
	}
	return values, nil
}

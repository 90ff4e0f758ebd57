// Command payments is samecommit's demo: a small payments API on PostgreSQL, a
// client that sends every charge many times, and a killer that cuts the API's
// database connections meanwhile. At the end the tables are audited: did every
// charge take effect exactly once, and is every answer that was given true?
//
//	make demo                 # the safe way: no double effect, no lost answer
//	make demo ARGS=--naive    # the usual way, to see it go wrong
//	make demo ARGS=--serve    # only the API, with three curl lines to try
//
// It needs no preparation: it uses the server that SAMECOMMIT_POSTGRES_URL
// names, or starts a throw-away one, and works in a database of its own.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// How the program ends.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitInterrupted = 130 // as a shell reports a program that ctrl-C ended
)

type options struct {
	charges   int
	atOnce    int
	again     int
	killEvery time.Duration
	timeout   time.Duration
	address   string
	json      bool
	serve     bool
	naive     bool
	verbose   bool
}

func main() {
	opts, err := parseOptions(os.Args[1:], os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(exitOK)
	case err != nil:
		os.Exit(exitUsage)
	}
	ctx, restore := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first ctrl-C ends the run and cleans up. A second one must get through
	// if cleaning up hangs.
	context.AfterFunc(ctx, restore)
	os.Exit(run(ctx, opts, os.Stdout, os.Stderr))
}

func parseOptions(args []string, stderr io.Writer) (*options, error) {
	var opts options
	flags := flag.NewFlagSet("payments", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&opts.charges, "n", 300, "number of distinct `charges`")
	flags.IntVar(&opts.atOnce, "at-once", 4, "how many `times` each charge is sent at once")
	flags.IntVar(&opts.again, "again", 2, "how many more `rounds` send every charge again")
	flags.DurationVar(&opts.killEvery, "kill-every", 20*time.Millisecond, "`pause` between two killed connections; 0 kills none")
	flags.DurationVar(&opts.timeout, "timeout", time.Minute, "how `long` clients go on before they give up")
	flags.StringVar(&opts.address, "addr", "127.0.0.1:0", "`address` that the API listens on; port 0 takes a free one")
	flags.BoolVar(&opts.json, "json", false, "print the audit as one JSON object")
	flags.BoolVar(&opts.serve, "serve", false, "run only the API, until ctrl-C, and print curl lines to try")
	flags.BoolVar(&opts.naive, "naive", false, "keep keys the usual way, in transactions of their own, to see it go wrong")
	flags.BoolVar(&opts.verbose, "verbose", false, "print why each failed request failed")
	flags.Usage = func() {
		_, _ = io.WriteString(stderr, `payments charges accounts over HTTP, sends every charge many times while database
connections are killed, and audits the tables afterwards. It exits with 1 if any
charge took effect twice or an acknowledged one is not there.

Usage: make demo ARGS="[flags]"

`)
		flags.PrintDefaults()
		_, _ = io.WriteString(stderr, `
SAMECOMMIT_POSTGRES_URL names the server to use, in a new database that is
dropped at the end. Without it a throw-away server is started: in a container if
an engine answers, else from this machine's own PostgreSQL.
`)
	}
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	refuse := func(format string, args ...any) error {
		err := fmt.Errorf(format, args...)
		_, _ = fmt.Fprintf(stderr, "payments: %v; see --help\n", err)
		return err
	}
	switch {
	case flags.NArg() > 0:
		return nil, refuse("takes no arguments but flags, and got %q", flags.Arg(0))
	case opts.charges < 1 || opts.charges > 1_000_000:
		return nil, refuse("-n is %d; use 1 to 1000000", opts.charges)
	case opts.atOnce < 1 || opts.atOnce > 100:
		return nil, refuse("-at-once is %d; use 1 to 100", opts.atOnce)
	case opts.again < 0 || opts.again > 100:
		return nil, refuse("-again is %d; use 0 to 100", opts.again)
	case opts.killEvery < 0:
		return nil, refuse("-kill-every is negative; use 0 to kill none")
	case opts.timeout <= 0:
		return nil, refuse("-timeout is %s; it must be positive", opts.timeout)
	case opts.serve && opts.json:
		return nil, refuse("-json prints an audit, and -serve makes none; use one of them")
	}
	return &opts, nil
}

func run(ctx context.Context, opts *options, stdout, stderr io.Writer) int {
	code, err := demo(ctx, opts, stdout, stderr)
	switch {
	case ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)):
		if opts.serve {
			return exitOK // ctrl-C is how it is meant to end
		}
		_, _ = fmt.Fprintln(stderr, "payments: interrupted; nothing was audited")
		return exitInterrupted
	case err != nil:
		_, _ = fmt.Fprintf(stderr, "payments: %v\n", err)
		return exitFailed
	}
	return code
}

func demo(ctx context.Context, opts *options, stdout, stderr io.Writer) (code int, err error) {
	db, err := openDatabase(ctx, func(format string, args ...any) {
		_, _ = fmt.Fprintf(stderr, "payments: "+format+"\n", args...)
	})
	if err != nil {
		return exitFailed, err
	}
	defer func() {
		// After ctrl-C too, so it needs a context that is still alive.
		err = errors.Join(err, db.close(context.WithoutCancel(ctx)))
	}()
	before, err := openLedger(ctx, db.pool)
	if err != nil {
		return exitFailed, err
	}

	logger := slog.New(slog.DiscardHandler)
	if opts.verbose || opts.serve {
		logger = slog.New(slog.NewTextHandler(stderr, nil))
	}
	pause := handlerPause
	if opts.serve {
		pause = 0
	}
	var payments charger
	if opts.naive {
		payments, err = newNaive(ctx, db.pool, pause)
	} else {
		payments, err = newSafe(db.pool, pause)
	}
	if err != nil {
		return exitFailed, err
	}
	api, err := listen(ctx, opts.address, payments, logger)
	if err != nil {
		return exitFailed, err
	}
	defer func() { err = errors.Join(err, api.close(context.WithoutCancel(ctx))) }()

	if opts.serve {
		printCurl(stdout, api.url)
		<-ctx.Done()
		return exitOK, nil
	}
	report, err := loadAndAudit(ctx, opts, db, api.url, before, stderr)
	if err != nil {
		return exitFailed, err
	}
	return report.print(opts, stdout, stderr)
}

// loadAndAudit sends every charge in every round, kills connections until the
// last round, and then looks at what is in the tables.
func loadAndAudit(ctx context.Context, opts *options, db *database, url string, before int64, stderr io.Writer) (*report, error) {
	counts := &counts{}
	client := newClient(url, counts, opts)
	defer client.close()
	killer, err := startKiller(ctx, db, opts.killEvery, counts)
	if err != nil {
		return nil, err
	}
	progress := startProgress(stderr, counts)

	loadCtx, cancel := context.WithTimeout(ctx, opts.timeout)
	defer cancel()
	for round := range 1 + opts.again {
		if round > 0 && round == opts.again {
			// The last round is left in peace, so that a charge which nobody
			// has acknowledged after it is stuck, and not merely unlucky.
			if err := killer.stop(); err != nil {
				progress.stop()
				return nil, err
			}
		}
		client.sendAll(loadCtx, round == 0)
	}
	err = killer.stop()
	progress.stop()
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	return audit(ctx, db, client, counts, before)
}

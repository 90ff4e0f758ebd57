// Command payments is samecommit's demo: a small payments API on PostgreSQL, and
// two things that happen to it. First one charge is sent 1,000 times at once, on
// few database connections. Then a client sends many charges, each many times,
// while a killer ends the API's database connections and a cutter drops the
// server's replies to COMMIT. At the end the tables are audited: did every charge
// take effect exactly once, and is every answer that was given true?
//
//	make demo                 # the safe way: no double effect, no lost answer
//	make demo ARGS=--naive    # the usual way, to see it go wrong
//	make demo ARGS=--serve    # only the API, with curl lines to try
//
// It needs no preparation: it uses the server that SAMECOMMIT_POSTGRES_URL
// names, or starts a throw-away one, and works in a database of its own.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/examples/internal/demodb"
	"github.com/samecommit/samecommit/examples/payments/internal/trouble"
)

// serverName is the application name of the API's connections, which tells the killer
// whom to kill and spares everybody else.
const serverName = "payments-demo"

// How the program ends.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitInterrupted = 130 // as a shell reports a program that ctrl-C ended
)

type options struct {
	trouble trouble.Options
	pool    int
	address string
	json    bool
	serve   bool
	naive   bool
	verbose bool
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
	opts := options{trouble: trouble.Options{Accounts: accountIDs}}
	flags := flag.NewFlagSet("payments", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&opts.trouble.Charges, "n", 300, "number of distinct `charges`")
	flags.IntVar(&opts.trouble.AtOnce, "at-once", 4, "how many `times` each charge is sent at once")
	flags.IntVar(&opts.trouble.Again, "again", 2, "how many more `rounds` send every charge again")
	flags.DurationVar(&opts.trouble.KillEvery, "kill-every", 20*time.Millisecond, "`pause` between two killed connections, which becomes longer until a charge is acknowledged; 0 kills none")
	flags.DurationVar(&opts.trouble.CutEvery, "cut-every", 40*time.Millisecond, "`pause` between two connections cut as the reply to a COMMIT passes; 0 cuts none")
	flags.IntVar(&opts.trouble.Burst, "burst", 1000, "how many `times` one charge is sent at once before the others; 0 is never")
	flags.IntVar(&opts.pool, "pool", 8, "how many database `connections` the API has at most")
	flags.DurationVar(&opts.trouble.Timeout, "timeout", time.Minute, "how `long` clients of the burst, and of the rest, go on before they give up")
	flags.StringVar(&opts.address, "addr", "127.0.0.1:0", "`address` that the API listens on; port 0 takes a free one")
	flags.BoolVar(&opts.json, "json", false, "print the audit as one JSON object")
	flags.BoolVar(&opts.serve, "serve", false, "run only the API, until ctrl-C, and print curl lines to try")
	flags.BoolVar(&opts.naive, "naive", false, "keep keys the usual way, in transactions of their own, to see it go wrong")
	flags.BoolVar(&opts.verbose, "verbose", false, "print why each failed request failed")
	flags.Usage = func() {
		_, _ = io.WriteString(stderr, `payments charges accounts over HTTP: one charge 1,000 times at once, then many
charges many times each, while database connections are killed and replies to
COMMIT are lost. It audits the tables afterwards, and exits with 1 if any charge
took effect twice, an acknowledged one is not there, or no reply to COMMIT was
lost although some should be. With -naive the first two are what it shows.

Usage: make demo ARGS="[flags]"

`)
		flags.PrintDefaults()
		_, _ = io.WriteString(stderr, `
SAMECOMMIT_POSTGRES_URL names the server to use, in a new database that is
dropped at the end. Without it a throw-away server is started: in a container if
an engine answers, else from this machine's own PostgreSQL, else from one that is
downloaded once.
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
	case opts.trouble.Charges < 1 || opts.trouble.Charges > 1_000_000:
		return nil, refuse("-n is %d; use 1 to 1000000", opts.trouble.Charges)
	case opts.trouble.AtOnce < 1 || opts.trouble.AtOnce > 100:
		return nil, refuse("-at-once is %d; use 1 to 100", opts.trouble.AtOnce)
	case opts.trouble.Again < 0 || opts.trouble.Again > 100:
		return nil, refuse("-again is %d; use 0 to 100", opts.trouble.Again)
	case opts.trouble.KillEvery < 0:
		return nil, refuse("-kill-every is negative; use 0 to kill none")
	case opts.trouble.CutEvery < 0:
		return nil, refuse("-cut-every is negative; use 0 to cut none")
	case opts.trouble.Burst < 0 || opts.trouble.Burst > 5000: // each takes two of the process's files
		return nil, refuse("-burst is %d; use 0 to 5000", opts.trouble.Burst)
	case opts.pool < 1 || opts.pool > 64:
		return nil, refuse("-pool is %d; use 1 to 64", opts.pool)
	case opts.trouble.Timeout <= 0:
		return nil, refuse("-timeout is %s; it must be positive", opts.trouble.Timeout)
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
	made := trouble.New(&opts.trouble)
	db, err := demodb.Open(ctx, func(config *pgxpool.Config) {
		config.ConnConfig.RuntimeParams["application_name"] = serverName
		config.MaxConns = int32(opts.pool) //nolint:gosec // Checked with the flags.
		made.Attach(config)
	}, func(format string, args ...any) {
		_, _ = fmt.Fprintf(stderr, "payments: "+format+"\n", args...)
	})
	if err != nil {
		return exitFailed, err
	}
	defer func() {
		// After ctrl-C too, so it needs a context that is still alive.
		err = errors.Join(err, db.Close(context.WithoutCancel(ctx)))
	}()
	before, err := openLedger(ctx, db.Pool)
	if err != nil {
		return exitFailed, err
	}

	logs := slog.DiscardHandler
	if opts.verbose || opts.serve {
		logs = slog.NewTextHandler(stderr, nil)
	}
	slog.SetDefault(slog.New(logs))
	work := made.Work
	if opts.serve {
		work = func(context.Context) {}
	}
	var charges http.Handler
	if opts.naive {
		charges, err = newNaive(ctx, db.Pool, work)
	} else {
		charges, err = newSafe(db.Pool, work)
	}
	if err != nil {
		return exitFailed, err
	}
	api, err := listen(ctx, opts.address, made.Watch(charges), db.Pool)
	if err != nil {
		return exitFailed, err
	}
	defer func() { err = errors.Join(err, api.close(context.WithoutCancel(ctx))) }()

	if opts.serve {
		printCurl(stdout, api.url)
		<-ctx.Done()
		return exitOK, nil
	}
	found := &trouble.API{URL: api.url, Pool: db.Pool}
	if err := made.Run(ctx, found, stderr); err != nil {
		return exitFailed, err
	}
	report, err := made.Audit(ctx, found, before)
	if err != nil {
		return exitFailed, err
	}
	return show(report, opts, stdout, stderr)
}

// show prints the report, and then what it means to whoever reads along.
func show(report *trouble.Report, opts *options, stdout, stderr io.Writer) (code int, err error) {
	if opts.json {
		err = json.NewEncoder(stdout).Encode(report)
	} else {
		err = report.Print(stdout)
	}
	if err != nil {
		return exitFailed, fmt.Errorf("print the audit: %w", err)
	}
	verdict, ok := report.Verdict(opts.naive)
	if !ok {
		code = exitFailed
	}
	_, err = fmt.Fprintln(stderr, verdict)
	return code, err
}

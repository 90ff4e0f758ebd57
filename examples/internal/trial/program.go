package trial

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"

	"github.com/samecommit/samecommit/examples/internal/child"
)

// How a program ends.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// Program is a program that makes trials.
type Program struct {
	// Flags are what it takes beside -naive and -json. Their name is the program's.
	Flags *flag.FlagSet
	// Naive says what it does with -naive.
	Naive string
	// Books are the names of Trial.Counts, in the order of the table's columns.
	Books []string
	// Run makes the trials.
	Run func(ctx context.Context, naive bool, stderr io.Writer) ([]*Trial, error)
	// Work is what a process does that Send has started: child.Work.
	Work func(ctx context.Context, stdout io.Writer) error
}

// Main is the program, and returns how it ends: with 0 if all orders went well, or if with
// -naive some did not.
func (p *Program) Main() int {
	say := func(err error) { fmt.Fprintf(os.Stderr, "%s: %v\n", p.Flags.Name(), err) }
	if child.IsThis() {
		if err := p.Work(context.Background(), os.Stdout); err != nil {
			say(err)
			return exitFailed
		}
		return exitOK
	}
	naive := p.Flags.Bool("naive", false, p.Naive)
	asJSON := p.Flags.Bool("json", false, "print what became of the orders as JSON")
	if err := p.Flags.Parse(os.Args[1:]); errors.Is(err, flag.ErrHelp) {
		return exitOK
	} else if err != nil {
		return exitUsage // it has been said why
	}
	if p.Flags.NArg() > 0 {
		say(fmt.Errorf("takes no arguments but flags, and got %q; see -help", p.Flags.Arg(0)))
		return exitUsage
	}
	ctx, restore := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, restore) // a second ctrl-C gets through
	all, err := p.Run(ctx, *naive, os.Stderr)
	if err == nil {
		err = p.print(os.Stdout, all, *asJSON)
	}
	if err == nil {
		err = verdict(all, *naive)
	}
	if err != nil {
		say(err)
		return exitFailed
	}
	return exitOK
}

func verdict(all []*Trial, naive bool) error {
	wrong := 0
	for _, t := range all {
		if t.Wrong {
			wrong++
		}
	}
	if (wrong > 0) != naive {
		return fmt.Errorf("%d of %d orders went wrong", wrong, len(all))
	}
	return nil
}

func (p *Program) print(out io.Writer, all []*Trial, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(out).Encode(all)
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprint(table, "killed, or\tprocesses\t")
	for _, book := range p.Books {
		_, _ = fmt.Fprintf(table, "%s\t", book)
	}
	_, _ = fmt.Fprintln(table, "told at last\t")
	for _, t := range all {
		_, _ = fmt.Fprintf(table, "%s%s\t%d\t", t.Kill, t.Fault, t.Processes)
		for _, book := range p.Books {
			_, _ = fmt.Fprintf(table, "%d\t", t.Counts[book])
		}
		mark := ""
		if t.Wrong {
			mark = "WRONG"
		}
		_, _ = fmt.Fprintf(table, "%s\t%s\n", t.Told, mark)
	}
	return table.Flush()
}

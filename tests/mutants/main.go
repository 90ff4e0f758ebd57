// Program mutants tests the tests: it breaks the product on purpose, one way at
// a time, and expects a named test to notice. Run it from any folder of the
// workspace:
//
//	go run ./tests/mutants                # every mutant
//	go run ./tests/mutants -run 'batch'   # those whose names match
//	go run ./tests/mutants -v             # also what the tests said
//
// The mutants are listed in table.go and exist nowhere else: each is a
// replacement of text that go test's -overlay puts in the place of a source
// file, of a migration, or of what sqlc makes of a query. A mutant is killed if its test ran and failed. A
// mutant whose text is no longer there, which does not compile, or whose test
// did not run or did not end, is an error, not a kill. So is a test that fails
// without any mutant, which is tried first.
//
// All tests share one server of each kind, found or started as the tests themselves do it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/samecommit/samecommit/tests/pgstart"
	"github.com/samecommit/samecommit/tests/storeserver"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	selected := flag.String("run", "", "only mutants whose name or test matches this `regexp`")
	list := flag.Bool("list", false, "list the mutants and run nothing")
	parallel := flag.Int("j", 2, "how many mutants to try at once")
	verbose := flag.Bool("v", false, "print what the tests said")
	flag.Parse()
	pattern, err := regexp.Compile(*selected)
	if err != nil {
		return err
	}
	chosen := slices.DeleteFunc(slices.Clone(table), func(m mutant) bool {
		return !pattern.MatchString(m.name) && !pattern.MatchString(m.test)
	})
	if len(chosen) == 0 {
		return fmt.Errorf("no mutant matches %q", *selected)
	}
	root, err := workspace(ctx)
	if err != nil {
		return err
	}
	if err := check(chosen, root); err != nil {
		return err
	}
	if *list {
		for _, m := range chosen {
			fmt.Printf("%-56s %-34s %s\n", m.name, m.breaks, m.test)
		}
		return nil
	}

	server, err := pgstart.Start(ctx, func(format string, args ...any) { fmt.Printf(format+"\n", args...) })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop(context.WithoutCancel(ctx))) }()
	r := &runner{root: root, server: server, environ: server.Environ()}
	if slices.ContainsFunc(chosen, func(m mutant) bool { return m.pkg == mongoFolder }) {
		mongo, startErr := storeserver.MongoDB(ctx)
		if startErr != nil {
			return startErr
		}
		defer func() { err = errors.Join(err, mongo.Stop(context.WithoutCancel(ctx))) }()
		fmt.Println("MongoDB is", mongo.From)
		r.environ = append(r.environ, mongo.Environ()...)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(r.scratch)) }()
	if r.scratch, err = os.MkdirTemp("", "samecommit-mutants-"); err != nil {
		return err
	}

	start := time.Now()
	if err := r.baseline(ctx, chosen); err != nil {
		return err
	}
	fmt.Printf("%d tests pass without a mutant (%.0f s)\n\n", len(tests(chosen)), time.Since(start).Seconds())
	fmt.Printf("%-56s %-34s %-62s %s\n", "MUTANT", "BREAKS", "KILLED BY", "SECONDS")
	killed, survived := r.all(ctx, chosen, *parallel, *verbose)
	fmt.Printf("\n%d mutants: %d killed, %d survived, %d errors, in %.0f s\n",
		len(chosen), killed, survived, len(chosen)-killed-survived, time.Since(start).Seconds())
	if killed < len(chosen) {
		return errors.Join(errors.New("not every mutant was killed: see CONTRIBUTING.md, part \"Add a mutant\""), ctx.Err())
	}
	return nil
}

// all tries the mutants and prints what became of each.
func (r *runner) all(ctx context.Context, chosen []mutant, parallel int, verbose bool) (killed, survived int) {
	var group sync.WaitGroup
	var mu sync.Mutex
	turn := make(chan struct{}, max(parallel, 1))
	for _, m := range chosen {
		turn <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		group.Go(func() {
			defer func() { <-turn }()
			start := time.Now()
			said, err := r.kill(ctx, &m)
			mu.Lock()
			defer mu.Unlock()
			by := m.test
			switch {
			case err == nil:
				killed++
			case errors.Is(err, errSurvived):
				survived++
				by, said = "SURVIVED "+m.test, err.Error()
			default:
				by, said = "ERROR "+m.test, err.Error()
			}
			fmt.Printf("%-56s %-34s %-62s %7.1f\n", m.name, m.breaks, by, time.Since(start).Seconds())
			if verbose || err != nil {
				fmt.Println("    " + strings.ReplaceAll(strings.TrimSpace(said), "\n", "\n    "))
			}
		})
	}
	group.Wait()
	return killed, survived
}

// check refuses a table that is out of date before anything is run.
func check(mutants []mutant, root string) error {
	var problems []error
	names := make(map[string]bool)
	for _, m := range mutants {
		if names[m.name] {
			problems = append(problems, fmt.Errorf("%s: two mutants have this name", m.name))
		}
		names[m.name] = true
		if _, err := m.apply(root); err != nil {
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}

// workspace returns the folder of go.work.
func workspace(ctx context.Context) (string, error) {
	output, err := exec.CommandContext(ctx, "go", "env", "GOWORK").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOWORK: %w", err)
	}
	file := strings.TrimSpace(string(output))
	if file == "" || file == "off" {
		return "", errors.New("no go.work: run it inside the workspace")
	}
	return filepath.Dir(file), nil
}

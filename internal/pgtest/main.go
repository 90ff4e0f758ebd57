package pgtest

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"testing"
	"time"

	"github.com/samecommit/samecommit/internal/pgserver"
)

// leftoverTime is how long goroutines may take to end after the tests: pgx
// listens for 15 seconds to a connection that it closes.
const leftoverTime = 20 * time.Second

// current is the server of this test binary: one per process, because
// testing.M is. Main sets it before any test runs.
var current *host

// Main is the body of a TestMain: it runs the tests, stops the server if they
// started one, and exits. It prints which server they took to standard error.
// When all tests have passed, no goroutine of theirs may be left.
//
//	func TestMain(m *testing.M) { pgtest.Main(m) }
func Main(m *testing.M) {
	before := runtime.NumGoroutine()
	current = &host{options: &pgserver.Options{Logf: func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "pgtest: "+format+"\n", args...)
	}}}
	code := m.Run()
	err := current.stop()
	if err == nil && code == 0 {
		err = checkGoroutines(before, leftoverTime)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// checkGoroutines waits until no more goroutines run than so many, and says
// which do if that takes longer than limit. goleak, which tests/chaos uses, would
// do it too; what only tests need is no requirement of this module.
func checkGoroutines(most int, limit time.Duration) error {
	deadline := time.After(limit)
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for runtime.NumGoroutine() > most {
		select {
		case <-ticker.C:
		case <-deadline:
			var stacks bytes.Buffer
			if err := pprof.Lookup("goroutine").WriteTo(&stacks, 1); err != nil {
				return err
			}
			return fmt.Errorf("pgtest: the tests left something running: end it in the test that started it:\n%s", &stacks)
		}
	}
	return nil
}

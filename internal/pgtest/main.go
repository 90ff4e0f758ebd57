package pgtest

import (
	"fmt"
	"os"
	"testing"

	"github.com/samecommit/samecommit/internal/pgserver"
)

// current is the server of this test binary: one per process, because
// testing.M is. Main sets it before any test runs.
var current *host

// Main is the body of a TestMain: it runs the tests, stops the server if they
// started one, and exits. Nil options mean pgserver's, with its choice of
// server printed to standard error.
//
//	func TestMain(m *testing.M) { pgtest.Main(m, nil) }
func Main(m *testing.M, opts *pgserver.Options) { os.Exit(Run(m, opts)) }

// Run is Main without the exit: it returns the status to exit with.
func Run(m *testing.M, opts *pgserver.Options) int {
	if opts == nil {
		opts = &pgserver.Options{}
	}
	withLog := *opts
	if withLog.Logf == nil {
		withLog.Logf = func(format string, args ...any) {
			fmt.Fprintf(os.Stderr, "pgtest: "+format+"\n", args...)
		}
	}
	current = &host{options: &withLog}
	code := m.Run()
	if err := current.stop(); err != nil {
		fmt.Fprintf(os.Stderr, "%v\n", err)
		code = max(code, 1)
	}
	return code
}

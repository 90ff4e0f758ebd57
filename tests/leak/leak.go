// Package leak fails a package of tests that leaves goroutines behind.
package leak

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/samecommit/samecommit/internal/pgserver"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/tests/pgcontainer"
)

// limit is how long goroutines may take to end: pgx listens for 15 seconds to
// a connection that it closes.
const limit = 20 * time.Second

// Main is pgtest.Main for packages of this module, with servers in containers.
// When all tests have passed, no goroutine of theirs may be left.
func Main(m *testing.M) {
	code := pgtest.Run(m, &pgserver.Options{Container: pgcontainer.Start})
	if code == 0 {
		if err := check(limit); err != nil {
			fmt.Fprintf(os.Stderr, "the tests left something running: %v\n", err)
			code = 1
		}
	}
	os.Exit(code)
}

func check(limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		err := goleak.Find(
			// Kept by clients for the next request, and for the life of the process.
			goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"),
			goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"),
			goleak.IgnoreAnyFunction("github.com/testcontainers/testcontainers-go.(*Reaper).connect.func1"),
		)
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

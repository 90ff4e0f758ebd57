//go:build unix

package chaos_test

import (
	"testing"

	"github.com/samecommit/samecommit/internal/pgtest"
)

func TestMain(m *testing.M) {
	// These do not return in a process that is one.
	be(clientVariable, runClient)
	be(httpServerVariable, runHTTPServer)
	be(httpClientVariable, runHTTPClient)
	pgtest.Main(m)
}

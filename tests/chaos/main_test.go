//go:build unix

package chaos_test

import (
	"testing"

	"github.com/samecommit/samecommit/internal/pgtest"
)

func TestMain(m *testing.M) {
	// It does not return in a client process.
	be(clientVariable, runClient)
	pgtest.Main(m)
}

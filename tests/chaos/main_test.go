//go:build unix

package chaos_test

import (
	"testing"

	"github.com/samecommit/samecommit/internal/pgtest"
)

func TestMain(m *testing.M) {
	beClient() // does not return in a client process
	pgtest.Main(m)
}

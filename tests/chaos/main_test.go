package chaos_test

import (
	"testing"

	"github.com/samecommit/samecommit/internal/pgserver"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/tests/pgcontainer"
)

func TestMain(m *testing.M) {
	beClient() // does not return in a client process
	pgtest.Main(m, &pgserver.Options{Container: pgcontainer.Start})
}

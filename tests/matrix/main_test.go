package matrix_test

import (
	"testing"

	"github.com/samecommit/samecommit/internal/pgserver"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/tests/pgcontainer"
)

func TestMain(m *testing.M) {
	pgtest.Main(m, &pgserver.Options{Container: pgcontainer.Start})
}

package orm_test

import (
	"testing"

	"github.com/samecommit/samecommit/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

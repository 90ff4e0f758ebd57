package matrix_test

import (
	"testing"

	"github.com/samecommit/samecommit/tests/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

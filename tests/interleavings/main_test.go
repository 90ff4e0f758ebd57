// Package interleavings_test runs two sessions over one key in every order of
// their steps, and compares what comes of it with a table.
package interleavings_test

import (
	"testing"

	"github.com/samecommit/samecommit/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

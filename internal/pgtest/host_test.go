package pgtest

import (
	"testing"
	"time"
)

func TestIsLeftover(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	for name, want := range map[string]bool{
		"samecommit_test_1799996000_ab12cd34_7": true,
		"samecommit_test_1799996500_ab12cd34_7": false, // less than an hour old
		"samecommit_test_1899996000_ab12cd34_7": false, // from a clock that is ahead
		"samecommit_test_mine":                  false, // somebody's own
		"samecommit_test_1":                     false,
		"samecommit":                            false,
	} {
		if got := isLeftover(name, now); got != want {
			t.Errorf("isLeftover(%q) = %t, want %t", name, got, want)
		}
	}
}

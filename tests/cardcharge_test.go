//go:build unix

package tests_test

import (
	"os/exec"
	"testing"
)

// The example kills a process at every step between a charge elsewhere and its
// booking: there is one of each in the end, and the usual way has two charges.
func TestCardcharge(t *testing.T) {
	t.Parallel()
	const kills = 6
	program := buildExample(t, "cardcharge")
	t.Run("DoExternal", func(t *testing.T) {
		t.Parallel()
		wantOnce(t, runTrials(t, kills, exec.CommandContext(t.Context(), program)), "charges", "bookings")
	})
	t.Run("naive", func(t *testing.T) {
		t.Parallel()
		wantTwice(t, runTrials(t, kills, exec.CommandContext(t.Context(), program, "-naive")), "charges", 4)
	})
}

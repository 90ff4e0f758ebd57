//go:build unix

package tests_test

import (
	"os/exec"
	"testing"
)

// The example kills a client of an HTTP API at every step around its send: with the key in
// the client's own row there is one charge and one receipt in the end, and with a key in
// memory there are two charges where the server had been asked.
func TestDurableClient(t *testing.T) {
	t.Parallel()
	const kills = 5
	program := buildExample(t, "durableclient")
	t.Run("keys in rows", func(t *testing.T) {
		t.Parallel()
		wantOnce(t, runTrials(t, kills, exec.CommandContext(t.Context(), program)), "charges", "receipts")
	})
	t.Run("naive", func(t *testing.T) {
		t.Parallel()
		wantTwice(t, runTrials(t, kills, exec.CommandContext(t.Context(), program, "-naive")), "charges", 2)
	})
}

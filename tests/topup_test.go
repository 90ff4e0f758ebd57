//go:build unix

package tests_test

import (
	"os"
	"os/exec"
	"testing"
)

// The example kills a process at every step around a top-up elsewhere, whose key and
// answer are in another store than PostgreSQL: there is one top-up in the end, which
// whoever asks later is told of too. The usual way has two.
func TestTopup(t *testing.T) {
	t.Parallel()
	const kills = 5
	program := buildExample(t, "topup")
	topup := func(t *testing.T, store string, flags ...string) []orderTrial {
		t.Helper()
		command := exec.CommandContext(t.Context(), program, append(flags, "-store", store)...)
		command.Env = append(command.Environ(), storeEnviron(t, store)...)
		return runTrials(t, kills, command)
	}
	stores := []string{"redis", "mongodb"}
	for _, store := range stores {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			wantOnce(t, topup(t, store), "top-ups")
		})
	}
	t.Run("naive", func(t *testing.T) {
		t.Parallel()
		for _, store := range stores {
			t.Run(store, func(t *testing.T) {
				t.Parallel()
				wantTwice(t, topup(t, store, "-naive"), "top-ups", 3)
			})
		}
	})
}

// storeEnviron lets a program take the server that make test has found or started. Where
// there is none the program starts one, if it was told how or can at once; else the test is
// skipped.
func storeEnviron(t *testing.T, store string) []string {
	t.Helper()
	variable := map[string]string{"redis": "SAMECOMMIT_REDIS", "mongodb": "SAMECOMMIT_MONGODB"}[store]
	if os.Getenv(variable+"_URL") != "" {
		// Else a choice that make test was told of would start another one.
		return []string{variable + "=url"}
	}
	if os.Getenv(variable) != "" || store == "redis" && (onPath("redis-server") || onPath("valkey-server")) {
		return nil
	}
	t.Skip(variable + "_URL is not set: run this as make test does, under go run ./tests/withservers")
	return nil
}

func onPath(program string) bool {
	_, err := exec.LookPath(program)
	return err == nil
}

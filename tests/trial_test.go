//go:build unix

package tests_test

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"testing"
)

// orderTrial is what an example prints of one order.
type orderTrial struct {
	Kill, Fault   string
	Processes     int
	Killed, Wrong bool
	Counts        map[string]int
}

// runTrials runs a program that kills so many processes, and lets its provider fail in
// three ways.
func runTrials(t *testing.T, kills int, command *exec.Cmd) (all []orderTrial) {
	t.Helper()
	var stderr bytes.Buffer
	command.Args = append(command.Args, "-json")
	command.Stderr = &stderr
	output, err := command.Output()
	if err == nil {
		err = json.Unmarshal(output, &all)
	}
	if err != nil {
		t.Fatalf("%v: %s%s", err, output, stderr.Bytes())
	}
	killed, faults := 0, 0
	for _, trial := range all {
		if trial.Killed {
			killed++
		}
		if trial.Fault != "" {
			faults++
		}
	}
	if killed != kills || faults != 3 {
		t.Errorf("%d processes were killed, and the provider failed %d times; want %d and 3", killed, faults, kills)
	}
	return all
}

// wantOnceAndTwice runs an example: with keys that survive, each order is once in these books,
// and the naive way so many are more than once in the first.
func wantOnceAndTwice(t *testing.T, example string, kills, twice int, books ...string) {
	t.Helper()
	program := buildExample(t, example)
	t.Run("with keys", func(t *testing.T) {
		t.Parallel()
		wantOnce(t, runTrials(t, kills, exec.CommandContext(t.Context(), program)), books...)
	})
	t.Run("naive", func(t *testing.T) {
		t.Parallel()
		wantTwice(t, runTrials(t, kills, exec.CommandContext(t.Context(), program, "-naive")), books[0], twice)
	})
}

// wantOnce expects each order once in these books, and nowhere if it was declined.
func wantOnce(t *testing.T, all []orderTrial, books ...string) {
	t.Helper()
	declined := 0
	for _, trial := range all {
		want := 1
		if trial.Fault == "the provider declines" {
			declined++
			want = 0
		}
		for _, book := range books {
			if count, ok := trial.Counts[book]; !ok || count != want {
				t.Errorf("%+v; want %d in its %s", trial, want, book)
			}
		}
		if trial.Wrong {
			t.Errorf("%+v went wrong", trial)
		}
	}
	if declined != 1 {
		t.Errorf("%d orders were declined, want 1", declined)
	}
}

// wantTwice expects that so many orders are in the book more than once.
func wantTwice(t *testing.T, all []orderTrial, book string, want int) {
	t.Helper()
	twice := 0
	for _, trial := range all {
		if trial.Counts[book] > 1 {
			twice++
		}
	}
	if twice != want {
		t.Errorf("%d orders have two %s, want %d", twice, book, want)
	}
}

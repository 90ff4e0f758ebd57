//go:build unix

package tests_test

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"testing"
)

// cardchargeTrial is what the example prints of one order.
type cardchargeTrial struct {
	Kill, Fault                  string
	Processes, Charges, Bookings int
	Killed, Wrong                bool
}

// The example kills a process at every step between a charge elsewhere and its
// booking: there is one of each in the end, and the usual way has two charges.
func TestCardcharge(t *testing.T) {
	t.Parallel()
	program := buildExample(t, "cardcharge")
	run := func(t *testing.T, flags ...string) (all []cardchargeTrial) {
		t.Helper()
		var stderr bytes.Buffer
		command := exec.CommandContext(t.Context(), program, append(flags, "-json")...)
		command.Stderr = &stderr
		output, err := command.Output()
		if err == nil {
			err = json.Unmarshal(output, &all)
		}
		if err != nil {
			t.Fatalf("%v: %s%s", err, output, stderr.Bytes())
		}
		kills, faults := 0, 0
		for _, trial := range all {
			if trial.Killed {
				kills++
			}
			if trial.Fault != "" {
				faults++
			}
		}
		if kills != 6 || faults != 3 {
			t.Errorf("%d processes were killed, and the provider failed %d times; want 6 and 3", kills, faults)
		}
		return all
	}
	t.Run("DoExternal", func(t *testing.T) {
		t.Parallel()
		for _, trial := range run(t) {
			want := 1
			if trial.Fault == "the provider declines the card" {
				want = 0
			}
			if trial.Charges != want || trial.Bookings != want || trial.Wrong {
				t.Errorf("%+v; want %d charge and booking", trial, want)
			}
		}
	})
	t.Run("naive", func(t *testing.T) {
		t.Parallel()
		double := 0
		for _, trial := range run(t, "-naive") {
			if trial.Charges > 1 {
				double++
			}
		}
		if double != 4 {
			t.Errorf("%d orders were charged twice, want 4", double)
		}
	})
}

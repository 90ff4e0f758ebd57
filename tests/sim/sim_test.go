package sim_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var (
	seedsFlag = flag.Uint64("sim.seeds", 5000, "how many seeds to simulate")
	firstFlag = flag.Uint64("sim.first", 1, "the first of these seeds")
	seedFlag  = flag.Uint64("sim.seed", 0, "simulate this seed only and print its history")
)

// bubble runs one seed under a fake clock. It ends only when every goroutine
// has, which is I15.
func bubble(t *testing.T, seed uint64, test string, f func(t *testing.T)) {
	t.Helper()
	defer func() {
		if value := recover(); value != nil { // a deadlock, or a goroutine left behind
			t.Fatalf("seed %d: I15: %v\n%s", seed, value, replayCommand(test, seed))
		}
	}()
	synctest.Test(t, f)
}

func simulate(t *testing.T, seed uint64) (w *world) {
	t.Helper()
	bubble(t, seed, "TestSimulation", func(t *testing.T) {
		t.Helper()
		w = newWorld(t, seed)
		w.live(t.Context())
		w.check()
	})
	return w
}

// replayCommand asks for more than one run: goroutines that meet in one instant
// go on in any order, so a seed does not decide everything.
func replayCommand(test string, seed uint64) string {
	return fmt.Sprintf("replay: go test ./tests/sim -run '^%s$' -v -count=100 -failfast -sim.seed=%d", test, seed)
}

func (w *world) history() string {
	calls := slices.Clone(w.calls)
	slices.SortStableFunc(calls, func(a, b *call) int { return int(a.called - b.called) })
	var lines strings.Builder
	for _, c := range calls {
		fmt.Fprintln(&lines, c.history(w.start))
	}
	return lines.String()
}

// eachSeed runs the seeds that the flags ask for, on all processors, until one
// fails.
func eachSeed(t *testing.T, run func(t *testing.T, seed uint64)) (seeds uint64) {
	t.Helper()
	if *seedFlag != 0 {
		run(t, *seedFlag)
		return 1
	}
	var next atomic.Uint64
	t.Run("seeds", func(group *testing.T) {
		for worker := range runtime.GOMAXPROCS(0) {
			group.Run(fmt.Sprint(worker), func(t *testing.T) {
				t.Parallel()
				for i := next.Add(1) - 1; i < *seedsFlag && !group.Failed(); i = next.Add(1) - 1 {
					run(t, *firstFlag+i)
				}
			})
		}
	})
	return *seedsFlag
}

func TestSimulation(t *testing.T) {
	t.Parallel()
	var total tally
	began := time.Now()
	seeds := eachSeed(t, func(t *testing.T, seed uint64) {
		t.Helper()
		w := simulate(t, seed)
		total.add(w)
		if *seedFlag != 0 {
			t.Logf("seed %d\n%s", seed, w.history())
		}
		w.report(t, "TestSimulation")
	})
	if !t.Failed() {
		t.Log("0 invariant violations")
	}
	t.Logf("%s\n%s", time.Since(began).Round(time.Second), &total)
	total.checkCells(t, seeds >= seedsForEveryCell)
}

// report fails the test with what is wrong in the world.
func (w *world) report(t *testing.T, test string) {
	t.Helper()
	if len(w.violations) > 0 {
		t.Fatalf("seed %d:\n%s\n%s\n%s", w.seed, strings.Join(w.violations, "\n"), replayCommand(test, w.seed), w.history())
	}
}

// Two runs of a seed differ where goroutines meet in one instant of the fake
// clock, whose order the race detector shuffles on purpose. This says how often,
// and fails only where replaying would be of no use at all.
func TestSeedsReplay(t *testing.T) {
	t.Parallel()
	const seeds = 100
	same := 0
	random := rand.New(rand.NewPCG(*firstFlag, *seedsFlag))
	for range seeds {
		seed := random.Uint64()
		first, second := simulate(t, seed), simulate(t, seed)
		first.report(t, "TestSimulation")
		second.report(t, "TestSimulation")
		if first.history() == second.history() {
			same++
		}
	}
	t.Logf("%d of %d seeds had the same history twice", same, seeds)
	if same == 0 {
		t.Error("no seed replays")
	}
}

// tally adds up many worlds.
type tally struct {
	mu      sync.Mutex
	seeds   int
	calls   int
	runs    int
	effects int
	audits  int
	sweeps  int
	ghosts  int // commits that were unknown, and happened
	cells   [outcomes][faults + 1]int
}

func (sum *tally) add(w *world) {
	sum.mu.Lock()
	defer sum.mu.Unlock()
	sum.seeds++
	sum.calls += len(w.calls)
	sum.effects += len(w.effects)
	sum.audits += w.audits
	sum.sweeps += w.sweeps
	for _, c := range w.calls {
		sum.runs += c.runs
		met := false
		for fault := range faults {
			if c.faults[fault] {
				sum.cells[c.outcome][fault]++
				met = true
			}
		}
		if !met {
			sum.cells[c.outcome][faults]++
		}
	}
	for _, answer := range w.answers {
		if answer.call.outcome == unknown {
			sum.ghosts++
		}
	}
}

func (sum *tally) String() string {
	var table strings.Builder
	unknowns := 0
	fmt.Fprintf(&table, "%-15s%12s", "outcome", "none")
	for fault := range faults {
		fmt.Fprintf(&table, "%13s", fault2name[fault])
	}
	fmt.Fprintln(&table)
	for outcome := range outcomes {
		fmt.Fprintf(&table, "%-15s%12d", outcome, sum.cells[outcome][faults])
		for fault := range faults {
			fmt.Fprintf(&table, "%13d", sum.cells[outcome][fault])
		}
		fmt.Fprintln(&table)
	}
	for _, n := range sum.cells[unknown] {
		unknowns += n
	}
	fmt.Fprintf(&table, "%d seeds, %d calls, %d runs of the function, %d effects, %d audits, %d sweeps; %d ambiguous commits, of which %d had committed",
		sum.seeds, sum.calls, sum.runs, sum.effects, sum.audits, sum.sweeps, unknowns, sum.ghosts)
	return table.String()
}

// seedsForEveryCell is how many seeds fill every cell that must be filled.
const seedsForEveryCell = 5000

// cells says for every outcome which faults a call that ended so has met: must
// have been seen (+), may be (.), and cannot be (-). The first column is for
// calls that met none, the others are in the order of the faults.
var cells = [outcomes]string{
	exited:        "+++------",
	executed:      "+++-----+",
	executedFinal: "+++-----+",
	replayed:      "+++-----+",
	replayedFinal: "+++-----.",
	inProgress:    "+++-----+",
	mismatch:      "+++-----+",
	unknown:       "-++-++++.",
	overloaded:    "+..-----.",
	failed:        "+++++---.",
	cancelled:     "+++-----.",
	panicked:      "+++------",
}

// checkCells fails where the simulator does not do what it is said to do: a
// fault that never meets an outcome tests nothing.
func (sum *tally) checkCells(t *testing.T, all bool) {
	t.Helper()
	for outcome := range outcomes {
		for column, want := range cells[outcome] {
			name, fault := "no fault", int(faults)
			if column > 0 {
				fault = column - 1
				name = fault2name[fault]
			}
			switch count := sum.cells[outcome][fault]; {
			case want == '-' && count > 0:
				t.Errorf("%d calls were %s after %s, which cannot be", count, outcome, name)
			case want == '+' && count == 0 && all:
				t.Errorf("no call was %s after %s", outcome, name)
			}
		}
	}
}

//go:build unix

package idempotency_test

import (
	"context"
	"runtime"
	"runtime/debug"
	"syscall"
	"testing"
	"time"

	"github.com/samecommit/samecommit/idempotency"
)

// processorTime is what the process has used so far. Unlike the time on a clock
// it does not grow with what else the machine does.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// The end of a wait costs about the same however many others wait: colder caches
// make it up to 3 times as much for 16 times as many. A walk along the line makes
// it 12 times as much.
func TestEndOfAWaitCostsTheSameInACrowd(t *testing.T) { //nolint:paralleltest // It counts what the process uses.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	each := func(n int) time.Duration {
		runtime.GC()
		c := newCrowd(t, idempotency.Config{})
		hold(t, c, c.client, 1)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		join(ctx, c, n, forAMinute, func(idempotency.Result[int], error) {})
		for c.selects.Load() < int64(n) {
			runtime.Gosched()
		}
		before := processorTime(t)
		cancel()
		c.calls.Wait()
		used := processorTime(t) - before
		close(c.release)
		c.holder.Wait()
		return used / time.Duration(n)
	}
	small := crowdSize / 16
	few, many := each(small), each(crowdSize)
	for range 4 { // what else the process did is the least of these
		few = min(few, each(small))
	}
	many = min(many, each(crowdSize))
	t.Logf("%s each for %d calls, %s for %d", few, small, many, crowdSize)
	if many > 6*few {
		t.Errorf("the end of a wait took %s of a processor among %d calls, and %s among %d", many, crowdSize, few, small)
	}
}

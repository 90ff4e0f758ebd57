package pgtest

import (
	"runtime"
	"strings"
	"testing"
)

func TestCheckGoroutines(t *testing.T) { //nolint:paralleltest // Other tests' goroutines would be counted.
	before := runtime.NumGoroutine()
	started, stop := make(chan struct{}), make(chan struct{})
	go leftBehind(started, stop)
	<-started // before that it has no name in the stacks
	// Not before: one of an earlier test may end meanwhile.
	if err := checkGoroutines(0, 0); err == nil || !strings.Contains(err.Error(), "leftBehind") {
		t.Errorf("got %v, want the goroutine that is still running", err)
	}
	close(stop)
	if err := checkGoroutines(before, leftoverTime); err != nil {
		t.Error(err)
	}
}

func leftBehind(started, stop chan struct{}) {
	close(started)
	<-stop
}

package leak

import (
	"strings"
	"testing"
)

func TestCheck(t *testing.T) { //nolint:paralleltest // Other tests' goroutines would be found.
	stop := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		leftBehind(stop)
	}()
	if err := check(0); err == nil || !strings.Contains(err.Error(), "leftBehind") {
		t.Errorf("got %v, want the goroutine that is still running", err)
	}
	close(stop)
	<-ended
	if err := check(limit); err != nil {
		t.Error(err)
	}
}

func leftBehind(stop chan struct{}) { <-stop }

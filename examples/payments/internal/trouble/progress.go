package trouble

import (
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"
)

// counts is what the client has seen so far.
type counts struct {
	attempts   atomic.Int64
	executed   atomic.Int64 // acknowledged, by the request that did the work
	replayed   atomic.Int64 // acknowledged with the recorded answer
	inProgress atomic.Int64 // told that a duplicate is running
	failed     atomic.Int64 // no answer, or 5xx
	killed     atomic.Int64 // database connections
	cut        atomic.Int64 // replies to COMMIT
}

func (c *counts) acknowledged() int64 { return c.executed.Load() + c.replayed.Load() }

func (c *counts) String() string {
	return fmt.Sprintf("attempts %d  executed %d  replayed %d  in progress %d  failed %d  killed %d  cut %d",
		c.attempts.Load(), c.executed.Load(), c.replayed.Load(), c.inProgress.Load(), c.failed.Load(), c.killed.Load(), c.cut.Load())
}

// progress shows how far something is while it runs.
type progress struct {
	stopping chan struct{}
	stopped  chan struct{}
}

func startProgress(w io.Writer, of fmt.Stringer) *progress {
	p := &progress{stopping: make(chan struct{}), stopped: make(chan struct{})}
	// One line that is drawn again is for eyes only; a file gets whole lines,
	// and fewer of them.
	every, format := time.Second, "%s\n"
	terminal := isTerminal(w)
	if terminal {
		every, format = 100*time.Millisecond, "\r\x1b[K%s"
	}
	go func() {
		defer close(p.stopped)
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for running := true; running; {
			select {
			case <-ticker.C:
			case <-p.stopping:
				running = false
			}
			_, _ = fmt.Fprintf(w, format, of)
		}
		if terminal {
			_, _ = fmt.Fprintln(w)
		}
	}()
	return p
}

// stop shows the last counts.
func (p *progress) stop() {
	close(p.stopping)
	<-p.stopped
}

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

package main

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// load is workers that repeat an operation.
type load struct {
	op      operation
	newID   func() string
	workers int
	// backends are the server's processes that do it.
	backends *backends
	// done counts operations, those outside of what was measured too.
	done atomic.Int64
}

// slot is what was measured while a load ran.
type slot struct {
	elapsed time.Duration
	// latencies are those of the operations that ended in this time, ascending.
	latencies []time.Duration
	// server and client are the processor time of one operation; zero where it
	// is not known.
	server, client time.Duration
}

// run starts the workers, lets them warm up, measures them while during runs and
// until one operation has ended, and stops them. It waits for every operation
// that was begun.
func (l *load) run(ctx context.Context, warmUp time.Duration, during func(ctx context.Context) error) (*slot, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var measured, stopped atomic.Bool
	latencies := make([][]time.Duration, l.workers)
	var once sync.Once
	counted := make(chan struct{})
	var group sync.WaitGroup
	for i := range l.workers {
		group.Go(func() {
			for !stopped.Load() {
				id := l.newID()
				start := time.Now()
				if err := l.op(ctx, id); err != nil {
					cancel(err)
					return
				}
				l.done.Add(1)
				if measured.Load() {
					latencies[i] = append(latencies[i], time.Since(start))
					once.Do(func() { close(counted) })
				}
			}
		})
	}
	s := &slot{}
	err := pause(ctx, warmUp)
	if err == nil {
		start, server, client := time.Now(), l.backends.processorTime(), ownTime()
		measured.Store(true)
		if err = during(ctx); err == nil {
			select {
			case <-counted: // at least one operation, on however slow a machine
			case <-ctx.Done():
			}
		}
		measured.Store(false)
		s.elapsed, s.server, s.client = time.Since(start), l.backends.processorTime()-server, ownTime()-client
	}
	stopped.Store(true)
	group.Wait()
	if err := errors.Join(err, context.Cause(ctx)); err != nil {
		return nil, err
	}
	s.latencies = slices.Concat(latencies...)
	slices.Sort(s.latencies)
	s.server /= time.Duration(len(s.latencies))
	s.client /= time.Duration(len(s.latencies))
	return s, nil
}

// pause waits, and fails where ctx ends first.
func pause(ctx context.Context, duration time.Duration) error {
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// rate is operations a second.
func (s *slot) rate() float64 { return float64(len(s.latencies)) / s.elapsed.Seconds() }

// latency is a quantile of the latencies.
func (s *slot) latency(q float64) time.Duration {
	return s.latencies[int(float64(len(s.latencies)-1)*q)]
}

package idempotency_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

// crowdSize is how many calls wait for one key.
var crowdSize = 40_000

// crowd is many calls for one key, which an operation holds.
type crowd struct {
	client *idempotency.Client[*memstore.Tx]
	store  *watchedStore
	// release lets the operation return.
	release chan struct{}
	// selects is how often a call went to sleep in line, or in a pause of its own.
	selects atomic.Int64
	// calls are those that wait, holder is the one that they wait for.
	calls, holder sync.WaitGroup
}

// crowdContext counts how often somebody is about to wait for its end.
type crowdContext struct {
	context.Context
	crowd *crowd
}

func (c *crowdContext) Done() <-chan struct{} {
	c.crowd.selects.Add(1)
	return c.Context.Done()
}

func newCrowd(tb testing.TB, config idempotency.Config) *crowd {
	tb.Helper()
	c := &crowd{store: &watchedStore{Store: memstore.New[*memstore.Tx](nil)}, release: make(chan struct{})}
	c.client = c.anotherClient(tb, config)
	return c
}

func (c *crowd) anotherClient(tb testing.TB, config idempotency.Config) *idempotency.Client[*memstore.Tx] {
	tb.Helper()
	config.MaxWaiters = 100_000
	client, err := idempotency.NewClient(c.store, &config)
	if err != nil {
		tb.Fatal(err)
	}
	return client
}

// hold returns once an operation of the client, which ends with value, holds the
// key.
func hold[T any](tb testing.TB, c *crowd, client *idempotency.Client[*memstore.Tx], value T) {
	tb.Helper()
	held := make(chan struct{})
	c.holder.Go(func() {
		_, err := idempotency.Do(tb.Context(), client, waiting(time.Minute), func(context.Context, *memstore.Tx) (T, error) {
			close(held)
			<-c.release
			return value, nil
		})
		if err != nil {
			tb.Error(err)
		}
	})
	<-held
}

// join adds n calls, which give what they are told to told.
func join[T any](ctx context.Context, c *crowd, n int, wait func() time.Duration, told func(idempotency.Result[T], error)) {
	ctx = &crowdContext{ctx, c} //nolint:contextcheck // It is the same one, watched.
	for range n {
		c.calls.Go(func() {
			told(idempotency.Do(ctx, c.client, waiting(wait()), func(context.Context, *memstore.Tx) (value T, err error) {
				return value, errors.New("ran beside the operation that holds the key")
			}))
		})
	}
}

func forAMinute() time.Duration { return time.Minute }

// Waits that end together end on time, with what was seen already: nobody asks
// the store again, and nobody is woken for another's end.
func TestWaitsEndingTogether(t *testing.T) {
	t.Parallel()
	const latency = time.Millisecond // of the store
	for name, wait := range map[string]time.Duration{"in time": 5 * time.Second, "cancelled": time.Minute} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := newCrowd(t, idempotency.Config{})
				c.store.latency = latency
				hold(t, c, c.client, 1)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				deadline := time.Now().Add(5 * time.Second)
				join(ctx, c, crowdSize, func() time.Duration { return wait }, func(_ idempotency.Result[int], err error) {
					if !errors.Is(err, idempotency.ErrInProgress) || errors.Is(err, context.Canceled) != (name == "cancelled") {
						t.Error(err)
					}
					if late := time.Since(deadline); late > latency {
						t.Errorf("a wait ended %s late", late)
					}
				})
				synctest.Wait()
				selects := c.selects.Load()
				time.Sleep(time.Until(deadline) - time.Nanosecond)
				asked := c.store.asked.Load()
				if woken := c.selects.Load() - selects; woken > 100 { // the one that watches the store
					t.Errorf("calls that wait were woken %d times", woken)
				}
				selects = c.selects.Load()
				time.Sleep(time.Nanosecond)
				if name == "cancelled" {
					cancel()
				}
				c.calls.Wait()
				if asked = c.store.asked.Load() - asked; asked > 2 {
					t.Errorf("the store was asked %d times for waits that ended", asked)
				}
				if woken := c.selects.Load() - selects; woken > 10 {
					t.Errorf("%d calls were woken for the end of another's wait", woken)
				}
				close(c.release)
				c.holder.Wait()
			})
		})
	}
}

// sizeCodec makes an answer of so many bytes of an int, and the int of the
// answer, and copies nothing.
type sizeCodec struct{}

func (sizeCodec) Name() string                      { return "size" }
func (sizeCodec) Marshal(value any) ([]byte, error) { return make([]byte, value.(int)), nil }

func (sizeCodec) Unmarshal(data []byte, target any) error {
	*target.(*int) = len(data)
	return nil
}

// Calls that wait share the bytes of their answer: 2,000 of 1 MiB are not 4 GB.
func TestSharedAnswerIsNotCopied(t *testing.T) { //nolint:paralleltest // It counts what the process allocates.
	const waiters, size = 2000, 1 << 20
	c := newCrowd(t, idempotency.Config{Codec: sizeCodec{}})
	hold(t, c, c.client, size)
	results := make(chan idempotency.Result[int], waiters)
	join(t.Context(), c, waiters, forAMinute, func(result idempotency.Result[int], err error) {
		if err != nil || result.Value != size {
			t.Errorf("%d, %v; want a replay of %d bytes", result.Value, err, size)
		}
		results <- result // keeps its record
	})
	for c.selects.Load() < waiters {
		runtime.Gosched()
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	close(c.release)
	c.calls.Wait()
	runtime.ReadMemStats(&after)
	allocated := after.TotalAlloc - before.TotalAlloc
	t.Logf("%d calls allocated %d KiB", waiters, allocated>>10)
	if allocated > 64*size {
		t.Errorf("%d calls allocated %d MiB to get one answer of 1 MiB", waiters, allocated>>20)
	}
	c.holder.Wait()
}

// slowCodec is JSON that decodes only when it is told to.
type slowCodec struct {
	decoding atomic.Int32
	release  chan struct{} // nil where it is not slow
}

func (*slowCodec) Name() string                      { return "slow" }
func (*slowCodec) Marshal(value any) ([]byte, error) { return json.Marshal(value) }

func (c *slowCodec) Unmarshal(data []byte, target any) error {
	if c.release != nil {
		c.decoding.Add(1)
		defer c.decoding.Add(-1)
		<-c.release
	}
	return json.Unmarshal(data, target)
}

// What calls make of an answer that they share has a limit in bytes.
func TestSharedAnswersHaveABudget(t *testing.T) {
	t.Parallel()
	const calls, size = 10, 100
	for name, test := range map[string]struct {
		budget, atOnce int
	}{
		"room for two":  {2*size + size/2, 2},
		"less than one": {1, 1},
		"the default":   {0, calls - 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, cancelled := range []int{0, calls - 1 - test.atOnce} {
				synctest.Test(t, func(t *testing.T) {
					codec := &slowCodec{release: make(chan struct{})}
					c := newCrowd(t, idempotency.Config{MaxSharedBytes: test.budget, Codec: codec})
					hold(t, c, c.anotherClient(t, idempotency.Config{Codec: &slowCodec{}}), strings.Repeat("x", size-len(`""`)))
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					var gaveUp atomic.Int32
					join(ctx, c, calls, forAMinute, func(result idempotency.Result[string], err error) {
						switch {
						case errors.Is(err, context.Canceled):
							gaveUp.Add(1)
						case err != nil || !result.Replayed || len(result.Record.Response.Body) != size:
							t.Errorf("%+v, %v; want a replay", result, err)
						}
					})
					synctest.Wait()
					close(c.release)
					time.Sleep(time.Second) // of the bubble: the watching call finds the answer
					// That one has its answer from the store, and shares nothing.
					for left := calls; left > 0; left-- {
						synctest.Wait()
						want := min(left, 1+test.atOnce)
						if decoding := int(codec.decoding.Load()); decoding > want || left == calls && decoding != want {
							t.Fatalf("%d calls decode the answer at once; want %d", decoding, want)
						}
						if left == calls && cancelled > 0 {
							cancel()
							synctest.Wait()
							left -= cancelled
						}
						codec.release <- struct{}{}
					}
					c.calls.Wait()
					c.holder.Wait()
					if int(gaveUp.Load()) != cancelled {
						t.Errorf("%d calls gave up; want the %d for which there was no room", gaveUp.Load(), cancelled)
					}
				})
			}
		})
	}
}

// BenchmarkSharedAnswer is how much the heap grows while 2,000 calls get one
// answer of 1 MiB, which their callers drop, with Config.MaxSharedBytes and
// without a limit.
//
//	go test -run '^$' -bench SharedAnswer -benchtime 3x ./idempotency
func BenchmarkSharedAnswer(b *testing.B) {
	const size = 1 << 20
	for name, budget := range map[string]int{"default": 0, "no limit": math.MaxInt} {
		b.Run("bytes/"+name, func(b *testing.B) { benchmarkSharedAnswer(b, budget, make([]byte, size)) })
		b.Run("string/"+name, func(b *testing.B) { benchmarkSharedAnswer(b, budget, strings.Repeat("x", size-len(`""`))) })
	}
}

func benchmarkSharedAnswer[T any](b *testing.B, budget int, value T) {
	b.Helper()
	const waiters = 2000
	var most uint64
	for b.Loop() {
		c := newCrowd(b, idempotency.Config{MaxSharedBytes: budget})
		hold(b, c, c.client, value)
		join(b.Context(), c, waiters, forAMinute, func(_ idempotency.Result[T], err error) {
			if err != nil {
				b.Error(err)
			}
		})
		for c.selects.Load() < waiters {
			time.Sleep(time.Millisecond)
		}
		runtime.GC()
		var before, now runtime.MemStats
		runtime.ReadMemStats(&before)
		ended := make(chan struct{})
		go func() {
			c.calls.Wait()
			close(ended)
		}()
		close(c.release)
		for got := false; !got; {
			select {
			case <-ended:
				got = true
			case <-time.After(time.Millisecond):
			}
			runtime.ReadMemStats(&now)
			if now.HeapAlloc > before.HeapAlloc {
				most = max(most, now.HeapAlloc-before.HeapAlloc)
			}
		}
		c.holder.Wait()
	}
	b.ReportMetric(float64(most>>20), "peak-MiB")
}

// BenchmarkWaitsEndingTogether is how long after the end of their waits the last
// of n calls for one key returns, and how long a call for another key takes at
// worst meanwhile.
//
//	go test -run '^$' -bench WaitsEndingTogether -benchtime 3x ./idempotency
func BenchmarkWaitsEndingTogether(b *testing.B) {
	for _, end := range []string{"in time", "cancelled", "answered"} {
		for _, n := range []int{1_000, 10_000, 40_000} {
			b.Run(fmt.Sprintf("%s/%d", end, n), func(b *testing.B) {
				var late, other []float64
				for b.Loop() {
					last, worst := endTogether(b, end, n)
					late = append(late, float64(last.Microseconds())/1000)
					other = append(other, float64(worst.Microseconds())/1000)
				}
				slices.Sort(late)
				slices.Sort(other)
				b.ReportMetric(late[len(late)/2], "late-ms")
				b.ReportMetric(other[len(other)/2], "other-ms")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

func endTogether(b *testing.B, end string, n int) (late, other time.Duration) {
	b.Helper()
	c := newCrowd(b, idempotency.Config{})
	hold(b, c, c.client, 1)
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	deadline := time.Now().Add(time.Second + time.Duration(n)*200*time.Microsecond)
	wait := forAMinute
	if end == "in time" {
		wait = func() time.Duration { return time.Until(deadline) }
	}
	join(ctx, c, n, wait, func(idempotency.Result[int], error) {})
	for c.selects.Load() < int64(n) {
		time.Sleep(time.Millisecond)
	}
	if time.Now().After(deadline) {
		b.Fatal("the machine is too slow: the first waits ended before the last had begun")
	}
	stop := make(chan struct{})
	var others sync.WaitGroup
	others.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Microsecond):
			}
			params := waiting(time.Minute)
			params.Key.ID = fmt.Sprint("other ", i)
			began := time.Now()
			if _, err := idempotency.Do(b.Context(), c.client, params, func(context.Context, *memstore.Tx) (int, error) { return 2, nil }); err != nil {
				b.Error(err)
			}
			other = max(other, time.Since(began))
		}
	})
	time.Sleep(time.Until(deadline))
	ended := time.Now()
	switch end {
	case "cancelled":
		cancel()
	case "answered":
		close(c.release)
	}
	c.calls.Wait()
	late = time.Since(ended)
	close(stop)
	others.Wait()
	if end != "answered" {
		close(c.release)
	}
	c.holder.Wait()
	return late, other
}

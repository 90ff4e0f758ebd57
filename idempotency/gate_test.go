package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

// watchedStore counts what its store is asked.
type watchedStore struct {
	*memstore.Store[*memstore.Tx]
	asked, asking, most atomic.Int32
	// silent lets Run return only when its context ends, like a database that
	// does not answer.
	silent atomic.Bool
	// replyAfter is how long a reply is on its way, in nanoseconds; latency is that
	// of a reply that a key is in progress.
	replyAfter atomic.Int64
	latency    time.Duration
}

func (s *watchedStore) Run(ctx context.Context, params *idempotency.BeginParams, fn func(context.Context, *memstore.Tx) (idempotency.Answer, error)) (*idempotency.Outcome, error) {
	s.asked.Add(1)
	now := s.asking.Add(1)
	defer s.asking.Add(-1)
	for most := s.most.Load(); now > most && !s.most.CompareAndSwap(most, now); most = s.most.Load() {
	}
	if s.silent.Load() {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	late := time.Duration(s.replyAfter.Load())
	outcome, err := s.Store.Run(ctx, params, fn)
	if err == nil && outcome.State == idempotency.InProgress {
		late += s.latency
	}
	if late > 0 {
		time.Sleep(late)
	}
	return outcome, err
}

// gateBench is a client, the store that it asks, and an operation that runs
// until it is told to return.
type gateBench struct {
	client  *idempotency.Client[*memstore.Tx]
	store   *watchedStore
	runs    atomic.Int32
	release chan error
}

func newGateBench(t *testing.T, config *idempotency.Config) *gateBench {
	t.Helper()
	b := &gateBench{store: &watchedStore{Store: memstore.New[*memstore.Tx](nil)}, release: make(chan error)}
	b.client = b.anotherProcess(t, config)
	return b
}

// anotherProcess returns a client that shares nothing with the first but the
// store.
func (b *gateBench) anotherProcess(t *testing.T, config *idempotency.Config) *idempotency.Client[*memstore.Tx] {
	t.Helper()
	client, err := idempotency.NewClient(b.store, config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func (b *gateBench) do(ctx context.Context, client *idempotency.Client[*memstore.Tx], params idempotency.Params) (idempotency.Result[[]byte], error) {
	return idempotency.Do(ctx, client, params, func(context.Context, *memstore.Tx) ([]byte, error) {
		run := b.runs.Add(1)
		return fmt.Appendf(nil, "run %d", run), <-b.release
	})
}

type doResult struct {
	idempotency.Result[[]byte]
	err error
}

// start calls Do in a goroutine of its own.
func (b *gateBench) start(ctx context.Context, client *idempotency.Client[*memstore.Tx], params idempotency.Params) <-chan doResult {
	done := make(chan doResult, 1)
	go func() {
		result, err := b.do(ctx, client, params)
		done <- doResult{result, err}
	}()
	return done
}

func waiting(wait time.Duration) idempotency.Params {
	params := testParams("k")
	params.Wait = wait
	return params
}

func TestDuplicatesOfOneProcessShareOneAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newGateBench(t, nil)
		first := b.start(t.Context(), b.client, waiting(time.Minute))
		synctest.Wait()
		duplicates := make([]<-chan doResult, 1000)
		for i := range duplicates {
			duplicates[i] = b.start(t.Context(), b.client, waiting(time.Minute))
		}
		time.Sleep(10 * time.Second) // the bubble's clock
		if most := b.store.most.Load(); most != 2 {
			t.Errorf("%d calls asked the store at once; want 2, the one that runs and the one that watches", most)
		}
		if asked := b.store.asked.Load(); asked > 100 {
			t.Errorf("the store was asked %d times in 10 s", asked)
		}
		asked := b.store.asked.Load()
		released := time.Now()
		b.release <- nil
		ran := <-first
		if ran.err != nil || ran.Replayed {
			t.Errorf("first: %+v; want a run", ran)
		}
		// What is a caller's own does not reach another.
		scribble := func(result doResult) {
			result.Value[0] = 'X'
			result.Record.Response.Type = "X"
			result.Record.Attempt = 0
		}
		ran.Record.Response.Body[0] = 'X'
		scribble(ran)
		for _, duplicate := range duplicates {
			result := <-duplicate
			if result.err != nil || !result.Replayed || string(result.Value) != "run 1" {
				t.Errorf("duplicate: %+v; want a replay of run 1", result)
				continue
			}
			if record := result.Record; record.Attempt != 1 || record.Response.Type != idempotency.TypeBytes || string(record.Response.Body) != "run 1" {
				t.Errorf("a duplicate has the record %+v", record)
			}
			scribble(result)
		}
		if again := b.store.asked.Load(); again != asked || time.Since(released) != 0 || b.runs.Load() != 1 {
			t.Errorf("%d more questions, %s, %d runs; want the answer shared at once", again-asked, time.Since(released), b.runs.Load())
		}
	})
}

func TestWaitEndsInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newGateBench(t, nil)
		first := b.start(t.Context(), b.client, waiting(time.Minute))
		synctest.Wait()
		watcher := b.start(t.Context(), b.client, waiting(time.Minute))
		synctest.Wait()
		start := time.Now()
		duplicates := make([]<-chan doResult, 1000)
		for i := range duplicates {
			duplicates[i] = b.start(t.Context(), b.client, waiting(0)) // Config's default
		}
		for _, duplicate := range duplicates {
			result := <-duplicate
			inProgress, ok := errors.AsType[*idempotency.InProgressError](result.err)
			if !ok || inProgress.RetryAfter <= 0 || inProgress.Err != nil {
				t.Fatalf("got %v; want an InProgressError with advice", result.err)
			}
		}
		if waited := time.Since(start); waited != idempotency.DefaultWait {
			t.Errorf("waited %s; want %s", waited, idempotency.DefaultWait)
		}
		if asked := b.store.asked.Load(); asked > 50 {
			t.Errorf("the store was asked %d times for 1,000 duplicates", asked)
		}
		b.release <- nil
		<-first
		<-watcher
	})
}

// The wait of a call that comes late must end with what is true then, and not
// with what was seen before it came.
func TestInProgressIsNoOlderThanTheCall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newGateBench(t, nil)
		holder := b.start(t.Context(), b.anotherProcess(t, nil), waiting(time.Minute))
		synctest.Wait()
		watcher := b.start(t.Context(), b.client, waiting(time.Minute))
		// Its pause is 250 ms long by now, and has just begun.
		time.Sleep(5 * time.Second)
		for before := b.store.asked.Load(); b.store.asked.Load() == before; {
			time.Sleep(time.Millisecond)
		}
		b.release <- nil
		if result := <-holder; result.err != nil {
			t.Fatal(result.err)
		}
		came := time.Now()
		late, err := b.do(t.Context(), b.client, waiting(time.Millisecond))
		if err != nil || !late.Replayed {
			t.Errorf("%+v, %v; want a replay: the answer was there before the call", late, err)
		}
		if waited := time.Since(came); waited != time.Millisecond {
			t.Errorf("a wait of 1 ms took %s", waited)
		}
		late, err = b.do(t.Context(), b.client, waiting(idempotency.NoWait))
		if err != nil || !late.Replayed {
			t.Errorf("NoWait: %+v, %v; want a replay", late, err)
		}
		if result := <-watcher; result.err != nil || !result.Replayed {
			t.Errorf("watcher: %+v; want a replay", result)
		}
	})
}

// A look that is too old for a call whose wait has ended is followed by another
// at once: the call does not have the time of a pause.
func TestPauseIsNotAtTheCostOfAWaitThatHasEnded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newGateBench(t, nil)
		holder := b.start(t.Context(), b.anotherProcess(t, nil), waiting(time.Minute))
		synctest.Wait()
		b.store.replyAfter.Store(int64(5 * time.Second))
		watcher := b.start(t.Context(), b.client, waiting(time.Minute))
		time.Sleep(time.Second)
		b.store.replyAfter.Store(0)
		came := time.Now()
		late := b.start(t.Context(), b.client, waiting(3500*time.Millisecond))
		if result := <-late; !errors.Is(result.err, idempotency.ErrInProgress) {
			t.Errorf("%+v; want ErrInProgress", result)
		}
		if waited := time.Since(came); waited != 4*time.Second {
			t.Errorf("waited %s; want 4s, when the look of the watcher was back", waited)
		}
		b.release <- nil
		<-holder
		<-watcher
	})
}

func TestNextInLineRunsWhenTheKeyIsFreed(t *testing.T) {
	t.Parallel()
	failure := errors.New("failure")
	for name, end := range map[string]func(){
		"error":          nil,
		"panic":          func() { panic("of the test") },
		"runtime.Goexit": runtime.Goexit,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newGateBench(t, nil)
				var first sync.WaitGroup
				first.Go(func() {
					defer func() { _ = recover() }()
					_, err := idempotency.Do(t.Context(), b.client, waiting(time.Minute), func(context.Context, *memstore.Tx) ([]byte, error) {
						if err := <-b.release; err != nil {
							t.Error(err)
						}
						if end != nil {
							end()
						}
						return nil, failure
					})
					if !errors.Is(err, failure) {
						t.Errorf("got %v, want the operation's own error", err)
					}
				})
				synctest.Wait()
				duplicates := []<-chan doResult{b.start(t.Context(), b.client, waiting(time.Minute)), b.start(t.Context(), b.client, waiting(time.Minute))}
				time.Sleep(10 * time.Second)
				freed := time.Now()
				b.release <- nil
				first.Wait()
				synctest.Wait() // one of the duplicates runs now
				b.release <- nil
				replays := 0
				for _, duplicate := range duplicates {
					result := <-duplicate
					if result.err != nil {
						t.Error(result.err)
					}
					if result.Replayed {
						replays++
					}
				}
				if replays != 1 || b.runs.Load() != 1 || time.Since(freed) != 0 {
					t.Errorf("%d replays, %d runs, %s later; want 1 and 1 at once", replays, b.runs.Load(), time.Since(freed))
				}
			})
		})
	}
}

func TestTurnsAreInTheOrderOfTheCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newGateBench(t, nil)
		var ran []int
		var calls sync.WaitGroup
		for i := range 20 {
			calls.Go(func() {
				_, err := idempotency.Do(t.Context(), b.client, waiting(time.Minute), func(context.Context, *memstore.Tx) (int, error) {
					ran = append(ran, i) // one at a time
					return 0, <-b.release
				})
				if err == nil {
					t.Error("the operation failed and the call did not")
				}
			})
			synctest.Wait()
		}
		for range 20 {
			b.release <- errors.New("failure")
			synctest.Wait()
		}
		calls.Wait()
		if !slices.IsSorted(ran) || len(ran) != 20 {
			t.Errorf("calls got their turn in the order %d", ran)
		}
	})
}

// What makes the call that watches ask again can happen while the reply to its
// last question is under way.
func TestReasonToAskAgainIsNotLost(t *testing.T) {
	t.Parallel()
	const latency = 10 * time.Millisecond
	// asking returns when a question has just been sent, after pauses have become
	// as long as they get.
	asking := func(b *gateBench) {
		time.Sleep(5 * time.Second)
		for before := b.store.asked.Load(); b.store.asked.Load() == before; {
			time.Sleep(time.Millisecond)
		}
	}
	t.Run("the key is freed", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := newGateBench(t, nil)
			b.store.latency = latency
			failure := errors.New("failure")
			first := b.start(t.Context(), b.client, waiting(time.Minute))
			synctest.Wait()
			watcher := b.start(t.Context(), b.client, waiting(time.Minute))
			asking(b)
			freed := time.Now()
			b.release <- failure
			if err := (<-first).err; !errors.Is(err, failure) {
				t.Error(err)
			}
			b.release <- nil // the watcher runs now
			if result := <-watcher; result.err != nil || result.Replayed {
				t.Errorf("%+v; want a run", result)
			}
			if waited := time.Since(freed); waited > latency {
				t.Errorf("a free key was claimed after %s", waited)
			}
		})
	})
	t.Run("a wait is over", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := newGateBench(t, nil)
			b.store.latency = latency
			first := b.start(t.Context(), b.client, waiting(time.Minute))
			synctest.Wait()
			watcher := b.start(t.Context(), b.client, waiting(time.Minute))
			asking(b)
			came := time.Now()
			_, err := b.do(t.Context(), b.client, waiting(time.Millisecond))
			if !errors.Is(err, idempotency.ErrInProgress) {
				t.Errorf("got %v; want ErrInProgress", err)
			}
			if waited := time.Since(came); waited > 2*latency {
				t.Errorf("a wait of 1 ms took %s; want the rest of one question and another", waited)
			}
			b.release <- nil
			<-first
			<-watcher
		})
	})
}

func TestWaitingEndsWithTheContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newGateBench(t, nil)
		first := b.start(t.Context(), b.client, waiting(time.Minute))
		synctest.Wait()
		watcher := b.start(t.Context(), b.client, waiting(time.Minute))
		defer func() { <-watcher }()
		time.Sleep(time.Millisecond)
		for range 2 { // in line behind it
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			defer func(duplicate <-chan doResult) {
				err := (<-duplicate).err
				inProgress, ok := errors.AsType[*idempotency.InProgressError](err)
				if !ok || !errors.Is(err, context.DeadlineExceeded) || inProgress.RetryAfter <= 0 {
					t.Errorf("got %v; want ErrInProgress, and that the context has ended", err)
				}
			}(b.start(ctx, b.client, waiting(time.Minute)))
		}
		time.Sleep(2 * time.Second)
		b.release <- nil
		if result := <-first; result.err != nil {
			t.Error(result.err)
		}
	})
}

func TestMoreWaitersThanAllowed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newGateBench(t, &idempotency.Config{MaxWaiters: 2})
		var calls []<-chan doResult
		for range 4 { // one runs, one watches the store, two wait
			calls = append(calls, b.start(t.Context(), b.client, waiting(time.Minute)))
			synctest.Wait()
		}
		_, err := b.do(t.Context(), b.client, waiting(time.Minute))
		keyErr, ok := errors.AsType[*idempotency.KeyError](err)
		if !ok || !errors.Is(err, idempotency.ErrOverloaded) || keyErr.Key != testParams("k").Key {
			t.Errorf("got %v; want ErrOverloaded with the key", err)
		}
		if errors.Is(err, idempotency.ErrInProgress) {
			t.Errorf("%v says that the key is in progress, which nobody has looked at", err)
		}
		// Another key that nobody waits for is not concerned.
		other, err := idempotency.Do(t.Context(), b.client, testParams("other"), func(context.Context, *memstore.Tx) (int, error) { return 1, nil })
		if err != nil || other.Value != 1 {
			t.Errorf("another key: %+v, %v", other, err)
		}
		b.release <- nil
		for _, call := range calls {
			if result := <-call; result.err != nil {
				t.Error(result.err)
			}
		}
		// Those who waited have left.
		again := waiting(time.Minute)
		again.Key.ID = "again"
		calls = nil
		for range 4 {
			calls = append(calls, b.start(t.Context(), b.client, again))
			synctest.Wait()
		}
		b.release <- nil
		for _, call := range calls {
			if result := <-call; result.err != nil {
				t.Error(result.err)
			}
		}
	})
}

func TestStoreThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newGateBench(t, &idempotency.Config{MaxWaiters: 1})
		b.store.silent.Store(true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		first := b.start(ctx, b.client, waiting(0))
		synctest.Wait()
		for range 10 {
			_, err := b.do(t.Context(), b.client, waiting(2*time.Second))
			if !errors.Is(err, idempotency.ErrOverloaded) || errors.Is(err, idempotency.ErrInProgress) {
				t.Errorf("got %v; want ErrOverloaded, which says nothing of the key", err)
			}
		}
		if each := time.Since(start) / 10; each < 2*time.Second || each > 5*time.Second {
			t.Errorf("each call with a wait of 2 s took %s", each)
		}
		if most := b.store.most.Load(); most != 1 {
			t.Errorf("%d calls asked the silent store at once", most)
		}
		if err := (<-first).err; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v; want what the store returned", err)
		}
	})
}

func TestSharedAnswerIsForTheSameRequest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newGateBench(t, nil)
		first := b.start(t.Context(), b.client, waiting(time.Minute))
		synctest.Wait()
		same := b.start(t.Context(), b.client, waiting(time.Minute))
		synctest.Wait()
		other := waiting(time.Minute)
		other.Fingerprint = idempotency.FingerprintOf("another request")
		mismatch := b.start(t.Context(), b.client, other)
		synctest.Wait()
		b.release <- nil
		<-first
		if result := <-same; result.err != nil {
			t.Error(result.err)
		}
		if result := <-mismatch; !errors.Is(result.err, idempotency.ErrFingerprintMismatch) || result.Value != nil {
			t.Errorf("%+v; want ErrFingerprintMismatch and no answer", result)
		}
	})
}

// What was true for those who waited then is not for those who come later.
func TestSharedAnswerIsNotKept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newGateBench(t, nil)
		for _, want := range []string{"run 1", "run 2"} {
			first := b.start(t.Context(), b.client, waiting(time.Minute))
			synctest.Wait()
			watcher := b.start(t.Context(), b.client, waiting(time.Minute))
			synctest.Wait()
			duplicate := b.start(t.Context(), b.client, waiting(time.Minute))
			synctest.Wait()
			b.release <- nil
			for _, call := range []<-chan doResult{first, watcher, duplicate} {
				if result := <-call; result.err != nil || string(result.Value) != want {
					t.Errorf("%q, %v; want %q", result.Value, result.err, want)
				}
			}
			time.Sleep(idempotency.DefaultTTL) // the bubble's clock
		}
	})
}

// Distinct keys have nothing to do with each other.
func TestGateIsPerKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newGateBench(t, nil)
		var calls []<-chan doResult
		for i := range 100 {
			params := waiting(time.Minute)
			params.Key.ID = fmt.Sprint("key ", i)
			calls = append(calls, b.start(t.Context(), b.client, params))
		}
		synctest.Wait()
		if running := b.runs.Load(); running != 100 {
			t.Errorf("%d of 100 keys run at once", running)
		}
		for range calls {
			b.release <- nil
		}
		for _, call := range calls {
			if result := <-call; result.err != nil || result.Replayed {
				t.Errorf("%+v; want a run", result)
			}
		}
	})
}

// An answer that was on its way for long may have expired before a call came
// that would share it.
func TestSharedAnswerIsNoOlderThanTheCall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newGateBench(t, nil)
		short := waiting(time.Minute)
		short.TTL = 2 * time.Second
		first := b.start(t.Context(), b.client, short)
		b.release <- nil
		if result := <-first; result.err != nil {
			t.Fatal(result.err)
		}
		b.store.replyAfter.Store(int64(10 * time.Second))
		replay := b.start(t.Context(), b.client, waiting(time.Minute))
		time.Sleep(short.TTL)
		b.store.replyAfter.Store(0)
		for range 2 { // the second shares what the first finds out
			late := waiting(time.Minute)
			late.Fingerprint = idempotency.FingerprintOf("another request")
			result := b.start(t.Context(), b.client, late)
			defer func() {
				if result := <-result; result.err != nil || string(result.Value) != "run 2" {
					t.Errorf("%+v; want a run: the answer had expired before the call", result)
				}
			}()
		}
		if result := <-replay; result.err != nil || string(result.Value) != "run 1" {
			t.Errorf("%+v; want a replay: the answer was good when the store looked", result)
		}
		b.release <- nil
	})
}

// instantStore has an answer to everything, and takes no time.
type instantStore struct {
	*memstore.Store[*memstore.Tx]
	outcome idempotency.Outcome
}

func (s *instantStore) Run(context.Context, *idempotency.BeginParams, func(context.Context, *memstore.Tx) (idempotency.Answer, error)) (*idempotency.Outcome, error) {
	return &s.outcome, nil
}

// BenchmarkGate is what the gate costs a call that meets no other: the difference
// to NoWait, which passes it by.
//
//	go test -run '^$' -bench '^BenchmarkGate$' -benchmem -count 6 ./idempotency
func BenchmarkGate(b *testing.B) {
	store := &instantStore{outcome: idempotency.Outcome{
		State:  idempotency.Completed,
		Record: &idempotency.Record{State: idempotency.Completed, Response: &idempotency.Response{Type: idempotency.TypeNone}},
	}}
	client, err := idempotency.NewClient(store, nil)
	if err != nil {
		b.Fatal(err)
	}
	call := func(b *testing.B, params idempotency.Params) {
		b.Helper()
		_, err := idempotency.Do(b.Context(), client, params, func(context.Context, *memstore.Tx) (idempotency.None, error) {
			return idempotency.None{}, nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	for name, wait := range map[string]time.Duration{"passed by": idempotency.NoWait, "alone": time.Minute} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				call(b, waiting(wait))
			}
		})
	}
}

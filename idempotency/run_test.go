package idempotency_test

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

// answering returns a function that answers with the response, and on commit
// counts its effect.
func answering(effects *int, answer idempotency.Answer) func(context.Context, *memstore.Tx) (idempotency.Answer, error) {
	return func(_ context.Context, tx *memstore.Tx) (idempotency.Answer, error) {
		tx.OnCommit(func() { *effects++ })
		return answer, nil
	}
}

func mustNotAnswer(t *testing.T) func(context.Context, *memstore.Tx) (idempotency.Answer, error) {
	t.Helper()
	return func(context.Context, *memstore.Tx) (idempotency.Answer, error) {
		t.Error("a replay ran its function")
		return idempotency.Answer{}, errors.New("test: ran")
	}
}

func TestRunKeepsTheResponseByteForByte(t *testing.T) {
	t.Parallel()
	client, _ := newClient(t, nil)
	for name, response := range map[string]idempotency.Response{
		"http":         {Type: "http", Body: []byte("HTTP/1.1 201 Created\r\n\r\n{\"id\":1}\x00\xff")},
		"empty":        {Type: "http", Body: []byte{}},
		"nil":          {Type: "http"},
		"like a codec": {Type: "json:idempotency_test.charge", Body: []byte("no JSON")},
		"like an error": {
			Type: idempotency.TypeErrorPrefix + "declined", Body: []byte("why"),
		},
	} {
		effects := 0
		for call := range 2 {
			fn := answering(&effects, idempotency.Answer{Response: &response})
			if call > 0 {
				fn = mustNotAnswer(t)
			}
			outcome, err := client.Run(t.Context(), testParams(name), fn)
			if err != nil {
				t.Fatalf("%s, call %d: %v", name, call, err)
			}
			got := outcome.Record.Response
			if outcome.State != idempotency.Completed || outcome.Executed != (call == 0) {
				t.Errorf("%s, call %d: state %v, executed: %t", name, call, outcome.State, outcome.Executed)
			}
			if got.Type != response.Type || !slices.Equal(got.Body, response.Body) || (got.Body == nil) != (response.Body == nil) {
				t.Errorf("%s, call %d: %q %q, want %q %q", name, call, got.Type, got.Body, response.Type, response.Body)
			}
		}
		if effects != 1 {
			t.Errorf("%s: %d effects, want 1", name, effects)
		}
	}
}

func TestRunUndoesWritesAndRecordsTheResponse(t *testing.T) {
	t.Parallel()
	client, _ := newClient(t, nil)
	effects := 0
	refusal := idempotency.Answer{Response: &idempotency.Response{Type: "http", Body: []byte("422")}, UndoWrites: true}
	if outcome, err := client.Run(t.Context(), testParams("k"), answering(&effects, refusal)); err != nil || !outcome.Executed {
		t.Fatalf("%+v, %v; want the refusal, executed", outcome, err)
	}
	outcome, err := client.Run(t.Context(), testParams("k"), mustNotAnswer(t))
	if err != nil || outcome.Executed || string(outcome.Record.Response.Body) != "422" {
		t.Errorf("%+v, %v; want a replay of the refusal", outcome, err)
	}
	if effects != 0 {
		t.Errorf("%d effects, want none", effects)
	}
}

// A key means the same to Run as to Do: only its answer is read otherwise.
func TestRunSharesKeysWithDo(t *testing.T) {
	t.Parallel()
	client, _ := newClient(t, nil)
	_, err := idempotency.Do(t.Context(), client, testParams("by Do"), func(context.Context, *memstore.Tx) (int, error) { return 42, nil })
	if err != nil {
		t.Fatal(err)
	}
	outcome, err := client.Run(t.Context(), testParams("by Do"), mustNotAnswer(t))
	if err != nil || outcome.Record.Response.Type != "json:int" || string(outcome.Record.Response.Body) != "42" {
		t.Errorf("%+v, %v; want what Do recorded", outcome, err)
	}

	effects := 0
	raw := idempotency.Answer{Response: &idempotency.Response{Type: "http", Body: []byte("42")}}
	if _, err := client.Run(t.Context(), testParams("by Run"), answering(&effects, raw)); err != nil {
		t.Fatal(err)
	}
	_, err = idempotency.Do(t.Context(), client, testParams("by Run"), func(context.Context, *memstore.Tx) (int, error) { return 0, nil })
	var mismatch *idempotency.ResultTypeError
	if !errors.As(err, &mismatch) || mismatch.Recorded != "http" {
		t.Errorf("%v; want a *ResultTypeError", err)
	}
}

func TestRunRefuses(t *testing.T) {
	t.Parallel()
	client, _ := newClient(t, &idempotency.Config{MaxResponseSize: 10})
	effects := 0
	declined := errors.New("declined")
	ok := answering(&effects, idempotency.Answer{Response: &idempotency.Response{Type: "http"}})
	for name, test := range map[string]struct {
		client *idempotency.Client[*memstore.Tx]
		params idempotency.Params
		fn     func(context.Context, *memstore.Tx) (idempotency.Answer, error)
		want   error
	}{
		"no client":    {nil, testParams("k"), ok, idempotency.ErrInvalidParams},
		"no function":  {client, testParams("k"), nil, idempotency.ErrInvalidParams},
		"no key":       {client, idempotency.Params{}, ok, idempotency.ErrInvalidParams},
		"no response":  {client, testParams("k"), answering(&effects, idempotency.Answer{}), idempotency.ErrInvalidParams},
		"no type":      {client, testParams("k"), answering(&effects, idempotency.Answer{Response: &idempotency.Response{}}), idempotency.ErrInvalidParams},
		"a large body": {client, testParams("k"), answering(&effects, idempotency.Answer{Response: &idempotency.Response{Type: "http", Body: make([]byte, 11)}}), idempotency.ErrInvalidParams},
		"an error":     {client, testParams("k"), func(context.Context, *memstore.Tx) (idempotency.Answer, error) { return idempotency.Answer{}, declined }, declined},
		"a final error": {client, testParams("k"), func(context.Context, *memstore.Tx) (idempotency.Answer, error) {
			return idempotency.Answer{}, idempotency.Final(declined)
		}, declined},
		"its own key": {client, testParams("k"), func(ctx context.Context, _ *memstore.Tx) (idempotency.Answer, error) {
			_, err := client.Run(ctx, testParams("k"), ok)
			return idempotency.Answer{}, err
		}, idempotency.ErrNested},
	} {
		outcome, err := test.client.Run(t.Context(), test.params, test.fn)
		if !errors.Is(err, test.want) || outcome != nil {
			t.Errorf("%s: %+v, %v; want %v and no outcome", name, outcome, err, test.want)
		}
	}
	if effects != 0 {
		t.Errorf("%d effects, want none", effects)
	}
	if _, err := client.Get(t.Context(), testParams("k").Key); !errors.Is(err, idempotency.ErrNotFound) {
		t.Errorf("Get: %v, want ErrNotFound", err)
	}
}

// Calls of Run for one key wait in memory and share the answer, as those of Do.
func TestRunsOfOneKeyShareTheAnswer(t *testing.T) {
	t.Parallel()
	const calls = 20
	client, _ := newClient(t, &idempotency.Config{MaxSharedBytes: 1}) // which is about results, and Run has none
	body := make([]byte, 1<<10)
	var group sync.WaitGroup
	var executed, shared atomic.Int32
	holding, arrived := make(chan struct{}), make(chan struct{}, calls)
	call := func() {
		outcome, err := client.Run(t.Context(), waiting(time.Minute), func(context.Context, *memstore.Tx) (idempotency.Answer, error) {
			close(holding) // a second run would panic
			for range calls {
				<-arrived
			}
			return idempotency.Answer{Response: &idempotency.Response{Type: "http", Body: body}}, nil
		})
		switch {
		case err != nil:
			t.Error(err)
		case outcome.Executed:
			executed.Add(1)
		case len(outcome.Record.Response.Body) == len(body):
			shared.Add(1)
		}
	}
	group.Go(call)
	<-holding
	for range calls {
		group.Go(func() {
			arrived <- struct{}{}
			call()
		})
	}
	group.Wait()
	if executed.Load() != 1 || shared.Load() != calls {
		t.Errorf("%d calls ran, %d have the answer; want 1 and %d", executed.Load(), shared.Load(), calls)
	}
}

func TestRunWhileAnotherHasTheKey(t *testing.T) {
	t.Parallel()
	client, store := newClient(t, nil)
	other, err := idempotency.NewClient(store, nil)
	if err != nil {
		t.Fatal(err)
	}
	params := testParams("k")
	params.Wait = idempotency.NoWait
	_, err = client.Run(t.Context(), params, func(ctx context.Context, _ *memstore.Tx) (idempotency.Answer, error) {
		outcome, err := other.Run(ctx, params, mustNotAnswer(t))
		if !errors.Is(err, idempotency.ErrInProgress) || outcome != nil {
			t.Errorf("%+v, %v; want ErrInProgress and no outcome", outcome, err)
		}
		return idempotency.Answer{Response: &idempotency.Response{Type: "http"}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestTransact(t *testing.T) {
	t.Parallel()
	client, _ := newClient(t, nil)
	effects := 0
	write := func(err error) func(context.Context, *memstore.Tx) error {
		return func(_ context.Context, tx *memstore.Tx) error {
			tx.OnCommit(func() { effects++ })
			return err
		}
	}
	if err := client.Transact(t.Context(), write(nil)); err != nil || effects != 1 {
		t.Errorf("%v, %d effects; want 1", err, effects)
	}
	failed := errors.New("failed")
	if err := client.Transact(t.Context(), write(failed)); err != failed || effects != 1 { //nolint:errorlint // The promise is this very error.
		t.Errorf("%v, %d effects; want the function's error and no more effects", err, effects)
	}
	err := client.Transact(t.Context(), func(ctx context.Context, tx *memstore.Tx) error {
		return errors.Join(write(nil)(ctx, tx), tx.Commit(ctx))
	})
	if !errors.Is(err, idempotency.ErrOwned) || effects != 1 {
		t.Errorf("%v, %d effects; want ErrOwned and no more effects", err, effects)
	}
	var none *idempotency.Client[*memstore.Tx]
	for name, err := range map[string]error{"no client": none.Transact(t.Context(), write(nil)), "no function": client.Transact(t.Context(), nil)} {
		if !errors.Is(err, idempotency.ErrInvalidParams) {
			t.Errorf("%s: %v, want ErrInvalidParams", name, err)
		}
	}
}

func TestTracerOfRunAndTransact(t *testing.T) {
	t.Parallel()
	tracer := &recordingTracer{}
	client, _ := newClient(t, &idempotency.Config{Tracer: tracer})
	effects := 0
	ok := answering(&effects, idempotency.Answer{Response: &idempotency.Response{Type: "http"}})
	failed := errors.New("failed")
	for range 2 {
		if _, err := client.Run(t.Context(), testParams("k"), ok); err != nil {
			t.Fatal(err)
		}
	}
	notReturning(func() {
		_, _ = client.Run(t.Context(), testParams("panics"), func(context.Context, *memstore.Tx) (idempotency.Answer, error) { panic("test") })
	})
	if err := client.Transact(t.Context(), func(context.Context, *memstore.Tx) error { return failed }); !errors.Is(err, failed) {
		t.Fatal(err)
	}
	notReturning(func() {
		_ = client.Transact(t.Context(), func(context.Context, *memstore.Tx) error { runtime.Goexit(); return nil })
	})
	want := []idempotency.TraceEndData{
		{Operation: idempotency.OperationRun, State: idempotency.Completed},
		{Operation: idempotency.OperationRun, State: idempotency.Completed, Replayed: true},
		{Operation: idempotency.OperationRun, Err: idempotency.ErrNotReturned},
		{Operation: idempotency.OperationTransact, Err: failed},
		{Operation: idempotency.OperationTransact, Err: idempotency.ErrNotReturned},
	}
	if !slices.Equal(tracer.ends, want) {
		t.Errorf("ends are %+v, want %+v", tracer.ends, want)
	}
	for _, start := range tracer.starts {
		if (start.Key == idempotency.Key{}) != (start.Operation == idempotency.OperationTransact) {
			t.Errorf("%+v", start)
		}
	}
}

func TestConfigOfAClient(t *testing.T) {
	t.Parallel()
	declined := errors.New("declined")
	client, _ := newClient(t, &idempotency.Config{
		Wait: idempotency.NoWait, KeySecret: make([]byte, 16),
		FinalErrors: []idempotency.FinalKind{idempotency.FinalValue("declined", declined)},
	})
	config := client.Config()
	if config.TTL != 24*time.Hour || config.Wait != idempotency.NoWait || config.MaxResponseSize != idempotency.DefaultMaxResponseSize ||
		config.MaxWaiters != idempotency.DefaultMaxWaiters || config.MaxSharedBytes != idempotency.DefaultMaxSharedBytes || config.Codec.Name() != "json" {
		t.Errorf("%+v; want what was set and the defaults", config)
	}
	if config.KeySecret != nil {
		t.Error("the secret is told")
	}
	config.FinalErrors[0] = idempotency.FinalKind{} // which is the caller's own
	_, err := idempotency.Do(t.Context(), client, testParams("k"), func(context.Context, *memstore.Tx) (int, error) {
		return 0, idempotency.Final(declined)
	})
	var final *idempotency.FinalError
	if !errors.As(err, &final) {
		t.Errorf("%v; want a recorded final error", err)
	}
}

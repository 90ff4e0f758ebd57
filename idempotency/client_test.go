package idempotency_test

import (
	"context"
	"encoding/json"
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

func newClient(t *testing.T, config *idempotency.Config) (*idempotency.Client[*memstore.Tx], *memstore.Store[*memstore.Tx]) {
	t.Helper()
	store := memstore.New[*memstore.Tx](nil)
	client, err := idempotency.NewClient(store, config)
	if err != nil {
		t.Fatal(err)
	}
	return client, store
}

func testParams(id string) idempotency.Params {
	return idempotency.Params{Key: idempotency.Key{Scope: "test", ID: id}, Fingerprint: idempotency.FingerprintOf(id)}
}

// namedCodec is encoding/json under another name.
type namedCodec string

func (c namedCodec) Name() string                            { return string(c) }
func (c namedCodec) Marshal(value any) ([]byte, error)       { return json.Marshal(value) }
func (c namedCodec) Unmarshal(data []byte, target any) error { return json.Unmarshal(data, target) }

func TestNewClientRefusesWhatCannotWork(t *testing.T) {
	t.Parallel()
	sentinel := errors.New("sentinel")
	for name, test := range map[string]struct {
		config idempotency.Config
		field  string
	}{
		"negative TTL":   {idempotency.Config{TTL: -1}, "Config.TTL"},
		"TTL too short":  {idempotency.Config{TTL: time.Microsecond - 1}, "Config.TTL"},
		"short secret":   {idempotency.Config{KeySecret: make([]byte, 15)}, "Config.KeySecret"},
		"empty secret":   {idempotency.Config{KeySecret: []byte("")}, "Config.KeySecret"},
		"negative wait":  {idempotency.Config{Wait: -2}, "Config.Wait"},
		"negative size":  {idempotency.Config{MaxResponseSize: -1}, "Config.MaxResponseSize"},
		"negative sum":   {idempotency.Config{MaxSharedBytes: -1}, "Config.MaxSharedBytes"},
		"negative line":  {idempotency.Config{MaxWaiters: -1}, "Config.MaxWaiters"},
		"short lease":    {idempotency.Config{Lease: idempotency.MinLease - 1}, "Config.Lease"},
		"long lease":     {idempotency.Config{Lease: idempotency.MaxLease + 1}, "Config.Lease"},
		"negative hold":  {idempotency.Config{MaxHold: -1}, "Config.MaxHold"},
		"no attempts":    {idempotency.Config{MaxAttempts: -1}, "Config.MaxAttempts"},
		"codec error":    {idempotency.Config{Codec: namedCodec("error")}, "Config.Codec"},
		"codec none":     {idempotency.Config{Codec: namedCodec("none")}, "Config.Codec"},
		"codec bytes":    {idempotency.Config{Codec: namedCodec("bytes")}, "Config.Codec"},
		"no codec name":  {idempotency.Config{Codec: namedCodec("")}, "Config.Codec"},
		"colon in codec": {idempotency.Config{Codec: namedCodec("error:x")}, "Config.Codec"},
		"NUL in codec":   {idempotency.Config{Codec: namedCodec("a\x00b")}, "Config.Codec"},
		"codec no UTF-8": {idempotency.Config{Codec: namedCodec("a\xffb")}, "Config.Codec"},
		"long codec":     {idempotency.Config{Codec: namedCodec(strings.Repeat("x", 256))}, "Config.Codec"},
		"zero kind":      {idempotency.Config{FinalErrors: []idempotency.FinalKind{{}}}, "Config.FinalErrors[0]"},
		"nil sentinel":   {idempotency.Config{FinalErrors: []idempotency.FinalKind{idempotency.FinalValue("a", nil)}}, "Config.FinalErrors[0]"},
		"empty code":     {idempotency.Config{FinalErrors: []idempotency.FinalKind{idempotency.FinalValue("", sentinel)}}, "Config.FinalErrors[0]"},
		"long code":      {idempotency.Config{FinalErrors: []idempotency.FinalKind{idempotency.FinalValue(strings.Repeat("x", 250), sentinel)}}, "Config.FinalErrors[0]"},
		"NUL in code":    {idempotency.Config{FinalErrors: []idempotency.FinalKind{idempotency.FinalValue("\x00", sentinel)}}, "Config.FinalErrors[0]"},
		"repeated code":  {idempotency.Config{FinalErrors: []idempotency.FinalKind{idempotency.FinalValue("a", sentinel), idempotency.FinalValue("a", sentinel)}}, "Config.FinalErrors[1]"},
		"interface kind": {idempotency.Config{FinalErrors: []idempotency.FinalKind{idempotency.FinalType[error]("any")}}, "Config.FinalErrors[0]"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := idempotency.NewClient(memstore.New[*memstore.Tx](nil), &test.config)
			var paramErr *idempotency.ParamError
			if !errors.As(err, &paramErr) || paramErr.Field != test.field {
				t.Errorf("got %v, want a ParamError for %s", err, test.field)
			}
		})
	}
	if _, err := idempotency.NewClient[*memstore.Tx](nil, nil); !errors.Is(err, idempotency.ErrInvalidParams) {
		t.Errorf("nil store: %v", err)
	}
	if _, err := idempotency.Do(t.Context(), nil, testParams("k"), func(context.Context, *memstore.Tx) (int, error) { return 0, nil }); !errors.Is(err, idempotency.ErrInvalidParams) {
		t.Errorf("nil client: %v", err)
	}
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	client, _ := newClient(t, nil)
	result, err := idempotency.Do(t.Context(), client, testParams("k"), func(context.Context, *memstore.Tx) (int, error) { return 1, nil })
	if err != nil {
		t.Fatal(err)
	}
	if ttl := result.Record.ExpiresAt.Sub(result.Record.UpdatedAt); ttl != 24*time.Hour {
		t.Errorf("an answer replays for %s by default, want 24 hours", ttl)
	}
	short := testParams("short")
	short.TTL = time.Minute
	result, err = idempotency.Do(t.Context(), client, short, func(context.Context, *memstore.Tx) (int, error) { return 1, nil })
	if err != nil || result.Record.ExpiresAt.Sub(result.Record.UpdatedAt) != time.Minute {
		t.Errorf("%+v, %v; want Params.TTL to override the default", result.Record, err)
	}
}

func TestWaitEndsWithTheContext(t *testing.T) {
	t.Parallel()
	client, store := newClient(t, nil)
	tx := store.NewTx()
	if _, err := client.WithTx(tx).Begin(t.Context(), testParams("k")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("caller left")
	cancel(why)
	p := testParams("k")
	p.Wait = time.Hour
	_, err := idempotency.Do(ctx, client, p, func(context.Context, *memstore.Tx) (int, error) { return 1, nil })
	if !errors.Is(err, idempotency.ErrInProgress) || !errors.Is(err, why) {
		t.Errorf("got %v, want ErrInProgress with the context's cause", err)
	}
}

// recordingTracer keeps what it is told.
type recordingTracer struct {
	mu     sync.Mutex
	starts []idempotency.TraceStartData
	ends   []idempotency.TraceEndData
}

type tracerMark struct{}

func (r *recordingTracer) TraceStart(ctx context.Context, data idempotency.TraceStartData) context.Context {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.starts = append(r.starts, data)
	return context.WithValue(ctx, tracerMark{}, true)
}

func (r *recordingTracer) TraceEnd(ctx context.Context, data idempotency.TraceEndData) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ctx.Value(tracerMark{}) == nil {
		data.Err = errors.New("TraceEnd did not get TraceStart's context")
	}
	r.ends = append(r.ends, data)
}

func TestTracer(t *testing.T) {
	t.Parallel()
	tracer := &recordingTracer{}
	client, store := newClient(t, &idempotency.Config{Tracer: tracer})
	fn := func(ctx context.Context, _ *memstore.Tx) (int, error) {
		if ctx.Value(tracerMark{}) == nil {
			t.Error("fn did not get TraceStart's context")
		}
		return 1, nil
	}
	for range 2 {
		if _, err := idempotency.Do(t.Context(), client, testParams("k"), fn); err != nil {
			t.Fatal(err)
		}
	}
	tx := store.NewTx()
	if _, err := idempotency.DoTx(t.Context(), client, tx, testParams("tx"), fn); err != nil {
		t.Fatal(err)
	}
	verbs := client.WithTx(tx)
	outcome, err := verbs.Begin(t.Context(), testParams("verbs"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := verbs.Complete(t.Context(), outcome.Claim, &idempotency.Response{Type: idempotency.TypeNone}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Get(t.Context(), testParams("absent").Key); !errors.Is(err, idempotency.ErrNotFound) {
		t.Fatal(err)
	}
	want := []idempotency.TraceEndData{
		{Operation: idempotency.OperationDo, State: idempotency.Completed},
		{Operation: idempotency.OperationDo, State: idempotency.Completed, Replayed: true},
		{Operation: idempotency.OperationDoTx, State: idempotency.Completed},
		{Operation: idempotency.OperationBegin, State: idempotency.New},
		{Operation: idempotency.OperationComplete, State: idempotency.Completed},
		{Operation: idempotency.OperationGet},
	}
	if len(tracer.ends) != len(want) || len(tracer.starts) != len(want) {
		t.Fatalf("%d starts, %d ends; want %d of each", len(tracer.starts), len(tracer.ends), len(want))
	}
	for i, end := range tracer.ends {
		if tracer.starts[i].Operation != end.Operation || tracer.starts[i].Key.ID == "" {
			t.Errorf("call %d: start %+v, end %+v", i, tracer.starts[i], end)
		}
		if i == len(want)-1 {
			if !errors.Is(end.Err, idempotency.ErrNotFound) {
				t.Errorf("Get: %v, want ErrNotFound", end.Err)
			}
			end.Err = nil
		}
		if end != want[i] {
			t.Errorf("call %d: %+v, want %+v", i, end, want[i])
		}
	}
}

func TestTracerOfABatch(t *testing.T) {
	t.Parallel()
	tracer := &recordingTracer{}
	client, store := newClient(t, &idempotency.Config{Tracer: tracer})
	verbs := client.WithTx(store.NewTx())
	batch, err := verbs.BeginMany(t.Context(), []idempotency.Params{testParams("a"), testParams("b")})
	if err != nil {
		t.Fatal(err)
	}
	for _, item := range batch.Items {
		item.Response = &idempotency.Response{Type: idempotency.TypeNone}
	}
	first, second := batch.Complete(t.Context()), batch.Complete(t.Context())
	if first != nil || !errors.Is(second, idempotency.ErrClaimLost) {
		t.Fatalf("Complete gave %v, then %v; want no error, then ErrClaimLost", first, second)
	}
	want := []idempotency.TraceEndData{
		{Operation: idempotency.OperationBeginMany},
		{Operation: idempotency.OperationCompleteMany, State: idempotency.Completed},
		{Operation: idempotency.OperationCompleteMany, Err: second},
	}
	if !slices.Equal(tracer.ends, want) || len(tracer.starts) != len(want) {
		t.Errorf("%d starts and ends %+v; want %+v", len(tracer.starts), tracer.ends, want)
	}
	for _, start := range tracer.starts {
		if start.Key != (idempotency.Key{}) {
			t.Error("a batch is traced under one of its keys")
		}
	}
}

// A key that the operation itself holds is refused alone, also on another
// transaction, where the store would merely find it in progress.
func TestBatchInsideDo(t *testing.T) {
	t.Parallel()
	client, store := newClient(t, nil)
	_, err := idempotency.Do(t.Context(), client, testParams("outer"), func(ctx context.Context, _ *memstore.Tx) (int, error) {
		tx := store.NewTx()
		batch, err := client.WithTx(tx).BeginMany(ctx, []idempotency.Params{testParams("outer"), testParams("inner")})
		if err != nil {
			return 0, err
		}
		if !errors.Is(batch.Items[0].Err, idempotency.ErrNested) || batch.Items[1].State != idempotency.New {
			t.Errorf("items are %+v and %+v; want ErrNested and new", batch.Items[0], batch.Items[1])
		}
		batch.Items[1].Response = &idempotency.Response{Type: idempotency.TypeNone}
		return 0, errors.Join(batch.Complete(ctx), tx.Commit(ctx))
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Get(t.Context(), testParams("inner").Key); err != nil {
		t.Error(err)
	}
}

// What goes on with the context of an operation, after it has returned, is
// outside of it.
func TestContextOfAnOperationThatHasReturned(t *testing.T) {
	t.Parallel()
	client, store := newClient(t, nil)
	var inside context.Context
	keep := func(ctx context.Context, _ *memstore.Tx) (int, error) {
		inside = ctx
		return 7, nil
	}
	if _, err := idempotency.Do(t.Context(), client, testParams("k"), keep); err != nil {
		t.Fatal(err)
	}
	if result, err := idempotency.Do(inside, client, testParams("k"), keep); err != nil || !result.Replayed || result.Value != 7 { //nolint:contextcheck // The point of the test.
		t.Errorf("Do: %+v, %v; want a replay", result, err)
	}
	tx := store.NewTx()
	if outcome, err := client.WithTx(tx).Begin(inside, testParams("k")); err != nil || outcome.State != idempotency.Completed { //nolint:contextcheck // As above.
		t.Errorf("Begin: %+v, %v; want a replay", outcome, err)
	}
	if _, err := idempotency.DoTx(t.Context(), client, tx, testParams("tx"), keep); err != nil {
		t.Fatal(err)
	}
	if answer, err := idempotency.DoTx(inside, client, tx, testParams("tx"), keep); err != nil { //nolint:contextcheck // As above.
		t.Errorf("DoTx: %+v, %v; want a replay", answer, err)
	}

	// It is free again after a panic, too.
	notReturning(func() {
		_, _ = idempotency.Do(t.Context(), client, testParams("panics"), func(ctx context.Context, tx *memstore.Tx) (int, error) {
			_, _ = keep(ctx, tx)
			panic("test")
		})
	})
	if _, err := idempotency.Do(inside, client, testParams("panics"), keep); err != nil { //nolint:contextcheck // As above.
		t.Errorf("Do after a panic: %v, want a run", err)
	}
}

// notReturning returns once call has panicked, called runtime.Goexit or returned.
func notReturning(call func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { _ = recover() }()
		call()
	}()
	<-done
}

func TestTracerOfAFunctionThatDoesNotReturn(t *testing.T) {
	t.Parallel()
	for name, leave := range map[string]func(){"panic": func() { panic("test") }, "runtime.Goexit": runtime.Goexit} {
		tracer := &recordingTracer{}
		client, store := newClient(t, &idempotency.Config{Tracer: tracer})
		fn := func(context.Context, *memstore.Tx) (int, error) {
			leave()
			return 0, nil
		}
		notReturning(func() { _, _ = idempotency.Do(t.Context(), client, testParams("k"), fn) })
		notReturning(func() { _, _ = idempotency.DoTx(t.Context(), client, store.NewTx(), testParams("k"), fn) })
		want := []idempotency.TraceEndData{
			{Operation: idempotency.OperationDo, Err: idempotency.ErrNotReturned},
			{Operation: idempotency.OperationDoTx, Err: idempotency.ErrNotReturned},
		}
		if !slices.Equal(tracer.ends, want) {
			t.Errorf("%s: ends are %+v, want %+v", name, tracer.ends, want)
		}
	}
}

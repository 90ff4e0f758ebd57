package idempotency

import "context"

// Operation names a call that a Tracer follows.
type Operation string

// The calls that a Tracer follows.
const (
	OperationDo           Operation = "do"
	OperationDoTx         Operation = "do_tx"
	OperationDoLeased     Operation = "do_leased"
	OperationDoExternal   Operation = "do_external"
	OperationRun          Operation = "run"
	OperationTransact     Operation = "transact"
	OperationBegin        Operation = "begin"
	OperationBeginMany    Operation = "begin_many"
	OperationComplete     Operation = "complete"
	OperationCompleteMany Operation = "complete_many"
	OperationGet          Operation = "get"
)

// Tracer follows calls, for metrics and traces. It must be safe for concurrent
// use.
type Tracer interface {
	// TraceStart is called at the beginning of a call. The context that it
	// returns is used for the rest of the call and passed to TraceEnd.
	TraceStart(ctx context.Context, data TraceStartData) context.Context
	TraceEnd(ctx context.Context, data TraceEndData)
}

// TraceStartData is what a Tracer learns at the beginning of a call.
type TraceStartData struct {
	Operation Operation
	// Key is the key as the store has it, and prints as a hash. Its Scope and ID
	// are for the tracer's own use: as a metric label they would be without bound,
	// and they may be secrets, which Config.KeySecret keeps from it. It is zero
	// for Transact, which has no key, and for BeginMany and Batch.Complete, which are
	// one call for many.
	Key Key
}

// TraceEndData is what a Tracer learns at the end of a call.
type TraceEndData struct {
	Operation Operation
	// State is where the key stands: New after a Begin that claimed it,
	// Completed after Do and Run. It is zero where the call did not find out or did
	// not return, after Transact, and after BeginMany, where every key has its own.
	State State
	// Replayed says that the answer is an earlier call's.
	Replayed bool
	// Err is what the call returns; a *FinalError for a recorded error, and
	// ErrNotReturned where the function panicked or called runtime.Goexit.
	Err error
}

func (s *settings) trace(ctx context.Context, operation Operation, key Key) (context.Context, func(State, bool, error)) {
	if s.Tracer == nil {
		return ctx, func(State, bool, error) {}
	}
	ctx = s.Tracer.TraceStart(ctx, TraceStartData{Operation: operation, Key: key})
	return ctx, func(state State, replayed bool, err error) {
		s.Tracer.TraceEnd(ctx, TraceEndData{Operation: operation, State: state, Replayed: replayed, Err: err})
	}
}

package idempotency

import (
	"context"
	"time"
)

// Verbs is the contract that every store keeps, and the whole of it for many:
// claim a key, record its answer, read its record.
//
// A store must be safe for concurrent use. Package storetest holds the suite
// that checks a store against this contract.
type Verbs interface {
	// Begin tries once to claim the key. Its outcome is New with a Claim,
	// InProgress, or Completed with the Record; a fingerprint other than the
	// recorded one, of an answer or of leased work however it stands, is
	// ErrFingerprintMismatch. Completed records past their expiry are claimed as if
	// free. A key whose lease has ended is taken over: see Record.Judge.
	Begin(ctx context.Context, params *BeginParams) (*Outcome, error)
	// Complete records the response and returns the record. It is
	// ErrNotClaimed for a claim that no Begin returned, and ErrClaimLost for
	// one that is not, or no longer, the key's: completed before, released,
	// taken over, rolled back. A claim without a TTL is a *ParamError. Nothing
	// changes then, and inside a transaction the transaction cannot commit any
	// more: what it did may be the work of a lease that would be done again.
	Complete(ctx context.Context, claim *Claim, response *Response) (*Record, error)
	// AddStep records a step of the leased work that the claim holds. The first of a
	// name stays: another one changes nothing and is no error. It does not move the
	// lease, and counts after the lease's end too, as Complete does. Errors as for
	// Complete; a claim that was begun in a transaction is a *ParamError.
	AddStep(ctx context.Context, claim *Claim, step *StepRecord) error
	// Get returns the record, or ErrNotFound where there is none or it has
	// expired. A claim of another open transaction cannot be seen. One that was
	// committed all the same, past the store's guard, is ErrUnfinished.
	Get(ctx context.Context, key Key) (*Record, error)
}

// Store keeps records and holds running keys by a lease. Every call takes
// effect at once, for everybody. BeginParams.Lease is required.
type Store interface {
	Verbs
	// Extend lets the lease end the given duration from now and returns the
	// claim with its new deadline. ErrClaimLost as for Complete, and for a claim that
	// was suspended: an extension that is late must not undo that.
	Extend(ctx context.Context, claim *Claim, lease time.Duration) (*Claim, error)
	// Release frees the key without an answer, and drops its steps. ErrClaimLost as
	// for Complete.
	Release(ctx context.Context, claim *Claim) error
	// Suspend ends the lease now, and leaves the record and its steps to whoever
	// continues the work, as the same attempt. ErrClaimLost as for Complete.
	Suspend(ctx context.Context, claim *Claim) error
}

// TxStore is a Store that can also hold keys by a transaction of type TTx: the
// claim, the caller's writes and the answer commit together or not at all.
type TxStore[TTx any] interface {
	Store
	// WithTx returns the verbs as part of tx. BeginParams.Lease must be zero,
	// but Complete and AddStep also accept the claim of a lease. A key of this transaction
	// begun again is ErrNested. An InProgress outcome leaves tx usable. A tx
	// that has ended is ErrTxEnded.
	WithTx(tx TTx) Verbs
	// Run tries once to claim the key in a transaction of its own, calls fn in
	// it, and commits fn's writes together with the response of fn's answer.
	// Outcome.Executed tells whether that commit is the one that the outcome
	// reports, with the answer of fn's last run; otherwise it is InProgress or
	// somebody else's Completed.
	//
	// Where fn returns an error, panics or calls runtime.Goexit, everything is
	// rolled back. Where the answer has UndoWrites set, fn's writes are
	// undone and the response is recorded. fn runs again in a new transaction
	// after a serialization failure or a deadlock. The transaction that fn gets
	// refuses to commit and to roll back, with an error that is ErrOwned; Run
	// then fails with it too.
	Run(ctx context.Context, params *BeginParams, fn func(ctx context.Context, tx TTx) (Answer, error)) (*Outcome, error)
	// RunHeld calls fn in a transaction of its own under the claim of a lease, and
	// commits fn's writes together with the response of fn's answer, as Run does; fn
	// runs again as in Run. From when fn is called others find the key in progress,
	// also where the lease ends meanwhile; who was at work before, since the lease had
	// ended, is waited for. ErrClaimLost as for Complete, before fn is called where the
	// claim is lost by then; a claim that was begun in a transaction is a *ParamError.
	// Where fn fails, nothing is committed, and the claim is held as before.
	RunHeld(ctx context.Context, claim *Claim, fn func(ctx context.Context, tx TTx) (Answer, error)) (*Record, error)
	// Transact calls fn in a transaction like Run's, without a key, and commits it
	// where fn returns nil. A lost reply to the commit is ErrOutcomeUnknown, after
	// which fn does not run again.
	Transact(ctx context.Context, fn func(ctx context.Context, tx TTx) error) error
	// Savepoint calls fn with a nested transaction that is undone where fn
	// returns an error, and returns that error. The nested transaction refuses
	// to commit and to roll back, as in Run.
	Savepoint(ctx context.Context, tx TTx, fn func(ctx context.Context, tx TTx) error) error
}

// Sweeper is what a Store also is whose expired records stay until they are
// deleted, as in a table. A store that drops them by itself is none. It is found by
// a type assertion: a store that wraps another must have the method too.
type Sweeper interface {
	// DeleteExpired deletes at most limit expired records, oldest first, and
	// returns how many. It never deletes a record in progress. A limit of 0 means
	// DefaultDeleteLimit. Call it until it returns less than the limit.
	DeleteExpired(ctx context.Context, limit int) (int, error)
}

// DefaultDeleteLimit is how many records a Sweeper deletes where the limit is 0.
const DefaultDeleteLimit = 1000

// Lister is what a Store also is that can find leased work which nobody goes on with. It
// is found by a type assertion, as Sweeper is.
type Lister interface {
	// ListAbandoned returns at most limit records whose lease has ended or was
	// suspended, by CreatedAt, which is when the lease began, oldest first, behind the
	// record after, or from the first on where that is nil. A limit of 0 means
	// DefaultListLimit. Work whose lease has ended while RunHeld is at it is among
	// them. Who continues the work moves its record to the end; one that
	// ErrNeedsAttention keeps from everybody stays where it is.
	ListAbandoned(ctx context.Context, after *Record, limit int) ([]*Record, error)
}

// DefaultListLimit is how many records a Lister returns where the limit is 0.
const DefaultListLimit = 100

// BatchVerbs is what a store's Verbs in a transaction may also have: many keys
// in a number of statements that does not grow with them. Without it,
// TxClient.BeginMany and Batch.Complete call Begin and Complete key by key.
type BatchVerbs interface {
	Verbs
	// BeginMany is Begin for each of params, which are distinct and ascend by
	// scope and id, bytewise: a store that waits for a key must wait in this
	// order. It returns a result for each. An error of its own is about the
	// whole transaction.
	BeginMany(ctx context.Context, params []*BeginParams) ([]BeginResult, error)
	// CompleteMany is Complete for claims that one BeginMany returned, with the
	// response to each, and returns the record of each. Where any claim is not
	// held it is ErrClaimLost, where one is refused it is as for Complete, and
	// the transaction cannot commit any more.
	CompleteMany(ctx context.Context, claims []*Claim, responses []*Response) ([]*Record, error)
}

// BeginResult is what became of one key of BatchVerbs.BeginMany. Err is nil or
// about this key alone: ErrFingerprintMismatch, ErrStepChanged, ErrNested or
// ErrUnfinished.
type BeginResult struct {
	Outcome *Outcome
	Err     error
}

// PerCallerStore is what a TxStore also is where the context of a call decides
// which records it may read, as under row-level security.
type PerCallerStore interface {
	// PerCaller reports whether that is so. Calls of one client that wait for
	// one key then ask the store themselves, one after the other, instead of
	// sharing an answer.
	PerCaller() bool
}

// NamespaceStore is what a PerCallerStore also is where the context decides even
// in which table a key is, as with a schema for each tenant.
type NamespaceStore interface {
	PerCallerStore
	// Namespace returns a name for that table, the same for all calls that use
	// the same one. Only calls of one name and one key wait for each other in
	// memory. Its error fails the call before the store is asked.
	Namespace(ctx context.Context) (string, error)
}

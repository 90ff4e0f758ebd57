package idempotencytest

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Operation is the code under test. New and Effects are required.
type Operation struct {
	// New builds the code under test on pool, as the program does when it
	// starts: its client, its service, its HTTP handler. All that it does in the
	// database must go through this pool and not through one that was captured.
	//
	// It is called some four times for each statement of a call, and each time
	// makes another instance of the service. Stop in t.Cleanup what an instance
	// runs in the background; its pool is closed afterwards.
	New func(t *testing.T, pool *pgxpool.Pool) Call
	// Effects counts the committed effects of the calls with key, such as the
	// rows that they inserted: of every kind, since one that is not counted is not
	// missed. It may use the pool that was given to Run.
	Effects func(ctx context.Context, key string) (Counts, error)
	// Refused is set for a request that is refused for good, and whose refusal is
	// the answer: Call returns nil for it, and there must be no effect of any kind.
	Refused bool
}

func (op *Operation) build(t *testing.T, pool *pgxpool.Pool) Call {
	t.Helper()
	call := op.New(t, pool)
	if call == nil {
		t.Fatal("idempotencytest: Operation.New returned nil")
	}
	return call
}

// Call makes one request with an idempotency key, a new UUID as text.
//
// Nil means that the request was acknowledged: a client would not send it again.
// Turn everything else into an error, an HTTP status outside of 2xx for one. A
// repeated call of a request that is done must be acknowledged like the first.
// The context ends after 30 seconds.
type Call func(ctx context.Context, key string) error

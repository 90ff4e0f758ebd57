package bench

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/idempotency"
)

// QueryCounter is a tracer of pgx's that counts flights: a batch is one, and so
// is a single statement.
type QueryCounter struct {
	mu         sync.Mutex
	flights    int
	statements []string
}

// Count returns what fn sent.
func (c *QueryCounter) Count(fn func()) (flights int, statements []string) {
	c.mu.Lock()
	c.flights, c.statements = 0, nil
	c.mu.Unlock()
	fn()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.flights, c.statements
}

// Flights is how many flights began since the last Count, or at all.
func (c *QueryCounter) Flights() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.flights
}

// TraceQueryStart is part of pgx.QueryTracer.
func (c *QueryCounter) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flights++
	c.statements = append(c.statements, data.SQL)
	return ctx
}

// TraceQueryEnd is part of pgx.QueryTracer.
func (*QueryCounter) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// TraceBatchStart is part of pgx.BatchTracer.
func (c *QueryCounter) TraceBatchStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchStartData) context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flights++
	for _, query := range data.Batch.QueuedQueries {
		c.statements = append(c.statements, query.SQL)
	}
	return ctx
}

// TraceBatchQuery is part of pgx.BatchTracer.
func (*QueryCounter) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

// TraceBatchEnd is part of pgx.BatchTracer.
func (*QueryCounter) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

// Arrivals is a client's tracer that counts the calls of Do that have begun.
type Arrivals struct{ atomic.Int32 }

// TraceStart is part of idempotency.Tracer.
func (a *Arrivals) TraceStart(ctx context.Context, data idempotency.TraceStartData) context.Context {
	if data.Operation == idempotency.OperationDo {
		a.Add(1)
	}
	return ctx
}

// TraceEnd is part of idempotency.Tracer.
func (*Arrivals) TraceEnd(context.Context, idempotency.TraceEndData) {}

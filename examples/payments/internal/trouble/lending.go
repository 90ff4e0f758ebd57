package trouble

import (
	"context"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// lending is a tracer of the pool that counts the connections which charges
// have in use.
type lending struct {
	mu   sync.Mutex
	lent map[*pgx.Conn]bool
	most int
}

type chargeContextKey struct{}

// forCharge marks what is done with the context as done for a charge.
func forCharge(ctx context.Context) context.Context {
	return context.WithValue(ctx, chargeContextKey{}, true)
}

// inUse returns how many connections charges have now, and the most they had.
func (l *lending) inUse() (now, most int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.lent), l.most
}

func (l *lending) TraceAcquireEnd(ctx context.Context, _ *pgxpool.Pool, data pgxpool.TraceAcquireEndData) {
	if data.Conn == nil || ctx.Value(chargeContextKey{}) == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lent[data.Conn] = true
	l.most = max(l.most, len(l.lent))
}

func (l *lending) TraceRelease(_ *pgxpool.Pool, data pgxpool.TraceReleaseData) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.lent, data.Conn)
}

// The rest of what pgx asks of a tracer.

func (l *lending) TraceAcquireStart(ctx context.Context, _ *pgxpool.Pool, _ pgxpool.TraceAcquireStartData) context.Context {
	return ctx
}

func (l *lending) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

func (l *lending) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

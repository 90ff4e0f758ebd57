package idempotencytest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/internal/pgcut"
)

const (
	// callTimeout turns a call that hangs into one that failed.
	callTimeout = 30 * time.Second
	// closeTimeout is how long connections may take to come back to the pool
	// after the test.
	closeTimeout = 5 * time.Second
)

// instance is the code under test on a pool of its own.
type instance struct {
	cutter *pgcut.Cutter
	call   Call
}

// newInstance returns an instance whose connections can be cut. One of them is
// open, as in a program that has been at work.
func newInstance(t *testing.T, original *pgxpool.Pool, op *Operation) *instance {
	t.Helper()
	cutter := &pgcut.Cutter{}
	config := original.Config()
	// What the pool sends by itself is not the call's: at the start of a connection,
	// of those that it makes in the background, and to those that were idle.
	config.MinConns, config.MinIdleConns = 0, 0
	config.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false }
	afterConnect := config.AfterConnect
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		if afterConnect != nil {
			if err := afterConnect(ctx, conn); err != nil {
				return err
			}
		}
		cutter.Started(conn.PgConn().Conn())
		return nil
	}
	preferPlaintext(&config.ConnConfig.Config)
	if err := cutter.Install(&config.ConnConfig.Config); err != nil {
		t.Fatalf("idempotencytest: the pool cannot be used for this test: %v", err)
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatalf("idempotencytest: make a pool like the one given: %v", err)
	}
	t.Cleanup(func() {
		t.Helper()
		closed := make(chan struct{})
		go func() {
			pool.Close()
			close(closed)
		}()
		select {
		case <-closed:
		case <-time.After(closeTimeout):
			t.Errorf("idempotencytest: %d connection(s) were not given back to the pool: end every transaction and close every rows, also after an error", pool.Stat().AcquiredConns())
		}
		cutter.Close()
	})
	call := op.build(t, pool)
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatalf("idempotencytest: connect: %v", err)
	}
	conn.Release()
	return &instance{cutter: cutter, call: call}
}

// preferPlaintext drops the encrypted ways to connect where there are others, as
// with sslmode=prefer, the default.
func preferPlaintext(config *pgconn.Config) {
	ways := append([]*pgconn.FallbackConfig{{Host: config.Host, Port: config.Port, TLSConfig: config.TLSConfig}}, config.Fallbacks...)
	var plain []*pgconn.FallbackConfig
	for _, way := range ways {
		if way.TLSConfig == nil {
			plain = append(plain, way)
		}
	}
	if len(plain) == 0 {
		return
	}
	config.Host, config.Port, config.TLSConfig = plain[0].Host, plain[0].Port, nil
	config.Fallbacks = plain[1:]
}

// try makes one call.
func (c Call) try(ctx context.Context, key string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, callTimeout, fmt.Errorf("the call has not returned within %s", callTimeout))
	defer cancel()
	return c(ctx, key)
}

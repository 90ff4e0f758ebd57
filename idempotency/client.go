package idempotency

import (
	"context"
	"errors"
	"fmt"
)

// Client runs operations once per key. TTx is the store's transaction type,
// pgx.Tx for pgxstore, and is inferred. A Client is safe for concurrent use.
//
// It has no Begin of its own: a claim outside a transaction would not commit
// with the caller's writes. See Do, DoTx, Run and WithTx.
type Client[TTx any] struct {
	store    TxStore[TTx]
	settings *settings
	gate     *gate
}

// NewClient returns a client that keeps its keys in store. A nil config means
// all defaults. It returns a *ParamError for a config that cannot work.
func NewClient[TTx any](store TxStore[TTx], config *Config) (*Client[TTx], error) {
	if store == nil {
		return nil, &ParamError{Field: "store", Reason: "is nil"}
	}
	settings, err := newSettings(config)
	if err != nil {
		return nil, err
	}
	return &Client[TTx]{store: store, settings: settings, gate: newGate(store, settings)}, nil
}

// Config returns the client's configuration with the defaults filled in, and
// without KeySecret. A client made of it without the secret has other keys, under
// which every operation runs again.
func (c *Client[TTx]) Config() Config { return c.settings.config() }

// Get returns the record of a completed key, or of one held by a lease. It is
// ErrNotFound where there is none, where it has expired, and while an operation
// is still at work in its transaction, which nobody else can see.
func (c *Client[TTx]) Get(ctx context.Context, key Key) (*Record, error) {
	return c.settings.get(ctx, c.store, key)
}

// DeleteExpired deletes at most limit expired records, oldest first, in a
// transaction of its own, and returns how many. It never deletes a record in
// progress. A limit of 0 means DefaultDeleteLimit, 1,000. Run it from time to time,
// and repeat it until it returns less than the limit. A store that is no Sweeper
// is asked for nothing, and the error is errors.ErrUnsupported: one that wraps
// another store must have the method too.
func (c *Client[TTx]) DeleteExpired(ctx context.Context, limit int) (int, error) {
	sweeper, ok := c.store.(Sweeper)
	if !ok {
		return 0, fmt.Errorf("idempotency: %T has no DeleteExpired: a store that wraps another must pass it on, and one that drops expired records by itself needs none: %w", c.store, errors.ErrUnsupported)
	}
	return sweeper.DeleteExpired(ctx, limit)
}

// WithTx returns the verbs as part of tx, for callers to whom DoTx does not fit.
// A transaction that began a key and did not complete it cannot commit.
func (c *Client[TTx]) WithTx(tx TTx) *TxClient {
	return &TxClient{settings: c.settings, verbs: c.store.WithTx(tx)}
}

func stateOf(record *Record) State {
	if record == nil {
		return 0
	}
	return record.State
}

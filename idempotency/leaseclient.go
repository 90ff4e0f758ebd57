package idempotency

import "context"

// LeaseClient runs work that leaves the database, once per key, under leases.
// A LeaseClient is safe for concurrent use. See DoLeased; DoExternal needs
// a Client, whose store has transactions.
type LeaseClient struct {
	store    Store
	settings *settings
	gate     *gate
}

// NewLeaseClient returns a client that keeps its keys in store, which needs no
// transactions. A nil config means all defaults. It returns a *ParamError for a
// config that cannot work.
func NewLeaseClient(store Store, config *Config) (*LeaseClient, error) {
	if store == nil {
		return nil, &ParamError{Field: "store", Reason: "is nil"}
	}
	settings, err := newSettings(config)
	if err != nil {
		return nil, err
	}
	return &LeaseClient{store: store, settings: settings, gate: newGate(store, settings)}, nil
}

// Leases returns a client for leased work on the same store. Calls of both that
// want one key wait for each other in memory.
func (c *Client[TTx]) Leases() *LeaseClient {
	return &LeaseClient{store: c.store, settings: c.settings, gate: c.gate}
}

// Config returns the client's configuration, as Client.Config does.
func (c *LeaseClient) Config() Config { return c.settings.config() }

// Get returns the record of a key, with the steps of one in progress. It is
// ErrNotFound where there is none, or it has expired.
func (c *LeaseClient) Get(ctx context.Context, key Key) (*Record, error) {
	return c.settings.get(ctx, c.store, key)
}

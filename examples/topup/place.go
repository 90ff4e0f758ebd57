package main

import (
	"context"

	"github.com/samecommit/samecommit/examples/internal/provider"
	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/tests/storeserver"
)

// place is what one run of this program has on a server of Redis or MongoDB.
type place interface {
	// keys is the store that everything but -naive uses.
	keys() idempotency.Store
	answers
	// ping reports whether the server answers.
	ping(ctx context.Context) error
	// clear deletes what the run has left.
	clear(ctx context.Context) error
	close(ctx context.Context) error
}

// answers keeps the answers of -naive, by the name of the order.
type answers interface {
	find(ctx context.Context, order string) (receipt provider.Receipt, found bool, err error)
	keep(ctx context.Context, order string, receipt provider.Receipt) error
}

// kind is a kind of server.
type kind struct {
	start func(ctx context.Context) (*storeserver.Server, error)
	// open returns the place of this name on the server at a URL.
	open func(ctx context.Context, url, space string) (place, error)
}

// kinds are by what -store calls them.
var kinds = map[string]kind{
	"redis":   {storeserver.Redis, openRedis},
	"mongodb": {storeserver.MongoDB, openMongo},
}

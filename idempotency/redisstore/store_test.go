package redisstore_test

import (
	"os"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/redisstore"
	"github.com/samecommit/samecommit/idempotency/storetest"
)

// urlVariable names the server on which TestStore checks the contract, in the place of
// one of its own.
const urlVariable = "SAMECOMMIT_REDIS_URL"

func checkContract(t *testing.T, client redis.UniversalClient) {
	t.Helper()
	storetest.Run(t, func(t *testing.T) idempotency.Store {
		t.Helper()
		return newStore(t, client, &redisstore.Config{Prefix: t.Name()})
	})
}

func TestStore(t *testing.T) {
	t.Parallel()
	url := os.Getenv(urlVariable)
	if url == "" {
		checkContract(t, startServer(t).client(nil))
		return
	}
	options, err := redis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(options)
	t.Cleanup(func() { _ = client.Close() })
	checkContract(t, client)
}

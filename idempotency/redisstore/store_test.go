package redisstore_test

import (
	"os"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/redisstore"
	"github.com/samecommit/samecommit/idempotency/storetest"
)

// urlVariable names a server to run the contract on, besides those that tests start.
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
	client := startServer(t).client(nil)
	if text, err := client.InfoMap(t.Context(), "server").Result(); err == nil {
		t.Logf("redis-server %s", text["Server"]["redis_version"])
	}
	checkContract(t, client)
}

func TestStoreAtURL(t *testing.T) {
	t.Parallel()
	url := os.Getenv(urlVariable)
	if url == "" {
		t.Skip(urlVariable + " is not set")
	}
	options, err := redis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(options)
	t.Cleanup(func() { _ = client.Close() })
	checkContract(t, client)
}

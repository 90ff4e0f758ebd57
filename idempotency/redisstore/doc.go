// Package redisstore keeps idempotency keys in Redis 6.2 or later, or Valkey, under
// leases: for LeaseClient, DoLeased and Step.
//
//	store, err := redisstore.New(redis.NewClient(options), nil)
//	…
//	if err := store.Check(ctx); err != nil {
//		// The server would lose keys: it evicts, or keeps nothing on disk.
//	}
//	client, err := idempotency.NewLeaseClient(store, nil)
//
// Each verb is one script and one round trip, and two where a key is taken over. Time is
// the server's. A key in progress has no TTL, so the server never frees it; an answer
// has one, which cleans up, and is replayed by the time that is recorded with it.
//
// What Redis cannot promise: after a failover to a replica that has not heard of a
// claim, two holders are told that the key is theirs. The first to be left behind gets
// ErrClaimLost when it records anything, and what it did elsewhere stays. Answers can be
// lost likewise. Config.Replicas makes a claim wait for replicas. Where money moves, keep
// the keys in PostgreSQL, with DoExternal.
package redisstore

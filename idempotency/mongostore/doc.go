// Package mongostore keeps idempotency keys in MongoDB 5.0 or later, under leases: for
// LeaseClient, DoLeased and Step.
//
//	store, err := mongostore.New(client.Database("app").Collection("idempotency_keys"))
//	…
//	if err := store.CreateIndexes(ctx); err != nil { … }
//	client, err := idempotency.NewLeaseClient(store, nil)
//
// A key is one document, whose _id is scope and id, so that no second index has to be
// unique. A claim is one write: an insert, or a replacement of the document as it was
// seen. Whatever the caller's client is set to, writes and reads are those of a majority,
// on the primary, and outside of the session of a context. Store.WithSession records an
// answer in a transaction instead.
//
// Leases and answers end by the primary's clock, in a sharded cluster by those of the
// routers too, and after a failover by another machine's: all nodes need NTP. Where keys
// and writes are to commit together from the claim on, keep both in PostgreSQL.
package mongostore

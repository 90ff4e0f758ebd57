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
// on the primary. Time is the server's: in a sharded cluster that of its routers too.
//
// Complete, AddStep and Get join the transaction of a session in their context: the
// answer is then recorded if that commits. The other verbs return a *ParamError there,
// since others must see a claim at once.
//
// What MongoDB cannot promise: a primary that is cut off may have told its caller that a
// key was new, and be replaced before a majority has heard of it. That caller gets
// an error, and no answer of a majority is lost. Where keys and writes are to commit
// together, keep both in PostgreSQL.
package mongostore

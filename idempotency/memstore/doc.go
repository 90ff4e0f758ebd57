// Package memstore keeps idempotency keys in memory: for tests that should not
// need a database, and for programs whose keys may end with the process.
//
//	store := memstore.New[*memstore.Tx](nil)
//	client, err := idempotency.NewClient(store, nil)
//
// It keeps the whole contract, leases and transactions included, and is safe
// for concurrent use. Its clock is time.Now, so package testing/synctest moves
// it. A transaction holds nothing but keys and the functions given to
// Tx.OnCommit, which stand for the writes that a database would roll back. Nothing
// waits for a transaction, as it would in a database: a key that one has written to is
// in progress, and a claim of a lease that RunHeld is at is lost to the other verbs.
//
// A service that holds an idempotency.Client[pgx.Tx] is tested with
// memstore.New[pgx.Tx](nil): its functions get a nil transaction. Give New a
// function to hand them a fake instead; a fake with a method MemTx() *Tx can
// also be passed to DoTx and WithTx.
package memstore

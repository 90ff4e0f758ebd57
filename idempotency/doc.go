// Package idempotency runs an operation once per idempotency key.
//
// The claim on the key, the operation's own writes and its recorded answer are
// one database transaction: they commit together or not at all. A repeated
// call gets the recorded answer; a crash leaves nothing behind.
//
//	store, err := pgxstore.New(pool, nil)
//	…
//	client, err := idempotency.NewClient(store, nil)
//	…
//	result, err := idempotency.Do(ctx, client, idempotency.Params{
//		Key:         idempotency.Key{Scope: "tenant-7/charge", ID: request.IdempotencyKey},
//		Fingerprint: idempotency.FingerprintOf(request.Body),
//	}, func(ctx context.Context, tx pgx.Tx) (Charge, error) {
//		return charge(ctx, tx, request)
//	})
//
// Do opens the transaction; DoTx works inside the caller's, and Client.WithTx
// gives its three verbs, Begin, Complete and Get, one by one. Package pgxstore
// keeps the keys in PostgreSQL, memstore in memory. The promises and their
// limits are in docs/guarantees.md and docs/design.md.
//
// # What is not caught
//
// The function given to Do must act through its tx only. A pool or an outer
// transaction that it captured, a message it sends, a file it writes: none of
// these roll back, and the function runs again after a serialization failure.
// Writes around DoTx, before or after it in the caller's transaction, happen
// again on a replay. Do inside the caller's own transaction function commits on
// its own, whatever becomes of the outer transaction.
//
// This package imports the standard library only.
package idempotency

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
//		Fingerprint: idempotency.FingerprintOf("POST /charges", body),
//	}, func(ctx context.Context, tx pgx.Tx) (Charge, error) {
//		return charge(ctx, tx, request)
//	})
//
// Do opens the transaction; DoTx works inside the caller's, and Client.WithTx
// gives its three verbs, Begin, Complete and Get, one by one. Client.Run is Do
// without types, for answers that are bytes already. DoLeased and DoExternal are for
// work that leaves the database. Package pgxstore keeps the keys in PostgreSQL,
// memstore in memory. The promises and their limits are in docs/guarantees.md and
// docs/design.md.
//
// # Words
//
//   - A claim is a hold on a key, from Begin to Complete.
//   - A response is a type and bytes, as they are recorded.
//   - An answer is what an operation has to say: a response, and whether its writes
//     go. Recorded, it is what every later call gets.
//   - A result is an answer as a Go value, or as the final error that it stands for.
//   - A record is all that a store knows of a key: its claim, and its response.
//   - An outcome is what a call found: new, in progress, or completed with a record.
//
// # Stores
//
// What a store is, and may also be:
//
//   - Verbs are the contract, and package storetest checks them;
//   - a Store keeps them at once for everybody, and holds running keys by leases;
//   - a TxStore also holds keys by a transaction, and is what a Client needs;
//   - a Sweeper has to be told to delete what has expired;
//   - a Lister finds leased work whose lease has ended;
//   - BatchVerbs, of a TxStore's WithTx, take many keys at once;
//   - a PerCallerStore, or NamespaceStore, answers each caller for itself.
//
// The last four are found by a type assertion. What all stores have to do alike is
// exported: BeginParams, Claim, Key and Response validate themselves, Key.Digest
// stands for a key, Record.Judge says what a record means to a claim, Record.Clone
// keeps callers out of it, and Fingerprint.Text and ClaimID.String can be parsed.
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

// Package pgxstore keeps idempotency keys in PostgreSQL, through pgx.
//
//	store, err := pgxstore.New(pool, nil)
//	client, err := idempotency.NewClient(store, nil)
//
// The table idempotency_keys must exist in the connection's search_path; package
// migrations creates it. The statements and the reason for each are in
// docs/design.md.
//
// It imports idempotency, db, txhelper and pgx.
package pgxstore

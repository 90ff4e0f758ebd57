// Package sqlstore keeps idempotency keys in PostgreSQL for services that hold a *sql.DB,
// alone or under GORM, sqlx, bun, ent or sqlc: idempotency.Do lends its transaction as a
// *sql.Tx, and idempotency.DoTx works in the caller's own.
//
// The keys, the protocol and the errors are those of package pgxstore, which does the
// work on pgx connections out of the *sql.DB: open that with the driver of
// github.com/jackc/pgx/v5/stdlib. docs/database-sql.md is about what database/sql and the
// packages above it do otherwise.
//
// While the function of Do runs, its connection is lent by sql.Conn.Raw. The Close of a
// *sql.Stmt that was prepared on the *sql.DB may wait for that to end: do not call it in
// the function.
package sqlstore

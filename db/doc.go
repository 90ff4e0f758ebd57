// Package db is what sqlc generates from queries/idempotency_keys.sql, with
// pgx/v5 types. Only the Postgres stores import it.
//
// It follows the SQL and is outside the promises of semantic versioning. An
// application that wants these statements in its own sqlc package adds
// migrations/ to its schema and the query file to its queries.
package db

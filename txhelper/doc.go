// Package txhelper runs a function in a PostgreSQL transaction and says exactly
// what became of it.
//
// Run and RunValue retry serialization failures and deadlocks in a fresh
// transaction, roll back on error, panic and runtime.Goexit even where the
// context has been cancelled, and tell a commit that failed from one whose
// outcome is unknown. The transaction that the function gets refuses to commit
// and to roll back: it belongs to Run.
//
// It imports pgx only.
package txhelper

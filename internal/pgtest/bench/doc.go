// Package bench is the work bench of tests that use a client on PostgreSQL: a
// pool, a store, a client and a table for effects, a few operations, ways to
// look at the database, and ways to break a connection.
//
// Package pgtest gives the database. A helper stands here once tests of two
// packages need it; until then it stays beside its tests.
package bench

// Package pgtest gives a test a PostgreSQL database of its own.
//
// A package of tests hands its TestMain to Main; from then on DB, Config,
// Empty and URL each make a new database on a server that package pgserver
// finds or starts once per test binary. DB and Config copy a template that
// already has samecommit's tables, which takes about 10 ms, so that a test can
// commit, open many connections and run in parallel with any other.
//
// No database means a failed test, never a skipped one. The database of a test
// that passes is dropped; that of a test that fails is kept and its URL logged.
package pgtest

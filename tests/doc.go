// Package tests holds the tests that need a PostgreSQL server, and whatever
// else does not belong into the module that users import: containers, faults,
// crashes, isolation levels and the command-line tool end to end.
//
// It is a module of its own, so that what it needs never reaches a user's
// go.sum. Package pgserver says how a server is found; with
// SAMECOMMIT_POSTGRES=container only a container will do.
package tests

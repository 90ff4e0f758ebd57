// Package pgserver answers "give me a PostgreSQL" for tests, the demo and
// benchmarks alike, so that a plain clone runs with whatever the machine has.
//
// Start takes the first of these that is there:
//
//  1. the server that SAMECOMMIT_POSTGRES_URL names;
//  2. a container, where the caller brings a way to start one;
//  3. a throw-away server made from the machine's own initdb and postgres,
//     which SAMECOMMIT_POSTGRES_BIN may name by their folder;
//  4. the same from binaries that are downloaded, where the caller brings a way.
//
// SAMECOMMIT_POSTGRES narrows the choice to one: url, container, local or download. A CI
// sets it, so that it cannot pass on another server than it was meant to use.
//
// It imports pgx and the standard library only, and never testing: the demo
// links it.
package pgserver

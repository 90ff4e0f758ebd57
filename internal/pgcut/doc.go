// Package pgcut cuts connections to PostgreSQL at a chosen message, for tests.
//
// A Cutter reads the messages of the wire protocol as they pass through a
// connection's DialFunc, so it needs no listener of its own. It first records
// the messages of a run in which nothing is cut, which tells how many points
// there are, and then cuts one of them in every further run.
package pgcut

// Package chaos holds the tests that break things: they cut connections at
// every message, and check afterwards what the package promises.
//
// They print what they have injected and what came of it. A kind of fault that
// never happened fails the run, because it has proved nothing.
package chaos

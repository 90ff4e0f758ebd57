// Package chaos holds the tests that break things: they cut connections at
// every message, and those of HTTP at every byte, kill servers and clients, and
// check afterwards what the package promises.
//
// They print what they have injected and what came of it. In a whole run, a kind
// of fault that never happened fails it, because it has proved nothing.
//
// They run on Unix, for the signals that they send.
package chaos

// Package examples holds programs that show samecommit at work, each in a
// folder of its own. It is a module of its own, so that what they need never
// reaches a user's go.sum.
package examples

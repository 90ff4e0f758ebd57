// Package tests holds what belongs to no single package: the store contract on
// PostgreSQL, the demo and the README as users run them, what packages may
// import, storms of duplicates; and in folders of its own chaos, interleavings,
// models, the simulator, the matrix of versions, and the mutants that test the
// tests. What a package promises by itself is tested beside it.
//
// It is a module of its own, so that what it needs never reaches a user's
// go.sum.
package tests

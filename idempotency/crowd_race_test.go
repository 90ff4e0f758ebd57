//go:build race

package idempotency_test

// The race detector knows at most 8,128 goroutines.
func init() { crowdSize = 6_000 }

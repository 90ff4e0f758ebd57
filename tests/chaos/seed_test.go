//go:build unix

package chaos_test

import (
	"flag"
	"math/rand/v2"
	"testing"
)

var seedFlag = flag.Uint64("chaos.seed", 0, "what is chosen at random begins with this; 0 chooses it too, and prints it")

// size returns what a flag says, or else whole, or short with -short.
func size(flag, whole, short int) int {
	switch {
	case flag != 0:
		return flag
	case testing.Short():
		return short
	}
	return whole
}

// newSeed returns the seed of a test, and prints it.
func newSeed(t *testing.T) uint64 {
	t.Helper()
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("again with -chaos.seed=%d", seed)
	return seed
}

//go:build unix

package tests_test

import "testing"

// The example kills a process at every step between a charge elsewhere and its
// booking: there is one of each in the end, and the usual way has two charges.
func TestCardcharge(t *testing.T) {
	t.Parallel()
	wantOnceAndTwice(t, "cardcharge", 6, 4, "charges", "bookings")
}

//go:build unix

package tests_test

import "testing"

// The example kills a client of an HTTP API at every step around its send: with the key in
// the client's own row there is one charge and one receipt in the end, and with a key in
// memory there are two charges where the server had been asked.
func TestDurableClient(t *testing.T) {
	t.Parallel()
	wantOnceAndTwice(t, "durableclient", 5, 2, "charges", "receipts")
}

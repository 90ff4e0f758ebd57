// Package storetest checks a store against the contract of package idempotency:
//
//	func TestStore(t *testing.T) {
//		t.Parallel()
//		storetest.Run(t, func(t *testing.T) idempotency.Store { return newStore(t) })
//	}
//
// A store with transactions passes RunTx as well. The suites use nothing but
// the exported interfaces and no sleeps; the store's clock is the only clock
// they rely on.
package storetest

import (
	"testing"

	"github.com/samecommit/samecommit/idempotency"
)

// Run checks the verbs, the leases and the steps of a store, the sweep of one that is
// an idempotency.Sweeper and the list of one that is an idempotency.Lister, in
// parallel subtests. Each calls newStore once, and Run does, to see what it makes. It
// may return the same database again as long as nobody else's expired records and
// abandoned work are in it, which the sweep and the list would count.
func Run(t *testing.T, newStore func(t *testing.T) idempotency.Store) {
	t.Helper()
	all := [][]testCase[*suite]{verbCases, leaseCases, stepCases}
	store := newStore(t)
	if _, ok := store.(idempotency.Sweeper); ok {
		all = append(all, sweepCases)
	}
	if _, ok := store.(idempotency.Lister); ok {
		all = append(all, listCases)
	}
	for _, cases := range all {
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				c.check(newSuite(t, newStore(t)))
			})
		}
	}
}

// RunTx checks the transactions of a store, in parallel subtests. Each calls
// newHarness once. Subtests use keys and effects of their own, so all of them
// may share a database.
func RunTx[TTx any](t *testing.T, newHarness func(t *testing.T) Harness[TTx]) {
	t.Helper()
	for _, cases := range [][]testCase[*txSuite[TTx]]{txCases[TTx](), batchCases[TTx](), runCases[TTx](), savepointCases[TTx](), transactCases[TTx](), stepTxCases[TTx](), runHeldCases[TTx]()} {
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				h := newHarness(t)
				c.check(&txSuite[TTx]{suite: newSuite(t, h.Store), h: h})
			})
		}
	}
}

// testCase is a promise in words and the check of it. The checks are methods of
// a suite, which is the *testing.T: a failure then points at the line of the
// check and not at the loop over the cases.
type testCase[S any] struct {
	name  string
	check func(S)
}

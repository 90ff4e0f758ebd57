package storetest

import (
	"context"

	"github.com/samecommit/samecommit/idempotency"
)

// Harness is what RunTx needs to know about transactions. An effect stands for
// a caller's own write: a row in a table of names, for one.
type Harness[TTx any] struct {
	// Store is the store under test.
	Store idempotency.TxStore[TTx]
	// Begin opens a transaction as the caller of WithTx would.
	Begin func(ctx context.Context) (tx TTx, commit func(context.Context) error, rollback func(context.Context) error, err error)
	// Effect writes one effect as part of tx.
	Effect func(ctx context.Context, tx TTx, name string) error
	// Effects counts the committed effects of that name.
	Effects func(ctx context.Context, name string) (int, error)
	// Commit and Rollback call the methods of tx, to see that they are refused
	// inside Run, Transact and Savepoint. Nil where the transaction type has none: the
	// checks of that refusal are skipped.
	Commit   func(ctx context.Context, tx TTx) error
	Rollback func(ctx context.Context, tx TTx) error
	// CallerMayEnd says that Savepoint cannot refuse Commit and Rollback to its function,
	// which gets the caller's own transaction: they end it, and Savepoint is ErrTxEnded.
	CallerMayEnd bool
}

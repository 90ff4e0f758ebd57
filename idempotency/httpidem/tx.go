package httpidem

import "context"

// Tx returns the transaction of the handler that runs in ctx, and whether there is one of
// this type. It is that of this run of the handler alone, and refuses Commit and Rollback.
func Tx[TTx any](ctx context.Context) (TTx, bool) {
	held, ok := ctx.Value(txKey[TTx]{}).(heldTx[TTx])
	return held.tx, ok
}

type txKey[TTx any] struct{}

// heldTx makes a transaction that is nil, as that of a fake, one that is there.
type heldTx[TTx any] struct{ tx TTx }

package idempotency

import (
	"context"
	"sync/atomic"
)

// heldKey finds, in the context that an operation's function gets, the *held of
// this call of it.
type heldKey struct{}

// held is a key that a call of an operation's function runs under. The settings
// stand for the client.
type held struct {
	settings *settings
	key      Key
	// running ends with the function: what it left running may keep the context
	// for longer.
	running atomic.Bool
	// outer is what that call runs in, if it is itself nested in another key's.
	outer *held
}

// hold returns a context in which the key is held until done is called.
func (s *settings) hold(ctx context.Context, key Key) (inside context.Context, done func()) {
	outer, _ := ctx.Value(heldKey{}).(*held)
	h := &held{settings: s, key: key, outer: outer}
	h.running.Store(true)
	return context.WithValue(ctx, heldKey{}, h), func() { h.running.Store(false) }
}

// checkNesting refuses to begin a key inside the operation that holds it: it
// would wait for itself, or on the operation's own transaction not even that.
func (s *settings) checkNesting(ctx context.Context, key Key) error {
	for h, _ := ctx.Value(heldKey{}).(*held); h != nil; h = h.outer {
		if h.settings == s && h.key == key && h.running.Load() {
			return &KeyError{Key: key, Err: ErrNested}
		}
	}
	return nil
}

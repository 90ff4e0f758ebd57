package httpidem_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

// storeDouble is a memstore that knows what it was asked, and can fail.
type storeDouble struct {
	*memstore.Store[*memstore.Tx]
	// fail says why a transaction is not committed. Where it is nil, all are.
	fail func(ctx context.Context) error
	// asked counts the transactions that were begun. last is of the last one's key.
	asked atomic.Int32
	last  atomic.Pointer[idempotency.BeginParams]
}

func (s *storeDouble) Run(ctx context.Context, params *idempotency.BeginParams, fn func(context.Context, *memstore.Tx) (idempotency.Answer, error)) (*idempotency.Outcome, error) {
	s.asked.Add(1)
	s.last.Store(params)
	return s.Store.Run(ctx, params, func(ctx context.Context, tx *memstore.Tx) (idempotency.Answer, error) {
		answer, err := fn(ctx, tx)
		if err == nil && s.fail != nil {
			err = s.fail(ctx)
		}
		return answer, err
	})
}

func (s *storeDouble) Transact(ctx context.Context, fn func(context.Context, *memstore.Tx) error) error {
	s.asked.Add(1)
	return s.Store.Transact(ctx, func(ctx context.Context, tx *memstore.Tx) error {
		err := fn(ctx, tx)
		if err == nil && s.fail != nil {
			err = s.fail(ctx)
		}
		return err
	})
}

func (s *storeDouble) wantAsked(t *testing.T, want int32) {
	t.Helper()
	if asked := s.asked.Load(); asked != want {
		t.Errorf("the store was asked for %d transactions, want %d", asked, want)
	}
}

// rivalledStore is a memstore in which another call answers the key between two runs of the
// function, the last of which is undone.
type rivalledStore struct {
	*memstore.Store[*memstore.Tx]
}

func (s rivalledStore) Run(ctx context.Context, params *idempotency.BeginParams, fn func(context.Context, *memstore.Tx) (idempotency.Answer, error)) (*idempotency.Outcome, error) {
	if _, err := s.Store.Run(ctx, params, fn); err != nil {
		return nil, err
	}
	undone := errors.New("undone")
	if err := s.Transact(ctx, func(ctx context.Context, tx *memstore.Tx) error {
		_, err := fn(ctx, tx)
		return errors.Join(undone, err)
	}); !errors.Is(err, undone) {
		return nil, err
	}
	return s.Store.Run(ctx, params, fn)
}

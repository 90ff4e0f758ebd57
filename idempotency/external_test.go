package idempotency_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

// externalBench is a client whose work elsewhere is a charge, and whose work in a
// transaction is a booking.
type externalBench struct {
	*testing.T
	store  *leasedStore
	client *idempotency.Client[*memstore.Tx]
	// charges and bookings count what was done and has not been undone.
	charges, bookings int
	// inside is asked in the transaction, after the booking.
	inside func(ctx context.Context, tx *memstore.Tx) error
}

func newExternalBench(t *testing.T, config *idempotency.Config) *externalBench {
	t.Helper()
	b := &externalBench{T: t, store: newLeasedStore(), inside: func(context.Context, *memstore.Tx) error { return nil }}
	var err error
	if b.client, err = idempotency.NewClient(b.store, config); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *externalBench) charge(ctx context.Context, lease *idempotency.Lease) (string, error) {
	return charge(ctx, lease, &b.charges)
}

func (b *externalBench) book(ctx context.Context, tx *memstore.Tx, receipt string) (string, error) {
	tx.OnCommit(func() { b.bookings++ })
	return "booked " + receipt, b.inside(ctx, tx)
}

func (b *externalBench) do(id string) (idempotency.Result[string], error) {
	return idempotency.DoExternal(b.Context(), b.client, testParams(id), b.charge, b.book)
}

// want checks how often something was done, and that the next call gets the answer.
func (b *externalBench) want(id string, charges, bookings int) {
	b.Helper()
	if b.charges != charges || b.bookings != bookings {
		b.Errorf("%d charges and %d bookings, want %d and %d", b.charges, b.bookings, charges, bookings)
	}
	record, err := b.client.Get(b.Context(), testParams(id).Key)
	if err != nil || record.State != idempotency.Completed {
		b.Errorf("the record is %+v, %v; want it completed", record, err)
	}
}

func TestDoExternalRunsOnce(t *testing.T) {
	t.Parallel()
	b := newExternalBench(t, nil)
	for i := range 2 {
		result, err := b.do("k")
		if err != nil || result.Replayed != (i == 1) || !strings.HasPrefix(result.Value, "booked receipt for ") {
			t.Errorf("call %d: %+v, %v", i+1, result, err)
		}
	}
	b.want("k", 1, 1)
}

// What keeps the booking from being committed leaves the charge to the next call.
func TestDoExternalContinuesWithWhatWasDone(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func() error{
		"error":  func() error { return errors.New("no such account") },
		"panic":  func() error { panic("on purpose") },
		"Goexit": func() error { runtime.Goexit(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newExternalBench(t, nil)
			b.inside = func(context.Context, *memstore.Tx) error { return fail() }
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				defer func() { _ = recover() }() //nolint:errcheck // Which of them it was does not matter.
				if result, err := b.do("k"); err == nil {
					t.Errorf("got %+v", result)
				}
			}()
			<-ended
			record, err := b.client.Get(t.Context(), testParams("k").Key)
			if err != nil || !record.Suspended() || len(record.Steps) != 1 || b.bookings != 0 {
				t.Fatalf("%+v, %v, %d bookings; want a suspended record with the charge", record, err, b.bookings)
			}
			b.inside = func(context.Context, *memstore.Tx) error { return nil }
			if result, err := b.do("k"); err != nil || result.Replayed {
				t.Errorf("%+v, %v", result, err)
			}
			b.want("k", 1, 1)
		})
	}
}

func TestFinalErrorsOfDoExternal(t *testing.T) {
	t.Parallel()
	errDeclined := errors.New("declined")
	config := &idempotency.Config{FinalErrors: []idempotency.FinalKind{idempotency.FinalValue("declined", errDeclined)}}
	for name, external := range map[string]error{"external": idempotency.Final(errDeclined), "commit": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newExternalBench(t, config)
			b.inside = func(context.Context, *memstore.Tx) error { return idempotency.Final(errDeclined) }
			for range 2 {
				_, err := idempotency.DoExternal(t.Context(), b.client, testParams("k"), func(ctx context.Context, lease *idempotency.Lease) (string, error) {
					receipt, err := b.charge(ctx, lease)
					return receipt, errors.Join(err, external)
				}, func(ctx context.Context, tx *memstore.Tx, receipt string) (string, error) {
					if external != nil {
						t.Error("commit ran after a final error")
					}
					return b.book(ctx, tx, receipt)
				})
				var final *idempotency.FinalError
				if !errors.As(err, &final) || !errors.Is(err, errDeclined) {
					t.Errorf("got %v, want the final error", err)
				}
			}
			b.want("k", 1, 0)
		})
	}
}

// A transaction that takes its time holds the key by itself: nobody renews the lease,
// and nobody takes it over.
func TestDoExternalDoesNotRenewWhileItCommits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newExternalBench(t, &idempotency.Config{MaxHold: time.Hour})
		b.inside = func(ctx context.Context, _ *memstore.Tx) error {
			before := b.store.calls.Load()
			time.Sleep(2 * time.Hour)
			if err := ctx.Err(); err != nil {
				t.Errorf("the transaction's context has ended: %v", context.Cause(ctx))
			}
			if calls := b.store.calls.Load() - before; calls != 0 {
				t.Errorf("%d requests to the store beside the transaction, want none", calls)
			}
			params := testParams("k")
			params.Wait = idempotency.NoWait
			other, err := idempotency.NewClient(b.store, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := idempotency.DoExternal(ctx, other, params, b.charge, b.book); !errors.Is(err, idempotency.ErrInProgress) {
				t.Errorf("a second call after the lease's end: %v, want ErrInProgress", err)
			}
			return nil
		}
		if result, err := b.do("k"); err != nil || result.Record.Attempt != 1 {
			t.Errorf("%+v, %v", result, err)
		}
		b.want("k", 1, 1)
	})
}

// Who has lost the key does not book, though the charge was made.
func TestDoExternalOfALostClaim(t *testing.T) {
	t.Parallel()
	b := newExternalBench(t, nil)
	_, err := idempotency.DoExternal(t.Context(), b.client, testParams("k"), func(ctx context.Context, lease *idempotency.Lease) (string, error) {
		record, err := b.client.Get(ctx, lease.Key())
		if err != nil {
			return "", err
		}
		// Somebody takes the key over.
		claim := &idempotency.Claim{Key: lease.Key(), ID: record.ClaimID}
		if err := b.store.Suspend(ctx, claim); err != nil {
			return "", err
		}
		_, err = b.store.Store.Begin(ctx, &idempotency.BeginParams{Key: lease.Key(), Fingerprint: testParams("k").Fingerprint, TTL: time.Hour, Lease: time.Minute})
		return "of a zombie", err
	}, func(context.Context, *memstore.Tx, string) (string, error) {
		t.Error("commit ran under a lost claim")
		return "", nil
	})
	if !errors.Is(err, idempotency.ErrClaimLost) {
		t.Errorf("got %v, want ErrClaimLost", err)
	}
}

// An error that says that nothing was committed is about the transaction alone.
func TestDoExternalWithoutAServer(t *testing.T) {
	t.Parallel()
	b := newExternalBench(t, nil)
	b.store.before = func(verb string) error {
		if verb == "RunHeld" {
			return &idempotency.KeyError{Key: testParams("k").Key, Err: idempotency.ErrUnavailable}
		}
		return nil
	}
	_, err := b.do("k")
	if !errors.Is(err, idempotency.ErrUnavailable) || !strings.Contains(err.Error(), "what was done elsewhere stands") {
		t.Errorf("got %v, want ErrUnavailable, and what stands", err)
	}
	b.store.before = func(string) error { return nil }
	if _, err := b.do("k"); err != nil {
		t.Error(err)
	}
	b.want("k", 1, 1)
}

func TestStepInsideTheTransactionIsRefused(t *testing.T) {
	t.Parallel()
	b := newExternalBench(t, nil)
	var kept *idempotency.Lease
	_, err := idempotency.DoExternal(t.Context(), b.client, testParams("k"), func(_ context.Context, lease *idempotency.Lease) (string, error) {
		kept = lease
		return "", nil
	}, func(ctx context.Context, _ *memstore.Tx, _ string) (string, error) {
		return b.charge(ctx, kept)
	})
	if err == nil || b.charges != 0 {
		t.Errorf("%v, %d charges; want an error and none", err, b.charges)
	}
}

func TestDoExternalRefusesItsOwnKeyInside(t *testing.T) {
	t.Parallel()
	b := newExternalBench(t, nil)
	b.inside = func(ctx context.Context, _ *memstore.Tx) error {
		_, err := idempotency.Do(ctx, b.client, testParams("k"), func(context.Context, *memstore.Tx) (string, error) { return "", nil })
		return err
	}
	if _, err := b.do("k"); !errors.Is(err, idempotency.ErrNested) {
		t.Errorf("got %v, want ErrNested", err)
	}
}

func TestDoExternalParams(t *testing.T) {
	t.Parallel()
	b := newExternalBench(t, nil)
	short := testParams("k")
	short.Lease = time.Millisecond
	for field, call := range map[string]func() (idempotency.Result[string], error){
		"client": func() (idempotency.Result[string], error) {
			return idempotency.DoExternal(t.Context(), nil, testParams("k"), b.charge, b.book)
		},
		"Lease": func() (idempotency.Result[string], error) {
			return idempotency.DoExternal(t.Context(), b.client, short, b.charge, b.book)
		},
		"external": func() (idempotency.Result[string], error) {
			return idempotency.DoExternal(t.Context(), b.client, testParams("k"), nil, b.book)
		},
		"commit": func() (idempotency.Result[string], error) {
			return idempotency.DoExternal[string, string, *memstore.Tx](t.Context(), b.client, testParams("k"), b.charge, nil)
		},
	} {
		_, err := call()
		if param, ok := errors.AsType[*idempotency.ParamError](err); !ok || param.Field != field {
			t.Errorf("got %v, want a *ParamError of %s", err, field)
		}
	}
	if b.charges != 0 {
		t.Errorf("%d charges of refused calls", b.charges)
	}
}

package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/samecommit/samecommit/idempotency"
)

const year = 365 * 24 * time.Hour

// One hold of a year, renewed over a store of which one request in ten fails.
func TestLeaseOfAYear(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := newLeasedStore()
		random := rand.New(rand.NewPCG(1, 1))
		renewals, failures := 0, 0
		store.before = func(verb string) error {
			if verb != "Extend" {
				return nil
			}
			if renewals++; random.IntN(10) == 0 {
				failures++
				return errDown
			}
			return nil
		}
		client := leaseClient(t, store, &idempotency.Config{Lease: time.Hour, MaxHold: 2 * year})
		start := time.Now()
		result, err := idempotency.DoLeased(t.Context(), client, testParams("k"), func(ctx context.Context, _ *idempotency.Lease) (string, error) {
			select {
			case <-ctx.Done():
				return "", context.Cause(ctx)
			case <-time.After(year):
				return "a year later", nil
			}
		})
		if err != nil || result.Record.Attempt != 1 || time.Since(start) != year {
			t.Errorf("%+v, %v after %s; want the first attempt's answer after a year", result, err, time.Since(start))
		}
		// Three an hour, and some that are tried again after 6 minutes.
		if least := int(year / (20 * time.Minute)); renewals-failures < least*9/10 || renewals > least*2 {
			t.Errorf("%d renewals, of which %d failed; want about %d that succeed", renewals, failures, least)
		}
	})
}

// A year of orders, one a day. Holders fail, die with their key and stand still past
// their lease; each day's 60 callers in 3 processes get one answer, of one charge.
func TestLeasedWorkOfAYear(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := newLeasedStore()
		var clients []*idempotency.LeaseClient
		for range 3 {
			clients = append(clients, leaseClient(t, store, nil))
		}
		random := rand.New(rand.NewPCG(2, 2))
		for day := range 365 {
			started := time.Now()
			orderOfADay(t, store, clients, fmt.Sprint(day), random.IntN(4))
			time.Sleep(24*time.Hour - time.Since(started))
		}
	})
}

// orderOfADay is one key: somebody's trouble with it first, then 60 callers.
func orderOfADay(t *testing.T, store *leasedStore, clients []*idempotency.LeaseClient, id string, trouble int) {
	t.Helper()
	var mu sync.Mutex
	charges, runs, replays := 0, 0, 0
	step := func(ctx context.Context, lease *idempotency.Lease) (string, error) {
		return idempotency.Step(ctx, lease, "charge", idempotency.NoFingerprint, func(_ context.Context, call idempotency.StepCall) (string, error) {
			mu.Lock()
			defer mu.Unlock()
			if charges++; charges > 1 && !call.MayHaveRun {
				t.Errorf("order %s: charge %d was told that there was none before", id, charges)
			}
			return fmt.Sprintf("receipt %d", charges), nil
		})
	}
	var late sync.WaitGroup
	switch trouble {
	case 1: // it fails after the charge
		errMail := errors.New("no mail")
		_, err := idempotency.DoLeased(t.Context(), clients[0], testParams(id), func(ctx context.Context, lease *idempotency.Lease) (string, error) {
			_, err := step(ctx, lease)
			return "", errors.Join(err, errMail)
		})
		if !errors.Is(err, errMail) {
			t.Errorf("order %s: %v, want the function's own error", id, err)
		}
	case 2: // it dies before the charge is recorded
		mu.Lock()
		charges++
		mu.Unlock()
		if _, err := store.Store.Begin(t.Context(), &idempotency.BeginParams{Key: testParams(id).Key, Fingerprint: testParams(id).Fingerprint, TTL: time.Hour, Lease: time.Minute}); err != nil {
			t.Fatal(err)
		}
	case 3: // it stands still past its lease, and goes on while others are at it
		entered := make(chan struct{})
		late.Go(func() {
			still := leaseClient(t, &stillStore{leasedStore: store}, nil)
			_, err := idempotency.DoLeased(t.Context(), still, testParams(id), func(ctx context.Context, lease *idempotency.Lease) (string, error) {
				_, err := step(ctx, lease)
				close(entered)
				time.Sleep(10 * time.Minute) // whatever its context says
				return "of a zombie", err
			})
			if !errors.Is(err, idempotency.ErrClaimLost) {
				t.Errorf("order %s: a holder that stood still: %v, want ErrClaimLost", id, err)
			}
		})
		<-entered
	}
	var group sync.WaitGroup
	for caller := range 60 {
		group.Go(func() {
			params := testParams(id)
			params.Wait = time.Hour
			result, err := idempotency.DoLeased(t.Context(), clients[caller%len(clients)], params, func(ctx context.Context, lease *idempotency.Lease) (string, error) {
				runs++ // by one at a time, or the race detector says so
				receipt, err := step(ctx, lease)
				time.Sleep(time.Minute) // two leases
				return receipt, err
			})
			mu.Lock()
			defer mu.Unlock()
			if want := fmt.Sprintf("receipt %d", charges); err != nil || result.Value != want {
				t.Errorf("order %s: %+v, %v; want %s", id, result, err, want)
			}
			if result.Replayed {
				replays++
			}
		})
	}
	group.Wait()
	late.Wait()
	most := 1
	if trouble == 2 {
		most = 2 // of which the second was told that it may be one
	}
	if runs != 1 || replays != 59 || charges != most {
		t.Errorf("order %s: %d runs, %d replays, %d charges; want 1, 59 and %d", id, runs, replays, charges, most)
	}
}

// stillStore is the store of a process that stands still: it renews nothing.
type stillStore struct{ *leasedStore }

func (s *stillStore) Extend(ctx context.Context, _ *idempotency.Claim, _ time.Duration) (*idempotency.Claim, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

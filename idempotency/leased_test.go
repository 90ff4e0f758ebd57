package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

// leasedStore is a store in memory whose requests can be made to fail.
type leasedStore struct {
	*memstore.Store[*memstore.Tx]
	// before and after are asked around each verb: an error of before is instead of
	// the request, one of after instead of its reply.
	before, after func(verb string) error
	calls         atomic.Int32
}

func newLeasedStore() *leasedStore {
	none := func(string) error { return nil }
	return &leasedStore{Store: memstore.New[*memstore.Tx](nil), before: none, after: none}
}

func leasedRequest[T any](s *leasedStore, verb string, request func() (T, error)) (T, error) {
	s.calls.Add(1)
	var none T
	if err := s.before(verb); err != nil {
		return none, err
	}
	value, err := request()
	if lost := s.after(verb); lost != nil {
		return none, lost
	}
	return value, err
}

func (s *leasedStore) Begin(ctx context.Context, params *idempotency.BeginParams) (*idempotency.Outcome, error) {
	return leasedRequest(s, "Begin", func() (*idempotency.Outcome, error) { return s.Store.Begin(ctx, params) })
}

func (s *leasedStore) Get(ctx context.Context, key idempotency.Key) (*idempotency.Record, error) {
	return leasedRequest(s, "Get", func() (*idempotency.Record, error) { return s.Store.Get(ctx, key) })
}

func (s *leasedStore) Complete(ctx context.Context, claim *idempotency.Claim, response *idempotency.Response) (*idempotency.Record, error) {
	return leasedRequest(s, "Complete", func() (*idempotency.Record, error) { return s.Store.Complete(ctx, claim, response) })
}

func (s *leasedStore) Extend(ctx context.Context, claim *idempotency.Claim, lease time.Duration) (*idempotency.Claim, error) {
	return leasedRequest(s, "Extend", func() (*idempotency.Claim, error) { return s.Store.Extend(ctx, claim, lease) })
}

func (s *leasedStore) AddStep(ctx context.Context, claim *idempotency.Claim, step *idempotency.StepRecord) error {
	_, err := leasedRequest(s, "AddStep", func() (bool, error) { return true, s.Store.AddStep(ctx, claim, step) })
	return err
}

func (s *leasedStore) RunHeld(ctx context.Context, claim *idempotency.Claim, fn func(ctx context.Context, tx *memstore.Tx) (idempotency.Answer, error)) (*idempotency.Record, error) {
	return leasedRequest(s, "RunHeld", func() (*idempotency.Record, error) { return s.Store.RunHeld(ctx, claim, fn) })
}

var errDown = errors.New("test: the store is down")

func leaseClient(t *testing.T, store idempotency.Store, config *idempotency.Config) *idempotency.LeaseClient {
	t.Helper()
	client, err := idempotency.NewLeaseClient(store, config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// charge is a step that counts how often it has run.
func charge(ctx context.Context, lease *idempotency.Lease, runs *int) (string, error) {
	return idempotency.Step(ctx, lease, "charge", idempotency.FingerprintOf("500"), func(_ context.Context, call idempotency.StepCall) (string, error) {
		*runs++
		return "receipt for " + call.Key[:4], nil
	})
}

func TestDoLeasedRunsOnce(t *testing.T) {
	t.Parallel()
	client := leaseClient(t, newLeasedStore(), nil)
	runs, charges := 0, 0
	var answers []idempotency.Result[string]
	for range 2 {
		result, err := idempotency.DoLeased(t.Context(), client, testParams("k"), func(ctx context.Context, lease *idempotency.Lease) (string, error) {
			runs++
			return charge(ctx, lease, &charges)
		})
		if err != nil {
			t.Fatal(err)
		}
		answers = append(answers, result)
	}
	if runs != 1 || charges != 1 || answers[0].Replayed || !answers[1].Replayed || answers[0].Value != answers[1].Value || answers[0].Value == "" {
		t.Errorf("%d runs, %d charges, answers %+v; want one run and its replay", runs, charges, answers)
	}
	record, err := client.Get(t.Context(), testParams("k").Key)
	if err != nil || len(record.Steps) != 0 || record.State != idempotency.Completed {
		t.Errorf("%+v, %v; want the answer without steps", record, err)
	}
}

// A failure after a step leaves the work to the next call, which does not repeat it
// and is the same attempt.
func TestDoLeasedContinues(t *testing.T) {
	t.Parallel()
	client := leaseClient(t, newLeasedStore(), nil)
	errDeclined := errors.New("declined")
	for name, fail := range map[string]func(){
		"error": func() {},
		"panic": func() { panic("on purpose") },
	} {
		charges, attempts, resumed := 0, []int{}, []bool{}
		call := func(last bool) (result idempotency.Result[string], err error) {
			defer func() {
				if recovered := recover(); recovered != nil {
					err = errDeclined
				}
			}()
			return idempotency.DoLeased(t.Context(), client, testParams(name), func(ctx context.Context, lease *idempotency.Lease) (string, error) {
				attempts = append(attempts, lease.Attempt())
				receipt, err := charge(ctx, lease, &charges)
				if err != nil {
					return "", err
				}
				if !last {
					fail()
					return "", errDeclined
				}
				return idempotency.Step(ctx, lease, "book", idempotency.NoFingerprint, func(_ context.Context, call idempotency.StepCall) (string, error) {
					resumed = append(resumed, call.MayHaveRun)
					return receipt, nil
				})
			})
		}
		if _, err := call(false); !errors.Is(err, errDeclined) {
			t.Fatalf("%s: %v, want the function's own error", name, err)
		}
		record, err := client.Get(t.Context(), testParams(name).Key)
		if err != nil || !record.Suspended() || len(record.Steps) != 1 {
			t.Fatalf("%s: %+v, %v; want a suspended record with a step", name, record, err)
		}
		result, err := call(true)
		if err != nil || !strings.HasPrefix(result.Value, "receipt for ") || charges != 1 || len(attempts) != 2 || attempts[1] != 1 || !resumed[0] {
			t.Errorf("%s: %+v, %v, %d charges, attempts %v, resumed %v; want the first charge's receipt, in the same attempt", name, result, err, charges, attempts, resumed)
		}
	}
}

// A failure before any step leaves nothing, and the key is new again.
func TestDoLeasedReleasesWhatHasDoneNothing(t *testing.T) {
	t.Parallel()
	client := leaseClient(t, newLeasedStore(), nil)
	errEarly := errors.New("early")
	_, err := idempotency.DoLeased(t.Context(), client, testParams("k"), func(context.Context, *idempotency.Lease) (string, error) { return "", errEarly })
	if !errors.Is(err, errEarly) {
		t.Fatal(err)
	}
	if _, err := client.Get(t.Context(), testParams("k").Key); !errors.Is(err, idempotency.ErrNotFound) {
		t.Errorf("%v, want ErrNotFound", err)
	}
}

// Every third of the lease, so that two renewals may fail.
func TestRenewalsAreCounted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := newLeasedStore()
		var extended []time.Duration
		start := time.Now()
		store.before = func(verb string) error {
			if verb == "Extend" {
				extended = append(extended, time.Since(start))
			}
			return nil
		}
		_, err := idempotency.DoLeased(t.Context(), leaseClient(t, store, nil), testParams("k"), func(context.Context, *idempotency.Lease) (string, error) {
			time.Sleep(35 * time.Second) // of synctest
			return "done", nil
		})
		if want := []time.Duration{10 * time.Second, 20 * time.Second, 30 * time.Second}; err != nil || !slices.Equal(extended, want) {
			t.Errorf("extended after %v, %v; want %v of a lease of 30 s", extended, err, want)
		}
	})
}

// A step whose function fails does not count, and one more than 100 does not run.
func TestStepsAreBounded(t *testing.T) {
	t.Parallel()
	client, errFails := leaseClient(t, newLeasedStore(), nil), errors.New("the step fails")
	ran := 0
	_, err := idempotency.DoLeased(t.Context(), client, testParams("k"), func(ctx context.Context, lease *idempotency.Lease) (string, error) {
		step := func(name string, fails error) error {
			_, err := idempotency.Step(ctx, lease, name, idempotency.NoFingerprint, func(context.Context, idempotency.StepCall) (int, error) {
				ran++
				return ran, fails
			})
			return err
		}
		if err := step("fails", errFails); !errors.Is(err, errFails) {
			t.Errorf("got %v, want the step's own error", err)
		}
		for i := range 100 {
			if err := step(fmt.Sprint(i), nil); err != nil {
				return "", err
			}
		}
		return "", step("one more", nil)
	})
	if !errors.Is(err, idempotency.ErrInvalidParams) || ran != 101 {
		t.Errorf("%v after %d runs, want the 101st step to be refused", err, ran)
	}
}

func TestLeaseIsRenewed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := newLeasedStore()
		up := time.Now().Add(25 * time.Second) // within the lease: renewal gets over it
		store.before = func(verb string) error {
			if verb == "Extend" && time.Now().Before(up) {
				return errDown
			}
			return nil
		}
		client := leaseClient(t, store, nil)
		_, err := idempotency.DoLeased(t.Context(), client, testParams("k"), func(ctx context.Context, _ *idempotency.Lease) (string, error) {
			select {
			case <-ctx.Done():
				return "", context.Cause(ctx)
			case <-time.After(10 * time.Minute):
				return "done", nil
			}
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// Where the store stays down, the function hears of it at the deadline exactly. What
// it returns is recorded all the same: late is not lost.
func TestLeaseThatCannotBeRenewed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := newLeasedStore()
		store.before = func(verb string) error {
			if verb == "Extend" {
				return errDown
			}
			return nil
		}
		client := leaseClient(t, store, nil)
		start := time.Now()
		result, err := idempotency.DoLeased(t.Context(), client, testParams("k"), func(ctx context.Context, lease *idempotency.Lease) (string, error) {
			<-ctx.Done()
			if cause := context.Cause(ctx); !errors.Is(cause, idempotency.ErrLeaseEnded) || time.Since(start) != idempotency.DefaultLease {
				t.Errorf("ended with %v after %s, want ErrLeaseEnded after %s", cause, time.Since(start), idempotency.DefaultLease)
			}
			runs := 0
			if _, err := charge(context.WithoutCancel(ctx), lease, &runs); !errors.Is(err, idempotency.ErrLeaseEnded) || runs != 0 {
				t.Errorf("a step after the deadline: %v, %d runs; want ErrLeaseEnded and none", err, runs)
			}
			return "late", nil
		})
		if err != nil || result.Value != "late" {
			t.Errorf("%+v, %v; want the late answer", result, err)
		}
	})
}

func TestLeaseThatIsTakenOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := newLeasedStore()
		client := leaseClient(t, store, nil)
		_, err := idempotency.DoLeased(t.Context(), client, testParams("k"), func(ctx context.Context, lease *idempotency.Lease) (string, error) {
			runs := 0
			if _, err := charge(ctx, lease, &runs); err != nil {
				return "", err
			}
			record, err := store.Get(ctx, lease.Key())
			if err != nil {
				return "", err
			}
			// An operator gives the key to somebody else.
			if err := store.Suspend(ctx, &idempotency.Claim{Key: lease.Key(), ID: record.ClaimID}); err != nil {
				return "", err
			}
			outcome, err := store.Store.Begin(ctx, &idempotency.BeginParams{Key: lease.Key(), Fingerprint: testParams("k").Fingerprint, TTL: time.Hour, Lease: time.Hour})
			if err != nil || outcome.State != idempotency.New {
				return "", errors.Join(err, errors.New("no takeover"))
			}
			<-ctx.Done()
			if cause := context.Cause(ctx); !errors.Is(cause, idempotency.ErrClaimLost) {
				t.Errorf("ended with %v, want ErrClaimLost", cause)
			}
			_, err = idempotency.Step(context.WithoutCancel(ctx), lease, "zombie", idempotency.NoFingerprint, func(context.Context, idempotency.StepCall) (string, error) { return "", nil })
			if !errors.Is(err, idempotency.ErrClaimLost) {
				t.Errorf("a step of a lost claim: %v, want ErrClaimLost", err)
			}
			return "of a zombie", nil
		})
		if !errors.Is(err, idempotency.ErrClaimLost) {
			t.Errorf("got %v, want ErrClaimLost", err)
		}
	})
}

func TestMaxHold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		client := leaseClient(t, newLeasedStore(), &idempotency.Config{MaxHold: time.Hour})
		start := time.Now()
		_, err := idempotency.DoLeased(t.Context(), client, testParams("k"), func(ctx context.Context, _ *idempotency.Lease) (string, error) {
			select {
			case <-ctx.Done():
				return "", ctx.Err()
			case <-time.After(24 * time.Hour):
				return "it hangs", nil
			}
		})
		if !errors.Is(err, idempotency.ErrHoldExceeded) || time.Since(start) != time.Hour {
			t.Errorf("%v after %s, want ErrHoldExceeded after an hour", err, time.Since(start))
		}
	})
}

func TestRepliesOfLeasedWorkAreLost(t *testing.T) {
	t.Parallel()
	for _, verb := range []string{"Begin", "AddStep", "Complete", "Extend"} {
		t.Run(verb, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				store := newLeasedStore()
				lost := 0
				store.after = func(of string) error {
					if of == verb && lost < 2 {
						lost++
						return errDown
					}
					return nil
				}
				client := leaseClient(t, store, nil)
				charges := 0
				result, err := idempotency.DoLeased(t.Context(), client, testParams("k"), func(ctx context.Context, lease *idempotency.Lease) (string, error) {
					time.Sleep(time.Minute) // of synctest
					return charge(ctx, lease, &charges)
				})
				if err != nil || charges != 1 || result.Replayed || result.Record.Attempt != 1 || lost != 2 && verb != "Complete" {
					t.Errorf("%+v, %v, %d charges after %d lost replies", result, err, charges, lost)
				}
			})
		})
	}
	t.Run("of a completion, for good", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			store := newLeasedStore()
			store.before = func(verb string) error {
				if verb == "Complete" {
					return errDown
				}
				return nil
			}
			client := leaseClient(t, store, nil)
			charges := 0
			work := func(ctx context.Context, lease *idempotency.Lease) (string, error) {
				return charge(ctx, lease, &charges)
			}
			_, err := idempotency.DoLeased(t.Context(), client, testParams("k"), work)
			if !errors.Is(err, idempotency.ErrOutcomeUnknown) {
				t.Errorf("got %v, want ErrOutcomeUnknown", err)
			}
			// Nothing is held, and the next call is no other attempt.
			store.before = func(string) error { return nil }
			result, err := idempotency.DoLeased(t.Context(), client, testParams("k"), work)
			if err != nil || result.Record.Attempt != 1 || charges != 1 {
				t.Errorf("%+v, %v, %d charges; want the first attempt to go on", result, err, charges)
			}
		})
	})
}

func TestChangedSteps(t *testing.T) {
	t.Parallel()
	errStop := errors.New("stop")
	step := func(ctx context.Context, lease *idempotency.Lease, name, arguments string) error {
		_, err := idempotency.Step(ctx, lease, name, idempotency.FingerprintOf(arguments), func(context.Context, idempotency.StepCall) (string, error) { return name, nil })
		return err
	}
	var typeErr *idempotency.ResultTypeError
	for name, test := range map[string]struct {
		second func(ctx context.Context, lease *idempotency.Lease) error
		want   func(err error) bool
	}{
		"other arguments": {
			func(ctx context.Context, lease *idempotency.Lease) error { return step(ctx, lease, "charge", "600") },
			func(err error) bool { return errors.Is(err, idempotency.ErrStepChanged) },
		},
		"asked for twice": {
			func(ctx context.Context, lease *idempotency.Lease) error {
				return errors.Join(step(ctx, lease, "charge", "500"), step(ctx, lease, "charge", "500"))
			},
			func(err error) bool { return errors.Is(err, idempotency.ErrStepChanged) },
		},
		"not asked for": {
			func(ctx context.Context, lease *idempotency.Lease) error { return step(ctx, lease, "mail", "500") },
			func(err error) bool { return errors.Is(err, idempotency.ErrStepChanged) },
		},
		"of another type": {
			func(ctx context.Context, lease *idempotency.Lease) error {
				_, err := idempotency.Step(ctx, lease, "charge", idempotency.FingerprintOf("500"), func(context.Context, idempotency.StepCall) (int, error) { return 1, nil })
				return err
			},
			func(err error) bool { return errors.As(err, &typeErr) },
		},
	} {
		client := leaseClient(t, newLeasedStore(), nil)
		call := func(fn func(ctx context.Context, lease *idempotency.Lease) error) error {
			_, err := idempotency.DoLeased(t.Context(), client, testParams("k"), func(ctx context.Context, lease *idempotency.Lease) (string, error) { return "done", fn(ctx, lease) })
			return err
		}
		if err := call(func(ctx context.Context, lease *idempotency.Lease) error {
			return errors.Join(step(ctx, lease, "charge", "500"), errStop)
		}); !errors.Is(err, errStop) {
			t.Fatal(err)
		}
		if err := call(test.second); !test.want(err) {
			t.Errorf("%s: %v", name, err)
		}
		if record, err := client.Get(t.Context(), testParams("k").Key); err != nil || record.State != idempotency.InProgress {
			t.Errorf("%s: %+v, %v; want nothing to be recorded", name, record, err)
		}
		if err := call(func(ctx context.Context, lease *idempotency.Lease) error {
			return step(ctx, lease, "charge", "500")
		}); name != "not asked for" && err != nil {
			t.Errorf("%s: the right program afterwards: %v", name, err)
		}
	}
}

func TestAttemptsOfLeasedWorkAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := newLeasedStore()
		client := leaseClient(t, store, &idempotency.Config{MaxAttempts: 2})
		// Processes that die.
		for range 2 {
			if outcome, err := store.Store.Begin(t.Context(), &idempotency.BeginParams{
				Key: testParams("k").Key, Fingerprint: testParams("k").Fingerprint, TTL: time.Hour, Lease: time.Second,
			}); err != nil || outcome.State != idempotency.New {
				t.Fatal(outcome, err)
			}
			time.Sleep(time.Second)
		}
		_, err := idempotency.DoLeased(t.Context(), client, testParams("k"), func(context.Context, *idempotency.Lease) (string, error) {
			t.Error("it ran")
			return "", nil
		})
		if !errors.Is(err, idempotency.ErrNeedsAttention) {
			t.Errorf("got %v, want ErrNeedsAttention", err)
		}
	})
}

func TestLeaseIsForDoLeasedAlone(t *testing.T) {
	t.Parallel()
	client, err := idempotency.NewClient(memstore.New[*memstore.Tx](nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	params := testParams("k")
	params.Lease = time.Minute
	_, err = idempotency.Do(t.Context(), client, params, func(context.Context, *memstore.Tx) (string, error) { return "", nil })
	if !errors.Is(err, idempotency.ErrInvalidParams) {
		t.Errorf("Do: %v, want ErrInvalidParams", err)
	}
	for _, lease := range []time.Duration{-1, time.Millisecond, 2 * time.Hour} {
		params.Lease = lease
		_, err = idempotency.DoLeased(t.Context(), client.Leases(), params, func(context.Context, *idempotency.Lease) (string, error) { return "", nil })
		if !errors.Is(err, idempotency.ErrInvalidParams) {
			t.Errorf("DoLeased with %s: %v, want ErrInvalidParams", lease, err)
		}
	}
}

func TestStepKey(t *testing.T) {
	t.Parallel()
	client := leaseClient(t, newLeasedStore(), nil)
	seen := make(map[string]bool)
	for _, id := range []string{"a", "b", "a"} {
		params := testParams(id)
		params.Key.Scope += id
		_, err := idempotency.DoLeased(t.Context(), client, params, func(_ context.Context, lease *idempotency.Lease) (string, error) {
			for _, step := range []string{"charge", "mail"} {
				seen[lease.StepKey(step)] = true
				if len(lease.StepKey(step)) != 43 {
					t.Errorf("%q, want 43 characters", lease.StepKey(step))
				}
			}
			return "", errors.New("again")
		})
		if err == nil {
			t.Fatal("want the function's own error")
		}
	}
	if len(seen) != 4 {
		t.Errorf("%d keys for 2 steps of 2 keys; want 4, the same each time", len(seen))
	}
}

// What the function has started, and left running, does nothing after it has
// returned, whatever context it has kept.
func TestStepAfterTheFunctionHasReturned(t *testing.T) {
	t.Parallel()
	client := leaseClient(t, newLeasedStore(), nil)
	for name, fail := range map[string]error{"it failed": errors.New("early"), "it is done": nil} {
		var left *idempotency.Lease
		_, err := idempotency.DoLeased(t.Context(), client, testParams(name), func(_ context.Context, lease *idempotency.Lease) (string, error) {
			left = lease
			return "done", fail
		})
		if !errors.Is(err, fail) {
			t.Fatal(err)
		}
		charges := 0
		if _, err := charge(t.Context(), left, &charges); err == nil || charges != 0 {
			t.Errorf("%s: %v, %d charges; want an error and none", name, err, charges)
		}
	}
}

// After the claim is lost no step starts, also with a context of the caller's own.
func TestStepOfALostClaimDoesNotStart(t *testing.T) {
	t.Parallel()
	store := newLeasedStore()
	client := leaseClient(t, store, nil)
	_, err := idempotency.DoLeased(t.Context(), client, testParams("k"), func(ctx context.Context, lease *idempotency.Lease) (string, error) {
		ctx = context.WithoutCancel(ctx)
		record, err := store.Get(ctx, lease.Key())
		if err != nil {
			return "", err
		}
		if err := store.Release(ctx, &idempotency.Claim{Key: lease.Key(), ID: record.ClaimID}); err != nil {
			return "", err
		}
		charges := 0
		if _, err := charge(ctx, lease, &charges); !errors.Is(err, idempotency.ErrClaimLost) {
			t.Errorf("the step that finds out: %v, want ErrClaimLost", err)
		}
		_, err = idempotency.Step(ctx, lease, "next", idempotency.NoFingerprint, func(context.Context, idempotency.StepCall) (string, error) {
			t.Error("a step of a lost claim ran")
			return "", nil
		})
		if !errors.Is(err, idempotency.ErrClaimLost) {
			t.Errorf("the next step: %v, want ErrClaimLost", err)
		}
		return "of a zombie", nil
	})
	if !errors.Is(err, idempotency.ErrClaimLost) {
		t.Errorf("got %v, want ErrClaimLost", err)
	}
}

// A claim that may have been made and that the call gives up on is let go of, and
// is no attempt.
func TestClaimThatIsGivenUp(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		lost []error
		want error
	}{
		"by its caller":                  {[]error{context.Canceled}, context.Canceled},
		"with the store":                 {[]error{errDown, idempotency.ErrUnavailable}, idempotency.ErrOutcomeUnknown},
		"after a time":                   {[]error{errDown}, errDown},
		"which was unavailable at first": {nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				store := newLeasedStore()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				tries := 0
				if test.lost == nil {
					store.before = func(string) error { return idempotency.ErrUnavailable }
				}
				store.after = func(verb string) error {
					if verb != "Begin" || test.lost == nil {
						return nil
					}
					tries++
					lost := test.lost[min(tries, len(test.lost))-1]
					if errors.Is(lost, context.Canceled) {
						cancel()
					}
					return lost
				}
				client := leaseClient(t, store, &idempotency.Config{MaxAttempts: 1})
				run := func(ctx context.Context) error {
					_, err := idempotency.DoLeased(ctx, client, testParams("k"), func(context.Context, *idempotency.Lease) (string, error) { return "done", nil })
					return err
				}
				err := run(ctx)
				if test.lost == nil {
					if !errors.Is(err, idempotency.ErrUnavailable) || store.calls.Load() != 1 {
						t.Errorf("%v after %d requests, want ErrUnavailable after one", err, store.calls.Load())
					}
					return
				}
				if !errors.Is(err, test.want) || test.want != idempotency.ErrUnavailable && errors.Is(err, idempotency.ErrUnavailable) { //nolint:errorlint // It is the sentinel.
					t.Errorf("got %v, want %v", err, test.want)
				}
				store.after = func(string) error { return nil }
				if err := run(t.Context()); err != nil {
					t.Errorf("the next call: %v", err)
				}
			})
		})
	}
}

// A connection that has gone silent costs one renewal, not the lease.
func TestRenewalThatHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := &hangingStore{leasedStore: newLeasedStore()}
		client := leaseClient(t, store, nil)
		_, err := idempotency.DoLeased(t.Context(), client, testParams("k"), func(ctx context.Context, _ *idempotency.Lease) (string, error) {
			select {
			case <-ctx.Done():
				return "", context.Cause(ctx)
			case <-time.After(5 * time.Minute):
				return "done", nil
			}
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// hangingStore does not answer the first extension.
type hangingStore struct {
	*leasedStore
	hung atomic.Bool
}

func (s *hangingStore) Extend(ctx context.Context, claim *idempotency.Claim, lease time.Duration) (*idempotency.Claim, error) {
	if s.hung.CompareAndSwap(false, true) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return s.leasedStore.Extend(ctx, claim, lease)
}

// Another program's steps keep an answer from being recorded, also where the
// function takes the error for a refusal.
func TestChangedStepsThatAreSwallowed(t *testing.T) {
	t.Parallel()
	errDeclined, errStop := errors.New("declined"), errors.New("stop")
	client := leaseClient(t, newLeasedStore(), &idempotency.Config{FinalErrors: []idempotency.FinalKind{idempotency.FinalValue("declined", errDeclined)}})
	charges := 0
	_, err := idempotency.DoLeased(t.Context(), client, testParams("k"), func(ctx context.Context, lease *idempotency.Lease) (string, error) {
		_, err := charge(ctx, lease, &charges)
		return "", errors.Join(err, errStop)
	})
	if !errors.Is(err, errStop) {
		t.Fatal(err)
	}
	for name, answer := range map[string]error{"a result": nil, "a final error": idempotency.Final(errDeclined)} {
		_, err := idempotency.DoLeased(t.Context(), client, testParams("k"), func(ctx context.Context, lease *idempotency.Lease) (string, error) {
			_, err := idempotency.Step(ctx, lease, "charge", idempotency.FingerprintOf("600"), func(context.Context, idempotency.StepCall) (string, error) { return "", nil })
			if err == nil {
				t.Error("another charge ran")
			}
			return "declined", answer
		})
		if !errors.Is(err, idempotency.ErrStepChanged) {
			t.Errorf("%s: %v, want ErrStepChanged", name, err)
		}
	}
	if record, err := client.Get(t.Context(), testParams("k").Key); err != nil || len(record.Steps) != 1 {
		t.Errorf("%+v, %v; want the charge to be kept", record, err)
	}
}

// Its effect is there, so the error must not say that nothing has run.
func TestStepThatCannotBeRecorded(t *testing.T) {
	t.Parallel()
	client := leaseClient(t, newLeasedStore(), &idempotency.Config{MaxResponseSize: 10})
	charges := 0
	_, err := idempotency.DoLeased(t.Context(), client, testParams("k"), func(ctx context.Context, lease *idempotency.Lease) (string, error) {
		return charge(ctx, lease, &charges)
	})
	if err == nil || errors.Is(err, idempotency.ErrInvalidParams) || !strings.Contains(err.Error(), "was done") || charges != 1 {
		t.Errorf("got %v after %d charges, want an error that says that it was done", err, charges)
	}
}

func TestGoexitLeavesTheWorkToBeContinued(t *testing.T) {
	t.Parallel()
	client := leaseClient(t, newLeasedStore(), nil)
	charges, ended := 0, make(chan struct{})
	go func() {
		defer close(ended)
		_, err := idempotency.DoLeased(t.Context(), client, testParams("k"), func(ctx context.Context, lease *idempotency.Lease) (string, error) {
			if _, err := charge(ctx, lease, &charges); err != nil {
				t.Error(err)
			}
			runtime.Goexit()
			return "", nil
		})
		t.Errorf("DoLeased returned, %v", err)
	}()
	<-ended
	record, err := client.Get(t.Context(), testParams("k").Key)
	if err != nil || !record.Suspended() || len(record.Steps) != 1 || charges != 1 {
		t.Errorf("%+v, %v; want a suspended record with the charge", record, err)
	}
}

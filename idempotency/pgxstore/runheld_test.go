package pgxstore_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

// A Do that has begun since the lease ended has the hint. The holder of the lease waits
// for it, and then has the key as if nobody had been there.
func TestRunHeldWaitsForWhoIsAtWork(t *testing.T) {
	t.Parallel()
	errDeclined := errors.New("declined")
	for name, fails := range map[string]bool{"which fails": true, "which commits": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, claim := endedLease(t)
			params := bench.Params("k")
			params.Fingerprint = idempotency.NoFingerprint
			held := make(chan error, 1)
			ran := false
			_, err := idempotency.Do(t.Context(), b.Client, params, func(ctx context.Context, tx pgx.Tx) (string, error) {
				go func() { //nolint:contextcheck // It is another call.
					_, err := b.Store.RunHeld(t.Context(), claim, func(context.Context, pgx.Tx) (idempotency.Answer, error) {
						ran = true
						rivalsFindItInProgress(t, b) //nolint:contextcheck // As above.
						return idempotency.Answer{Response: bytesResponse("k")}, nil
					})
					held <- err
				}()
				bench.WaitFor(t, func() bool { //nolint:contextcheck // As above.
					return bench.Count(t, b.Pool, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
						AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`) == 1
				})
				if fails {
					return "", errDeclined
				}
				return "rival", bench.Effect(ctx, tx, "rival")
			})
			got := <-held
			if fails && (!errors.Is(err, errDeclined) || got != nil || !ran) {
				t.Errorf("Do: %v; RunHeld: %v, ran %t; want that it runs once Do has failed", err, got, ran)
			}
			if !fails && (err != nil || !errors.Is(got, idempotency.ErrClaimLost) || ran) {
				t.Errorf("Do: %v; RunHeld: %v, ran %t; want that its claim is lost", err, got, ran)
			}
		})
	}
}

// How long it waits is for the caller's context and for lock_timeout to say.
func TestRunHeldGivesUpItsWait(t *testing.T) {
	t.Parallel()
	b, claim := endedLease(t)
	config := b.Pool.Config().Copy()
	config.ConnConfig.RuntimeParams["lock_timeout"] = "20ms"
	impatient := bench.Open(t, bench.PoolWith(t, config), nil, nil)
	params := bench.Params("k")
	params.Fingerprint = idempotency.NoFingerprint
	mustNotRun := func(context.Context, pgx.Tx) (idempotency.Answer, error) {
		t.Error("the function ran beside a rival")
		return idempotency.Answer{Response: bytesResponse("k")}, nil
	}
	if _, err := idempotency.Do(t.Context(), b.Client, params, func(ctx context.Context, _ pgx.Tx) (string, error) {
		_, err := impatient.Store.RunHeld(ctx, claim, mustNotRun)
		wantKeyError(t, "RunHeld", err, idempotency.ErrSerializationFailure, "k")
		ctx, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		defer cancel()
		if _, err := b.Store.RunHeld(ctx, claim, mustNotRun); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the end of the context", err)
		}
		return "rival", nil
	}); err != nil {
		t.Error(err)
	}
}

// Where the completion writes no row, nobody else has the key: the error names who it
// can be.
func TestRunHeldWhoseRowIsSuppressed(t *testing.T) {
	t.Parallel()
	b, claim := endedLease(t)
	for _, sql := range []string{
		`CREATE FUNCTION suppress() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'`,
		`CREATE TRIGGER suppress BEFORE UPDATE ON idempotency_keys FOR EACH ROW EXECUTE FUNCTION suppress()`,
	} {
		if _, err := b.Pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	_, err := b.Store.RunHeld(t.Context(), claim, func(ctx context.Context, tx pgx.Tx) (idempotency.Answer, error) {
		return idempotency.Answer{Response: bytesResponse("k")}, bench.Effect(ctx, tx, "k")
	})
	if !errors.Is(err, idempotency.ErrClaimLost) || !strings.Contains(err.Error(), "row trigger") || b.Effects(t, "k") != 0 {
		t.Errorf("%v, %d effects; want an error that names the trigger, and none", err, b.Effects(t, "k"))
	}
}

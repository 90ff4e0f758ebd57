package pgxstore_test

import (
	"context"
	"errors"
	"testing"

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

package pgxstore_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
)

// A lost reply to COMMIT is looked into for ResolveTimeout. If the database
// cannot be reached in that time, nobody knows, and the caller must say so: 503
// makes the client try again with the same key, which settles it. Any answer
// that makes the client use a new key could run the operation twice.
func ExampleConfig_outcomeUnknown() {
	pool, err := pgxpool.New(context.Background(), "postgres:///shop")
	if err != nil {
		return
	}
	defer pool.Close()
	store, err := pgxstore.New(pool, &pgxstore.Config{
		CommitTimeout:  5 * time.Second,
		ResolveTimeout: 5 * time.Second,
	})
	if err != nil {
		return
	}
	client, err := idempotency.NewClient(store, nil)
	if err != nil {
		return
	}

	http.HandleFunc("POST /charges", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		if err != nil {
			http.Error(w, "cannot read the request", http.StatusBadRequest)
			return
		}
		_, err = idempotency.Do(r.Context(), client, idempotency.Params{
			Key:         idempotency.Key{Scope: "tenant-7/charge", ID: r.Header.Get("Idempotency-Key")},
			Fingerprint: idempotency.FingerprintOf("POST /charges", string(body)),
		}, func(ctx context.Context, tx pgx.Tx) (int64, error) { return move(ctx, tx) })
		switch {
		case errors.Is(err, idempotency.ErrOutcomeUnknown), errors.Is(err, idempotency.ErrOverloaded):
			w.Header().Set("Retry-After", "5")
			http.Error(w, "try again with the same key", http.StatusServiceUnavailable)
		case errors.Is(err, idempotency.ErrInProgress):
			http.Error(w, "still at work on it", http.StatusConflict)
		case err != nil:
			http.Error(w, "internal error", http.StatusInternalServerError)
		}
	})
}

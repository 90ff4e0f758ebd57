package idempotencytest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/idempotencytest"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
)

// newHandler is the program's: POST /charges with an Idempotency-Key.
func newHandler(pool *pgxpool.Pool) (http.Handler, error) {
	store, err := pgxstore.New(pool, nil)
	if err != nil {
		return nil, err
	}
	client, err := idempotency.NewClient(store, nil)
	if err != nil {
		return nil, err
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var request struct{ Cents int }
		if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
			http.Error(w, "not a charge", http.StatusBadRequest)
			return
		}
		key := r.Header.Get("Idempotency-Key")
		result, err := idempotency.Do(r.Context(), client, idempotency.Params{
			Key:         idempotency.Key{Scope: "charges", ID: key},
			Fingerprint: idempotency.FingerprintOf("POST /charges", fmt.Sprint(request.Cents)),
		}, func(ctx context.Context, tx pgx.Tx) (id int64, err error) {
			err = tx.QueryRow(ctx, `INSERT INTO charges (request, cents) VALUES ($1, $2) RETURNING id`, key, request.Cents).Scan(&id)
			return id, err
		})
		if err != nil {
			http.Error(w, "try again", http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusCreated)
		_, _ = fmt.Fprintln(w, result.Value)
	}), nil
}

// The handler is built as in main, and a status outside of 2xx is a call that was
// not acknowledged. The database of the test has the table charges and those of
// migrations.Up.
func ExampleRun() {
	var t *testing.T // the argument of your TestCharge
	pool, err := pgxpool.New(t.Context(), os.Getenv("TEST_DATABASE_URL"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)

	idempotencytest.Run(t, pool, idempotencytest.Operation{
		New: func(t *testing.T, pool *pgxpool.Pool) idempotencytest.Call {
			t.Helper()
			handler, err := newHandler(pool) // this pool: its connections are cut
			if err != nil {
				t.Fatal(err)
			}
			return func(ctx context.Context, key string) error {
				request := httptest.NewRequestWithContext(ctx, http.MethodPost, "/charges", strings.NewReader(`{"cents":500}`))
				request.Header.Set("Idempotency-Key", key)
				response := httptest.NewRecorder()
				handler.ServeHTTP(response, request)
				if response.Code/100 != 2 {
					return fmt.Errorf("status %d: %s", response.Code, response.Body)
				}
				return nil
			}
		},
		Effects: func(ctx context.Context, key string) (idempotencytest.Counts, error) {
			var charges int
			err := pool.QueryRow(ctx, `SELECT count(*) FROM charges WHERE request = $1`, key).Scan(&charges)
			return idempotencytest.Counts{"charges": charges}, err
		},
	})
}

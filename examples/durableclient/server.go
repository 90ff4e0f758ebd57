package main

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/examples/internal/loopback"
	"github.com/samecommit/samecommit/examples/internal/provider"
	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/httpidem"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
)

const chargesTable = `CREATE TABLE charges (id text PRIMARY KEY DEFAULT gen_random_uuid(), order_id text NOT NULL, cents bigint NOT NULL)`

// server is whom the client pays: an API with the middleware of httpidem, and faults that
// are planned. It outlives the client's processes.
type server struct {
	*loopback.Server
	plan provider.Plan
}

func startServer(ctx context.Context, pool *pgxpool.Pool) (*server, error) {
	store, err := pgxstore.New(pool, nil)
	if err != nil {
		return nil, err
	}
	client, err := idempotency.NewClient(store, nil)
	if err != nil {
		return nil, err
	}
	keys, err := httpidem.New(client, &httpidem.Config{Scope: func(*http.Request) string { return "demo/charges" }})
	if err != nil {
		return nil, err
	}
	s := &server{}
	mux := http.NewServeMux()
	mux.Handle("POST /orders/{order}/charges", s.faulty(keys(http.HandlerFunc(s.charge))))
	s.Server, err = loopback.Serve(ctx, mux)
	return s, err
}

// faulty is the network, and a proxy, outside of the middleware.
func (s *server) faulty(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch s.plan.Next(r.PathValue("order")) {
		case provider.Refuses:
			http.Error(w, "try again later", http.StatusServiceUnavailable)
		case provider.HangsUp:
			next.ServeHTTP(nowhere{}, r)
			panic(http.ErrAbortHandler) // closes the connection
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// nowhere is where an answer goes that is lost.
type nowhere http.Header

func (n nowhere) Header() http.Header          { return http.Header(n) }
func (nowhere) WriteHeader(int)                {}
func (nowhere) Write(data []byte) (int, error) { return len(data), nil }

func (s *server) charge(w http.ResponseWriter, r *http.Request) {
	tx, ok := httpidem.Tx[pgx.Tx](r.Context())
	if !ok {
		http.Error(w, "charge runs without the middleware", http.StatusInternalServerError)
		return
	}
	var request provider.Request
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		http.Error(w, "cannot read the request", http.StatusBadRequest)
		return
	}
	var receipt provider.Receipt
	if err := tx.QueryRow(r.Context(), `INSERT INTO charges (order_id, cents) VALUES ($1, $2) RETURNING id`, r.PathValue("order"), request.Cents).Scan(&receipt.ID); err != nil {
		http.Error(w, "the charge could not be booked", http.StatusInternalServerError)
		return
	}
	if s.plan.Next(r.PathValue("order")) == provider.Declines {
		http.Error(w, "declined", http.StatusPaymentRequired) // which undoes the charge
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(receipt) // into memory
}

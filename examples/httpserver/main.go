// Command httpserver is the smallest server with idempotency keys: a charge is booked once
// for each key, and a request that comes again gets the first answer.
//
//	go run ./examples/httpserver
//	curl -i -H 'Idempotency-Key: 1' -d '{"cents":500}' http://127.0.0.1:8080/charges
//
// It takes the database of DATABASE_URL, migrates it, and serves on 127.0.0.1:8080.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/httpidem"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
	"github.com/samecommit/samecommit/migrations"
)

func main() {
	if err := serve(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func serve(ctx context.Context) error {
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := migrations.Up(ctx, pool); err != nil {
		return err
	}
	handler, err := newHandler(ctx, pool)
	if err != nil {
		return err
	}
	server := &http.Server{Addr: "127.0.0.1:8080", Handler: handler, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second}
	return server.ListenAndServe()
}

func newHandler(ctx context.Context, pool *pgxpool.Pool) (http.Handler, error) {
	if _, err := pool.Exec(ctx, `CREATE TABLE IF NOT EXISTS charges (id bigint GENERATED ALWAYS AS IDENTITY, cents bigint NOT NULL)`); err != nil {
		return nil, err
	}
	store, err := pgxstore.New(pool, nil)
	if err != nil {
		return nil, err
	}
	client, err := idempotency.NewClient(store, nil)
	if err != nil {
		return nil, err
	}
	keys, err := httpidem.New(client, &httpidem.Config{
		// A real one begins with who the caller is, from its authentication.
		Scope: func(*http.Request) string { return "charges" },
	})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("POST /charges", keys(http.HandlerFunc(charge)))
	return mux, nil
}

func charge(w http.ResponseWriter, r *http.Request) {
	tx, ok := httpidem.Tx[pgx.Tx](r.Context())
	if !ok {
		http.Error(w, "charge runs without the middleware", http.StatusInternalServerError)
		return
	}
	var request struct {
		Cents int64 `json:"cents"`
	}
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		http.Error(w, "send a body such as {\"cents\":500}", http.StatusBadRequest)
		return
	}
	var id int64
	if err := tx.QueryRow(r.Context(), `INSERT INTO charges (cents) VALUES ($1) RETURNING id`, request.Cents).Scan(&id); err != nil {
		http.Error(w, "the charge could not be booked", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Location", fmt.Sprintf("/charges/%d", id))
	w.WriteHeader(http.StatusCreated)
}

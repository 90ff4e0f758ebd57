package main

import (
	"context"
	"errors"
	"net/http"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/httpidem"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
)

// newSafe charges with the key, the money and the answer in one commit.
func newSafe(pool *pgxpool.Pool, work func(context.Context)) (http.Handler, error) {
	store, err := pgxstore.New(pool, nil)
	if err != nil {
		return nil, err
	}
	client, err := idempotency.NewClient(store, nil)
	if err != nil {
		return nil, err
	}
	return httpidem.Handle(client, &httpidem.Config{
		// A real one begins with who the caller is, from its authentication.
		Scope:   func(*http.Request) string { return "demo/charges" },
		MaxBody: maxBody,
	}, func(w http.ResponseWriter, r *http.Request, tx pgx.Tx) error {
		request, err := readCharge(r.Body)
		if err != nil {
			return refuseOr(w, r, err)
		}
		charge, err := transfer(r.Context(), tx, request, work)
		if err != nil {
			return refuseOr(w, r, err)
		}
		write(w, http.StatusCreated, charge)
		return nil
	})
}

// refuseOr gives back an error that is not about the charge. All refusals are recorded but
// that of an account which may be opened later.
func refuseOr(w http.ResponseWriter, r *http.Request, err error) error {
	if _, ok := errors.AsType[*unknownAccountError](err); ok {
		httpidem.SetOutcome(r.Context(), httpidem.Release)
	}
	if refuse(w, err) {
		return nil
	}
	return err
}

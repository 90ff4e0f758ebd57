package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
)

// naive is what most libraries do, and what this project exists to avoid: the
// claim, the work and the answer are three commits. A connection that dies
// between the second and the third leaves money moved and no answer recorded;
// the claim is then deleted, or its lease ends, and the retry moves it again.
type naive struct {
	pool *pgxpool.Pool
	work func(context.Context)
}

const naiveSchema = `
CREATE TABLE naive_keys (
    id text PRIMARY KEY,
    fingerprint bytea NOT NULL,
    claimed_at timestamptz NOT NULL,
    answer bytea
)`

// naiveLease is when a claim without an answer counts as abandoned. Any length
// goes wrong: a short one overtakes slow work, a long one leaves keys stuck.
const naiveLease = "150 milliseconds"

func newNaive(ctx context.Context, pool *pgxpool.Pool, work func(context.Context)) (*naive, error) {
	if _, err := pool.Exec(ctx, naiveSchema); err != nil {
		return nil, fmt.Errorf("create the naive table of keys: %w", err)
	}
	return &naive{pool: pool, work: work}, nil
}

var (
	errNoKey    = errors.New("there is no key")
	errRunning  = errors.New("another request with this key has not finished")
	errOtherUse = errors.New("the key was used with another body")
)

func (n *naive) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		write(w, http.StatusBadRequest, newProblem(http.StatusBadRequest, "body", "The body could not be read", err.Error()))
		return
	}
	request, err := readCharge(bytes.NewReader(body))
	if err != nil {
		refuse(w, err)
		return
	}
	charge, replayed, err := n.charge(r.Context(), r.Header.Get("Idempotency-Key"), idempotency.FingerprintOf(body), request)
	if replayed && err == nil {
		w.Header().Set("Idempotent-Replayed", "true")
	}
	var p *problem
	switch {
	case err == nil:
		write(w, http.StatusCreated, charge)
		return
	case refuse(w, err):
		return
	case errors.Is(err, errNoKey):
		p = newProblem(http.StatusBadRequest, "key-missing", "There is no key", "send a header Idempotency-Key, new for every charge")
	case errors.Is(err, errRunning):
		w.Header().Set("Retry-After", "1")
		p = newProblem(http.StatusConflict, "in-progress", "This charge is running", "send it again later")
	case errors.Is(err, errOtherUse):
		p = newProblem(http.StatusUnprocessableEntity, "key-reused", "The key belongs to another request", "use a new key for a new charge")
	default:
		slog.WarnContext(r.Context(), "charge failed", "error", err)
		p = newProblem(http.StatusServiceUnavailable, "unavailable", "The charge was not confirmed", "send it again with the same key")
	}
	write(w, p.Status, p)
}

func (n *naive) charge(ctx context.Context, key string, fingerprint idempotency.Fingerprint, request *chargeRequest) (charge Charge, replayed bool, err error) {
	if key == "" {
		return charge, false, errNoKey
	}
	// Commit 1: the claim.
	tag, err := n.pool.Exec(ctx, `INSERT INTO naive_keys AS k (id, fingerprint, claimed_at) VALUES ($1, $2, clock_timestamp())
		ON CONFLICT (id) DO UPDATE SET claimed_at = excluded.claimed_at
		WHERE k.answer IS NULL AND k.fingerprint = excluded.fingerprint
			AND k.claimed_at < excluded.claimed_at - interval '`+naiveLease+`'`,
		key, fingerprint.Bytes())
	if err != nil {
		return charge, false, err
	}
	if tag.RowsAffected() == 0 {
		charge, err = n.replay(ctx, key, fingerprint)
		return charge, true, err
	}

	// Commit 2: the work.
	if err := pgx.BeginFunc(ctx, n.pool, func(tx pgx.Tx) error {
		charge, err = transfer(ctx, tx, request, n.work)
		return err
	}); err != nil {
		return Charge{}, false, n.free(ctx, key, err)
	}

	// Between the two, real handlers have things to do: render the answer, tell
	// others, wait for a processor. As long as that takes, money has moved and
	// no key knows of it.
	n.work(ctx)

	// Commit 3: the answer.
	answer, err := json.Marshal(charge)
	if err == nil {
		_, err = n.pool.Exec(ctx, "UPDATE naive_keys SET answer = $2 WHERE id = $1", key, answer)
	}
	if err != nil {
		return Charge{}, false, n.free(ctx, key, err)
	}
	return charge, false, nil
}

func (n *naive) replay(ctx context.Context, key string, fingerprint idempotency.Fingerprint) (charge Charge, err error) {
	var recorded, answer []byte
	err = n.pool.QueryRow(ctx, "SELECT fingerprint, answer FROM naive_keys WHERE id = $1", key).Scan(&recorded, &answer)
	switch {
	case errors.Is(err, pgx.ErrNoRows): // freed since
		return charge, errRunning
	case err != nil:
		return charge, err
	case !bytes.Equal(recorded, fingerprint.Bytes()):
		return charge, errOtherUse
	case answer == nil:
		return charge, errRunning
	}
	return charge, json.Unmarshal(answer, &charge)
}

// free deletes the claim after an error, so that a retry need not wait for the
// lease. It cannot know whether the work was committed.
func (n *naive) free(ctx context.Context, key string, cause error) error {
	_, err := n.pool.Exec(context.WithoutCancel(ctx), "DELETE FROM naive_keys WHERE id = $1", key)
	return errors.Join(cause, err)
}

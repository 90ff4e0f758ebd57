package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
)

// peer is one way to do the job of its group.
type peer struct {
	name string
	// open returns the operation. It is called with the key's id. Either of the two is set.
	open    func(pool *pgxpool.Pool) (operation, error)
	openSQL func(db *sql.DB) (operation, error)
	// What one operation adds to orders, and to the table with the keys.
	orders, keys int
	keyTable     string
}

// operation does the job once.
type operation func(ctx context.Context, id string) error

const (
	// scope and customer are those of every key.
	scope        = "POST /orders"
	customer     = 4711
	responseSize = 204
	batchSize    = 100
)

var user = pgtype.UUID{Bytes: [16]byte{6: 0x40, 8: 0x80, 15: 1}, Valid: true}

// newID returns a random id, a version 4 UUID.
func newID() string {
	var id [16]byte
	// Read never fails: it ends the program if the system has no randomness.
	_, _ = rand.Read(id[:])
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	text := make([]byte, 36)
	hex.Encode(text[:8], id[:4])
	hex.Encode(text[9:13], id[4:6])
	hex.Encode(text[14:18], id[6:8])
	hex.Encode(text[19:23], id[8:10])
	hex.Encode(text[24:], id[10:])
	text[8], text[13], text[18], text[23] = '-', '-', '-', '-'
	return string(text)
}

// responseTo is the answer to the request with this id.
func responseTo(id string) []byte {
	response := bytes.Repeat([]byte{'.'}, responseSize)
	copy(response, id)
	return response
}

func checkResponse(id string, response []byte) error {
	if len(response) != responseSize || !bytes.HasPrefix(response, []byte(id)) {
		return fmt.Errorf("an answer of %d bytes is not the one that was given first", len(response))
	}
	return nil
}

func paramsOf(id string) idempotency.Params {
	return idempotency.Params{Key: idempotency.Key{Scope: scope, ID: id}, Fingerprint: idempotency.FingerprintOf(id)}
}

const (
	insertOrder  = `INSERT INTO orders (reference, customer, amount) VALUES ($1, $2, $3)`
	selectAnswer = `SELECT response FROM answers WHERE scope = $1 AND id = $2`
)

// order is the business write of every peer.
func order(ctx context.Context, tx pgx.Tx, id string) error {
	_, err := tx.Exec(ctx, insertOrder, id, customer, len(id))
	return err
}

// answerOrder is the function that Do and DoTx run.
func answerOrder[TTx any](order func(ctx context.Context, tx TTx, id string) error, id string) func(ctx context.Context, tx TTx) ([]byte, error) {
	return func(ctx context.Context, tx TTx) ([]byte, error) {
		return responseTo(id), order(ctx, tx, id)
	}
}

// noOrder is for a call that must replay.
func noOrder[TTx any](context.Context, TTx, string) error {
	return fmt.Errorf("a replay ran its function")
}

func newClient(pool *pgxpool.Pool) (*idempotency.Client[pgx.Tx], error) {
	store, err := pgxstore.New(pool, nil)
	if err != nil {
		return nil, err
	}
	return idempotency.NewClient(store, nil)
}

// fresh does one order under a key that nobody has used.
var fresh = []peer{
	{name: "raw", orders: 1, open: func(pool *pgxpool.Pool) (operation, error) {
		return func(ctx context.Context, id string) error {
			return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return order(ctx, tx, id) })
		}, nil
	}},
	{name: "raw_batch", orders: 1, open: func(pool *pgxpool.Pool) (operation, error) {
		return func(ctx context.Context, id string) error {
			batch := &pgx.Batch{}
			batch.Queue("begin")
			batch.Queue(insertOrder, id, customer, len(id))
			batch.Queue("commit")
			return pool.SendBatch(ctx, batch).Close()
		}, nil
	}},
	{name: "zero2prod", orders: 1, keys: 1, keyTable: "idempotency", open: func(pool *pgxpool.Pool) (operation, error) {
		return func(ctx context.Context, id string) error {
			return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return zero2prod(ctx, tx, id) })
		}, nil
	}},
	{name: "Do", orders: 1, keys: 1, keyTable: "idempotency_keys", open: openDo},
	{name: "DoTx", orders: 1, keys: 1, keyTable: "idempotency_keys", open: func(pool *pgxpool.Pool) (operation, error) {
		client, err := newClient(pool)
		return func(ctx context.Context, id string) error {
			return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return doTx(ctx, client, tx, order, id) })
		}, err
	}},
	{name: "WithTx", orders: 1, keys: 1, keyTable: "idempotency_keys", open: func(pool *pgxpool.Pool) (operation, error) {
		client, err := newClient(pool)
		return func(ctx context.Context, id string) error {
			return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				keys := client.WithTx(tx)
				outcome, err := keys.Begin(ctx, paramsOf(id))
				if err != nil {
					return err
				}
				if err := order(ctx, tx, id); err != nil {
					return err
				}
				_, err = keys.Complete(ctx, outcome.Claim, &idempotency.Response{Type: idempotency.TypeBytes, Body: responseTo(id)})
				return err
			})
		}, err
	}},
	{name: "sql raw", orders: 1, openSQL: rawOnSQL},
	{name: "sqlstore Do", orders: 1, keys: 1, keyTable: "idempotency_keys", openSQL: doOnSQL(orderOnSQL)},
	{name: "sqlstore DoTx", orders: 1, keys: 1, keyTable: "idempotency_keys", openSQL: doTxOnSQL},
}

func openDo(pool *pgxpool.Pool) (operation, error) {
	client, err := newClient(pool)
	return func(ctx context.Context, id string) error { return do(ctx, client, order, id) }, err
}

// do is Do around the order.
func do[TTx any](ctx context.Context, client *idempotency.Client[TTx], order func(ctx context.Context, tx TTx, id string) error, id string) error {
	result, err := idempotency.Do(ctx, client, paramsOf(id), answerOrder(order, id))
	if err != nil {
		return err
	}
	return checkResponse(id, result.Value)
}

// doTx is DoTx around the order, in a transaction that is about to commit.
func doTx[TTx any](ctx context.Context, client *idempotency.Client[TTx], tx TTx, order func(ctx context.Context, tx TTx, id string) error, id string) error {
	result, err := idempotency.DoTx(ctx, client, tx, paramsOf(id), answerOrder(order, id))
	if err != nil {
		return err
	}
	answer, err := result.Answer()
	if err != nil {
		return err
	}
	return checkResponse(id, answer.Value)
}

// zero2prod is the shape of the book "Zero To Production In Rust": it claims the
// key with an INSERT, does the work, and saves the answer with an UPDATE.
func zero2prod(ctx context.Context, tx pgx.Tx, id string) error {
	tag, err := tx.Exec(ctx, `INSERT INTO idempotency (user_id, idempotency_key, created_at) VALUES ($1, $2, now()) ON CONFLICT DO NOTHING`, user, id)
	if err != nil {
		return err
	}
	if tag.RowsAffected() != 1 {
		return fmt.Errorf("a fresh key was taken")
	}
	if err := order(ctx, tx, id); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `UPDATE idempotency SET response_status_code = $3, response_body = $4 WHERE user_id = $1 AND idempotency_key = $2`, user, id, 200, responseTo(id))
	return err
}

// replay asks for an answer that was recorded before.
var replay = []peer{
	{name: "select", open: func(pool *pgxpool.Pool) (operation, error) {
		return func(ctx context.Context, id string) error {
			var response []byte
			if err := pool.QueryRow(ctx, selectAnswer, scope, id).Scan(&response); err != nil {
				return err
			}
			return checkResponse(id, response)
		}, nil
	}},
	// What Get has to read, by hand: so much of its cost is that of eleven columns.
	{name: "select_record", keyTable: "idempotency_keys", open: func(pool *pgxpool.Pool) (operation, error) {
		return func(ctx context.Context, id string) error {
			var record struct {
				claimID                         pgtype.UUID
				attempt                         int32
				fingerprint, response           []byte
				responseType                    string
				createdAt, updatedAt, expiresAt time.Time
				lockedUntil                     *time.Time
				unfinished                      *int16
				readAt                          time.Time
			}
			err := pool.QueryRow(ctx, `
				SELECT claim_id, attempt, fingerprint, response, response_type, created_at, updated_at, expires_at, locked_until, unfinished, statement_timestamp()
				FROM idempotency_keys WHERE scope = $1 AND id = $2`, scope, id).Scan(
				&record.claimID, &record.attempt, &record.fingerprint, &record.response, &record.responseType,
				&record.createdAt, &record.updatedAt, &record.expiresAt, &record.lockedUntil, &record.unfinished, &record.readAt)
			if err != nil {
				return err
			}
			return checkResponse(id, record.response)
		}, nil
	}},
	{name: "Get", keyTable: "idempotency_keys", open: func(pool *pgxpool.Pool) (operation, error) {
		client, err := newClient(pool)
		return func(ctx context.Context, id string) error {
			record, err := client.Get(ctx, paramsOf(id).Key)
			if err != nil {
				return err
			}
			return checkResponse(id, record.Response.Body)
		}, err
	}},
	{name: "Do", keyTable: "idempotency_keys", open: func(pool *pgxpool.Pool) (operation, error) {
		client, err := newClient(pool)
		return func(ctx context.Context, id string) error { return do(ctx, client, noOrder, id) }, err
	}},
	{name: "sql select", openSQL: selectOnSQL},
	{name: "sqlstore Do", keyTable: "idempotency_keys", openSQL: doOnSQL(noOrder)},
}

// batch does many orders in one transaction.
var batch = []peer{
	{name: "raw_many", orders: batchSize, open: func(pool *pgxpool.Pool) (operation, error) {
		return func(ctx context.Context, _ string) error {
			return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return orderMany(ctx, tx, newIDs(batchSize)) })
		}, nil
	}},
	{name: "BeginMany", orders: batchSize, keys: batchSize, keyTable: "idempotency_keys", open: func(pool *pgxpool.Pool) (operation, error) {
		client, err := newClient(pool)
		return func(ctx context.Context, _ string) error {
			ids := newIDs(batchSize)
			return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				keys, err := beginMany(ctx, client, tx, ids, 0)
				if err != nil {
					return err
				}
				if err := orderMany(ctx, tx, ids); err != nil {
					return err
				}
				return keys.Complete(ctx)
			})
		}, err
	}},
}

func newIDs(count int) []string {
	ids := make([]string, count)
	for i := range ids {
		ids[i] = newID()
	}
	return ids
}

func orderMany(ctx context.Context, tx pgx.Tx, ids []string) error {
	orders := &pgx.Batch{}
	for _, id := range ids {
		orders.Queue(insertOrder, id, customer, len(id))
	}
	return tx.SendBatch(ctx, orders).Close()
}

// beginMany claims keys that nobody has used, and sets the answer to each.
func beginMany(ctx context.Context, client *idempotency.Client[pgx.Tx], tx pgx.Tx, ids []string, ttl time.Duration) (*idempotency.Batch, error) {
	params := make([]idempotency.Params, len(ids))
	for i, id := range ids {
		params[i] = paramsOf(id)
		params[i].TTL = ttl
	}
	keys, err := client.WithTx(tx).BeginMany(ctx, params)
	if err != nil {
		return nil, err
	}
	for i, item := range keys.Items {
		if item.State != idempotency.New {
			return nil, fmt.Errorf("a fresh key of a batch is %s: %w", item.State, item.Err)
		}
		item.Response = &idempotency.Response{Type: idempotency.TypeBytes, Body: responseTo(ids[i])}
	}
	return keys, nil
}

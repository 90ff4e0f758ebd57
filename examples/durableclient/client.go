package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/examples/internal/child"
	"github.com/samecommit/samecommit/examples/internal/provider"
	"github.com/samecommit/samecommit/idempotency/httpidem"
)

// outboxTable has the bytes of the body: another body under the key would be refused.
const outboxTable = `CREATE TABLE payments_outbox (
	id     text PRIMARY KEY,
	key    text NOT NULL,
	body   bytea NOT NULL,
	done   boolean NOT NULL DEFAULT false,
	status integer,
	answer bytea
)`

// client pays by an API over HTTP. Its payments are in its own database.
type client struct {
	pool      *pgxpool.Pool
	serverURL string
	http      *http.Client
	naive     bool
	// at is called at each point where the process may be killed.
	at func(child.Point)
}

func newClient(pool *pgxpool.Pool, serverURL string, naive bool, at func(child.Point)) *client {
	// RequireKey makes a key that was forgotten an error. Without, the Transport makes
	// one in memory, which is what -naive does: it ends with the process.
	transport := &httpidem.Transport{RequireKey: !naive}
	return &client{pool: pool, serverURL: serverURL, http: &http.Client{Transport: transport}, naive: naive, at: at}
}

// store writes the payment with its key into the client's own row, unless it is there. A
// real client does so in the transaction that decides to pay.
func (c *client) store(ctx context.Context, request provider.Request) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	if _, err := c.pool.Exec(ctx, `INSERT INTO payments_outbox (id, key, body) VALUES ($1, $2, $3) ON CONFLICT (id) DO NOTHING`,
		request.Order, httpidem.NewKey(), body); err != nil {
		return fmt.Errorf("store the payment: %w", err)
	}
	return nil
}

// payment is a row of the outbox.
type payment struct {
	ID   string
	Key  string
	Body []byte
}

// sendAll sends what is not done. Two clients that send the same row do no harm: the server
// sees one key.
func (c *client) sendAll(ctx context.Context) error {
	rows, err := c.pool.Query(ctx, `SELECT id, key, body FROM payments_outbox WHERE NOT done ORDER BY id`)
	if err != nil {
		return fmt.Errorf("read the payments: %w", err)
	}
	payments, err := pgx.CollectRows(rows, pgx.RowToStructByPos[payment])
	if err != nil {
		return fmt.Errorf("read the payments: %w", err)
	}
	for _, p := range payments {
		status, answer, err := c.send(ctx, p)
		if err != nil {
			return err // the row stays for the next start
		}
		c.at(answered)
		if _, err := c.pool.Exec(ctx, `UPDATE payments_outbox SET done = true, status = $2, answer = $3 WHERE id = $1`, p.ID, status, answer); err != nil {
			return fmt.Errorf("note the answer: %w", err)
		}
	}
	return nil
}

// send returns the server's answer to a payment. After an error nobody here knows what has
// become of it.
func (c *client) send(ctx context.Context, p payment) (status int, answer []byte, err error) {
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotFirstResponseByte: func() { c.at(charged) }})
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.serverURL+"/orders/"+p.ID+"/charges", bytes.NewReader(p.Body))
	if err != nil {
		return 0, nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	if !c.naive {
		request.Header.Set(httpidem.DefaultHeader, strconv.Quote(p.Key))
	}
	response, err := c.http.Do(request)
	if err != nil {
		return 0, nil, fmt.Errorf("send the payment: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	if httpidem.ShouldRetry(response, nil) {
		return 0, nil, fmt.Errorf("send the payment: %s, which is no answer for good", response.Status)
	}
	if answer, err = io.ReadAll(response.Body); err != nil {
		return 0, nil, fmt.Errorf("read the answer: %w", err)
	}
	return response.StatusCode, answer, nil
}

// answer returns what is noted of a payment.
func (c *client) answer(ctx context.Context, order string) (receipt provider.Receipt, err error) {
	var status int
	var answer []byte
	if err := c.pool.QueryRow(ctx, `SELECT status, answer FROM payments_outbox WHERE id = $1 AND done`, order).Scan(&status, &answer); err != nil {
		return receipt, fmt.Errorf("read the answer: %w", err)
	}
	switch status {
	case http.StatusCreated:
		return receipt, json.Unmarshal(answer, &receipt)
	case http.StatusPaymentRequired:
		return receipt, provider.ErrDeclined
	default:
		return receipt, fmt.Errorf("the server has refused the payment: %d %s", status, answer)
	}
}

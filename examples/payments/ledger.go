package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ledger.charge_ref is deliberately not unique: a unique index would catch a
// double effect here and hide it from the audit. Most effects have no column
// that could be unique.
const ledgerSchema = `
CREATE TABLE accounts (
    id text PRIMARY KEY,
    balance bigint NOT NULL CHECK (balance >= 0),
    opened_with bigint NOT NULL
);
CREATE TABLE ledger (
    id bigserial PRIMARY KEY,
    charge_ref text NOT NULL,
    from_account text NOT NULL REFERENCES accounts,
    to_account text NOT NULL REFERENCES accounts,
    amount bigint NOT NULL CHECK (amount > 0)
)`

// A million euros, in cents: enough that no charge of the load is refused.
const openingBalance = 100_000_000

var accountIDs = []string{"alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi"}

// chargeRequest is the body of POST /charges.
type chargeRequest struct {
	Ref      string `json:"ref"`
	From     string `json:"from"`
	To       string `json:"to"`
	Amount   int64  `json:"amount"` // in cents
	Currency string `json:"currency,omitempty"`
}

func (r *chargeRequest) validate() error {
	switch {
	case r.Ref == "":
		return errors.New("ref is missing: name the order that is paid")
	case r.From == "" || r.To == "":
		return errors.New("from and to name two accounts")
	case r.From == r.To:
		return errors.New("from and to are the same account")
	case r.Amount <= 0:
		return errors.New("amount must be positive, in cents")
	case r.Currency != "" && r.Currency != "EUR":
		return errors.New("currency must be EUR, or left out")
	}
	return nil
}

// account is a row of accounts.
type account struct {
	ID      string `json:"id"`
	Balance int64  `json:"balance"` // in cents
}

// badChargeError says why a body is no charge.
type badChargeError struct{ error }

// Charge is the answer to a charge.
type Charge struct {
	ID       int64  `json:"id"`
	Ref      string `json:"ref"`
	From     string `json:"from"`
	To       string `json:"to"`
	Amount   int64  `json:"amount"`
	Currency string `json:"currency"`
}

// InsufficientFundsError is a definitive answer: it is recorded under the key,
// and the same charge is refused even after money has come in.
type InsufficientFundsError struct {
	Account string
	Amount  int64
}

func (e *InsufficientFundsError) Error() string {
	return fmt.Sprintf("account %s has less than %d; a new charge needs a new key", e.Account, e.Amount)
}

// unknownAccountError is not recorded: the account may be opened later.
type unknownAccountError struct{ account string }

func (e *unknownAccountError) Error() string {
	return fmt.Sprintf("there is no account %q", e.account)
}

// openLedger makes the tables and accounts and returns the sum of balances.
func openLedger(ctx context.Context, pool *pgxpool.Pool) (int64, error) {
	if _, err := pool.Exec(ctx, ledgerSchema); err != nil {
		return 0, fmt.Errorf("create the ledger's tables: %w", err)
	}
	if _, err := pool.Exec(ctx, "INSERT INTO accounts SELECT unnest($1::text[]), $2, $2", accountIDs, int64(openingBalance)); err != nil {
		return 0, fmt.Errorf("open the accounts: %w", err)
	}
	return int64(openingBalance * len(accountIDs)), nil
}

// transfer moves the money and writes the ledger, with work between reading and
// writing. It acts through tx only, so it takes effect when, and only when, tx
// commits.
func transfer(ctx context.Context, tx pgx.Tx, request *chargeRequest, work func(context.Context)) (Charge, error) {
	// Locked in one order by everybody: two opposite transfers that each lock
	// their own sender first would deadlock.
	rows, err := tx.Query(ctx, "SELECT id, balance FROM accounts WHERE id IN ($1, $2) ORDER BY id FOR UPDATE", request.From, request.To)
	if err != nil {
		return Charge{}, err
	}
	accounts, err := pgx.CollectRows(rows, pgx.RowToStructByPos[account])
	if err != nil {
		return Charge{}, err
	}
	balances := make(map[string]int64, len(accounts))
	for _, a := range accounts {
		balances[a.ID] = a.Balance
	}
	for _, id := range []string{request.From, request.To} {
		if _, ok := balances[id]; !ok {
			return Charge{}, &unknownAccountError{id}
		}
	}
	if balances[request.From] < request.Amount {
		return Charge{}, &InsufficientFundsError{Account: request.From, Amount: request.Amount}
	}
	work(ctx)
	if _, err := tx.Exec(ctx, `UPDATE accounts SET balance = balance + CASE id WHEN $1 THEN -$3::bigint ELSE $3::bigint END
		WHERE id IN ($1, $2)`, request.From, request.To, request.Amount); err != nil {
		return Charge{}, err
	}
	charge := Charge{Ref: request.Ref, From: request.From, To: request.To, Amount: request.Amount, Currency: "EUR"}
	err = tx.QueryRow(ctx, "INSERT INTO ledger (charge_ref, from_account, to_account, amount) VALUES ($1, $2, $3, $4) RETURNING id",
		request.Ref, request.From, request.To, request.Amount).Scan(&charge.ID)
	return charge, err
}

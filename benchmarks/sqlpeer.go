package main

import (
	"context"
	"database/sql"
	"errors"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/sqlstore"
)

// orderOnSQL is order on database/sql.
func orderOnSQL(ctx context.Context, tx *sql.Tx, id string) error {
	_, err := tx.ExecContext(ctx, insertOrder, id, customer, len(id))
	return err
}

// beginFunc is what pgx.BeginFunc does.
func beginFunc(ctx context.Context, db *sql.DB, fn func(tx *sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := fn(tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

func rawOnSQL(db *sql.DB) (operation, error) {
	return func(ctx context.Context, id string) error {
		return beginFunc(ctx, db, func(tx *sql.Tx) error { return orderOnSQL(ctx, tx, id) })
	}, nil
}

func selectOnSQL(db *sql.DB) (operation, error) {
	return func(ctx context.Context, id string) error {
		var response []byte
		if err := db.QueryRowContext(ctx, selectAnswer, scope, id).Scan(&response); err != nil {
			return err
		}
		return checkResponse(id, response)
	}, nil
}

func newSQLClient(db *sql.DB) (*idempotency.Client[*sql.Tx], error) {
	store, err := sqlstore.New(db, nil)
	if err != nil {
		return nil, err
	}
	return idempotency.NewClient(store, nil)
}

func doOnSQL(order func(ctx context.Context, tx *sql.Tx, id string) error) func(db *sql.DB) (operation, error) {
	return func(db *sql.DB) (operation, error) {
		client, err := newSQLClient(db)
		return func(ctx context.Context, id string) error { return do(ctx, client, order, id) }, err
	}
}

func doTxOnSQL(db *sql.DB) (operation, error) {
	client, err := newSQLClient(db)
	return func(ctx context.Context, id string) error {
		return beginFunc(ctx, db, func(tx *sql.Tx) error { return doTx(ctx, client, tx, orderOnSQL, id) })
	}, err
}

package pgxstore_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
	"github.com/samecommit/samecommit/txhelper"
)

func move(ctx context.Context, tx pgx.Tx) (int64, error) {
	tag, err := tx.Exec(ctx, `UPDATE accounts SET balance = balance - 100 WHERE id = 7`)
	return tag.RowsAffected(), err
}

// Do runs again what a serialization failure undid. The function sees it as
// another run, so it acts through its transaction only.
func ExampleConfig_serializable() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, "postgres:///shop")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer pool.Close()
	store, err := pgxstore.New(pool, &pgxstore.Config{
		TxOptions:   pgx.TxOptions{IsoLevel: pgx.Serializable},
		MaxAttempts: 20,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	client, err := idempotency.NewClient(store, nil)
	if err != nil {
		fmt.Println(err)
		return
	}

	_, err = idempotency.Do(ctx, client, idempotency.Params{
		Key:         idempotency.Key{Scope: "tenant-7/charge", ID: "0d9f3c1e"},
		Fingerprint: idempotency.FingerprintOf("POST /charges", `{"amount":100}`),
	}, move)
	if errors.Is(err, idempotency.ErrSerializationFailure) {
		// 20 times in a row. Nothing is committed and the key is free.
		fmt.Println("busy, try again later")
	}
}

// In a transaction of the caller's own, only the caller can run all of it again.
// txhelper.Run does.
func ExampleStore_WithTx_serializable() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, "postgres:///shop")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer pool.Close()
	store, err := pgxstore.New(pool, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	client, err := idempotency.NewClient(store, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	params := idempotency.Params{
		Key:         idempotency.Key{Scope: "tenant-7/charge", ID: "0d9f3c1e"},
		Fingerprint: idempotency.FingerprintOf("POST /charges", `{"amount":100}`),
	}

	options := &txhelper.Options{TxOptions: pgx.TxOptions{IsoLevel: pgx.Serializable}}
	done, err := txhelper.RunValue(ctx, pool, options, func(ctx context.Context, tx pgx.Tx) (idempotency.TxResult[int64], error) {
		if _, err := tx.Exec(ctx, `INSERT INTO visits DEFAULT VALUES`); err != nil {
			return idempotency.TxResult[int64]{}, err
		}
		return idempotency.DoTx(ctx, client, tx, params, move)
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	// Committed: now the answer is true.
	result, err := done.Answer()
	fmt.Println(result.Value, result.Replayed, err)
}

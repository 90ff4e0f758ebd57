package pgxstore

import (
	"context"
	"reflect"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/samecommit/samecommit/idempotency"
)

// missingDB stands for a DB that is nil, so that every call says so.
type missingDB struct{}

var errMissingDB = &idempotency.ParamError{Field: "database", Reason: "is nil; pass pgxstore.New a *pgxpool.Pool"}

func orMissing(database DB) DB {
	if value := reflect.ValueOf(database); !value.IsValid() || value.Kind() == reflect.Pointer && value.IsNil() {
		return missingDB{}
	}
	return database
}

func (missingDB) Begin(context.Context) (pgx.Tx, error) { return nil, errMissingDB }

func (missingDB) Exec(context.Context, string, ...any) (pgconn.CommandTag, error) {
	return pgconn.CommandTag{}, errMissingDB
}

func (missingDB) Query(context.Context, string, ...any) (pgx.Rows, error) {
	return nil, errMissingDB
}

func (missingDB) QueryRow(context.Context, string, ...any) pgx.Row {
	return rowFunc(func(...any) error { return errMissingDB })
}

func (missingDB) SendBatch(_ context.Context, batch *pgx.Batch) pgx.BatchResults {
	return pgx.FailedBatchResults(batch, errMissingDB)
}

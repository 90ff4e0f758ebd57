package pgxstore

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// ForeignTx is a transaction whose connection another package has, such as database/sql,
// and whose Conn returns nil.
type ForeignTx interface {
	pgx.Tx
	// TxStatus returns what pgconn.PgConn's does, 0 where that cannot be told.
	TxStatus() byte
	// Savepoint calls fn between a savepoint and its release, and undoes what fn did
	// where that returns an error, which it then returns as it is.
	Savepoint(ctx context.Context, fn func(ctx context.Context, tx pgx.Tx) error) error
}

// txStatus returns the status of a transaction in which a statement can be sent, 0 where
// it cannot be told or none can.
func txStatus(tx pgx.Tx) byte {
	if foreign, ok := tx.(ForeignTx); ok {
		return foreign.TxStatus()
	}
	conn := tx.Conn()
	if conn == nil || conn.IsClosed() || conn.PgConn().IsBusy() {
		return 0
	}
	return conn.PgConn().TxStatus()
}

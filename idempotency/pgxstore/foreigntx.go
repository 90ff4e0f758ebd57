package pgxstore

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// foreignTx is a transaction whose connection another package has, and whose Conn returns
// nil: package sqlstore makes one of a caller's *sql.Tx.
type foreignTx interface {
	pgx.Tx
	// Look calls fn with the connection, which is not fn's to keep, and returns fn's
	// error.
	Look(fn func(conn *pgx.Conn) error) error
	// Savepoint calls fn between a savepoint and its release, and undoes what fn did
	// where that returns an error. It returns that as it is, or joined to ErrTxEnded where
	// there was nothing left to undo.
	Savepoint(ctx context.Context, fn func(ctx context.Context, tx pgx.Tx) error) error
}

// txStatus returns the status of a transaction in which a statement can be sent, 0 where
// it cannot be told or none can.
func txStatus(tx pgx.Tx) (status byte) {
	if foreign, ok := tx.(foreignTx); ok {
		_ = foreign.Look(func(conn *pgx.Conn) error {
			status = connStatus(conn)
			return nil
		})
		return status
	}
	return connStatus(tx.Conn())
}

func connStatus(conn *pgx.Conn) byte {
	if conn == nil || conn.IsClosed() || conn.PgConn().IsBusy() {
		return 0
	}
	return conn.PgConn().TxStatus()
}

//go:build unix

package chaos_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
	"github.com/samecommit/samecommit/idempotency/sqlstore"
	"github.com/samecommit/samecommit/txhelper"
)

// sqlLevels are the levels of database/sql.
var sqlLevels = map[pgx.TxIsoLevel]sql.IsolationLevel{
	pgx.ReadCommitted: sql.LevelReadCommitted, pgx.RepeatableRead: sql.LevelRepeatableRead, pgx.Serializable: sql.LevelSerializable,
}

// sqlConfig is config for a store on database/sql.
func sqlConfig(config *pgxstore.Config) *sqlstore.Config {
	return &sqlstore.Config{
		TxOptions:   sql.TxOptions{Isolation: sqlLevels[config.TxOptions.IsoLevel]},
		MaxAttempts: config.MaxAttempts, IdleTimeout: config.IdleTimeout, ConnectTimeout: config.ConnectTimeout,
		CommitTimeout: config.CommitTimeout, ResolveTimeout: config.ResolveTimeout,
	}
}

func newSQLStore(t *testing.T, db *sql.DB, config *pgxstore.Config) *sqlstore.Store {
	t.Helper()
	store, err := sqlstore.New(db, sqlConfig(config))
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func insertOnSQL(ctx context.Context, tx *sql.Tx, key idempotency.Key, effect string) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO effects (scope, id, effect) VALUES ($1, $2, $3)`, key.Scope, key.ID, effect)
	return err
}

// beginOnSQL calls fn in a transaction of the caller's, and commits it. Of a commit that
// the server has not refused nothing is known.
func beginOnSQL(ctx context.Context, db *sql.DB, level pgx.TxIsoLevel, fn func(ctx context.Context, tx *sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: sqlLevels[level]})
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // of one that has ended it does nothing
	if err := fn(ctx, tx); err != nil {
		return err
	}
	err = tx.Commit()
	var pgErr *pgconn.PgError
	if err == nil || errors.Is(err, sql.ErrTxDone) || errors.As(err, &pgErr) && pgErr.Severity == "ERROR" {
		return err
	}
	return &txhelper.AmbiguousCommitError{Err: err}
}

// onSQL calls fn with the trial's pool as a *sql.DB, and a client on that.
func onSQL(tr *trial, fn func(db *sql.DB, client *idempotency.Client[*sql.Tx]) answer) answer {
	db := stdlib.OpenDBFromPool(tr.behind)
	defer func() { _ = db.Close() }() // the pool has the connections
	store, err := sqlstore.New(db, sqlConfig(tr.config))
	if err != nil {
		return ownAnswer("", err)
	}
	client, err := idempotency.NewClient(store, clientConfig)
	if err != nil {
		return ownAnswer("", err)
	}
	return fn(db, client)
}

func (tr *trial) operationOnSQL(ctx context.Context, tx *sql.Tx) (string, error) {
	id := tr.run()
	_, err := tx.ExecContext(ctx, insertEffect, tr.key, id)
	return id, err
}

func doOnSQL(ctx context.Context, tr *trial) answer {
	return onSQL(tr, func(_ *sql.DB, client *idempotency.Client[*sql.Tx]) answer {
		result, err := idempotency.Do(ctx, client, tr.params(), tr.operationOnSQL)
		return answerOf(result.Value, result.Replayed, err)
	})
}

func doTxOnSQL(ctx context.Context, tr *trial) answer {
	return onSQL(tr, func(db *sql.DB, client *idempotency.Client[*sql.Tx]) answer {
		var done idempotency.TxResult[string]
		err := beginOnSQL(ctx, db, tr.options.TxOptions.IsoLevel, func(ctx context.Context, tx *sql.Tx) (err error) {
			done, err = idempotency.DoTx(ctx, client, tx, tr.params(), tr.operationOnSQL)
			return err
		})
		if err != nil {
			return ownAnswer("", err)
		}
		result, err := done.Answer()
		return answerOf(result.Value, result.Replayed, err)
	})
}

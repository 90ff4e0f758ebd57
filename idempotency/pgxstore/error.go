package pgxstore

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/txhelper"
)

// ErrNotMigrated means that the table idempotency_keys, or a column of it, is
// not there.
var ErrNotMigrated = errors.New(`pgxstore: table "idempotency_keys" is missing or outdated: apply migration 00001_create_idempotency_keys.sql and later ones with migrate.Up, or with goose from migrations.FS, and check that the connection's search_path finds it`)

// ErrInsufficientPrivilege means that PostgreSQL refused the store a statement
// or a row (42501): the role lacks a grant, or row-level security hides the
// scope from it.
var ErrInsufficientPrivilege = errors.New(`pgxstore: PostgreSQL refused access to "idempotency_keys": check the role's grants and, under row-level security, that Config.Settings sets the tenant of the key's scope, or in WithTx and DoTx the caller: docs/tenancy.md`)

// errTryAgain: another transaction changed the row between our look and our
// write, and left no live answer. A fresh transaction decides anew.
var errTryAgain = fmt.Errorf("%w: another transaction changed the key meanwhile", idempotency.ErrSerializationFailure)

// SQLSTATEs that our statements raise, or meet, on purpose.
const (
	codeDivisionByZero  = "22012" // the row is no longer as it was seen, or the claim is lost
	codeInvalidText     = "22P02" // the transaction that did the work has ended
	codeUniqueViolation = "23505"
	codeNoPrivilege     = "42501"
	codeLockTimeout     = "55P03"
	codeUndefinedTable  = "42P01"
	codeUndefinedColumn = "42703"
	codeForeignKey      = "23503"
	codeReadOnly        = "25006"
	codeNoTransaction   = "25P01"
	codeTxAborted       = "25P02"

	codeIdleInTransaction = "25P03" // idle_in_transaction_session_timeout has ended the connection
)

// guard is the constraint that keeps a key which was begun and not completed
// from being committed.
const guard = "idempotency_keys_completed_before_commit"

// endedText is what KeyInsertCompleted and KeyReplaceCompleted take for a status
// where the transaction that did the work has ended. PostgreSQL's message quotes
// it in every language, and that of a policy or trigger does not.
const endedText = "the transaction that did the work has ended"

func saysEnded(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == codeInvalidText && strings.Contains(pgErr.Message, endedText)
}

func sqlState(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}

// explain turns an error of one of our statements into the package's terms.
func (s *Store) explain(key idempotency.Key, doing string, err error) error {
	var keyErr *idempotency.KeyError
	var paramErr *idempotency.ParamError
	if err == nil || errors.As(err, &keyErr) || errors.As(err, &paramErr) {
		return err
	}
	if cause := sentinel(err); cause != nil {
		return &idempotency.KeyError{Key: key, Err: fmt.Errorf("%w: %s: %w", cause, doing, err)}
	}
	return explainSchema(doing, err)
}

// sentinel returns what err means in the core's terms, nil where it has none.
func sentinel(err error) error {
	var pgErr *pgconn.PgError
	switch {
	case errors.Is(err, pgx.ErrTxClosed):
		return idempotency.ErrTxEnded
	case !errors.Is(err, txhelper.ErrConnectionLost) && txhelper.IsRetryable(err):
		return idempotency.ErrSerializationFailure
	case isUnavailable(err):
		return idempotency.ErrUnavailable
	case !errors.As(err, &pgErr):
		return nil
	case pgErr.Code == codeNoTransaction:
		return idempotency.ErrTxEnded
	case pgErr.Code == codeTxAborted:
		return idempotency.ErrTxAborted
	case pgErr.Code == codeReadOnly:
		return idempotency.ErrReadOnly
	case pgErr.Code == codeForeignKey && pgErr.ConstraintName == guard:
		// The guard acts at commit, so the statement was its own transaction.
		return idempotency.ErrTxEnded
	}
	return nil
}

func explainSchema(doing string, err error) error {
	if err == nil {
		return nil
	}
	switch sqlState(err) {
	case codeUndefinedTable, codeUndefinedColumn:
		return fmt.Errorf("%w: %w", ErrNotMigrated, err)
	case codeNoPrivilege:
		return fmt.Errorf("%w: %s: %w", ErrInsufficientPrivilege, doing, err)
	}
	return fmt.Errorf("pgxstore: %s: %w", doing, err)
}

// explainOwned adds the core's sentinel to txhelper's, which imports only pgx.
func explainOwned(err error) error {
	if errors.Is(err, txhelper.ErrOwned) || errors.Is(err, txhelper.ErrEnded) {
		return fmt.Errorf("%w: %w", idempotency.ErrOwned, err)
	}
	if errors.Is(err, txhelper.ErrAborted) || errors.Is(err, txhelper.ErrRowsOpen) {
		return fmt.Errorf("%w: %w", idempotency.ErrTxAborted, err)
	}
	return err
}

// ownedTx is the transaction that a caller's function gets: txhelper's, with the
// core's sentinel in the error that refuses Commit and Rollback.
type ownedTx struct {
	pgx.Tx
	// runKey is the key that Run holds by this transaction, without a row yet.
	runKey idempotency.Key
}

// Begin starts a nested transaction, which still is under the key.
func (tx ownedTx) Begin(ctx context.Context) (pgx.Tx, error) {
	nested, err := tx.Tx.Begin(ctx)
	if err != nil {
		return nil, err
	}
	return ownedTx{nested, tx.runKey}, nil
}

func (tx ownedTx) Commit(ctx context.Context) error   { return explainOwned(tx.Tx.Commit(ctx)) }
func (tx ownedTx) Rollback(ctx context.Context) error { return explainOwned(tx.Tx.Rollback(ctx)) }

// runKey returns the key that Run holds by tx, zero if tx is not of Run.
func runKey(tx pgx.Tx) idempotency.Key {
	owned, _ := tx.(ownedTx)
	return owned.runKey
}

func checkClaim(claim *idempotency.Claim) error {
	if claim == nil {
		return &idempotency.KeyError{Err: idempotency.ErrNotClaimed}
	}
	if claim.ID == (idempotency.ClaimID{}) {
		return &idempotency.KeyError{Key: claim.Key, Err: idempotency.ErrNotClaimed}
	}
	return nil
}

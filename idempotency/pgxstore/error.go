package pgxstore

import (
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
var ErrNotMigrated = errors.New(`pgxstore: table "idempotency_keys" is missing or outdated: apply migration 00001_create_idempotency_keys.sql and later ones with migrations.Up, or with goose from migrations.FS, and check that the connection's search_path finds it`)

// ErrInsufficientPrivilege means that PostgreSQL refused the store a statement
// or a row (42501): the role lacks a grant, or row-level security hides the
// scope from it.
var ErrInsufficientPrivilege = errors.New(`pgxstore: PostgreSQL refused access to "idempotency_keys": check the role's grants and, under row-level security, that Config.Settings sets the tenant of the key's scope, or in WithTx and DoTx the caller: docs/tenancy.md`)

// ErrTableMoved means that the function of Do or Run set search_path, or made a temporary
// table, so that "idempotency_keys" is another table than the one that was asked
// for the key. Nothing was committed.
var ErrTableMoved = errors.New(`pgxstore: search_path finds another "idempotency_keys" than when the operation began, so nothing was committed: set search_path for the whole transaction with Config.Settings, or on the connection, and name no temporary table so`)

// ErrTemporaryTable means that the session has a temporary table
// "idempotency_keys", which ends with the session and may hide the real one. Nothing
// was run.
var ErrTemporaryTable = errors.New(`pgxstore: this connection has a temporary table "idempotency_keys", which may hide the real one: drop it`)

// ErrRowSuppressed means that PostgreSQL did not write the row of the key and
// raised no error: a row trigger or a rule on "idempotency_keys" suppressed it.
// Nothing was committed.
var ErrRowSuppressed = errors.New(`pgxstore: the row of the key was not written, so nothing was committed: look for a row trigger or a rule on "idempotency_keys" that returns NULL or does something instead`)

// ErrPreparedStatement means that a prepared statement of pgx's cache was not
// there, or was another client's (42P05, 26000): a pooler gives one server
// connection to several clients.
var ErrPreparedStatement = errors.New("pgxstore: a prepared statement of pgx's cache is not this client's: behind a transaction pooler set default_query_exec_mode=cache_describe, or use pgbouncer 1.21 or later with max_prepared_statements")

// errTryAgain: another transaction changed the row between our look and our
// write, and left no live answer. A fresh transaction decides anew.
var errTryAgain = fmt.Errorf("%w: another transaction changed the key meanwhile", idempotency.ErrSerializationFailure)

// SQLSTATEs that our statements raise, or meet, on purpose.
const (
	codeDivisionByZero    = "22012" // the row is no longer as it was seen, or the claim is lost
	codeInvalidText       = "22P02" // the transaction that did the work has ended
	codeUniqueViolation   = "23505"
	codeNoPrivilege       = "42501"
	codeLockTimeout       = "55P03"
	codeUndefinedTable    = "42P01"
	codeUndefinedColumn   = "42703"
	codeForeignKey        = "23503"
	codeReadOnly          = "25006"
	codeNoTransaction     = "25P01"
	codeTxAborted         = "25P02"
	codeDuplicateName     = "42P05" // of a prepared statement
	codeUndefinedName     = "26000" // of a prepared statement
	codeIdleInTransaction = "25P03" // idle_in_transaction_session_timeout has ended the connection
)

// What our statements cast to a number where they must fail. PostgreSQL's message
// quotes it in every language, and that of a policy or trigger does not.
const (
	beganText      = "the work began in another transaction, or at another table, than "
	suppressedText = "a trigger or rule kept the row from being written"
	nestedText     = "this transaction already runs under the key"
)

func says(err error, text string) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == codeInvalidText && strings.Contains(pgErr.Message, text)
}

func sqlState(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}

// withoutDetail returns err so that errors.As finds PostgreSQL's error in it
// without the parts that may quote a row or a parameter. It is for errors of our
// own statements.
func withoutDetail(err error) error {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Detail == "" && pgErr.Where == "" && pgErr.InternalQuery == "" {
		return err
	}
	bare := *pgErr
	bare.Detail, bare.Where, bare.InternalQuery = "", "", ""
	return &withoutDetailError{err, &bare}
}

// withoutDetailError is err with bare in the place of PostgreSQL's error. It has no
// Unwrap, which would lead to that one.
type withoutDetailError struct {
	err  error
	bare *pgconn.PgError
}

func (e *withoutDetailError) Error() string        { return e.err.Error() }
func (e *withoutDetailError) Is(target error) bool { return errors.Is(e.err, target) }

func (e *withoutDetailError) As(target any) bool {
	if found, ok := target.(**pgconn.PgError); ok {
		*found = e.bare
		return true
	}
	return errors.As(e.err, target)
}

// explain turns an error of one of our statements into the package's terms.
func (s *Store) explain(key idempotency.Key, doing string, err error) error {
	var keyErr *idempotency.KeyError
	var paramErr *idempotency.ParamError
	if err == nil || errors.As(err, &keyErr) || errors.As(err, &paramErr) {
		return err
	}
	err = withoutDetail(err)
	if cause := sentinel(err); cause != nil {
		return &idempotency.KeyError{Key: key, Err: fmt.Errorf("%w: %s: %w", cause, doing, err)}
	}
	return explainSchema(doing, err)
}

// explainWithoutKey is Store.explain for what is about several keys, or none.
func explainWithoutKey(doing string, err error) error {
	if err == nil {
		return nil
	}
	err = withoutDetail(err)
	if cause := sentinel(err); cause != nil {
		return fmt.Errorf("%w: %s: %w", cause, doing, err)
	}
	return explainSchema(doing, err)
}

// sentinel returns what err means in the core's terms, nil where it has none.
func sentinel(err error) error {
	var pgErr *pgconn.PgError
	switch {
	case errors.Is(err, pgx.ErrTxClosed):
		return idempotency.ErrTxEnded
	case errors.Is(err, ErrConstraintsImmediate):
		return nil
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
	case says(err, nestedText):
		return idempotency.ErrNested
	case isGuard(err):
		// The guard acts at commit, so the statement was its own transaction.
		return idempotency.ErrTxEnded
	}
	return nil
}

// explain is Store.explain for a statement in the caller's transaction.
func (v *verbs) explain(key idempotency.Key, doing string, err error) error {
	return v.store.explain(key, doing, v.immediate(err))
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
	case codeDuplicateName, codeUndefinedName:
		var pgErr *pgconn.PgError
		if errors.As(err, &pgErr) && strings.Contains(pgErr.Message, "stmtcache_") {
			return fmt.Errorf("%w: %s: %w", ErrPreparedStatement, doing, err)
		}
	}
	return fmt.Errorf("pgxstore: %s: %w", doing, err)
}

// checkEncoding refuses a connection on which the server would translate a key: it
// would be another key there than on a connection that sends UTF-8.
func checkEncoding(conn *pgx.Conn) error {
	if conn == nil { // of a foreignTx
		return nil
	}
	switch encoding := conn.PgConn().ParameterStatus("client_encoding"); encoding {
	case "", "UTF8", "SQL_ASCII":
		return nil
	default:
		return &idempotency.ParamError{Field: "client_encoding", Reason: "is " + encoding + "; keys are UTF-8: set client_encoding to UTF8 in the connection's URL"}
	}
}

// explainUnfit adds the core's sentinel to txhelper's for a transaction that cannot
// be committed.
func explainUnfit(err error) error {
	switch {
	case errors.Is(err, txhelper.ErrEnded), errors.Is(err, txhelper.ErrOwned) && !errors.Is(err, idempotency.ErrOwned):
		// The second is of a transaction of txhelper's inside ours, or around it.
		return fmt.Errorf("%w: %w", idempotency.ErrOwned, err)
	case errors.Is(err, txhelper.ErrAborted), errors.Is(err, txhelper.ErrRowsOpen):
		return fmt.Errorf("%w: %w", idempotency.ErrTxAborted, err)
	}
	return err
}

package txhelper

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

var (
	// ErrOwned means that a function tried to commit or roll back the transaction that it
	// was given. Nothing of the transaction is committed.
	ErrOwned = errors.New("txhelper: transaction belongs to the call that opened it: return nil to commit, an error to roll back")
	// ErrEnded means that the transaction ended before Commit, by a COMMIT, ROLLBACK or
	// PREPARE TRANSACTION sent as SQL. What was done before a COMMIT is committed.
	// What was prepared waits, with its locks, until it gets ROLLBACK PREPARED.
	ErrEnded = errors.New("txhelper: transaction was ended by an SQL statement of its own: after PREPARE TRANSACTION run ROLLBACK PREPARED; what a COMMIT wrote stays")
	// ErrAborted means that a statement failed, its error was ignored, and PostgreSQL
	// refuses to commit the transaction.
	ErrAborted = errors.New("txhelper: transaction is aborted: the error of a failed statement was ignored")
	// ErrConnectionLost means that the connection broke before the transaction
	// had begun, as one that has idled in a pool may do. Nothing was done.
	ErrConnectionLost = errors.New("txhelper: connection was lost before the transaction began")
	// ErrNoConnection means that there was no connection to begin a transaction on: the
	// pool could not open or lend one, or the one that was passed is closed. Nothing was
	// done. Where the context ended first, the error is also its cause.
	ErrNoConnection = errors.New("txhelper: no connection to begin a transaction on")
	// ErrNotPgx means that a Lender has connections that are not pgx's.
	ErrNotPgx = errors.New("txhelper: connection is not pgx's")
	// ErrLostBeforeCommit means that the connection broke after the transaction had begun
	// and before COMMIT was sent. Nothing is committed.
	ErrLostBeforeCommit = errors.New("txhelper: connection was lost before commit was sent")
	// ErrRowsOpen means that rows, a batch or a copy were still being read when the
	// function returned. Close them, or read to the end.
	ErrRowsOpen = errors.New("txhelper: transaction still has open rows")
)

// AttemptsExceededError is a transaction that failed with a retryable error as
// often as Options.MaxAttempts allows.
type AttemptsExceededError struct {
	// Attempts is how often it was tried.
	Attempts int
	// Err is the error of the last try.
	Err error
}

// Error returns the number of attempts and the last error.
func (e *AttemptsExceededError) Error() string {
	return fmt.Sprintf("txhelper: gave up after %d attempts: %v", e.Attempts, e.Err)
}

// Unwrap returns Err.
func (e *AttemptsExceededError) Unwrap() error { return e.Err }

// AmbiguousCommitError is a commit whose reply was lost: the transaction may be
// committed or not, or be about to be. Running it again may do its work twice;
// package pgxstore shows how a key settles it.
type AmbiguousCommitError struct {
	// Err is why the reply did not arrive.
	Err error
}

// Error returns what happened to the reply.
func (e *AmbiguousCommitError) Error() string {
	return fmt.Sprintf("txhelper: outcome of commit is unknown: %v", e.Err)
}

// Unwrap returns Err.
func (e *AmbiguousCommitError) Unwrap() error { return e.Err }

// IsRetryable reports whether err is a serialization failure (40001), a deadlock
// (40P01) or ErrConnectionLost, which a fresh transaction may not meet again.
func IsRetryable(err error) bool {
	var pgErr *pgconn.PgError
	return errors.Is(err, ErrConnectionLost) || errors.As(err, &pgErr) && (pgErr.Code == "40001" || pgErr.Code == "40P01")
}

// codeIdleInTransaction is what a server says that ends a connection because
// its transaction has been idle for too long.
const codeIdleInTransaction = "25P03"

// isDefinite reports whether err, in reply to a commit, proves that nothing was
// committed. A server that ends the connection (FATAL, PANIC) proves nothing,
// but for one that was still waiting for a command and so has not read COMMIT.
// Class 08 and 40003 prove nothing either where a pooler may have said so, in
// place of a server that it has lost. A server of PostgreSQL's own says it in a
// deferred trigger, of some other connection, and is in sync afterwards.
func isDefinite(err error, inSync bool) bool {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return false
	}
	if pgErr.Code == codeIdleInTransaction {
		return true
	}
	severity := pgErr.SeverityUnlocalized
	if severity == "" {
		severity = pgErr.Severity
	}
	return severity == "ERROR" && (inSync || pgErr.Code != "40003" && !strings.HasPrefix(pgErr.Code, "08"))
}

// noConnection says why there is no connection.
func noConnection(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	return fmt.Errorf("%w: %w", ErrNoConnection, err)
}

// errCustomQuery refuses what Commit, which sends its own, would leave out.
var errCustomQuery = errors.New("txhelper: TxOptions.BeginQuery and CommitQuery are not supported: use IsoLevel, AccessMode and DeferrableMode, and run what else the transaction needs as its first statement")

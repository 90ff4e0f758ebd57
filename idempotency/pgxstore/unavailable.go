package pgxstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/txhelper"
)

const (
	firstConnectPause   = 5 * time.Millisecond
	longestConnectPause = 250 * time.Millisecond
)

// reach calls try, and again while it fails for want of a server, for as long as
// left says, which it reduces by the time that this took. A failover takes
// seconds, and nothing has run yet.
//
// The first try has no other bound than the context: a pool whose connections
// are all lent makes it wait, and that is no failure.
func (s *Store) reach(ctx context.Context, left *time.Duration, try func(ctx context.Context) error) error {
	err := try(ctx)
	if err == nil || !s.canReconnect() || !heals(err) {
		return err
	}
	start := time.Now()
	defer func() { *left -= time.Since(start) }()
	bounded, cancel := context.WithTimeout(ctx, *left)
	defer cancel()
	for pause := firstConnectPause; ; pause = min(2*pause, longestConnectPause) {
		timer := time.NewTimer(pause/2 + rand.N(pause/2))
		select {
		case <-timer.C:
		case <-bounded.Done():
			timer.Stop()
		}
		if bounded.Err() == nil {
			again := try(bounded)
			if again == nil || bounded.Err() == nil && !heals(again) {
				return again
			}
			if bounded.Err() == nil {
				err = again
			}
		}
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case bounded.Err() != nil:
			return fmt.Errorf("no server within Config.ConnectTimeout: %w", err)
		}
	}
}

// heals reports whether err, of a connection or of a statement that may be
// repeated, says that there was no server, which another may replace: refused or
// timed out, starting up or shutting down, without a place, not read-write, or
// lost. A wrong password, a database that does not exist, a certificate that is
// not trusted and a closed pool stay as they are.
func heals(err error) bool {
	if errors.Is(err, errSettings) {
		return false
	}
	if errors.Is(err, txhelper.ErrConnectionLost) || isLost(err) {
		return true
	}
	var connect *pgconn.ConnectError
	if !errors.As(err, &connect) {
		return false
	}
	// One error for each host of the connection's URL.
	healing := false
	for _, host := range leaves(connect.Unwrap()) {
		var pgErr *pgconn.PgError
		switch {
		case errors.As(host, &pgErr):
			if !isServerTrouble(pgErr) {
				return false
			}
			healing = true
		case isBroken(host), errors.Is(host, context.DeadlineExceeded), strings.Contains(host.Error(), "ValidateConnect failed"):
			healing = true // the last: target_session_attrs
		}
	}
	return healing
}

// leaves returns the errors that errors.Join has joined in err.
func leaves(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error }) //nolint:errorlint // The outermost alone.
	if !ok {
		return []error{err}
	}
	var all []error
	for _, one := range joined.Unwrap() {
		all = append(all, leaves(one)...)
	}
	return all
}

// isUnavailable reports whether err, of a statement of ours or of the connection
// for it, is the store's own trouble and has changed nothing.
func isUnavailable(err error) bool {
	if errors.Is(err, errSettings) {
		return false
	}
	var connect *pgconn.ConnectError
	if errors.As(err, &connect) ||
		errors.Is(err, txhelper.ErrNoConnection) || errors.Is(err, txhelper.ErrConnectionLost) || errors.Is(err, txhelper.ErrLostBeforeCommit) {
		return true
	}
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && isServerTrouble(pgErr) && !endsSession(pgErr)
}

// lostBeforeCommit marks the error of a statement that broke the connection and
// that no commit came with: one in an open transaction, or one that only reads.
func lostBeforeCommit(err error) error {
	if err == nil || errors.Is(err, errSettings) || isUnavailable(err) || !isLost(err) {
		return err
	}
	return fmt.Errorf("%w: %w", txhelper.ErrLostBeforeCommit, err)
}

// isLost reports whether err says that a connection broke.
func isLost(err error) bool {
	var connect *pgconn.ConnectError
	if errors.As(err, &connect) {
		return false // there was none
	}
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return isServerTrouble(pgErr) && endsSession(pgErr)
	}
	return isBroken(err)
}

// isBroken reports whether err is the network's, not the end of a context.
func isBroken(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	var errno syscall.Errno
	var netErr net.Error
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.ErrClosedPipe) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, pgconn.ErrConnClosed) || errors.As(err, &netErr) || errors.As(err, &errno)
}

// isServerTrouble reports whether the server says that a connection failed (08),
// that it lacks resources (53) or is being stopped or started (57P), or that its
// system failed (58).
func isServerTrouble(err *pgconn.PgError) bool {
	for _, class := range []string{"08", "53", "57P", "58"} {
		if strings.HasPrefix(err.Code, class) {
			return true
		}
	}
	return false
}

// endsSession reports whether the server ended the connection with err.
func endsSession(err *pgconn.PgError) bool {
	severity := err.SeverityUnlocalized
	if severity == "" {
		severity = err.Severity
	}
	return severity != "ERROR"
}

// ErrIdleTimeout means that the function was without a statement for longer
// than Config.IdleTimeout, or where that is negative the server's own
// idle_in_transaction_session_timeout, and that PostgreSQL ended its transaction.
// Nothing was committed, and the function is not run again by itself.
var ErrIdleTimeout = errors.New("pgxstore: the function was without a statement for longer than Config.IdleTimeout, and PostgreSQL ended its transaction: nothing was committed: raise Config.IdleTimeout, or do slow work before the call")

// endedIdle reports whether the server ended the connection because its
// transaction was idle for too long.
func endedIdle(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == codeIdleInTransaction && endsSession(pgErr)
}

// maxLeftNothing is how often Run runs its function where the connection is lost
// at COMMIT each time: what breaks it twice may always break it.
const maxLeftNothing = 2

// leftNothingError is a connection that was lost at COMMIT, or before, after the
// function had returned; and what was to be committed has ended without a trace.
type leftNothingError struct {
	// cause is how it was lost.
	cause error
	// last says that the function is not to run again.
	last bool
}

func (e *leftNothingError) Error() string {
	return fmt.Sprintf("the connection was lost at COMMIT, which has left nothing: %v", e.cause)
}

// unavailable is the error for the caller, who may call again, where ctx is the
// call's. A Run around this one must not take it for its own.
func (e *leftNothingError) unavailable(ctx context.Context) error {
	err := fmt.Errorf("%w: the connection was lost at COMMIT, which has left nothing: %w", idempotency.ErrUnavailable, e.cause)
	if cause := context.Cause(ctx); cause != nil {
		err = fmt.Errorf("%w: gave up trying again: %w", err, cause)
	}
	return err
}

// runsAgain reports whether err is a commit that left nothing and may be tried
// once more.
func runsAgain(err error) bool {
	var lost *leftNothingError
	return errors.As(err, &lost) && !lost.last
}

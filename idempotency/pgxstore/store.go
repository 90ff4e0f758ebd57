package pgxstore

import (
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/db"
	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/txhelper"
)

// Defaults of Config.
const (
	DefaultIdleTimeout    = time.Minute
	DefaultResolveTimeout = 10 * time.Second
	DefaultConnectTimeout = 10 * time.Second
)

// DB is a *pgxpool.Pool or a *pgx.Conn. It may also be a pgx.Tx, in which a
// test can do everything and roll it back; Run then works in savepoints.
type DB interface {
	db.DBTX
	txhelper.DB
	batcher
}

// Config configures a Store. Nil and the zero value mean all defaults.
type Config struct {
	// TxOptions are those of the transactions that Run and Transact open.
	// Defaults to the server's, READ COMMITTED unless it was configured.
	TxOptions pgx.TxOptions
	// MaxAttempts is how often Run and Transact run their function at most, counting retries
	// after serialization failures, deadlocks and lost races. Defaults to 8.
	MaxAttempts int
	// IdleTimeout is after how long without a statement the server ends a
	// transaction of Run's or Transact's, which frees its key when the network has silently
	// failed. It does not count while the server waits for the rest of a request
	// that arrived in part: there only TCP keepalives help, the server's
	// tcp_keepalives_idle. Rounded up to a millisecond; at most 24.8 days, which is
	// PostgreSQL's limit. Defaults to 1 minute; negative leaves the server's
	// setting.
	IdleTimeout time.Duration
	// ConnectTimeout bounds how long a call of Run or Transact, in all its tries together,
	// goes on looking for a server where it finds none, as during a failover:
	// none answers, one starts up or has no place for another connection, none
	// is what target_session_attrs demands, or the connection breaks before the
	// transaction has begun. Then ErrUnavailable. It counts from the first
	// failure on; how long one attempt may take is for connect_timeout in the
	// connection's URL to say. What does not heal, such as a wrong password,
	// fails at once. Defaults to 10 seconds; negative fails at once.
	ConnectTimeout time.Duration
	// CommitTimeout bounds the wait for the reply to a commit, which the
	// caller's cancellation does not interrupt. Then the commit is left alone
	// with its connection, which the pool may replace: see
	// txhelper.Transaction.Commit. Defaults to 10 seconds.
	CommitTimeout time.Duration
	// ResolveTimeout bounds how long Run tries to find out what became of a
	// commit whose reply was lost, and to confirm that it is as durable as the
	// server makes it, before ErrOutcomeUnknown. A connection that does not
	// answer costs a quarter of it. Defaults to 10 seconds.
	ResolveTimeout time.Duration
	// ConfirmReplays makes Run, before it replays an answer that was recorded
	// less than this ago, commit a transaction that waits for the synchronous
	// standby: one more flight, and a record in the server's log. What cannot be
	// confirmed within ResolveTimeout, and on a standby nothing can, is
	// ErrOutcomeUnknown.
	//
	// For those who have a synchronous standby. A commit that waits for it, and
	// is cancelled or whose connection is ended meanwhile, is seen on the primary
	// at once, and goes with it in a failover. A call that replays such an answer
	// returns what may be lost. Choose more than the longest time that a standby
	// may be away. Get, DoTx and Begin do not confirm; in a transaction that
	// writes, the caller's own commit does. Defaults to 0: replays are not
	// confirmed.
	ConfirmReplays time.Duration
	// Settings returns run-time settings, values by name, such as the tenant
	// that a policy of row-level security asks for: see docs/tenancy.md. They
	// hold in each transaction that the store opens, and so for the statements
	// of Run's function, and in each statement that the store sends alone. They
	// end with it; on a DB that is a pgx.Tx, with that. In DoTx and WithTx the
	// caller sets its own.
	//
	// Settings gets the context of the call, and is called again for each such
	// transaction or statement, and once more by Do, whose calls wait in memory
	// only for calls with the same search_path and role. Its error fails the call
	// before anything is sent; it should not hold a value. Without a tenant return
	// one: a key that row-level security hides looks like one without a record.
	// Defaults to no settings.
	Settings func(ctx context.Context) (map[string]string, error)
}

// Store keeps keys in PostgreSQL. It is safe for concurrent use if its DB is.
type Store struct {
	db      DB
	queries *db.Queries
	options txhelper.Options
	// idleSetting is the value of idle_in_transaction_session_timeout, in
	// milliseconds; NULL leaves it as it is.
	idleSetting    pgtype.Text
	connectTimeout time.Duration
	resolveTimeout time.Duration
	confirmReplays time.Duration
	settings       func(ctx context.Context) (map[string]string, error)
	// serializable says that transactions are SERIALIZABLE though TxOptions does
	// not say so: it is the server's default.
	serializable atomic.Bool
	sweep        sweep
}

var (
	_ idempotency.TxStore[pgx.Tx] = (*Store)(nil)
	_ idempotency.Sweeper         = (*Store)(nil)
	_ idempotency.Lister          = (*Store)(nil)
	_ idempotency.NamespaceStore  = (*Store)(nil)
)

// New returns a store on database. A nil config means all defaults. It returns a
// *idempotency.ParamError for a database that is nil, and for a config that no
// database could work with.
func New(database DB, config *Config) (*Store, error) {
	if value := reflect.ValueOf(database); !value.IsValid() || value.Kind() == reflect.Pointer && value.IsNil() {
		return nil, &idempotency.ParamError{Field: "database", Reason: "is nil; pass a *pgxpool.Pool"}
	}
	if config == nil {
		config = &Config{}
	}
	if err := config.validate(); err != nil {
		return nil, err
	}
	store := &Store{
		db:      database,
		queries: db.New(),
		options: txhelper.Options{
			TxOptions:     config.TxOptions,
			MaxAttempts:   config.MaxAttempts,
			Owned:         errOwned,
			CommitTimeout: config.CommitTimeout,
			Retryable: func(err error) bool {
				// A connection that was lost before it began has been replaced already.
				return txhelper.IsRetryable(err) && !errors.Is(err, txhelper.ErrConnectionLost) || errors.Is(err, errTryAgain) || runsAgain(err)
			},
		},
		idleSetting:    idleSetting(config.IdleTimeout),
		connectTimeout: config.ConnectTimeout,
		resolveTimeout: config.ResolveTimeout,
		confirmReplays: config.ConfirmReplays,
		settings:       config.Settings,
	}
	if store.connectTimeout == 0 {
		store.connectTimeout = DefaultConnectTimeout
	}
	if store.resolveTimeout == 0 {
		store.resolveTimeout = DefaultResolveTimeout
	}
	return store, nil
}

func (c *Config) validate() error {
	for _, refused := range []struct {
		bad           bool
		field, reason string
	}{
		{c.TxOptions.BeginQuery != "" || c.TxOptions.CommitQuery != "", "TxOptions", "has a BeginQuery or CommitQuery; the store sends BEGIN and COMMIT with statements of its own"},
		{c.MaxAttempts < 0, "MaxAttempts", "is negative; 1 runs the function once"},
		{c.CommitTimeout < 0, "CommitTimeout", "is negative"},
		{c.ResolveTimeout < 0, "ResolveTimeout", "is negative"},
		{c.ConfirmReplays < 0, "ConfirmReplays", "is negative; 0 does not confirm"},
	} {
		if refused.bad {
			return &idempotency.ParamError{Field: "Config." + refused.field, Reason: refused.reason}
		}
	}
	return nil
}

// PerCaller reports whether Config.Settings is set. See
// idempotency.PerCallerStore.
func (s *Store) PerCaller() bool { return s.settings != nil }

// Begin claims the key under a lease. See idempotency.Verbs.
func (s *Store) Begin(ctx context.Context, params *idempotency.BeginParams) (outcome *idempotency.Outcome, err error) {
	if err := params.ValidateLease(); err != nil {
		return nil, err
	}
	err = s.statement(ctx, func(q txhelper.Querier) error {
		outcome, err = s.claim(ctx, q, params)
		return err
	})
	return outcome, s.explain(params.Key, "begin", err)
}

// Complete records the response of a leased claim. See idempotency.Verbs.
func (s *Store) Complete(ctx context.Context, claim *idempotency.Claim, response *idempotency.Response) (record *idempotency.Record, err error) {
	if err := response.Validate(); err != nil {
		return nil, err
	}
	if err := claim.ValidateComplete(); err != nil {
		return nil, err
	}
	err = s.statement(ctx, func(q txhelper.Querier) error {
		record, err = s.complete(ctx, q, claim, response)
		return err
	})
	return record, s.explain(claim.Key, "complete", err)
}

// Get returns the record of key. See idempotency.Verbs.
func (s *Store) Get(ctx context.Context, key idempotency.Key) (*idempotency.Record, error) {
	return s.get(ctx, s.querier(s.db), key)
}

// Extend prolongs a lease. See idempotency.Store.
func (s *Store) Extend(ctx context.Context, claim *idempotency.Claim, lease time.Duration) (*idempotency.Claim, error) {
	if err := idempotency.ValidateLease(lease); err != nil {
		return nil, err
	}
	if err := claim.Validate(); err != nil {
		return nil, err
	}
	start := time.Now()
	lockedUntil, err := s.queries.KeyExtend(ctx, s.querier(s.db), &db.KeyExtendParams{
		Lease: interval(lease), Scope: claim.Key.Scope, ID: claim.Key.ID, ClaimID: uuid(claim.ID),
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, &idempotency.KeyError{Key: claim.Key, Err: idempotency.ErrClaimLost}
	}
	if err != nil {
		return nil, s.explain(claim.Key, "extend", err)
	}
	extended := *claim
	extended.LockedUntil, extended.Deadline = lockedUntil.Time, start.Add(lease)
	return &extended, nil
}

// AddStep records a step of leased work. See idempotency.Verbs.
func (s *Store) AddStep(ctx context.Context, claim *idempotency.Claim, step *idempotency.StepRecord) error {
	if err := step.Validate(); err != nil {
		return err
	}
	if err := claim.ValidateAddStep(); err != nil {
		return err
	}
	err := s.statement(ctx, func(q txhelper.Querier) error { return s.addStep(ctx, q, claim, step) })
	return s.explain(claim.Key, "add step", err)
}

// Suspend ends a lease and keeps its record. See idempotency.Store.
func (s *Store) Suspend(ctx context.Context, claim *idempotency.Claim) error {
	if err := claim.Validate(); err != nil {
		return err
	}
	suspended, err := s.queries.KeySuspend(ctx, s.querier(s.db), &db.KeySuspendParams{
		Scope: claim.Key.Scope, ID: claim.Key.ID, ClaimID: uuid(claim.ID),
	})
	if err == nil && suspended == 0 {
		return &idempotency.KeyError{Key: claim.Key, Err: idempotency.ErrClaimLost}
	}
	return s.explain(claim.Key, "suspend", err)
}

// Release frees a leased key without an answer. See idempotency.Store.
func (s *Store) Release(ctx context.Context, claim *idempotency.Claim) error {
	if err := claim.Validate(); err != nil {
		return err
	}
	released, err := s.queries.KeyRelease(ctx, s.querier(s.db), &db.KeyReleaseParams{
		Scope: claim.Key.Scope, ID: claim.Key.ID, ClaimID: uuid(claim.ID),
	})
	if err == nil && released == 0 {
		return &idempotency.KeyError{Key: claim.Key, Err: idempotency.ErrClaimLost}
	}
	return s.explain(claim.Key, "release", err)
}

// WithTx returns the verbs as part of tx. See idempotency.TxStore.
func (s *Store) WithTx(tx pgx.Tx) idempotency.Verbs { return &verbs{store: s, tx: tx} }

// Savepoint calls fn with a transaction nested in tx. See idempotency.TxStore.
func (s *Store) Savepoint(ctx context.Context, tx pgx.Tx, fn func(ctx context.Context, tx pgx.Tx) error) error {
	own := true // not an error of fn's
	err := txhelper.Savepoint(ctx, tx, &txhelper.Options{Owned: errOwned}, func(ctx context.Context, nested pgx.Tx) error {
		err := fn(ctx, &ownedTx{nested, runKey(tx)})
		own = err == nil
		return err
	})
	if isGuard(err) {
		err = fmt.Errorf("%w: %w", ErrConstraintsImmediate, err)
	}
	if own {
		err = lostBeforeCommit(err)
	}
	// Of fn's errors only this one concerns the whole of tx.
	if cause := sentinel(err); cause != nil && (own || errors.Is(cause, idempotency.ErrSerializationFailure)) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	return explainUnfit(err)
}

// statement calls fn, which sends single statements that each take effect at
// once. Inside a caller's transaction a failure must not abort that, so there it
// is a savepoint.
func (s *Store) statement(ctx context.Context, fn func(q txhelper.Querier) error) error {
	switch db := s.db.(type) {
	case pgx.Tx:
		if err := checkEncoding(db.Conn()); err != nil {
			return err
		}
		return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error { return fn(s.querier(tx)) })
	case acquirer:
		conn, err := db.Acquire(ctx)
		if err != nil {
			return err
		}
		defer conn.Release()
		if err := checkEncoding(conn.Conn()); err != nil {
			return err
		}
		return fn(s.querier(conn))
	case interface{ PgConn() *pgconn.PgConn }: // a *pgx.Conn
		if err := checkEncodingOf(db.PgConn()); err != nil {
			return err
		}
	}
	return fn(s.querier(s.db))
}

// acquirer is a pool.
type acquirer interface {
	Acquire(ctx context.Context) (*pgxpool.Conn, error)
}

// longestIdleTimeout is the longest that PostgreSQL accepts, about 24.8 days.
const longestIdleTimeout = math.MaxInt32 * time.Millisecond

// idleSetting returns the value of idle_in_transaction_session_timeout for
// Config.IdleTimeout.
func idleSetting(timeout time.Duration) pgtype.Text {
	if timeout < 0 {
		return pgtype.Text{}
	}
	if timeout == 0 {
		timeout = DefaultIdleTimeout
	}
	timeout = min(timeout, longestIdleTimeout)
	return pgtype.Text{String: strconv.FormatInt(int64((timeout+time.Millisecond-1)/time.Millisecond), 10), Valid: true}
}

// canReconnect reports whether the store can open another connection after one
// was lost.
func (s *Store) canReconnect() bool {
	_, ok := s.db.(acquirer)
	return ok
}

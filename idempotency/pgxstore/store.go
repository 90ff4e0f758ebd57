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
	"github.com/jackc/pgx/v5/pgtype"

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
// test can do everything and roll it back; Run then works in savepoints. And it may be
// a txhelper.Acquirer or a txhelper.Lender. New refuses others.
type DB = txhelper.DB

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
	db DB
	// direct is db where that is a connection or a transaction, nil where it is a pool.
	direct  sender
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
	direct, _ := database.(sender)
	switch database.(type) {
	case txhelper.Acquirer, txhelper.Lender:
		direct = nil
	default:
		if direct == nil {
			return nil, &idempotency.ParamError{Field: "database", Reason: fmt.Sprintf("is a %T; pass a *pgxpool.Pool, and a *sql.DB to sqlstore.New", database)}
		}
	}
	store := &Store{
		db:      database,
		direct:  direct,
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
func (s *Store) Get(ctx context.Context, key idempotency.Key) (record *idempotency.Record, err error) {
	if err := key.Validate(); err != nil {
		return nil, err
	}
	var found error
	err = s.alone(ctx, func(q txhelper.Querier) error {
		record, found = s.get(ctx, q, key)
		return nil
	})
	if err != nil {
		return nil, s.explain(key, "get", err)
	}
	return record, found
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
	var lockedUntil pgtype.Timestamptz
	err := s.alone(ctx, func(q txhelper.Querier) (err error) {
		lockedUntil, err = s.queries.KeyExtend(ctx, q, &db.KeyExtendParams{
			Lease: interval(lease), Scope: claim.Key.Scope, ID: claim.Key.ID, ClaimID: uuid(claim.ID),
		})
		return err
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
	var suspended int64
	err := s.alone(ctx, func(q txhelper.Querier) (err error) {
		suspended, err = s.queries.KeySuspend(ctx, q, &db.KeySuspendParams{
			Scope: claim.Key.Scope, ID: claim.Key.ID, ClaimID: uuid(claim.ID),
		})
		return err
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
	var released int64
	err := s.alone(ctx, func(q txhelper.Querier) (err error) {
		released, err = s.queries.KeyRelease(ctx, q, &db.KeyReleaseParams{
			Scope: claim.Key.Scope, ID: claim.Key.ID, ClaimID: uuid(claim.ID),
		})
		return err
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
	if tx == nil {
		return errNoTx()
	}
	own := true // not an error of fn's
	inside := func(ctx context.Context, nested pgx.Tx) error {
		err := fn(ctx, &ownedTx{nested, runKey(tx)})
		own = err == nil
		return err
	}
	var err error
	if foreign, ok := tx.(foreignTx); ok {
		err = foreign.Savepoint(ctx, inside)
	} else {
		err = txhelper.Savepoint(ctx, tx, &txhelper.Options{Owned: errOwned}, inside)
	}
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
	if tx, ok := s.db.(pgx.Tx); ok {
		if err := checkEncoding(tx.Conn()); err != nil {
			return err
		}
		return pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return fn(s.querier(tx)) })
	}
	return s.send(ctx, func(base sender) error {
		if conn, ok := base.(*pgx.Conn); ok {
			if err := checkEncoding(conn); err != nil {
				return err
			}
		}
		return fn(s.querier(base))
	})
}

// alone calls fn, which sends single statements that each take effect at once.
func (s *Store) alone(ctx context.Context, fn func(q txhelper.Querier) error) error {
	return s.send(ctx, func(base sender) error { return fn(s.querier(base)) })
}

// send calls fn with what the store sends outside of transactions of its own on.
func (s *Store) send(ctx context.Context, fn func(base sender) error) error {
	borrowed, pooled, err := txhelper.Borrow(ctx, s.db)
	switch {
	case err != nil:
		return err
	case !pooled:
		return fn(s.direct)
	}
	defer borrowed.Release()
	return fn(borrowed.Conn())
}

// sender sends statements, one by one and in batches.
type sender interface {
	txhelper.Querier
	batcher
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
	return s.direct == nil
}

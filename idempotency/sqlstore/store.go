package sqlstore

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
	"github.com/samecommit/samecommit/txhelper"
)

// ErrDriver means that the connections of the *sql.DB, or of the caller's *sql.Tx, are
// not pgx's. Nothing was sent on them.
var ErrDriver = fmt.Errorf(`sqlstore: the *sql.DB is not one of pgx: open it with sql.Open("pgx", dsn), by the driver of github.com/jackc/pgx/v5/stdlib: %w`, txhelper.ErrNotPgx)

// Config configures a Store. Nil and the zero value mean all defaults, which are those of
// pgxstore.Config, as are the fields but for TxOptions.
type Config struct {
	// TxOptions are those of the transactions that Run and Transact open.
	// sql.LevelSnapshot means REPEATABLE READ, as for pgx/stdlib. Defaults to the
	// server's, READ COMMITTED unless it was configured.
	TxOptions sql.TxOptions
	// MaxAttempts is pgxstore.Config.MaxAttempts. Defaults to 8.
	MaxAttempts int
	// IdleTimeout is pgxstore.Config.IdleTimeout. Defaults to 1 minute.
	IdleTimeout time.Duration
	// ConnectTimeout is pgxstore.Config.ConnectTimeout. Defaults to 10 seconds.
	ConnectTimeout time.Duration
	// CommitTimeout is pgxstore.Config.CommitTimeout. A commit that is left alone keeps
	// its connection, and its place in DB.SetMaxOpenConns, until the server replies or
	// TCP gives the connection up. Defaults to 10 seconds.
	CommitTimeout time.Duration
	// ResolveTimeout is pgxstore.Config.ResolveTimeout; a connection that does not answer
	// costs half of it. Defaults to 10 seconds.
	ResolveTimeout time.Duration
	// ConfirmReplays is pgxstore.Config.ConfirmReplays. Defaults to 0: replays are not
	// confirmed.
	ConfirmReplays time.Duration
	// Settings is pgxstore.Config.Settings. Defaults to no settings.
	Settings func(ctx context.Context) (map[string]string, error)
}

// store keeps the name of the embedded field out of the API.
type store = pgxstore.Store

// Store keeps keys in PostgreSQL. It is safe for concurrent use.
type Store struct {
	*store
	lender *lender
}

var (
	_ idempotency.TxStore[*sql.Tx] = (*Store)(nil)
	_ idempotency.Sweeper          = (*Store)(nil)
	_ idempotency.Lister           = (*Store)(nil)
	_ idempotency.PerCallerStore   = (*Store)(nil)
	_ idempotency.NamespaceStore   = (*Store)(nil)
)

// New returns a store on the connections of db. A nil config means all defaults. It
// returns a *idempotency.ParamError for a db that is nil, and for a config that no
// database could work with. ErrDriver comes with the first connection.
func New(db *sql.DB, config *Config) (*Store, error) {
	if db == nil {
		return nil, &idempotency.ParamError{Field: "db", Reason: "is nil"}
	}
	if config == nil {
		config = &Config{}
	}
	options, err := txOptions(config.TxOptions)
	if err != nil {
		return nil, err
	}
	lender := &lender{db: db}
	keys, err := pgxstore.New(lender, &pgxstore.Config{
		TxOptions: options, MaxAttempts: config.MaxAttempts, IdleTimeout: config.IdleTimeout,
		ConnectTimeout: config.ConnectTimeout, CommitTimeout: config.CommitTimeout, ResolveTimeout: config.ResolveTimeout,
		ConfirmReplays: config.ConfirmReplays, Settings: config.Settings,
	})
	if err != nil {
		return nil, err
	}
	return &Store{store: keys, lender: lender}, nil
}

// txOptions returns what pgx/stdlib would make of options.
func txOptions(options sql.TxOptions) (pgx.TxOptions, error) {
	levels := map[sql.IsolationLevel]pgx.TxIsoLevel{
		sql.LevelDefault: "", sql.LevelReadUncommitted: pgx.ReadUncommitted, sql.LevelReadCommitted: pgx.ReadCommitted,
		sql.LevelRepeatableRead: pgx.RepeatableRead, sql.LevelSnapshot: pgx.RepeatableRead, sql.LevelSerializable: pgx.Serializable,
	}
	level, ok := levels[options.Isolation]
	if !ok {
		return pgx.TxOptions{}, &idempotency.ParamError{Field: "Config.TxOptions", Reason: fmt.Sprintf("has isolation level %v, which PostgreSQL has not", options.Isolation)}
	}
	made := pgx.TxOptions{IsoLevel: level}
	if options.ReadOnly {
		made.AccessMode = pgx.ReadOnly
	}
	return made, nil
}

// WithTx returns the verbs as part of tx, not to be used beside statements of other
// goroutines in a tx that is lent. See idempotency.TxStore.
func (s *Store) WithTx(tx *sql.Tx) idempotency.Verbs { return s.store.WithTx(pgxTx(tx)) }

// Run claims the key in a transaction of its own, calls fn in it and commits
// fn's writes and its response together. See idempotency.TxStore.
func (s *Store) Run(ctx context.Context, params *idempotency.BeginParams, fn func(ctx context.Context, tx *sql.Tx) (idempotency.Answer, error)) (*idempotency.Outcome, error) {
	return s.store.Run(ctx, params, s.answering(fn))
}

// RunHeld calls fn in a transaction of its own under the claim of a lease, and
// commits fn's writes and its response together. See idempotency.TxStore.
func (s *Store) RunHeld(ctx context.Context, claim *idempotency.Claim, fn func(ctx context.Context, tx *sql.Tx) (idempotency.Answer, error)) (*idempotency.Record, error) {
	return s.store.RunHeld(ctx, claim, s.answering(fn))
}

func (s *Store) answering(fn func(ctx context.Context, tx *sql.Tx) (idempotency.Answer, error)) func(ctx context.Context, tx pgx.Tx) (idempotency.Answer, error) {
	return func(ctx context.Context, tx pgx.Tx) (answer idempotency.Answer, err error) {
		err = lend(ctx, tx, s.lender.driverConn(tx.Conn()), func(ctx context.Context, tx *sql.Tx) error {
			answer, err = fn(ctx, tx)
			return err
		})
		return answer, err
	}
}

// Transact calls fn in a transaction of its own, without a key. See
// idempotency.TxStore.
func (s *Store) Transact(ctx context.Context, fn func(ctx context.Context, tx *sql.Tx) error) error {
	return s.store.Transact(ctx, func(ctx context.Context, tx pgx.Tx) error {
		return lend(ctx, tx, s.lender.driverConn(tx.Conn()), fn)
	})
}

// Savepoint calls fn behind a savepoint in tx. A tx of the caller's own is passed to fn as
// it is, whose Commit and Rollback cannot be refused: they end the whole of it, which
// Savepoint then says with ErrTxEnded. See idempotency.TxStore.
func (s *Store) Savepoint(ctx context.Context, tx *sql.Tx, fn func(ctx context.Context, tx *sql.Tx) error) error {
	if lent, ok := findLent(tx); ok {
		return s.store.Savepoint(ctx, lent.Tx, func(ctx context.Context, nested pgx.Tx) error { return lend(ctx, nested, lent.conn, fn) })
	}
	return s.store.Savepoint(ctx, pgxTx(tx), func(ctx context.Context, _ pgx.Tx) error { return fn(ctx, tx) })
}

// pgxTx returns the transaction behind tx where it is lent, and one that sends its
// statements through tx where it is the caller's own.
func pgxTx(tx *sql.Tx) pgx.Tx {
	if tx == nil {
		return nil
	}
	if lent, ok := findLent(tx); ok {
		return lent.Tx
	}
	return &callerTx{tx: tx}
}

package pgxstore_test

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

func TestIdleTimeoutLongerThanPostgreSQLKnows(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), &pgxstore.Config{IdleTimeout: math.MaxInt64}, nil)
	if _, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), bench.Charge("k")); err != nil {
		t.Error(err)
	}
}

// In another encoding the server would translate a key, which then is another
// key than the one that the next service's connection sends.
func TestConnectionThatTranslatesKeys(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	if _, err := idempotency.Do(t.Context(), b.Client, bench.Params("bestellung-é"), bench.Charge("k")); err != nil {
		t.Fatal(err)
	}
	config := b.Pool.Config().Copy()
	config.ConnConfig.RuntimeParams["client_encoding"] = "LATIN1"
	latin := bench.Open(t, bench.PoolWith(t, config), nil, nil)
	_, err := idempotency.Do(t.Context(), latin.Client, bench.Params("bestellung-é"), bench.Charge("k"))
	wantParamError(t, err, "client_encoding")
	if err := pgx.BeginFunc(t.Context(), latin.Pool, func(tx pgx.Tx) error {
		_, err := latin.Client.WithTx(tx).Begin(t.Context(), bench.Params("bestellung-é"))
		return err
	}); true {
		wantParamError(t, err, "client_encoding")
	}
	_, err = latin.Store.Begin(t.Context(), leased("bestellung-é", time.Minute))
	wantParamError(t, err, "client_encoding")
	if n := b.Effects(t, "k"); n != 1 {
		t.Errorf("%d effects, want 1", n)
	}
}

// Where the server's default is SERIALIZABLE, a look inside the transaction would
// abort neighbours of the key, as where TxOptions says so.
func TestServerWhoseDefaultIsSerializable(t *testing.T) {
	t.Parallel()
	config := pgtest.Config(t)
	config.ConnConfig.RuntimeParams["default_transaction_isolation"] = "serializable"
	counter := &bench.QueryCounter{}
	config.ConnConfig.Tracer = counter
	b := bench.New(t, bench.PoolWith(t, config), nil, nil)
	level := func(ctx context.Context, tx pgx.Tx) (level string, err error) {
		err = tx.QueryRow(ctx, `SELECT current_setting('transaction_isolation')`).Scan(&level)
		return level, err
	}
	for _, id := range []string{"first", "second"} {
		_, statements := counter.Count(func() {
			result, err := idempotency.Do(t.Context(), b.Client, bench.Params(id), level)
			if err != nil || result.Value != "serializable" {
				t.Errorf("%q, %v", result.Value, err)
			}
		})
		look := func(sql string) bool { return strings.Contains(sql, "KeyGet ") }
		work := slices.IndexFunc(statements, func(sql string) bool {
			return strings.Contains(sql, "transaction_isolation') AS") || strings.HasPrefix(sql, "SELECT current_setting('transaction_isolation')")
		})
		if work < 0 {
			t.Fatalf("the function's statement is not among %q", statements)
		}
		begin := 0
		for i, sql := range statements[:work] {
			if strings.HasPrefix(strings.ToLower(sql), "begin") {
				begin = i
			}
		}
		if slices.ContainsFunc(statements[begin:work], look) || !slices.ContainsFunc(statements[:begin], look) {
			t.Errorf("%s: the look is not before the function's transaction: %q", id, statements)
		}
	}
}

// A pooler that gives one server connection to several clients loses or mixes up
// their prepared statements.
func TestPreparedStatementThatIsGone(t *testing.T) {
	t.Parallel()
	config := pgtest.Config(t)
	config.MaxConns = 1
	b := bench.New(t, bench.PoolWith(t, config), nil, nil)
	if _, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), bench.Charge("k")); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Pool.Exec(t.Context(), `DEALLOCATE ALL`, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	_, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), bench.Charge("k"))
	if !errors.Is(err, pgxstore.ErrPreparedStatement) {
		t.Errorf("error is %v, want ErrPreparedStatement", err)
	}
}

// What PostgreSQL says of a row that it refuses holds the key and the answer.
func TestErrorOfARefusedRowHoldsNoRow(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	if _, err := b.Pool.Exec(t.Context(), `ALTER TABLE idempotency_keys ADD CONSTRAINT refuse CHECK (scope = 'other')`); err != nil {
		t.Fatal(err)
	}
	for name, call := range map[string]func() error{
		"Do": func() error {
			_, err := idempotency.Do(t.Context(), b.Client, bench.Params("secret-id"), bench.Charge("secret-answer"))
			return err
		},
		"DoTx": func() error {
			return pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) error {
				_, err := idempotency.DoTx(t.Context(), b.Client, tx, bench.Params("secret-id"), bench.Charge("secret-answer"))
				return err
			})
		},
		"BeginMany": func() error {
			return pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) error {
				_, err := b.Client.WithTx(tx).BeginMany(t.Context(), []idempotency.Params{bench.Params("secret-id")})
				return err
			})
		},
		"lease": func() error {
			_, err := b.Store.Begin(t.Context(), leased("secret-id", time.Minute))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := call()
			var pgErr *pgconn.PgError
			if !errors.As(err, &pgErr) || pgErr.Code != "23514" || pgErr.ConstraintName != "refuse" {
				t.Fatalf("error is %v, want PostgreSQL's of the constraint", err)
			}
			if text := pgErr.Detail + pgErr.Where + pgErr.InternalQuery + err.Error(); strings.Contains(text, "secret") {
				t.Errorf("the error holds the row: %q", text)
			}
		})
	}
}

// B12: another client's call inside the operation, on a transaction that hides
// whose it is.
func TestNestedCallOfAnotherClientOnAWrappedTransaction(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	other := bench.Open(t, b.Pool, nil, nil)
	runs := 0
	_, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), func(ctx context.Context, tx pgx.Tx) (string, error) {
		runs++
		result, err := idempotency.DoTx(ctx, other.Client, pgx.Tx(struct{ pgx.Tx }{tx}), bench.Params("k"), bench.Charge("k"))
		if err != nil {
			return "", err
		}
		answer, err := result.Answer()
		return answer.Value, err
	})
	if !errors.Is(err, idempotency.ErrNested) || runs != 1 {
		t.Errorf("%v after %d runs, want ErrNested after 1", err, runs)
	}
	wantNothing(t, b, "k")
}

// beginner begins transactions, and sends no statements.
type beginner struct{}

func (beginner) Begin(context.Context) (pgx.Tx, error) { return nil, errors.ErrUnsupported }

// No connection is looked for on which nothing can be asked.
func TestGetOfAnInvalidKeyNeedsNoServer(t *testing.T) {
	t.Parallel()
	pool := unusedPool(t)
	pool.Close()
	_, err := bench.NewStore(t, pool, nil).Get(t.Context(), idempotency.Key{})
	wantParamError(t, err, "Key.Scope")
}

func TestNewRefusesWhatCannotWork(t *testing.T) {
	t.Parallel()
	var noPool *pgxpool.Pool
	var noConn *pgx.Conn
	pool := unusedPool(t)
	for field, refused := range map[string][]func() (*pgxstore.Store, error){
		"database": {
			func() (*pgxstore.Store, error) { return pgxstore.New(nil, nil) },
			func() (*pgxstore.Store, error) { return pgxstore.New(noPool, nil) },
			func() (*pgxstore.Store, error) { return pgxstore.New(noConn, nil) },
			func() (*pgxstore.Store, error) { return pgxstore.New(beginner{}, nil) },
		},
		"Config.TxOptions": {
			func() (*pgxstore.Store, error) {
				return pgxstore.New(pool, &pgxstore.Config{TxOptions: pgx.TxOptions{BeginQuery: "BEGIN"}})
			},
			func() (*pgxstore.Store, error) {
				return pgxstore.New(pool, &pgxstore.Config{TxOptions: pgx.TxOptions{CommitQuery: "COMMIT"}})
			},
		},
		"Config.MaxAttempts":    {func() (*pgxstore.Store, error) { return pgxstore.New(pool, &pgxstore.Config{MaxAttempts: -1}) }},
		"Config.CommitTimeout":  {func() (*pgxstore.Store, error) { return pgxstore.New(pool, &pgxstore.Config{CommitTimeout: -1}) }},
		"Config.ResolveTimeout": {func() (*pgxstore.Store, error) { return pgxstore.New(pool, &pgxstore.Config{ResolveTimeout: -1}) }},
		"Config.ConfirmReplays": {func() (*pgxstore.Store, error) { return pgxstore.New(pool, &pgxstore.Config{ConfirmReplays: -1}) }},
	} {
		for _, open := range refused {
			store, err := open()
			wantParamError(t, err, field)
			if store != nil {
				t.Errorf("%s: a store all the same", field)
			}
		}
	}
	// Here a negative duration means something.
	if _, err := pgxstore.New(pool, &pgxstore.Config{IdleTimeout: -1, ConnectTimeout: -1}); err != nil {
		t.Error(err)
	}
}

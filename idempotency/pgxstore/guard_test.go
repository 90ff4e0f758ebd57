package pgxstore_test

import (
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
	"github.com/samecommit/samecommit/txhelper"
)

const guard = "idempotency_keys_completed_before_commit"

// wantNothing checks that neither a key nor an effect of that name is there.
func wantNothing(t *testing.T, b *bench.Bench, name string) {
	t.Helper()
	if _, err := b.Client.Get(t.Context(), bench.Params(name).Key); !errors.Is(err, idempotency.ErrNotFound) {
		t.Errorf("Get: %v, want ErrNotFound", err)
	}
	if n := b.Effects(t, name); n != 0 {
		t.Errorf("%d effects without a key", n)
	}
}

// wantInProgress checks that nobody else can run the operation now.
func wantInProgress(t *testing.T, b *bench.Bench, name string) {
	t.Helper()
	p := bench.Params(name)
	p.Wait = idempotency.NoWait
	if _, err := idempotency.Do(t.Context(), b.Client, p, bench.Charge(name)); !errors.Is(err, idempotency.ErrInProgress) {
		t.Errorf("Do: %v, want ErrInProgress", err)
	}
	if err := pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) error {
		_, err := idempotency.DoTx(t.Context(), b.Client, tx, p, bench.Charge(name))
		return err
	}); !errors.Is(err, idempotency.ErrInProgress) {
		t.Errorf("DoTx: %v, want ErrInProgress", err)
	}
}

// wantRun checks that the key is free, by using it.
func wantRun(t *testing.T, b *bench.Bench, name string) {
	t.Helper()
	p := bench.Params(name)
	p.Wait = idempotency.NoWait
	if result, err := idempotency.Do(t.Context(), b.Client, p, bench.Charge(name)); err != nil || result.Replayed || b.Effects(t, name) != 1 {
		t.Errorf("%+v, %v, %d effects; want a first run", result, err, b.Effects(t, name))
	}
}

func bytesResponse(body string) *idempotency.Response {
	return &idempotency.Response{Type: idempotency.TypeBytes, Body: []byte(body)}
}

func begin(t *testing.T, b *bench.Bench, tx pgx.Tx, name string) *idempotency.Claim {
	t.Helper()
	outcome, err := b.Client.WithTx(tx).Begin(t.Context(), bench.Params(name))
	if err != nil || outcome.State != idempotency.New {
		t.Fatalf("Begin: %+v, %v; want a claim", outcome, err)
	}
	return outcome.Claim
}

func TestForgottenCompletionInASavepoint(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	tests := map[string]struct {
		run func(t *testing.T, tx pgx.Tx, name string)
		// refused is the SQLSTATE that keeps the transaction from committing.
		refused string
	}{
		"released and forgotten": {func(t *testing.T, tx pgx.Tx, name string) {
			t.Helper()
			if err := pgx.BeginFunc(t.Context(), tx, func(tx pgx.Tx) error {
				begin(t, b, tx, name)
				return bench.Effect(t.Context(), tx, name)
			}); err != nil {
				t.Fatal(err)
			}
		}, "23503"},
		"rolled back, begun again and forgotten": {func(t *testing.T, tx pgx.Tx, name string) {
			t.Helper()
			beginAndUndo(t, b, tx, name)
			begin(t, b, tx, name)
		}, "23503"},
		"rolled back, begun again, first claim completed": {func(t *testing.T, tx pgx.Tx, name string) {
			t.Helper()
			lost := beginAndUndo(t, b, tx, name)
			begin(t, b, tx, name)
			if _, err := b.Client.WithTx(tx).Complete(t.Context(), lost, bytesResponse("x")); !errors.Is(err, idempotency.ErrClaimLost) {
				t.Errorf("Complete: %v, want ErrClaimLost", err)
			}
		}, "25P02"},
		"rolled back, begun again, second claim completed": {func(t *testing.T, tx pgx.Tx, name string) {
			t.Helper()
			beginAndUndo(t, b, tx, name)
			claim := begin(t, b, tx, name)
			if _, err := b.Client.WithTx(tx).Complete(t.Context(), claim, bytesResponse("x")); err != nil {
				t.Error(err)
			}
		}, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tx, err := b.Pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback(t.Context())
			if err := bench.Effect(t.Context(), tx, name); err != nil {
				t.Fatal(err)
			}
			test.run(t, tx, name)
			err = tx.Commit(t.Context())
			switch test.refused {
			case "":
				if err != nil || b.Effects(t, name) != 1 {
					t.Errorf("commit: %v, %d effects; want the key and one effect", err, b.Effects(t, name))
				}
				if _, err := b.Client.Get(t.Context(), bench.Params(name).Key); err != nil {
					t.Error(err)
				}
				return
			case "23503":
				bench.WantPgError(t, err, test.refused, guard)
			case "25P02":
				if !errors.Is(err, pgx.ErrTxCommitRollback) {
					t.Errorf("commit: %v, want ErrTxCommitRollback", err)
				}
			}
			wantNothing(t, b, name)
		})
	}
}

// beginAndUndo begins a key in a savepoint that is rolled back.
func beginAndUndo(t *testing.T, b *bench.Bench, tx pgx.Tx, name string) *idempotency.Claim {
	t.Helper()
	savepoint, err := tx.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	claim := begin(t, b, savepoint, name)
	if err := savepoint.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	return claim
}

// prepared returns a name for PREPARE TRANSACTION, in an SQL literal. What is
// left prepared is rolled back, since a database cannot be dropped with it.
func prepared(t *testing.T, b *bench.Bench) string {
	t.Helper()
	var most string
	if err := b.Pool.QueryRow(t.Context(), `SHOW max_prepared_transactions`).Scan(&most); err != nil {
		t.Fatal(err)
	}
	if most == "0" {
		t.Fatal("the server under test has max_prepared_transactions = 0: set it to 20 and restart the server")
	}
	literal := "'samecommit_test_" + rand.Text() + "'"
	t.Cleanup(func() {
		if countPrepared(t, b, literal) == 0 {
			return
		}
		if _, err := b.Pool.Exec(context.WithoutCancel(t.Context()), "ROLLBACK PREPARED "+literal); err != nil {
			t.Error(err)
		}
	})
	return literal
}

func countPrepared(t *testing.T, b *bench.Bench, literal string) int {
	t.Helper()
	var found int
	if err := b.Pool.QueryRow(context.WithoutCancel(t.Context()), `SELECT count(*) FROM pg_prepared_xacts WHERE gid = `+literal).Scan(&found); err != nil {
		t.Fatal(err)
	}
	return found
}

func TestPreparedTransaction(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)

	t.Run("of a key that was not completed", func(t *testing.T) {
		t.Parallel()
		const name = "forgotten"
		literal := prepared(t, b)
		tx, err := b.Pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(t.Context())
		begin(t, b, tx, name)
		if err := bench.Effect(t.Context(), tx, name); err != nil {
			t.Fatal(err)
		}
		_, err = tx.Exec(t.Context(), "PREPARE TRANSACTION "+literal)
		bench.WantPgError(t, err, "23503", guard)
		if n := countPrepared(t, b, literal); n != 0 {
			t.Errorf("%d transactions are prepared", n)
		}
		wantNothing(t, b, name)
		wantRun(t, b, name)
	})

	for _, end := range []string{"COMMIT PREPARED", "ROLLBACK PREPARED"} {
		t.Run(end+" of a completed key", func(t *testing.T) {
			t.Parallel()
			literal := prepared(t, b)
			conn, err := b.Pool.Acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Release()
			tx, err := conn.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := idempotency.DoTx(t.Context(), b.Client, tx, bench.Params(end), bench.Charge(end)); err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec(t.Context(), "PREPARE TRANSACTION "+literal); err != nil {
				t.Fatal(err)
			}
			wantInProgress(t, b, end)
			if _, err := b.Pool.Exec(t.Context(), end+" "+literal); err != nil {
				t.Fatal(err)
			}
			if end == "ROLLBACK PREPARED" {
				wantNothing(t, b, end)
				wantRun(t, b, end)
				return
			}
			result, err := idempotency.Do(t.Context(), b.Client, bench.Params(end), bench.Charge(end))
			if err != nil || !result.Replayed || result.Value != end || b.Effects(t, end) != 1 {
				t.Errorf("%+v, %v, %d effects; want a replay", result, err, b.Effects(t, end))
			}
		})
	}

	t.Run("by the function of Do", func(t *testing.T) {
		t.Parallel()
		const name = "in Do"
		literal := prepared(t, b)
		_, err := idempotency.Do(t.Context(), b.Client, bench.Params(name), func(ctx context.Context, tx pgx.Tx) (string, error) {
			if err := bench.Effect(ctx, tx, name); err != nil {
				return "", err
			}
			_, err := tx.Exec(ctx, "PREPARE TRANSACTION "+literal)
			return name, err
		})
		if !errors.Is(err, idempotency.ErrOwned) || !errors.Is(err, txhelper.ErrEnded) || !strings.Contains(err.Error(), "ROLLBACK PREPARED") {
			t.Errorf("got %v, want ErrOwned, ErrEnded and a hint to ROLLBACK PREPARED", err)
		}
		if n := countPrepared(t, b, literal); n != 1 {
			t.Fatalf("%d transactions are prepared, want 1: this server refuses what the test is about", n)
		}
		// What the hint prevents is COMMIT PREPARED, the effect without its key.
		wantInProgress(t, b, name)
		if _, err := b.Pool.Exec(t.Context(), "ROLLBACK PREPARED "+literal); err != nil {
			t.Fatal(err)
		}
		wantNothing(t, b, name)
		wantRun(t, b, name)
	})

	t.Run("by the function of DoTx", func(t *testing.T) {
		t.Parallel()
		const name = "in DoTx"
		literal := prepared(t, b)
		tx, err := b.Pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(t.Context())
		_, err = idempotency.DoTx(t.Context(), b.Client, tx, bench.Params(name), func(ctx context.Context, tx pgx.Tx) (string, error) {
			if err := bench.Effect(ctx, tx, name); err != nil {
				return "", err
			}
			_, err := tx.Exec(ctx, "PREPARE TRANSACTION "+literal)
			bench.WantPgError(t, err, "23503", guard)
			return name, nil // a function that ignores the error
		})
		if !errors.Is(err, idempotency.ErrOwned) {
			t.Errorf("DoTx: %v, want ErrOwned", err)
		}
		if n := countPrepared(t, b, literal); n != 0 {
			t.Errorf("%d transactions are prepared", n)
		}
		_ = tx.Commit(t.Context()) // a caller that ignores it too
		wantNothing(t, b, name)
		wantRun(t, b, name)
	})

	t.Run("used afterwards", func(t *testing.T) {
		t.Parallel()
		const name = "afterwards"
		literal := prepared(t, b)
		tx, err := b.Pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(t.Context())
		if _, err := tx.Exec(t.Context(), "PREPARE TRANSACTION "+literal); err != nil {
			t.Fatal(err)
		}
		wantEnded(t, b, tx, name)
	})
}

// wantEnded uses a transaction that is over: nothing may run or be recorded.
func wantEnded(t *testing.T, b *bench.Bench, tx pgx.Tx, name string) {
	t.Helper()
	if _, err := b.Client.WithTx(tx).Begin(t.Context(), bench.Params(name)); !errors.Is(err, idempotency.ErrTxEnded) {
		t.Errorf("Begin: %v, want ErrTxEnded", err)
	}
	_, err := idempotency.DoTx(t.Context(), b.Client, tx, bench.Params(name), func(ctx context.Context, tx pgx.Tx) (string, error) {
		t.Error("the function ran")
		return name, bench.Effect(ctx, tx, name)
	})
	if !errors.Is(err, idempotency.ErrTxEnded) {
		t.Errorf("DoTx: %v, want ErrTxEnded", err)
	}
	wantNothing(t, b, name)
}

// The guard acts by rights of the tables' owner, so a role that only uses keys
// needs none on idempotency_unfinished.
func TestRoleWithFewestRights(t *testing.T) {
	t.Parallel()
	config := pgtest.Config(t)
	owner := bench.New(t, bench.PoolWith(t, config.Copy()), nil, nil)
	role := "samecommit_test_" + strings.ToLower(rand.Text())
	t.Cleanup(func() {
		for _, statement := range []string{"DROP OWNED BY " + role, "DROP ROLE " + role} {
			if _, err := owner.Pool.Exec(context.WithoutCancel(t.Context()), statement); err != nil {
				t.Error(err)
			}
		}
	})
	for _, statement := range []string{
		"CREATE ROLE " + role,
		"GRANT SELECT, INSERT, UPDATE ON idempotency_keys, effects TO " + role,
	} {
		if _, err := owner.Pool.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	config.ConnConfig.RuntimeParams["role"] = role
	b := bench.Open(t, bench.PoolWith(t, config), nil, nil)
	for _, refused := range []string{"SELECT FROM idempotency_unfinished", "DELETE FROM idempotency_keys"} {
		_, err := b.Pool.Exec(t.Context(), refused)
		var pgErr *pgconn.PgError
		if !errors.As(err, &pgErr) || pgErr.Code != "42501" {
			t.Fatalf("%s as the role that this test is about: %v, want 42501", refused, err)
		}
	}

	wantRun(t, b, "do")
	expiring := bench.Params("expiring")
	expiring.TTL = time.Microsecond
	for range 2 {
		if result, err := idempotency.Do(t.Context(), b.Client, expiring, bench.Charge("expiring")); err != nil || result.Replayed {
			t.Fatalf("%+v, %v; want a run, the answer has expired", result, err)
		}
	}
	if err := pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) error {
		claim := begin(t, b, tx, "begin")
		_, err := b.Client.WithTx(tx).Complete(t.Context(), claim, bytesResponse("x"))
		return err
	}); err != nil {
		t.Error(err)
	}
	err := pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) error {
		begin(t, b, tx, "forgotten")
		return bench.Effect(t.Context(), tx, "forgotten")
	})
	bench.WantPgError(t, err, "23503", guard)
	wantNothing(t, b, "forgotten")
}

// SET CONSTRAINTS ALL IMMEDIATE is about the guard too.
func TestConstraintsMadeImmediate(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	immediate := func(t *testing.T, more string, call func(tx pgx.Tx) error) error {
		t.Helper()
		return pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(t.Context(), "SET CONSTRAINTS ALL IMMEDIATE;"+more, pgx.QueryExecModeSimpleProtocol); err != nil {
				return err
			}
			return call(tx)
		})
	}
	calls := map[string]func(name string, tx pgx.Tx) error{
		"DoTx": func(name string, tx pgx.Tx) error {
			_, err := idempotency.DoTx(t.Context(), b.Client, tx, bench.Params(name), bench.Charge(name))
			return err
		},
		"Begin": func(name string, tx pgx.Tx) error {
			outcome, err := b.Client.WithTx(tx).Begin(t.Context(), bench.Params(name))
			if err == nil {
				_, err = b.Client.WithTx(tx).Complete(t.Context(), outcome.Claim, bytesResponse(name))
			}
			return err
		},
		"BeginMany": func(name string, tx pgx.Tx) error {
			batch, err := b.Client.WithTx(tx).BeginMany(t.Context(), []idempotency.Params{bench.Params(name)})
			if err == nil {
				batch.Items[0].Response = bytesResponse(name)
				err = batch.Complete(t.Context())
			}
			return err
		},
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := immediate(t, "", func(tx pgx.Tx) error { return call(name, tx) })
			if !errors.Is(err, pgxstore.ErrConstraintsImmediate) || errors.Is(err, idempotency.ErrTxEnded) {
				t.Errorf("error is %v, want ErrConstraintsImmediate and not ErrTxEnded", err)
			}
			// The command that the error names.
			command := "SET CONSTRAINTS idempotency_keys_completed_before_commit DEFERRED"
			if err != nil && !strings.Contains(err.Error(), command) {
				t.Errorf("error %v does not name the command that mends it", err)
			}
			if err := immediate(t, command, func(tx pgx.Tx) error { return call(name, tx) }); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("inside DoTx", func(t *testing.T) {
		t.Parallel()
		err := pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) error {
			_, err := idempotency.DoTx(t.Context(), b.Client, tx, bench.Params("inside"), func(ctx context.Context, tx pgx.Tx) (string, error) {
				_, err := tx.Exec(ctx, "SET CONSTRAINTS ALL IMMEDIATE")
				return "", err
			})
			return err
		})
		if !errors.Is(err, pgxstore.ErrConstraintsImmediate) {
			t.Errorf("error is %v, want ErrConstraintsImmediate", err)
		}
	})
	t.Run("inside Do", func(t *testing.T) {
		t.Parallel()
		// No row of Do's is ever unfinished.
		if _, err := idempotency.Do(t.Context(), b.Client, bench.Params("do"), func(ctx context.Context, tx pgx.Tx) (string, error) {
			_, err := tx.Exec(ctx, "SET CONSTRAINTS ALL IMMEDIATE")
			return "", err
		}); err != nil {
			t.Error(err)
		}
	})
}

// A leased completion in a transaction that stays open holds the row. Whoever
// wants the key is told that it is in progress, instead of waiting for the row.
func TestLeasedCompletionThatIsStillOpen(t *testing.T) {
	t.Parallel()
	t.Run("Complete", func(t *testing.T) {
		t.Parallel()
		b, claim := endedLease(t)
		if err := pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) error {
			_, err := b.Client.WithTx(tx).Complete(t.Context(), claim, bytesResponse("k"))
			rivalsFindItInProgress(t, b)
			return err
		}); err != nil {
			t.Error(err)
		}
	})
	t.Run("RunHeld", func(t *testing.T) {
		t.Parallel()
		b, claim := endedLease(t)
		if _, err := b.Store.RunHeld(t.Context(), claim, func(context.Context, pgx.Tx) (idempotency.Answer, error) {
			rivalsFindItInProgress(t, b) //nolint:contextcheck // They are other calls.
			return idempotency.Answer{Response: bytesResponse("k")}, nil
		}); err != nil {
			t.Error(err)
		}
	})
}

// endedLease returns a claim of k whose lease has ended, so that a rival may take the
// key over.
func endedLease(t *testing.T) (*bench.Bench, *idempotency.Claim) {
	t.Helper()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	outcome, err := b.Store.Begin(t.Context(), leased("k", time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	bench.WaitFor(t, func() bool {
		return bench.Count(t, b.Pool, `SELECT count(*) FROM idempotency_keys WHERE locked_until < clock_timestamp()`) == 1
	})
	return b, outcome.Claim
}

func rivalsFindItInProgress(t *testing.T, b *bench.Bench) {
	t.Helper()
	// A statement that waits for the row would be ended, with another error.
	config := b.Pool.Config().Copy()
	config.ConnConfig.RuntimeParams["lock_timeout"] = "2s"
	rival := bench.Open(t, bench.PoolWith(t, config), nil, nil)
	got, err := rival.Store.Begin(t.Context(), leased("k", time.Minute))
	if err != nil || got.State != idempotency.InProgress {
		t.Errorf("Begin: %+v, %v, want in progress", got, err)
	}
	inTx := bench.Params("k")
	inTx.Fingerprint = idempotency.NoFingerprint
	if err := pgx.BeginFunc(t.Context(), rival.Pool, func(tx pgx.Tx) error {
		got, err := rival.Client.WithTx(tx).Begin(t.Context(), inTx)
		if err != nil || got.State != idempotency.InProgress {
			t.Errorf("Begin in a transaction: %+v, %v, want in progress", got, err)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	inTx.Wait = idempotency.NoWait
	runs := 0
	_, err = idempotency.Do(t.Context(), rival.Client, inTx, func(context.Context, pgx.Tx) (string, error) {
		runs++
		return "", nil
	})
	if !errors.Is(err, idempotency.ErrInProgress) || runs != 0 {
		t.Errorf("Do: %v after %d runs, want ErrInProgress after none", err, runs)
	}
}

// A completion whose context has ended is not sent. The work that a lease was for
// must not commit without it, whatever the caller makes of the error.
func TestCompletionThatWasNotSentCannotCommit(t *testing.T) {
	t.Parallel()
	for name, complete := range map[string]func(ctx context.Context, b *bench.Bench, tx pgx.Tx, claim *idempotency.Claim) error{
		"one": func(ctx context.Context, b *bench.Bench, tx pgx.Tx, claim *idempotency.Claim) error {
			_, err := b.Client.WithTx(tx).Complete(ctx, claim, bytesResponse("k"))
			return err
		},
		"many": func(ctx context.Context, b *bench.Bench, tx pgx.Tx, claim *idempotency.Claim) error {
			_, err := b.Store.WithTx(tx).(idempotency.BatchVerbs).CompleteMany(ctx, []*idempotency.Claim{claim}, []*idempotency.Response{bytesResponse("k")})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := bench.New(t, pgtest.DB(t), nil, nil)
			outcome, err := b.Store.Begin(t.Context(), leased("k", time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			tx, err := b.Pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback(t.Context())
			if err := bench.Effect(t.Context(), tx, "k"); err != nil {
				t.Fatal(err)
			}
			ended, cancel := context.WithCancel(t.Context())
			cancel()
			if err := complete(ended, b, tx, outcome.Claim); !errors.Is(err, context.Canceled) {
				t.Errorf("error is %v, want the context's", err)
			}
			if err := tx.Commit(t.Context()); err == nil {
				t.Error("the work was committed without its completion")
			}
			if n := b.Effects(t, "k"); n != 0 {
				t.Errorf("%d effects", n)
			}
		})
	}
}

func TestCompleteWithoutAClaimCannotCommit(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	response := &idempotency.Response{Type: idempotency.TypeBytes, Body: []byte("x")}
	complete := func(claim *idempotency.Claim) func(context.Context, pgx.Tx, *idempotency.TxClient) error {
		return func(ctx context.Context, _ pgx.Tx, verbs *idempotency.TxClient) error {
			_, err := verbs.Complete(ctx, claim, response)
			return err
		}
	}
	// The store's own verb, since the claims of a Batch come from BeginMany; of
	// leases, whose completion no guard asks for.
	completeMany := func(spoil func(*idempotency.Claim) *idempotency.Claim) func(context.Context, pgx.Tx, *idempotency.TxClient) error {
		claims := make([]*idempotency.Claim, 2)
		for i := range claims {
			p := bench.Params(rand.Text())
			outcome, err := b.Store.Begin(t.Context(), &idempotency.BeginParams{Key: p.Key, Fingerprint: p.Fingerprint, TTL: time.Hour, Lease: time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			claims[i] = outcome.Claim
		}
		claims[0] = spoil(claims[0])
		return func(ctx context.Context, tx pgx.Tx, _ *idempotency.TxClient) error {
			_, err := b.Store.WithTx(tx).(idempotency.BatchVerbs).CompleteMany(ctx, claims, []*idempotency.Response{response, response})
			return err
		}
	}
	for name, test := range map[string]struct {
		run  func(context.Context, pgx.Tx, *idempotency.TxClient) error
		want error
	}{
		"nil claim of many": {completeMany(func(*idempotency.Claim) *idempotency.Claim { return nil }), idempotency.ErrNotClaimed},
		"no claim id of many": {completeMany(func(claim *idempotency.Claim) *idempotency.Claim {
			return &idempotency.Claim{Key: claim.Key, TTL: claim.TTL}
		}), idempotency.ErrNotClaimed},
		"no TTL of many": {completeMany(func(claim *idempotency.Claim) *idempotency.Claim {
			return &idempotency.Claim{Key: claim.Key, ID: claim.ID}
		}), idempotency.ErrInvalidParams},
		"nil claim":     {complete(nil), idempotency.ErrNotClaimed},
		"no claim id":   {complete(&idempotency.Claim{Key: bench.Params("no claim id").Key, TTL: time.Hour}), idempotency.ErrNotClaimed},
		"unknown claim": {complete(&idempotency.Claim{Key: bench.Params("unknown claim").Key, ID: idempotency.NewClaimID(), TTL: time.Hour}), idempotency.ErrClaimLost},
		"another's claim": {func(ctx context.Context, tx pgx.Tx, verbs *idempotency.TxClient) error {
			outcome, err := verbs.Begin(ctx, bench.Params("another's claim"))
			if err != nil {
				return err
			}
			outcome.Claim.ID = idempotency.NewClaimID()
			return complete(outcome.Claim)(ctx, tx, verbs)
		}, idempotency.ErrClaimLost},
		"twice": {func(ctx context.Context, tx pgx.Tx, verbs *idempotency.TxClient) error {
			outcome, err := verbs.Begin(ctx, bench.Params("twice"))
			if err != nil {
				return err
			}
			return errors.Join(complete(outcome.Claim)(ctx, tx, verbs), complete(outcome.Claim)(ctx, tx, verbs))
		}, idempotency.ErrClaimLost},
		"claimed in a savepoint that was rolled back": {func(ctx context.Context, tx pgx.Tx, verbs *idempotency.TxClient) error {
			savepoint, err := tx.Begin(ctx)
			if err != nil {
				return err
			}
			outcome, err := b.Client.WithTx(savepoint).Begin(ctx, bench.Params("savepoint"))
			if err != nil {
				return err
			}
			if err := savepoint.Rollback(ctx); err != nil {
				return err
			}
			return complete(outcome.Claim)(ctx, tx, verbs)
		}, idempotency.ErrClaimLost},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tx, err := b.Pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback(t.Context())
			if err := bench.Effect(t.Context(), tx, name); err != nil {
				t.Fatal(err)
			}
			if err := test.run(t.Context(), tx, b.Client.WithTx(tx)); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if err := tx.Commit(t.Context()); err == nil {
				t.Error("the transaction committed")
			}
			if n := b.Effects(t, name); n != 0 {
				t.Errorf("%d effects without a key", n)
			}
		})
	}
}

func TestForgottenCompletionCannotCommit(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	err := pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) error {
		if _, err := b.Client.WithTx(tx).Begin(t.Context(), bench.Params("k")); err != nil {
			return err
		}
		return bench.Effect(t.Context(), tx, "k")
	})
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.ConstraintName != "idempotency_keys_completed_before_commit" {
		t.Errorf("commit: %v, want the guard's constraint", err)
	}
	if n := b.Effects(t, "k"); n != 0 {
		t.Errorf("%d effects without a key", n)
	}
}

// A constraint of the caller's can fail the commit, with the code of a lost race
// for the key. That is the caller's error, and not a reason to run again.
func TestDeferredConstraintFailsTheCommit(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	if _, err := b.Pool.Exec(t.Context(), `ALTER TABLE effects ADD CONSTRAINT once UNIQUE (name) DEFERRABLE INITIALLY DEFERRED`); err != nil {
		t.Fatal(err)
	}
	runs := 0
	_, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), func(ctx context.Context, tx pgx.Tx) (string, error) {
		runs++
		return "k", errors.Join(bench.Effect(ctx, tx, "k"), bench.Effect(ctx, tx, "k"))
	})
	bench.WantPgError(t, err, "23505", "once")
	if runs != 1 || b.Effects(t, "k") != 0 {
		t.Errorf("%d runs, %d effects; want 1 and 0", runs, b.Effects(t, "k"))
	}
	if _, err := b.Client.Get(t.Context(), bench.Params("k").Key); !errors.Is(err, idempotency.ErrNotFound) {
		t.Errorf("Get: %v, want ErrNotFound", err)
	}
}

package pgxstore_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
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

// Two transactions that each read the other's key as not done and complete
// their own: no serial order explains both. REPEATABLE READ lets it pass, which
// shows that the schedule is the one that this is about.
func TestWriteSkewBetweenKeys(t *testing.T) {
	t.Parallel()
	for level, wantFailed := range map[pgx.TxIsoLevel]int{pgx.Serializable: 1, pgx.RepeatableRead: 0} {
		t.Run(string(level), func(t *testing.T) {
			t.Parallel()
			b := bench.New(t, pgtest.DB(t), nil, nil)
			keys := []string{"a", "b"}
			var txs []pgx.Tx
			var claims []*idempotency.Claim
			for _, key := range keys {
				tx, err := b.Pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: level})
				if err != nil {
					t.Fatal(err)
				}
				defer tx.Rollback(t.Context())
				txs, claims = append(txs, tx), append(claims, begin(t, b, tx, key))
			}
			for i, tx := range txs {
				outcome, err := b.Client.WithTx(tx).Begin(t.Context(), bench.Params(keys[1-i]))
				if err != nil || outcome.State != idempotency.InProgress {
					t.Fatalf("Begin of the other's key: %+v, %v; want in progress", outcome, err)
				}
			}
			failed := 0
			for i, tx := range txs {
				_, err := b.Client.WithTx(tx).Complete(t.Context(), claims[i], bytesResponse("x"))
				if err == nil {
					err = tx.Commit(t.Context())
				}
				if err == nil {
					if _, err := b.Client.Get(t.Context(), bench.Params(keys[i]).Key); err != nil {
						t.Error(err)
					}
					continue
				}
				failed++
				bench.WantPgError(t, err, "40001", "")
				wantNothing(t, b, keys[i])
			}
			if failed != wantFailed {
				t.Errorf("%d transactions failed, want %d", failed, wantFailed)
			}
		})
	}
}

// Two withdrawals, of two accounts under two keys, may not together overdraw.
// Each alone would do. REPEATABLE READ does not catch it.
func TestWriteSkewBetweenOperations(t *testing.T) {
	t.Parallel()
	for level, want := range map[pgx.TxIsoLevel]struct{ sum, runs, paid int }{
		pgx.Serializable:   {sum: 0, runs: 3, paid: 1},
		pgx.RepeatableRead: {sum: -100, runs: 2, paid: 2},
	} {
		t.Run(string(level), func(t *testing.T) {
			t.Parallel()
			b := bench.New(t, pgtest.DB(t), &pgxstore.Config{TxOptions: pgx.TxOptions{IsoLevel: level}}, nil)
			if err := execAll(t, b.Pool, `CREATE TABLE accounts (name text PRIMARY KEY, balance int NOT NULL)`,
				`INSERT INTO accounts VALUES ('a', 50), ('b', 50)`); err != nil {
				t.Fatal(err)
			}
			var runs, paid atomic.Int32
			var bothHaveRead, callers sync.WaitGroup
			bothHaveRead.Add(2)
			for _, name := range []string{"a", "b"} {
				callers.Go(func() {
					again := false
					result, err := idempotency.Do(t.Context(), b.Client, bench.Params(name), func(ctx context.Context, tx pgx.Tx) (bool, error) {
						runs.Add(1)
						var sum int
						err := tx.QueryRow(ctx, `SELECT sum(balance) FROM accounts`).Scan(&sum)
						if !again {
							again = true
							bothHaveRead.Done()
							bothHaveRead.Wait()
						}
						if err != nil || sum < 100 {
							return false, err
						}
						_, err = tx.Exec(ctx, `UPDATE accounts SET balance = balance - 100 WHERE name = $1`, name)
						return true, errors.Join(err, bench.Effect(ctx, tx, name))
					})
					if err != nil {
						t.Error(err)
					}
					if result.Value {
						paid.Add(1)
					}
					if n := b.Effects(t, name); (n == 1) != result.Value {
						t.Errorf("%d effects of %s, paid: %t", n, name, result.Value)
					}
				})
			}
			callers.Wait()
			sum := bench.Count(t, b.Pool, `SELECT sum(balance) FROM accounts`)
			if sum != want.sum || int(runs.Load()) != want.runs || int(paid.Load()) != want.paid {
				t.Errorf("sum %d, %d runs, %d paid; want %+v", sum, runs.Load(), paid.Load(), want)
			}
		})
	}
}

func TestContentionOnOneRow(t *testing.T) {
	t.Parallel()
	for _, level := range []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable} {
		t.Run(string(level), func(t *testing.T) {
			t.Parallel()
			config := &pgxstore.Config{TxOptions: pgx.TxOptions{IsoLevel: level}, MaxAttempts: 1000}
			b := bench.New(t, pgtest.DB(t), config, nil)
			if err := execAll(t, b.Pool, `CREATE TABLE counters (value int NOT NULL)`, `INSERT INTO counters VALUES (0)`); err != nil {
				t.Fatal(err)
			}
			const keys, duplicates = 12, 3
			var mu sync.Mutex
			values := map[int]string{}
			executed := 0
			var callers sync.WaitGroup
			for i := range keys * duplicates {
				name := fmt.Sprintf("key-%d", i%keys)
				callers.Go(func() {
					p := bench.Params(name)
					p.Wait = time.Minute
					result, err := idempotency.Do(t.Context(), b.Client, p, func(ctx context.Context, tx pgx.Tx) (value int, err error) {
						if err := bench.Effect(ctx, tx, name); err != nil {
							return 0, err
						}
						err = tx.QueryRow(ctx, `UPDATE counters SET value = value + 1 RETURNING value`).Scan(&value)
						return value, err
					})
					if err != nil {
						t.Error(err)
					}
					mu.Lock()
					defer mu.Unlock()
					if other := values[result.Value]; other != "" && other != name {
						t.Errorf("%s and %s were both answered %d", other, name, result.Value)
					}
					values[result.Value] = name
					if !result.Replayed {
						executed++
					}
				})
			}
			callers.Wait()
			if value := bench.Count(t, b.Pool, `SELECT value FROM counters`); value != keys || executed != keys || len(values) != keys {
				t.Errorf("counter %d, %d executed, %d answers; want %d of each", value, executed, len(values), keys)
			}
			for k := range keys {
				if n := b.Effects(t, fmt.Sprintf("key-%d", k)); n != 1 {
					t.Errorf("%d effects of key %d, want 1", n, k)
				}
			}
		})
	}
}

// raise makes the server report the SQLSTATE.
func raise(ctx context.Context, tx pgx.Tx, code string) error {
	_, err := tx.Exec(ctx, `DO $$ BEGIN RAISE EXCEPTION 'test' USING ERRCODE = '`+code+`'; END $$`)
	return err
}

func TestDoGivesUp(t *testing.T) {
	t.Parallel()
	const attempts = 3
	b := bench.New(t, pgtest.DB(t), &pgxstore.Config{MaxAttempts: attempts}, nil)
	for _, code := range []string{"40001", "40P01"} {
		t.Run(code, func(t *testing.T) {
			t.Parallel()
			runs := 0
			_, err := idempotency.Do(t.Context(), b.Client, bench.Params(code), func(ctx context.Context, tx pgx.Tx) (string, error) {
				runs++
				if err := bench.Effect(ctx, tx, code); err != nil {
					return "", err
				}
				return "", raise(ctx, tx, code)
			})
			var exceeded *txhelper.AttemptsExceededError
			if !errors.As(err, &exceeded) || exceeded.Attempts != attempts || runs != attempts {
				t.Errorf("%v after %d runs, want an AttemptsExceededError after %d", err, runs, attempts)
			}
			wantSerializationFailure(t, err, code)
			wantNothing(t, b, code)
			wantRun(t, b, code)
		})
	}
}

func wantSerializationFailure(t *testing.T, err error, name string) {
	t.Helper()
	var keyErr *idempotency.KeyError
	if !errors.Is(err, idempotency.ErrSerializationFailure) || !errors.As(err, &keyErr) || keyErr.Key != bench.Params(name).Key {
		t.Errorf("got %v, want ErrSerializationFailure with the key", err)
	}
}

// claimers are the ways to claim a key in the caller's own transaction.
func claimers(name string, b *bench.Bench) map[string]func(context.Context, pgx.Tx) (replayed bool, err error) {
	return map[string]func(context.Context, pgx.Tx) (bool, error){
		"DoTx": func(ctx context.Context, tx pgx.Tx) (bool, error) {
			result, err := idempotency.DoTx(ctx, b.Client, tx, bench.Params(name), bench.Charge(name))
			if err != nil {
				return false, err
			}
			answer, err := result.Answer()
			return answer.Replayed, err
		},
		"Begin": func(ctx context.Context, tx pgx.Tx) (bool, error) {
			outcome, err := b.Client.WithTx(tx).Begin(ctx, bench.Params(name))
			return err == nil && outcome.State == idempotency.Completed, err
		},
	}
}

// The rival's answer is not in the snapshot, so the transaction can neither
// replay it nor claim the key. Only its owner can begin it again.
func TestSnapshotOlderThanTheAnswer(t *testing.T) {
	t.Parallel()
	for _, level := range []pgx.TxIsoLevel{pgx.RepeatableRead, pgx.Serializable} {
		for _, claimer := range []string{"DoTx", "Begin"} {
			for _, expired := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s %s expired %t", claimer, level, expired), func(t *testing.T) {
					t.Parallel()
					b := bench.New(t, pgtest.DB(t), nil, nil)
					if expired {
						p := bench.Params("k")
						p.TTL = time.Microsecond
						if _, err := idempotency.Do(t.Context(), b.Client, p, bench.Charge("former")); err != nil {
							t.Fatal(err)
						}
					}
					runs, replayed := 0, false
					err := txhelper.Run(t.Context(), b.Pool, &txhelper.Options{TxOptions: pgx.TxOptions{IsoLevel: level}}, func(ctx context.Context, tx pgx.Tx) (err error) {
						runs++
						if err := bench.Effect(ctx, tx, "caller"); err != nil {
							return err
						}
						if runs == 1 {
							wantRun(t, b, "k") //nolint:contextcheck // Another caller.
						}
						replayed, err = claimers("k", b)[claimer](ctx, tx)
						if runs == 1 {
							wantSerializationFailure(t, err, "k")
						}
						return err
					})
					if err != nil || runs != 2 || !replayed {
						t.Errorf("%v after %d runs, replayed: %t; want a replay in the second", err, runs, replayed)
					}
					if b.Effects(t, "k") != 1 || b.Effects(t, "caller") != 1 {
						t.Errorf("%d effects of the key, %d of the caller; want 1 and 1", b.Effects(t, "k"), b.Effects(t, "caller"))
					}
				})
			}
		}
	}
}

func TestSerializationFailureInsideDoTx(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	for _, code := range []string{"40001", "40P01"} {
		t.Run(code, func(t *testing.T) {
			t.Parallel()
			err := pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) error {
				_, err := idempotency.DoTx(t.Context(), b.Client, tx, bench.Params(code), func(ctx context.Context, tx pgx.Tx) (string, error) {
					return "", errors.Join(bench.Effect(ctx, tx, code), raise(ctx, tx, code))
				})
				return err
			})
			var pgErr *pgconn.PgError
			if !errors.Is(err, idempotency.ErrSerializationFailure) || !txhelper.IsRetryable(err) || !errors.As(err, &pgErr) || pgErr.Code != code {
				t.Errorf("got %v, want ErrSerializationFailure of %s", err, code)
			}
			wantNothing(t, b, code)
			wantRun(t, b, code)
		})
	}
}

func TestIgnoredSerializationFailureRunsAgain(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	runs := 0
	result, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), func(ctx context.Context, tx pgx.Tx) (int, error) {
		if runs++; runs == 1 {
			_ = raise(ctx, tx, "40001")
			return runs, nil
		}
		return runs, bench.Effect(ctx, tx, "k")
	})
	if err != nil || result.Value != 2 || b.Effects(t, "k") != 1 {
		t.Errorf("%+v, %v, %d effects; want the second run's answer and one effect", result, err, b.Effects(t, "k"))
	}
}

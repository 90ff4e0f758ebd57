package pgxstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

func TestDoRunsOnceInEveryExecMode(t *testing.T) {
	t.Parallel()
	modes := []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement,
		pgx.QueryExecModeCacheDescribe,
		pgx.QueryExecModeDescribeExec,
		pgx.QueryExecModeExec,
		pgx.QueryExecModeSimpleProtocol,
	}
	levels := []pgx.TxIsoLevel{"", pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable}
	for _, mode := range modes {
		for _, level := range levels {
			t.Run(fmt.Sprintf("%s %s", mode, level), func(t *testing.T) {
				t.Parallel()
				config := pgtest.Config(t)
				config.ConnConfig.DefaultQueryExecMode = mode
				pool := bench.PoolWith(t, config)
				b := bench.New(t, pool, &pgxstore.Config{TxOptions: pgx.TxOptions{IsoLevel: level}}, nil)

				first, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), bench.Charge("k"))
				if err != nil {
					t.Fatal(err)
				}
				second, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), bench.Charge("k"))
				if err != nil {
					t.Fatal(err)
				}
				if first.Replayed || !second.Replayed || first.Value != "k" || second.Value != "k" {
					t.Errorf("first %+v, second %+v; want one run and one replay of \"k\"", first, second)
				}
				if !first.Record.CreatedAt.Equal(second.Record.CreatedAt) || !first.Record.ExpiresAt.Equal(second.Record.ExpiresAt) {
					t.Errorf("records differ: %+v, %+v", first.Record, second.Record)
				}
				if n := b.Effects(t, "k"); n != 1 {
					t.Errorf("%d effects, want 1", n)
				}

				// An expired answer is replaced by a new one.
				expiring := bench.Params("expiring")
				expiring.TTL = time.Microsecond
				for range 2 {
					again, err := idempotency.Do(t.Context(), b.Client, expiring, bench.Charge("expiring"))
					if err != nil || again.Replayed {
						t.Fatalf("%+v, %v; want a run, the answer has expired", again, err)
					}
				}

				// The verbs and the lease.
				if err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
					verbs := b.Client.WithTx(tx)
					outcome, err := verbs.Begin(t.Context(), bench.Params("verbs"))
					if err != nil {
						return err
					}
					_, err = verbs.Complete(t.Context(), outcome.Claim, &idempotency.Response{Type: idempotency.TypeBytes, Body: []byte{0, 1, 0xff}})
					return err
				}); err != nil {
					t.Fatal(err)
				}
				record, err := b.Client.Get(t.Context(), bench.Params("verbs").Key)
				if err != nil || string(record.Response.Body) != "\x00\x01\xff" {
					t.Errorf("%+v, %v; want the bytes that were recorded", record, err)
				}
				outcome, err := b.Store.Begin(t.Context(), &idempotency.BeginParams{
					Key: bench.Params("lease").Key, Fingerprint: idempotency.NoFingerprint, TTL: time.Hour, Lease: time.Minute,
				})
				if err != nil {
					t.Fatal(err)
				}
				extended, err := b.Store.Extend(t.Context(), outcome.Claim, time.Hour)
				if err != nil {
					t.Fatal(err)
				}
				step := stepOf("charge")
				if err := b.Store.AddStep(t.Context(), extended, step); err != nil {
					t.Error(err)
				}
				record, err = b.Store.Get(t.Context(), extended.Key)
				if err != nil || len(record.Steps) != 1 || !bytes.Equal(record.Steps[0].Response.Body, step.Response.Body) || record.Steps[0].Arguments != step.Arguments {
					t.Errorf("%+v, %v; want the step that was recorded", record, err)
				}
				if err := errors.Join(b.Store.Suspend(t.Context(), extended), b.Store.Release(t.Context(), extended)); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func TestRacingDoRunsOnce(t *testing.T) {
	t.Parallel()
	for _, level := range []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable} {
		t.Run(string(level), func(t *testing.T) {
			t.Parallel()
			b := bench.New(t, pgtest.DB(t), &pgxstore.Config{TxOptions: pgx.TxOptions{IsoLevel: level}}, nil)
			const callers, keys = 8, 20
			for k := range keys {
				name := fmt.Sprintf("key-%d", k)
				var group sync.WaitGroup
				replayed := make([]bool, callers)
				for i := range callers {
					group.Go(func() {
						p := bench.Params(name)
						p.Wait = 30 * time.Second
						result, err := idempotency.Do(t.Context(), b.Client, p, bench.Charge(name))
						if err != nil {
							t.Error(err)
						}
						replayed[i] = result.Replayed
					})
				}
				group.Wait()
				runs := 0
				for _, r := range replayed {
					if !r {
						runs++
					}
				}
				if n := b.Effects(t, name); n != 1 || runs != 1 {
					t.Fatalf("%d effects, %d callers that ran; want 1 and 1", n, runs)
				}
			}
		})
	}
}

// A rival without the advisory lock, as an older version would be: the unique
// index alone must decide.
func TestUniqueIndexDecidesWithoutTheLock(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	rival := func(ctx context.Context, id string) error {
		fingerprint := bench.Params(id).Fingerprint
		_, err := b.Pool.Exec(ctx, `INSERT INTO idempotency_keys
			(scope, id, claim_id, attempt, fingerprint, response, response_type, created_at, updated_at, expires_at)
			VALUES ('test', $1, gen_random_uuid(), 1, $2, '"rival"', 'json:string', now(), now(), now() + interval '1 hour')`, id, fingerprint.Bytes())
		return err
	}

	result, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), func(ctx context.Context, tx pgx.Tx) (string, error) {
		if err := bench.Effect(ctx, tx, "k"); err != nil {
			return "", err
		}
		return "mine", rival(ctx, "k")
	})
	if err != nil || !result.Replayed || result.Value != "rival" {
		t.Errorf("%+v, %v; want the rival's answer", result, err)
	}
	if n := b.Effects(t, "k"); n != 0 {
		t.Errorf("%d effects of the loser were committed", n)
	}

	t.Run("also when fn fails", func(t *testing.T) {
		t.Parallel()
		result, err := idempotency.Do(t.Context(), b.Client, bench.Params("f"), func(ctx context.Context, _ pgx.Tx) (string, error) {
			return "", errors.Join(errors.New("business failed"), rival(ctx, "f"))
		})
		if err != nil || result.Value != "rival" {
			t.Errorf("%+v, %v; want the rival's answer", result, err)
		}
	})

	t.Run("also when an expired row is replaced", func(t *testing.T) {
		t.Parallel()
		p := bench.Params("e")
		p.TTL = time.Microsecond
		if _, err := idempotency.Do(t.Context(), b.Client, p, bench.Charge("e")); err != nil {
			t.Fatal(err)
		}
		runs := 0
		result, err := idempotency.Do(t.Context(), b.Client, bench.Params("e"), func(ctx context.Context, tx pgx.Tx) (string, error) {
			if runs++; runs == 1 {
				// A rival takes the expired key with a lease, and extends it: the
				// claim is another's, then the same claim with another end.
				if _, err := b.Pool.Exec(ctx, `UPDATE idempotency_keys SET expires_at = now() + interval '1 hour', response = '"rival"', claim_id = gen_random_uuid() WHERE id = 'e'`); err != nil {
					return "", err
				}
			}
			return "mine", bench.Effect(ctx, tx, "e2")
		})
		if err != nil || result.Value != "rival" || !result.Replayed {
			t.Errorf("%+v, %v; want the rival's answer", result, err)
		}
		if n := b.Effects(t, "e2"); n != 0 {
			t.Errorf("%d effects of the loser were committed", n)
		}
	})

	t.Run("a zombie's completion under the same claim id", func(t *testing.T) {
		t.Parallel()
		begin := &idempotency.BeginParams{Key: bench.Params("z").Key, Fingerprint: bench.Params("z").Fingerprint, TTL: time.Hour, Lease: time.Millisecond}
		zombie, err := b.Store.Begin(t.Context(), begin)
		if err != nil {
			t.Fatal(err)
		}
		bench.WaitFor(t, func() bool {
			record, err := b.Store.Get(t.Context(), begin.Key)
			var now time.Time
			if err == nil {
				err = b.Pool.QueryRow(t.Context(), `SELECT clock_timestamp()`).Scan(&now)
			}
			return err == nil && now.After(record.LockedUntil)
		})
		result, err := idempotency.Do(t.Context(), b.Client, bench.Params("z"), func(ctx context.Context, tx pgx.Tx) (string, error) {
			_, completeErr := b.Store.Complete(ctx, zombie.Claim, &idempotency.Response{Type: "json:string", Body: []byte(`"zombie"`)})
			return "mine", errors.Join(completeErr, bench.Effect(ctx, tx, "z"))
		})
		if err != nil || result.Value != "zombie" || b.Effects(t, "z") != 0 {
			t.Errorf("%+v, %v, %d effects; want the zombie's answer and no effect of ours", result, err, b.Effects(t, "z"))
		}
	})
}

func TestRunningDuplicateIsInProgress(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	p := bench.Params("k")
	p.Wait = idempotency.NoWait
	// Without what Do leaves in its own context. Nothing here waits for the key;
	// what did would wait for this very test.
	otherCaller, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, err := idempotency.Do(t.Context(), b.Client, p, func(ctx context.Context, tx pgx.Tx) (string, error) {
		_, err := idempotency.Do(otherCaller, b.Client, p, bench.Charge("k")) //nolint:contextcheck // As above.
		var inProgress *idempotency.InProgressError
		if !errors.As(err, &inProgress) || inProgress.RetryAfter <= 0 || inProgress.Key != p.Key {
			t.Errorf("duplicate got %v, want an InProgressError with its key and a RetryAfter", err)
		}
		if _, err := b.Client.Get(ctx, p.Key); !errors.Is(err, idempotency.ErrNotFound) {
			t.Errorf("Get of a running key: %v, want ErrNotFound", err)
		}

		// In a caller's transaction: reported, and the transaction stays usable.
		return "k", pgx.BeginFunc(otherCaller, b.Pool, func(other pgx.Tx) error {
			outcome, err := b.Client.WithTx(other).Begin(otherCaller, p)
			if err != nil || outcome.State != idempotency.InProgress {
				t.Errorf("Begin got %+v, %v, want in progress", outcome, err)
			}
			if _, err := idempotency.DoTx(otherCaller, b.Client, other, p, bench.Charge("k")); !errors.Is(err, idempotency.ErrInProgress) {
				t.Errorf("DoTx got %v, want ErrInProgress", err)
			}
			return bench.Effect(otherCaller, other, "other work")
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := b.Effects(t, "other work"); n != 1 {
		t.Errorf("%d effects of the caller's own work, want 1", n)
	}
}

func TestPositiveWaitInTransactionGetsTheAnswer(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	running, release := make(chan struct{}), make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		if _, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), func(context.Context, pgx.Tx) (string, error) {
			close(running)
			<-release
			return "answer", nil
		}); err != nil {
			t.Error(err)
		}
	})
	<-running
	err := pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) error {
		p := bench.Params("k")
		p.Wait = time.Minute
		close(release)
		result, err := idempotency.DoTx(t.Context(), b.Client, tx, p, bench.Charge("k"))
		if err != nil {
			return err
		}
		answer, err := result.Answer()
		if err != nil || answer.Value != "answer" || !answer.Replayed {
			t.Errorf("%+v, %v; want the running call's answer", answer, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	group.Wait()
}

func TestBystanderDoesNotPinTheKey(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	short := bench.Params("k")
	short.TTL = time.Microsecond
	if _, err := idempotency.Do(t.Context(), b.Client, bench.Params("live"), bench.Charge("live")); err != nil {
		t.Fatal(err)
	}
	tx, err := b.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	if _, err := b.Client.WithTx(tx).Begin(t.Context(), bench.Params("live")); err != nil {
		t.Fatal(err)
	}
	var locks int
	if err := b.Pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`).Scan(&locks); err != nil {
		t.Fatal(err)
	}
	if locks != 0 {
		t.Errorf("a transaction that only replayed holds %d advisory locks", locks)
	}
}

func TestStoreInsideATransactionThatRollsBack(t *testing.T) {
	t.Parallel()
	pool := pgtest.DB(t)
	b := bench.New(t, pool, nil, nil)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	client, err := idempotency.NewClient(bench.NewStore(t, tx, nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		result, err := idempotency.Do(t.Context(), client, bench.Params("k"), bench.Charge("k"))
		if err != nil || result.Replayed != (i == 1) {
			t.Fatalf("call %d: %+v, %v", i, result, err)
		}
	}
	// One store's call inside another's, in one transaction.
	_, err = idempotency.Do(t.Context(), client, bench.Params("outer"), func(ctx context.Context, tx pgx.Tx) (string, error) {
		inner, err := idempotency.NewClient(bench.NewStore(t, tx, nil), nil)
		if err != nil {
			return "", err
		}
		result, err := idempotency.Do(ctx, inner, bench.Params("inner"), bench.Charge("inner"))
		return result.Value, err
	})
	if err != nil {
		t.Errorf("a call inside another's transaction: %v", err)
	}
	// A key that the transaction itself has begun.
	if _, err := b.Client.WithTx(tx).Begin(t.Context(), bench.Params("own")); err != nil {
		t.Fatal(err)
	}
	if _, err := idempotency.Do(t.Context(), client, bench.Params("own"), bench.Charge("own")); !errors.Is(err, idempotency.ErrNested) {
		t.Errorf("got %v, want ErrNested", err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Client.Get(t.Context(), bench.Params("k").Key); !errors.Is(err, idempotency.ErrNotFound) || b.Effects(t, "k") != 0 {
		t.Errorf("Get after the rollback: %v, %d effects; want ErrNotFound and none", err, b.Effects(t, "k"))
	}
}

package pgxstore_test

import (
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

// readOnlySeed makes the keys "live" and "expired", each with one effect, and
// "leased", whose claim it returns.
func readOnlySeed(t *testing.T, b *bench.Bench) *idempotency.Claim {
	t.Helper()
	expired := bench.Params("expired")
	expired.TTL = time.Microsecond
	_, expiredErr := idempotency.Do(t.Context(), b.Client, expired, bench.Charge("expired"))
	_, liveErr := idempotency.Do(t.Context(), b.Client, bench.Params("live"), bench.Charge("live"))
	outcome, err := b.Store.Begin(t.Context(), leaseParams("leased"))
	if err := errors.Join(expiredErr, liveErr, err); err != nil {
		t.Fatal(err)
	}
	return outcome.Claim
}

func leaseParams(name string) *idempotency.BeginParams {
	return &idempotency.BeginParams{Key: bench.Params(name).Key, Fingerprint: bench.Params(name).Fingerprint, TTL: time.Hour, Lease: time.Hour}
}

// wantReadOnlyDo checks that Do replays what is there and runs nothing.
func wantReadOnlyDo(t *testing.T, b *bench.Bench) {
	t.Helper()
	result, err := idempotency.Do(t.Context(), b.Client, bench.Params("live"), mustNotRun(t, "live"))
	if err != nil || !result.Replayed || result.Value != "live" {
		t.Errorf("%+v, %v; want a replay", result, err)
	}
	for _, name := range []string{"new", "expired"} {
		_, err := idempotency.Do(t.Context(), b.Client, bench.Params(name), mustNotRun(t, name))
		wantKeyError(t, "Do", err, idempotency.ErrReadOnly, name)
	}
}

// wantReadOnlyTx checks the calls in a transaction of the caller's.
func wantReadOnlyTx(t *testing.T, b *bench.Bench, options pgx.TxOptions, leased *idempotency.Claim) {
	t.Helper()
	inTx := func(fn func(tx pgx.Tx) error) error {
		tx, err := b.Pool.BeginTx(t.Context(), options)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(t.Context())
		return fn(tx)
	}
	for _, name := range []string{"new", "expired"} {
		wantKeyError(t, "DoTx", inTx(func(tx pgx.Tx) error {
			_, err := idempotency.DoTx(t.Context(), b.Client, tx, bench.Params(name), mustNotRun(t, name))
			return err
		}), idempotency.ErrReadOnly, name)
		wantKeyError(t, "Begin", inTx(func(tx pgx.Tx) error {
			_, err := b.Client.WithTx(tx).Begin(t.Context(), bench.Params(name))
			return err
		}), idempotency.ErrReadOnly, name)
	}
	wantKeyError(t, "Complete", inTx(func(tx pgx.Tx) error {
		_, err := b.Client.WithTx(tx).Complete(t.Context(), leased, bytesResponse("x"))
		return err
	}), idempotency.ErrReadOnly, "leased")
	if err := inTx(func(tx pgx.Tx) error {
		_, err := b.Client.WithTx(tx).Get(t.Context(), bench.Params("live").Key)
		return err
	}); err != nil {
		t.Errorf("Get: %v", err)
	}
}

// wantReadOnlyStore checks the verbs of the lease.
func wantReadOnlyStore(t *testing.T, b *bench.Bench, leased *idempotency.Claim) {
	t.Helper()
	_, err := b.Store.Begin(t.Context(), leaseParams("new"))
	wantKeyError(t, "Begin with a lease", err, idempotency.ErrReadOnly, "new")
	_, err = b.Store.Complete(t.Context(), leased, bytesResponse("x"))
	wantKeyError(t, "Complete of a lease", err, idempotency.ErrReadOnly, "leased")
	_, err = b.Store.Extend(t.Context(), leased, time.Hour)
	wantKeyError(t, "Extend", err, idempotency.ErrReadOnly, "leased")
	wantKeyError(t, "AddStep", b.Store.AddStep(t.Context(), leased, stepOf("charge")), idempotency.ErrReadOnly, "leased")
	wantKeyError(t, "Suspend", b.Store.Suspend(t.Context(), leased), idempotency.ErrReadOnly, "leased")
	wantKeyError(t, "Release", b.Store.Release(t.Context(), leased), idempotency.ErrReadOnly, "leased")
}

// wantReadOnlyLeftFree checks that the keys which could not run still can.
func wantReadOnlyLeftFree(t *testing.T, writable *bench.Bench) {
	t.Helper()
	for _, name := range []string{"new", "expired"} {
		result, err := idempotency.Do(t.Context(), writable.Client, bench.Params(name), bench.Charge(name))
		if err != nil || result.Replayed {
			t.Errorf("%+v, %v; want a run, the key is free", result, err)
		}
	}
}

func TestReadOnlyTransaction(t *testing.T) {
	t.Parallel()
	for _, level := range []pgx.TxIsoLevel{"", pgx.RepeatableRead, pgx.Serializable} {
		t.Run("level "+string(level), func(t *testing.T) {
			t.Parallel()
			options := pgx.TxOptions{IsoLevel: level, AccessMode: pgx.ReadOnly}
			b := bench.New(t, pgtest.DB(t), &pgxstore.Config{TxOptions: options}, nil)
			writable := bench.New(t, b.Pool, nil, nil)
			leased := readOnlySeed(t, writable)
			wantReadOnlyDo(t, b)
			wantReadOnlyTx(t, writable, options, leased)
			wantReadOnlyLeftFree(t, writable)
		})
	}
}

// The stand-in for a standby, on any server: nobody may write there by default.
// TestStandby asks a real one.
func TestReadOnlyServer(t *testing.T) {
	t.Parallel()
	config := pgtest.Config(t)
	writable := bench.New(t, bench.PoolWith(t, config.Copy()), nil, nil)
	leased := readOnlySeed(t, writable)
	config.ConnConfig.RuntimeParams["default_transaction_read_only"] = "on"
	b := bench.Open(t, bench.PoolWith(t, config), nil, nil)
	wantReadOnlyDo(t, b)
	wantReadOnlyTx(t, b, pgx.TxOptions{}, leased)
	wantReadOnlyStore(t, b, leased)
	wantReadOnlyLeftFree(t, writable)
}

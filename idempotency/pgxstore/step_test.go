package pgxstore_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

// stepOf is a step whose bytes no encoding may change.
func stepOf(name string) *idempotency.StepRecord {
	return &idempotency.StepRecord{Name: name, Arguments: idempotency.FingerprintOf(name), Response: bytesResponse("\x00\xff'\"\\")}
}

// The holder of a lease that has ended records a step, or suspends, between a
// rival's look at the key and its claim: the claim must not miss that.
func TestStepBesideATakeover(t *testing.T) {
	t.Parallel()
	acts := map[string]func(ctx context.Context, b *bench.Bench, claim *idempotency.Claim) error{
		"a step": func(ctx context.Context, b *bench.Bench, claim *idempotency.Claim) error {
			return b.Store.AddStep(ctx, claim, stepOf("charge"))
		},
		"a suspension": func(ctx context.Context, b *bench.Bench, claim *idempotency.Claim) error {
			return b.Store.Suspend(ctx, claim)
		},
	}
	// wantRefused is of claims that only leased work can continue.
	wantRefused := func(t *testing.T, err error) {
		t.Helper()
		if !errors.Is(err, idempotency.ErrStepChanged) {
			t.Errorf("got %v, want ErrStepChanged", err)
		}
	}
	claims := map[string]struct {
		// before is the statement before which the holder acts.
		before string
		claim  func(t *testing.T, b *bench.Bench, act string)
	}{
		"Begin under a lease": {"KeyReclaim :", func(t *testing.T, b *bench.Bench, act string) {
			t.Helper()
			outcome, err := b.Store.Begin(t.Context(), leased("k", time.Minute))
			if err != nil || outcome.State != idempotency.New || !outcome.Claim.Resumed {
				t.Fatalf("%+v, %v; want a takeover", outcome, err)
			}
			steps, attempt := len(outcome.Claim.Steps), outcome.Claim.Attempt
			if act == "a step" && (steps != 1 || attempt != 2) || act == "a suspension" && (steps != 0 || attempt != 1) {
				t.Errorf("after %s the claim has %d steps and attempt %d", act, steps, attempt)
			}
		}},
		"Begin in a transaction": {"KeyReclaim :", func(t *testing.T, b *bench.Bench, _ string) {
			t.Helper()
			wantRefused(t, pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) error {
				_, err := b.Client.WithTx(tx).Begin(t.Context(), bench.Params("k"))
				return err
			}))
		}},
		"BeginMany": {"KeyReclaimMany", func(t *testing.T, b *bench.Bench, _ string) {
			t.Helper()
			wantRefused(t, pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) error {
				batch, err := b.Client.WithTx(tx).BeginMany(t.Context(), []idempotency.Params{bench.Params("k")})
				return errors.Join(err, batch.Items[0].Err)
			}))
		}},
		"Do": {"KeyReplaceCompleted", func(t *testing.T, b *bench.Bench, _ string) {
			t.Helper()
			_, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), bench.Charge("k"))
			wantRefused(t, err)
			if n := b.Effects(t, "k"); n != 0 {
				t.Errorf("%d effects, want none", n)
			}
		}},
	}
	for actName, act := range acts {
		for name, test := range claims {
			t.Run(name+" beside "+actName, func(t *testing.T) {
				t.Parallel()
				config := pgtest.Config(t)
				holder := bench.New(t, bench.PoolWith(t, config.Copy()), nil, nil)
				outcome, err := holder.Store.Begin(t.Context(), leased("k", time.Millisecond))
				if err != nil {
					t.Fatal(err)
				}
				bench.WaitFor(t, func() bool {
					return bench.Count(t, holder.Pool, `SELECT count(*) FROM idempotency_keys WHERE locked_until < clock_timestamp()`) == 1
				})
				acted := false
				config.ConnConfig.Tracer = &rivalTracer{name: test.before, rival: func() {
					acted = true
					if err := act(t.Context(), holder, outcome.Claim); err != nil {
						t.Error(err)
					}
				}}
				test.claim(t, bench.Open(t, bench.PoolWith(t, config), nil, nil), actName)
				if !acted {
					t.Error("the holder has not acted in between")
				}
			})
		}
	}
}

func TestStepsThatAreNotOurs(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	if _, err := b.Store.Begin(t.Context(), leased("k", time.Minute)); err != nil {
		t.Fatal(err)
	}
	for _, steps := range []string{`{"secret": 1}`, `["secret"]`, `[{"name": "a", "arguments": "secret", "type": "bytes"}]`, `[{"name": "a", "arguments": "", "type": "bytes"}]`} {
		if _, err := b.Pool.Exec(t.Context(), `UPDATE idempotency_keys SET steps = $1`, steps); err != nil {
			t.Fatal(err)
		}
		record, err := b.Store.Get(t.Context(), bench.Params("k").Key)
		if record != nil || err == nil {
			t.Errorf("%s: %+v, %v; want an error", steps, record, err)
			continue
		}
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the error shows what was recorded: %v", steps, err)
		}
	}
}

package pgxstore_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

type insufficientFundsError struct {
	Balance int `json:"balance"`
}

func (e *insufficientFundsError) Error() string {
	return fmt.Sprintf("insufficient funds: %d left", e.Balance)
}

var errClosed = errors.New("account is closed")

func finalConfig() *idempotency.Config {
	return &idempotency.Config{FinalErrors: []idempotency.FinalKind{
		idempotency.FinalType[*insufficientFundsError]("insufficient_funds"),
		idempotency.FinalValue("closed", errClosed),
	}}
}

func TestFinalErrorIsRecordedOnce(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, finalConfig())
	for name, test := range map[string]struct {
		fail func(context.Context, pgx.Tx) error
		want string
	}{
		"typed": {func(context.Context, pgx.Tx) error {
			return fmt.Errorf("charge: %w", idempotency.Final(&insufficientFundsError{Balance: 7}))
		}, "insufficient_funds"},
		"sentinel": {func(context.Context, pgx.Tx) error { return idempotency.Final(errClosed) }, "closed"},
		"after an SQL error": {func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `SELECT 1/0`)
			return idempotency.Final(errors.Join(&insufficientFundsError{Balance: 7}, err))
		}, "insufficient_funds"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			runs := 0
			fn := func(ctx context.Context, tx pgx.Tx) (string, error) {
				runs++
				if err := bench.Effect(ctx, tx, name); err != nil {
					return "", err
				}
				return "", test.fail(ctx, tx)
			}
			check := func(err error) {
				t.Helper()
				var final *idempotency.FinalError
				if !errors.As(err, &final) || final.Code != test.want || final.Key.ID == "" {
					t.Fatalf("got %v, want a FinalError %q", err, test.want)
				}
				var funds *insufficientFundsError
				if test.want == "insufficient_funds" && (!errors.As(err, &funds) || funds.Balance != 7) {
					t.Errorf("got %v, want the error with its fields", err)
				}
				if test.want == "closed" && !errors.Is(err, errClosed) {
					t.Errorf("got %v, want the sentinel", err)
				}
			}
			for i := range 2 {
				result, err := idempotency.Do(t.Context(), b.Client, bench.Params(name), fn)
				check(err)
				if result.Replayed != (i == 1) {
					t.Errorf("call %d: Replayed is %t", i, result.Replayed)
				}
			}
			// The usual shape in a caller's transaction: return err means roll
			// back. A recorded error does not come that way.
			for range 2 {
				var answer error
				if err := pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) error {
					result, err := idempotency.DoTx(t.Context(), b.Client, tx, bench.Params(name+" tx"), fn)
					if err != nil {
						return err
					}
					_, answer = result.Answer()
					return nil
				}); err != nil {
					t.Fatal(err)
				}
				check(answer)
			}
			if runs != 2 || b.Effects(t, name) != 0 {
				t.Errorf("%d runs for 2 keys, %d effects; want 2 and 0", runs, b.Effects(t, name))
			}
		})
	}
}

func TestUnlistedFinalErrorRollsBackAndSaysSo(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	fn := func(ctx context.Context, tx pgx.Tx) (string, error) {
		return "", errors.Join(bench.Effect(ctx, tx, "k"), idempotency.Final(&insufficientFundsError{}))
	}
	_, doErr := idempotency.Do(t.Context(), b.Client, bench.Params("k"), fn)
	doTxErr := pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) error {
		result, err := idempotency.DoTx(t.Context(), b.Client, tx, bench.Params("k"), fn)
		if _, answerErr := result.Answer(); !errors.Is(answerErr, idempotency.ErrNoAnswer) {
			t.Errorf("Answer after an error: %v, want ErrNoAnswer", answerErr)
		}
		return err
	})
	for _, err := range []error{doErr, doTxErr} {
		var funds *insufficientFundsError
		if !errors.Is(err, idempotency.ErrFinalUnlisted) || errors.As(err, &funds) || !strings.Contains(err.Error(), `FinalType[*pgxstore_test.insufficientFundsError]("code")`) {
			t.Errorf("got %v, want ErrFinalUnlisted that names the type, and not the error itself", err)
		}
	}
	if _, err := b.Client.Get(t.Context(), bench.Params("k").Key); !errors.Is(err, idempotency.ErrNotFound) || b.Effects(t, "k") != 0 {
		t.Errorf("Get: %v, %d effects; want ErrNotFound and none", err, b.Effects(t, "k"))
	}
}

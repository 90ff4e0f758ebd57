package tests_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/txhelper"
)

// Ways to end the transaction that Do gave to its function. None of them may
// commit an effect without its key, or a key without its effect.
func TestEndingTheTransactionInsideDo(t *testing.T) {
	t.Parallel()
	b := newBench(t, pgtest.DB(t), nil, nil)
	raw := func(statements ...string) func(context.Context, pgx.Tx) error {
		return func(ctx context.Context, tx pgx.Tx) error {
			for _, sql := range statements {
				if _, err := tx.Exec(ctx, sql); err != nil {
					return err
				}
			}
			return nil
		}
	}
	cases := map[string]struct {
		end func(context.Context, pgx.Tx) error
		// commits says that the effects before it are committed, by SQL that
		// nobody can take back; the call still says that it went wrong.
		commits bool
	}{
		"Commit returned":             {end: func(ctx context.Context, tx pgx.Tx) error { return tx.Commit(ctx) }},
		"Commit ignored":              {end: func(ctx context.Context, tx pgx.Tx) error { _ = tx.Commit(ctx); return nil }},
		"Rollback ignored":            {end: func(ctx context.Context, tx pgx.Tx) error { _ = tx.Rollback(ctx); return nil }},
		"Commit, then another error":  {end: func(ctx context.Context, tx pgx.Tx) error { _ = tx.Commit(ctx); return errors.New("other") }},
		"raw ROLLBACK":                {end: raw("ROLLBACK")},
		"raw ROLLBACK AND CHAIN":      {end: raw("ROLLBACK AND CHAIN")},
		"raw ROLLBACK; BEGIN":         {end: raw("ROLLBACK", "BEGIN")},
		"raw COMMIT":                  {end: raw("COMMIT"), commits: true},
		"raw COMMIT AND CHAIN":        {end: raw("COMMIT AND CHAIN"), commits: true},
		"raw COMMIT; BEGIN":           {end: raw("COMMIT", "BEGIN"), commits: true},
		"raw PREPARE TRANSACTION":     {end: raw("PREPARE TRANSACTION " + b.prepared(t))},
		"raw COMMIT in one statement": {end: raw("COMMIT; BEGIN; SELECT 1"), commits: true},
		"COMMIT through a nested Exec": {end: func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Conn().Exec(ctx, "COMMIT AND CHAIN")
			return err
		}, commits: true},
	}
	for name, test := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := idempotency.Do(t.Context(), b.client, params(name), func(ctx context.Context, tx pgx.Tx) (string, error) {
				if err := effect(ctx, tx, name); err != nil {
					return "", err
				}
				return name, test.end(ctx, tx)
			})
			if err == nil {
				t.Error("Do succeeded")
			}
			if !errors.Is(err, idempotency.ErrOwned) {
				t.Errorf("got %v, want ErrOwned", err)
			}
			if _, err := b.client.Get(t.Context(), params(name).Key); !errors.Is(err, idempotency.ErrNotFound) {
				t.Errorf("Get: %v, want ErrNotFound: no key may be recorded", err)
			}
			if n := b.effects(t, name); (n == 1) != test.commits {
				t.Errorf("%d effects, committed by raw SQL: %t", n, test.commits)
			}
			if held := b.pool.Stat().AcquiredConns(); held > 8 {
				t.Errorf("%d connections held", held)
			}
		})
	}
}

func TestEndingTheTransactionInsideDoTx(t *testing.T) {
	t.Parallel()
	b := newBench(t, pgtest.DB(t), nil, nil)
	for name, end := range map[string]func(context.Context, pgx.Tx) error{
		"Commit ignored":       func(ctx context.Context, tx pgx.Tx) error { _ = tx.Commit(ctx); return nil },
		"Rollback ignored":     func(ctx context.Context, tx pgx.Tx) error { _ = tx.Rollback(ctx); return nil },
		"raw COMMIT":           func(ctx context.Context, tx pgx.Tx) error { _, err := tx.Exec(ctx, "COMMIT"); return err },
		"raw COMMIT AND CHAIN": func(ctx context.Context, tx pgx.Tx) error { _, err := tx.Exec(ctx, "COMMIT AND CHAIN"); return err },
		"raw ROLLBACK":         func(ctx context.Context, tx pgx.Tx) error { _, err := tx.Exec(ctx, "ROLLBACK"); return err },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := pgx.BeginFunc(t.Context(), b.pool, func(tx pgx.Tx) error {
				_, err := idempotency.DoTx(t.Context(), b.client, tx, params(name), func(ctx context.Context, tx pgx.Tx) (string, error) {
					return name, errors.Join(effect(ctx, tx, name), end(ctx, tx))
				})
				if err == nil {
					t.Error("DoTx succeeded")
				}
				return nil // a caller that ignores the error and commits
			})
			if err == nil && !strings.HasPrefix(name, "raw ROLLBACK") {
				t.Error("the caller's transaction committed")
			}
			if _, err := b.client.Get(t.Context(), params(name).Key); !errors.Is(err, idempotency.ErrNotFound) || b.effects(t, name) != 0 {
				t.Errorf("Get: %v, %d effects; want ErrNotFound and none", err, b.effects(t, name))
			}
		})
	}
}

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
	b := newBench(t, pgtest.DB(t), nil, finalConfig())
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
				if err := effect(ctx, tx, name); err != nil {
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
				result, err := idempotency.Do(t.Context(), b.client, params(name), fn)
				check(err)
				if result.Replayed != (i == 1) {
					t.Errorf("call %d: Replayed is %t", i, result.Replayed)
				}
			}
			// The usual shape in a caller's transaction: return err means roll
			// back. A recorded error does not come that way.
			for range 2 {
				var answer error
				if err := pgx.BeginFunc(t.Context(), b.pool, func(tx pgx.Tx) error {
					result, err := idempotency.DoTx(t.Context(), b.client, tx, params(name+" tx"), fn)
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
			if runs != 2 || b.effects(t, name) != 0 {
				t.Errorf("%d runs for 2 keys, %d effects; want 2 and 0", runs, b.effects(t, name))
			}
		})
	}
}

func TestUnlistedFinalErrorRollsBackAndSaysSo(t *testing.T) {
	t.Parallel()
	b := newBench(t, pgtest.DB(t), nil, nil)
	fn := func(ctx context.Context, tx pgx.Tx) (string, error) {
		return "", errors.Join(effect(ctx, tx, "k"), idempotency.Final(&insufficientFundsError{}))
	}
	_, doErr := idempotency.Do(t.Context(), b.client, params("k"), fn)
	doTxErr := pgx.BeginFunc(t.Context(), b.pool, func(tx pgx.Tx) error {
		result, err := idempotency.DoTx(t.Context(), b.client, tx, params("k"), fn)
		if _, answerErr := result.Answer(); !errors.Is(answerErr, idempotency.ErrNoAnswer) {
			t.Errorf("Answer after an error: %v, want ErrNoAnswer", answerErr)
		}
		return err
	})
	for _, err := range []error{doErr, doTxErr} {
		var funds *insufficientFundsError
		if !errors.Is(err, idempotency.ErrFinalUnlisted) || errors.As(err, &funds) || !strings.Contains(err.Error(), `FinalType[*tests_test.insufficientFundsError]("code")`) {
			t.Errorf("got %v, want ErrFinalUnlisted that names the type, and not the error itself", err)
		}
	}
	if _, err := b.client.Get(t.Context(), params("k").Key); !errors.Is(err, idempotency.ErrNotFound) || b.effects(t, "k") != 0 {
		t.Errorf("Get: %v, %d effects; want ErrNotFound and none", err, b.effects(t, "k"))
	}
}

type chargeV1 struct{ Amount int }

func (chargeV1) ResultType() string { return "charge.v1" }

type renamedCharge struct{ Amount int }

func (*renamedCharge) ResultType() string { return "charge.v1" }

// Types whose names no record can have.
type (
	namedNUL     struct{}
	namedBadly   struct{}
	namedNothing struct{}
	namedTooLong struct{}
)

func (namedNUL) ResultType() string     { return "a\x00b" }
func (namedBadly) ResultType() string   { return "a\xffb" }
func (namedNothing) ResultType() string { return "" }
func (namedTooLong) ResultType() string { return strings.Repeat("x", 256) }

func doNothing[T any](t *testing.T, b *bench) error {
	t.Helper()
	_, err := idempotency.Do(t.Context(), b.client, params("a bad name"), func(context.Context, pgx.Tx) (result T, err error) {
		t.Errorf("the function of %T ran", result)
		return result, nil
	})
	return err
}

func TestResultTypes(t *testing.T) {
	t.Parallel()
	b := newBench(t, pgtest.DB(t), nil, nil)
	if _, err := idempotency.Do(t.Context(), b.client, params("k"), func(context.Context, pgx.Tx) (chargeV1, error) {
		return chargeV1{Amount: 7}, nil
	}); err != nil {
		t.Fatal(err)
	}

	t.Run("another type is refused", func(t *testing.T) {
		t.Parallel()
		_, err := idempotency.Do(t.Context(), b.client, params("k"), charge("k"))
		var typeErr *idempotency.ResultTypeError
		if !errors.As(err, &typeErr) || typeErr.Recorded != "json:charge.v1" || typeErr.Wanted != "json:string" {
			t.Errorf("got %v, want a ResultTypeError", err)
		}
	})
	t.Run("a name of its own survives renaming", func(t *testing.T) {
		t.Parallel()
		result, err := idempotency.Do(t.Context(), b.client, params("k"), func(context.Context, pgx.Tx) (renamedCharge, error) {
			return renamedCharge{}, errors.New("ran")
		})
		if err != nil || result.Value.Amount != 7 {
			t.Errorf("%+v, %v; want the recorded amount", result, err)
		}
	})
	t.Run("an interface is refused before anything runs", func(t *testing.T) {
		t.Parallel()
		_, err := idempotency.Do(t.Context(), b.client, params("any"), func(context.Context, pgx.Tx) (any, error) {
			t.Error("fn ran")
			return nil, nil
		})
		wantParamError(t, err, "T")
	})
	t.Run("a name that could not be recorded is refused before anything runs", func(t *testing.T) {
		t.Parallel()
		wantParamError(t, doNothing[namedNUL](t, b), "T")
		wantParamError(t, doNothing[namedBadly](t, b), "T")
		wantParamError(t, doNothing[namedNothing](t, b), "T")
		wantParamError(t, doNothing[*namedTooLong](t, b), "T")
	})
	t.Run("bytes and raw JSON are untouched", func(t *testing.T) {
		t.Parallel()
		raw := json.RawMessage(`{"b":1e400, "a":"\u0000", "a":2} `)
		for range 2 {
			result, err := idempotency.Do(t.Context(), b.client, params("raw"), func(context.Context, pgx.Tx) (json.RawMessage, error) { return raw, nil })
			if err != nil || string(result.Value) != string(raw) {
				t.Errorf("%q, %v; want %q", result.Value, err, raw)
			}
			binary, err := idempotency.Do(t.Context(), b.client, params("bytes"), func(context.Context, pgx.Tx) ([]byte, error) { return []byte{0, 0xff, '\n'}, nil })
			if err != nil || string(binary.Value) != "\x00\xff\n" {
				t.Errorf("%q, %v; want the bytes", binary.Value, err)
			}
		}
	})
	t.Run("the first answer is decoded from the record too", func(t *testing.T) {
		t.Parallel()
		type lossy struct {
			Kept    int
			dropped int
		}
		for range 2 {
			result, err := idempotency.Do(t.Context(), b.client, params("lossy"), func(context.Context, pgx.Tx) (lossy, error) { return lossy{1, 2}, nil })
			if err != nil || result.Value != (lossy{Kept: 1}) {
				t.Errorf("%+v, %v; want what a replay gives", result.Value, err)
			}
		}
	})
	t.Run("no result", func(t *testing.T) {
		t.Parallel()
		for i := range 2 {
			result, err := idempotency.Do(t.Context(), b.client, params("none"), idempotency.NoResult(func(ctx context.Context, tx pgx.Tx) error { return effect(ctx, tx, "none") }))
			if err != nil || result.Replayed != (i == 1) || result.Record.Response.Type != idempotency.TypeNone {
				t.Errorf("%+v, %v", result, err)
			}
		}
	})
}

func TestNestedDoOnTheSameKey(t *testing.T) {
	t.Parallel()
	b := newBench(t, pgtest.DB(t), nil, nil)
	_, err := idempotency.Do(t.Context(), b.client, params("k"), func(ctx context.Context, tx pgx.Tx) (string, error) {
		_, err := idempotency.Do(ctx, b.client, params("k"), charge("inner"))
		return "", err
	})
	if !errors.Is(err, idempotency.ErrNested) || b.effects(t, "inner") != 0 {
		t.Errorf("got %v, want ErrNested", err)
	}
}

// Also on the operation's own transaction, where the lock is the session's own,
// and with a context that does not tell.
func TestNestedBeginOnTheOperationsTransaction(t *testing.T) {
	t.Parallel()
	b := newBench(t, pgtest.DB(t), nil, nil)
	beginAgain := func(ctx context.Context, tx pgx.Tx) {
		if _, err := b.client.WithTx(tx).Begin(ctx, params("k")); !errors.Is(err, idempotency.ErrNested) {
			t.Errorf("Begin: %v, want ErrNested", err)
		}
		if _, err := idempotency.DoTx(ctx, b.client, tx, params("k"), charge("inner")); !errors.Is(err, idempotency.ErrNested) {
			t.Errorf("DoTx: %v, want ErrNested", err)
		}
		if err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
			_, err := b.client.WithTx(tx).Begin(ctx, params("k"))
			return err
		}); !errors.Is(err, idempotency.ErrNested) {
			t.Errorf("Begin in a savepoint: %v, want ErrNested", err)
		}
	}
	otherContext := t.Context()
	runs := 0
	_, err := idempotency.Do(t.Context(), b.client, params("k"), func(ctx context.Context, tx pgx.Tx) (string, error) {
		runs++
		beginAgain(ctx, tx)
		beginAgain(otherContext, tx) //nolint:contextcheck // The point of the test.
		_, err := idempotency.DoTx(ctx, b.client, tx, params("another key"), charge("another key"))
		return "k", err
	})
	if err != nil || runs != 1 || b.effects(t, "inner") != 0 || b.effects(t, "another key") != 1 {
		t.Errorf("%v after %d runs; want one run, and another key's operation in it", err, runs)
	}
}

type unreadable struct {
	Reason string
	Cause  error // encoding/json writes it and cannot read it back
}

func (*unreadable) Error() string { return "declined" }

func TestAnswerThatCannotBeReadBackRollsBack(t *testing.T) {
	t.Parallel()
	b := newBench(t, pgtest.DB(t), nil, &idempotency.Config{FinalErrors: []idempotency.FinalKind{idempotency.FinalType[*unreadable]("declined")}})
	answer := unreadable{Reason: "SECRET", Cause: errors.New("SECRET")}
	for name, fn := range map[string]func() (unreadable, error){
		"result":      func() (unreadable, error) { return answer, nil },
		"final error": func() (unreadable, error) { return unreadable{}, idempotency.Final(&answer) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := idempotency.Do(t.Context(), b.client, params(name), func(ctx context.Context, tx pgx.Tx) (unreadable, error) {
				if err := effect(ctx, tx, name); err != nil {
					return unreadable{}, err
				}
				return fn()
			})
			var typeErr *json.UnmarshalTypeError
			if !errors.As(err, &typeErr) || strings.Contains(err.Error(), "SECRET") {
				t.Errorf("got %v, want the codec's error without the value", err)
			}
			if _, err := b.client.Get(t.Context(), params(name).Key); !errors.Is(err, idempotency.ErrNotFound) || b.effects(t, name) != 0 {
				t.Errorf("Get: %v, %d effects; want ErrNotFound and none", err, b.effects(t, name))
			}
		})
	}
}

// The effect is committed and stays; the call must say so and must not record
// that it was rolled back.
func TestRawCommitBeforeAnError(t *testing.T) {
	t.Parallel()
	b := newBench(t, pgtest.DB(t), nil, finalConfig())
	for name, failure := range map[string]error{"error": errors.New("declined"), "final error": idempotency.Final(errClosed)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := idempotency.Do(t.Context(), b.client, params(name), func(ctx context.Context, tx pgx.Tx) (string, error) {
				if _, err := tx.Exec(ctx, `COMMIT`); err != nil {
					return "", err
				}
				return "", failure
			})
			if !errors.Is(err, idempotency.ErrOwned) || !errors.Is(err, txhelper.ErrEnded) {
				t.Errorf("got %v, want ErrOwned and ErrEnded", err)
			}
			if _, err := b.client.Get(t.Context(), params(name).Key); !errors.Is(err, idempotency.ErrNotFound) {
				t.Errorf("Get: %v, want ErrNotFound", err)
			}
		})
	}
}

func TestIgnoredSerializationFailureRunsAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t, pgtest.DB(t), nil, nil)
	runs := 0
	result, err := idempotency.Do(t.Context(), b.client, params("k"), func(ctx context.Context, tx pgx.Tx) (int, error) {
		if runs++; runs == 1 {
			_ = raise(ctx, tx, "40001")
			return runs, nil
		}
		return runs, effect(ctx, tx, "k")
	})
	if err != nil || result.Value != 2 || b.effects(t, "k") != 1 {
		t.Errorf("%+v, %v, %d effects; want the second run's answer and one effect", result, err, b.effects(t, "k"))
	}
}

func TestGoexitAndPanicFreeTheKey(t *testing.T) {
	t.Parallel()
	b := newBench(t, pgtest.DB(t), nil, nil)
	type reason struct{ why string }
	thrown := &reason{"test"}
	func() {
		defer func() {
			if recovered := recover(); recovered != any(thrown) {
				t.Errorf("recovered %v, want the very value", recovered)
			}
		}()
		_, _ = idempotency.Do(t.Context(), b.client, params("k"), func(ctx context.Context, tx pgx.Tx) (string, error) {
			if err := effect(ctx, tx, "k"); err != nil {
				return "", err
			}
			panic(thrown)
		})
	}()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = idempotency.Do(t.Context(), b.client, params("k"), func(ctx context.Context, tx pgx.Tx) (string, error) {
			_ = effect(ctx, tx, "k")
			runtime.Goexit()
			return "", nil
		})
	}()
	<-done
	p := params("k")
	p.Wait = idempotency.NoWait
	if result, err := idempotency.Do(t.Context(), b.client, p, charge("k")); err != nil || result.Replayed || b.effects(t, "k") != 1 {
		t.Errorf("%+v, %v, %d effects; want a first run", result, err, b.effects(t, "k"))
	}
	if held := b.pool.Stat().AcquiredConns(); held != 0 {
		t.Errorf("%d connections are still held", held)
	}
}

func TestCancelledCallerRollsBack(t *testing.T) {
	t.Parallel()
	b := newBench(t, pgtest.DB(t), nil, nil)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := idempotency.Do(ctx, b.client, params("k"), func(ctx context.Context, tx pgx.Tx) (string, error) {
		if err := effect(ctx, tx, "k"); err != nil {
			return "", err
		}
		cancel()
		return "", ctx.Err()
	})
	if !errors.Is(err, context.Canceled) || b.effects(t, "k") != 0 {
		t.Errorf("got %v, %d effects; want context.Canceled and none", err, b.effects(t, "k"))
	}

	// Once the work is done, cancellation does not make the commit ambiguous.
	ctx, cancel = context.WithCancel(t.Context())
	result, err := idempotency.Do(ctx, b.client, params("k"), func(ctx context.Context, tx pgx.Tx) (string, error) {
		defer cancel()
		return "k", effect(ctx, tx, "k")
	})
	if err != nil || result.Replayed || b.effects(t, "k") != 1 {
		t.Errorf("%+v, %v, %d effects; want the run to commit", result, err, b.effects(t, "k"))
	}
}

func wantParamError(t *testing.T, err error, field string) {
	t.Helper()
	var paramErr *idempotency.ParamError
	if !errors.As(err, &paramErr) || paramErr.Field != field || !errors.Is(err, idempotency.ErrInvalidParams) {
		t.Errorf("got %v, want a ParamError for %s", err, field)
	}
}

// No SQL may run: the store's database cannot be reached.
func TestBadInputIsRefusedBeforeAnySQL(t *testing.T) {
	t.Parallel()
	client, err := idempotency.NewClient(newStore(t, unusedPool(t), nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	good := params("k")
	for name, test := range map[string]struct {
		change func(*idempotency.Params)
		field  string
	}{
		"empty scope":         {func(p *idempotency.Params) { p.Key.Scope = "" }, "Key.Scope"},
		"long scope":          {func(p *idempotency.Params) { p.Key.Scope = strings.Repeat("x", 256) }, "Key.Scope"},
		"NUL in scope":        {func(p *idempotency.Params) { p.Key.Scope = "a\x00" }, "Key.Scope"},
		"empty id":            {func(p *idempotency.Params) { p.Key.ID = "" }, "Key.ID"},
		"long id":             {func(p *idempotency.Params) { p.Key.ID = strings.Repeat("é", 128) }, "Key.ID"},
		"NUL in id":           {func(p *idempotency.Params) { p.Key.ID = "\x00" }, "Key.ID"},
		"invalid UTF-8":       {func(p *idempotency.Params) { p.Key.ID = "\xff" }, "Key.ID"},
		"missing fingerprint": {func(p *idempotency.Params) { p.Fingerprint = idempotency.Fingerprint{} }, "Fingerprint"},
		"negative TTL":        {func(p *idempotency.Params) { p.TTL = -time.Second }, "TTL"},
		"TTL too short":       {func(p *idempotency.Params) { p.TTL = time.Microsecond - 1 }, "TTL"},
		"negative wait":       {func(p *idempotency.Params) { p.Wait = -time.Second }, "Wait"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := good
			test.change(&p)
			_, err := idempotency.Do(t.Context(), client, p, charge("k"))
			wantParamError(t, err, test.field)
			_, err = idempotency.DoTx(t.Context(), client, nil, p, charge("k"))
			wantParamError(t, err, test.field)
			_, err = client.WithTx(nil).Begin(t.Context(), p)
			wantParamError(t, err, test.field)
			if strings.HasPrefix(test.field, "Key") {
				_, err = client.Get(t.Context(), p.Key)
				wantParamError(t, err, test.field)
			}
		})
	}
	_, err = client.WithTx(nil).Begin(t.Context(), good)
	wantParamError(t, err, "tx")
	_, err = idempotency.Do[string](t.Context(), client, good, nil)
	wantParamError(t, err, "fn")
	_, err = client.WithTx(nil).Complete(t.Context(), nil, &idempotency.Response{Type: "bytes", Body: make([]byte, 1<<20+1)})
	wantParamError(t, err, "Response.Body")
	_, err = newStore(t, unusedPool(t), nil).Begin(t.Context(), &idempotency.BeginParams{Key: good.Key, Fingerprint: good.Fingerprint, TTL: time.Hour, Lease: -time.Second})
	wantParamError(t, err, "Lease")
	_, err = newStore(t, unusedPool(t), nil).Extend(t.Context(), nil, -time.Second)
	wantParamError(t, err, "Lease")
}

func TestResponseOverTheLimitRollsBack(t *testing.T) {
	t.Parallel()
	b := newBench(t, pgtest.DB(t), nil, nil)
	limit := idempotency.DefaultMaxResponseSize
	run := func(id string, size int) error {
		_, err := idempotency.Do(t.Context(), b.client, params(id), func(ctx context.Context, tx pgx.Tx) ([]byte, error) {
			return make([]byte, size), effect(ctx, tx, id)
		})
		return err
	}
	if err := run("at the limit", limit); err != nil {
		t.Errorf("a response of 1 MiB: %v", err)
	}
	wantParamError(t, run("over", limit+1), "Response.Body")
	if n := b.effects(t, "over"); n != 0 {
		t.Errorf("%d effects without a record", n)
	}
}

func TestCompleteWithoutAClaimCannotCommit(t *testing.T) {
	t.Parallel()
	b := newBench(t, pgtest.DB(t), nil, nil)
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
			p := params(rand.Text())
			outcome, err := b.store.Begin(t.Context(), &idempotency.BeginParams{Key: p.Key, Fingerprint: p.Fingerprint, TTL: time.Hour, Lease: time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			claims[i] = outcome.Claim
		}
		claims[0] = spoil(claims[0])
		return func(ctx context.Context, tx pgx.Tx, _ *idempotency.TxClient) error {
			_, err := b.store.WithTx(tx).(idempotency.BatchVerbs).CompleteMany(ctx, claims, []*idempotency.Response{response, response})
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
		"no claim id":   {complete(&idempotency.Claim{Key: params("no claim id").Key, TTL: time.Hour}), idempotency.ErrNotClaimed},
		"unknown claim": {complete(&idempotency.Claim{Key: params("unknown claim").Key, ID: idempotency.NewClaimID(), TTL: time.Hour}), idempotency.ErrClaimLost},
		"another's claim": {func(ctx context.Context, tx pgx.Tx, verbs *idempotency.TxClient) error {
			outcome, err := verbs.Begin(ctx, params("another's claim"))
			if err != nil {
				return err
			}
			outcome.Claim.ID = idempotency.NewClaimID()
			return complete(outcome.Claim)(ctx, tx, verbs)
		}, idempotency.ErrClaimLost},
		"twice": {func(ctx context.Context, tx pgx.Tx, verbs *idempotency.TxClient) error {
			outcome, err := verbs.Begin(ctx, params("twice"))
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
			outcome, err := b.client.WithTx(savepoint).Begin(ctx, params("savepoint"))
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
			tx, err := b.pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback(t.Context())
			if err := effect(t.Context(), tx, name); err != nil {
				t.Fatal(err)
			}
			if err := test.run(t.Context(), tx, b.client.WithTx(tx)); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if err := tx.Commit(t.Context()); err == nil {
				t.Error("the transaction committed")
			}
			if n := b.effects(t, name); n != 0 {
				t.Errorf("%d effects without a key", n)
			}
		})
	}
}

func TestErrorsHoldNoKeyAndNoBody(t *testing.T) {
	t.Parallel()
	b := newBench(t, pgtest.DB(t), nil, nil)
	secret := idempotency.Params{Key: idempotency.Key{Scope: "SECRET-scope", ID: "SECRET-id"}, Fingerprint: idempotency.FingerprintOf("SECRET-body")}
	secretBody := func(context.Context, pgx.Tx) (string, error) { return "SECRET-answer", nil }
	result, err := idempotency.Do(t.Context(), b.client, secret, secretBody)
	if err != nil {
		t.Fatal(err)
	}
	other := secret
	other.Fingerprint = idempotency.FingerprintOf("SECRET-other")
	_, mismatch := idempotency.Do(t.Context(), b.client, other, secretBody)
	if !errors.Is(mismatch, idempotency.ErrFingerprintMismatch) {
		t.Errorf("got %v, want ErrFingerprintMismatch", mismatch)
	}
	_, typeErr := idempotency.Do(t.Context(), b.client, secret, func(context.Context, pgx.Tx) (int, error) { return 0, nil })
	missing := secret.Key
	missing.ID += "-missing"
	_, notFound := b.client.Get(t.Context(), missing)
	for _, printed := range []any{mismatch, typeErr, notFound, secret, secret.Key, result.Record.Key, *result.Record.Response, result.Record.Fingerprint} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
			if text := fmt.Sprintf(verb, printed); strings.Contains(text, "SECRET") {
				t.Errorf("%s of %T prints %s", verb, printed, text)
			}
		}
	}
	for _, logged := range []any{mismatch, typeErr, notFound, secret, secret.Key, result.Record, result} {
		var log bytes.Buffer
		slog.New(slog.NewJSONHandler(&log, nil)).Info("test", "it", logged, "inside", struct{ It any }{logged})
		text := strings.ReplaceAll(log.String(), `"Value":"SECRET-answer"`, "") // which is the caller's own
		if strings.Contains(text, "SECRET") || strings.Contains(text, base64.StdEncoding.EncodeToString(result.Record.Response.Body)) {
			t.Errorf("the JSON log of %T is %s", logged, text)
		}
	}
}

// Mistakes that must not compile, each beside its corrected form that must.
func TestMistakesThatDoNotCompile(t *testing.T) {
	t.Parallel()
	const program = `package main

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
)

func use(...any) {}

func try(ctx context.Context, client *idempotency.Client[pgx.Tx], tx pgx.Tx, params idempotency.Params) {
	use(pgxstore.New, %s)
}

func fn(context.Context, pgx.Tx) (int, error) { return 0, nil }

func main() { use(fn); try(nil, nil, nil, idempotency.Params{}) }
`
	compile := func(t *testing.T, expression string) (string, error) {
		t.Helper()
		// Inside the module, so that its requirements and replacements apply,
		// and in testdata, which package patterns leave out.
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		dir, err := os.MkdirTemp("testdata", "compile-") //nolint:usetesting // t.TempDir is outside of the module.
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
		})
		if err := os.WriteFile(filepath.Join(dir, "main.go"), fmt.Appendf(nil, program, expression), 0o600); err != nil {
			t.Fatal(err)
		}
		output, err := exec.CommandContext(t.Context(), "go", "vet", "./"+dir).CombinedOutput()
		return string(output), err
	}
	for name, test := range map[string]struct{ wrong, message, right string }{
		"Begin without WithTx":                 {`client.Begin`, "client.Begin undefined", `client.WithTx(tx).Begin`},
		"Complete without WithTx":              {`client.Complete`, "client.Complete undefined", `client.WithTx(tx).Complete`},
		"value of DoTx without Answer":         {`func() any { r, _ := idempotency.DoTx(ctx, client, tx, params, fn); return r.Value }()`, "r.Value undefined", `func() any { r, _ := idempotency.DoTx(ctx, client, tx, params, fn); a, _ := r.Answer(); return a.Value }()`},
		"lease verbs in a transaction":         {`client.WithTx(tx).Extend`, "undefined", `client.WithTx(tx).Get`},
		"a function that does not take the tx": {`func() any { r, _ := idempotency.Do(ctx, client, params, func(context.Context) (int, error) { return 0, nil }); return r }()`, "does not match", `func() any { r, _ := idempotency.Do(ctx, client, params, fn); return r }()`},
		"a fingerprint made by hand":           {`idempotency.Fingerprint("abc")`, "cannot convert", `idempotency.FingerprintOf("abc")`},
		"DoTx with the pool instead of the tx": {`func() any { var db pgxstore.DB; r, _ := idempotency.DoTx(ctx, client, db, params, fn); return r }()`, "does not match", `func() any { r, _ := idempotency.DoTx(ctx, client, tx, params, fn); return r }()`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if output, err := compile(t, test.right); err != nil {
				t.Fatalf("the corrected form does not compile:\n%s", output)
			}
			if output, err := compile(t, test.wrong); err == nil || !strings.Contains(output, test.message) {
				t.Errorf("got %v, want a message with %q:\n%s", err, test.message, output)
			}
		})
	}
}

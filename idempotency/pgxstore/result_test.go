package pgxstore_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

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

func (namedNUL) ResultType() string { return "a\x00b" }

func doNothing[T any](t *testing.T, b *bench.Bench) error {
	t.Helper()
	_, err := idempotency.Do(t.Context(), b.Client, bench.Params("a bad name"), func(context.Context, pgx.Tx) (result T, err error) {
		t.Errorf("the function of %T ran", result)
		return result, nil
	})
	return err
}

func TestResultTypes(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	if _, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), func(context.Context, pgx.Tx) (chargeV1, error) {
		return chargeV1{Amount: 7}, nil
	}); err != nil {
		t.Fatal(err)
	}

	t.Run("another type is refused", func(t *testing.T) {
		t.Parallel()
		_, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), bench.Charge("k"))
		var typeErr *idempotency.ResultTypeError
		if !errors.As(err, &typeErr) || typeErr.Recorded != "json:charge.v1" || typeErr.Wanted != "json:string" {
			t.Errorf("got %v, want a ResultTypeError", err)
		}
	})
	t.Run("a name of its own survives renaming", func(t *testing.T) {
		t.Parallel()
		result, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), func(context.Context, pgx.Tx) (renamedCharge, error) {
			return renamedCharge{}, errors.New("ran")
		})
		if err != nil || result.Value.Amount != 7 {
			t.Errorf("%+v, %v; want the recorded amount", result, err)
		}
	})
	t.Run("an interface is refused before anything runs", func(t *testing.T) {
		t.Parallel()
		_, err := idempotency.Do(t.Context(), b.Client, bench.Params("any"), func(context.Context, pgx.Tx) (any, error) {
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
			result, err := idempotency.Do(t.Context(), b.Client, bench.Params("raw"), func(context.Context, pgx.Tx) (json.RawMessage, error) { return raw, nil })
			if err != nil || string(result.Value) != string(raw) {
				t.Errorf("%q, %v; want %q", result.Value, err, raw)
			}
			binary, err := idempotency.Do(t.Context(), b.Client, bench.Params("bytes"), func(context.Context, pgx.Tx) ([]byte, error) { return []byte{0, 0xff, '\n'}, nil })
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
			result, err := idempotency.Do(t.Context(), b.Client, bench.Params("lossy"), func(context.Context, pgx.Tx) (lossy, error) { return lossy{1, 2}, nil })
			if err != nil || result.Value != (lossy{Kept: 1}) {
				t.Errorf("%+v, %v; want what a replay gives", result.Value, err)
			}
		}
	})
	t.Run("no result", func(t *testing.T) {
		t.Parallel()
		for i := range 2 {
			result, err := idempotency.Do(t.Context(), b.Client, bench.Params("none"), idempotency.NoResult(func(ctx context.Context, tx pgx.Tx) error { return bench.Effect(ctx, tx, "none") }))
			if err != nil || result.Replayed != (i == 1) || result.Record.Response.Type != idempotency.TypeNone {
				t.Errorf("%+v, %v", result, err)
			}
		}
	})
}

type unreadable struct {
	Reason string
	Cause  error // encoding/json writes it and cannot read it back
}

func (*unreadable) Error() string { return "declined" }

func TestAnswerThatCannotBeReadBackRollsBack(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, &idempotency.Config{FinalErrors: []idempotency.FinalKind{idempotency.FinalType[*unreadable]("declined")}})
	answer := unreadable{Reason: "SECRET", Cause: errors.New("SECRET")}
	for name, fn := range map[string]func() (unreadable, error){
		"result":      func() (unreadable, error) { return answer, nil },
		"final error": func() (unreadable, error) { return unreadable{}, idempotency.Final(&answer) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := idempotency.Do(t.Context(), b.Client, bench.Params(name), func(ctx context.Context, tx pgx.Tx) (unreadable, error) {
				if err := bench.Effect(ctx, tx, name); err != nil {
					return unreadable{}, err
				}
				return fn()
			})
			var typeErr *json.UnmarshalTypeError
			if !errors.As(err, &typeErr) || strings.Contains(err.Error(), "SECRET") {
				t.Errorf("got %v, want the codec's error without the value", err)
			}
			if _, err := b.Client.Get(t.Context(), bench.Params(name).Key); !errors.Is(err, idempotency.ErrNotFound) || b.Effects(t, name) != 0 {
				t.Errorf("Get: %v, %d effects; want ErrNotFound and none", err, b.Effects(t, name))
			}
		})
	}
}

func TestResponseOverTheLimitRollsBack(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	limit := idempotency.DefaultMaxResponseSize
	run := func(id string, size int) error {
		_, err := idempotency.Do(t.Context(), b.Client, bench.Params(id), func(ctx context.Context, tx pgx.Tx) ([]byte, error) {
			return make([]byte, size), bench.Effect(ctx, tx, id)
		})
		return err
	}
	if err := run("at the limit", limit); err != nil {
		t.Errorf("a response of 1 MiB: %v", err)
	}
	wantParamError(t, run("over", limit+1), "Response.Body")
	if n := b.Effects(t, "over"); n != 0 {
		t.Errorf("%d effects without a record", n)
	}
}

func (namedBadly) ResultType() string { return "a\xffb" }

func (namedNothing) ResultType() string { return "" }

func (namedTooLong) ResultType() string { return strings.Repeat("x", 256) }

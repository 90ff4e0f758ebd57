package idempotency_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

var (
	errBusiness = errors.New("business rule")
	errInfra    = errors.New("connection lost")
)

// lossy has what encoding/json does not see in its text.
type lossy struct{ reason string }

func (e *lossy) Error() string { return "refused: " + e.reason }

// lossyValue is lossy without a pointer.
type lossyValue struct {
	Code   int
	reason string
}

func (e lossyValue) Error() string { return fmt.Sprintf("refused (%d): %s", e.Code, e.reason) }

// careful has the same field and sees to it itself.
type careful struct{ reason string }

func (e *careful) Error() string                      { return "refused: " + e.reason }
func (e *careful) MarshalJSON() ([]byte, error)       { return json.Marshal(e.reason) }
func (e *careful) UnmarshalJSON(encoded []byte) error { return json.Unmarshal(encoded, &e.reason) }

// hollow is decoded into a nil pointer, on which its method panics.
type hollow struct{ Reason string }

func (e *hollow) Error() string                { return "refused: " + e.Reason }
func (e *hollow) MarshalJSON() ([]byte, error) { return []byte("null"), nil }

// failWith returns what two calls of Do return whose function fails with err,
// and how often it ran.
func failWith(t *testing.T, err error, kinds ...idempotency.FinalKind) (runs int, first, second error) {
	t.Helper()
	client, _ := newClient(t, &idempotency.Config{FinalErrors: kinds})
	do := func() error {
		_, err := idempotency.Do(t.Context(), client, testParams("k"), func(_ context.Context, tx *memstore.Tx) (int, error) {
			runs++
			tx.OnCommit(func() { t.Error("the function's writes were committed") })
			return 0, err
		})
		return err
	}
	first, second = do(), do()
	return runs, first, second
}

func TestFinalErrorThatItsCodecChanges(t *testing.T) {
	t.Parallel()
	kinds := []idempotency.FinalKind{
		idempotency.FinalType[*lossy]("lossy"), idempotency.FinalType[lossyValue]("value"),
		idempotency.FinalType[*careful]("careful"), idempotency.FinalType[*hollow]("hollow"),
	}
	for name, err := range map[string]error{
		"*idempotency_test.lossy":     &lossy{"SECRET"},
		"idempotency_test.lossyValue": fmt.Errorf("charge: %w", lossyValue{7, "SECRET"}),
		"*idempotency_test.hollow":    &hollow{"SECRET"},
	} {
		runs, first, second := failWith(t, idempotency.Final(err), kinds...)
		for _, got := range []error{first, second} {
			if got == nil || errors.As(got, new(*idempotency.FinalError)) || !strings.Contains(got.Error(), name+" changes") || strings.Contains(got.Error(), "SECRET") {
				t.Errorf("%s: %v; want an error that says what is wrong with the type, and not its text", name, got)
			}
		}
		if runs != 2 {
			t.Errorf("%s: %d runs of 2: something was recorded", name, runs)
		}
	}
	runs, first, second := failWith(t, idempotency.Final(&careful{"balance"}), kinds...)
	for _, got := range []error{first, second} {
		if as, ok := errors.AsType[*careful](got); !ok || as.Error() != "refused: balance" || runs != 1 {
			t.Errorf("%v after %d runs; want the error with its reason, recorded once", got, runs)
		}
	}
}

// Final decides only for what it was put around.
func TestFinalJoinedWithAnotherError(t *testing.T) {
	t.Parallel()
	final := idempotency.Final(errBusiness)
	for name, test := range map[string]struct {
		err      error
		recorded bool
	}{
		"alone":                        {final, true},
		"wrapped":                      {fmt.Errorf("charge: %w", final), true},
		"joined with nothing":          {errors.Join(nil, final, nil), true},
		"around a join":                {idempotency.Final(errors.Join(errInfra, errBusiness)), true},
		"joined with a final error":    {errors.Join(fmt.Errorf("charge: %w", final), idempotency.Final(errInfra)), true},
		"joined":                       {errors.Join(final, errInfra), false},
		"joined behind":                {errors.Join(errInfra, final), false},
		"joined and wrapped":           {fmt.Errorf("charge: %w", errors.Join(errInfra, final)), false},
		"wrapped twice":                {fmt.Errorf("%w: %w", errInfra, final), false},
		"joined with a join of finals": {errors.Join(errors.Join(final, final), errInfra), false},
	} {
		runs, first, second := failWith(t, test.err, idempotency.FinalValue("business", errBusiness))
		for _, got := range []error{first, second} {
			if test.recorded {
				if recorded, ok := errors.AsType[*idempotency.FinalError](got); !ok || recorded.Code != "business" || runs != 1 {
					t.Errorf("%s: %v after %d runs; want the business error, recorded once", name, got, runs)
				}
				continue
			}
			if errors.As(got, new(*idempotency.FinalError)) || !errors.Is(got, errInfra) || !errors.Is(got, errBusiness) || runs != 2 {
				t.Errorf("%s: %v after %d runs; want both errors as they are, and nothing recorded", name, got, runs)
			}
		}
	}
}

// Whoever asks for the business error must not take "not recorded" for it.
func TestUnlistedFinalErrorSaysWhatToList(t *testing.T) {
	t.Parallel()
	funds := &InsufficientFundsError{Balance: 7}
	const ofType = `idempotency.FinalType[*idempotency_test.InsufficientFundsError]("code")`
	const ofValue = `idempotency.FinalValue("code", err)`
	for name, test := range map[string]struct {
		err  error
		want string
	}{
		"type":              {funds, ofType},
		"wrapped type":      {fmt.Errorf("charge: %w", funds), ofType},
		"marked type":       {idempotency.Final(fmt.Errorf("charge: %w", idempotency.Final(funds))), ofType},
		"joined type":       {errors.Join(errInfra, fmt.Errorf("charge: %w", funds)), ofType},
		"value type":        {lossyValue{}, `idempotency.FinalType[idempotency_test.lossyValue]("code")`},
		"value":             {errBusiness, ofValue},
		"wrapped value":     {fmt.Errorf("charge: %w", errBusiness), ofValue},
		"joined value":      {errors.Join(errBusiness, errInfra), ofValue},
		"text with a value": {fmt.Errorf("%w and %w", errBusiness, errInfra), ofValue},
	} {
		runs, first, _ := failWith(t, idempotency.Final(test.err))
		if !errors.Is(first, idempotency.ErrFinalUnlisted) || !strings.Contains(first.Error(), test.want) || !strings.Contains(first.Error(), fmt.Sprintf("%T", test.err)) || runs != 2 {
			t.Errorf("%s: %v after %d runs; want ErrFinalUnlisted with %s", name, first, runs, test.want)
		}
		if errors.Is(first, test.err) || errors.Is(first, errBusiness) || errors.Is(first, errInfra) || errors.As(first, new(*InsufficientFundsError)) {
			t.Errorf("%s: %v is the business error, too", name, first)
		}
	}
}

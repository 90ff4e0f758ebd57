// Package property_test checks what must hold for every value, with values that
// rapid draws.
package property_test

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

// charge is a result with every sort of field that JSON changes: a nil that
// becomes empty, a time that loses its zone, text that is not UTF-8.
type charge struct {
	ID       string
	Amount   int64
	Rate     float32
	Tags     []string
	Raw      []byte
	Counts   map[string]uint64
	ByNumber map[int8][2]bool
	Parent   *charge
	Took     time.Duration
	hidden   int
	Ignored  string `json:"-"`
	Omitted  []int  `json:",omitempty"`
}

// refused is a final error with fields.
type refused struct{ Because charge }

func (r refused) Error() string { return "refused" }

func genCharge() *rapid.Generator[charge] {
	return rapid.Custom(func(t *rapid.T) charge {
		drawn := charge{
			ID:       rapid.String().Draw(t, "id"),
			Amount:   rapid.Int64().Draw(t, "amount"),
			Rate:     rapid.Float32().Draw(t, "rate"),
			Tags:     rapid.SliceOfN(rapid.String(), -1, 3).Draw(t, "tags"),
			Raw:      rapid.SliceOfN(rapid.Byte(), -1, 8).Draw(t, "raw"),
			Counts:   rapid.MapOfN(rapid.String(), rapid.Uint64(), -1, 3).Draw(t, "counts"),
			ByNumber: rapid.MapOfN(rapid.Int8(), rapid.Just([2]bool{true, false}), -1, 3).Draw(t, "by number"),
			Took:     time.Duration(rapid.Int64().Draw(t, "took")),
			hidden:   rapid.Int().Draw(t, "hidden"),
			Ignored:  rapid.String().Draw(t, "ignored"),
			Omitted:  rapid.SliceOfN(rapid.Int(), -1, 2).Draw(t, "omitted"),
		}
		if rapid.Bool().Draw(t, "has parent") {
			drawn.Parent = &charge{ID: string(rapid.SliceOfN(rapid.Byte(), 1, 4).Draw(t, "no text"))}
		}
		return drawn
	})
}

// The first caller gets what every later one gets, be it what JSON made of the
// result and not quite what the function returned.
func TestFirstAnswerIsTheReplayedOne(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		client, err := idempotency.NewClient(memstore.New[*memstore.Tx](nil), &idempotency.Config{
			FinalErrors: []idempotency.FinalKind{idempotency.FinalType[refused]("refused")},
		})
		if err != nil {
			t.Fatal(err)
		}
		value, final := genCharge().Draw(t, "value"), rapid.Bool().Draw(t, "final")
		params := idempotency.Params{Key: idempotency.Key{Scope: "property", ID: "k"}, Fingerprint: idempotency.NoFingerprint}
		var results [3]idempotency.Result[charge]
		var finals [3]*idempotency.FinalError
		for i := range results {
			results[i], err = idempotency.Do(t.Context(), client, params, func(context.Context, *memstore.Tx) (charge, error) {
				if i > 0 {
					t.Fatal("it ran again")
				}
				if final {
					return charge{}, idempotency.Final(refused{value})
				}
				return value, nil
			})
			finals[i], _ = errors.AsType[*idempotency.FinalError](err)
			if (err != nil) != final || (finals[i] != nil) != final || results[i].Replayed != (i > 0) {
				t.Fatalf("call %d: replayed is %t, error is %v", i, results[i].Replayed, err)
			}
			if !reflect.DeepEqual(results[i].Value, results[0].Value) || !reflect.DeepEqual(finals[i], finals[0]) {
				t.Fatalf("first %+v, %+v; call %d got %+v, %+v", results[0].Value, finals[0], i, results[i].Value, finals[i])
			}
		}
	})
}

// Two lists of parts have one fingerprint only if they are one list. The parts
// are few and short, so that lists which are almost the same come up often.
func TestFingerprintsTellListsApart(t *testing.T) {
	t.Parallel()
	part := rapid.StringOfN(rapid.SampledFrom([]rune("\x00\x01ab")), -1, 9, -1)
	rapid.Check(t, func(t *rapid.T) {
		a := rapid.SliceOfN(part, 0, 4).Draw(t, "a")
		b := slices.Clone(a)
		switch rapid.SampledFrom([]string{"move", "join", "drop", "other"}).Draw(t, "change") {
		case "move": // the start of a part to the end of the one before
			if len(b) > 1 && b[1] != "" {
				b[0], b[1] = b[0]+b[1][:1], b[1][1:]
			}
		case "join":
			if len(b) > 1 {
				b = append([]string{b[0] + b[1]}, b[2:]...)
			}
		case "drop":
			b = b[:len(b)/2]
		default:
			b = rapid.SliceOfN(part, 0, 4).Draw(t, "b")
		}
		one, other := idempotency.FingerprintOf(a...), idempotency.FingerprintOf(b...)
		if same := slices.Equal(a, b); one == other != same || one.Matches(other) != same {
			t.Fatalf("%q and %q: equal is %t, matches is %t", a, b, one == other, one.Matches(other))
		}
	})
}

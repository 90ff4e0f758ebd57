package idempotency_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"testing"
	"unicode/utf8"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

// declined is a final error with fields.
type declined struct {
	Text   string
	Bytes  []byte
	Number float64
	Any    any
}

func (d *declined) Error() string { return "declined" }

// FuzzResult checks that the first answer and its replay are one, or that the
// first call records nothing.
func FuzzResult(f *testing.F) {
	f.Add([]byte(`{"a": [1e400, -0.0, "\ud800"], "a": null}`), "\xff\x00<>&\u2028", 1.5)
	f.Add([]byte(nil), "", 0.0)
	f.Add([]byte("null"), "null", -1.0)
	f.Fuzz(func(t *testing.T, data []byte, text string, number float64) {
		client, _ := newClient(t, &idempotency.Config{FinalErrors: []idempotency.FinalKind{idempotency.FinalType[*declined]("declined")}})
		if len(data) == 0 {
			data = nil // the fuzzer does not keep the two apart
		}
		for name, value := range map[string][]byte{"bytes": data, "nil": nil, "empty": {}} {
			first := sameTwice(t, client, "bytes "+name, value, nil)
			if !bytes.Equal(first, value) || (first == nil) != (value == nil) {
				t.Errorf("%s came back as %#v", name, first)
			}
			raw := sameTwice(t, client, "raw "+name, json.RawMessage(value), nil)
			if !bytes.Equal(raw, value) || (raw == nil) != (value == nil) {
				t.Errorf("raw %s came back as %#v", name, raw)
			}
		}
		sameTwice(t, client, "text", text, nil)
		sameTwice(t, client, "number", number, nil)
		sameTwice(t, client, "none", idempotency.None{}, nil)
		var wrapped struct{ Any any }
		if json.Unmarshal(data, &wrapped.Any) == nil {
			sameTwice(t, client, "any", wrapped, nil)
			sameTwice(t, client, "pointer", &wrapped, nil)
			sameTwice(t, client, "map", map[string]struct{ Any any }{text: wrapped}, nil)
		}
		sameTwice(t, client, "embedded", struct{ Raw json.RawMessage }{data}, nil)
		sameTwice(t, client, "final", 0, idempotency.Final(&declined{text, data, number, wrapped.Any}))
		_, err := idempotency.Do(t.Context(), client, testParams("final"), func(context.Context, *memstore.Tx) (int, error) { return 0, nil })
		if got, ok := errors.AsType[*declined](err); ok && (!bytes.Equal(got.Bytes, data) || got.Number != number || utf8.ValidString(text) && got.Text != text) {
			t.Errorf("a final error came back as %+v", got)
		}
	})
}

// sameTwice calls Do twice, with an operation that returns value and err, and
// returns what the first call got.
func sameTwice[T any](t *testing.T, client *idempotency.Client[*memstore.Tx], id string, value T, err error) T {
	t.Helper()
	runs := 0
	do := func() (idempotency.Result[T], error) {
		return idempotency.Do(t.Context(), client, testParams(id), func(context.Context, *memstore.Tx) (T, error) {
			runs++
			return value, err
		})
	}
	first, firstErr := do()
	again, againErr := do()
	firstFinal, isFinal := errors.AsType[*idempotency.FinalError](firstErr)
	if firstErr != nil && !isFinal {
		if runs != 2 || first.Record != nil || againErr == nil || againErr.Error() != firstErr.Error() {
			t.Errorf("%s: %v, then %v after %d runs; want the same again", id, firstErr, againErr, runs)
		}
		return first.Value
	}
	againFinal, _ := errors.AsType[*idempotency.FinalError](againErr)
	if runs != 1 || first.Replayed || !again.Replayed {
		t.Errorf("%s: %d runs, replayed %t, then %t", id, runs, first.Replayed, again.Replayed)
	}
	if !reflect.DeepEqual(first.Value, again.Value) || !reflect.DeepEqual(firstFinal, againFinal) || (againErr == nil) != (firstErr == nil) {
		t.Errorf("%s: %#v, %v, then %#v, %v", id, first.Value, firstErr, again.Value, againErr)
	}
	return first.Value
}

package idempotency_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/samecommit/samecommit/idempotency"
)

func TestKeyPrintsAHash(t *testing.T) {
	t.Parallel()
	key := idempotency.Key{Scope: "SECRET-scope", ID: "SECRET-id"}
	if got, want := key.String(), fmt.Sprint(key); got != want || !strings.HasPrefix(got, "key:") || len(got) != len("key:")+12 {
		t.Errorf("String() = %q, Sprint = %q; want both \"key:\" and 12 hexadecimal digits", got, want)
	}
	holders := []any{
		key, &key,
		idempotency.Params{Key: key},
		idempotency.BeginParams{Key: key},
		idempotency.Record{Key: key},
		idempotency.Claim{Key: key},
		&idempotency.KeyError{Key: key, Err: idempotency.ErrClaimLost},
		&idempotency.InProgressError{Key: key, RetryAfter: 1},
	}
	for _, holder := range holders {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			if text := fmt.Sprintf(verb, holder); strings.Contains(text, "SECRET") || strings.Contains(text, fmt.Sprintf("%x", "SECRET")) {
				t.Errorf("%s of %T prints %s", verb, holder, text)
			}
		}
	}
	var log bytes.Buffer
	logger := slog.New(slog.NewJSONHandler(&log, nil))
	textLogger := slog.New(slog.NewTextHandler(&log, nil))
	for _, holder := range []any{
		key,
		idempotency.Params{Key: key, Fingerprint: idempotency.NoFingerprint},
		&idempotency.Record{Key: key}, &idempotency.Claim{Key: key},
		&idempotency.Outcome{Record: &idempotency.Record{Key: key}, Claim: &idempotency.Claim{Key: key}},
		idempotency.Result[string]{Value: "SECRET", Record: &idempotency.Record{Key: key}},
		&idempotency.KeyError{Key: key, Err: idempotency.ErrClaimLost},
		idempotency.Response{Type: "bytes", Body: []byte("SECRET")},
		&idempotency.Response{Type: "bytes", Body: []byte("SECRET")},
	} {
		logger.Info("test", "value", holder)
		textLogger.Info("test", "value", holder)
	}
	if strings.Contains(log.String(), "SECRET") {
		t.Errorf("slog prints the key or the body:\n%s", log.String())
	}
}

func TestKeyHashTellsKeysApart(t *testing.T) {
	t.Parallel()
	a := idempotency.Key{Scope: "a", ID: "bc"}
	b := idempotency.Key{Scope: "ab", ID: "c"}
	if a.String() == b.String() {
		t.Error("(a, bc) and (ab, c) print the same hash")
	}
}

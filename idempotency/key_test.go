package idempotency_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/samecommit/samecommit/idempotency"
)

func TestKeyPrintsAHash(t *testing.T) {
	t.Parallel()
	key := idempotency.Key{Scope: "SECRET-scope", ID: "SECRET-id"}
	if got, want := key.String(), fmt.Sprint(key); got != want || !strings.HasPrefix(got, "key:") || len(got) != len("key:")+16 {
		t.Errorf("String() = %q, Sprint = %q; want both \"key:\" and 16 hexadecimal digits", got, want)
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

// The digits in a log are those of the advisory lock, so the digest is pinned.
func TestKeyPrintsItsDigest(t *testing.T) {
	t.Parallel()
	key := idempotency.Key{Scope: "a", ID: "bc"}
	want := sha256.Sum256([]byte("\x00\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x00\x00\x00\x00\x00\x02bc"))
	if got := key.Digest(); got != want {
		t.Errorf("Digest() = %x, want %x", got, want)
	}
	if got := key.String(); got != fmt.Sprintf("key:%x", want[:8]) {
		t.Errorf("String() = %q, want the first eight bytes of %x", got, want)
	}
}

// Every call of a store asks for it.
func TestKeyDigestDoesNotAllocate(t *testing.T) { //nolint:paralleltest // AllocsPerRun counts for the whole process.
	key := idempotency.Key{Scope: strings.Repeat("s", idempotency.MaxKeyLength), ID: strings.Repeat("i", idempotency.MaxKeyLength)}
	if allocated := testing.AllocsPerRun(100, func() { _ = key.Digest() }); allocated != 0 {
		t.Errorf("%v allocations, want none", allocated)
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

var (
	keyHash      = regexp.MustCompile(`^key:[0-9a-f]{16}$`)
	keyComplaint = regexp.MustCompile(`^idempotency: invalid parameter: Key\.(Scope|ID) (is empty|has \d+ bytes; the limit is 255|is not valid UTF-8|contains a NUL byte)$`)
)

// Whatever the key is, it is judged by the rules that stores rely on, and no way
// to print it prints its text.
func FuzzKey(f *testing.F) {
	f.Add("tenant-7/charge", "3f1c", "tenant-7/charge3", "f1c")
	f.Add("", "\x00", "\xff", strings.Repeat("i", 256))
	f.Fuzz(func(t *testing.T, scope, id, otherScope, otherID string) {
		key, other := idempotency.Key{Scope: scope, ID: id}, idempotency.Key{Scope: otherScope, ID: otherID}
		good := func(part string) bool {
			return part != "" && len(part) <= 255 && utf8.ValidString(part) && !strings.Contains(part, "\x00")
		}
		keys := []idempotency.Key{key, other}
		for _, part := range []string{scope, id, otherScope, otherID} {
			keys = append(keys, idempotency.Key{Scope: part, ID: "id"}, idempotency.Key{Scope: "scope", ID: part})
		}
		for _, key := range keys {
			err := key.Validate()
			if (err == nil) != (good(key.Scope) && good(key.ID)) {
				t.Errorf("Validate of (%q, %q): %v", key.Scope, key.ID, err)
			}
			if err != nil && !keyComplaint.MatchString(err.Error()) {
				t.Errorf("Validate says %q", err)
			}
		}
		hash := key.String()
		if !keyHash.MatchString(hash) || hash == other.String() != (key == other) {
			t.Errorf("(%q, %q) and (%q, %q) print %s and %s", scope, id, otherScope, otherID, hash, other)
		}
		holder := struct{ Key idempotency.Key }{key}
		for verb, want := range map[string]string{"%v": "{" + hash + "}", "%+v": "{Key:" + hash + "}", "%s": "{" + hash + "}", "%q": "{" + hash + "}", "%x": "{" + hash + "}", "%d": "{" + hash + "}"} {
			if text := fmt.Sprintf(verb, holder); text != want {
				t.Errorf("%s prints %s; want %s", verb, text, want)
			}
		}
		inError := &idempotency.KeyError{Key: key, Err: idempotency.ErrClaimLost}
		if want := fmt.Sprintf("%v (%s)", idempotency.ErrClaimLost, hash); inError.Error() != want {
			t.Errorf("an error prints %s; want %s", inError, want)
		}
		if logged := key.LogValue().String(); logged != hash {
			t.Errorf("slog gets %s; want %s", logged, hash)
		}
	})
}

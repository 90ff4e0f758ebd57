package idempotency_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/samecommit/samecommit/idempotency"
)

func TestFingerprintOf(t *testing.T) {
	t.Parallel()
	got := idempotency.FingerprintOf("a", "bc").Bytes()
	sum := sha256.Sum256([]byte("\x00\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x00\x00\x00\x00\x00\x02bc"))
	if want := append([]byte{1}, sum[:]...); !bytes.Equal(got, want) {
		t.Errorf("FingerprintOf(a, bc) = %x, want %x", got, want)
	}
	if idempotency.FingerprintOf([]byte("a"), []byte("bc")) != idempotency.FingerprintOf("a", "bc") {
		t.Error("bytes and strings with the same text differ")
	}
	seen := map[idempotency.Fingerprint][]string{}
	for _, parts := range [][]string{{"a", "bc"}, {"ab", "c"}, {"abc"}, {"", "abc"}, {"abc", ""}, {""}, {"", ""}, {}} {
		fingerprint := idempotency.FingerprintOf(parts...)
		if other, ok := seen[fingerprint]; ok {
			t.Errorf("%q and %q have one fingerprint", parts, other)
		}
		seen[fingerprint] = parts
	}
}

func FuzzFingerprintIsInjective(f *testing.F) {
	f.Add("a", "bc", "ab", "c")
	f.Fuzz(func(t *testing.T, a, b, c, d string) {
		same := idempotency.FingerprintOf(a, b) == idempotency.FingerprintOf(c, d)
		if same != (a == c && b == d) {
			t.Errorf("(%q, %q) and (%q, %q): same fingerprint is %t", a, b, c, d, same)
		}
		if idempotency.FingerprintOf(a, b) == idempotency.FingerprintOf(a+b) {
			t.Errorf("(%q, %q) has the fingerprint of one part", a, b)
		}
	})
}

func TestFingerprintMatches(t *testing.T) {
	t.Parallel()
	one, other := idempotency.FingerprintOf("one"), idempotency.FingerprintOf("other")
	future, err := idempotency.ParseFingerprint([]byte{9, 1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name              string
		request, recorded idempotency.Fingerprint
		want              bool
	}{
		{"same", one, one, true},
		{"other", one, other, false},
		{"request opted out", idempotency.NoFingerprint, one, true},
		{"record opted out", one, idempotency.NoFingerprint, true},
		{"another version", one, future, true},
		{"missing in request", idempotency.Fingerprint{}, one, false},
		{"missing in record", one, idempotency.Fingerprint{}, false},
	} {
		if got := test.request.Matches(test.recorded); got != test.want {
			t.Errorf("%s: %t, want %t", test.name, got, test.want)
		}
	}
}

func TestFingerprintIsOpaque(t *testing.T) {
	t.Parallel()
	fingerprint := idempotency.FingerprintOf("body")
	parsed, err := idempotency.ParseFingerprint(fingerprint.Bytes())
	if err != nil || parsed != fingerprint {
		t.Errorf("Parse(Bytes()) = %v, %v", parsed, err)
	}
	if _, err := idempotency.ParseFingerprint(nil); !errors.Is(err, idempotency.ErrInvalidParams) {
		t.Errorf("Parse(nil): %v, want ErrInvalidParams", err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
		if text := fmt.Sprintf(verb, fingerprint); text != "fingerprint:v1" {
			t.Errorf("%s prints %q", verb, text)
		}
	}
	if text := fmt.Sprint(idempotency.Fingerprint{}, idempotency.NoFingerprint); !strings.Contains(text, "missing") || !strings.Contains(text, "none") {
		t.Errorf("zero and NoFingerprint print %q", text)
	}
}

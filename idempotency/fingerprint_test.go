package idempotency_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
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

// cut splits text into parts: each byte of cuts is the length of one, and the
// last part is what is left.
func cut(text string, cuts []byte) (parts []string) {
	for _, length := range cuts {
		length := min(int(length), len(text))
		parts = append(parts, text[:length])
		text = text[length:]
	}
	return append(parts, text)
}

// Two lists of parts have one fingerprint only if they are one list, however
// their texts are cut.
func FuzzFingerprintIsInjective(f *testing.F) {
	f.Add("abc", []byte{1}, "abc", []byte{2})
	f.Add("abc", []byte{}, "abc", []byte{0})
	f.Fuzz(func(t *testing.T, text string, cuts []byte, otherText string, otherCuts []byte) {
		lists := [][]string{cut(text, cuts), cut(text, otherCuts), cut(otherText, cuts), cut(otherText, otherCuts), {text}, {}}
		for _, a := range lists {
			for _, b := range lists {
				one, other := idempotency.FingerprintOf(a...), idempotency.FingerprintOf(b...)
				if same := slices.Equal(a, b); one == other != same || one.Matches(other) != same {
					t.Errorf("%q and %q: equal is %t, matches is %t", a, b, one == other, one.Matches(other))
				}
			}
		}
	})
}

// What a store has read is the fingerprint that it was given, whatever version
// wrote it, and prints none of its bytes.
func FuzzParseFingerprint(f *testing.F) {
	f.Add(idempotency.FingerprintOf("a").Bytes())
	f.Add(idempotency.NoFingerprint.Bytes())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, encoded []byte) {
		parsed, err := idempotency.ParseFingerprint(encoded)
		if (err == nil) != (len(encoded) > 0) || !bytes.Equal(parsed.Bytes(), encoded) {
			t.Fatalf("ParseFingerprint(%x) = %x, %v", encoded, parsed.Bytes(), err)
		}
		want := "fingerprint:missing"
		switch {
		case err != nil:
		case encoded[0] == 0:
			want = "fingerprint:none"
		default:
			want = fmt.Sprintf("fingerprint:v%d", encoded[0])
		}
		if text := fmt.Sprintf("%v %+v %x", parsed, parsed, parsed); text != want+" "+want+" "+want {
			t.Errorf("%x prints %s", encoded, text)
		}
		if err != nil {
			return
		}
		// A recorded fingerprint is read once more only by its own request, by
		// another version, or by one that opted out.
		request := idempotency.FingerprintOf("a")
		want1 := encoded[0] != 1 || bytes.Equal(encoded, request.Bytes())
		if !parsed.Matches(parsed) || request.Matches(parsed) != want1 || !idempotency.NoFingerprint.Matches(parsed) {
			t.Errorf("%x matches itself %t, a request %t, none %t", encoded, parsed.Matches(parsed), request.Matches(parsed), idempotency.NoFingerprint.Matches(parsed))
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

func TestFingerprintIsKeptAsText(t *testing.T) {
	t.Parallel()
	for _, fingerprint := range []idempotency.Fingerprint{idempotency.FingerprintOf("body"), idempotency.NoFingerprint} {
		read, err := idempotency.ParseFingerprintText(fingerprint.Text())
		if err != nil || read != fingerprint {
			t.Errorf("%q is read as %v, %v", fingerprint.Text(), read.Bytes(), err)
		}
	}
	for _, text := range []string{"", "x", "012", "01x2"} {
		if _, err := idempotency.ParseFingerprintText(text); !errors.Is(err, idempotency.ErrInvalidParams) {
			t.Errorf("%q: %v, want ErrInvalidParams", text, err)
		}
	}
	// In JSON it is not lost in silence, to be found missing, or to match nothing.
	written, err := json.Marshal(struct{ F idempotency.Fingerprint }{idempotency.FingerprintOf("body")})
	if err != nil || string(written) != `{"F":"fingerprint:v1"}` {
		t.Errorf("%s, %v", written, err)
	}
	var read struct{ F idempotency.Fingerprint }
	if err := json.Unmarshal(written, &read); !errors.Is(err, idempotency.ErrInvalidParams) {
		t.Errorf("%v, want ErrInvalidParams", err)
	}
}

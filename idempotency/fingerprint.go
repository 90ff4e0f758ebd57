package idempotency

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
)

// The first byte of a stored fingerprint says how the rest was made.
const (
	fingerprintNone   byte = 0
	fingerprintSHA256 byte = 1
)

// Fingerprint is a digest of a request. A key that comes back with another
// fingerprint is refused with ErrFingerprintMismatch: the client has used one
// key for two different requests. The zero value is refused.
type Fingerprint struct {
	encoded string
}

// NoFingerprint opts out, on purpose, of comparing requests: any request with
// the same key replays the recorded answer.
var NoFingerprint = Fingerprint{encoded: string(fingerprintNone)}

// FingerprintOf digests the parts of a request, in order, with SHA-256. Every
// part is preceded by its length, so ("a", "bc") and ("ab", "c") differ.
//
// Include everything that makes two requests different: method and path, or the
// operation's name, and the body. Bytes are compared as they are; JSON with its
// fields in another order is another request.
func FingerprintOf[P ~string | ~[]byte](parts ...P) Fingerprint {
	sum := sha256.Sum256(appendParts(nil, parts...))
	return Fingerprint{encoded: string(fingerprintSHA256) + string(sum[:])}
}

// ParseFingerprint returns the fingerprint that Bytes was called on. Stores use
// it to read a record. A version byte that this release does not know is kept
// and never compared.
func ParseFingerprint(encoded []byte) (Fingerprint, error) {
	if len(encoded) == 0 {
		return Fingerprint{}, &ParamError{Field: "Fingerprint", Reason: "is empty; a stored fingerprint begins with a version byte"}
	}
	return Fingerprint{encoded: string(encoded)}, nil
}

// Bytes returns the fingerprint as stores keep it: a version byte, then the
// digest. It is empty only for the zero value.
func (f Fingerprint) Bytes() []byte { return []byte(f.encoded) }

// Text returns Bytes in hexadecimal, for stores that keep text.
func (f Fingerprint) Text() string { return hex.EncodeToString([]byte(f.encoded)) }

// ParseFingerprintText returns the fingerprint that Text was called on.
func ParseFingerprintText(text string) (Fingerprint, error) {
	encoded, err := hex.DecodeString(text)
	if err != nil {
		return Fingerprint{}, &ParamError{Field: "Fingerprint", Reason: "is not hexadecimal"}
	}
	return ParseFingerprint(encoded)
}

// MarshalText returns what fmt and slog print, which kind of fingerprint it is, and
// so does encoding/json: a log must not hold the digest. It cannot be read back.
func (f Fingerprint) MarshalText() ([]byte, error) { return []byte(f.kind()), nil }

// UnmarshalText returns a *ParamError: what MarshalText writes does not hold the
// fingerprint. Who keeps fingerprints stores Text or Bytes.
func (f *Fingerprint) UnmarshalText([]byte) error {
	return &ParamError{Field: "Fingerprint", Reason: "is written without its digest and cannot be read back; store Text or Bytes instead"}
}

// Matches reports whether a request with fingerprint f may have the answer that
// was recorded under the fingerprint recorded. Where either is NoFingerprint,
// or the two were made by different versions, there is nothing to compare and
// the answer is yes. The comparison takes the same time wherever they differ.
func (f Fingerprint) Matches(recorded Fingerprint) bool {
	if f.encoded == "" || recorded.encoded == "" {
		return false
	}
	if f.encoded[0] == fingerprintNone || recorded.encoded[0] != f.encoded[0] {
		return true
	}
	return subtle.ConstantTimeCompare([]byte(f.encoded), []byte(recorded.encoded)) == 1
}

// Format prints which kind of fingerprint it is and nothing of the digest.
func (f Fingerprint) Format(state fmt.State, _ rune) {
	// fmt offers no way to report a failed write.
	_, _ = io.WriteString(state, f.kind())
}

// LogValue returns, for slog, which kind of fingerprint it is.
func (f Fingerprint) LogValue() slog.Value { return slog.StringValue(f.kind()) }

func (f Fingerprint) kind() string {
	switch {
	case f.encoded == "":
		return "fingerprint:missing"
	case f.encoded[0] == fingerprintNone:
		return "fingerprint:none"
	default:
		return fmt.Sprintf("fingerprint:v%d", f.encoded[0])
	}
}

func (f Fingerprint) validate() error {
	if f.encoded == "" {
		return &ParamError{Field: "Fingerprint", Reason: "is missing; use FingerprintOf, or NoFingerprint to opt out"}
	}
	return nil
}

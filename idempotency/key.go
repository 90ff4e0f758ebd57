package idempotency

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"unicode/utf8"
)

// MaxKeyLength is the longest Scope and the longest ID accepted, in bytes.
const MaxKeyLength = 255

// Key names one operation. The same ID in two scopes is two keys, so one tenant
// never sees another's answer. A Key is comparable.
//
// Both parts are 1 to 255 bytes of UTF-8 without NUL. Printed with package fmt,
// logged with slog or written by encoding/json, a Key is a short hash: the text
// itself can be a secret of the client's. The hash finds the lines of one key in
// a log. It hides only what cannot be guessed: an ID like order-48151 is found by
// hashing every number. Config.KeySecret is for those who need more.
//
// fmt does not ask a type how to print what is in an unexported field, nor what
// is behind a pointer that it prints by a verb that does not fit, as %s of a
// struct with a *Params in it. There a Key is printed as it is.
type Key struct {
	// Scope is who and what the key belongs to: the authenticated tenant and
	// the operation's name, "tenant-7/charge". It must not come from the
	// request as the client wrote it.
	Scope string
	// ID is the idempotency key that the client chose.
	ID string
}

// Digest returns the SHA-256 of Scope and ID, each behind its length in eight
// bytes, big-endian. Stores derive from it what must be short and must not tell
// the key: pgxstore makes its advisory lock of the first eight bytes, and String
// prints the same eight.
func (k Key) Digest() [sha256.Size]byte {
	var buf [2 * (8 + MaxKeyLength)]byte // what a valid key needs, on the stack
	return sha256.Sum256(appendParts(buf[:0], k.Scope, k.ID))
}

// String returns the short hash that stands for the key in errors and logs:
// "key:" and the first eight bytes of Digest in hexadecimal.
func (k Key) String() string {
	const prefix = "key:"
	digest := k.Digest()
	var text [len(prefix) + 16]byte
	copy(text[:], prefix)
	hex.Encode(text[len(prefix):], digest[:8])
	return string(text[:])
}

// Format prints String for every verb, so that %v, %+v and %#v of a struct that
// holds a Key do not reveal it either.
func (k Key) Format(state fmt.State, _ rune) {
	// fmt offers no way to report a failed write.
	_, _ = io.WriteString(state, k.String())
}

// LogValue returns String for slog.
func (k Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// MarshalText returns String, which is what encoding/json then writes for a Key,
// also as the key of a map. It cannot be read back.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText returns a *ParamError: what MarshalText writes does not hold the
// key. Who keeps keys stores Scope and ID in fields of their own.
func (k *Key) UnmarshalText([]byte) error {
	return &ParamError{Field: "Key", Reason: "is written as a hash and cannot be read back; store Scope and ID instead"}
}

// Validate returns a *ParamError for a key that no store could keep. Stores call
// it before anything else.
func (k Key) Validate() error {
	if err := validateKeyPart("Key.Scope", k.Scope); err != nil {
		return err
	}
	return validateKeyPart("Key.ID", k.ID)
}

func validateKeyPart(field, part string) error {
	switch {
	case part == "":
		return &ParamError{Field: field, Reason: "is empty"}
	case len(part) > MaxKeyLength:
		return &ParamError{Field: field, Reason: fmt.Sprintf("has %d bytes; the limit is %d", len(part), MaxKeyLength)}
	case !utf8.ValidString(part):
		return &ParamError{Field: field, Reason: "is not valid UTF-8"}
	case strings.IndexByte(part, 0) >= 0:
		return &ParamError{Field: field, Reason: "contains a NUL byte"}
	}
	return nil
}

// appendParts appends every part behind its length in eight bytes, so that no
// two lists of parts give the same bytes: ("a", "bc") differs from ("ab", "c").
func appendParts[P ~string | ~[]byte](buf []byte, parts ...P) []byte {
	for _, part := range parts {
		buf = binary.BigEndian.AppendUint64(buf, uint64(len(part)))
		buf = append(buf, part...)
	}
	return buf
}

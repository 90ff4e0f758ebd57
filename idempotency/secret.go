package idempotency

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"slices"
)

// minSecretLength is what nobody finds by trying: 128 bits.
const minSecretLength = 16

// Secret is bytes that fmt, slog and encoding/json print nothing of. A []byte can
// be assigned to it.
type Secret []byte

// Format prints that it is a secret, and nothing of its bytes.
func (s Secret) Format(state fmt.State, _ rune) {
	// fmt offers no way to report a failed write.
	_, _ = io.WriteString(state, s.summary())
}

// LogValue returns, for slog, that it is a secret.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.summary()) }

// MarshalText returns that it is a secret. It cannot be read back.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.summary()), nil }

func (s Secret) summary() string {
	if s == nil {
		return "secret:none"
	}
	return "secret:set"
}

// validate refuses an empty secret too, where it is not nil: it came from a
// setting that is missing.
func (s Secret) validate() error {
	if s != nil && len(s) < minSecretLength {
		return &ParamError{
			Field:  "Config.KeySecret",
			Reason: fmt.Sprintf("has %d bytes; use %d or more from a random source, or nil for no secret", len(s), minSecretLength),
		}
	}
	return nil
}

// keyMapper returns the function that turns a caller's key into the one that is
// stored. It does not hold the secret where fmt could print it.
func (s Secret) keyMapper() func(Key) Key {
	if s == nil {
		return func(key Key) Key { return key }
	}
	secret := slices.Clone(s)
	return func(key Key) Key {
		var buf [2 * (8 + MaxKeyLength)]byte
		mac := hmac.New(sha256.New, secret)
		mac.Write(appendParts(buf[:0], key.Scope, key.ID))
		return Key{Scope: key.Scope, ID: hex.EncodeToString(mac.Sum(buf[:0]))}
	}
}

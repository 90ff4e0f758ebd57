package httpidem

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/samecommit/samecommit/idempotency"
)

// What the fingerprints of requests begin with. Another recipe needs another name: the
// keys that are live have been recorded by the old one.
const (
	bytesRecipe = "httpidem bytes 1"
	jsonRecipe  = "httpidem json 1"
)

// DefaultFingerprint is Config.Fingerprint where that is nil: of the method, the escaped
// path, the raw query, Content-Type, Content-Encoding and the body, byte for byte. No
// other header counts, since SDKs change some from try to try. It returns no error.
func DefaultFingerprint(r *http.Request, body []byte) (idempotency.Fingerprint, error) {
	return fingerprintOf(bytesRecipe, r, body), nil
}

// JSONFingerprint is DefaultFingerprint for bodies of JSON, in which white space and the
// order of members do not count. Numbers compare as they are written, so 1.0 is not 1. A
// body that is not JSON, that has a name twice in an object, or a string of no valid
// Unicode, compares byte for byte. It returns no error.
func JSONFingerprint(r *http.Request, body []byte) (idempotency.Fingerprint, error) {
	if canonical, ok := canonicalJSON(body); ok {
		return fingerprintOf(jsonRecipe, r, canonical), nil
	}
	return fingerprintOf(bytesRecipe, r, body), nil
}

func fingerprintOf(recipe string, r *http.Request, body []byte) idempotency.Fingerprint {
	digest := sha256.Sum256(body)
	joined := func(name string) string { return strings.Join(r.Header.Values(name), ",") }
	return idempotency.FingerprintOf(recipe, r.Method, r.URL.EscapedPath(), r.URL.RawQuery,
		joined("Content-Type"), joined("Content-Encoding"), string(digest[:]))
}

// canonicalJSON returns one form of JSON, in which what is inside of an array or an object is
// a digest: its size does not grow with the depth. ok is false where two bodies that differ
// could have one.
func canonicalJSON(body []byte) (canonical []byte, ok bool) {
	// It bounds the depth, and refuses what is behind the value.
	if !json.Valid(body) {
		return nil, false
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.UseNumber()
	canonical, err := canonicalValue(decoder)
	return canonical, err == nil
}

var errNotCanonical = errors.New("not in one form")

// canonicalValue returns the form of the decoder's next value.
func canonicalValue(decoder *json.Decoder) ([]byte, error) {
	token, err := decoder.Token()
	if err != nil {
		return nil, err
	}
	switch token := token.(type) {
	case json.Delim:
		if token == '[' {
			return canonicalArray(decoder)
		}
		return canonicalObject(decoder)
	case json.Number:
		return []byte(token), nil
	case string:
		return canonicalString(token)
	default: // a boolean or null
		return json.Marshal(token)
	}
}

// canonicalString refuses U+FFFD, which stands for bytes that are no UTF-8, and for lone
// surrogates: different strings would be the same.
func canonicalString(text string) ([]byte, error) {
	if strings.ContainsRune(text, utf8.RuneError) {
		return nil, errNotCanonical
	}
	return json.Marshal(text)
}

func canonicalArray(decoder *json.Decoder) ([]byte, error) {
	// An element is not kept: there may be many.
	elements := newParts()
	for decoder.More() {
		element, err := canonicalValue(decoder)
		if err != nil {
			return nil, err
		}
		elements.add(element)
	}
	_, err := decoder.Token()
	return elements.sum('['), err
}

func canonicalObject(decoder *json.Decoder) ([]byte, error) {
	var members [][]byte
	names := make(map[string]bool)
	for decoder.More() {
		token, err := decoder.Token()
		if err != nil {
			return nil, err
		}
		name, _ := token.(string)
		if names[name] {
			return nil, errNotCanonical
		}
		names[name] = true
		member, err := canonicalString(name)
		if err != nil {
			return nil, err
		}
		value, err := canonicalValue(decoder)
		if err != nil {
			return nil, err
		}
		members = append(members, append(append(member, ':'), value...))
	}
	slices.SortFunc(members, bytes.Compare)
	sorted := newParts()
	for _, member := range members {
		sorted.add(member)
	}
	_, err := decoder.Token()
	return sorted.sum('{'), err
}

// parts digests what is inside of an array or an object.
type parts struct{ digest hash.Hash }

func newParts() parts { return parts{sha256.New()} }

func (p parts) add(part []byte) {
	var length [8]byte
	binary.BigEndian.PutUint64(length[:], uint64(len(part)))
	_, _ = p.digest.Write(length[:]) // never fails
	_, _ = p.digest.Write(part)
}

// sum begins with kind, as no other value does, so that a string is no array.
func (p parts) sum(kind byte) []byte { return p.digest.Sum([]byte{kind}) }

package httpidem

import (
	"net/http"
	"strings"

	"github.com/samecommit/samecommit/idempotency"
)

// readKey returns the key of a request, empty where it has none. ok is false for a header
// that is no key, and for more than one.
//
// The draft wants a string of RFC 8941 without parameters. Bare keys are taken too, as
// clients of other services send them; both forms are one key.
func readKey(header http.Header, name string) (key string, ok bool) {
	lines := header.Values(name)
	switch len(lines) {
	case 0:
		return "", true
	case 1:
		key = strings.Trim(lines[0], " ")
	default:
		return "", false
	}
	if inside, quoted := strings.CutPrefix(key, `"`); quoted {
		if key, quoted = strings.CutSuffix(inside, `"`); !quoted {
			return "", false
		}
	}
	return key, validKey(key)
}

// validKey allows what stays one item also where it is written bare: a comma could be two
// headers that somebody has joined, a semicolon the beginning of a parameter.
func validKey(key string) bool {
	if key == "" || len(key) > idempotency.MaxKeyLength {
		return false
	}
	for i := range len(key) {
		if c := key[i]; c < '!' || c > '~' || c == '"' || c == ',' || c == ';' || c == '\\' {
			return false
		}
	}
	return true
}

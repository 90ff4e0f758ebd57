package idempotency

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
	"unicode/utf8"
)

// Types of a Response that this package gives a meaning. A typed result of Do
// has the codec's name and the Go type, as in "json:payments.Charge".
const (
	// TypeNone is the answer of an operation that returns nothing.
	TypeNone = "none"
	// TypeBytes is a body of bytes that is replayed as it is.
	TypeBytes = "bytes"
	// TypeErrorPrefix, with a code of Config.FinalErrors behind it, is a
	// recorded final error: "error:insufficient_funds".
	TypeErrorPrefix = "error:"
)

const maxResponseTypeLength = 255

// Response is the answer of an operation, as it is recorded and replayed.
//
// fmt and slog print its type and size. encoding/json writes the body: leave a
// Response out of a struct that slog's JSONHandler is to log.
type Response struct {
	// Type says what Body is: "json:pkg.T", "bytes", "none", "error:code". At
	// most 255 bytes.
	Type string
	// Body is stored and replayed byte for byte. Nil and empty stay different.
	Body []byte
}

// Validate returns a *ParamError for a response that no store could record.
// Stores call it before they touch a record.
func (r *Response) Validate() error {
	switch {
	case r == nil:
		return &ParamError{Field: "Response", Reason: "is nil"}
	case r.Type == "":
		return &ParamError{Field: "Response.Type", Reason: "is empty; use TypeBytes, TypeNone or a name of your own"}
	case len(r.Type) > maxResponseTypeLength:
		return &ParamError{Field: "Response.Type", Reason: fmt.Sprintf("has %d bytes; the limit is %d", len(r.Type), maxResponseTypeLength)}
	case !isText(r.Type):
		return &ParamError{Field: "Response.Type", Reason: "is not valid UTF-8 without NUL"}
	}
	return nil
}

func (r *Response) validateSize(limit int) error {
	if r != nil && len(r.Body) > limit {
		return &ParamError{
			Field:  "Response.Body",
			Reason: fmt.Sprintf("has %d bytes; the limit is %d: return a reference instead, or raise Config.MaxResponseSize", len(r.Body), limit),
		}
	}
	return nil
}

// Format prints the type and the size, never the body.
func (r Response) Format(state fmt.State, _ rune) {
	// fmt offers no way to report a failed write.
	_, _ = io.WriteString(state, r.summary())
}

// LogValue returns, for slog, the type and the size.
func (r Response) LogValue() slog.Value { return slog.StringValue(r.summary()) }

func (r Response) summary() string {
	return fmt.Sprintf("response:%s (%d bytes)", r.Type, len(r.Body))
}

// isText reports whether every store can keep s as text: valid UTF-8 without NUL,
// which PostgreSQL refuses.
func isText(s string) bool { return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 }

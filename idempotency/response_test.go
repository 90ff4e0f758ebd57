package idempotency_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/samecommit/samecommit/idempotency"
)

// A response is refused by the rules that stores rely on, and its body is never
// printed.
func FuzzResponse(f *testing.F) {
	f.Add("json:payments.Charge", []byte("{}"))
	f.Add("", []byte(nil))
	f.Add("a\x00b", []byte("\xff"))
	f.Add(strings.Repeat("t", 256), []byte{})
	f.Fuzz(func(t *testing.T, name string, body []byte) {
		response := &idempotency.Response{Type: name, Body: body}
		good := name != "" && len(name) <= 255 && utf8.ValidString(name) && !strings.Contains(name, "\x00")
		err := response.Validate()
		var paramErr *idempotency.ParamError
		if (err == nil) != good || err != nil && (!errors.As(err, &paramErr) || paramErr.Field != "Response.Type") {
			t.Errorf("Validate of a response of type %q: %v", name, err)
		}
		want := fmt.Sprintf("response:%s (%d bytes)", name, len(body))
		if text := fmt.Sprint(response); text != want {
			t.Errorf("prints %q; want %q", text, want)
		}
		if text := fmt.Sprintf("%+v", *response); text != want {
			t.Errorf("prints %q; want %q", text, want)
		}
		if text := response.LogValue().String(); text != want {
			t.Errorf("slog gets %q; want %q", text, want)
		}
	})
}

package property_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/dunglas/httpsfv"
	"pgregory.net/rapid"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/httpidem"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

// plainKey is what a key may be made of, quoted or bare.
var plainKey = regexp.MustCompile(`^[!#-+\--:<-\[\]-~]{1,255}$`)

// keyOf is what another parser of RFC 9651 says of a line of the header: a string without
// parameters. What it does not take for a string may be a bare key.
func keyOf(line string) (key string, ok bool) {
	item, err := httpsfv.UnmarshalItem([]string{line})
	if text, quoted := item.Value.(string); err == nil && quoted {
		return text, len(item.Params.Names()) == 0 && plainKey.MatchString(text)
	}
	key = strings.Trim(line, " ")
	return key, plainKey.MatchString(key)
}

// test is what checkKey needs of a test of either kind.
type test interface {
	rapid.TB
	Context() context.Context
}

// checkKey sends requests with a line as their key, and then with the same key in other forms.
func checkKey(t test, line string) {
	t.Helper()
	client, err := idempotency.NewClient(memstore.New[*memstore.Tx](nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := httpidem.New(client, &httpidem.Config{Scope: func(*http.Request) string { return "scope" }})
	if err != nil {
		t.Fatal(err)
	}
	runs := 0
	handler := keys(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		runs++
		w.WriteHeader(http.StatusCreated)
	}))
	post := func(lines ...string) (status int, replayed bool) {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", nil)
		r.Header["Idempotency-Key"] = lines
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, r)
		return answer.Code, answer.Header().Get("Idempotent-Replayed") == "true"
	}
	key, ok := keyOf(line)
	if !ok {
		if status, _ := post(line); status != http.StatusBadRequest || runs > 0 {
			t.Fatalf("%q is no key: %d, %d runs", line, status, runs)
		}
		return
	}
	if status, replayed := post(line); status != http.StatusCreated || replayed {
		t.Fatalf("%q is the key %q: %d, replayed %t", line, key, status, replayed)
	}
	for _, same := range []string{key, `"` + key + `"`, "  " + key + " ", ` "` + key + `"  `} {
		if status, replayed := post(same); status != http.StatusCreated || !replayed {
			t.Fatalf("%q and %q are one key: %d, replayed %t", line, same, status, replayed)
		}
	}
	if status, _ := post(line, line); status != http.StatusBadRequest {
		t.Fatalf("%q twice: %d", line, status)
	}
	if other := key[1:] + "0"; other != key {
		if _, replayed := post(other); replayed {
			t.Fatalf("%q and %q are two keys", line, other)
		}
	}
}

func genKeyLine() *rapid.Generator[string] {
	plain := rapid.StringMatching(`[!#-+\--:<-\[\]-~]{1,20}`)
	long := rapid.Map(rapid.IntRange(250, 260), func(size int) string { return strings.Repeat("x", size) })
	any7bit := rapid.StringMatching(`[ -~]{0,20}`)
	content := rapid.OneOf(plain, long, any7bit, rapid.String())
	return rapid.Custom(func(t *rapid.T) string {
		line := content.Draw(t, "content")
		switch rapid.IntRange(0, 3).Draw(t, "form") {
		case 0:
			line = `"` + line + `"`
		case 1:
			line = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(line) + `"`
		case 2:
			line = `"` + line
		}
		end := rapid.SampledFrom([]string{"", "", "", " ", "\t", ";a", ";a=1", " ;a", ", b", `"`, "\\", "\x00", "é"})
		return rapid.SampledFrom([]string{"", "", " ", "\t"}).Draw(t, "before") + line + end.Draw(t, "end")
	})
}

// Every string of RFC 9651 without parameters is the key that it stands for, if a key may
// have such characters. What is neither that nor a bare key is a 400.
func TestKeysAgainstRFC9651(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) { checkKey(t, genKeyLine().Draw(t, "line")) })
}

func FuzzKeysAgainstRFC9651(f *testing.F) {
	for _, line := range []string{
		`"abc"`, "abc", ` "abc" `, "", `""`, `"`, `"a\"b"`, `"a\\b"`, `"a b"`, `"abc";v=1`, `"abc" ;v`, "abc;v", `"a", "b"`, "?1", ":YQ==:", "@1", `%"a"`, "1.5", "(a b)", "*token/x",
	} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) { checkKey(t, line) })
}

package httpidem

import (
	"bytes"
	"encoding/json"
	"runtime"
	"strings"
	"testing"
)

// What is inside of many objects is not copied once for each.
func TestFormOfADeepValue(t *testing.T) { //nolint:paralleltest // It counts what the process allocates.
	const depth, size = 1000, 500_000
	body := []byte(strings.Repeat(`{"a":`, depth) + `"` + strings.Repeat("x", size) + `"` + strings.Repeat("}", depth))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	canonical, ok := canonicalJSON(body)
	runtime.ReadMemStats(&after)
	if !ok || len(canonical) > 64 {
		t.Errorf("%d bytes, %t; want a digest", len(canonical), ok)
	}
	if allocated := after.TotalAlloc - before.TotalAlloc; allocated > 20*size {
		t.Errorf("%d bytes were allocated for a body of %d", allocated, len(body))
	}
}

// What another writer makes of the same value, with other white space, order and escapes,
// has the same form.
func FuzzCanonicalJSON(f *testing.F) {
	f.Add([]byte(`{"b":[1.0,true,null,"é"],"a":{}}`))
	f.Add([]byte(` {"a":"<\u0061>","":[[],{}]} `))
	f.Add([]byte("\"\xff\""))
	f.Fuzz(func(t *testing.T, body []byte) {
		canonical, ok := canonicalJSON(body)
		if !ok {
			return
		}
		decoder := json.NewDecoder(bytes.NewReader(body))
		decoder.UseNumber()
		var value any
		if err := decoder.Decode(&value); err != nil {
			t.Fatalf("%q has a form and is no JSON: %v", body, err)
		}
		other, err := json.MarshalIndent(value, " ", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if again, ok := canonicalJSON(other); !ok || !bytes.Equal(again, canonical) {
			t.Fatalf("%q and %q have the forms %q and %q", body, other, canonical, again)
		}
	})
}

package httpidem_test

import (
	"errors"
	"io"
	"net/http"
	"testing"

	"github.com/samecommit/samecommit/idempotency/httpidem"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

var safeMethods = []string{http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodConnect, "QUERY"}

// Methods that ask for nothing to be done pass New by, whatever key they have: their handler
// has no transaction, and the writer and the body of the server.
func TestSafeMethodsPassBy(t *testing.T) {
	t.Parallel()
	eachProtocol(t, func(o options) {
		store := &storeDouble{Store: memstore.New[*memstore.Tx](nil)}
		o.store = store
		a := newAPI(o.t, o, func(w http.ResponseWriter, r *http.Request) {
			if _, ok := httpidem.Tx[*memstore.Tx](r.Context()); ok {
				o.t.Errorf("%s has a transaction", r.Method)
			}
			httpidem.SetOutcome(r.Context(), httpidem.Commit) // nothing
			w.WriteHeader(http.StatusAccepted)
			if err := http.NewResponseController(w).Flush(); err != nil {
				o.t.Errorf("%s: %v", r.Method, err)
			}
			_, _ = io.WriteString(w, "text")
		})
		for _, method := range safeMethods {
			for _, key := range []string{"k", "a malformed key", ""} {
				got := a.post(key, "", func(r *http.Request) { r.Method = method })
				if got.StatusCode != http.StatusAccepted || got.replayed() || got.text != bodyOf(method, "text") {
					o.t.Errorf("%s with the key %q: %d %q", method, key, got.StatusCode, got.text)
				}
			}
		}
		a.want(int32(3*len(safeMethods)), 0)
		store.wantAsked(o.t, 0)
	})
}

// In Handle they have a transaction, and no key.
func TestSafeMethodsOfHandle(t *testing.T) {
	t.Parallel()
	eachProtocol(t, func(o options) {
		store := &storeDouble{Store: memstore.New[*memstore.Tx](nil)}
		o.store = store
		a := newHandleAPI(o.t, o, func(w http.ResponseWriter, r *http.Request, _ *memstore.Tx) error {
			switch r.Header.Get("Fail") {
			case "error":
				return errors.New("a bug")
			case "status":
				w.WriteHeader(http.StatusNotFound)
			}
			_, err := io.WriteString(w, "text")
			return err
		})
		for _, method := range safeMethods {
			asked, effects := store.asked.Load(), a.effects.Load()
			for _, key := range []string{"k", "k", "a malformed key", ""} {
				got := a.post(key, "", func(r *http.Request) { r.Method = method })
				if got.StatusCode != http.StatusOK || got.replayed() || got.text != bodyOf(method, "text") {
					o.t.Errorf("%s with the key %q: %d %q, replayed %t", method, key, got.StatusCode, got.text, got.replayed())
				}
				if got.ContentLength != 4 {
					o.t.Errorf("%s: Content-Length is %d, want 4", method, got.ContentLength)
				}
			}
			for fail, status := range map[string]int{"error": http.StatusInternalServerError, "status": http.StatusNotFound} {
				if got := a.post("", "", func(r *http.Request) { r.Method = method; r.Header.Set("Fail", fail) }); got.StatusCode != status {
					o.t.Errorf("%s: %d, want %d", method, got.StatusCode, status)
				}
			}
			if store.asked.Load()-asked != 6 || a.effects.Load()-effects != 4 || store.last.Load() != nil {
				o.t.Errorf("%s: %d transactions, %d were committed, key %v; want 6, 4 and none", method, store.asked.Load()-asked, a.effects.Load()-effects, store.last.Load())
			}
		}
	})
}

// bodyOf is what a client gets of a body.
func bodyOf(method, text string) string {
	if method == http.MethodHead {
		return ""
	}
	return text
}

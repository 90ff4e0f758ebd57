package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/samecommit/samecommit/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func TestServer(t *testing.T) {
	t.Parallel()
	pool := pgtest.DB(t)
	handler, err := newHandler(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct {
		key, body, location string
		status              int
		replayed            bool
	}{
		{"1", `{"cents":500}`, "/charges/1", http.StatusCreated, false},
		{"1", `{"cents":500}`, "/charges/1", http.StatusCreated, true},
		{"1", `{"cents":501}`, "", http.StatusUnprocessableEntity, false},
		{"2", `no JSON`, "", http.StatusBadRequest, false},
		{"2", `no JSON`, "", http.StatusBadRequest, true},
		{"", `{"cents":500}`, "", http.StatusBadRequest, false},
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/charges", strings.NewReader(c.body))
		if c.key != "" {
			r.Header.Set("Idempotency-Key", c.key)
		}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code != c.status || w.Header().Get("Location") != c.location || (w.Header().Get("Idempotent-Replayed") == "true") != c.replayed {
			t.Errorf("request %d: %d, %v; want %d, %q, replayed %t", i+1, w.Code, w.Header(), c.status, c.location, c.replayed)
		}
	}
	var charges int
	if err := pool.QueryRow(t.Context(), "SELECT count(*) FROM charges").Scan(&charges); err != nil || charges != 1 {
		t.Errorf("%d charges, %v; want 1", charges, err)
	}
}

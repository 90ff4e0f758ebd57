package httpidem_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/httpidem"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

// A service whose clients are Stripe's SDKs, which know no other errors than Stripe's.
func ExampleConfig_writeProblem() {
	client, err := idempotency.NewClient(memstore.New[*memstore.Tx](nil), nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	keys, err := httpidem.New(client, &httpidem.Config{
		Scope: func(*http.Request) string { return "the tenant/charges" },
		WriteProblem: func(w http.ResponseWriter, r *http.Request, p *httpidem.Problem) {
			kind := "idempotency_error"
			if p.Status >= http.StatusInternalServerError {
				kind = "api_error"
				slog.ErrorContext(r.Context(), p.Kind, slog.Any("err", p.Err))
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(p.Status)
			_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]string{"type": kind, "message": p.Title}})
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	handler := keys(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "charged") }))

	for _, body := range []string{"amount=1", "amount=2"} {
		r := httptest.NewRequestWithContext(context.Background(), http.MethodPost, "/charges", strings.NewReader(body))
		r.Header.Set("Idempotency-Key", "1795562341075872049_6wruOg")
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, r)
		fmt.Print(answer.Code, " ", answer.Body)
	}
	// Output:
	// 200 charged
	// 422 {"error":{"message":"Idempotency key was used for another request","type":"idempotency_error"}}
}

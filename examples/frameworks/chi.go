package frameworks

import (
	"encoding/json"
	"errors"
	"net/http"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
)

// Chi has the middleware at the route, by With. Use on a router that mounts others is
// wrong: chi notes in the request's context how much of the path it has matched, so that
// a second run, after a deadlock, would start from there, find nothing, and record a 404.
func Chi(keys func(http.Handler) http.Handler, charge Charge) http.Handler {
	router := chi.NewRouter()
	router.Use(middleware.Recoverer)
	router.Route("/accounts/{account}", func(account chi.Router) {
		account.With(keys).Post("/charges", chiCharge(charge))
	})
	return router
}

func chiCharge(charge Charge) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var asked request
		if err := json.NewDecoder(r.Body).Decode(&asked); err != nil {
			http.Error(w, `send a body such as {"cents":500}`, http.StatusBadRequest)
			return
		}
		id, err := charge(r.Context(), chi.URLParam(r, "account"), asked.Cents)
		switch {
		case errors.Is(err, ErrDeclined):
			http.Error(w, "the card was declined: try another one", http.StatusPaymentRequired)
		case err != nil:
			http.Error(w, "the charge could not be booked", http.StatusInternalServerError)
		default:
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusCreated)
			_ = json.NewEncoder(w).Encode(receipt{id}) // into memory
		}
	}
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	maxBody = 64 << 10
	// shutdownLimit bounds how long requests may take that run when the API stops.
	shutdownLimit = 30 * time.Second
)

// api is the payments API on a loopback port.
type api struct {
	url    string
	server *http.Server
	// ended gets the server's error once it has stopped serving.
	ended chan error
}

func listen(ctx context.Context, address string, charges http.Handler, pool *pgxpool.Pool) (*api, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s; choose another with -addr: %w", address, err)
	}
	mux := http.NewServeMux()
	mux.Handle("POST /charges", charges)
	mux.Handle("GET /accounts/{id}", accounts(pool))
	a := &api{
		url:    "http://" + listener.Addr().String(),
		server: &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second},
		ended:  make(chan error, 1),
	}
	go func() { a.ended <- a.server.Serve(listener) }()
	return a, nil
}

// close lets running requests finish.
func (a *api) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, shutdownLimit)
	defer cancel()
	err := a.server.Shutdown(ctx)
	if served := <-a.ended; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	if err != nil {
		return fmt.Errorf("stop the API: %w", err)
	}
	return nil
}

// accounts answers with an account and its balance.
func accounts(pool *pgxpool.Pool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		// Query and CollectExactlyOneRow give back the error of either.
		rows, _ := pool.Query(r.Context(), "SELECT id, balance FROM accounts WHERE id = $1", r.PathValue("id"))
		found, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[account])
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			refuse(w, &unknownAccountError{r.PathValue("id")})
		case err != nil:
			slog.WarnContext(r.Context(), "account not read", "error", err)
			write(w, http.StatusServiceUnavailable, newProblem(http.StatusServiceUnavailable, "unavailable", "The account could not be read", "try again"))
		default:
			write(w, http.StatusOK, found)
		}
	}
}

// readCharge returns a *badChargeError for what is none.
func readCharge(body io.Reader) (*chargeRequest, error) {
	var request chargeRequest
	decoder := json.NewDecoder(body)
	decoder.DisallowUnknownFields()
	err := decoder.Decode(&request)
	if err == nil {
		err = request.validate()
	}
	if err != nil {
		return nil, &badChargeError{err}
	}
	return &request, nil
}

// problem is an error as RFC 9457 writes it.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
}

func newProblem(status int, kind, title, detail string) *problem {
	return &problem{Type: "/problems/" + kind, Title: title, Status: status, Detail: detail}
}

// refuse answers an error that is about the charge, and reports whether it is.
func refuse(w http.ResponseWriter, err error) bool {
	var p *problem
	switch err := err.(type) { //nolint:errorlint // They are returned as they are.
	case *badChargeError:
		p = newProblem(http.StatusBadRequest, "body", "The body is not a charge", err.Error())
	case *InsufficientFundsError:
		p = newProblem(http.StatusPaymentRequired, "insufficient-funds", "Not enough money", err.Error())
	case *unknownAccountError:
		p = newProblem(http.StatusNotFound, "unknown-account", "No such account", err.Error())
	default:
		return false
	}
	write(w, p.Status, p)
	return true
}

func write(w http.ResponseWriter, status int, value any) {
	contentType := "application/json"
	if _, ok := value.(*problem); ok {
		contentType = "application/problem+json"
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(value); err != nil {
		// The client is gone. Its retry gets the recorded answer.
		slog.Debug("answer not delivered", "error", err)
	}
}

// printCurl prints requests that show what a key does.
func printCurl(w io.Writer, url string) {
	const body = `{"ref":"order-1","from":"alice","to":"bob","amount":1250}`
	const other = `{"ref":"order-1","from":"alice","to":"bob","amount":9999}`
	curl := func(key, body string) string {
		return fmt.Sprintf("curl -i %s/charges -H 'Idempotency-Key: %s' -H 'Content-Type: application/json' -d '%s'", url, key, body)
	}
	_, _ = fmt.Fprintf(w, `The payments API listens on %s. Try these, in this order; ctrl-C ends it.

# 1. Charge 12.50: the first answer.
%s

# 2. The same again: the same answer, with the header Idempotent-Replayed.
%s

# 3. Another body under the same key: 422, and nothing is charged.
%s

# 4. Another key is another charge, also with the same body.
%s

# 5. Two at once under one key: one charge, and both get its answer.
%s & %s & wait
`, url, curl("try-1", body), curl("try-1", body), curl("try-1", other), curl("try-2", body), curl("try-3", body), curl("try-3", body))
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
)

const (
	maxBody = 64 << 10
	// shutdownLimit bounds how long requests may take that run when the API stops.
	shutdownLimit = 30 * time.Second
)

// charger charges once per key, or claims to.
type charger interface {
	charge(ctx context.Context, key string, fingerprint idempotency.Fingerprint, request *chargeRequest) (charge Charge, replayed bool, err error)
}

// api is the payments API on a loopback port.
type api struct {
	url    string
	server *http.Server
	// ended gets the server's error once it has stopped serving.
	ended chan error
}

func listen(ctx context.Context, address string, payments charger, pool *pgxpool.Pool, watch func(charges http.Handler) http.Handler, logger *slog.Logger) (*api, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s; choose another with -addr: %w", address, err)
	}
	mux := http.NewServeMux()
	h := &handler{payments: payments, pool: pool, logger: logger}
	mux.Handle("POST /charges", watch(http.HandlerFunc(h.charge)))
	mux.HandleFunc("GET /accounts/{id}", h.account)
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

type handler struct {
	payments charger
	pool     *pgxpool.Pool
	logger   *slog.Logger
}

func (h *handler) charge(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		h.write(w, http.StatusBadRequest, newProblem(http.StatusBadRequest, "body", "The body could not be read", err.Error()))
		return
	}
	request, err := parseCharge(body)
	if err != nil {
		h.write(w, http.StatusBadRequest, newProblem(http.StatusBadRequest, "body", "The body is not a charge", err.Error()))
		return
	}
	// The whole request: the same key for another amount is a client's mistake,
	// and must not get the first charge's answer.
	fingerprint := idempotency.FingerprintOf([]byte(r.Method), []byte(r.URL.Path), body)
	charge, replayed, err := h.payments.charge(r.Context(), r.Header.Get("Idempotency-Key"), fingerprint, request)
	if replayed {
		w.Header().Set("Idempotent-Replayed", "true")
	}
	if err != nil {
		h.fail(w, r, err)
		return
	}
	h.write(w, http.StatusCreated, charge)
}

// account answers with an account and its balance.
func (h *handler) account(w http.ResponseWriter, r *http.Request) {
	// Query and CollectExactlyOneRow give back the error of either.
	rows, _ := h.pool.Query(r.Context(), "SELECT id, balance FROM accounts WHERE id = $1", r.PathValue("id"))
	found, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[account])
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		h.fail(w, r, &unknownAccountError{r.PathValue("id")})
	case err != nil:
		h.logger.WarnContext(r.Context(), "account not read", "error", err)
		h.write(w, http.StatusServiceUnavailable, newProblem(http.StatusServiceUnavailable, "unavailable", "The account could not be read", "try again"))
	default:
		h.write(w, http.StatusOK, found)
	}
}

func parseCharge(body []byte) (*chargeRequest, error) {
	var request chargeRequest
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&request); err != nil {
		return nil, err
	}
	return &request, request.validate()
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

func (h *handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	var param *idempotency.ParamError
	var running *idempotency.InProgressError
	var funds *InsufficientFundsError
	var account *unknownAccountError
	var p *problem
	switch {
	case errors.As(err, &param) && param.Field == "Key.ID":
		p = newProblem(http.StatusBadRequest, "idempotency-key", "The header Idempotency-Key cannot be used",
			"Idempotency-Key "+param.Reason+"; send 1 to 255 bytes of your own, new for every charge")
	case errors.Is(err, idempotency.ErrInProgress):
		after := time.Second
		if errors.As(err, &running) {
			after = running.RetryAfter
		}
		w.Header().Set("Retry-After", strconv.Itoa(max(1, int(math.Ceil(after.Seconds())))))
		p = newProblem(http.StatusConflict, "in-progress", "This charge is running",
			"another request with this Idempotency-Key has not finished; send it again later")
	case errors.Is(err, idempotency.ErrFingerprintMismatch):
		p = newProblem(http.StatusUnprocessableEntity, "key-reused", "The Idempotency-Key belongs to another request",
			"this Idempotency-Key was used with another body; use a new key for a new charge")
	case errors.As(err, &funds):
		p = newProblem(http.StatusPaymentRequired, "insufficient-funds", "Not enough money", funds.Error())
	case errors.As(err, &account):
		p = newProblem(http.StatusNotFound, "unknown-account", "No such account", account.Error())
	default:
		// What went wrong is for the log: a client can only try again.
		h.logger.WarnContext(r.Context(), "charge failed", "error", err)
		p = newProblem(http.StatusServiceUnavailable, "unavailable", "The charge was not confirmed",
			"send it again with the same Idempotency-Key: it is charged once, however often you do")
	}
	h.write(w, p.Status, p)
}

func (h *handler) write(w http.ResponseWriter, status int, value any) {
	contentType := "application/json"
	if _, ok := value.(*problem); ok {
		contentType = "application/problem+json"
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(value); err != nil {
		// The client is gone. Its retry gets the recorded answer.
		h.logger.Debug("answer not delivered", "error", err)
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

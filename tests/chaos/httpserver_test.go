//go:build unix

package chaos_test

import (
	"context"
	crand "crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/httpidem"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
)

// httpServerVariable makes this test binary an HTTP server with that script.
const httpServerVariable = "SAMECOMMIT_CHAOS_HTTP_SERVER"

const (
	httpScope = "http"
	// chargeHeader has the effect that the handler has written for this answer.
	chargeHeader = "X-Charge"
	// httpWait is how long a duplicate waits. It is shorter than a slow handler, so that
	// some are told 409.
	httpWait, slowHandler = 200 * time.Millisecond, 500 * time.Millisecond
	// largestAnswer is more than net/http and a socket pass on at once.
	largestAnswer = 64 << 10
)

// httpScript is what a server or client process of HTTP does, until a signal ends it at
// a hook.
type httpScript struct {
	script
	// After is how many requests pass the hook first.
	After int64
	// Proxy, Next and Orders are a client's: each of its workers asks for the orders from
	// its own of Next on.
	Proxy  string
	Next   []int
	Orders int
}

// httpHook is what calls a process's hook once it is due.
type httpHook struct {
	*client
	after int64
	seen  atomic.Int64
}

func newHTTPHook(s *httpScript) *httpHook {
	return &httpHook{client: &client{script: s.script}, after: s.After}
}

// begin counts a request. From a certain one on the hook is in force.
func (h *httpHook) begin() {
	if h.seen.Add(1) > h.after {
		h.last.Store(true)
	}
}

func runHTTPServer(text string) error {
	s := &httpScript{}
	if err := json.Unmarshal([]byte(text), s); err != nil {
		return err
	}
	slog.SetDefault(slog.New(slog.DiscardHandler)) // it would tell of each fault
	config, err := pgxpool.ParseConfig(s.URL)
	if err != nil {
		return err
	}
	hook := newHTTPHook(s)
	config.ConnConfig.DefaultQueryExecMode = s.Mode
	config.ConnConfig.RuntimeParams["application_name"] = "chaos" // the faults know their victims by it
	dial := config.ConnConfig.DialFunc
	config.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		return &hookedConn{conn, hook.client}, err
	}
	ctx := context.Background()
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return err
	}
	handler, err := newHTTPHandler(pool, s.Level, hook)
	if err != nil {
		return err
	}
	var listen net.ListenConfig
	listener, err := listen.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // its other end is the test's
		os.Exit(0)
	}()
	server := &http.Server{Handler: handler, ReadTimeout: callTimeout}
	return server.Serve(listener)
}

// newHTTPHandler returns what every HTTP server serves.
func newHTTPHandler(pool *pgxpool.Pool, level pgx.TxIsoLevel, hook *httpHook) (http.Handler, error) {
	store, err := pgxstore.New(pool, &pgxstore.Config{TxOptions: pgx.TxOptions{IsoLevel: level}})
	if err != nil {
		return nil, err
	}
	client, err := idempotency.NewClient(store, nil)
	if err != nil {
		return nil, err
	}
	charges, err := httpidem.Handle(client, &httpidem.Config{
		Scope: func(*http.Request) string { return httpScope }, Wait: httpWait, Headers: []string{chargeHeader},
	}, func(w http.ResponseWriter, r *http.Request, tx pgx.Tx) error {
		hook.hook(hookClaimed)
		err := charge(w, r, tx)
		hook.hook(hookEffect)
		return err
	})
	if err != nil {
		return nil, err
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hook.begin()
		hook.hook(hookBefore)
		charges.ServeHTTP(w, r)
		hook.hook(hookReturned)
	}), nil
}

// chargeOrder asks for an answer of that status, with that many random bytes. 0 leaves
// them to the handler, so that another run is likely to answer something else.
type chargeOrder struct{ Status, Size int }

var errChargeFailed = errors.New("chaos: the charge failed, as it was told to")

// charge writes an effect, and answers with its id and with what no other run would.
func charge(w http.ResponseWriter, r *http.Request, tx pgx.Tx) error {
	var order chargeOrder
	if err := json.NewDecoder(r.Body).Decode(&order); err != nil {
		return err
	}
	id := httpidem.NewKey()
	if err := insert(r.Context(), tx, httpKey(r), id); err != nil {
		return err
	}
	if order.Status == 0 {
		switch n := rand.IntN(100); {
		case n < 10:
			order.Status = http.StatusPaymentRequired
		case n < 14:
			order.Status = http.StatusInternalServerError
		case n < 17:
			order.Status = http.StatusServiceUnavailable
		case n < 20:
			return errChargeFailed
		case n < 22:
			panic(http.ErrAbortHandler)
		case n < 24:
			pause(r.Context(), slowHandler)
			fallthrough
		default:
			order.Status = http.StatusCreated
		}
		order.Size = 1 + rand.IntN(1<<rand.IntN(17))
	}
	body := make([]byte, min(order.Size, largestAnswer))
	_, _ = crand.Read(body) // it never fails
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Etag", `"`+id+`"`)
	w.Header().Set("Location", "/charges/"+id)
	w.Header().Set(chargeHeader, id)
	w.WriteHeader(order.Status)
	_, err := w.Write(body)
	return err
}

// httpKey is that of a request.
func httpKey(r *http.Request) idempotency.Key {
	return idempotency.Key{Scope: httpScope, ID: strings.Trim(r.Header.Get(httpidem.DefaultHeader), `"`)}
}

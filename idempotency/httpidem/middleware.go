package httpidem

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/samecommit/samecommit/idempotency"
)

// HandlerFunc is a handler that gets its transaction as an argument. Where it returns an
// error, its work is undone, the key is free, and the answer is a 500, whatever it has
// written. An error of the transaction that another run gets over may be returned as it
// is: it then runs again.
type HandlerFunc[TTx any] func(w http.ResponseWriter, r *http.Request, tx TTx) error

// New returns a middleware for POST, PATCH and other unsafe methods, whose handlers find
// their transaction by Tx. GET, HEAD, OPTIONS, TRACE, CONNECT and QUERY pass it by. It
// returns an *idempotency.ParamError for a config that cannot work.
func New[TTx any](client *idempotency.Client[TTx], config *Config) (func(http.Handler) http.Handler, error) {
	m, err := newMiddleware(client, config)
	if err != nil {
		return nil, err
	}
	return func(next http.Handler) http.Handler {
		run := func(w http.ResponseWriter, r *http.Request, _ TTx) error {
			next.ServeHTTP(w, r)
			return nil
		}
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if isSafe(r.Method) {
				next.ServeHTTP(w, r)
				return
			}
			m.serve(w, r, run)
		})
	}, nil
}

// Handle returns a handler whose function gets its transaction as an argument. GET, HEAD,
// OPTIONS, TRACE, CONNECT and QUERY have a transaction too, without a key. It returns an
// *idempotency.ParamError for a config that cannot work.
func Handle[TTx any](client *idempotency.Client[TTx], config *Config, handler HandlerFunc[TTx]) (http.Handler, error) {
	m, err := newMiddleware(client, config)
	if err != nil {
		return nil, err
	}
	if handler == nil {
		return nil, &idempotency.ParamError{Field: "handler", Reason: "is nil"}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { m.serve(w, r, handler) }), nil
}

// isSafe reports whether a method asks for nothing to be done.
func isSafe(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodConnect, "QUERY":
		return true
	}
	return false
}

type middleware[TTx any] struct {
	*settings
	client *idempotency.Client[TTx]
	// limit is the largest answer that is recorded.
	limit int
}

func newMiddleware[TTx any](client *idempotency.Client[TTx], config *Config) (*middleware[TTx], error) {
	if client == nil {
		return nil, &idempotency.ParamError{Field: "client", Reason: "is nil"}
	}
	settings, err := newSettings(config)
	if err != nil {
		return nil, err
	}
	return &middleware[TTx]{settings: settings, client: client, limit: client.Config().MaxResponseSize}, nil
}

var (
	errNoScope = errors.New("httpidem: Config.Scope has returned no scope for a request with a key: is its caller authenticated outside of the middleware?")
	errTimeout = errors.New("httpidem: the request was not answered within Config.Timeout")
	errParsed  = errors.New("httpidem: the body was parsed as a form before it came here, so that neither its fingerprint nor the handler would have it: parse it inside")
	errOutcome = errors.New("httpidem: Config.Outcome has returned a value that is none")
)

func (m *middleware[TTx]) serve(w http.ResponseWriter, r *http.Request, handler HandlerFunc[TTx]) {
	params, p := m.params(r)
	if p != nil {
		m.problem(w, r, p)
		return
	}
	body, release, err := m.readBody(w, r)
	if err != nil {
		m.problem(w, r, problemOf(err))
		return
	}
	defer release()
	if params != nil {
		if params.Fingerprint, err = m.Fingerprint(r, body); err != nil {
			m.problem(w, r, newProblem(KindInternal, err))
			return
		}
	}
	ctx, cancel := m.context(r.Context())
	defer cancel()
	call := &call[TTx]{middleware: m, outside: w, request: r, params: params, body: body, handler: handler}
	call.serve(ctx) //nolint:contextcheck // The client's going away is not to end it.
}

// params returns those of the request's key but for the fingerprint, nil where it needs none.
func (m *middleware[TTx]) params(r *http.Request) (*idempotency.Params, *Problem) {
	if isSafe(r.Method) {
		return nil, nil
	}
	key, ok := readKey(r.Header, m.Header)
	switch {
	case !ok:
		return nil, newProblem(KindKeyInvalid, nil)
	case key == "" && !m.Optional && (r.Method == http.MethodPost || r.Method == http.MethodPatch):
		p := newProblem(KindKeyMissing, nil)
		p.Detail = "Send a key of your own in the header " + m.Header + ", the same one with every try of this request."
		return nil, p
	case key == "":
		return nil, nil
	}
	scope := m.Scope(r)
	if scope == "" {
		return nil, newProblem(KindInternal, errNoScope)
	}
	// Servers such as fasthttp's write the next request over the text of this one, while
	// others may wait for this key.
	return &idempotency.Params{Key: idempotency.Key{Scope: strings.Clone(scope), ID: strings.Clone(key)}, TTL: m.TTL, Wait: m.Wait}, nil
}

// readBody reads the body, if nobody has before.
func (m *middleware[TTx]) readBody(w http.ResponseWriter, r *http.Request) (body []byte, release func(), err error) {
	switch {
	case len(r.PostForm) > 0 || r.MultipartForm != nil:
		return nil, nil, errParsed
	case r.Body == nil:
		return nil, func() {}, nil
	}
	body, release, err = m.bodies.read(w, r, m.MaxBody)
	if err == nil && len(body) == 0 && r.ContentLength > 0 && r.PostForm != nil {
		// As a form it was malformed, so that nothing is left of it.
		release()
		return nil, nil, errParsed
	}
	return body, release, err
}

// removeFiles removes those of a form that was parsed of a copy of the request. The server
// knows of its own request's alone.
func removeFiles(r *http.Request) {
	if r.MultipartForm != nil {
		_ = r.MultipartForm.RemoveAll()
	}
}

// problem answers in the handler's place.
func (m *middleware[TTx]) problem(w http.ResponseWriter, r *http.Request, p *Problem) {
	p.Type = m.ProblemBase + p.Kind
	if p.RetryAfter > 0 {
		w.Header().Set("Retry-After", retryAfter(p.RetryAfter))
	}
	m.WriteProblem(w, r, p)
}

// call is one request.
type call[TTx any] struct {
	*middleware[TTx]
	outside http.ResponseWriter
	request *http.Request
	// params are nil for a request without a key.
	params  *idempotency.Params
	body    []byte
	handler HandlerFunc[TTx]
	// last is the answer of the last run.
	last *answer
}

// errUndo undoes the work of an answer whose key is to be free.
var errUndo = errors.New("httpidem: the answer undoes the work and frees the key")

func (c *call[TTx]) serve(ctx context.Context) {
	if c.params == nil {
		c.withoutKey(ctx)
	} else {
		c.withKey(ctx)
	}
}

func (c *call[TTx]) withKey(ctx context.Context) {
	outcome, err := c.client.Run(ctx, *c.params, func(ctx context.Context, tx TTx) (idempotency.Answer, error) {
		decided, err := c.run(ctx, tx)
		if err == nil && decided == Release {
			err = errUndo
		}
		if err != nil {
			return idempotency.Answer{}, err
		}
		kept := keptHeader(c.last.header, c.outside.Header(), c.kept)
		response, err := recorded(&message{status: c.last.status, header: kept, body: c.last.body}, c.limit)
		return idempotency.Answer{Response: response, UndoWrites: decided == Record}, err
	})
	switch {
	case err != nil:
		c.failed(ctx, err)
	case outcome.Executed:
		if outcome.Record.Response.Type == TypeNoBody {
			slog.WarnContext(ctx, "httpidem: the answer is larger than the client's MaxResponseSize, and was recorded without its body",
				slog.Int("bytes", len(c.last.body)), slog.String("method", c.request.Method), slog.String("pattern", c.request.Pattern))
		}
		c.last.send(c.outside, c.request, c.ReplayedHeader)
	default:
		c.replay(outcome.Record)
	}
}

func (c *call[TTx]) withoutKey(ctx context.Context) {
	err := c.client.Transact(ctx, func(ctx context.Context, tx TTx) error {
		decided, err := c.run(ctx, tx)
		if err == nil && decided != Commit {
			err = errUndo
		}
		return err
	})
	if err != nil {
		c.failed(ctx, err)
		return
	}
	c.last.send(c.outside, c.request, c.ReplayedHeader)
}

// run runs the handler once, and says what becomes of its work.
func (c *call[TTx]) run(ctx context.Context, tx TTx) (Outcome, error) {
	c.last = nil
	chosen := &atomic.Uint32{}
	ctx = context.WithValue(context.WithValue(ctx, outcomeKey{}, chosen), txKey[TTx]{}, heldTx[TTx]{tx})
	request := withBody(c.request.Clone(ctx), c.body)
	defer removeFiles(request)
	w := newWriter(c.outside, request, c.MaxBuffer)
	// Also where it panics, which goes on: goroutines that it leaves behind write nothing.
	defer func() { _, _ = w.close() }()
	if err := c.handler(w, request, tx); err != nil {
		return 0, &handlerError{err}
	}
	answer, err := w.close()
	if err != nil {
		return 0, err
	}
	c.last = answer
	if outcome := Outcome(chosen.Load()); outcome != 0 {
		return outcome, nil
	}
	outcome := c.Outcome(answer.status, answer.header)
	if outcome < Commit || outcome > Release {
		return 0, errOutcome
	}
	return outcome, nil
}

// withBody gives a copy of the request the body from its start.
func withBody(r *http.Request, body []byte) *http.Request {
	r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
	// Empty: what was parsed of a body that was not there.
	r.PostForm = nil
	return r
}

// failed answers where nothing was recorded.
func (c *call[TTx]) failed(ctx context.Context, err error) {
	// Not where the handler has ended its transaction: its work may not be undone.
	if errors.Is(err, errUndo) && !errors.Is(err, idempotency.ErrOwned) && c.last != nil {
		c.last.send(c.outside, c.request, c.ReplayedHeader)
		return
	}
	if errors.Is(context.Cause(ctx), errTimeout) && errors.Is(err, context.DeadlineExceeded) {
		err = errors.Join(errTimeout, err)
	}
	p := problemOf(err)
	if c.params == nil && p.Kind == KindOutcomeUnknown {
		p.RetryAfter = 0 // another try may do the work twice
	}
	c.problem(c.outside, c.request, p)
}

// replay sends a recorded answer, or what is left of it.
func (c *call[TTx]) replay(record *idempotency.Record) {
	m, err := decode(record.Response)
	if err != nil {
		c.problem(c.outside, c.request, newProblem(KindInternal, err))
		return
	}
	header := c.outside.Header()
	header.Set(c.ReplayedHeader, "true")
	if m.noBody {
		p := newProblem(KindAnswerDropped, nil)
		p.OriginalStatus = m.status
		if location := m.header.Get("Location"); location != "" {
			header.Set("Location", location)
		}
		c.problem(c.outside, c.request, p)
		return
	}
	header.Del("Trailer")
	for name, values := range m.header {
		header[name] = values
	}
	if _, set := header["Content-Type"]; !set {
		header["Content-Type"] = nil // the first answer had none either
	}
	writeBody(c.outside, m.status, m.body)
}

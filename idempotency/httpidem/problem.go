package httpidem

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/samecommit/samecommit/idempotency"
)

// Kinds of problems. Each is documented in docs/http.md under an anchor of its name.
const (
	KindKeyMissing     = "key-missing"
	KindKeyInvalid     = "key-invalid"
	KindBodyUnreadable = "body-unreadable"
	KindBodyTimeout    = "body-timeout"
	KindBodyTooLarge   = "body-too-large"
	KindInProgress     = "in-progress"
	KindKeyReused      = "key-reused"
	KindAnswerDropped  = "answer-dropped"
	KindUnavailable    = "unavailable"
	KindOutcomeUnknown = "outcome-unknown"
	KindInternal       = "internal"
)

// Problem is an answer of the middleware's own, in the place of the handler's.
type Problem struct {
	// Kind is one of the constants, and Type the URI that it makes with
	// Config.ProblemBase.
	Kind, Type string
	// Title is the same for each Kind. Detail says what to do.
	Title, Detail string
	Status        int
	// OriginalStatus is that of a recorded answer whose body was too large, else 0.
	OriginalStatus int
	// RetryAfter is when to try again, in whole seconds; 0 where that is of no use. The
	// header is set already.
	RetryAfter time.Duration
	// Err is the cause. It is for a log and not for the client. Nil where there is none.
	Err error
}

// problems are by their kind, without what a request adds.
var problems = map[string]Problem{
	KindKeyMissing:     {Status: http.StatusBadRequest, Title: "Idempotency key is missing"},
	KindKeyInvalid:     {Status: http.StatusBadRequest, Title: "Idempotency key is malformed", Detail: "Send one header with 1 to 255 visible ASCII characters, in double quotes or bare, without quotes, commas, semicolons and backslashes inside."},
	KindBodyUnreadable: {Status: http.StatusBadRequest, Title: "Request body could not be read", Detail: "It ended early. Send the request again with the same key."},
	KindBodyTimeout:    {Status: http.StatusRequestTimeout, Title: "Request body did not come in time", Detail: "Send the request again with the same key."},
	KindBodyTooLarge:   {Status: http.StatusRequestEntityTooLarge, Title: "Request body is too large", Detail: "Nothing was done."},
	KindInProgress:     {Status: http.StatusConflict, Title: "Request is in progress", Detail: "Another request with this key is at work. Try again after the time in Retry-After."},
	KindKeyReused:      {Status: http.StatusUnprocessableEntity, Title: "Idempotency key was used for another request", Detail: "Use a new key for a new request."},
	KindAnswerDropped:  {Status: http.StatusGone, Title: "Answer was too large to be kept", Detail: "The request was completed with the status in original_status, and was not done again. See Location, if there is one."},
	KindUnavailable:    {Status: http.StatusServiceUnavailable, Title: "Service is unavailable", Detail: "Nothing was done for this try. Send the request again with the same key after the time in Retry-After."},
	KindOutcomeUnknown: {Status: http.StatusServiceUnavailable, Title: "Outcome is unknown", Detail: "The request may have been completed. Send it again with the same key to find out; without a key it may be done twice."},
	KindInternal:       {Status: http.StatusInternalServerError, Title: "Internal error", Detail: "The request was not completed."},
}

// busy is Retry-After where nothing tells.
const busy = time.Second

func newProblem(kind string, err error) *Problem {
	p := problems[kind]
	p.Kind, p.Err = kind, err
	if kind == KindUnavailable || kind == KindOutcomeUnknown {
		p.RetryAfter = busy
	}
	return &p
}

// problemOf says what an error of the client's means.
func problemOf(err error) *Problem {
	if own, ok := errors.AsType[*handlerError](err); ok && !errors.Is(err, idempotency.ErrSerializationFailure) {
		// Whatever it is about, it is not about this key.
		return newProblem(KindInternal, own.err)
	}
	if errors.Is(err, idempotency.ErrOutcomeUnknown) { // also where the time was up
		return newProblem(KindOutcomeUnknown, err)
	}
	if errors.Is(err, errTimeout) { // also where it ended the wait for another request
		return newProblem(KindUnavailable, err)
	}
	if running, ok := errors.AsType[*idempotency.InProgressError](err); ok {
		p := newProblem(KindInProgress, err)
		p.RetryAfter = max((running.RetryAfter+time.Second-1)/time.Second*time.Second, time.Second)
		return p
	}
	for _, known := range []struct {
		err  error
		kind string
	}{
		{idempotency.ErrFingerprintMismatch, KindKeyReused},
		{idempotency.ErrUnavailable, KindUnavailable},
		{idempotency.ErrOverloaded, KindUnavailable},
		{idempotency.ErrReadOnly, KindUnavailable},
		{idempotency.ErrSerializationFailure, KindUnavailable},
		{errTooManyBodies, KindUnavailable},
		{errBodyTooLarge, KindBodyTooLarge},
		{errBodyTimeout, KindBodyTimeout},
		{errBodyCut, KindBodyUnreadable},
	} {
		if errors.Is(err, known.err) {
			return newProblem(known.kind, err)
		}
	}
	return newProblem(KindInternal, err)
}

// writeProblem is Config.WriteProblem where that is nil.
func writeProblem(w http.ResponseWriter, r *http.Request, p *Problem) {
	if p.Status >= http.StatusInternalServerError {
		slog.ErrorContext(r.Context(), "httpidem: "+p.Kind, slog.Any("err", p.Err), slog.String("method", r.Method), slog.String("pattern", r.Pattern))
	}
	text, err := json.Marshal(struct {
		Type           string `json:"type"`
		Title          string `json:"title"`
		Status         int    `json:"status"`
		Detail         string `json:"detail"`
		OriginalStatus int    `json:"original_status,omitempty"`
	}{p.Type, p.Title, p.Status, p.Detail, p.OriginalStatus})
	if err != nil {
		text = []byte("{}") // strings and numbers always marshal
	}
	w.Header().Set("Content-Type", "application/problem+json")
	writeBody(w, p.Status, text)
}

func retryAfter(d time.Duration) string { return strconv.FormatInt(int64(d/time.Second), 10) }

// handlerError is what a handler has returned: an error of its own, also where it is one
// of package idempotency's.
type handlerError struct{ err error }

func (e *handlerError) Error() string {
	return fmt.Sprintf("httpidem: the handler has failed: %v", e.err)
}

func (e *handlerError) Unwrap() error { return e.err }

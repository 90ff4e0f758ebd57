package httpidem

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// writer holds the answer of one run of a handler in memory. It has no Flush, Hijack and
// Unwrap, so that http.ResponseController says that they are not supported.
type writer struct {
	// outside is the server's.
	outside http.ResponseWriter
	head    bool // the answer to a HEAD, which has no body
	limit   int

	// mu guards what follows against goroutines that a handler leaves behind.
	mu sync.Mutex
	// header is the handler's to change until the status is written, when sent is taken
	// from it.
	header, sent http.Header
	status       int
	body         []byte
	// declared is the handler's own Content-Length, -1 without one.
	declared int64
	failed   error
	closed   bool
}

var (
	errNothingWritten = errors.New("httpidem: the handler has written nothing, not even a status: a framework that writes errors later, or runs the handler elsewhere, must do so inside")
	errCutShort       = errors.New("httpidem: the handler has written less than its Content-Length")
	errSwitching      = errors.New("httpidem: the handler has answered 101 Switching Protocols: leave it out of the middleware")
	errTooLarge       = errors.New("httpidem: the answer is larger than Config.MaxBuffer: return a reference, or raise it")
	errReturned       = errors.New("httpidem: the handler has returned: its writer takes no more")
)

func newWriter(outside http.ResponseWriter, r *http.Request, limit int) *writer {
	header := outside.Header().Clone()
	if header == nil {
		header = make(http.Header)
	}
	return &writer{outside: outside, head: r.Method == http.MethodHead, limit: limit, header: header, declared: -1}
}

// Header returns the header of the answer, which begins as that of the middlewares outside.
func (w *writer) Header() http.Header { return w.header }

// WriteHeader sets the status. 1xx are dropped.
func (w *writer) WriteHeader(status int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writeHeader(status)
}

func (w *writer) writeHeader(status int) {
	if status < 100 || status > 999 {
		panic(fmt.Sprintf("httpidem: invalid status %d", status)) // as net/http does
	}
	switch {
	case w.closed || w.status != 0:
		return
	case status == http.StatusSwitchingProtocols:
		w.failed = errSwitching
	case status < 200:
		return
	}
	w.status, w.sent = status, w.header.Clone()
	if length := w.sent.Get("Content-Length"); length != "" {
		if declared, err := strconv.ParseInt(length, 10, 64); err == nil && declared >= 0 {
			w.declared = declared
		}
	}
}

// Write adds to the body.
func (w *writer) Write(data []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0, errReturned
	}
	if w.status == 0 {
		w.writeHeader(http.StatusOK)
	}
	switch {
	case w.failed != nil:
		return 0, w.failed
	case withoutBody(w.status):
		return 0, http.ErrBodyNotAllowed
	case w.declared >= 0 && int64(len(w.body)+len(data)) > w.declared:
		return 0, http.ErrContentLength
	case len(w.body)+len(data) > w.limit:
		w.failed = errTooLarge
		return 0, w.failed
	}
	w.body = append(w.body, data...)
	return len(data), nil
}

// WriteString is Write, for io.WriteString.
func (w *writer) WriteString(text string) (int, error) { return w.Write([]byte(text)) }

// SetWriteDeadline is for http.ResponseController. After the handler's return the
// server's own panics, or would set that of another request.
func (w *writer) SetWriteDeadline(deadline time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return errReturned
	}
	return http.NewResponseController(w.outside).SetWriteDeadline(deadline)
}

// close takes no more, and returns the answer.
func (w *writer) close() (*answer, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	switch {
	case w.failed != nil:
		return nil, w.failed
	case w.status == 0:
		return nil, errNothingWritten
	case w.declared > int64(len(w.body)) && !w.head && !withoutBody(w.status):
		return nil, errCutShort
	}
	w.sent = cleaned(w.sent)
	if _, set := w.sent["Content-Type"]; !set && len(w.body) > 0 && w.sent.Get("Content-Encoding") == "" {
		w.sent.Set("Content-Type", http.DetectContentType(w.body))
	}
	return &answer{status: w.status, header: w.sent, body: w.body}, nil
}

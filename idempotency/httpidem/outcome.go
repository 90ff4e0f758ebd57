package httpidem

import (
	"context"
	"net/http"
	"sync/atomic"
)

// Outcome is what becomes of a handler's work, and of its key, behind an answer. The zero
// value is invalid.
type Outcome uint8

// What an answer can mean.
const (
	// Commit commits the work together with the answer, which later requests get.
	Commit Outcome = iota + 1
	// Record undoes the work and records the answer, which later requests get.
	Record
	// Release undoes the work and frees the key: the next request runs again.
	Release
)

// DefaultOutcome is Config.Outcome where that is nil. 2xx and 3xx Commit. 4xx Record, since
// the same request would be refused again, but for those that another try may get over,
// which Release: 401, 403, 407, 408, 421, 425, 429, 499 of a proxy whose client has gone,
// and any with Retry-After. All others Release.
func DefaultOutcome(status int, header http.Header) Outcome {
	switch {
	case status >= 200 && status < 400:
		return Commit
	case status < 400 || status >= 500 || header.Get("Retry-After") != "":
		return Release
	}
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusProxyAuthRequired, http.StatusRequestTimeout,
		http.StatusMisdirectedRequest, http.StatusTooEarly, http.StatusTooManyRequests, 499:
		return Release
	}
	return Record
}

// SetOutcome decides, from inside a handler, what becomes of the work and the key behind
// its answer, in the place of Config.Outcome. The last call counts. It does nothing outside
// of a handler of this package, after it has returned, and for a value that is none.
func SetOutcome(ctx context.Context, outcome Outcome) {
	if chosen, ok := ctx.Value(outcomeKey{}).(*atomic.Uint32); ok && outcome >= Commit && outcome <= Release {
		chosen.Store(uint32(outcome))
	}
}

// outcomeKey is where a context has what SetOutcome sets.
type outcomeKey struct{}

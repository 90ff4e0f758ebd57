package httpidem

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"time"

	"github.com/samecommit/samecommit/idempotency"
)

// Defaults of Config.
const (
	DefaultHeader         = "Idempotency-Key"
	DefaultReplayedHeader = "Idempotent-Replayed"
	DefaultMaxBody        = 1 << 20
	DefaultMaxBodies      = 256 << 20
	DefaultMaxBuffer      = 32 << 20
	DefaultTimeout        = 30 * time.Second
	DefaultProblemBase    = "https://github.com/samecommit/samecommit/blob/main/docs/http.md#"
)

// Config configures New and Handle.
type Config struct {
	// Scope returns who and what a key belongs to: the authenticated caller and the
	// operation, as in Key.Scope. It must not come from the request as the client wrote
	// it. Where it is empty for a request with a key, that is a 500, and nothing runs.
	// Required.
	Scope func(r *http.Request) string
	// Optional lets POST and PATCH come without a key. They then have a transaction and
	// no record. Other unsafe methods always may. Defaults to false.
	Optional bool
	// Header is the name of the header with the key. Defaults to "Idempotency-Key".
	Header string
	// ReplayedHeader is the name of the header that marks a recorded answer, with the
	// value "true". Defaults to "Idempotent-Replayed".
	ReplayedHeader string
	// MaxBody is the largest body of a request, in bytes. Defaults to 1 MiB.
	MaxBody int64
	// MaxBodies bounds the bodies of all requests that are being answered, in bytes,
	// duplicates that wait among them. One more is a 503. Clients that send slowly hold
	// what they have sent until the server's ReadTimeout, which has no default. Defaults
	// to 256 MiB.
	MaxBodies int64
	// MaxBuffer is the largest body of an answer, in bytes. A larger one is a 500. One
	// above the client's MaxResponseSize is sent and recorded without its body. Defaults
	// to 32 MiB.
	MaxBuffer int
	// Timeout bounds a request from when its body is read: the wait for another one and
	// the handler. It goes on when the client goes away, so that a later try gets the
	// answer. Defaults to 30 seconds.
	Timeout time.Duration
	// StopWithClient cancels the handler when the client goes away. Defaults to false.
	StopWithClient bool
	// TTL and Wait are Params.TTL and Params.Wait. They default to those of the client.
	TTL, Wait time.Duration
	// Headers are recorded beside Cache-Control, Content-Disposition, Content-Encoding,
	// Content-Language, Content-Location, Content-Type, ETag, Last-Modified, Link, Location,
	// Retry-After and Vary. Not allowed are cookies, credentials, challenges, what belongs
	// to a connection, Content-Length and Date. Defaults to none.
	Headers []string
	// Outcome says what becomes of the work and the key behind an answer. A value that is
	// none is a 500. Defaults to DefaultOutcome.
	Outcome func(status int, header http.Header) Outcome
	// Fingerprint digests a request, of which it gets a copy with a body of its own. An
	// error is a 500. Defaults to DefaultFingerprint; JSONFingerprint is there too.
	Fingerprint func(r *http.Request, body []byte) (idempotency.Fingerprint, error)
	// ProblemBase and the kind of a problem are its type. Defaults to the address of
	// docs/http.md with a "#".
	ProblemBase string
	// WriteProblem writes a problem in another form; Retry-After and the marker are set
	// already. The default writes application/problem+json, and logs those of status 500
	// and above with slog.
	WriteProblem func(w http.ResponseWriter, r *http.Request, p *Problem)
}

// settings is a Config whose defaults are filled in.
type settings struct {
	Config
	// kept are the names of the headers that are recorded.
	kept   []string
	bodies *bodies
}

func newSettings(config *Config) (*settings, error) {
	if config == nil || config.Scope == nil {
		return nil, &idempotency.ParamError{Field: "Config.Scope", Reason: "is nil; it returns who and what a key belongs to"}
	}
	s := &settings{Config: *config}
	s.Header = textproto.CanonicalMIMEHeaderKey(cmp.Or(s.Header, DefaultHeader))
	s.ReplayedHeader = textproto.CanonicalMIMEHeaderKey(cmp.Or(s.ReplayedHeader, DefaultReplayedHeader))
	s.ProblemBase = cmp.Or(s.ProblemBase, DefaultProblemBase)
	s.MaxBody = cmp.Or(s.MaxBody, DefaultMaxBody)
	s.MaxBodies = cmp.Or(s.MaxBodies, DefaultMaxBodies)
	s.MaxBuffer = cmp.Or(s.MaxBuffer, DefaultMaxBuffer)
	s.Timeout = cmp.Or(s.Timeout, DefaultTimeout)
	if custom := s.Outcome; custom == nil {
		s.Outcome = DefaultOutcome
	} else { // it may change what it is given
		s.Outcome = func(status int, header http.Header) Outcome { return custom(status, header.Clone()) }
	}
	if custom := s.Fingerprint; custom == nil {
		s.Fingerprint = DefaultFingerprint
	} else {
		s.Fingerprint = func(r *http.Request, body []byte) (idempotency.Fingerprint, error) {
			request := withBody(r.Clone(r.Context()), body)
			defer removeFiles(request)
			return custom(request, body)
		}
	}
	if s.WriteProblem == nil {
		s.WriteProblem = writeProblem
	}
	s.bodies = &bodies{most: s.MaxBodies}
	for field, value := range map[string]int64{"MaxBody": s.MaxBody, "MaxBodies": s.MaxBodies, "MaxBuffer": int64(s.MaxBuffer), "Timeout": int64(s.Timeout), "TTL": int64(s.TTL)} {
		if value < 0 {
			return nil, &idempotency.ParamError{Field: "Config." + field, Reason: "is negative; 0 means the default"}
		}
	}
	switch {
	case s.MaxBody > s.MaxBodies:
		return nil, &idempotency.ParamError{Field: "Config.MaxBody", Reason: "is larger than MaxBodies, so that no request of that size could ever be read"}
	case s.TTL != 0 && s.TTL < time.Microsecond:
		return nil, &idempotency.ParamError{Field: "Config.TTL", Reason: "is shorter than a microsecond"}
	case s.Wait < 0 && s.Wait != idempotency.NoWait:
		return nil, &idempotency.ParamError{Field: "Config.Wait", Reason: "is negative; use NoWait to fail at once"}
	}
	for field, name := range map[string]string{"Header": s.Header, "ReplayedHeader": s.ReplayedHeader} {
		if !isToken(name) {
			return nil, &idempotency.ParamError{Field: "Config." + field, Reason: "is not the name of a header"}
		}
	}
	s.kept = slices.Clone(recordedHeaders)
	for i, name := range config.Headers {
		field, canonical := fmt.Sprintf("Config.Headers[%d]", i), textproto.CanonicalMIMEHeaderKey(name)
		switch {
		case !isToken(name):
			return nil, &idempotency.ParamError{Field: field, Reason: "is not the name of a header"}
		case slices.Contains(neverRecorded, canonical), canonical == s.ReplayedHeader:
			return nil, &idempotency.ParamError{Field: field, Reason: "is " + canonical + ", which must not be recorded: it belongs to one caller, one connection or one moment"}
		case !slices.Contains(s.kept, canonical):
			s.kept = append(s.kept, canonical)
		}
	}
	return s, nil
}

// neverRecorded are secrets, and what is true of one connection or moment only.
var neverRecorded = []string{
	"Set-Cookie", "Set-Cookie2", "Cookie", "Authorization", "Proxy-Authorization", "Www-Authenticate", "Proxy-Authenticate",
	"Authentication-Info", "Proxy-Authentication-Info", "Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer",
	"Transfer-Encoding", "Upgrade", "Content-Length", "Date",
}

// isToken reports whether the text can be the name of a header: a token of RFC 9110.
func isToken(name string) bool {
	for i := range len(name) {
		c := name[i]
		if c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0 {
			continue
		}
		return false
	}
	return name != ""
}

// context returns that of a request's work.
func (s *settings) context(ctx context.Context) (context.Context, context.CancelFunc) {
	if !s.StopWithClient {
		ctx = context.WithoutCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, s.Timeout, errTimeout)
}

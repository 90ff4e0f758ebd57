package httpidem_test

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/samecommit/samecommit/idempotency/httpidem"
)

// A handler outside answers before the work is done, which goes on: a later try gets its
// answer.
func TestTimeoutHandlerOutside(t *testing.T) {
	t.Parallel()
	eachProtocol(t, func(o options) {
		started, goOn := make(chan struct{}), make(chan struct{})
		o.config.Wait = time.Minute
		o.outside = func(next http.Handler) http.Handler {
			patient, impatient := http.TimeoutHandler(next, time.Minute, ""), http.TimeoutHandler(next, 10*time.Millisecond, "too slow")
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("First") != "" {
					impatient.ServeHTTP(w, r)
					return
				}
				patient.ServeHTTP(w, r)
			})
		}
		a := newAPI(o.t, o, func(w http.ResponseWriter, r *http.Request) {
			close(started)
			<-goOn
			answerWith(201)(w, r)
		})
		first := a.post("k", "body", func(r *http.Request) { r.Header.Set("First", "yes") })
		if first.StatusCode != http.StatusServiceUnavailable || first.text != "too slow" || first.replayed() {
			a.Errorf("%d %q, want the answer of the handler outside", first.StatusCode, first.text)
		}
		<-started
		close(goOn)
		if again := a.post("k", "body"); again.StatusCode != 201 || again.text != "answer 201" || !again.replayed() {
			a.Errorf("%d %q, replayed %t", again.StatusCode, again.text, again.replayed())
		}
		a.want(1, 1)
	})
}

// requestIDs gives each request a number.
func requestIDs(next http.Handler) http.Handler {
	var count atomic.Int32
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := fmt.Sprint("request ", count.Add(1))
		w.Header().Set("X-Request-Id", id)
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), requestIDKey{}, id)))
	})
}

type requestIDKey struct{}

// cors lets the pages of any origin in.
func cors(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Add("Vary", "Origin")
		w.Header().Set("Access-Control-Allow-Origin", r.Header.Get("Origin"))
		w.Header().Add("Access-Control-Expose-Headers", httpidem.DefaultReplayedHeader)
		next.ServeHTTP(w, r)
	})
}

// compressor compresses for those that accept it.
func compressor(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Add("Vary", "Accept-Encoding")
		if r.Header.Get("Accept-Encoding") != "gzip" {
			next.ServeHTTP(w, r)
			return
		}
		compressing := &gzipWriter{ResponseWriter: w}
		defer compressing.close()
		next.ServeHTTP(compressing, r)
	})
}

type gzipWriter struct {
	http.ResponseWriter
	gzip *gzip.Writer
}

func (w *gzipWriter) WriteHeader(status int) {
	w.Header().Del("Content-Length")
	w.Header().Set("Content-Encoding", "gzip")
	w.ResponseWriter.WriteHeader(status)
	w.gzip = gzip.NewWriter(w.ResponseWriter)
}

func (w *gzipWriter) Write(data []byte) (int, error) { return w.gzip.Write(data) }

func (w *gzipWriter) close() {
	if w.gzip != nil {
		_ = w.gzip.Close()
	}
}

// What middlewares outside say of a request is said of each, fresh or a replay, and once.
func TestMiddlewaresOutside(t *testing.T) {
	t.Parallel()
	eachProtocol(t, func(o options) {
		o.outside = func(next http.Handler) http.Handler { return requestIDs(cors(compressor(next))) }
		a := newAPI(o.t, o, func(w http.ResponseWriter, r *http.Request) {
			if r.Context().Value(requestIDKey{}) != w.Header().Get("X-Request-Id") {
				o.t.Error("the handler has not got what a middleware outside has put into the context")
			}
			w.Header().Add("Vary", "Accept-Language")
			w.WriteHeader(http.StatusCreated)
			_, _ = io.WriteString(w, strings.Repeat("text ", 100))
		})
		for i, encoding := range []string{"gzip", "identity", "gzip", "identity"} {
			origin := fmt.Sprintf("https://%d.example.org", i)
			got := a.post("k", "body", func(r *http.Request) {
				r.Header.Set("Accept-Encoding", encoding)
				r.Header.Set("Origin", origin)
			})
			text := got.text
			if encoding == "gzip" {
				text = unzipped(o.t, text)
			}
			if got.StatusCode != http.StatusCreated || text != strings.Repeat("text ", 100) || got.replayed() != (i > 0) {
				o.t.Errorf("request %d: %d, replayed %t, %q", i, got.StatusCode, got.replayed(), text)
			}
			for name, want := range map[string][]string{
				"X-Request-Id": {fmt.Sprint("request ", i+1)}, "Access-Control-Allow-Origin": {origin}, "Access-Control-Expose-Headers": {"Idempotent-Replayed"},
				"Vary": {"Origin", "Accept-Encoding", "Accept-Language"}, "Content-Encoding": map[string][]string{"gzip": {"gzip"}}[encoding],
			} {
				if !reflect.DeepEqual(got.Header[name], want) {
					o.t.Errorf("request %d: %s %q, want %q", i, name, got.Header[name], want)
				}
			}
		}
		a.want(1, 1)
	})
}

func unzipped(t *testing.T, text string) string {
	t.Helper()
	reader, err := gzip.NewReader(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(reader)
	if err != nil {
		t.Fatal(err)
	}
	return string(plain)
}

// A middleware inside of itself would wait for itself. It is a 500, and the key is free.
func TestNested(t *testing.T) {
	t.Parallel()
	eachProtocol(t, func(o options) {
		o.config.Wait = time.Minute
		o = o.filled()
		keys, err := httpidem.New(o.newClient(o.t), &o.config)
		if err != nil {
			o.t.Fatal(err)
		}
		a := &api{T: o.t}
		once := keys(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			a.runs.Add(1)
			answerWith(201)(w, r)
		}))
		twice := keys(once)
		a.serve(o, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Twice") != "" {
				twice.ServeHTTP(w, r)
				return
			}
			once.ServeHTTP(w, r)
		}))
		got := a.post("k", "body", func(r *http.Request) { r.Header.Set("Twice", "yes") })
		a.wantProblem(got, http.StatusInternalServerError, httpidem.KindInternal)
		if got := a.post("k", "body"); got.StatusCode != 201 || got.replayed() {
			o.t.Errorf("afterwards: %d, replayed %t; the key was not free", got.StatusCode, got.replayed())
		}
		a.want(1, 0)
	})
}

package httpidem_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/httpidem"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

// The first client gets all headers. A replay has the recorded ones, in the place of what
// the middlewares outside have set under the same name, and the marker.
func TestHeadersOfAReplay(t *testing.T) {
	t.Parallel()
	eachProtocol(t, func(o options) {
		t := o.t
		request := 0
		o.outside = func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				request++
				w.Header().Set("X-Request-Id", strconv.Itoa(request))
				w.Header().Set("Vary", "Origin")
				w.Header().Set("X-Dropped", "outside")
				next.ServeHTTP(w, r)
			})
		}
		o.config.Headers = []string{"x-own"}
		a := newAPI(t, o, func(w http.ResponseWriter, _ *http.Request) {
			h := w.Header()
			h.Del("X-Dropped")
			h.Set("Location", "/charges/1")
			h.Set("ETag", `"v1"`)
			h.Add("Link", "</a>; rel=prev")
			h.Add("Link", "</b>; rel=next, </c>; rel=last")
			h.Set("Vary", "Accept")
			h.Set("X-Own", "two\r\nlines")
			h.Set("X-Other", "not recorded")
			h.Set("Set-Cookie", "session=secret")
			h.Set("Idempotent-Replayed", "true")
			h.Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusCreated)
			h.Set("Location", "too late")
			_, _ = io.WriteString(w, `{"id":1}`)
		})
		first, again := a.post("k", ""), a.post("k", "")
		for i, got := range []*reply{first, again} {
			if got.StatusCode != http.StatusCreated || got.text != `{"id":1}` || got.ContentLength != 8 {
				t.Errorf("%d %q of %d bytes", got.StatusCode, got.text, got.ContentLength)
			}
			for name, want := range map[string][]string{
				"Location": {"/charges/1"}, "Etag": {`"v1"`}, "Link": {"</a>; rel=prev", "</b>; rel=next, </c>; rel=last"},
				"Vary": {"Accept"}, "X-Own": {"two  lines"}, "Content-Type": {"application/json"}, "X-Request-Id": {strconv.Itoa(i + 1)},
			} {
				if !reflect.DeepEqual(got.Header[name], want) {
					t.Errorf("answer %d has %s %q, want %q", i+1, name, got.Header[name], want)
				}
			}
		}
		if first.replayed() || !again.replayed() {
			t.Errorf("marked a replay: %t and %t, want false and true", first.replayed(), again.replayed())
		}
		if first.Header.Get("Set-Cookie") == "" || first.Header.Get("X-Other") == "" || first.Header.Get("X-Dropped") != "" {
			t.Errorf("the first client has not got what the handler has set: %v", first.Header)
		}
		if again.Header.Get("Set-Cookie") != "" || again.Header.Get("X-Other") != "" {
			t.Errorf("a cookie or another header was replayed: %v", again.Header)
		}
	})
}

// What a run wrote that was undone is nobody's answer.
func TestAnswerOfAnotherCall(t *testing.T) {
	t.Parallel()
	runs := 0
	a := newAPI(t, options{store: rivalledStore{memstore.New[*memstore.Tx](nil)}}, func(w http.ResponseWriter, _ *http.Request) {
		runs++
		w.WriteHeader(http.StatusCreated)
		_, _ = fmt.Fprint(w, "run ", runs)
	})
	got := a.post("a", "body")
	if got.text != "run 1" || !got.replayed() || runs != 2 {
		t.Errorf("after %d runs the answer is %v with %v, want that of the first, and the marker", runs, got.text, got.Header)
	}
}

func TestContentTypeIsSniffedOnce(t *testing.T) {
	t.Parallel()
	a := newAPI(t, options{}, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("None") != "" {
			w.Header()["Content-Type"] = nil
		}
		_, _ = io.WriteString(w, "<html>")
	})
	for range 2 {
		if got := a.post("k", "").Header.Get("Content-Type"); got != "text/html; charset=utf-8" {
			t.Errorf("Content-Type is %q", got)
		}
		none := a.post("none", "", func(r *http.Request) { r.Header.Set("None", "yes") })
		if got, set := none.Header["Content-Type"]; set {
			t.Errorf("Content-Type is %q, where the handler wants none", got)
		}
	}
}

// A body belongs to no 204. That is the handler's mistake, and known to it.
func TestStatusWithoutABody(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusNoContent, http.StatusNotModified} {
		a := newAPI(t, options{}, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			if _, err := io.WriteString(w, "body"); !errors.Is(err, http.ErrBodyNotAllowed) {
				t.Errorf("%d: Write returned %v", status, err)
			}
		})
		for i := range 2 {
			if got := a.post("k", ""); got.StatusCode != status || got.text != "" || got.Header.Get("Content-Length") != "" || got.replayed() != (i == 1) {
				t.Errorf("%d %q, %v", got.StatusCode, got.text, got.Header)
			}
		}
		a.want(1, 1)
	}
}

func TestWriterOfAHandler(t *testing.T) {
	t.Parallel()
	eachProtocol(t, func(o options) {
		t := o.t
		var kept http.ResponseWriter
		a := newAPI(t, o, func(w http.ResponseWriter, _ *http.Request) {
			kept = w
			controller := http.NewResponseController(w)
			if err := controller.Flush(); !errors.Is(err, http.ErrNotSupported) {
				t.Errorf("Flush: %v", err)
			}
			if _, _, err := controller.Hijack(); !errors.Is(err, http.ErrNotSupported) {
				t.Errorf("Hijack: %v", err)
			}
			if err := controller.SetWriteDeadline(time.Now().Add(time.Minute)); err != nil {
				t.Errorf("SetWriteDeadline: %v", err)
			}
			w.Header().Set("Link", "</early>; rel=preload")
			w.WriteHeader(http.StatusEarlyHints)
			w.Header().Del("Link")
			w.Header().Set("Trailer", "X-Sum")
			w.Header().Set("Content-Length", "4")
			w.WriteHeader(http.StatusCreated)
			w.WriteHeader(http.StatusTeapot)
			if _, err := io.WriteString(w, "four and more"); !errors.Is(err, http.ErrContentLength) {
				t.Errorf("more than its Content-Length: %v", err)
			}
			_, _ = io.WriteString(w, "four")
			w.Header().Set("X-Sum", "1")
			w.Header().Set(http.TrailerPrefix+"X-Other", "2")
		})
		early := 0
		trace := &httptrace.ClientTrace{Got1xxResponse: func(int, textproto.MIMEHeader) error {
			early++
			return nil
		}}
		got := a.post("k", "", func(r *http.Request) { *r = *r.WithContext(httptrace.WithClientTrace(r.Context(), trace)) })
		if got.StatusCode != http.StatusCreated || got.text != "four" || early > 0 || len(got.Trailer) > 0 || got.Header.Get("Trailer") != "" {
			t.Errorf("%d %q, %d answers 1xx, %v, trailers %v", got.StatusCode, got.text, early, got.Header, got.Trailer)
		}
		if n, err := kept.Write([]byte("late")); n > 0 || err == nil {
			t.Errorf("after the handler's return %d bytes were written: %v", n, err)
		}
		if err := http.NewResponseController(kept).SetWriteDeadline(time.Now()); err == nil {
			t.Error("after the handler's return a deadline was set")
		}
		if got := a.post("k", ""); got.text != "four" || !got.replayed() {
			t.Errorf("the replay is %q", got.text)
		}
	})
}

// What is too large to be recorded is never done again.
func TestAnswerThatIsTooLargeToKeep(t *testing.T) {
	t.Parallel()
	a := newAPI(t, options{client: idempotency.Config{MaxResponseSize: 200}}, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "/charges/1")
		w.WriteHeader(http.StatusCreated)
		_, _ = w.Write(make([]byte, 1000))
	})
	if got := a.post("k", ""); got.StatusCode != http.StatusCreated || len(got.text) != 1000 {
		t.Errorf("%d of %d bytes, want all of it", got.StatusCode, len(got.text))
	}
	got := a.post("k", "")
	a.wantProblem(got, http.StatusGone, httpidem.KindAnswerDropped)
	var problem struct {
		OriginalStatus int `json:"original_status"`
	}
	if err := json.Unmarshal([]byte(got.text), &problem); err != nil || problem.OriginalStatus != http.StatusCreated || got.Header.Get("Location") != "/charges/1" || !got.replayed() {
		t.Errorf("%s, %v, %v", got.text, got.Header, err)
	}
	a.want(1, 1)
}

// Headers alone can be too large: only Location is kept then.
func TestHeadersThatAreTooLargeToKeep(t *testing.T) {
	t.Parallel()
	a := newAPI(t, options{client: idempotency.Config{MaxResponseSize: 200}}, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "/charges/1")
		w.Header().Set("Link", strings.Repeat("x", 300))
		w.WriteHeader(http.StatusCreated)
	})
	if got := a.post("k", ""); got.StatusCode != http.StatusCreated || len(got.Header.Get("Link")) != 300 {
		t.Errorf("%d, %v", got.StatusCode, got.Header)
	}
	got := a.post("k", "")
	a.wantProblem(got, http.StatusGone, httpidem.KindAnswerDropped)
	if got.Header.Get("Location") != "/charges/1" {
		t.Errorf("%v", got.Header)
	}
	a.want(1, 1)
}

// What middlewares outside have set is theirs again on a replay, and not recorded; names
// that are not canonical are.
func TestHeadersOutside(t *testing.T) {
	t.Parallel()
	eachProtocol(t, func(o options) {
		t := o.t
		encoding := "gzip"
		o.outside = func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Encoding", encoding) // as some compressors do
				next.ServeHTTP(w, r)
			})
		}
		a := newAPI(t, o, func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["location"] = []string{"/charges/1"}
			w.Header()["idempotent-replayed"] = []string{"true"}
			_, _ = io.WriteString(w, "text")
		})
		for i, want := range []string{"gzip", "identity"} {
			encoding = want
			got := a.post("k", "", func(r *http.Request) { r.Header.Set("Accept-Encoding", "identity") })
			if got.Header.Get("Content-Encoding") != want || got.Header.Get("Location") != "/charges/1" || got.replayed() != (i == 1) {
				t.Errorf("%v; want the encoding %s and the location", got.Header, want)
			}
		}
	})
}

// Each problem in the form of the service.
func TestWriteProblem(t *testing.T) {
	t.Parallel()
	var seen *httpidem.Problem
	a := newAPI(t, options{config: httpidem.Config{ProblemBase: "https://example.org/problems/", WriteProblem: func(w http.ResponseWriter, _ *http.Request, p *httpidem.Problem) {
		seen = p
		w.WriteHeader(p.Status)
		_, _ = fmt.Fprintf(w, `{"error":%q}`, p.Kind)
	}}}, answerWith(201))
	if got := a.post("", ""); got.StatusCode != 400 || got.text != `{"error":"key-missing"}` || seen.Type != "https://example.org/problems/key-missing" {
		t.Errorf("%d %s, %+v", got.StatusCode, got.text, seen)
	}
}

func TestBodies(t *testing.T) {
	t.Parallel()
	eachProtocol(t, func(o options) {
		t := o.t
		o.config.MaxBody = 100
		a := newAPI(t, o, func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil || int64(len(body)) != r.ContentLength {
				t.Errorf("the handler has read %d bytes of %d: %v", len(body), r.ContentLength, err)
			}
			_, _ = w.Write(body)
		})
		chunked := func(r *http.Request) { r.ContentLength = -1 }
		for _, size := range []int{0, 1, 100} {
			body := strings.Repeat("x", size)
			key := fmt.Sprint("k", size)
			if size > 0 {
				if got := a.post(key, body, chunked); got.StatusCode != 200 || got.text != body {
					t.Errorf("%d bytes in chunks: %d %q", size, got.StatusCode, got.text)
				}
			}
			if got := a.post(key, body); got.StatusCode != 200 || got.text != body || got.replayed() != (size > 0) {
				t.Errorf("%d bytes: %d %q, replayed %t; want the same answer in chunks or not", size, got.StatusCode, got.text, got.replayed())
			}
		}
		runs := a.runs.Load()
		body := strings.Repeat("x", 101)
		a.wantProblem(a.post("large", body), http.StatusRequestEntityTooLarge, httpidem.KindBodyTooLarge)
		a.wantProblem(a.post("large", body, chunked), http.StatusRequestEntityTooLarge, httpidem.KindBodyTooLarge)
		if a.runs.Load() != runs {
			t.Error("a handler ran without its body")
		}
	})
}

// A middleware outside has put another body in the place of the request's, and not its
// length: the handler gets all of it, and it is compared.
func TestBodyThatWasReplaced(t *testing.T) {
	t.Parallel()
	eachProtocol(t, func(o options) {
		t := o.t
		o.outside = func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				r.Body = io.NopCloser(strings.NewReader(strings.Repeat("x", 100_000) + r.Header.Get("End")))
				next.ServeHTTP(w, r)
			})
		}
		a := newAPI(t, o, func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			_, _ = fmt.Fprint(w, len(body), err)
		})
		end := func(text string) func(*http.Request) {
			return func(r *http.Request) { r.Header.Set("End", text) }
		}
		if got := a.post("k", "short", end("a")); got.text != "100001 <nil>" {
			t.Errorf("the handler has read %s", got.text)
		}
		a.wantProblem(a.post("k", "short", end("b")), http.StatusUnprocessableEntity, httpidem.KindKeyReused)
	})
}

// Neither the handler nor a fingerprint would have a form that was parsed outside.
func TestFormThatWasParsedOutside(t *testing.T) {
	t.Parallel()
	form := func(r *http.Request) { r.Header.Set("Content-Type", "application/x-www-form-urlencoded") }
	for _, c := range []struct {
		body    string
		chunked bool
	}{
		{"amount=1", false},
		{"amount=1", true},
		{"%zz", false}, // of which nothing is left
	} {
		a := newAPI(t, options{outside: func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				r.PostFormValue("token")
				next.ServeHTTP(w, r)
			})
		}}, answerWith(201))
		a.wantProblem(a.post("k", c.body, form, func(r *http.Request) {
			if c.chunked {
				r.ContentLength = -1
			}
		}), http.StatusInternalServerError, httpidem.KindInternal)
		a.want(0, 0)
	}
	a := newAPI(t, options{config: httpidem.Config{Fingerprint: func(r *http.Request, _ []byte) (idempotency.Fingerprint, error) {
		return idempotency.FingerprintOf(r.FormValue("amount")), nil
	}}}, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.FormValue("amount")) })
	if got := a.post("k", "amount=1", form); got.text != "1" {
		t.Errorf("%d %q; want the handler to have the form too", got.StatusCode, got.text)
	}
	a.wantProblem(a.post("k", "amount=2", form), http.StatusUnprocessableEntity, httpidem.KindKeyReused)
}

// A body whose reader panics holds nothing afterwards.
func TestBodyThatPanics(t *testing.T) {
	t.Parallel()
	a := newAPI(t, options{config: httpidem.Config{MaxBody: 100, MaxBodies: 100}, outside: func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() {
				if recover() != nil {
					w.WriteHeader(http.StatusTeapot)
				}
			}()
			if r.Header.Get("Panic") != "" {
				r.Body = io.NopCloser(io.MultiReader(strings.NewReader("x"), panicReader{}))
			}
			next.ServeHTTP(w, r)
		})
	}}, answerWith(201))
	body := strings.Repeat("x", 100)
	if got := a.post("k", body, func(r *http.Request) { r.Header.Set("Panic", "yes") }); got.StatusCode != http.StatusTeapot {
		t.Errorf("%d", got.StatusCode)
	}
	if got := a.post("k", body); got.StatusCode != 201 {
		t.Errorf("afterwards: %d %s", got.StatusCode, got.text)
	}
}

type panicReader struct{}

func (panicReader) Read([]byte) (int, error) { panic("a bug") }

func TestLimitOutside(t *testing.T) {
	t.Parallel()
	a := newAPI(t, options{outside: func(next http.Handler) http.Handler { return http.MaxBytesHandler(next, 10) }}, answerWith(201))
	a.wantProblem(a.post("k", strings.Repeat("x", 11)), http.StatusRequestEntityTooLarge, httpidem.KindBodyTooLarge)
	a.want(0, 0)
}

// Bodies of requests that wait are bounded together.
func TestMaxBodies(t *testing.T) {
	t.Parallel()
	started, goOn := make(chan struct{}), make(chan struct{})
	a := newAPI(t, options{config: httpidem.Config{MaxBody: 60, MaxBodies: 100}}, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("First") != "" {
			close(started)
			<-goOn
		}
		answerWith(201)(w, r)
	})
	first := make(chan error)
	go func() {
		_, err := a.do(a.request("first", strings.Repeat("x", 60), func(r *http.Request) { r.Header.Set("First", "yes") }))
		first <- err
	}()
	<-started
	got := a.post("second", strings.Repeat("x", 41))
	a.wantProblem(got, http.StatusServiceUnavailable, httpidem.KindUnavailable)
	if got.Header.Get("Retry-After") == "" {
		t.Error("it does not say when to try again")
	}
	// One whose length is not known is taken for the largest.
	a.wantProblem(a.post("chunked", "x", func(r *http.Request) { r.ContentLength = -1 }), http.StatusServiceUnavailable, httpidem.KindUnavailable)
	if got := a.post("third", strings.Repeat("x", 40)); got.StatusCode != 201 {
		t.Errorf("%d %s", got.StatusCode, got.text)
	}
	close(goOn)
	if err := <-first; err != nil {
		t.Error(err)
	}
	if got := a.post("second", strings.Repeat("x", 41)); got.StatusCode != 201 {
		t.Errorf("afterwards: %d %s", got.StatusCode, got.text)
	}
}

// Many duplicates with large bodies wait for one: the heap is bounded by MaxBodies, and
// those that it has no room for are told to come again.
func TestMemoryOfWaitingDuplicates(t *testing.T) { //nolint:paralleltest // It measures the heap of the process.
	duplicates := 1000
	if testing.Short() {
		duplicates = 200
	}
	const size = 1 << 20
	room := int64(duplicates/4) * size
	enough := make(chan struct{})
	a := newAPI(t, options{config: httpidem.Config{MaxBodies: room, Wait: time.Minute}}, func(w http.ResponseWriter, r *http.Request) {
		<-enough
		answerWith(201)(w, r)
	})
	var before, peak uint64
	heap := func() uint64 {
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc
	}
	runtime.GC()
	before = heap()
	done := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		ticker := time.NewTicker(2 * time.Millisecond)
		defer ticker.Stop()
		for {
			peak = max(peak, heap())
			select {
			case <-ticker.C:
			case <-done:
				return
			}
		}
	})
	body := strings.Repeat("x", size)
	var answered, refused atomic.Int32
	var group sync.WaitGroup
	for range duplicates {
		group.Go(func() {
			got, err := a.do(a.request("k", body))
			switch {
			case err == nil && got.StatusCode == 201:
				answered.Add(1)
			case err != nil || got.kind() == httpidem.KindUnavailable:
				// A client that is still sending may miss why it is refused.
				// Those that are left have room.
				if int(refused.Add(1)) == duplicates*7/10 {
					close(enough)
				}
			default:
				t.Errorf("%d %s", got.StatusCode, got.text)
			}
		})
	}
	group.Wait()
	close(done)
	watch.Wait()
	t.Logf("%d answered, %d refused, %d MiB at most", answered.Load(), refused.Load(), (peak-before)>>20)
	if most := uint64(room) * 400 / 256; peak-before > most {
		t.Errorf("the heap has grown by %d MiB, want at most %d", (peak-before)>>20, most>>20)
	}
	if a.runs.Load() != 1 || int(answered.Load()) < duplicates/8 {
		t.Errorf("%d runs, %d answered", a.runs.Load(), answered.Load())
	}
}

func TestGoldenFingerprints(t *testing.T) {
	t.Parallel()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://example.org/a%2Fb?c=d", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	body := []byte(` {"b": [1.0, true, null, "é"], "a": {}} `)
	for name, c := range map[string]struct {
		of   func(*http.Request, []byte) (idempotency.Fingerprint, error)
		want string
	}{
		"default": {httpidem.DefaultFingerprint, "01d792835ba01d9b880d1de347651d1ea9c8cb0ddc4663d3e79025c49ee612f066"},
		"JSON":    {httpidem.JSONFingerprint, "01ba0dc17b31583966718b511908f7fa2a364be972d228266808d3d6123bbc55b0"},
	} {
		got, err := c.of(r, body)
		if err != nil || got.Text() != c.want {
			t.Errorf("%s: %s, %v; want %s: another recipe refuses every request whose key is live", name, got.Text(), err, c.want)
		}
	}
}

func TestJSONFingerprint(t *testing.T) {
	t.Parallel()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://example.org/", nil)
	if err != nil {
		t.Fatal(err)
	}
	of := func(body string) string {
		got, err := httpidem.JSONFingerprint(r, []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		return got.Text()
	}
	for _, same := range [][2]string{
		{`{"a":1,"b":2}`, ` { "b" : 2 , "a" : 1 } `},
		{`{"a":{"x":[1,{"y":2,"z":3}]}}`, `{"a":{"x":[1,{"z":3,"y":2}]}}`},
		{`"\u00e9"`, `"é"`},
		{`null`, ` null`},
		{`[]`, `[ ]`},
		{`"\/"`, `"/"`},
		{`{"\u0061":1}`, `{"a":1}`},
	} {
		if of(same[0]) != of(same[1]) {
			t.Errorf("%s and %s differ", same[0], same[1])
		}
	}
	for _, other := range [][2]string{
		{`{"a":1}`, `{"a":1.0}`},
		{`{"a":1}`, `{"a":"1"}`},
		{`[1,2]`, `[2,1]`},
		{`{"a":1,"a":2}`, `{"a":2,"a":1}`},
		{`{"a":1,"a":1}`, `{"a":1}`},
		{"\"\xff\"", "\"\xfe\""},
		{`"\ud800"`, `"\ud801"`},
		{`"\ud800"`, `"�"`},
		{`{"a":1} x`, `{"a":1}`},
		{`{"a":1}`, ` {"a":1}{}`},
		{`{}`, `[]`},
		{`[[],[]]`, `[[[]]]`},
		{`"a,b"`, `["a","b"]`},
		{`{"a":null}`, `{}`},
		{`1e2`, `100`},
		{``, ` `},
		{`no json`, `no  json`},
		{"{\"a\xff\":1}", "{\"a\xfe\":1}"},
	} {
		if of(other[0]) == of(other[1]) {
			t.Errorf("%q and %q are the same", other[0], other[1])
		}
	}
	if deep := strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000); of(deep) == of(deep+" ") {
		t.Error("JSON that is too deep is not compared byte for byte")
	}
}

// Somebody else's record under the key is no answer.
func TestForeignRecord(t *testing.T) {
	t.Parallel()
	store := memstore.New[*memstore.Tx](nil)
	client, err := idempotency.NewClient(store, nil)
	if err != nil {
		t.Fatal(err)
	}
	a := &api{T: t}
	config := &httpidem.Config{Scope: func(*http.Request) string { return "scope" }, Fingerprint: func(*http.Request, []byte) (idempotency.Fingerprint, error) {
		return idempotency.NoFingerprint, nil
	}}
	keys, err := httpidem.New(client, config)
	if err != nil {
		t.Fatal(err)
	}
	a.serve(options{}, keys(answerWith(201)))
	for i, response := range []idempotency.Response{
		{Type: idempotency.TypeBytes, Body: []byte("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")},
		{Type: httpidem.TypeMessage, Body: []byte("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfour")},
		{Type: httpidem.TypeMessage, Body: []byte("HTTP/1.1 99 No\r\nContent-Length: 0\r\n\r\n")},
		{Type: httpidem.TypeMessage, Body: []byte("HTTP/1.1 200 OK\r\nA\r\nContent-Length: 0\r\n\r\n")},
		{Type: httpidem.TypeMessage, Body: []byte("200 OK\r\nContent-Length: 0\r\n\r\n")},
		{Type: httpidem.TypeMessage, Body: nil},
	} {
		key := fmt.Sprint("k", i)
		if _, err := client.Run(t.Context(), idempotency.Params{Key: idempotency.Key{Scope: "scope", ID: key}, Fingerprint: idempotency.NoFingerprint},
			func(_ context.Context, _ *memstore.Tx) (idempotency.Answer, error) {
				return idempotency.Answer{Response: &response}, nil
			}); err != nil {
			t.Fatal(err)
		}
		a.wantProblem(a.post(key, ""), http.StatusInternalServerError, httpidem.KindInternal)
	}
}

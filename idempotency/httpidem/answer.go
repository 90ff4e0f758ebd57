package httpidem

import (
	"maps"
	"net/http"
	"strconv"
	"strings"
)

// answer is what goes out to the client whose request has run.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// notSent are headers that the server makes itself, or that announce what is not sent.
var notSent = []string{"Trailer", "Transfer-Encoding", "Content-Length"}

// send replaces the header of the middlewares outside, which this one began as.
func (a *answer) send(w http.ResponseWriter, r *http.Request, marker string) {
	header := w.Header()
	clear(header)
	maps.Copy(header, a.header)
	declared := header.Get("Content-Length")
	for _, name := range append(notSent, marker) {
		header.Del(name)
	}
	for name := range header {
		if strings.HasPrefix(name, http.TrailerPrefix) {
			header.Del(name)
		}
	}
	if r.Method == http.MethodHead || a.status == http.StatusNotModified {
		// Of a body that is not sent, the handler knows how long it would be.
		if declared == "" && len(a.body) > 0 {
			declared = strconv.Itoa(len(a.body))
		}
		if declared != "" {
			header.Set("Content-Length", declared)
		}
		w.WriteHeader(a.status)
		return
	}
	writeBody(w, a.status, a.body)
}

func withoutBody(status int) bool {
	return status == http.StatusNoContent || status == http.StatusNotModified
}

// writeBody writes status and body. Where the client has gone, nobody is to be told.
func writeBody(w http.ResponseWriter, status int, body []byte) {
	if !withoutBody(status) {
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	}
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

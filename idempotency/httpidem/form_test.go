package httpidem_test

import (
	"bytes"
	"mime/multipart"
	"net/http"
	"os"
	"testing"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/httpidem"
)

// A form whose files do not fit into memory leaves none on the disk, be it parsed by the
// handler or for the fingerprint.
func TestFilesOfAForm(t *testing.T) { //nolint:paralleltest // It changes the environment.
	folder := t.TempDir()
	t.Setenv("TMPDIR", folder)
	files := func() int {
		found, err := os.ReadDir(folder)
		if err != nil {
			t.Error(err)
		}
		return len(found)
	}
	parse := func(r *http.Request) string {
		before := files()
		if err := r.ParseMultipartForm(1); err != nil || files() == before {
			t.Errorf("the form was to be parsed into a file: %v", err)
		}
		return r.FormValue("amount")
	}
	a := newAPI(t, options{config: httpidem.Config{Fingerprint: func(r *http.Request, _ []byte) (idempotency.Fingerprint, error) {
		return idempotency.FingerprintOf(parse(r)), nil
	}}}, func(w http.ResponseWriter, r *http.Request) {
		if parse(r) == "0" {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(http.StatusCreated)
	})
	// Each try has a boundary of its own, as those of most clients.
	send := func(amount string) (*reply, error) {
		var body bytes.Buffer
		form := multipart.NewWriter(&body)
		if err := form.WriteField("amount", amount); err != nil {
			t.Fatal(err)
		}
		file, err := form.CreateFormFile("receipt", "receipt.pdf")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = file.Write(make([]byte, 100_000))
		if err := form.Close(); err != nil {
			t.Fatal(err)
		}
		return a.do(a.request("k"+amount, body.String(), func(r *http.Request) { r.Header.Set("Content-Type", form.FormDataContentType()) }))
	}
	for i := range 2 {
		if got, err := send("1"); err != nil || got.StatusCode != http.StatusCreated || got.replayed() != (i == 1) {
			t.Errorf("%+v, %v", got, err)
		}
	}
	if _, err := send("0"); err == nil {
		t.Error("the handler that panics has answered")
	}
	if left := files(); left > 0 {
		t.Errorf("%d files are left", left)
	}
}

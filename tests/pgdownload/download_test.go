//go:build unix

package pgdownload

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/ulikunitz/xz"

	"github.com/samecommit/samecommit/internal/pgserver"
)

// repository is one of the form that embedded-postgres expects, whose programs
// are this machine's own.
type repository struct {
	*httptest.Server
	requests atomic.Int32
	jar      []byte
	checksum string
}

func newRepository(t *testing.T, folder string) *repository {
	t.Helper()
	var archive bytes.Buffer
	compressed, err := xz.NewWriter(&archive)
	if err != nil {
		t.Fatal(err)
	}
	files := tar.NewWriter(compressed)
	for _, name := range []string{"initdb", "pg_ctl", "postgres"} {
		script := fmt.Sprintf("#!/bin/sh\nexec '%s' \"$@\"\n", filepath.Join(folder, name))
		if err := files.WriteHeader(&tar.Header{Name: "bin/" + name, Mode: 0o755, Size: int64(len(script))}); err != nil {
			t.Fatal(err)
		}
		if _, err := files.Write([]byte(script)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(files.Close(), compressed.Close()); err != nil {
		t.Fatal(err)
	}
	var jar bytes.Buffer
	packed := zip.NewWriter(&jar)
	file, err := packed.Create("postgres.txz")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.Write(archive.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := packed.Close(); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(jar.Bytes())
	r := &repository{jar: jar.Bytes(), checksum: hex.EncodeToString(sum[:])}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		r.requests.Add(1)
		answer := r.jar
		switch path := request.URL.Path; {
		case !strings.Contains(path, "/embedded-postgres-binaries-"):
			http.NotFound(w, request)
			return
		case strings.HasSuffix(path, ".sha256"):
			answer = []byte(r.checksum)
		}
		_, _ = w.Write(answer) // the client says what it did not get
	}))
	t.Cleanup(r.Close)
	return r
}

// localBinaries returns the folder of this machine's own server.
func localBinaries(t *testing.T) string {
	t.Helper()
	server, err := pgserver.StartLocal(t.Context(), nil)
	if errors.Is(err, pgserver.ErrNoBinaries) {
		t.Skipf("the download is tested with programs that are here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, setting := range server.Environ() {
		if folder, ok := strings.CutPrefix(setting, "SAMECOMMIT_POSTGRES_BIN="); ok {
			return folder
		}
	}
	t.Fatalf("a server of this machine's own does not tell its folder: %q", server.Environ())
	return ""
}

// fetchQuietly fetches into a folder that the user whom root's servers run as may
// enter. Embedded-postgres leaves its log in TMPDIR.
func fetchQuietly(t *testing.T, from *repository) (cache string, fetchAgain func() (string, error), log *[]string) {
	t.Helper()
	private := t.TempDir()
	if err := os.Chmod(filepath.Dir(private), 0o755); err != nil { //nolint:gosec // As above.
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", private)
	cache, log = filepath.Join(private, "cache"), &[]string{}
	return cache, func() (string, error) {
		return fetch(t.Context(), cache, from.URL, func(format string, args ...any) { *log = append(*log, fmt.Sprintf(format, args...)) })
	}, log
}

func TestDownloadIsKept(t *testing.T) { //nolint:paralleltest // It sets the environment.
	from := newRepository(t, "/nowhere")
	cache, fetch, log := fetchQuietly(t, from)
	folder, err := fetch()
	if err != nil {
		t.Fatal(err)
	}
	if len(*log) != 2 || !strings.Contains((*log)[0], "once, into "+cache) {
		t.Errorf("it said %q, want that it downloads and where to, and that it has", *log)
	}
	if left, err := filepath.Glob(filepath.Join(cache, "download-*")); err != nil || len(left) > 0 {
		t.Errorf("%q are left beside the download, %v", left, err)
	}
	before := from.requests.Load()
	if again, err := fetch(); err != nil || again != folder || from.requests.Load() != before || len(*log) != 2 {
		t.Errorf("the second time: %q, %v, %d requests more; want %q without any", again, err, from.requests.Load()-before, folder)
	}
}

func TestServerFromADownload(t *testing.T) { //nolint:paralleltest // As above.
	_, fetch, _ := fetchQuietly(t, newRepository(t, localBinaries(t)))
	folder, err := fetch()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("SAMECOMMIT_POSTGRES", "local")
	t.Setenv("SAMECOMMIT_POSTGRES_BIN", folder)
	server, err := pgserver.Start(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), server.URL)
	if err != nil {
		t.Error(err)
	} else if err := conn.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := server.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestDownloadThatFails(t *testing.T) { //nolint:paralleltest // As above.
	t.Setenv("TMPDIR", t.TempDir())
	for name, test := range map[string]struct { //nolint:paralleltest // As above.
		breaks func(r *repository)
		says   string
	}{
		"a file that is not as its checksum says": {func(r *repository) { r.checksum = strings.Repeat("0", 64) }, "checksums do not match"},
		"a repository that has none":              {func(r *repository) { r.URL += "/elsewhere?" }, "no version found"},
		"a repository that does not answer":       {func(r *repository) { r.Close() }, "unable to connect"},
	} {
		t.Run(name, func(t *testing.T) {
			from := newRepository(t, "/nowhere")
			test.breaks(from)
			cache := filepath.Join(t.TempDir(), "cache")
			_, err := fetch(t.Context(), cache, from.URL, t.Logf)
			if err == nil || !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), repositoryVariable) {
				t.Errorf("got %v, want an error that says %q and what to do", err, test.says)
			}
			if left, err := os.ReadDir(cache); err != nil || len(left) > 0 {
				t.Errorf("it left %v, %v", left, err)
			}
		})
	}
}

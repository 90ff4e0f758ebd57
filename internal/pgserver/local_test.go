//go:build unix

package pgserver

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// fakeBinaries makes a folder with an initdb that works and the given postgres.
// Servers in these tests run as this process's own user, root included: no
// PostgreSQL is there to refuse it.
func fakeBinaries(t *testing.T, postgres string) string {
	t.Helper()
	folder := t.TempDir()
	for name, script := range map[string]string{"initdb": "exit 0", "postgres": postgres} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

// leftovers lists the servers' folders in the temporary folder.
func leftovers(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(os.TempDir(), "samecommit-postgres-*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestStartClusterShowsTheLog(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	binaries := fakeBinaries(t, `echo "FATAL:  the disk is made of cheese" >&2; exit 1`)
	_, err := startCluster(t.Context(), binaries, nil, &LocalOptions{})
	if err == nil || !strings.Contains(err.Error(), "made of cheese") || !strings.Contains(err.Error(), binaries) {
		t.Errorf("error lacks the log or the folder: %v", err)
	}
	if found := leftovers(t); len(found) > 0 {
		t.Errorf("left behind: %q", found)
	}
}

func TestStartClusterTriesAnotherPort(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	tries := filepath.Join(t.TempDir(), "tries")
	t.Setenv("TRIES", tries)
	binaries := fakeBinaries(t, `echo >>"$TRIES"; echo 'could not bind IPv4 address "127.0.0.1": Address already in use' >&2; exit 1`)
	if _, err := startCluster(t.Context(), binaries, nil, &LocalOptions{}); err == nil || !strings.Contains(err.Error(), errPortTaken.Error()) {
		t.Errorf("error does not say that the port was taken: %v", err)
	}
	text, err := os.ReadFile(tries)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(string(text), "\n"); got != portTries {
		t.Errorf("tried %d ports, want %d", got, portTries)
	}
	if found := leftovers(t); len(found) > 0 {
		t.Errorf("left behind: %q", found)
	}
}

func TestServerEnviron(t *testing.T) {
	t.Parallel()
	got := serverEnviron([]string{"PATH=/bin", "PGDATA=/elsewhere", "PGPORT=1", "LC_MESSAGES=de_DE", "LC_ALL=de_DE"})
	if want := []string{"PATH=/bin", "LC_ALL=C"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

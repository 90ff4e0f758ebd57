//go:build unix

package pgserver

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestNewestFirst(t *testing.T) {
	t.Parallel()
	got := newestFirst([]string{"/usr/lib/postgresql/9.6/bin", "/usr/lib/postgresql/15/bin", "/usr/lib/postgresql/18/bin"})
	want := []string{"/usr/lib/postgresql/18/bin", "/usr/lib/postgresql/15/bin", "/usr/lib/postgresql/9.6/bin"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestFindBinariesOnPath(t *testing.T) {
	folder, links := fakeBinaries(t, "exit 0"), t.TempDir()
	if err := os.Symlink(filepath.Join(folder, "initdb"), filepath.Join(links, "initdb")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", links)
	t.Setenv(binVariable, "") // which make test may have set
	got, err := findBinaries(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// The temporary folder itself may be behind a link, as on macOS.
	want, err := filepath.EvalSymlinks(folder)
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("got %s, want the folder behind the link, %s", got, want)
	}
}

func TestFindBinariesInTheNamedFolder(t *testing.T) {
	folder, onPath := fakeBinaries(t, "exit 0"), fakeBinaries(t, "exit 0")
	t.Setenv("PATH", onPath)
	t.Setenv(binVariable, folder)
	if got, err := findBinaries(t.Context()); err != nil || got != folder {
		t.Errorf("got %s, %v; want the named folder %s", got, err, folder)
	}
	// Another server in its place would surprise whoever named one.
	t.Setenv(binVariable, t.TempDir())
	if got, err := findBinaries(t.Context()); !errors.Is(err, ErrNoBinaries) {
		t.Errorf("got %q, %v; want ErrNoBinaries", got, err)
	}
}

func TestHasServerNeedsBoth(t *testing.T) {
	t.Parallel()
	folder := fakeBinaries(t, "exit 0")
	if !hasServer(folder) {
		t.Error("a folder with both binaries was refused")
	}
	if err := os.Remove(filepath.Join(folder, "postgres")); err != nil {
		t.Fatal(err)
	}
	if hasServer(folder) {
		t.Error("a folder without postgres was taken")
	}
}

//go:build unix

package pgserver

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// installPatterns are the folders that packages install servers to, which most
// of them keep off PATH.
var installPatterns = []string{
	"/usr/lib/postgresql/*/bin",          // Debian, Ubuntu
	"/usr/pgsql-*/bin",                   // Red Hat, from PostgreSQL's own packages
	"/usr/local/pgsql/bin",               // from source
	"/opt/homebrew/opt/postgresql@*/bin", // Homebrew
}

// findBinaries returns a folder that holds both initdb and postgres.
func findBinaries(ctx context.Context) (string, error) {
	if folder := os.Getenv(binVariable); folder != "" {
		if !hasServer(folder) {
			return "", fmt.Errorf("%w in the folder that %s names: it needs initdb and postgres there", ErrNoBinaries, binVariable)
		}
		return filepath.Abs(folder)
	}
	var folders []string
	if initdb, err := exec.LookPath("initdb"); err == nil {
		// initdb runs the postgres beside the file that a link points to.
		if target, err := filepath.EvalSymlinks(initdb); err == nil {
			folders = append(folders, filepath.Dir(target))
		}
	}
	for _, pattern := range installPatterns {
		// Glob fails on a malformed pattern only.
		matches, _ := filepath.Glob(pattern)
		folders = append(folders, newestFirst(matches)...)
	}
	if output, err := exec.CommandContext(ctx, "pg_config", "--bindir").Output(); err == nil {
		folders = append(folders, strings.TrimSpace(string(output)))
	}
	for _, folder := range folders {
		if hasServer(folder) {
			return folder, nil
		}
	}
	return "", fmt.Errorf("%w: no initdb with a postgres beside it on PATH, in %s or where pg_config points "+
		"(Debian: apt-get install postgresql; macOS: brew install postgresql)", ErrNoBinaries, strings.Join(installPatterns, ", "))
}

var firstNumber = regexp.MustCompile(`[0-9]+`)

// newestFirst sorts folders by the major version in their names: 18 before 9.6.
func newestFirst(folders []string) []string {
	major := func(folder string) int {
		// No number, as in /usr/local/pgsql, sorts last as 0.
		n, _ := strconv.Atoi(firstNumber.FindString(folder))
		return n
	}
	return slices.SortedStableFunc(slices.Values(folders), func(a, b string) int {
		return cmp.Compare(major(b), major(a))
	})
}

func hasServer(folder string) bool { return hasPrograms(folder, "initdb", "postgres") }

func hasPrograms(folder string, names ...string) bool {
	for _, name := range names {
		info, err := os.Stat(filepath.Join(folder, name))
		if err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
			return false
		}
	}
	return true
}

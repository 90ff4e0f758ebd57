//go:build unix

package chaos_test

import (
	"context"
	"errors"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/internal/pgserver"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/migrations"
)

// upTimeout is how long a server may take to come back after a kill.
const upTimeout = time.Minute

// server is a server for faults. Where the machine has a server's own binaries
// it is one of the test's own, whose processes can be killed.
type server struct {
	config *pgxpool.Config
	// own is nil where its processes are out of reach.
	own *pgserver.Local
}

func newServer(t *testing.T) *server {
	t.Helper()
	kind := os.Getenv("SAMECOMMIT_POSTGRES")
	if kind != "" && kind != "local" || kind == "" && os.Getenv("SAMECOMMIT_POSTGRES_URL") != "" {
		t.Log("the server was chosen by SAMECOMMIT_POSTGRES or SAMECOMMIT_POSTGRES_URL: its processes are not killed")
		return &server{config: pgtest.Config(t)}
	}
	// With fsync=off an answer would survive these kills too: what was written
	// before COMMIT was answered is the kernel's, which is not killed.
	own, err := pgserver.StartLocal(t.Context(), &pgserver.LocalOptions{Restart: true, Settings: []string{"fsync=on"}})
	if errors.Is(err, pgserver.ErrNoBinaries) {
		t.Logf("the server's processes are not killed: %v", err)
		return &server{config: pgtest.Config(t)}
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := own.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	s := &server{own: own}
	if s.config, err = pgxpool.ParseConfig(own.URL); err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), s.config.Copy())
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if err := migrations.Up(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *server) kill(pid int) error { return syscall.Kill(pid, syscall.SIGKILL) }

// poll calls done until it is true, or ctx ends.
func poll(ctx context.Context, every time.Duration, done func() bool) bool {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for !done() {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

package matrix_test

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// pgbouncerVariable names the program pgbouncer. Without it the matrix has no
// cells behind pgbouncer.
const pgbouncerVariable = "SAMECOMMIT_PGBOUNCER"

// pgbouncerReady bounds pgbouncer's start, which takes milliseconds.
const pgbouncerReady = 30 * time.Second

// pgbouncer is one in transaction mode, in front of every database of a server.
type pgbouncer struct{ port uint16 }

// startPgbouncer runs the program until the test ends. A shell in between ends
// it, and removes its folder, with this process, however that ends.
func startPgbouncer(t *testing.T, program string, server *pgx.ConnConfig) *pgbouncer {
	t.Helper()
	folder, err := os.MkdirTemp("", "samecommit-pgbouncer-") //nolint:usetesting // pgbouncer's user may not enter t.TempDir.
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(folder); err != nil {
			t.Error(err)
		}
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // It only finds a free port.
	if err != nil {
		t.Fatal(err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(folder, "pgbouncer.ini")
	if err := os.WriteFile(config, fmt.Appendf(nil, `[databases]
* = host=%s port=%d user=%s password=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = transaction
max_client_conn = 1000
`, server.Host, server.Port, server.User, server.Password, port), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"-c", `"$@" & read -r _; kill "$!"; wait; rm -rf "$0"`, folder, program, "-q"}
	if os.Geteuid() == 0 {
		// pgbouncer refuses to run as root.
		owner, err := user.Lookup("nobody")
		if err != nil {
			t.Fatal(err)
		}
		uid, err := strconv.Atoi(owner.Uid)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{folder, config} {
			if err := os.Chown(path, uid, -1); err != nil {
				t.Fatal(err)
			}
		}
		args = append(args, "-u", owner.Username)
	}
	var log bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "/bin/sh", append(args, config)...)
	cmd.Stdout, cmd.Stderr = &log, &log
	alive, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	// The test's context is over before its cleanup; the shell is to end first.
	cmd.Cancel = alive.Close
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = alive.Close()
		_ = cmd.Wait() // whatever way it ended
		if t.Failed() {
			t.Logf("pgbouncer: %s", log.Bytes())
		}
	})

	url := fmt.Sprintf("postgres://%s@127.0.0.1:%d/%s?sslmode=disable&default_query_exec_mode=simple_protocol", server.User, port, server.Database)
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(pgbouncerReady)
	for {
		conn, err := pgx.Connect(t.Context(), url)
		if err == nil {
			if err := conn.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			return &pgbouncer{port: uint16(port)} //nolint:gosec // A port fits.
		}
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("pgbouncer does not answer: %v", err)
		}
	}
}

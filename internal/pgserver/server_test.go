//go:build unix

package pgserver_test

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/internal/pgserver"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

func TestGivenServerIsLeftAlone(t *testing.T) {
	url := pgtest.URL(t)
	t.Setenv("SAMECOMMIT_POSTGRES", "url")
	t.Setenv("SAMECOMMIT_POSTGRES_URL", url)
	server, err := pgserver.Start(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(server.From, "SAMECOMMIT_POSTGRES_URL") || server.Temporary {
		t.Errorf("took %+v, want the server of SAMECOMMIT_POSTGRES_URL", server)
	}
	if err := server.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	conn, err := pgx.Connect(t.Context(), server.URL)
	if err != nil {
		t.Fatalf("the server that was already there is gone after Stop: %v", err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// holdLocalServer starts a process that holds a server of this machine's own
// binaries for as long as it lives, and returns the server's URL.
func holdLocalServer(t *testing.T) (holder *exec.Cmd, url string) {
	t.Helper()
	holder = exec.CommandContext(t.Context(), os.Args[0])
	holder.Env = append(os.Environ(), holdVariable+"=1", "SAMECOMMIT_POSTGRES=local")
	// Its own group, so that the signal below does not reach this process.
	holder.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	output, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Both fail when the test has already done it.
		_ = holder.Process.Kill()
		_ = holder.Wait()
	})
	line, err := bufio.NewReader(output).ReadString('\n')
	if err != nil {
		t.Fatalf("read the server's URL: %v", err)
	}
	url = strings.TrimSpace(line)
	if !strings.HasPrefix(url, "postgres://") {
		var exit *exec.ExitError
		if errors.As(holder.Wait(), &exit) && exit.ExitCode() == exitNoBinaries {
			t.Skipf("this machine has no PostgreSQL server installed, which this test is about: %s", url)
		}
		t.Fatalf("the holder did not start a server: %s", url)
	}
	return holder, url
}

// A server of this machine's own binaries, held by a process that is killed.
func TestLocalServerEndsWithItsProcess(t *testing.T) {
	t.Parallel()
	holder, url := holdLocalServer(t)
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	var data string
	if err := conn.QueryRow(t.Context(), "SHOW data_directory").Scan(&data); err != nil {
		t.Fatal(err)
	}

	// Ctrl-C in a terminal reaches a whole group of processes.
	if err := syscall.Kill(-holder.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if group, err := syscall.Getpgid(postmaster(t, data)); err != nil || group == holder.Process.Pid {
		t.Errorf("the server is in its holder's group %d (%v): ctrl-C ends it before its holder", group, err)
	}
	if err := conn.Ping(t.Context()); err != nil {
		t.Errorf("the server did not survive ctrl-C: %v", err)
	}

	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	deadline := time.After(20 * time.Second)
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		_, err := os.Stat(filepath.Dir(data))
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("the folder of a server whose process was killed is still there: %s (%v)", data, err)
		}
	}
	if err := conn.Ping(t.Context()); err == nil {
		t.Error("the server still answers after its process was killed")
	}
}

// postmaster returns the process id of the server whose data folder this is.
func postmaster(t *testing.T, data string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(first)
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// Every answer of the server was kept through the kill.
func TestLocalServerRestarts(t *testing.T) {
	t.Parallel()
	server, err := pgserver.StartLocal(t.Context(), &pgserver.LocalOptions{Restart: true, Settings: []string{"fsync=on"}})
	if errors.Is(err, pgserver.ErrNoBinaries) {
		t.Skipf("this machine has no PostgreSQL server installed, which this test is about: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	config, err := pgxpool.ParseConfig(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	pool := bench.PoolWith(t, config)
	var data, fsync string
	if err := pool.QueryRow(t.Context(), `SELECT current_setting('data_directory'), current_setting('fsync')`).Scan(&data, &fsync); err != nil {
		t.Fatal(err)
	}
	if fsync != "on" {
		t.Errorf("fsync is %s, want on as in Settings", fsync)
	}
	if _, err := pool.Exec(t.Context(), `CREATE TABLE kept AS SELECT 7 AS number`); err != nil {
		t.Fatal(err)
	}
	first, err := server.Pid()
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	bench.WaitFor(t, func() bool {
		var number int
		err := pool.QueryRow(t.Context(), `SELECT number FROM kept`).Scan(&number)
		now, pidErr := server.Pid()
		return err == nil && number == 7 && pidErr == nil && now != first
	})
	if err := server.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Dir(data)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder of a stopped server is still there: %v", err)
	}
}

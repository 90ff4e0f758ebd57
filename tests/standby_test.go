//go:build unix

package tests_test

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/migrate"
)

// A standby answers what it has received and refuses the rest, before anything
// runs. It needs a server's own binaries; TestReadOnlyServer runs everywhere.
func TestStandby(t *testing.T) {
	t.Parallel()
	_, url := holdLocalServer(t)
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	pool := poolWith(t, config.Copy())
	if err := migrate.Up(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	primary := newBench(t, pool, nil, nil)
	leased := readOnlySeed(t, primary)

	config.ConnConfig.Port = startStandby(t, pool, url)
	b := openBench(t, poolWith(t, config), nil, nil)
	waitFor(t, func() bool {
		var standby bool
		err := b.pool.QueryRow(t.Context(), `SELECT pg_is_in_recovery()`).Scan(&standby)
		return err == nil && standby
	})
	wantReadOnlyDo(t, b)
	wantReadOnlyTx(t, b, pgx.TxOptions{}, leased)
	wantReadOnlyStore(t, b, leased)
	wantReadOnlyLeftFree(t, primary)
}

// startStandby copies the server that primary is connected to, starts the copy
// as its standby and returns its port. The copy lies in the server's folder and
// goes with it.
func startStandby(t *testing.T, primary *pgxpool.Pool, url string) uint16 {
	t.Helper()
	var data, binaries string
	if err := primary.QueryRow(t.Context(), `SELECT current_setting('data_directory'), setting FROM pg_config WHERE name = 'BINDIR'`).Scan(&data, &binaries); err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath(filepath.Join(binaries, "pg_basebackup")); err != nil {
		t.Skipf("this machine's PostgreSQL has no pg_basebackup, so there is no standby to test: %v", err)
	}
	info, err := os.Stat(data)
	if err != nil {
		t.Fatal(err)
	}
	owner := info.Sys().(*syscall.Stat_t)
	command := func(name string, args ...string) (*exec.Cmd, *bytes.Buffer) {
		cmd, output := exec.CommandContext(t.Context(), filepath.Join(binaries, name), args...), &bytes.Buffer{}
		cmd.Dir, cmd.Stdout, cmd.Stderr = "/", output, output
		if os.Geteuid() == 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: owner.Uid, Gid: owner.Gid}}
		}
		return cmd, output
	}
	folder := filepath.Join(filepath.Dir(data), "standby")
	backup, output := command("pg_basebackup", "--pgdata="+folder, "--dbname="+url, "--write-recovery-conf", "--checkpoint=fast", "--no-sync")
	if err := backup.Run(); err != nil {
		t.Fatalf("pg_basebackup: %v\n%s", err, output)
	}
	var listen net.ListenConfig
	listener, err := listen.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	// A standby must allow as many connections and prepared transactions.
	args := []string{"-D", folder, "-c", "port=" + strconv.Itoa(port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="}
	for _, setting := range []string{"max_connections", "max_prepared_transactions"} {
		var value string
		if err := primary.QueryRow(t.Context(), `SELECT current_setting($1)`, setting).Scan(&value); err != nil {
			t.Fatal(err)
		}
		args = append(args, "-c", setting+"="+value)
	}
	server, output := command("postgres", args...)
	// An immediate shutdown, which also ends the server's children.
	server.Cancel = func() error { return server.Process.Signal(syscall.SIGQUIT) }
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Wait() // ended by the signal
		if t.Failed() {
			t.Logf("the standby's log:\n%s", output)
		}
	})
	return uint16(port)
}

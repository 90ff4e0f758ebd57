//go:build unix

package pgserver

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// pollInterval is how often the state of processes and files is looked at.
const pollInterval = 5 * time.Millisecond

// Pid returns the id of the server's first process, the postmaster. The others
// end when it does.
func (l *Local) Pid() (int, error) {
	text, err := os.ReadFile(filepath.Join(l.cluster.data(), "postmaster.pid"))
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(text), "\n")
	return strconv.Atoi(first)
}

// Log returns the end of the server's log.
func (l *Local) Log() string { return l.cluster.logTail() }

// Down ends the server, which LocalOptions.Restart would start again, and keeps
// it down, with its data, until Up. The signal
// is the postmaster's: SIGQUIT to shut down at once, without a word to clients
// and standbys; SIGINT to end transactions first; SIGKILL for a crash.
func (l *Local) Down(ctx context.Context, signal syscall.Signal) error {
	if !l.cluster.restart {
		return errors.New("pgserver: take the server down: it would be gone with its data: start it with LocalOptions.Restart")
	}
	pid, err := l.Pid()
	if err == nil {
		err = l.cluster.hand("down", "")
	}
	if err == nil {
		err = syscall.Kill(pid, signal)
	}
	if err == nil {
		err = poll(ctx, func() bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) })
	}
	if err != nil {
		return fmt.Errorf("pgserver: take the server down: %w", err)
	}
	return nil
}

// Up starts a server that Down ended, and returns once it answers.
func (l *Local) Up(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	err := os.Remove(filepath.Join(l.cluster.folder, "down"))
	if err == nil {
		err = l.cluster.ready(ctx)
	}
	if err != nil {
		return fmt.Errorf("pgserver: start the server again: %w", err)
	}
	return nil
}

// Follow starts a server that Down ended as a standby of primary: its data is
// lost, and a copy of primary's takes its place.
func (l *Local) Follow(ctx context.Context, primary *Local) error {
	err := l.cluster.handPrimary(primary.cluster)
	if err == nil {
		// Processes of a server that was killed may still write to it.
		err = poll(ctx, func() bool { return os.RemoveAll(l.cluster.data()) == nil })
	}
	if err != nil {
		return fmt.Errorf("pgserver: follow %s: %w", primary.Name, err)
	}
	return l.Up(ctx)
}

// Promote makes a standby a primary, and returns once it can be written to.
// What it was told of a synchronous standby no longer holds.
func (l *Local) Promote(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, l.URL)
	if err != nil {
		return fmt.Errorf("pgserver: promote: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var promoted bool
	for _, statement := range []string{`ALTER SYSTEM RESET synchronous_standby_names`, `SELECT pg_reload_conf()`} {
		if err == nil {
			_, err = conn.Exec(ctx, statement)
		}
	}
	if err == nil {
		err = conn.QueryRow(ctx, `SELECT pg_promote()`).Scan(&promoted)
	}
	if err == nil && !promoted {
		err = errors.New("it is still a standby after a minute")
	}
	if err != nil {
		return fmt.Errorf("pgserver: promote: %w; its log ends:\n%s", err, l.Log())
	}
	return nil
}

func (c *cluster) data() string { return filepath.Join(c.folder, "data") }

// handPrimary lets the supervisor copy the data of another server. Its roles
// are copied too, so its password becomes ours.
func (c *cluster) handPrimary(primary *cluster) error {
	own, err := url.Parse(c.url)
	if err != nil {
		return err
	}
	source, err := url.Parse(primary.url)
	if err != nil {
		return err
	}
	own.User = source.User
	c.url = own.String()
	query := source.Query()
	query.Set("application_name", c.name)
	source.RawQuery = query.Encode()
	return c.hand("primary", source.String())
}

// poll waits until done is true.
func poll(ctx context.Context, done func() bool) error {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for !done() {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

//go:build unix

package pgtest

import (
	"context"
	"errors"
	"net/url"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/internal/pgserver"
	"github.com/samecommit/samecommit/migrations"
)

// Pair is a primary and its streaming standby, servers of a test's own whose
// database has samecommit's tables. Replication is asynchronous until
// Synchronous is called.
type Pair struct {
	Primary, Standby *pgserver.Local

	url string
}

// NewPair starts a primary and a standby, which end with the test. Where this
// machine has no server's binaries the test is skipped, unless
// SAMECOMMIT_POSTGRES is local.
func NewPair(t testing.TB) *Pair {
	t.Helper()
	p := &Pair{}
	p.Primary = p.start(t, nil)
	// The standby comes with the tables.
	pool, err := pgxpool.New(t.Context(), p.Primary.URL)
	if err == nil {
		err = migrations.Up(t.Context(), pool)
		pool.Close()
	}
	if err != nil {
		t.Fatalf("pgtest: migrate the primary: %v", err)
	}
	p.Standby = p.start(t, p.Primary)

	primary, standby := parseURL(t, p.Primary.URL), parseURL(t, p.Standby.URL)
	primary.Host += "," + standby.Host
	query := primary.Query()
	query.Set("target_session_attrs", "read-write")
	primary.RawQuery = query.Encode()
	p.url = primary.String()
	return p
}

func (p *Pair) start(t testing.TB, primary *pgserver.Local) *pgserver.Local {
	t.Helper()
	server, err := pgserver.StartLocal(t.Context(), &pgserver.LocalOptions{
		Restart: true, Primary: primary,
		// A standby that lost its primary tries again after 5 seconds by default.
		Settings: []string{"wal_retrieve_retry_interval=50ms"},
	})
	// Whoever has chosen such servers has not chosen to leave this test out.
	if errors.Is(err, pgserver.ErrNoBinaries) && os.Getenv("SAMECOMMIT_POSTGRES") != "local" {
		t.Skipf("this test makes a standby of a server, for which this machine lacks the binaries: %v", err)
	}
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("pgtest: the log of %s ends:\n%s", server.Name, server.Log())
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), stopTimeout)
		defer cancel()
		if err := server.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return server
}

// Config returns the configuration of a pool that finds whichever of the two
// servers can be written to.
func (p *Pair) Config(t testing.TB) *pgxpool.Config {
	t.Helper()
	return parse(t, p.url)
}

// Synchronous makes every commit on the primary wait for the standby. When it
// returns, all earlier ones can be seen there.
func (p *Pair) Synchronous(t testing.TB) {
	t.Helper()
	p.Do(t, p.Primary, func(ctx context.Context, conn *pgx.Conn) error {
		for _, statement := range []string{
			`ALTER SYSTEM SET synchronous_standby_names = ` + p.Standby.Name,
			`SELECT pg_reload_conf()`,
		} {
			if _, err := conn.Exec(ctx, statement); err != nil {
				return err
			}
		}
		if err := until(ctx, conn, `SELECT EXISTS (SELECT FROM pg_stat_replication WHERE application_name = $1 AND sync_state = 'sync')`,
			p.Standby.Name); err != nil {
			return err
		}
		// Its record comes after those of all earlier commits.
		_, err := conn.Exec(ctx, `SET synchronous_commit = remote_apply; SELECT pg_logical_emit_message(true, 'pgtest', '')`)
		return err
	})
}

// CrashPrimary takes the primary down without a word to anyone.
func (p *Pair) CrashPrimary(t testing.TB) {
	t.Helper()
	p.down(t, p.Primary)
}

// StopStandby takes the standby down until start is called, or else the test
// ends. It can be read when start returns, and may still be on its way to the
// primary.
func (p *Pair) StopStandby(t testing.TB) (start func()) {
	t.Helper()
	standby := p.Standby
	p.down(t, standby)
	return once(t, func(ctx context.Context) error { return standby.Up(ctx) })
}

func (p *Pair) down(t testing.TB, server *pgserver.Local) {
	t.Helper()
	if err := server.Down(t.Context(), syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
}

// SilenceStandby stops the process that receives from the primary, which notices
// nothing, until resume is called, or else the test ends.
func (p *Pair) SilenceStandby(t testing.TB) (resume func()) {
	t.Helper()
	var pid int
	p.Do(t, p.Standby, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `SELECT pid FROM pg_stat_wal_receiver`).Scan(&pid)
	})
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatalf("pgtest: stop the receiver of %s: %v", p.Standby.Name, err)
	}
	return once(t, func(context.Context) error { return syscall.Kill(pid, syscall.SIGCONT) })
}

// once returns a function that calls fn the first time, at the latest when the
// test ends.
func once(t testing.TB, fn func(ctx context.Context) error) func() {
	t.Helper()
	var once sync.Once
	call := func() {
		t.Helper()
		once.Do(func() {
			if err := fn(context.WithoutCancel(t.Context())); err != nil {
				t.Errorf("pgtest: %v", err)
			}
		})
	}
	t.Cleanup(call)
	return call
}

// DetachStandby lets the standby receive nothing more, in the middle of what it
// receives.
func (p *Pair) DetachStandby(t testing.TB) {
	t.Helper()
	p.Do(t, p.Standby, func(ctx context.Context, conn *pgx.Conn) error {
		for _, statement := range []string{`ALTER SYSTEM SET primary_conninfo = ''`, `SELECT pg_reload_conf()`} {
			if _, err := conn.Exec(ctx, statement); err != nil {
				return err
			}
		}
		return until(ctx, conn, `SELECT NOT EXISTS (SELECT FROM pg_stat_wal_receiver)`)
	})
}

// Attached waits until the standby receives what the primary commits.
func (p *Pair) Attached(t testing.TB) {
	t.Helper()
	p.Do(t, p.Primary, func(ctx context.Context, conn *pgx.Conn) error {
		return until(ctx, conn, `SELECT EXISTS (SELECT FROM pg_stat_replication WHERE application_name = $1 AND state = 'streaming')`,
			p.Standby.Name)
	})
}

// Promote makes the standby the primary, and the other way round: what is now
// Standby is a former primary, to be fenced, or already down.
func (p *Pair) Promote(t testing.TB) {
	t.Helper()
	if err := p.Standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.Primary, p.Standby = p.Standby, p.Primary
}

// Fence takes a former primary down.
func (p *Pair) Fence(t testing.TB) {
	t.Helper()
	p.down(t, p.Standby)
}

// Follow makes a former primary, which is down, a standby again.
func (p *Pair) Follow(t testing.TB) {
	t.Helper()
	if err := p.Standby.Follow(t.Context(), p.Primary); err != nil {
		t.Fatal(err)
	}
}

// Do calls fn with a connection to one of the servers, which it closes.
func (p *Pair) Do(t testing.TB, server *pgserver.Local, fn func(ctx context.Context, conn *pgx.Conn) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), stopTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, server.URL)
	if err == nil {
		err = errors.Join(fn(ctx, conn), conn.Close(ctx))
	}
	if err != nil {
		t.Fatalf("pgtest: on the server %s: %v", server.Name, err)
	}
}

// until asks until the answer is true.
func until(ctx context.Context, conn *pgx.Conn, query string, args ...any) error {
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for {
		var yes bool
		if err := conn.QueryRow(ctx, query, args...).Scan(&yes); yes || err != nil {
			return err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func parseURL(t testing.TB, text string) *url.URL {
	t.Helper()
	parsed, err := url.Parse(text)
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	return parsed
}

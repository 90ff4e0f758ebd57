package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/internal/pgserver"
	"github.com/samecommit/samecommit/migrations"
	"github.com/samecommit/samecommit/tests/pgstart"
)

// settings are those of a server that is started here. Commits are flushed, and
// no checkpoint falls into a slot.
var settings = []string{
	"fsync=on",
	"shared_buffers=512MB",
	"max_wal_size=4GB",
	"checkpoint_timeout=1h",
	"max_connections=300",
}

// tables are what peers have beside idempotency_keys: the business table that
// all write to, the table of zero2prod's chapter on idempotency without its
// foreign key and headers, and one to read an answer from.
const tables = `
CREATE TABLE orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    reference text NOT NULL,
    customer bigint NOT NULL,
    amount bigint NOT NULL
);
CREATE TABLE idempotency (
    user_id uuid NOT NULL,
    idempotency_key text NOT NULL,
    response_status_code smallint,
    response_body bytea,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (user_id, idempotency_key)
);
CREATE TABLE answers (
    scope text NOT NULL,
    id text NOT NULL,
    response bytea NOT NULL,
    PRIMARY KEY (scope, id)
);`

// server is where all is measured.
type server struct {
	*pgserver.Server
	// local says that the server's processes are this machine's.
	local bool
	admin *pgxpool.Pool
	// template has every table, for others to be copied from.
	template  *database
	databases map[string]*database
}

// startServer takes the server that the environment asks for by name. By itself,
// pgserver would rather have a container, and its local server does without
// fsync.
func startServer(ctx context.Context) (*server, error) {
	choice := os.Getenv("SAMECOMMIT_POSTGRES")
	if choice == "local" || choice == "" && os.Getenv("SAMECOMMIT_POSTGRES_URL") == "" {
		started, err := startLocal(ctx, settings)
		if err == nil || choice == "local" || !errors.Is(err, pgserver.ErrNoBinaries) {
			return newServer(ctx, started, true, err)
		}
	}
	started, err := pgstart.Start(ctx, nil)
	return newServer(ctx, started, false, err)
}

// newServer makes the template on a server that was started, and stops it where
// that fails. Err is that of the start.
func newServer(ctx context.Context, started *pgserver.Server, local bool, err error) (*server, error) {
	if err != nil {
		return nil, err
	}
	s := &server{Server: started, local: local, databases: make(map[string]*database)}
	if err := s.makeTemplate(ctx); err != nil {
		return nil, errors.Join(err, s.stop(context.WithoutCancel(ctx)))
	}
	return s, nil
}

func (s *server) makeTemplate(ctx context.Context) (err error) {
	if s.admin, err = pgxpool.New(ctx, s.URL); err != nil {
		return err
	}
	if s.template, err = s.create(ctx, "", "template1"); err != nil {
		return err
	}
	pool, err := s.template.open(ctx, 1)
	if err != nil {
		return err
	}
	// A database with a connection cannot be copied.
	defer pool.Close()
	if err := migrations.Up(ctx, pool); err != nil {
		return err
	}
	_, err = pool.Exec(ctx, tables)
	return err
}

// startLocal starts a server whose data is in TMPDIR: without it, pgserver
// prefers memory, where an fsync costs nothing.
func startLocal(ctx context.Context, settings []string) (*pgserver.Server, error) {
	if os.Getenv("TMPDIR") == "" {
		if err := os.Setenv("TMPDIR", os.TempDir()); err != nil {
			return nil, err
		}
	}
	local, err := pgserver.StartLocal(ctx, &pgserver.LocalOptions{Settings: settings})
	if err != nil {
		return nil, err
	}
	return local.Server, nil
}

func (s *server) stop(ctx context.Context) error {
	var err error
	if !s.Temporary {
		for _, db := range s.databases {
			_, dropErr := s.admin.Exec(ctx, "DROP DATABASE IF EXISTS "+db.name+" WITH (FORCE)")
			err = errors.Join(err, dropErr)
		}
	}
	if s.admin != nil {
		s.admin.Close()
	}
	return errors.Join(err, s.Stop(ctx))
}

// database is one peer's own.
type database struct {
	server *server
	name   string
}

// empty returns the database of a peer. It has every table and no row.
func (s *server) empty(ctx context.Context, owner string) (*database, error) {
	db := s.databases[owner]
	if db == nil {
		return s.create(ctx, owner, s.template.name)
	}
	pool, err := db.open(ctx, 1)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	_, err = pool.Exec(ctx, "TRUNCATE orders, idempotency, answers, idempotency_keys")
	return db, err
}

func (s *server) create(ctx context.Context, owner, template string) (*database, error) {
	db := &database{server: s, name: "samecommit_bench_" + strings.ToLower(rand.Text()[:10])}
	if _, err := s.admin.Exec(ctx, "CREATE DATABASE "+db.name+" TEMPLATE "+template); err != nil {
		return nil, fmt.Errorf("create database %s (does the role have CREATEDB?): %w", db.name, err)
	}
	s.databases[owner] = db
	return db, nil
}

// left waits until the server has ended every session of the database: those of
// a pool that is closed still count for a while.
func (db *database) left(ctx context.Context) error {
	for sessions := true; sessions; {
		err := db.server.admin.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend')", db.name).Scan(&sessions)
		if err == nil && sessions {
			err = pause(ctx, 5*time.Millisecond)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// config is that of a pool which keeps as many connections as there are workers.
func (db *database) config(connections int) (*pgxpool.Config, error) {
	parsed, err := url.Parse(db.server.URL)
	if err != nil {
		return nil, errors.New("the server's address is not a URL: write it as postgres://user:password@host:5432/postgres")
	}
	parsed.Path = "/" + db.name
	config, err := pgxpool.ParseConfig(parsed.String())
	if err != nil {
		return nil, err
	}
	config.MaxConns, config.MinConns = int32(connections), int32(connections)
	return config, nil
}

// open returns a pool of so many connections, for the caller to close.
func (db *database) open(ctx context.Context, connections int) (*pgxpool.Pool, error) {
	config, err := db.config(connections)
	if err != nil {
		return nil, err
	}
	return pgxpool.NewWithConfig(ctx, config)
}

// backends are the server's processes behind a pool.
type backends struct {
	mu   sync.Mutex
	pids []uint32
}

// watch notes every connection that a pool of this config opens.
func (b *backends) watch(config *pgxpool.Config) {
	config.AfterConnect = func(_ context.Context, conn *pgx.Conn) error {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.pids = append(b.pids, conn.PgConn().PID())
		return nil
	}
}

// processorTime is what the processes have used so far. Zero where it cannot be
// told.
func (b *backends) processorTime() (total time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, pid := range b.pids {
		total += processTime(pid)
	}
	return total
}

// setting returns what the server says to SHOW.
func (s *server) setting(ctx context.Context, name string) (value string, err error) {
	err = s.admin.QueryRow(ctx, "SHOW "+pgx.Identifier{name}.Sanitize()).Scan(&value)
	return value, err
}

// syncTime is the median time of an fsync after a write of one page, where a
// local server keeps its data.
func syncTime() (median time.Duration, err error) {
	file, err := os.CreateTemp("", "samecommit-fsync-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, file.Close(), os.Remove(file.Name())) }()
	page := make([]byte, 8192)
	times := make([]time.Duration, 101)
	for i := range times {
		start := time.Now()
		if _, err := file.WriteAt(page, 0); err != nil {
			return 0, err
		}
		if err := file.Sync(); err != nil {
			return 0, err
		}
		times[i] = time.Since(start)
	}
	slices.Sort(times)
	return times[len(times)/2], nil
}

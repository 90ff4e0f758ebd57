package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/internal/pgserver"
	"github.com/samecommit/samecommit/migrations"
	"github.com/samecommit/samecommit/tests/pgstart"
)

const (
	// serverName is the application name of the API's connections, which tells
	// the killer whom to kill and spares everybody else.
	serverName = "payments-demo"
	closeLimit = 30 * time.Second
)

// database is the demo's own database, and the API's pool of connections to it.
type database struct {
	server *pgserver.Server
	name   string
	pool   *pgxpool.Pool
}

// openDatabase makes the database and a pool, whose configuration attach may
// change before any connection is made.
func openDatabase(ctx context.Context, connections int, attach func(*pgxpool.Config), logf func(string, ...any)) (db *database, err error) {
	server, err := pgstart.Start(ctx, logf)
	if err != nil {
		return nil, err
	}
	db = &database{server: server}
	defer func() {
		if err != nil {
			err = errors.Join(err, db.close(context.WithoutCancel(ctx)))
		}
	}()
	name := "samecommit_demo_" + strings.ToLower(rand.Text()[:10])
	if err := db.onServer(ctx, "CREATE DATABASE "+name); err != nil {
		return nil, fmt.Errorf("create a database for the demo (does the role have CREATEDB?): %w", err)
	}
	db.name = name
	logf("database %s", name)

	config, err := pgxpool.ParseConfig(server.URL)
	if err != nil {
		return nil, fmt.Errorf("read the server's URL: %w", err)
	}
	config.ConnConfig.Database = name
	config.ConnConfig.RuntimeParams["application_name"] = serverName
	config.MaxConns = int32(connections) //nolint:gosec // Checked with the flags.
	attach(config)
	if db.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return nil, fmt.Errorf("connect to database %s: %w", name, err)
	}
	return db, migrations.Up(ctx, db.pool)
}

// onServer runs one statement in the database that the server's URL names.
func (d *database) onServer(ctx context.Context, statement string) error {
	conn, err := pgx.Connect(ctx, d.server.URL)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, statement)
	return errors.Join(err, conn.Close(ctx))
}

// close drops the database from a server that outlives the demo, and stops one
// that the demo has started.
func (d *database) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, closeLimit)
	defer cancel()
	if d.pool != nil {
		d.pool.Close()
	}
	var err error
	if d.name != "" && !d.server.Temporary {
		if err = d.onServer(ctx, "DROP DATABASE IF EXISTS "+d.name+" WITH (FORCE)"); err != nil {
			err = fmt.Errorf("drop the demo's database; drop %s yourself: %w", d.name, err)
		}
	}
	return errors.Join(err, d.server.Stop(ctx))
}

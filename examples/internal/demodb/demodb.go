// Package demodb is a database for a program that shows something: a new one, which
// is dropped at the end, on a server that it finds or starts.
package demodb

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

const closeLimit = 30 * time.Second

// Database is a program's own database, and a pool of connections to it.
type Database struct {
	Pool   *pgxpool.Pool
	server *pgserver.Server
	name   string
}

// Open makes a database with the tables of samecommit, and a pool, whose
// configuration attach may change before any connection is made. The server is the
// one that SAMECOMMIT_POSTGRES_URL names, or a throw-away one.
func Open(ctx context.Context, attach func(*pgxpool.Config), logf func(string, ...any)) (db *Database, err error) {
	server, err := pgstart.Start(ctx, logf)
	if err != nil {
		return nil, err
	}
	db = &Database{server: server}
	defer func() {
		if err != nil {
			err = errors.Join(err, db.Close(context.WithoutCancel(ctx)))
		}
	}()
	name := "samecommit_demo_" + strings.ToLower(rand.Text()[:10])
	if err := db.onServer(ctx, "CREATE DATABASE "+name); err != nil {
		return nil, fmt.Errorf("create a database for the demo (does the role have CREATEDB?): %w", err)
	}
	db.name = name
	logf("database %s", name)

	if db.Pool, err = connect(ctx, server.URL, name, attach); err != nil {
		return nil, err
	}
	return db, migrations.Up(ctx, db.Pool)
}

// Connect returns a pool for another process of the program, in the database of this name
// on the server of this URL.
func Connect(ctx context.Context, url, database string) (*pgxpool.Pool, error) {
	return connect(ctx, url, database, func(*pgxpool.Config) {})
}

func connect(ctx context.Context, url, database string, attach func(*pgxpool.Config)) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("read the server's URL: %w", err)
	}
	config.ConnConfig.Database = database
	attach(config)
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connect to database %s: %w", database, err)
	}
	return pool, nil
}

// onServer runs one statement in the database that the server's URL names.
func (d *Database) onServer(ctx context.Context, statement string) error {
	conn, err := pgx.Connect(ctx, d.server.URL)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, statement)
	return errors.Join(err, conn.Close(ctx))
}

// Close drops the database from a server that outlives the program, and stops one
// that the program has started.
func (d *Database) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, closeLimit)
	defer cancel()
	if d.Pool != nil {
		d.Pool.Close()
	}
	var err error
	if d.name != "" && !d.server.Temporary {
		if err = d.onServer(ctx, "DROP DATABASE IF EXISTS "+d.name+" WITH (FORCE)"); err != nil {
			err = fmt.Errorf("drop the demo's database; drop %s yourself: %w", d.name, err)
		}
	}
	return errors.Join(err, d.server.Stop(ctx))
}

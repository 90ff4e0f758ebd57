package pgtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/internal/pgserver"
	"github.com/samecommit/samecommit/migrations"
)

const (
	// startTimeout leaves room for pulling a container's image.
	startTimeout = 10 * time.Minute
	stopTimeout  = time.Minute
	// leftoverAge is the age past which no run still needs its databases.
	leftoverAge = time.Hour
)

// host is the server that the tests of one process share, and the databases
// made on it. It starts when the first test asks for a database.
type host struct {
	options *pgserver.Options

	start sync.Once
	err   error
	// One test tells why there is no server, the others refer to it.
	tell   sync.Once
	toldBy string

	server  *pgserver.Server
	admin   *pgxpool.Pool
	version int
	// run is in the name of every database of this process, so that test
	// binaries can share a server.
	run  string
	made atomic.Int64

	makeTemplate sync.Once
	template     string
	templateErr  error
}

func (h *host) started() error {
	h.start.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		h.err = h.connect(ctx)
	})
	return h.err
}

func (h *host) connect(ctx context.Context) (err error) {
	if h.server, err = pgserver.Start(ctx, h.options); err != nil {
		return err
	}
	if h.admin, err = pgxpool.New(ctx, h.server.URL); err != nil {
		return fmt.Errorf("pgtest: connect to PostgreSQL: %w", err)
	}
	h.run = strings.ToLower(rand.Text()[:8])
	var text string
	if err := h.admin.QueryRow(ctx, "SHOW server_version_num").Scan(&text); err != nil {
		return fmt.Errorf("pgtest: ask PostgreSQL for its version: %w", err)
	}
	if h.version, err = strconv.Atoi(text); err != nil {
		return fmt.Errorf("pgtest: PostgreSQL's version: %w", err)
	}
	return h.dropLeftovers(ctx)
}

// stop drops the template and stops a server that connect started.
func (h *host) stop() error {
	if h.server == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	var err error
	if h.template != "" {
		err = h.drop(ctx, h.template)
	}
	if h.admin != nil {
		h.admin.Close()
	}
	return errors.Join(err, h.server.Stop(ctx))
}

// migrated returns the name of a database that has samecommit's tables, for
// others to be copied from.
func (h *host) migrated() (string, error) {
	h.makeTemplate.Do(func() {
		// No test's context: the template outlives the test that asks first.
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		if h.template, h.templateErr = h.create(ctx, "template0"); h.templateErr != nil {
			return
		}
		pool, err := pgxpool.New(ctx, h.url(h.template))
		if err != nil {
			h.templateErr = fmt.Errorf("pgtest: connect to the template database: %w", err)
			return
		}
		// A database with a connection cannot be copied.
		defer pool.Close()
		h.templateErr = migrations.Up(ctx, pool)
	})
	return h.template, h.templateErr
}

// create makes a database as a copy of template.
func (h *host) create(ctx context.Context, template string) (string, error) {
	name := fmt.Sprintf("%s%d_%s_%d", namePrefix, time.Now().Unix(), h.run, h.made.Add(1))
	statement := "CREATE DATABASE " + name + " TEMPLATE " + template
	if h.version >= 15_00_00 {
		// Copying a small database's files is faster than logging its pages,
		// the default since PostgreSQL 15 and the only way before it.
		statement += " STRATEGY file_copy"
	}
	if _, err := h.admin.Exec(ctx, statement); err != nil {
		return "", fmt.Errorf("pgtest: create database %s: %w", name, err)
	}
	return name, nil
}

// drop removes a database, whoever is still connected to it.
func (h *host) drop(ctx context.Context, name string) error {
	if _, err := h.admin.Exec(ctx, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)"); err != nil {
		return fmt.Errorf("pgtest: drop database %s: %w", name, err)
	}
	return nil
}

// dropLeftovers removes what runs that failed or were killed left on a server
// that outlives them. It happens at the start of a run, so that the databases
// of failed tests can be looked at before.
func (h *host) dropLeftovers(ctx context.Context) error {
	rows, err := h.admin.Query(ctx, "SELECT datname FROM pg_database WHERE starts_with(datname, $1)", namePrefix)
	if err != nil {
		return fmt.Errorf("pgtest: list databases of earlier runs: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("pgtest: list databases of earlier runs: %w", err)
	}
	for _, name := range names {
		if !isLeftover(name, time.Now()) {
			continue
		}
		if err := h.drop(ctx, name); err != nil {
			// Another role's, perhaps. They are in nobody's way.
			h.options.Logf("an earlier run's database stays: %v", err)
		}
	}
	return nil
}

func (h *host) url(database string) string {
	// pgserver takes no URL that does not parse.
	parsed, _ := url.Parse(h.server.URL)
	parsed.Path = "/" + database
	return parsed.String()
}

// namePrefix begins the name of every database made here; the time of its
// making follows.
const namePrefix = "samecommit_test_"

var namePattern = regexp.MustCompile("^" + namePrefix + "([0-9]+)_[0-9a-z]+_[0-9]+$")

// isLeftover says whether name is a database of ours that is old enough for
// its run to be over.
func isLeftover(name string, now time.Time) bool {
	match := namePattern.FindStringSubmatch(name)
	if match == nil {
		return false
	}
	made, err := strconv.ParseInt(match[1], 10, 64)
	return err == nil && now.Sub(time.Unix(made, 0)) > leftoverAge
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// How many operations the two sessions do whose difference is counted: both
// prepare every statement, and choose its plan.
const fewOperations, moreOperations = 20, 70

// countInstructions counts what the server executes for an operation of each
// peer, in user space. Every process of the server runs under callgrind, which
// writes down what a session executed when it ends.
func countInstructions(ctx context.Context, selected *regexp.Regexp) (err error) {
	valgrind, err := exec.LookPath("valgrind")
	if err != nil {
		return fmt.Errorf("instructions are counted by valgrind: install it: %w", err)
	}
	folder, err := os.MkdirTemp("", "samecommit-callgrind-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	// The server may run as another user.
	if err := os.Chmod(folder, 0o777|os.ModeSticky); err != nil {
		return err
	}
	s, err := startCounted(ctx, valgrind, folder)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop(context.WithoutCancel(ctx))) }()
	version, err := s.setting(ctx, "server_version")
	if err != nil {
		return err
	}
	fmt.Printf("PostgreSQL %s: instructions of its session for one operation, by callgrind\n", version)
	for i := range groups {
		g := &groups[i]
		var base float64
		for _, peer := range g.chosen(&options{selected: selected}) {
			count, err := g.instructions(ctx, s, peer, folder)
			if err != nil {
				return fmt.Errorf("%s/%s: %w", g.name, peer.name, err)
			}
			if base == 0 {
				base = count
			}
			fmt.Printf("%20s %12.0f  %6.2f\n", g.name+"/"+peer.name, count, count/base)
		}
	}
	return nil
}

// startCounted starts a server from a folder with a postgres that runs the real
// one under callgrind.
func startCounted(ctx context.Context, valgrind, folder string) (*server, error) {
	plain, err := startLocal(ctx, nil)
	if err != nil {
		return nil, err
	}
	binaries, err := binariesOf(ctx, plain.URL)
	if err := errors.Join(err, plain.Stop(context.WithoutCancel(ctx))); err != nil {
		return nil, err
	}
	script := fmt.Sprintf("#!/bin/sh\nexec '%s' --quiet --tool=callgrind --callgrind-out-file='%s/session.%%p' '%s/postgres' \"$@\"\n", valgrind, folder, binaries)
	if err := os.WriteFile(filepath.Join(folder, "postgres"), []byte(script), 0o755); err != nil {
		return nil, err
	}
	if err := os.Symlink(filepath.Join(binaries, "initdb"), filepath.Join(folder, "initdb")); err != nil {
		return nil, err
	}
	if err := os.Setenv("SAMECOMMIT_POSTGRES_BIN", folder); err != nil {
		return nil, err
	}
	started, err := startLocal(ctx, []string{"autovacuum=off", "checkpoint_timeout=1h"})
	return newServer(ctx, started, true, err)
}

// binariesOf asks a server for the folder that it was started from.
func binariesOf(ctx context.Context, url string) (folder string, err error) {
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		return "", err
	}
	defer pool.Close()
	err = pool.QueryRow(ctx, "SELECT setting FROM pg_config WHERE name = 'BINDIR'").Scan(&folder)
	return folder, err
}

func (g *group) instructions(ctx context.Context, s *server, peer *peer, folder string) (float64, error) {
	// The first session of a database also makes the server's caches for it.
	if _, err := g.session(ctx, s, peer, folder, 1); err != nil {
		return 0, err
	}
	few, err := g.session(ctx, s, peer, folder, fewOperations)
	if err != nil {
		return 0, err
	}
	more, err := g.session(ctx, s, peer, folder, moreOperations)
	return float64(more-few) / (moreOperations - fewOperations), err
}

// session returns what a session executed that did so many operations.
func (g *group) session(ctx context.Context, s *server, peer *peer, folder string, operations int) (instructions int64, err error) {
	c, err := g.contestant(ctx, s, peer, 1, nil)
	if err != nil {
		return 0, err
	}
	for range operations {
		if err := c.load.op(ctx, c.load.newID()); err != nil {
			return 0, errors.Join(err, c.close(context.WithoutCancel(ctx)))
		}
		c.load.done.Add(1)
	}
	err = errors.Join(c.verify(ctx), c.close(ctx))
	if err != nil {
		return 0, err
	}
	if len(c.load.backends.pids) != 1 {
		return 0, fmt.Errorf("%d sessions were opened instead of one", len(c.load.backends.pids))
	}
	return readTotal(ctx, filepath.Join(folder, fmt.Sprintf("session.%d", c.load.backends.pids[0])))
}

// readTotal waits for the file's last line, which tells the sum.
func readTotal(ctx context.Context, file string) (int64, error) {
	for {
		text, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, err
		}
		if _, last, found := bytes.Cut(text, []byte("\ntotals: ")); found && bytes.HasSuffix(last, []byte("\n")) {
			return strconv.ParseInt(string(bytes.TrimSpace(last)), 10, 64)
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return 0, fmt.Errorf("callgrind has not written %s: %w", file, err)
		}
	}
}

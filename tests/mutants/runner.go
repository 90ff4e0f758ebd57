package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/internal/pgserver"
)

const (
	baselineTimeout = 10 * time.Minute
	killTimeout     = 5 * time.Minute
)

var errSurvived = errors.New("the test passed all the same")

// runner runs tests on one server.
type runner struct {
	root, scratch string
	server        *pgserver.Server
}

// outcome is what go test -json said.
type outcome struct {
	// actions is the last action of each test: run, pass, fail or skip.
	actions map[string]string
	// output is what the tests wrote, and what the compiler did.
	output string
}

// goTest runs the tests that pattern matches. That they fail is no error.
func (r *runner) goTest(ctx context.Context, folder, pattern string, timeout time.Duration, flags ...string) (*outcome, error) {
	args := append([]string{"test", "-json", "-count=1", "-vet=off", "-timeout=" + timeout.String(), "-run=" + pattern}, flags...)
	command := exec.CommandContext(ctx, "go", append(args, folder)...)
	command.Dir = r.root
	command.Env = append(command.Environ(), "SAMECOMMIT_POSTGRES=url", "SAMECOMMIT_POSTGRES_URL="+r.server.URL)
	var stderr bytes.Buffer
	command.Stderr = &stderr
	stdout, err := command.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		return nil, errors.Join(fmt.Errorf("go test %s: %w", folder, err), ctx.Err())
	}
	result := &outcome{actions: make(map[string]string)}
	var output strings.Builder
	for line := range bytes.Lines(stdout) {
		var event struct{ Action, Test, Output string }
		if err := json.Unmarshal(line, &event); err != nil {
			output.Write(line)
			continue
		}
		output.WriteString(event.Output)
		switch event.Action {
		case "run", "pass", "fail", "skip":
			result.actions[event.Test] = event.Action
		}
	}
	output.Write(stderr.Bytes())
	result.output = output.String()
	return result, r.drop(ctx, result.output)
}

// baseline runs the tests of the mutants without any.
func (r *runner) baseline(ctx context.Context, mutants []mutant) error {
	patterns := tests(mutants)
	for _, folder := range folders(patterns) {
		var some []string
		for test, pattern := range patterns {
			if test[0] == folder {
				some = append(some, pattern)
			}
		}
		result, err := r.goTest(ctx, folder, strings.Join(some, "|"), baselineTimeout)
		if err != nil {
			return err
		}
		for test := range patterns {
			if action := result.actions[test[1]]; test[0] == folder && action != "pass" {
				return fmt.Errorf("without a mutant, %s in %s has not passed (%q):\n%s", test[1], folder, action, result.output)
			}
		}
	}
	return nil
}

// kill runs the mutant's test with the mutant. A nil error means that the test
// failed; said is how.
func (r *runner) kill(ctx context.Context, m *mutant) (said string, err error) {
	files, err := m.apply(r.root)
	if err != nil {
		return "", err
	}
	folder, err := os.MkdirTemp(r.scratch, "")
	if err != nil {
		return "", err
	}
	overlay := struct{ Replace map[string]string }{make(map[string]string)}
	for name, text := range files {
		// A name of its own for each: two files may be called alike.
		replacement := filepath.Join(folder, fmt.Sprintf("%d-%s", len(overlay.Replace), filepath.Base(name)))
		if err := os.WriteFile(replacement, []byte(text), 0o600); err != nil {
			return "", err
		}
		overlay.Replace[name] = replacement
	}
	content, err := json.Marshal(overlay)
	if err != nil {
		return "", err
	}
	file := filepath.Join(folder, "overlay.json")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		return "", err
	}
	result, err := r.goTest(ctx, m.folder(), m.pattern(), killTimeout, "-overlay="+file)
	if err != nil {
		return "", err
	}
	said = result.failures()
	switch action := result.actions[m.reported()]; {
	case action == "":
		return "", fmt.Errorf("the test did not run:\n%s", result.output)
	case strings.Contains(result.output, "panic: test timed out after"):
		return "", fmt.Errorf("the test did not end in %s:\n%s", killTimeout, said)
	case action == "fail":
		return said, nil
	case action == "pass":
		return "", errSurvived
	default:
		return "", fmt.Errorf("the test ended with %q:\n%s", action, result.output)
	}
}

var failure = regexp.MustCompile(`(?m)^\s+\w+\.go:\d+: .*|^(panic|fatal error): .*`)

// failures returns the lines that say why a test failed.
func (o *outcome) failures() string {
	var lines []string
	for _, line := range failure.FindAllString(o.output, -1) {
		if !strings.Contains(line, "pgtest: ") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return strings.Join(lines, "\n")
}

var database = regexp.MustCompile(`samecommit_test_\d+_([0-9a-z]+)_\d+`)

// drop drops the databases of failed tests, which package pgtest keeps and names:
// dozens of mutants would fill the server's disk. It connects in any case: without
// a server every test fails, which kills no mutant.
func (r *runner) drop(ctx context.Context, output string) error {
	conn, err := pgx.Connect(ctx, r.server.URL)
	if err != nil {
		return fmt.Errorf("connect to the server of the tests: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // Nothing is left to be sent.
	named := database.FindStringSubmatch(output)
	if named == nil {
		return nil
	}
	rows, err := conn.Query(ctx, `SELECT datname FROM pg_database WHERE datname ~ $1`, `^samecommit_test_\d+_`+named[1]+`_\d+$`)
	if err != nil {
		return fmt.Errorf("list the databases of failed tests: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("list the databases of failed tests: %w", err)
	}
	for _, name := range names {
		if _, err := conn.Exec(ctx, "DROP DATABASE "+pgx.Identifier{name}.Sanitize()+" WITH (FORCE)"); err != nil {
			return fmt.Errorf("drop database %s of a failed test: %w", name, err)
		}
	}
	return nil
}

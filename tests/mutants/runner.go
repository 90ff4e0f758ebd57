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
	baselineTimeout = 30 * time.Minute
	killTimeout     = 5 * time.Minute
)

var errSurvived = errors.New("the test passed all the same")

// runner runs tests on one server of each kind.
type runner struct {
	root, scratch string
	server        *pgserver.Server
	// environ names the servers.
	environ []string
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
	command.Env = append(command.Environ(), r.environ...)
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
	file, err := r.overlay(ctx, m)
	if err != nil {
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

// overlay writes the files with the mutant in them, and returns the name of the
// file that tells go test where they are.
func (r *runner) overlay(ctx context.Context, m *mutant) (string, error) {
	files, err := m.apply(r.root)
	if err != nil {
		return "", err
	}
	folder, err := os.MkdirTemp(r.scratch, "")
	if err != nil {
		return "", err
	}
	if m.changesQueries() {
		if err := r.generate(ctx, filepath.Join(folder, "sqlc"), files); err != nil {
			return "", fmt.Errorf("%s: %w", m.name, err)
		}
	}
	overlay := struct{ Replace map[string]string }{make(map[string]string)}
	for name, text := range files {
		replacement := filepath.Join(folder, filepath.FromSlash(name))
		if err := write(replacement, []byte(text)); err != nil {
			return "", err
		}
		overlay.Replace[filepath.Join(r.root, filepath.FromSlash(name))] = replacement
	}
	content, err := json.Marshal(overlay)
	if err != nil {
		return "", err
	}
	file := filepath.Join(folder, "overlay.json")
	return file, write(file, content)
}

// generate adds to files what sqlc makes of them, as make generate does.
func (r *runner) generate(ctx context.Context, folder string, files map[string]string) error {
	for _, name := range []string{"queries", "migrations"} {
		if err := os.CopyFS(filepath.Join(folder, name), os.DirFS(filepath.Join(r.root, name))); err != nil {
			return err
		}
	}
	const config = "sqlc.yaml"
	content, err := os.ReadFile(filepath.Join(r.root, config))
	if err != nil {
		return err
	}
	if err := write(filepath.Join(folder, config), content); err != nil {
		return err
	}
	for name, text := range files {
		if err := write(filepath.Join(folder, filepath.FromSlash(name)), []byte(text)); err != nil {
			return err
		}
	}
	command := exec.CommandContext(ctx, "go", "tool", "sqlc", "generate", "-f", filepath.Join(folder, config))
	command.Dir = filepath.Join(r.root, "tools")
	command.Env = append(command.Environ(), "GOWORK=off")
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("sqlc generate: %w\n%s", err, output)
	}
	made, err := filepath.Glob(filepath.Join(folder, "db", "*.go"))
	if err != nil {
		return err
	}
	for _, name := range made {
		content, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		files["db/"+filepath.Base(name)] = string(content)
	}
	return nil
}

// write makes the file's folder too.
func write(name string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	return os.WriteFile(name, content, 0o600)
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

//go:build unix

package chaos_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

var killsFlag = flag.Int("chaos.kills", 0, "how many client processes TestKilledClients kills; 0 means 200, or 22 with -short")

// textModes send the text of a statement each time.
var textModes = []pgx.QueryExecMode{pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol}

const (
	// killers is how many client processes run at a time.
	killers = 3
	// nextWait is how long the next caller waits. It is far shorter than the
	// client's idle timeout, so that the key is freed by nothing but the kill.
	nextWait = 15 * time.Second
)

// commitment says what a kill at a hook leaves behind: the effect and its
// record, neither, or, where COMMIT was on its way, either.
var commitment = map[string][]kind{
	hookBefore: {executed}, hookClaimed: {executed}, hookEffect: {executed}, hookCompleted: {executed}, hookCommit: {executed},
	hookSent:     {executed, replayed},
	hookAnswered: {replayed}, hookReturned: {replayed},
}

var hooks = []string{hookBefore, hookClaimed, hookEffect, hookCompleted, hookCommit, hookSent, hookAnswered, hookReturned}

// clients is a database for client processes.
type clients struct {
	pool   *pgxpool.Pool
	client *idempotency.Client[pgx.Tx]
}

func newClients(t *testing.T) *clients {
	t.Helper()
	pool := pgtest.DB(t)
	if _, err := pool.Exec(t.Context(), `CREATE TABLE effects (scope text NOT NULL, id text NOT NULL, effect text NOT NULL); CREATE INDEX ON effects (id)`); err != nil {
		t.Fatal(err)
	}
	return &clients{pool: pool, client: newClient(t, bench.NewStore(t, pool, nil))}
}

// start starts a client process.
func (c *clients) start(ctx context.Context, s *script, input *os.File) (cmd *exec.Cmd, output io.Reader, err error) {
	s.URL = c.pool.Config().ConnString()
	return startProcess(ctx, clientVariable, s, input)
}

// startProcess starts this test binary as what the variable makes of it.
func startProcess(ctx context.Context, variable string, script any, input *os.File) (cmd *exec.Cmd, output io.Reader, err error) {
	text, err := json.Marshal(script)
	if err != nil {
		return nil, nil, err
	}
	cmd = exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), variable+"="+string(text))
	cmd.Stderr = os.Stderr
	if input != nil {
		cmd.Stdin = input
	}
	if output, err = cmd.StdoutPipe(); err != nil {
		return nil, nil, err
	}
	return cmd, output, cmd.Start()
}

// wasKilled reports whether SIGKILL has ended the process.
func wasKilled(cmd *exec.Cmd) bool {
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	return status.Signaled() && status.Signal() == syscall.SIGKILL
}

// gone waits until the server has noticed that the client process is gone.
func (c *clients) gone(ctx context.Context, name string) bool {
	ctx, cancel := context.WithTimeout(ctx, nextWait)
	defer cancel()
	return poll(ctx, 2*time.Millisecond, func() bool {
		var here bool
		err := c.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = $1)`, name).Scan(&here)
		return err == nil && !here
	})
}

// next is what the next caller is told, who has nothing to do with the process.
func (c *clients) next(ctx context.Context, key idempotency.Key) (kind, string, error) {
	result, err := idempotency.Do(ctx, c.client, idempotency.Params{
		Key: key, Fingerprint: idempotency.FingerprintOf("a"), Wait: nextWait,
	}, func(ctx context.Context, tx pgx.Tx) (string, error) {
		return key.ID + " next", insert(ctx, tx, key, key.ID+" next")
	})
	if err != nil {
		return failed, "", err
	}
	if result.Replayed {
		return replayed, result.Value, nil
	}
	return executed, result.Value, nil
}

// effects returns the effects and the answer of a key.
func (c *clients) effects(ctx context.Context, key idempotency.Key) (effects []string, answer *string, err error) {
	err = c.pool.QueryRow(ctx, `SELECT coalesce((SELECT array_agg(effect) FROM effects WHERE (scope, id) = ($1, $2)), '{}'),
		(SELECT effect FROM `+done+` WHERE (scope, id) = ($1, $2))`, key.Scope, key.ID).Scan(&effects, &answer)
	return effects, answer, err
}

// kill runs a script that ends in a kill, and checks what it left behind. It
// returns what the next caller was told.
func (c *clients) kill(ctx context.Context, s *script) (kind, error) {
	s.Signal = syscall.SIGKILL
	cmd, output, err := c.start(ctx, s, nil)
	if err != nil {
		return "", err
	}
	printed, err := io.ReadAll(output)
	if err != nil {
		return "", err
	}
	if _ = cmd.Wait(); !wasKilled(cmd) {
		return "", fmt.Errorf("the client was not killed at its hook: %v; it printed %s", cmd.ProcessState, printed)
	}
	// Callers were told of so many calls.
	lines := strings.Split(strings.TrimSpace(string(printed)), "\n")
	acknowledged := 0
	for _, line := range lines {
		var t told
		if line != "" && json.Unmarshal([]byte(line), &t) == nil && t.Executed {
			acknowledged++
		}
	}
	want := s.Before
	if s.Hook == hookReturned {
		want++
	}
	if acknowledged != want {
		return "", fmt.Errorf("the client was told of %d executions, want %d; it printed %s", acknowledged, want, printed)
	}
	if !c.gone(ctx, s.Key) {
		return "", fmt.Errorf("the server still has a connection of the client %q", s.Key)
	}
	var last kind
	for n := range s.Before + 1 {
		key := s.key(n)
		effects, answer, err := c.effects(ctx, key)
		if err != nil {
			return "", err
		}
		if (answer == nil) != (len(effects) == 0) || answer != nil && (len(effects) != 1 || effects[0] != *answer) {
			return "", fmt.Errorf("call %d left the effects %q and the answer %v", n, effects, answer)
		}
		told, id, err := c.next(ctx, key)
		if err != nil {
			return "", fmt.Errorf("the next caller of call %d: %w", n, err)
		}
		if (told == replayed) != (answer != nil) || n < acknowledged && told != replayed {
			return "", fmt.Errorf("call %d left the effects %q, %d calls were acknowledged, and the next caller was told %s", n, effects, acknowledged, told)
		}
		if effects, _, err = c.effects(ctx, key); err != nil || len(effects) != 1 || effects[0] != id {
			return "", fmt.Errorf("call %d has the effects %q, and the answer is %q (%w)", n, effects, id, err)
		}
		last = told
	}
	return last, nil
}

func TestKilledClients(t *testing.T) {
	t.Parallel()
	seed := newSeed(t)
	random := rand.New(rand.NewPCG(seed, 3))
	c := newClients(t)
	kills := size(*killsFlag, 200, 22)
	var scripts []*script
	for n := 0; len(scripts) < kills; n++ {
		for _, verb := range []string{verbDo, verbDoTx, verbBegin} {
			for _, hook := range hooks {
				if (hook != hookCompleted || verb == verbBegin) && len(scripts) < kills {
					scripts = append(scripts, &script{
						Verb: verb, Hook: hook, Key: fmt.Sprintf("%d %s %s", n, verb, hook), IdleTimeout: time.Minute, Before: random.IntN(3),
						Level: levels[random.IntN(len(levels))], Mode: textModes[random.IntN(len(textModes))],
					})
				}
			}
		}
	}
	var mu sync.Mutex
	cells := make(map[string]map[kind]int)
	queue := make(chan *script, len(scripts))
	for _, s := range scripts {
		queue <- s
	}
	close(queue)
	var group sync.WaitGroup
	for range killers {
		group.Go(func() {
			for s := range queue {
				next, err := c.kill(t.Context(), s)
				if err != nil {
					t.Errorf("%s, killed at %q after %d calls, %s, %s: %v", s.Verb, s.Hook, s.Before, s.Level, s.Mode, err)
					continue
				}
				mu.Lock()
				if cells[s.Hook] == nil {
					cells[s.Hook] = make(map[kind]int)
				}
				cells[s.Hook][next]++
				mu.Unlock()
			}
		})
	}
	group.Wait()

	rows := [][]any{{"killed at", "kills", "undone", "committed"}}
	for _, hook := range hooks {
		cell := cells[hook]
		rows = append(rows, []any{hook, cell[executed] + cell[replayed], cell[executed], cell[replayed]})
		if len(cell) == 0 && kills >= 22 {
			t.Errorf("no client was killed at %q", hook)
		}
		for told := range cell {
			if !slices.Contains(commitment[hook], told) {
				t.Errorf("after a kill at %q the next caller was told %q %d times", hook, told, cell[told])
			}
		}
	}
	t.Logf("what killed client processes left behind, %s\n%s", violations(t), table(rows))
}

// standStill starts a client process that stops at its hook, lets it go on after
// meanwhile, and returns what it was told.
func (c *clients) standStill(t *testing.T, s *script, meanwhile func()) (got told) {
	t.Helper()
	goOn, input, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = errors.Join(goOn.Close(), input.Close()) }()
	cmd, output, err := c.start(t.Context(), s, goOn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	lines := bufio.NewScanner(output)
	if !lines.Scan() || lines.Text() != stopping {
		t.Fatalf("the client printed %q, want that it stops", lines.Text())
	}
	meanwhile()
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if _, err := input.WriteString("\n"); err != nil {
		t.Fatal(err)
	}
	if !lines.Scan() {
		t.Fatal("the client ended without an answer")
	}
	if err := json.Unmarshal(lines.Bytes(), &got); err != nil {
		t.Fatalf("%q: %v", lines.Text(), err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	return got
}

// A process that stands still past its idle timeout has lost the key, whatever
// it does when it goes on.
func TestStoppedClientHasLostTheKey(t *testing.T) {
	t.Parallel()
	c := newClients(t)
	for _, verb := range []string{verbDo, verbDoTx, verbBegin} {
		for _, level := range levels {
			t.Run(fmt.Sprintf("%s %s", verb, level), func(t *testing.T) {
				t.Parallel()
				s := &script{
					Verb: verb, Hook: hookEffect, Key: fmt.Sprintf("stopped %s %s", verb, level), Level: level,
					Mode: pgx.QueryExecModeExec, IdleTimeout: 300 * time.Millisecond, Signal: syscall.SIGSTOP,
				}
				var rival string
				got := c.standStill(t, s, func() {
					var next kind
					var err error
					if next, rival, err = c.next(t.Context(), s.key(0)); err != nil || next != executed {
						t.Fatalf("the next caller was told %s %q (%v), want that it executes", next, rival, err)
					}
				})
				// Do looks, and finds the other's answer. In a transaction of its
				// caller's nobody can.
				if verb == verbDo && (got.Executed || got.ID != rival) || verb != verbDo && (got.Err == "" || got.Unknown) {
					t.Errorf("the client was told %+v after it had lost the key", got)
				}
				effects, answer, err := c.effects(t.Context(), s.key(0))
				if err != nil || len(effects) != 1 || effects[0] != rival || answer == nil || *answer != rival {
					t.Errorf("the effects are %q, want the other's", effects)
				}
			})
		}
	}
}

// A process that stands still past its lease, after a step elsewhere, has lost the
// key: whoever goes on has its charge and books it, and nothing that it tries late is
// kept.
func TestStoppedHolderHasLostItsLease(t *testing.T) {
	t.Parallel()
	c := newClients(t)
	for _, level := range levels {
		t.Run(string(level), func(t *testing.T) {
			t.Parallel()
			s := &script{
				Verb: verbExternal, Hook: hookStep, Key: "leased " + string(level), Level: level,
				Mode: pgx.QueryExecModeExec, IdleTimeout: time.Minute, Lease: 2 * time.Second, // for a busy machine
				Signal: syscall.SIGSTOP,
			}
			key, mine := s.key(0), s.Key+" client's charge"
			got := c.standStill(t, s, func() {
				result, err := idempotency.DoExternal(t.Context(), c.client, idempotency.Params{
					Key: key, Fingerprint: idempotency.FingerprintOf("a"), Wait: nextWait,
				}, func(ctx context.Context, lease *idempotency.Lease) (string, error) {
					return step(ctx, lease, "charge", "another charge")
				}, func(ctx context.Context, tx pgx.Tx, charge string) (string, error) {
					return charge, insert(ctx, tx, key, charge)
				})
				if err != nil || result.Replayed || result.Value != mine || result.Record.Attempt != 2 {
					t.Fatalf("the next caller was told %+v (%v), want that its second attempt books the first one's charge", result, err)
				}
			})
			if want := idempotency.ErrClaimLost.Error(); !strings.Contains(got.Err, want) || got.Executed {
				t.Errorf("the client was told %+v, want %q", got, want)
			}
			if len(got.Late) != len(lateVerbs) {
				t.Fatalf("the client tried %d verbs, want %d", len(got.Late), len(lateVerbs))
			}
			for i, verb := range lateVerbs {
				if word := got.Late[i]; word != idempotency.ErrClaimLost.Error() && (verb != "Step" || word != idempotency.ErrLeaseEnded.Error()) {
					t.Errorf("late %s: %s", verb, word)
				}
			}
			effects, answer, err := c.effects(t.Context(), key)
			if err != nil || len(effects) != 1 || effects[0] != mine || answer == nil || *answer != mine {
				t.Errorf("the effects are %q and the answer %v (%v), want %q", effects, answer, err, mine)
			}
		})
	}
}

//go:build unix

package chaos_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/internal/pgcut"
)

var (
	cutPoints = flag.Int("chaos.points", 0, "how many points TestCuts cuts at, spread over all; 0 means every one")
	cutOnly   = flag.String("chaos.point", "", "a regular expression for the points that TestCuts cuts at; a failure prints its own")
)

const (
	// leastPoints is how many a whole run has, so that none gets lost unseen.
	leastPoints = 2500
	// shortPoints is how many -short cuts at.
	shortPoints = 300
	// The silent ones mostly wait.
	workers, silentWorkers = 4, 24
)

var allModes = []pgcut.Mode{pgcut.Reset, pgcut.Close, pgcut.Silence, pgcut.Outage}

// modes are those that a flow is cut in. An outage differs from a reset for who
// reconnects to find out what became of a commit.
func (f *flow) modes() []pgcut.Mode {
	if f.commits && !f.statements && !f.ownTx {
		return allModes
	}
	return allModes[:3]
}

// job is one point of one variant.
type job struct {
	variant *variant
	point   pgcut.Point
	// open says that by then the client has sent what commits, and not got the
	// whole answer.
	open bool
}

func (j *job) String() string {
	return strings.ReplaceAll(fmt.Sprintf("%v/%v", j.variant, j.point), " ", "-")
}

// tally is what came of the points of one flow and mode.
type tally struct {
	points, open, committed, held int
	answers                       map[kind]int
}

// cuts is one run of TestCuts.
type cuts struct {
	shared  *lab
	alone   map[*flow]*lab
	locks   map[*flow]*sync.Mutex
	mu      sync.Mutex
	tallies map[*flow]map[pgcut.Mode]*tally
}

// TestCuts cuts the connection of every flow at every message that passes, in
// every way, and checks what the caller was told against the database and
// against what the next caller gets.
func TestCuts(t *testing.T) { //nolint:paralleltest // It counts goroutines.
	start := time.Now()
	c := &cuts{
		shared: newLab(t), alone: make(map[*flow]*lab), locks: make(map[*flow]*sync.Mutex),
		tallies: make(map[*flow]map[pgcut.Mode]*tally),
	}
	for _, f := range flows {
		c.tallies[f] = make(map[pgcut.Mode]*tally)
		for _, mode := range f.modes() {
			c.tallies[f][mode] = &tally{answers: make(map[kind]int)}
		}
		if f.alone {
			c.alone[f], c.locks[f] = newLab(t), &sync.Mutex{}
		}
	}
	goroutines := runtime.NumGoroutine()

	var jobs []*job
	for _, v := range variants() {
		found, err := c.enumerate(t.Context(), v)
		if err != nil {
			t.Fatalf("%v, without a cut: %v", v, err)
		}
		jobs = append(jobs, found...)
	}
	whole := len(jobs)
	if *cutOnly != "" {
		only, err := regexp.Compile("^(" + *cutOnly + ")$")
		if err != nil {
			t.Fatal(err)
		}
		jobs = slices.DeleteFunc(jobs, func(j *job) bool { return !only.MatchString(j.String()) })
	} else if points := size(*cutPoints, whole, shortPoints); points < whole {
		jobs = spread(jobs, points)
	}
	if len(jobs) == 0 {
		t.Fatalf("there is no point %q among %d", *cutOnly, whole)
	}

	queues := map[bool]chan *job{false: make(chan *job), true: make(chan *job)}
	var group sync.WaitGroup
	for silent, queue := range queues {
		count := workers
		if silent {
			count = silentWorkers
		}
		for range count {
			group.Go(func() {
				for j := range queue {
					if err := c.try(t.Context(), j); err != nil {
						t.Errorf("%v\n\tagain: go test ./tests/chaos -run '^TestCuts$' -chaos.point='%v'", err, j)
					}
				}
			})
		}
		group.Go(func() {
			defer close(queue)
			for _, j := range jobs {
				if (j.point.Mode == pgcut.Silence) == silent {
					queue <- j
				}
			}
		})
	}
	group.Wait()

	c.auditAll(t)
	waitUntil(t, "goroutines are back at the baseline", func() bool { return runtime.NumGoroutine() <= goroutines })
	if runtime.NumGoroutine() > goroutines {
		stacks := make([]byte, 1<<20)
		t.Logf("%s", stacks[:runtime.Stack(stacks, true)])
	}
	t.Logf("%d of %d points in %s, %s\n%s", len(jobs), whole, time.Since(start).Round(time.Second), violations(t), c.table())
	if len(jobs) < whole {
		return // a part need not hold everything
	}
	if whole < leastPoints {
		t.Errorf("%d points, want at least %d", whole, leastPoints)
	}
	for f, byMode := range c.tallies {
		for mode, n := range byMode {
			for _, k := range f.answers {
				if n.answers[k] == 0 {
					t.Errorf("%s, %s: no caller was told %q: nothing was proved", f.name, mode, k)
				}
			}
			if mode == pgcut.Outage && n.answers[unknown] == 0 {
				t.Errorf("%s, %s: no caller was told %q", f.name, mode, unknown)
			}
			if f.commits && (n.committed == 0 || n.committed == n.open) {
				t.Errorf("%s, %s: %d commits were left open and %d had committed: some must, and some must not", f.name, mode, n.open, n.committed)
			}
		}
	}
}

// variants are the flows under the levels and exec modes that they are for.
func variants() []*variant {
	var all []*variant
	for _, f := range flows {
		all = append(all,
			&variant{f, pgx.ReadCommitted, pgx.QueryExecModeCacheStatement},
			&variant{f, pgx.ReadCommitted, pgx.QueryExecModeSimpleProtocol})
		if f.everyMode {
			for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec} {
				all = append(all, &variant{f, pgx.ReadCommitted, mode})
			}
		}
		if f.everyLevel {
			all = append(all,
				&variant{f, pgx.RepeatableRead, pgx.QueryExecModeCacheStatement},
				&variant{f, pgx.Serializable, pgx.QueryExecModeCacheStatement})
		}
	}
	return all
}

// spread picks count of all, evenly.
func spread[T any](all []T, count int) []T {
	picked := make([]T, count)
	for i := range picked {
		picked[i] = all[i*len(all)/count]
	}
	return picked
}

func (c *cuts) lab(f *flow) *lab {
	if own := c.alone[f]; own != nil {
		return own
	}
	return c.shared
}

// enumerate runs the variant without a cut, and returns the points that it has.
func (c *cuts) enumerate(ctx context.Context, v *variant) ([]*job, error) {
	messages, _, err := c.run(ctx, v, nil)
	if err != nil {
		return nil, err
	}
	first, last := commitFlight(v.flow, messages)
	var jobs []*job
	for i, m := range messages {
		for _, after := range []bool{false, true} {
			if after && i+1 < len(messages) && messages[i+1].From == m.From {
				continue // the same as before the next one
			}
			for _, mode := range v.flow.modes() {
				point := pgcut.Point{From: m.From, Number: m.Number, After: after, Mode: mode}
				jobs = append(jobs, &job{v, point, m.From == pgcut.Frontend && first <= m.Number && m.Number <= last})
			}
		}
	}
	return jobs, nil
}

// commitFlight returns the first and the last message of the request that
// commits, which the client sends as a whole. They are 0 and -1 where nothing is
// committed.
func commitFlight(f *flow, messages []pgcut.Message) (first, last int) {
	first, last = 0, -1
	begin, commits := 1, false
	for _, m := range messages {
		if m.From == pgcut.Backend {
			continue
		}
		commits = commits || m.Commit
		if m.Type != 'S' && m.Type != 'Q' {
			continue
		}
		if commits || f.statements {
			first, last = begin, m.Number
		}
		begin, commits = m.Number+1, false
	}
	return first, last
}

// try cuts at the job's point and takes note of what came of it.
func (c *cuts) try(ctx context.Context, j *job) error {
	var r result
	var err error
	for range 3 {
		if _, r, err = c.run(ctx, j.variant, &j.point); !errors.Is(err, errDisturbed) {
			break
		}
	}
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.tallies[j.variant.flow][j.point.Mode]
	n.points++
	n.answers[r.answer.kind]++
	if j.open || r.open {
		n.open++
		if r.committed {
			n.committed++
		}
	}
	if r.held {
		n.held++
	}
	return nil
}

// errDisturbed is a trial in which something else went wrong before the cut: a
// timeout on a busy machine, or other trials' transactions.
var errDisturbed = errors.New("disturbed")

// result is what came of one trial.
type result struct {
	answer answer
	// open is what the cutter says of it: what commits had arrived, and its
	// answer had not. committed is what the audit found.
	open, committed bool
	// held says that the key was held until the connection broke.
	held bool
}

// run is one trial: the flow and its audit, cut at the point if there is one.
func (c *cuts) run(ctx context.Context, v *variant, point *pgcut.Point) (messages []pgcut.Message, r result, err error) {
	ctx, cancel := context.WithTimeout(ctx, trialTimeout)
	defer cancel()
	if lock := c.locks[v.flow]; lock != nil {
		lock.Lock()
		defer lock.Unlock()
	}
	tr, err := newTrial(ctx, v, c.lab(v.flow), point)
	if err != nil {
		return nil, r, err
	}
	defer func() { err = errors.Join(err, tr.close(ctx)) }()
	if !v.flow.cold {
		// So that the statements are prepared, and every run is the same.
		warm := *tr
		warm.key = tr.name + " warm"
		if err := warm.prepare(ctx); err != nil {
			return nil, r, err
		}
		got := v.flow.run(ctx, &warm)
		if !slices.Contains(v.flow.answers, got.kind) {
			return nil, r, fmt.Errorf("%w: without a cut told %v, want %v", errDisturbed, got, v.flow.answers)
		}
		if _, err := warm.finish(ctx, got); err != nil {
			return nil, r, fmt.Errorf("without a cut: %w", err)
		}
	}
	tr.key = tr.name
	if err := tr.prepare(ctx); err != nil {
		return nil, r, err
	}

	flowCtx, give := context.WithCancel(ctx)
	defer give()
	done := tr.cutter.Arm(point)
	if point != nil && point.Mode == pgcut.Silence {
		go func() {
			select {
			case <-done:
				time.AfterFunc(patience, give)
			case <-flowCtx.Done():
			}
		}()
	}
	r.answer = v.flow.run(flowCtx, tr)
	messages, cut := tr.cutter.Messages(), tr.cutter.Cut()
	if point != nil {
		if cut == nil {
			return nil, r, fmt.Errorf("%w: told %v; the point was never reached: %v", errDisturbed, r.answer, messages)
		}
		r.open = cut.Ambiguous || v.flow.statements && cut.Unanswered
		if r.held, err = tr.settle(ctx, cut); err != nil {
			return nil, r, err
		}
	}
	r.committed, err = tr.finish(ctx, r.answer)
	return messages, r, err
}

// auditAll looks at whole databases once all connections to them are closed.
func (c *cuts) auditAll(t *testing.T) {
	t.Helper()
	labs := []*lab{c.shared}
	for _, own := range c.alone {
		labs = append(labs, own)
	}
	for _, l := range labs {
		count := func(sql string) (n int) {
			if err := l.pool.QueryRow(t.Context(), sql).Scan(&n); err != nil {
				t.Error(err)
			}
			return n
		}
		waitUntil(t, "cut connections and advisory locks are gone", func() bool {
			return count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'cut %'`) == 0 &&
				count(`SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`) == 0
		})
		for name, sql := range map[string]string{
			"keys with several effects": `SELECT count(*) FROM (SELECT FROM effects GROUP BY key HAVING count(*) > 1) AS twice`,
			"effects without their record": `SELECT count(*) FROM effects AS e WHERE NOT EXISTS (SELECT FROM idempotency_keys AS k
				WHERE k.id = e.key AND k.expires_at IS NOT NULL AND k.response = convert_to('"' || e.id || '"', 'UTF8'))`,
			"records without their effect": `SELECT count(*) FROM idempotency_keys AS k WHERE k.expires_at IS NOT NULL AND k.response_type = 'json:string'
				AND NOT EXISTS (SELECT FROM effects AS e WHERE e.key = k.id AND k.response = convert_to('"' || e.id || '"', 'UTF8'))`,
			"unfinished records": `SELECT count(*) FROM idempotency_keys WHERE unfinished IS NOT NULL`,
		} {
			if n := count(sql); n != 0 {
				t.Errorf("%d %s", n, name)
			}
		}
		l.pool.Reset() // pgx may have left a reader with an idle connection
	}
}

func waitUntil(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(trialTimeout); !condition(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Errorf("waited in vain until %s", what)
			return
		}
	}
}

func (c *cuts) table() string {
	var text, aligned strings.Builder
	text.WriteString("flow\tmode\tpoints\topen commits\tcommitted\theld\t")
	for _, k := range kinds {
		fmt.Fprintf(&text, "%s\t", k)
	}
	text.WriteString("\n")
	sum := tally{answers: make(map[kind]int)}
	row := func(name, mode string, n *tally) {
		fmt.Fprintf(&text, "%s\t%s\t%d\t%d\t%d\t%d\t", name, mode, n.points, n.open, n.committed, n.held)
		for _, k := range kinds {
			fmt.Fprintf(&text, "%d\t", n.answers[k])
		}
		text.WriteString("\n")
	}
	for _, f := range flows {
		for _, mode := range f.modes() {
			n := c.tallies[f][mode]
			row(f.name, string(mode), n)
			sum.points += n.points
			sum.open += n.open
			sum.committed += n.committed
			sum.held += n.held
			for k, count := range n.answers {
				sum.answers[k] += count
			}
		}
	}
	row("all", "", &sum)
	w := tabwriter.NewWriter(&aligned, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = io.WriteString(w, text.String())
	_ = w.Flush()
	return aligned.String()
}

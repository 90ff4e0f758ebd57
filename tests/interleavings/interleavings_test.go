package interleavings_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

var updateGolden = flag.Bool("update", false, "write the golden tables of this package")

const interleavingsGolden = "testdata/interleavings.golden"

// scheduleTimeout is for one schedule, which takes some 10 ms.
const scheduleTimeout = 30 * time.Second

var (
	scriptedFingerprint = idempotency.FingerprintOf("scripted request")
	// heldClaimID is the claim of a lease that a schedule starts with.
	heldClaimID = idempotency.ClaimID{1}
)

// scriptPair is two scripts for one key, and the row that the key has at first.
type scriptPair struct{ start, a, b string }

func (p scriptPair) String() string { return fmt.Sprintf("%s: %s, %s", p.start, p.a, p.b) }

// at returns the name of the pair's table.
func (p scriptPair) at(level pgx.TxIsoLevel) string { return fmt.Sprintf("%s | %s", p, level) }

// starts are the rows that a schedule can start with, as values of response
// and the ends of lease and retention.
var starts = map[string]string{
	"no row":      "",
	"expired":     `'"start"', NULL, now() - interval '1 hour'`,
	"answered":    `'"start"', NULL, now() + interval '1 hour'`,
	"leased":      `NULL, now() + interval '1 hour', NULL`,
	"lease ended": `NULL, now() - interval '1 hour', NULL`,
}

var scriptPairs = []scriptPair{
	{"no row", "transaction", "transaction"},
	{"no row", "transaction", "roll back"},
	{"no row", "transaction", "killed"},
	{"no row", "transaction", "savepoint undone"},
	{"no row", "transaction", "completion forgotten"},
	{"no row", "transaction", "DoTx"},
	{"no row", "transaction", "Do"},
	{"no row", "Do", "Do"},
	{"no row", "Do", "Do fails"},
	{"no row", "Do", "Do fails for good"},
	{"no row", "Do", "Do killed"},
	{"no row", "Do", "DoTx"},
	{"no row", "Do", "batch"},
	{"no row", "Do", "large batch"},
	{"no row", "Do", "lease"},
	{"no row", "Do", "lease released"},
	{"no row", "transaction", "large batch"},
	{"no row", "transaction", "lease"},
	{"no row", "Do", "look"},
	{"expired", "transaction", "transaction"},
	{"expired", "transaction", "sweep in transaction"},
	{"expired", "transaction", "Do"},
	{"expired", "batch", "sweep in transaction"},
	{"expired", "batch", "Do"},
	{"expired", "Do", "Do"},
	{"expired", "Do", "sweep"},
	{"expired", "Do", "sweep in transaction"},
	{"expired", "DoTx", "sweep"},
	{"answered", "Do", "other request"},
	{"answered", "DoTx", "sweep in transaction"},
	{"leased", "transaction", "holder"},
	{"leased", "Do", "holder"},
	{"leased", "batch", "holder"},
	{"lease ended", "transaction", "holder"},
	{"lease ended", "batch", "holder"},
	{"lease ended", "Do", "holder"},
	{"lease ended", "lease", "holder"},
	{"lease ended", "transaction", "Do"},
	{"lease ended", "transaction", "holder steps"},
	{"lease ended", "batch", "holder steps"},
	{"lease ended", "Do", "holder steps"},
	{"lease ended", "lease", "holder steps"},
	{"leased", "Do", "holder runs"},
	{"leased", "holder", "holder runs"},
	{"leased", "holder runs", "holder runs"},
	{"lease ended", "transaction", "holder runs"},
	{"lease ended", "batch", "holder runs"},
	{"lease ended", "Do", "holder runs"},
	{"lease ended", "lease", "holder runs"},
	{"lease ended", "lease", "holder runs, killed"},
	{"no row", "transaction", "lease suspended"},
	{"no row", "Do", "lease suspended"},
	{"no row", "batch", "lease suspended"},
	{"no row", "lease", "lease suspended"},
}

var isolationLevels = []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable}

// TestInterleavings runs every order-preserving merge of two scripts, for each
// pair and isolation level, and compares what the two sessions were told with a
// golden table. Invariants are checked at every step, whatever the table says.
func TestInterleavings(t *testing.T) {
	t.Parallel()
	golden := readInterleavings(t)
	var mu sync.Mutex
	found := make(map[string]string)
	total := 0
	t.Run("schedules", func(t *testing.T) {
		t.Parallel()
		for _, pair := range scriptPairs {
			for _, level := range isolationLevels {
				name := pair.at(level)
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					schedules, table := runInterleavings(t, pair, level)
					if !*updateGolden && table != golden[name] {
						t.Errorf("outcomes differ from %s; got\n%s\nwant\n%s", interleavingsGolden, table, golden[name])
					}
					mu.Lock()
					defer mu.Unlock()
					found[name] = table
					total += schedules
				})
			}
		}
	})
	t.Cleanup(func() {
		t.Logf("%d schedules of %d pairs at %d isolation levels", total, len(scriptPairs), len(isolationLevels))
		whole := len(found) == len(scriptPairs)*len(isolationLevels)
		switch {
		case *updateGolden && !whole:
			t.Errorf("-update writes all tables, and only %d were made: run all of TestInterleavings", len(found))
		case *updateGolden && !t.Failed():
			writeInterleavings(t, found)
		case whole && len(golden) != len(found):
			t.Errorf("%s has %d tables; want %d, run with -update", interleavingsGolden, len(golden), len(found))
		}
	})
}

// runInterleavings runs the schedules of a pair one after another in a database
// of their own: a sweep or a predicate lock reaches beyond its key.
func runInterleavings(t *testing.T, pair scriptPair, level pgx.TxIsoLevel) (count int, table string) {
	t.Helper()
	config := pgtest.Config(t)
	admin := openPool(t, config, "audit")
	if _, err := admin.Exec(t.Context(), `CREATE TABLE effects (name text NOT NULL, by text NOT NULL);
		CREATE INDEX ON effects (name)`); err != nil {
		t.Fatal(err)
	}
	i := &interleaving{admin: admin, start: pair.start, level: level, a: newScriptedSession(t, config, admin, level, "A"), b: newScriptedSession(t, config, admin, level, "B")}
	byOutcome := make(map[string][]string)
	for _, schedule := range merges(len(scripts[pair.a]), len(scripts[pair.b])) {
		i.schedule = schedule
		outcome, err := i.run(t.Context(), scripts[pair.a], scripts[pair.b])
		if err != nil {
			t.Errorf("schedule %s: %v", schedule, err)
		}
		byOutcome[outcome] = append(byOutcome[outcome], schedule)
		count++
	}
	var text strings.Builder
	for _, outcome := range slices.Sorted(maps.Keys(byOutcome)) {
		schedules := byOutcome[outcome]
		fmt.Fprintf(&text, "%3d  %s\n", len(schedules), outcome)
		for line := range slices.Chunk(schedules, 12) {
			fmt.Fprintf(&text, "       %s\n", strings.Join(line, " "))
		}
	}
	return count, text.String()
}

func openPool(t *testing.T, config *pgxpool.Config, name string) *pgxpool.Pool {
	t.Helper()
	config = config.Copy()
	config.ConnConfig.RuntimeParams["application_name"] = name
	// What a SERIALIZABLE read locks depends on the plan, and the plan of a table
	// this small on when it was last analyzed.
	config.ConnConfig.RuntimeParams["enable_seqscan"] = "off"
	config.ConnConfig.RuntimeParams["jit"] = "off" // which takes the above for a reason to compile
	pool := bench.PoolWith(t, config)
	return pool
}

func newScriptedSession(t *testing.T, config *pgxpool.Config, admin *pgxpool.Pool, level pgx.TxIsoLevel, name string) *scriptedSession {
	t.Helper()
	pool := openPool(t, config, name)
	store := bench.NewStore(t, pool, &pgxstore.Config{
		TxOptions: pgx.TxOptions{IsoLevel: level},
		// A rival that the schedule keeps from ending leaves a lost commit unknown.
		ResolveTimeout: 4 * time.Second,
	})
	client, err := idempotency.NewClient(store, &idempotency.Config{
		FinalErrors: []idempotency.FinalKind{idempotency.FinalValue("scripted", errScriptedFinal)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return &scriptedSession{name: name, level: level, admin: admin, pool: pool, store: store, client: client}
}

// merges returns every order of a A's and b B's.
func merges(a, b int) []string {
	if a == 0 || b == 0 {
		return []string{strings.Repeat("A", a) + strings.Repeat("B", b)}
	}
	var all []string
	for _, rest := range merges(a-1, b) {
		all = append(all, "A"+rest)
	}
	for _, rest := range merges(a, b-1) {
		all = append(all, "B"+rest)
	}
	return all
}

// interleaving runs schedules: one step at a time, as the schedule orders. A
// step of a session that waits for the other is put off until it no longer does.
type interleaving struct {
	admin    *pgxpool.Pool
	start    string
	level    pgx.TxIsoLevel
	a, b     *scriptedSession
	schedule string
	key      idempotency.Key
}

func (i *interleaving) run(ctx context.Context, a, b []scriptStep) (outcome string, err error) {
	ctx, cancel := context.WithTimeout(ctx, scheduleTimeout)
	defer cancel()
	i.key = idempotency.Key{Scope: "interleavings", ID: i.schedule}
	i.a.prepare(i.key, a)
	i.b.prepare(i.key, b)
	defer i.a.end(ctx)
	defer i.b.end(ctx)
	defer cancel() // the deferred end waits for nothing then
	if err := i.insertStart(ctx); err != nil {
		return "", err
	}
	var violations []error
	for _, next := range i.schedule {
		session := i.a
		if next == 'B' {
			session = i.b
		}
		session.due++
		if err := i.settle(ctx); err != nil {
			return "", err
		}
		if err := i.audit(ctx); err != nil {
			violations = append(violations, err)
		}
	}
	if i.a.running != nil || i.b.running != nil {
		return "", errors.New("a session still waits at the end")
	}
	effects, record, err := i.committed(ctx)
	violations = append(violations, err)
	return fmt.Sprintf("A %s | B %s | effects %s, record %s", strings.Join(i.a.outcomes, ", "), strings.Join(i.b.outcomes, ", "), effects, record), errors.Join(violations...)
}

func (s *scriptedSession) prepare(key idempotency.Key, steps []scriptStep) {
	s.key, s.steps, s.due, s.outcomes, s.acknowledged = key, steps, 0, nil, ""
	s.tx, s.claim, s.batch, s.ending = nil, nil, nil, nil
}

// end gives back what a schedule that failed has left open.
func (s *scriptedSession) end(ctx context.Context) {
	if s.running != nil {
		<-s.running
		s.running = nil
	}
	if s.ending != nil {
		select {
		case s.ending <- errScripted:
		default: // Do was told before
		}
		<-s.done
	} else if s.tx != nil {
		s.tx.Rollback(context.WithoutCancel(ctx))
	}
}

func (i *interleaving) insertStart(ctx context.Context) error {
	// A sweep is not to find what an earlier schedule left.
	_, err := i.admin.Exec(ctx, `DELETE FROM idempotency_keys`)
	values := starts[i.start]
	if err != nil || values == "" {
		return err
	}
	_, err = i.admin.Exec(ctx, `INSERT INTO idempotency_keys
		(scope, id, claim_id, attempt, fingerprint, created_at, updated_at, response, locked_until, expires_at, response_type)
		SELECT $1, $2, $3, 1, $4, now(), now(), s.response::bytea, s.locked_until::timestamptz, s.expires_at::timestamptz, CASE WHEN s.expires_at IS NOT NULL THEN 'json:string' END
		FROM (SELECT `+values+`) AS s (response, locked_until, expires_at)`,
		i.key.Scope, i.key.ID, [16]byte(heldClaimID), scriptedFingerprint.Bytes())
	if err == nil && i.start == "answered" {
		_, err = i.admin.Exec(ctx, `INSERT INTO effects (name, by) VALUES ($1, 'start')`, i.key.ID)
	}
	return err
}

// settle starts what is due and returns once nothing moves: each session has
// nothing under way, or waits for the other.
func (i *interleaving) settle(ctx context.Context) error {
	for moved := true; moved; {
		moved = false
		for _, pair := range [][2]*scriptedSession{{i.a, i.b}, {i.b, i.a}} {
			session, other := pair[0], pair[1]
			if session.running == nil {
				if session.due == 0 {
					continue
				}
				session.startStep(ctx)
			}
			if err := i.await(ctx, session, other); err != nil {
				return err
			}
			moved = moved || session.running == nil
		}
	}
	return nil
}

func (s *scriptedSession) startStep(ctx context.Context) {
	step := s.steps[0]
	s.steps, s.due, s.waited = s.steps[1:], s.due-1, false
	running := make(chan string, 1)
	s.running = running
	go func() { running <- step(ctx, s) }()
}

// await returns when the session's step is done, or waits for a lock of the
// other's.
func (i *interleaving) await(ctx context.Context, session, other *scriptedSession) error {
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case outcome := <-session.running:
			session.running = nil
			if session.waited {
				outcome = "waits and " + outcome
			}
			if outcome != "" {
				session.outcomes = append(session.outcomes, outcome)
			}
			return nil
		case <-ticker.C:
			waits := false
			if err := i.admin.QueryRow(ctx, `SELECT EXISTS (
				SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1
				AND pg_blocking_pids(pid) && ARRAY(SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = $2)
			)`, session.name, other.name).Scan(&waits); err != nil {
				return err
			}
			if waits {
				session.waited = true
				return nil
			}
		}
	}
}

// audit checks the invariants in one snapshot: at most one effect (I1), the
// effect of every answer that a session was told (I2), an effect exactly where
// its answer is recorded, and nothing committed half done (I3).
func (i *interleaving) audit(ctx context.Context) error {
	effects, record, err := i.committed(ctx)
	if err != nil {
		return err
	}
	want := "none"
	switch record {
	case "none", "expired", "leased", "final":
	case "unfinished":
		return errors.New("I3: a key that was begun and not completed is committed")
	default:
		want = record
	}
	switch {
	case strings.Contains(effects, "+"):
		return fmt.Errorf("I1: effects of %s", effects)
	case effects != want:
		return fmt.Errorf("I3: effects %s, record %s", effects, record)
	}
	for _, session := range []*scriptedSession{i.a, i.b} {
		if told := session.acknowledged; told != "" && told != effects && session.running == nil {
			return fmt.Errorf("I2: %s was told that %s is recorded; effects %s, record %s", session.name, told, effects, record)
		}
	}
	return nil
}

func (i *interleaving) committed(ctx context.Context) (effects, record string, err error) {
	err = i.admin.QueryRow(ctx, `SELECT
		coalesce((SELECT string_agg(by, '+' ORDER BY by) FROM effects WHERE name = $2), 'none'),
		coalesce((SELECT CASE
			WHEN expires_at <= clock_timestamp() THEN 'expired'
			WHEN response_type LIKE 'error:%' THEN 'final'
			WHEN expires_at IS NOT NULL THEN trim('"' FROM convert_from(response, 'UTF8'))
			WHEN locked_until IS NOT NULL THEN 'leased'
			ELSE 'unfinished' END FROM idempotency_keys WHERE scope = $1 AND id = $2), 'none')`, i.key.Scope, i.key.ID).Scan(&effects, &record)
	return effects, record, err
}

// readInterleavings returns the tables of the golden file by their names.
func readInterleavings(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile(interleavingsGolden)
	if err != nil && !*updateGolden {
		t.Fatal(err)
	}
	tables := make(map[string]string)
	for _, section := range strings.Split(string(text), "\n== ")[1:] {
		header, table, _ := strings.Cut(section, "\n")
		pair, levels, _ := strings.Cut(header, " | ")
		for level := range strings.SplitSeq(levels, ", ") {
			tables[pair+" | "+level] = strings.TrimSuffix(table, "\n") + "\n"
		}
	}
	return tables
}

func writeInterleavings(t *testing.T, tables map[string]string) {
	t.Helper()
	var text strings.Builder
	text.WriteString(`What two sessions A and B are told for one key, for every order of their steps.
Each table is named by the key's row at first, the scripts of A and B, and the
isolation levels. A line has how many schedules end like this, the outcome of each
step, and what is committed; the schedules follow. Written by
go test ./tests/interleavings -run '^TestInterleavings$' -update; TestInterleavings compares.
`)
	for _, pair := range scriptPairs {
		var levels [][]string // those with one table together
		for _, level := range isolationLevels {
			same := slices.IndexFunc(levels, func(others []string) bool {
				return tables[pair.at(level)] == tables[pair.at(pgx.TxIsoLevel(others[0]))]
			})
			if same < 0 {
				same, levels = len(levels), append(levels, nil)
			}
			levels[same] = append(levels[same], string(level))
		}
		for _, together := range levels {
			fmt.Fprintf(&text, "\n== %s | %s\n%s", pair, strings.Join(together, ", "), tables[pair.at(pgx.TxIsoLevel(together[0]))])
		}
	}
	if err := os.MkdirAll(filepath.Dir(interleavingsGolden), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(interleavingsGolden, []byte(text.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

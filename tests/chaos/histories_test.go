//go:build unix

package chaos_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/samecommit/samecommit/idempotency"
)

var opsFlag = flag.Int("chaos.ops", 0, "how many calls TestHistories makes; 0 means 50,000, or 3,000 with -short")

const (
	// enforcedFrom is how many calls must reach every cell of the report.
	enforcedFrom    = 50_000
	processes       = 4
	processesOnPgx  = 3 // the others are on database/sql
	killRounds      = 20
	workersPerEach  = 6
	checkTimeout    = 2 * time.Minute
	settleWait      = 10 * time.Second
	settlers        = 16
	faultsPerCell   = 1
	lingerOnServers = 10 * time.Second
)

// Whatever breaks, what callers were told is what one correct store could have
// told them, and what the database holds.
func TestHistories(t *testing.T) { //nolint:paralleltest // it counts goroutines, and kills a server of its own
	seed := newSeed(t)
	s := newServer(t)
	leaks := goleak.IgnoreCurrent()
	l := newLoad(t, s, seed, processes)
	l.target = int64(size(*opsFlag, enforcedFrom, 3000))
	i := &injector{load: l}
	audits := l.run(t.Context(), i)
	loadTook := time.Since(l.began)

	history := l.finish()
	l.auditHistory(t.Context(), history)
	checking := time.Now()
	l.wantLinearizable(history)
	t.Logf("%d calls in %v, checked in %v; %d audits of a snapshot", len(history), loadTook.Round(time.Second), time.Since(checking).Round(time.Millisecond), audits)
	i.attribute(history)
	if without := groundless(history, lingerOnServers); len(without) > 0 {
		t.Errorf("%d calls were told \"in progress\" though nothing was, as\n%s", len(without), describe(without[:1]))
	}
	if audits == 0 {
		t.Error("no snapshot was audited while the load ran")
	}
	i.report(t, history, l.committed(t.Context()))
	goleak.VerifyNone(t, leaks)
	t.Log(violations(t))
}

func (l *load) connect(ctx context.Context) *pgx.Conn {
	l.t.Helper()
	conn, err := pgx.ConnectConfig(ctx, l.server.config.ConnConfig.Copy())
	if err != nil {
		l.t.Fatal(err)
	}
	return conn
}

// run lets the workers work while everything breaks, and returns how often the
// database was audited meanwhile.
func (l *load) run(parent context.Context, i *injector) (audits int) {
	ctx, stop := context.WithCancel(parent)
	defer stop()
	var breaking, working, sweeping sync.WaitGroup
	for _, p := range l.processes {
		breaking.Go(func() { i.cut(ctx, p, rand.New(rand.NewPCG(l.seed, uint64(1000+p.id)))) })
	}
	breaking.Go(func() {
		i.kill(ctx, rand.New(rand.NewPCG(l.seed, 2000)), l.server.config.ConnConfig.Copy(), killRounds)
	})
	sweeping.Go(func() { audits = l.keepAuditing(ctx, l.server.config.ConnConfig.Copy()) })
	sweeping.Go(func() {
		for ctx.Err() == nil {
			// It fails as all else does. Most expired answers stay for callers to meet.
			_ = l.processes[0].callers[0].sweep(ctx)
			pause(ctx, time.Second)
		}
	})
	for _, w := range l.workers {
		working.Go(func() { w.work(ctx) })
	}
	working.Wait()
	stop()
	breaking.Wait()
	sweeping.Wait()
	i.up(parent, l.server.config.ConnConfig.Copy())
	for _, p := range l.processes {
		p.cutter.Close()
	}
	return audits
}

// finish closes the processes, which must have been given everything back,
// settles what is open, and returns the history.
func (l *load) finish() (history []*call) {
	ctx := l.t.Context()
	for _, p := range l.processes {
		p.close(ctx)
	}
	for _, w := range l.workers {
		history = append(history, w.history...)
	}
	settler := l.newProcess(len(l.processes), pgx.QueryExecModeCacheStatement, false)
	history = append(history, l.settle(ctx, settler, history)...)
	l.wantNoLocks(ctx, settler)
	settler.close(ctx)
	return history
}

// wantLinearizable checks calls against the model.
func (l *load) wantLinearizable(calls []*call) {
	l.t.Helper()
	result, info := linearizable(calls, checkTimeout)
	if result == porcupine.Ok {
		return
	}
	path := filepath.Join(os.TempDir(), fmt.Sprintf("samecommit-history-%d.html", l.seed))
	if err := porcupine.VisualizePath(model.ToModel(), info, path); err != nil {
		l.t.Error(err)
	}
	l.t.Errorf("the history is %s: see %s", result, path)
}

// settle calls Do, now that nothing breaks, for every key of which nobody has an
// answer and for every call that did not learn its own. It gets one each time.
func (l *load) settle(ctx context.Context, p *process, history []*call) (settling []*call) {
	type question struct {
		key         idempotency.Key
		fingerprint string
	}
	answers := make(map[idempotency.Key]bool)
	for _, c := range history {
		if c.answered() && c.key.Scope == lasting {
			answers[c.key] = true
		}
	}
	asked := make(map[question]bool)
	questions := make(chan question, len(history))
	for _, c := range history {
		q := question{c.key, c.fingerprint}
		if (c.kind == unknown || !answers[c.key]) && !asked[q] && c.verb != verbGet {
			asked[q] = true
			questions <- q
		}
	}
	close(questions)
	var mu sync.Mutex
	var group sync.WaitGroup
	var stuck []*call
	for n := range settlers {
		group.Go(func() {
			w := &worker{process: p, id: len(l.workers) + n}
			for q := range questions {
				w.made++
				c := &call{
					key: q.key, fingerprint: q.fingerprint, verb: verbDo, ttl: time.Hour, process: p.id, worker: w.id,
					eid: fmt.Sprintf("%d-%d", w.id, w.made),
				}
				p.make(ctx, []*call{c}, 0, settleWait, callTimeout, endsWell)
				mu.Lock()
				settling = append(settling, c)
				if !c.answered() && c.kind != mismatch {
					stuck = append(stuck, c)
				}
				mu.Unlock()
			}
		})
	}
	group.Wait()
	if len(stuck) > 0 {
		l.t.Errorf("%d keys are not to be had with nothing left that breaks, as\n%s", len(stuck), describe(stuck[:1]))
	}
	return settling
}

// close closes the pool, to which everything must have been given back.
func (p *process) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	inUse := func() int {
		if p.db != nil {
			return p.db.Stats().InUse
		}
		return int(p.pool.Stat().AcquiredConns())
	}
	if !poll(ctx, 2*time.Millisecond, func() bool { return inUse() == 0 }) {
		p.load.t.Errorf("process %d: %d connections were not given back", p.id, inUse())
		return // Close would wait for them
	}
	if p.db != nil {
		_ = p.db.Close() // says so of connections that were cut
	} else {
		p.pool.Close()
	}
	p.cutter.Close()
}

// wantNoLocks checks that no hint outlived its transaction.
func (l *load) wantNoLocks(ctx context.Context, p *process) {
	var locks int
	if err := p.pool.QueryRow(ctx, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`).Scan(&locks); err != nil || locks != 0 {
		l.t.Errorf("%d advisory locks are held by nobody's call (%v)", locks, err)
	}
}

// auditHistory compares what callers were told with what the database holds.
func (l *load) auditHistory(ctx context.Context, history []*call) {
	l.t.Helper()
	conn := l.connect(ctx)
	defer func() { _ = conn.Close(ctx) }()
	if err := l.audit(ctx, conn); err != nil {
		l.t.Fatal(err)
	}
	effects := make(map[string]idempotency.Key) // by call
	for _, of := range l.written(ctx, conn, "effects") {
		effects[eidOf(of.Effect)] = idempotency.Key{Scope: of.Scope, ID: of.ID}
	}
	recorded := make(map[idempotency.Key]string)
	for _, of := range l.written(ctx, conn, done) {
		recorded[idempotency.Key{Scope: of.Scope, ID: of.ID}] = eidOf(of.Effect)
	}
	wrong := 0
	complain := func(c *call, what string) {
		if wrong++; wrong <= 5 {
			l.t.Errorf("%s: %v", what, c)
		}
	}
	for _, c := range history {
		of, has := effects[c.eid]
		by, byHas := effects[c.by]
		switch {
		case has && of != c.key:
			complain(c, "the effect is another key's")
		case has && c.kind != executed && c.kind != unknown:
			complain(c, "a call that did not execute has an effect")
		case !c.answered():
		case byHas == c.final || byHas && by != c.key:
			complain(c, "what was acknowledged has no effect, or a final error has one")
		case c.key.Scope == lasting && recorded[c.key] != c.by:
			complain(c, "what was acknowledged is not recorded")
		}
	}
	if wrong > 0 {
		l.t.Errorf("%d calls were told something else than what the database holds", wrong)
	}
}

// written is an effect, or the answer that tells of one.
type written struct{ Scope, ID, Effect string }

func (l *load) written(ctx context.Context, conn *pgx.Conn, from string) []written {
	l.t.Helper()
	var all []written
	rows, err := conn.Query(ctx, `SELECT scope, id, effect FROM `+from)
	if err == nil {
		all, err = pgx.CollectRows(rows, pgx.RowToStructByPos[written])
	}
	if err != nil {
		l.t.Fatal(err)
	}
	return all
}

// committed counts the commits whose reply was lost, and those of them that the
// database has kept a trace of.
func (l *load) committed(ctx context.Context) (counts [2]int) {
	conn := l.connect(ctx)
	defer func() { _ = conn.Close(ctx) }()
	counts[0] = len(l.ambiguous)
	if err := conn.QueryRow(ctx, `SELECT count(*) FROM unnest($1::text[]) AS lost (effect)
		WHERE effect IN (SELECT effect FROM effects) OR effect IN (SELECT effect FROM `+done+`)`, l.ambiguous).Scan(&counts[1]); err != nil {
		l.t.Fatal(err)
	}
	return counts
}

// report prints what was injected and what callers were told meanwhile. A cell
// that stays empty has proved nothing.
func (i *injector) report(t *testing.T, history []*call, ambiguous [2]int) {
	t.Helper()
	injected := make(map[fault]int)
	for _, e := range i.episodes {
		injected[e.fault]++
	}
	cells := make(map[kind]map[fault]int)
	for _, k := range tellable {
		cells[k] = make(map[fault]int)
	}
	// A call counts once for each kind of fault.
	for _, c := range history {
		for f := range c.met {
			cells[c.kind][f]++
		}
		if len(c.met) == 0 {
			cells[c.kind][noFault]++
		}
	}
	var rows [][]any
	row := func(name string, cell func(f fault) any) {
		cells := []any{name}
		for _, f := range faults {
			cells = append(cells, cell(f))
		}
		rows = append(rows, cells)
	}
	row("", func(f fault) any { return f })
	row("injected", func(f fault) any { return injected[f] })
	for _, k := range tellable {
		row(string(k), func(f fault) any { return cells[k][f] })
	}
	t.Logf("what callers were told, by the faults that they met\n%s", table(rows))
	i.reportStores(t, history)
	t.Logf("%d commits lost their reply: %d had committed, %d had not", ambiguous[0], ambiguous[1], ambiguous[0]-ambiguous[1])
	if i.load.target < enforcedFrom {
		t.Logf("%d calls are too few to ask that every cell be filled", i.load.target)
		return
	}
	for _, f := range faults {
		if (f == backendKill || f == serverKill) && i.load.server.own == nil {
			continue // not to be had on this server, as was logged
		}
		for _, k := range tellable {
			if cells[k][f] == 0 && (f != noFault || k != unknown) {
				t.Errorf("no call was told %q under the fault %q: this run has not proved that case", k, f)
			}
		}
	}
	if ambiguous[1] == 0 || ambiguous[1] == ambiguous[0] {
		t.Error("the commits whose reply was lost went one way only")
	}
}

// reportStores prints what callers were told by each store.
func (i *injector) reportStores(t *testing.T, history []*call) {
	t.Helper()
	stores := []string{"pgxstore", "sqlstore"}
	verbs := []string{verbDo, verbDoTx, verbBegin, verbBeginMany, verbGet}
	type cell struct {
		store, verb string
		kind        kind
	}
	cells := make(map[cell]int)
	for _, c := range history {
		store := stores[0]
		if c.process >= processesOnPgx && c.process < processes {
			store = stores[1]
		}
		cells[cell{store, c.verb, c.kind}]++
	}
	header := []any{"store", "verb"}
	for _, k := range tellable {
		header = append(header, k)
	}
	rows := [][]any{header}
	for _, store := range stores {
		for _, verb := range verbs {
			row := []any{store, verb}
			for _, k := range tellable {
				row = append(row, cells[cell{store, verb, k}])
			}
			rows = append(rows, row)
			if i.load.target >= enforcedFrom && verb != verbGet && (cells[cell{store, verb, executed}] == 0 || cells[cell{store, verb, replayed}] == 0) {
				t.Errorf("no call of %s by %s executed, or none replayed: this run has not proved it", verb, store)
			}
		}
	}
	t.Logf("what callers were told, by the store that told them\n%s", table(rows))
}

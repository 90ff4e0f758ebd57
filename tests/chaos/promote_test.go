//go:build unix

package chaos_test

import (
	"context"
	"errors"
	"flag"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/internal/pgtest"
)

var promotionsFlag = flag.Int("chaos.promotions", 0, "how often each drill of TestPromotions promotes a standby; 0 means 4, or 1 with -short")

// callsBetween is how many calls are made at least between two promotions, and
// lagging how many while the standby receives nothing.
const (
	callsBetween = 300
	lagging      = 100
)

// drill is a way in which a standby becomes the primary under a load.
type drill struct {
	name string
	// synchronous says that no acknowledged answer may be lost.
	synchronous bool
	// split says that both servers take writes for a while, so that what one of
	// them shows may be old.
	split bool
	// promote promotes the standby and takes the old primary down. The outage is
	// from its call to that of up.
	promote func(d *drilling, up func())
}

var drills = []*drill{
	{name: "synchronous, primary crashes", synchronous: true, promote: func(d *drilling, up func()) {
		d.pair.CrashPrimary(d.t)
		d.pair.Promote(d.t)
		up()
	}},
	{name: "synchronous, primary fenced late", synchronous: true, split: true, promote: func(d *drilling, up func()) {
		d.pair.Promote(d.t)
		d.everyWorkerIsTold()
		d.pair.Fence(d.t)
		up()
	}},
	{name: "asynchronous, standby lags", promote: func(d *drilling, up func()) {
		d.pair.DetachStandby(d.t)
		d.calls(lagging)
		d.pair.CrashPrimary(d.t)
		d.pair.Promote(d.t)
		up()
	}},
}

// drilling is a drill that runs.
type drilling struct {
	*load
	pair *pgtest.Pair
}

// calls waits until so many more calls have been made.
func (d *drilling) calls(number int64) {
	d.t.Helper()
	until := d.load.calls.Load() + number
	d.wait("the load goes on", func() bool { return d.load.calls.Load() >= until })
}

// everyWorkerIsTold waits until every worker has been told of a call that it
// began after this one.
func (d *drilling) everyWorkerIsTold() {
	d.t.Helper()
	until := make([]int64, len(d.workers))
	for i, w := range d.workers {
		until[i] = w.told.Load() + 2 // the first may have begun before
	}
	for i, w := range d.workers {
		d.wait("every worker is told", func() bool { return w.told.Load() >= until[i] })
	}
}

func (d *drilling) wait(what string, done func() bool) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), upTimeout)
	defer cancel()
	if !poll(ctx, time.Millisecond, done) {
		d.t.Fatalf("%s: not within %v", what, upTimeout)
	}
}

// outage is a time in which no server takes writes, or two do.
type outage struct{ start, end int64 }

// began reports whether the call began in it.
func (o outage) began(c *call) bool { return o.start <= c.start && c.start <= o.end }

// report is what came of a drill.
type report struct {
	promotions, calls, acknowledged, lost, double, apart, unknown, refused, bridged int

	slowest time.Duration
}

// A standby takes the primary's place while calls are made through a URL that
// names both. What callers were told is kept here, outside of the database.
func TestPromotions(t *testing.T) {
	t.Parallel()
	seed := newSeed(t)
	promotions := size(*promotionsFlag, 4, 1)
	reports := make([]*report, len(drills))
	t.Run("drills", func(t *testing.T) {
		t.Parallel()
		for i, d := range drills {
			t.Run(d.name, func(t *testing.T) {
				t.Parallel()
				reports[i] = d.run(t, seed, promotions)
			})
		}
	})
	t.Cleanup(func() { // once the drills are over
		if !slices.ContainsFunc(reports, func(r *report) bool { return r != nil }) {
			return
		}
		rows := [][]any{{"", "promotions", "calls", "acknowledged", "lost", "double", "apart", "unknown", "turned away", "bridged", "slowest"}}
		for i, r := range reports {
			if r != nil {
				rows = append(rows, []any{
					drills[i].name, r.promotions, r.calls, r.acknowledged, r.lost, r.double, r.apart, r.unknown, r.refused, r.bridged,
					r.slowest.Round(time.Millisecond),
				})
			}
		}
		t.Logf("what failovers left behind, %s\n%s", violations(t), table(rows))
	})
}

func (way *drill) run(t *testing.T, seed uint64, promotions int) *report {
	t.Helper()
	pair := pgtest.NewPair(t)
	d := &drilling{load: newLoad(t, &server{config: pair.Config(t)}, seed, 2), pair: pair}
	d.target = 1 << 40
	var working sync.WaitGroup
	for _, w := range d.workers {
		working.Go(func() { w.work(t.Context()) })
	}
	stop := func() {
		d.over.Store(true)
		working.Wait()
	}
	t.Cleanup(stop) // where a promotion fails

	var outages []outage
	for n := range promotions {
		if n > 0 {
			pair.Follow(t)
		}
		if way.synchronous {
			pair.Synchronous(t)
		} else {
			pair.Attached(t)
		}
		d.calls(callsBetween)
		o := outage{start: int64(time.Since(d.began))}
		way.promote(d, func() { o.end = int64(time.Since(d.began)) })
		outages = append(outages, o)
		d.calls(callsBetween)
		pair.Do(t, pair.Primary, d.audit)
	}
	stop()

	history := d.finish()
	r := &report{promotions: len(outages), calls: len(history)}
	r.count(history, outages)
	pair.Do(t, pair.Primary, func(ctx context.Context, conn *pgx.Conn) error { return r.look(ctx, conn, d.load, history) })
	if way.synchronous {
		d.auditHistory(t.Context(), history)
		if way.split {
			history = withoutOldNews(history)
		}
		d.wantLinearizable(history)
	} else if r.lost == 0 {
		t.Error("no acknowledged answer was lost: this run has not proved that answer and effect are lost together")
	}
	if r.double > 0 || r.apart > 0 || way.synchronous && r.lost > 0 {
		t.Errorf("%d acknowledged answers were lost, %d effects are double, %d are apart from their answer", r.lost, r.double, r.apart)
	}
	if r.refused > 0 {
		t.Errorf("%d calls of Do were turned away for want of a server, though one came soon", r.refused)
	}
	if r.bridged < len(outages) {
		t.Errorf("%d calls that began in an outage got their answer, want at least %d", r.bridged, len(outages))
	}
	if way.split && len(d.ambiguous) == 0 {
		t.Error("no commit waited in vain on the old primary: this run has not proved that such a one is not acknowledged")
	}
	return r
}

// count counts what callers were told.
func (r *report) count(history []*call, outages []outage) {
	for _, c := range history {
		var down *pgconn.ConnectError
		switch {
		case c.answered():
			r.acknowledged++
			r.slowest = max(r.slowest, time.Duration(c.end-c.start))
		case c.kind == unknown:
			r.unknown++
		case c.verb == verbDo && !c.hurried && errors.As(c.err, &down):
			r.refused++
		}
		for _, o := range outages {
			if o.began(c) && c.answered() && c.verb == verbDo {
				r.bridged++
			}
		}
	}
}

// look compares what was acknowledged with what the database holds.
func (r *report) look(ctx context.Context, conn *pgx.Conn, l *load, history []*call) error {
	effects, recorded := make(map[string]bool), make(map[idempotency.Key]string)
	for _, of := range l.written(ctx, conn, "effects") {
		effects[eidOf(of.Effect)] = true
	}
	for _, of := range l.written(ctx, conn, done) {
		recorded[idempotency.Key{Scope: of.Scope, ID: of.ID}] = eidOf(of.Effect)
	}
	for _, c := range history {
		if c.answered() && (!c.final && !effects[c.by] || c.key.Scope == lasting && recorded[c.key] != c.by) {
			r.lost++
		}
	}
	for what, query := range atomicity {
		var found int
		if err := conn.QueryRow(ctx, `SELECT count(*) FROM (`+query+`) q`).Scan(&found); err != nil {
			return err
		}
		switch what {
		case "two effects of one key", "one effect twice":
			r.double += found
		default:
			r.apart += found
		}
	}
	return nil
}

// withoutOldNews leaves out what a primary that has been replaced may say of a
// key although it is no longer so.
func withoutOldNews(history []*call) (kept []*call) {
	for _, c := range history {
		if c.kind != notFound && c.kind != inProgress {
			kept = append(kept, c)
		}
	}
	return kept
}

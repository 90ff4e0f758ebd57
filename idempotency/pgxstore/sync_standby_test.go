//go:build unix

package pgxstore_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
	"github.com/samecommit/samecommit/internal/pgcut"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
	"github.com/samecommit/samecommit/txhelper"
)

const (
	// hasty gives up on a commit that waits for a standby.
	hasty = 200 * time.Millisecond
	// doubtful gives up on finding out what became of a commit, after looks that
	// would have found it.
	doubtful = 2 * time.Second
	// patient gives up on neither as long as a test lasts.
	patient = 2 * time.Minute
)

// syncPair is a primary whose commits wait for its standby.
type syncPair struct {
	*pgtest.Pair
	// admin looks at the primary over connections of its own.
	admin *pgxpool.Pool
}

func newSyncPair(t *testing.T) *syncPair {
	t.Helper()
	pair := pgtest.NewPair(t)
	p := &syncPair{Pair: pair, admin: poolOn(t, pair.Primary)}
	bench.New(t, p.admin, nil, nil) // the table for effects
	pair.Synchronous(t)
	return p
}

// config returns the configuration of a pool whose backends are the test's.
func (p *syncPair) config(t *testing.T) *pgxpool.Config {
	t.Helper()
	config := p.Config(t)
	config.MaxConns = 20
	config.ConnConfig.RuntimeParams["application_name"] = t.Name()
	return config
}

// waiting returns the process ids of the test's backends that wait for the
// standby.
func (p *syncPair) waiting(t *testing.T) []uint32 {
	t.Helper()
	rows, err := p.admin.Query(t.Context(), `SELECT pid FROM pg_stat_activity WHERE application_name = $1 AND wait_event = 'SyncRep'`, t.Name())
	if err != nil {
		t.Fatal(err)
	}
	pids, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	if err != nil {
		t.Fatal(err)
	}
	return pids
}

// visible returns how many of the keys have a row that can be seen on the
// primary.
func (p *syncPair) visible(t *testing.T, keys ...string) (rows int) {
	t.Helper()
	if err := p.admin.QueryRow(t.Context(), `SELECT count(*) FROM idempotency_keys WHERE id = ANY ($1)`, keys).Scan(&rows); err != nil {
		t.Fatal(err)
	}
	return rows
}

// signal calls pg_terminate_backend or pg_cancel_backend.
func (p *syncPair) signal(t *testing.T, function string, pid uint32) {
	t.Helper()
	var sent bool
	if err := p.admin.QueryRow(t.Context(), `SELECT `+function+`($1)`, int(pid)).Scan(&sent); err != nil || !sent {
		t.Fatalf("%s: %t, %v", function, sent, err)
	}
}

// syncCall is a call of Do that somebody waits for.
type syncCall struct {
	name string
	// backend is the process id of its transaction's.
	backend atomic.Uint32
	runs    atomic.Int32
	done    chan struct{}
	result  idempotency.Result[string]
	err     error
}

func startCall(t *testing.T, b *bench.Bench, name string) *syncCall {
	t.Helper()
	c := &syncCall{name: name, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.result, c.err = idempotency.Do(t.Context(), b.Client, bench.Params(name), func(ctx context.Context, tx pgx.Tx) (string, error) {
			c.runs.Add(1)
			c.backend.Store(tx.Conn().PgConn().PID())
			return name, bench.Effect(ctx, tx, name)
		})
	}()
	return c
}

func (c *syncCall) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

func (c *syncCall) wantUnknown(t *testing.T) {
	t.Helper()
	<-c.done
	if !errors.Is(c.err, idempotency.ErrOutcomeUnknown) {
		t.Errorf("%q: %+v, %v; want ErrOutcomeUnknown: the standby does not have the answer", c.name, c.result, c.err)
	}
}

// wantOnce calls again, now that the standby is back.
func wantOnce(t *testing.T, b *bench.Bench, name string) {
	t.Helper()
	result, err := idempotency.Do(t.Context(), b.Client, bench.Params(name), mustNotRun(t, name))
	if err != nil || result.Value != name || !result.Replayed || b.Effects(t, name) != 1 {
		t.Errorf("%q: %+v, %v, %d effects; want a replay of the one run", name, result, err, b.Effects(t, name))
	}
}

// flightTracer counts the flights that have ended.
type flightTracer struct{ ended atomic.Int32 }

func (*flightTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}
func (*flightTracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (*flightTracer) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return ctx
}
func (*flightTracer) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

func (f *flightTracer) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {
	f.ended.Add(1)
}

// What only the primary has is lost with it, so it is not acknowledged, whatever
// ended the wait for the standby.
func TestSyncStandby(t *testing.T) {
	t.Parallel()
	p := newSyncPair(t)
	//nolint:paralleltest // there is one standby
	for name, lose := range map[string]struct {
		commitTimeout time.Duration
		cut           bool
		terminate     bool
	}{
		"the time for a commit is over": {commitTimeout: hasty},
		// The server commits at once, and breaks the connection.
		"the waiting backend is terminated": {commitTimeout: patient, terminate: true},
		"the connection breaks":             {commitTimeout: patient, cut: true},
	} {
		t.Run(name, func(t *testing.T) {
			config := p.config(t)
			flights := &flightTracer{}
			config.ConnConfig.Tracer = flights
			cutter := &pgcut.Cutter{}
			if err := cutter.Install(&config.ConnConfig.Config); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(cutter.Close)
			b := bench.Open(t, bench.PoolWith(t, config), &pgxstore.Config{CommitTimeout: lose.commitTimeout, ResolveTimeout: patient}, nil)
			start := p.StopStandby(t)
			if lose.cut {
				cutter.Arm(&pgcut.Point{From: pgcut.Frontend, Commit: true, After: true, Mode: pgcut.Reset})
			}
			call := startCall(t, b, name)
			bench.WaitFor(t, func() bool { return lose.cut && cutter.Cut() != nil || len(p.waiting(t)) > 0 })
			if lose.terminate {
				p.signal(t, "pg_terminate_backend", call.backend.Load())
			}
			// It has looked for the commit twice and not seen it, or it has seen
			// it and waits with another.
			before := flights.ended.Load()
			bench.WaitFor(t, func() bool {
				return call.ended() || flights.ended.Load() >= before+3 ||
					slices.ContainsFunc(p.waiting(t), func(pid uint32) bool { return pid != call.backend.Load() })
			})
			if call.ended() {
				t.Fatalf("%+v, %v, with the standby down", call.result, call.err)
			}
			start()
			<-call.done
			runs := int32(1)
			if lose.cut {
				runs = 2 // what a reset overtakes is not read: then it left nothing
			}
			if call.err != nil || call.result.Value != name || call.result.Replayed || call.runs.Load() > runs || b.Effects(t, name) != 1 {
				t.Errorf("%+v, %v, %d runs, %d effects; want the answer of one run", call.result, call.err, call.runs.Load(), b.Effects(t, name))
			}
			wantOnce(t, b, name)
		})
	}

	// The row can be seen on the primary. Whoever replays it, without
	// ConfirmReplays, says what a failover may undo.
	t.Run("a replay", func(t *testing.T) { //nolint:paralleltest // there is one standby
		b := bench.Open(t, bench.PoolWith(t, p.config(t)), &pgxstore.Config{CommitTimeout: patient, ResolveTimeout: doubtful}, nil)
		resume := p.SilenceStandby(t)
		call := startCall(t, b, "a replay")
		bench.WaitFor(t, func() bool { return len(p.waiting(t)) > 0 })
		p.signal(t, "pg_terminate_backend", call.backend.Load())
		call.wantUnknown(t)
		wantOnce(t, b, "a replay")
		// A transaction that has written nothing waits for nobody.
		confirmed := bench.Open(t, b.Pool, &pgxstore.Config{ConfirmReplays: time.Hour}, nil)
		inTx, err := txhelper.RunValue(t.Context(), b.Pool, nil, func(ctx context.Context, tx pgx.Tx) (result idempotency.Result[string], err error) {
			given, err := idempotency.DoTx(ctx, confirmed.Client, tx, bench.Params("a replay"), mustNotRun(t, "a replay"))
			if err != nil {
				return result, err
			}
			return given.Answer()
		})
		if err != nil || !inTx.Replayed {
			t.Errorf("DoTx: %+v, %v; want a replay", inTx, err)
		}
		confirming := bench.Open(t, b.Pool, &pgxstore.Config{ConfirmReplays: time.Hour, ResolveTimeout: hasty}, nil)
		startCall(t, confirming, "a replay").wantUnknown(t)
		patiently := bench.Open(t, b.Pool, &pgxstore.Config{ConfirmReplays: time.Hour, ResolveTimeout: patient}, nil)
		again := startCall(t, patiently, "a replay")
		bench.WaitFor(t, func() bool { return again.ended() || len(p.waiting(t)) > 0 })
		if again.ended() {
			t.Errorf("%+v, %v, with the standby silent", again.result, again.err)
		}
		resume()
		<-again.done
		if again.err != nil || again.result.Value != "a replay" || !again.result.Replayed {
			t.Errorf("%+v, %v; want a replay", again.result, again.err)
		}
		wantOnce(t, confirming, "a replay")
	})

	// The server says that COMMIT succeeded, and warns. docs/guarantees.md names
	// it as a limit.
	t.Run("the commit is cancelled by hand", func(t *testing.T) { //nolint:paralleltest // there is one standby
		config := p.config(t)
		var warning atomic.Pointer[pgconn.Notice]
		config.ConnConfig.OnNotice = func(_ *pgconn.PgConn, notice *pgconn.Notice) { warning.Store(notice) }
		b := bench.Open(t, bench.PoolWith(t, config), &pgxstore.Config{CommitTimeout: patient, ResolveTimeout: patient}, nil)
		p.SilenceStandby(t)
		call := startCall(t, b, "cancelled")
		bench.WaitFor(t, func() bool { return len(p.waiting(t)) > 0 })
		p.signal(t, "pg_cancel_backend", call.backend.Load())
		<-call.done
		notice := warning.Load()
		if call.err != nil || call.result.Value != "cancelled" || notice == nil || notice.Severity != "WARNING" || notice.Code != "01000" {
			t.Errorf("%+v, %v, notice %+v; want success and a warning 01000", call.result, call.err, notice)
		}
	})

	//nolint:paralleltest // each ends a primary
	for name, test := range map[string]func(t *testing.T){
		"the standby is promoted":        p.testPromoted,
		"the primary is no longer there": p.testReplaced,
	} {
		t.Run(name, func(t *testing.T) {
			p.admin = poolOn(t, p.Primary)
			test(t)
			p.Follow(t)
			p.Synchronous(t)
		})
	}
}

// testPromoted ends the primary while commits wait for a standby that is down,
// and promotes that.
func (p *syncPair) testPromoted(t *testing.T) {
	t.Helper()
	const calls = 12
	pool, err := pgxpool.NewWithConfig(t.Context(), p.config(t))
	if err != nil {
		t.Fatal(err)
	}
	b := bench.Open(t, pool, &pgxstore.Config{CommitTimeout: hasty, ResolveTimeout: doubtful}, nil)
	acknowledged := map[string]bool{"kept": true}
	if _, err := idempotency.Do(t.Context(), b.Client, bench.Params("kept"), bench.Charge("kept")); err != nil {
		t.Fatal(err)
	}
	start := p.StopStandby(t)
	var doubted []*syncCall
	var keys []string
	for i := range calls {
		doubted = append(doubted, startCall(t, b, fmt.Sprint("doubted ", i)))
		keys = append(keys, doubted[i].name)
	}
	for _, call := range doubted {
		call.wantUnknown(t)
		acknowledged[call.name] = call.err == nil
	}
	// To cancel a commit is to end its wait.
	wantWaiting := func(when string) {
		t.Helper()
		if waiting, rows := len(p.waiting(t)), p.visible(t, keys...); waiting < calls || rows != 0 {
			t.Errorf("%s, %d commits wait for the standby and %d no longer do; want %d and 0", when, waiting, rows, calls)
		}
	}
	wantWaiting("after the calls")
	closed := make(chan struct{})
	go func() {
		pool.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(10 * time.Second):
		t.Error("pool.Close waits for commits that were given up")
	}
	wantWaiting("with the pool closed")

	p.CrashPrimary(t)
	config := p.config(t)
	var dials atomic.Int32
	dial := config.ConnConfig.DialFunc
	config.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		dials.Add(1)
		return conn, err
	}
	promoted := bench.Open(t, bench.PoolWith(t, config), &pgxstore.Config{ConnectTimeout: patient}, nil)
	bridging := startCall(t, promoted, "begun without a server")
	bench.WaitFor(t, func() bool { return bridging.ended() || dials.Load() > 4 }) // both are down, and it has tried again
	start()
	p.Promote(t)
	<-bridging.done
	if bridging.err != nil || bridging.result.Value != bridging.name || promoted.Effects(t, bridging.name) != 1 {
		t.Errorf("a call that began with no server there: %+v, %v; want it to wait for one", bridging.result, bridging.err)
	}
	lost := 0
	for _, name := range append(keys, "kept") {
		result, err := idempotency.Do(t.Context(), promoted.Client, bench.Params(name), bench.Charge(name))
		if err != nil || result.Value != name || promoted.Effects(t, name) != 1 {
			t.Errorf("%q on the promoted server: %+v, %v, %d effects; want one", name, result, err, promoted.Effects(t, name))
		}
		if acknowledged[name] && !result.Replayed {
			lost++
		}
		wantOnce(t, promoted, name)
	}
	if lost > 0 {
		t.Errorf("%d of %d acknowledged answers were lost with the primary", lost, len(acknowledged))
	}
}

// testReplaced promotes the standby while the primary still answers. What has
// been seen on that one is lost, although the next connection, to the other one,
// could confirm anything.
func (p *syncPair) testReplaced(t *testing.T) {
	t.Helper()
	p.DetachStandby(t)
	looking, replaying := newReplaced(t, p), newReplaced(t, p)
	seen := startCall(t, bench.Open(t, bench.PoolWith(t, looking.config), &pgxstore.Config{CommitTimeout: patient, ResolveTimeout: patient}, nil), "seen")
	left := startCall(t, bench.Open(t, bench.PoolWith(t, p.config(t)), &pgxstore.Config{CommitTimeout: patient, ResolveTimeout: hasty}, nil), "left")
	bench.WaitFor(t, func() bool { return len(p.waiting(t)) == 2 })
	p.signal(t, "pg_terminate_backend", left.backend.Load())
	left.wantUnknown(t)
	p.Promote(t)

	looking.armed.Store(true)
	p.signal(t, "pg_terminate_backend", seen.backend.Load())
	replaying.armed.Store(true)
	replayed := startCall(t, bench.Open(t, bench.PoolWith(t, replaying.config), &pgxstore.Config{ConfirmReplays: time.Hour, ResolveTimeout: patient}, nil), "left")
	promoted := bench.Open(t, poolOn(t, p.Primary), nil, nil)
	for call, r := range map[*syncCall]*replaced{seen: looking, replayed: replaying} {
		<-call.done
		if !r.gone.Load() {
			t.Errorf("%q: the old primary was not looked at: this test no longer meets what it is about", call.name)
		}
		effects := promoted.Effects(t, call.name)
		if call.err == nil && effects != 1 || call.err != nil && !errors.Is(call.err, idempotency.ErrOutcomeUnknown) {
			t.Errorf("%q: %+v, %v, %d effects on the promoted server; want one effect, or ErrOutcomeUnknown", call.name, call.result, call.err, effects)
		}
	}
	p.Fence(t)
}

// replaced is a primary that is gone, with another in its place, after the first
// flight since armed was set.
type replaced struct {
	flightTracer
	config      *pgxpool.Config
	armed, gone atomic.Bool
}

func newReplaced(t *testing.T, p *syncPair) *replaced {
	t.Helper()
	old, err := pgxpool.ParseConfig(p.Primary.URL)
	if err != nil {
		t.Fatal(err)
	}
	next, err := pgxpool.ParseConfig(p.Standby.URL)
	if err != nil {
		t.Fatal(err)
	}
	r := &replaced{config: old}
	old.ConnConfig.Tracer = r
	old.ConnConfig.RuntimeParams["application_name"] = t.Name()
	dial := old.ConnConfig.DialFunc
	old.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		if r.gone.Load() {
			address = net.JoinHostPort(next.ConnConfig.Host, fmt.Sprint(next.ConnConfig.Port))
		}
		return dial(ctx, network, address)
	}
	return r
}

func (r *replaced) TraceBatchEnd(_ context.Context, conn *pgx.Conn, data pgx.TraceBatchEndData) {
	if data.Err == nil && r.armed.CompareAndSwap(true, false) {
		r.gone.Store(true)
		_ = conn.PgConn().Conn().Close()
	}
}

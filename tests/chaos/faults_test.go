//go:build unix

package chaos_test

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/internal/pgcut"
)

const (
	noFault       fault = "none"
	commitRequest fault = "COMMIT cut"
	commitReply   fault = "COMMIT reply cut"
	anywhere      fault = "cut anywhere"
	silence       fault = "silence"
	terminated    fault = "terminated"
	backendKill   fault = "backend kill -9"
	serverKill    fault = "server kill -9"
)

var faults = []fault{noFault, commitRequest, commitReply, anywhere, silence, terminated, backendKill, serverKill}

// episode is a fault, whom it hit and when.
type episode struct {
	fault      fault
	process    int // -1 all
	start, end int64
}

// hit reports whether the fault may have had a part in the call.
func (e *episode) hit(c *call) bool {
	return (e.process < 0 || e.process == c.process) && e.start <= c.end && c.start <= e.end
}

// attribute notes for each call the faults that it met.
func (i *injector) attribute(history []*call) {
	for _, c := range history {
		for _, e := range i.episodes {
			if e.hit(c) && !c.met[e.fault] {
				if c.met == nil {
					c.met = make(map[fault]bool)
				}
				c.met[e.fault] = true
			}
		}
	}
}

// injector makes faults until it is stopped.
type injector struct {
	load *load

	mu       sync.Mutex
	episodes []*episode
}

func (i *injector) now() int64 { return int64(time.Since(i.load.began)) }

func (i *injector) happened(f fault, process int, start int64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.episodes = append(i.episodes, &episode{fault: f, process: process, start: start, end: i.now()})
}

// cut cuts connections of a process, one after another.
func (i *injector) cut(ctx context.Context, p *process, random *rand.Rand) {
	for ctx.Err() == nil {
		point := &pgcut.Point{From: pgcut.Backend, Commit: true, Mode: pgcut.Reset}
		if random.IntN(2) == 0 {
			point.Mode = pgcut.Close
		}
		kind := commitReply
		switch n := random.IntN(100); {
		case n < 15:
			kind, point.From = commitRequest, pgcut.Frontend
		case n < 35:
			kind = anywhere
		case n < 39:
			kind, point.Mode = silence, pgcut.Silence
		}
		if kind == anywhere || kind == silence && random.IntN(2) == 0 {
			point.Commit, point.Number, point.After = false, 1+random.IntN(60), random.IntN(2) == 0
			if random.IntN(2) == 0 {
				point.From = pgcut.Frontend
			}
		}
		p.cutter.Arm(point)
		var start int64 // not long before the cut
		if !poll(ctx, time.Millisecond, func() bool {
			before := i.now()
			if p.cutter.Cut() != nil {
				return true
			}
			start = before
			return false
		}) {
			p.cutter.Arm(nil)
			return
		}
		if kind == silence {
			// Shorter or longer than the time after which the server ends the
			// transaction.
			pause(ctx, time.Duration(random.Int64N(int64(3*loadIdleTimeout))))
			p.cutter.Close()
		}
		i.happened(kind, p.id, start)
		pause(ctx, time.Duration(random.IntN(100))*time.Millisecond)
	}
}

// kill kills what the load needs of the server, at random moments of it. Each round
// has one kill of the server, one of a backend, and some terminated.
func (i *injector) kill(ctx context.Context, random *rand.Rand, config *pgx.ConnConfig, rounds int64) {
	step := i.load.target / (rounds + 1)
	for round := range rounds {
		for n := range int64(8) {
			at := step*round + step*n/8 + random.Int64N(max(step/8, 1))
			if !poll(ctx, 2*time.Millisecond, func() bool { return i.load.calls.Load() >= at }) || ctx.Err() != nil {
				return
			}
			switch {
			case n == 3 && i.load.server.own != nil:
				i.killServer(ctx, config)
			case n == 7 && i.load.server.own != nil:
				i.killBackend(ctx, config)
			default:
				i.terminate(ctx, config)
			}
		}
	}
}

// victims are the backends of the load, those with a transaction first.
const victims = ` FROM pg_stat_activity WHERE application_name = 'chaos' ORDER BY state LIKE 'idle in%' DESC, state = 'active' DESC, random()`

// victim returns a connection and the process id of a backend of the load's,
// once there is one.
func (i *injector) victim(ctx context.Context, config *pgx.ConnConfig) (conn *pgx.Conn, pid int) {
	poll(ctx, 2*time.Millisecond, func() (found bool) {
		var err error
		if conn, err = pgx.ConnectConfig(ctx, config); err != nil {
			return false
		}
		if err := conn.QueryRow(ctx, `SELECT pid`+victims+` LIMIT 1`).Scan(&pid); err != nil {
			_ = conn.Close(ctx)
			conn = nil
			return false
		}
		return true
	})
	return conn, pid
}

func (i *injector) terminate(ctx context.Context, config *pgx.ConnConfig) {
	conn, pid := i.victim(ctx, config)
	if conn == nil {
		return // the load is over
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	start, done := i.now(), false
	if err := conn.QueryRow(ctx, `SELECT pg_terminate_backend($1)`, pid).Scan(&done); err == nil && done {
		i.happened(terminated, -1, start)
	}
}

// killBackend kills a backend. The server then ends all others, and recovers.
func (i *injector) killBackend(ctx context.Context, config *pgx.ConnConfig) {
	conn, pid := i.victim(ctx, config)
	if conn == nil {
		return
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	start := i.now()
	if err := i.load.server.kill(pid); err != nil {
		return // it ended by itself just now; a round without is no harm
	}
	// This connection is ended too.
	poll(ctx, time.Millisecond, func() bool { return conn.Ping(ctx) != nil })
	i.up(ctx, config)
	i.happened(backendKill, -1, start)
}

// killServer kills the postmaster. Its backends notice, sooner or later.
func (i *injector) killServer(ctx context.Context, config *pgx.ConnConfig) {
	start := i.now()
	pid, err := i.load.server.own.Pid()
	if err == nil {
		err = i.load.server.kill(pid)
	}
	if err != nil {
		i.load.t.Errorf("kill the server: %v; its log ends:\n%s", err, i.load.server.own.Log())
		return
	}
	poll(ctx, time.Millisecond, func() bool {
		next, err := i.load.server.own.Pid()
		return err == nil && next != pid
	})
	i.up(ctx, config)
	i.happened(serverKill, -1, start)
}

// up waits until the server answers.
func (i *injector) up(ctx context.Context, config *pgx.ConnConfig) {
	upCtx, cancel := context.WithTimeout(ctx, upTimeout)
	defer cancel()
	if !poll(upCtx, 5*time.Millisecond, func() bool {
		conn, err := pgx.ConnectConfig(upCtx, config)
		if err != nil {
			return false
		}
		return conn.Close(upCtx) == nil
	}) && ctx.Err() == nil {
		i.load.t.Error("the server has not come back")
	}
}

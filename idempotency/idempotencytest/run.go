package idempotencytest

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/internal/pgcut"
)

const (
	// retryTimeout is how long a client calls again. The server may need a
	// moment to see that a connection is gone, and holds its locks until then.
	retryTimeout = 5 * time.Second
	retryPause   = 20 * time.Millisecond
	// tries is how often a point is looked for in runs that differ.
	tries = 3
)

// Run checks that op takes effect once whatever becomes of its connection.
//
// It makes pools like pool, with the same settings and hooks, but for MinConns,
// MinIdleConns and ShouldPing, which are off. Two runs without a cut must
// succeed; the statements of the second are counted. Then each statement is a
// point at which to cut, twice: before the server gets it, and after the server
// has done it and before its reply arrives. Each point is a subtest with a key of
// its own. It is named by the first words of the statement, as in "INSERT INTO
// charges, reply lost", or as sqlc names it, so that -run can repeat it alone:
//
//  1. The connection is reset at the point. If the call was acknowledged all the
//     same, there must be one effect of each kind that Effects counts now.
//  2. The call is made again until it is acknowledged, as a client would, on
//     healthy connections of the same instance. There must be one of each.
//  3. One more call, to another instance on pool itself, must be acknowledged
//     and add nothing.
//
// At the end the first call of all is made again, and must add nothing: a key
// that is kept for less time than the test takes is found out.
//
// The subtests run one after the other, up to the first whose second step takes
// longer than 5 seconds: a handler that holds keys by a lease needs a shorter one
// here. Run fails where it would prove nothing: where nothing was sent through
// the pool, where no commit was cut, and where a point was not met because not
// every call sends the statement. In which order they come does not matter.
//
// The database needs the tables of the handler and, for a handler on pgxstore,
// those of migrations.Up. What the calls write stays there: use one for tests.
//
// The connections must not be encrypted: where sslmode allows both, they are
// not; otherwise set sslmode=disable.
func Run(t *testing.T, pool *pgxpool.Pool, op Operation) {
	t.Helper()
	if op.New == nil || op.Effects == nil {
		t.Fatal("idempotencytest: Operation.New and Operation.Effects are required")
	}
	r := &runner{pool: pool, op: &op}
	key, _ := r.uncut(t) // the first fills what the program caches
	done := time.Now()
	_, planned := r.uncut(t)

	all, ran := points(planned), 0
	for _, p := range all {
		if r.stuck {
			t.Logf("idempotencytest: stopped before %s: each further point could take %s", p, retryTimeout)
			return
		}
		t.Run(p.String(), func(t *testing.T) {
			t.Helper()
			ran++
			r.cut(t, p)
		})
	}
	// Of a statement outside of a transaction nobody can tell that it commits,
	// but by the effect of a call that has failed.
	commits := slices.ContainsFunc(planned, func(s *statement) bool { return s.commit })
	if !commits && !r.committed && ran == len(all) && !t.Failed() {
		t.Errorf("idempotencytest: none of the %d statements of a call was seen to commit its effect: there was no COMMIT, and no lost reply left an effect behind. "+
			"Is the effect written through another pool than the one that New was given, or a refusal not recorded?", len(planned))
	}
	if !t.Failed() {
		r.later(t, key, done)
	}
}

type runner struct {
	pool *pgxpool.Pool
	op   *Operation
	// committed says that a call failed for want of a reply and had its effect.
	committed bool
	// stuck says that a call was not acknowledged again.
	stuck bool
}

// uncut checks a run in which nothing is cut, and returns its key and statements.
func (r *runner) uncut(t *testing.T) (key string, sent []*statement) {
	t.Helper()
	in, key := newInstance(t, r.pool, r.op), newKey()
	in.cutter.Arm(nil)
	err := in.call.try(t.Context(), key)
	sent = statements(in.cutter.Messages())
	switch {
	case err != nil:
		t.Fatalf("idempotencytest: nothing was cut, and the call failed: %v", err)
	case len(sent) == 0:
		t.Fatal("idempotencytest: the call has sent nothing through the pool that New was given: " +
			"nothing can be cut. Build the code under test on that pool, not on one that was captured.")
	}
	if n := r.effects(t, key); !n.all(r.want()) {
		t.Fatalf("idempotencytest: nothing was cut, the call was acknowledged, and Effects counts %s, want %d. "+
			"Call must return an error where the request failed, or Operation.Refused be set where a refusal is the answer, and Effects must count what was done for the key.", n, r.want())
	}
	if err := in.call.try(t.Context(), key); err != nil {
		t.Fatalf("idempotencytest: nothing was cut, and the same call again failed: %v. "+
			"A request that is done must be answered as it was the first time.", err)
	}
	if n := r.effects(t, key); !n.all(r.want()) {
		t.Fatalf("idempotencytest: nothing was cut, and Effects counts %s after the same call twice, want %d. "+
			"The key is not looked at, or is not kept until then.", n, r.want())
	}
	if r.another(t, key, "nothing was cut, and the call was made twice"); t.Failed() {
		t.FailNow()
	}
	return key, sent
}

// cut checks a run that is cut at p.
func (r *runner) cut(t *testing.T, p *point) {
	t.Helper()
	for range tries {
		if r.attempt(t, p) || t.Failed() {
			return
		}
	}
	t.Errorf("idempotencytest: in %d runs the point %q was not met: not every call sends this statement. "+
		"Make them alike: no work in the background, no random choice.", tries, p)
}

// attempt reports whether p was met.
func (r *runner) attempt(t *testing.T, p *point) bool {
	t.Helper()
	in, key := newInstance(t, r.pool, r.op), newKey()
	in.cutter.ArmWhen(pgcut.Reset, p.reached())
	first := in.call.try(t.Context(), key)
	cut := in.cutter.Cut()
	in.cutter.Arm(nil)
	if cut == nil {
		if first != nil {
			t.Errorf("idempotencytest: nothing was cut, and the call failed: %v", first)
		}
		return false
	}

	event := p.event()
	switch n := r.effects(t, key); {
	case n.most() > r.want():
		t.Errorf("idempotencytest: %s of a single call, want %d: %s (the call returned %v).\n"+
			"The code ran it again although it had taken effect: the effect is not in the transaction of the key, or a COMMIT without a reply was taken for failed. "+
			"Write both through one transaction, and look for the key before running again, also where pgconn.SafeToRetry says yes.", n, r.want(), event, first)
		return true
	case n.least() < r.want() && first == nil:
		t.Errorf("idempotencytest: the call was acknowledged with %s, want %d: %s.\n"+
			"An error was swallowed, or it was answered before the commit. Return every error, that of Commit too, and answer after it.", n, r.want(), event)
		return true
	case n.most() > 0 && first != nil && p.replyLost:
		r.committed = true
	}

	if err := in.call.retry(t.Context(), key); err != nil {
		r.stuck = true
		t.Errorf("idempotencytest: the same call again was not acknowledged for %s: %s (the first call returned %v, the last %v).\n"+
			"The key is stuck: it was committed as begun in another transaction than the effect; or a request that is done is answered with an error instead of its answer.", retryTimeout, event, first, err)
		return true
	}
	switch n := r.effects(t, key); {
	case n.most() > r.want():
		t.Errorf("idempotencytest: %s after the call was made again, want %d: %s (the first call returned %v).\n"+
			"The effect was committed and its key was not: they are not in one transaction. "+
			"Write both through the same transaction; inside idempotency.Do that is the tx that the function gets, not a pool.", n, r.want(), event, first)
		return true
	case n.least() < r.want():
		t.Errorf("idempotencytest: %s after the call was made again and acknowledged, want %d: %s (the first call returned %v).\n"+
			"The key was committed and an effect was not: they are not in one transaction, and the key came first.", n, r.want(), event, first)
		return true
	}
	r.another(t, key, event)
	return true
}

// another calls another instance, on healthy connections.
func (r *runner) another(t *testing.T, key, event string) {
	t.Helper()
	if err := r.op.build(t, r.pool).try(t.Context(), key); err != nil {
		t.Errorf("idempotencytest: another instance failed for a request that is done: %s (it returned %v).\n"+
			"A request that is done must be answered as it was the first time, by every instance.", event, err)
	}
	if n := r.effects(t, key); !n.all(r.want()) {
		t.Errorf("idempotencytest: %s after another instance was called, want %d: %s.\n"+
			"What was done is remembered in the memory of the first instance only. Commit the key with the effect.", n, r.want(), event)
	}
}

// later makes a call again that was done when the test began.
func (r *runner) later(t *testing.T, key string, done time.Time) {
	t.Helper()
	err := r.op.build(t, r.pool).try(t.Context(), key)
	ago := time.Since(done).Round(time.Millisecond)
	if err != nil {
		t.Errorf("idempotencytest: a call failed that was done %s ago, when the test began: %v. "+
			"A request that is done must be answered as it was the first time, for as long as clients may repeat it.", ago, err)
	}
	if n := r.effects(t, key); !n.all(r.want()) {
		t.Errorf("idempotencytest: %s after a call was made again that was done %s ago, when the test began, want %d.\n"+
			"The key was not kept: it has expired, or something deletes keys. Keep it for as long as clients may repeat a request.", n, ago, r.want())
	}
}

// want is how many effects of each kind there must be.
func (r *runner) want() int {
	if r.op.Refused {
		return 0
	}
	return 1
}

func (r *runner) effects(t *testing.T, key string) Counts {
	t.Helper()
	n, err := r.op.Effects(t.Context(), key)
	switch {
	case err != nil:
		t.Fatalf("idempotencytest: count the effects: %v", err)
	case len(n) == 0:
		t.Fatal("idempotencytest: Effects returned no count: it must count every kind of effect, also where there is none yet")
	}
	return n
}

// retry calls until it is acknowledged. Its error is the last that was not for
// want of time.
func (c Call) retry(ctx context.Context, key string) error {
	ctx, cancel := context.WithTimeout(ctx, retryTimeout)
	defer cancel()
	var last error
	for {
		err := c.try(ctx, key)
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return last
		case <-time.After(retryPause):
		}
	}
}

// newKey returns a random UUID, which any column for keys takes.
func newKey() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // which never fails
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}

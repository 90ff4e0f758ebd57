//go:build unix

package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
	"github.com/samecommit/samecommit/internal/pgcut"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
	"github.com/samecommit/samecommit/txhelper"
)

const (
	// idleTimeout ends, at the server, a transaction of a client that fell silent.
	idleTimeout = 500 * time.Millisecond
	// patience is how long a client that fell silent is waited for.
	patience = 100 * time.Millisecond
	// resolvePatience is the same for the look after a lost commit.
	resolvePatience = time.Second
	// commitPatience is the same for a commit. A shorter one runs out on a busy
	// machine, where nothing has been cut: some of the commits that the server
	// has answered must be heard of.
	commitPatience = 3 * time.Second
	// shortLease is how long a claim lasts that nobody heard of.
	shortLease = 500 * time.Millisecond
	// heldLease is the same where an undisturbed call must keep it, on a busy machine.
	heldLease = 3 * time.Second
	// margin is how long after its holder's end a key may still be held, on a busy
	// machine.
	margin = 10 * time.Second
	// attempts is how often serializable trials may be in each other's way: they
	// share two small tables, and the silent ones keep their locks for long.
	attempts = 50
	// trialTimeout ends a trial in which something hangs.
	trialTimeout = time.Minute
)

// lab is a database that trials share, each with a key of its own.
type lab struct {
	config *pgxpool.Config
	// pool, store and client have connections that nobody cuts.
	pool   *pgxpool.Pool
	store  *pgxstore.Store
	client *idempotency.Client[pgx.Tx]
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{config: pgtest.Config(t)}
	config := l.config.Copy()
	config.MaxConns = 12
	var err error
	if l.pool, err = pgxpool.NewWithConfig(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.pool.Close)
	if _, err := l.pool.Exec(t.Context(), `CREATE TABLE effects (key text NOT NULL, id text PRIMARY KEY); CREATE INDEX ON effects (key)`); err != nil {
		t.Fatal(err)
	}
	l.store = bench.NewStore(t, l.pool, nil)
	l.client = newClient(t, l.store)
	return l
}

func newClient[TTx any](t *testing.T, store idempotency.TxStore[TTx]) *idempotency.Client[TTx] {
	t.Helper()
	client, err := idempotency.NewClient(store, clientConfig)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// refusal is the final error of an operation. Its ID tells which run it was.
type refusal struct{ ID string }

func (r *refusal) Error() string { return "refused" }

var clientConfig = &idempotency.Config{FinalErrors: []idempotency.FinalKind{idempotency.FinalType[*refusal]("refusal")}}

// variant is a flow under one isolation level and exec mode.
type variant struct {
	flow  *flow
	level pgx.TxIsoLevel
	mode  pgx.QueryExecMode
}

func (v *variant) String() string {
	level := strings.ReplaceAll(string(v.level), " ", "-")
	return fmt.Sprintf("%s/%s/%s", v.flow.name, level, strings.ReplaceAll(v.mode.String(), " ", "-"))
}

// kind is what a flow's caller was told.
type kind string

const (
	executed   kind = "executed" // or whatever the flow is there for was done
	replayed   kind = "replayed"
	refused    kind = "refused" // with a final error
	inProgress kind = "in progress"
	mismatch   kind = "mismatch"
	failed     kind = "failed"
	unknown    kind = "unknown"
)

var kinds = []kind{executed, replayed, refused, inProgress, mismatch, failed, unknown}

// answer is what a flow's caller got. id is that of the effect it tells of.
type answer struct {
	kind kind
	id   string
	err  error
}

func (a answer) String() string { return fmt.Sprintf("%s %q (%v)", a.kind, a.id, a.err) }

// answerOf classifies what a call returned.
func answerOf(id string, isReplay bool, err error) answer {
	var final *refusal
	switch {
	case err == nil && isReplay:
		return answer{kind: replayed, id: id}
	case err == nil:
		return answer{kind: executed, id: id}
	case errors.Is(err, idempotency.ErrOutcomeUnknown):
		return answer{kind: unknown, err: err}
	case errors.Is(err, idempotency.ErrInProgress):
		return answer{kind: inProgress, err: err}
	case errors.Is(err, idempotency.ErrFingerprintMismatch):
		return answer{kind: mismatch, err: err}
	case errors.As(err, &final):
		return answer{kind: refused, id: final.ID, err: err}
	}
	return answer{kind: failed, err: err}
}

// trial is one run of a flow behind a cutter.
type trial struct {
	*lab
	variant *variant
	// behind is the pool with the cutter in its connections, cutStore and
	// cutClient work on it.
	cutter    *pgcut.Cutter
	behind    *pgxpool.Pool
	cutStore  *pgxstore.Store
	cutClient *idempotency.Client[pgx.Tx]
	config    *pgxstore.Config // of cutStore
	options   *txhelper.Options

	// name is that of its connections, key that of its key.
	name, key string
	// runs are the effects that the flow's function has made, and whether that
	// was before the cut.
	runs []effectRun
	// recorded is the effect that was there before the flow, if any.
	recorded string
	holder   pgx.Tx
	// claim is the key's; former is one that was given up, extended one that
	// the flow got.
	claim, former, extended *idempotency.Claim
	// charges are those that DoExternal made elsewhere, and whether each was told
	// that there may have been one before; booked is the number of the one that its
	// last transaction was about.
	charges []bool
	booked  int
}

type effectRun struct {
	id        string
	beforeCut bool
}

var lastTrial atomic.Int64

// newTrial opens the pool behind a new cutter. Where it will take a client to
// give up, the times after which it does are short.
func newTrial(ctx context.Context, v *variant, l *lab, point *pgcut.Point) (*trial, error) {
	tr := &trial{lab: l, variant: v, cutter: &pgcut.Cutter{}}
	config := l.config.Copy()
	config.MaxConns = 2
	config.ConnConfig.DefaultQueryExecMode = v.mode
	if v.flow.ownTx {
		// What the store sets for its own transactions.
		config.ConnConfig.RuntimeParams["idle_in_transaction_session_timeout"] = fmt.Sprint(idleTimeout.Milliseconds())
	}
	tr.name = fmt.Sprintf("cut %d", lastTrial.Add(1))
	config.ConnConfig.RuntimeParams["application_name"] = tr.name
	if err := tr.cutter.Install(&config.ConnConfig.Config); err != nil {
		return nil, err
	}
	tr.options = &txhelper.Options{TxOptions: pgx.TxOptions{IsoLevel: v.level}, MaxAttempts: attempts}
	tr.config = &pgxstore.Config{TxOptions: tr.options.TxOptions, MaxAttempts: attempts, IdleTimeout: idleTimeout}
	switch {
	case point == nil:
	case point.Mode == pgcut.Outage:
		tr.config.ConnectTimeout = patience
		tr.config.ResolveTimeout = patience
	case point.Mode == pgcut.Silence:
		tr.config.CommitTimeout = commitPatience
		tr.config.ResolveTimeout = resolvePatience
		tr.options.CommitTimeout = commitPatience
		tr.options.RollbackTimeout = resolvePatience
	}
	var err error
	if tr.behind, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return nil, err
	}
	if tr.cutStore, err = pgxstore.New(tr.behind, tr.config); err != nil {
		return nil, err
	}
	tr.cutClient, err = idempotency.NewClient(tr.cutStore, clientConfig)
	return tr, err
}

// close gives everything back, and reports a connection that did not come.
func (tr *trial) close(ctx context.Context) error {
	tr.cutter.Close() // nobody waits on a silent connection any more
	closed := make(chan struct{})
	go func() {
		tr.behind.Close()
		close(closed)
	}()
	select {
	case <-closed:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%d connections were not given back", tr.behind.Stat().AcquiredConns())
	}
}

func (tr *trial) params() idempotency.Params {
	return idempotency.Params{
		Key:         idempotency.Key{Scope: "chaos", ID: tr.key},
		Fingerprint: idempotency.FingerprintOf("request", tr.key),
	}
}

// operation writes an effect with an id of its own, which is the answer.
func (tr *trial) operation(ctx context.Context, tx pgx.Tx) (string, error) {
	id := tr.run()
	return id, tr.effect(ctx, tx, id)
}

// run returns the id of another run.
func (tr *trial) run() string {
	id := fmt.Sprintf("%s run %d", tr.key, len(tr.runs)+1)
	tr.runs = append(tr.runs, effectRun{id, tr.cutter.Cut() == nil})
	return id
}

const insertEffect = `INSERT INTO effects (key, id) VALUES ($1, $2)`

func (tr *trial) effect(ctx context.Context, tx pgx.Tx, id string) error {
	_, err := tx.Exec(ctx, insertEffect, tr.key, id)
	return err
}

// ranBeforeCut reports whether id is of a run that the cut hit.
func (tr *trial) ranBeforeCut(id string) bool {
	for _, run := range tr.runs {
		if run.id == id {
			return run.beforeCut
		}
	}
	return false
}

func (tr *trial) ran(id string) bool {
	for _, run := range tr.runs {
		if run.id == id {
			return true
		}
	}
	return false
}

// next is a call of Do by somebody with a good connection, some time later.
func (tr *trial) next(ctx context.Context, wait time.Duration) answer {
	params := tr.params()
	params.Wait = wait
	result, err := idempotency.Do(ctx, tr.client, params, func(ctx context.Context, tx pgx.Tx) (string, error) {
		id := tr.key + " next"
		return id, tr.effect(ctx, tx, id)
	})
	return answerOf(result.Value, result.Replayed, err)
}

// audit checks that the database holds what the flow's caller was told, that
// the next call gets that too, and that there is one effect or none. committed
// says that what was cut is what the database holds.
func (tr *trial) audit(ctx context.Context, got answer) (committed bool, err error) {
	next := tr.next(ctx, idleTimeout+margin)
	if err := tr.auditRecord(ctx, next); err != nil {
		return false, fmt.Errorf("told %v, then %v: %w", got, next, err)
	}
	known := next.kind == replayed || next.kind == refused
	switch got.kind {
	case executed, replayed, refused:
		if !known || next.id != got.id {
			err = errors.New("what was acknowledged is not there")
		}
		if (got.kind == replayed) != (tr.recorded != "") || got.kind != replayed && !tr.ran(got.id) {
			err = errors.New("the answer is of another call")
		}
	case inProgress, mismatch:
		if next.kind != replayed || next.id != tr.recorded {
			err = errors.New("what was there before is not there")
		}
	case failed:
		if known != (tr.recorded != "") {
			err = errors.New("a call that failed left something behind, or removed it")
		}
	case unknown:
	}
	if err != nil {
		return false, fmt.Errorf("told %v, then %v: %w", got, next, err)
	}
	return tr.ranBeforeCut(next.id), nil
}

// auditRecord checks that the key is completed with last, and that its effects
// are that very one, none where it is a refusal.
func (tr *trial) auditRecord(ctx context.Context, last answer) error {
	if last.kind != executed && last.kind != replayed && last.kind != refused {
		return errors.New("the key is stuck")
	}
	record, err := tr.store.Get(ctx, tr.params().Key)
	if err != nil {
		return err
	}
	if record.State != idempotency.Completed {
		return fmt.Errorf("the record is %v", record.State)
	}
	rows, err := tr.pool.Query(ctx, `SELECT id FROM effects WHERE key = $1`, tr.key)
	if err != nil {
		return err
	}
	effects, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	want := []string{last.id}
	if last.kind == refused {
		want = nil
	}
	if fmt.Sprint(effects) != fmt.Sprint(want) {
		return fmt.Errorf("effects %q, want %q", effects, want)
	}
	return nil
}

func (tr *trial) prepare(ctx context.Context) error {
	if tr.variant.flow.prepare == nil {
		return nil
	}
	if err := tr.variant.flow.prepare(ctx, tr); err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	return nil
}

// finish checks what the flow's caller was told.
func (tr *trial) finish(ctx context.Context, got answer) (committed bool, err error) {
	f := tr.variant.flow
	allowed := slices.Contains(f.answers, got.kind)
	if tr.cutter.Cut() != nil {
		allowed = allowed || got.kind == failed || got.kind == unknown
	}
	if !allowed {
		return false, fmt.Errorf("told %v, want %v", got, f.answers)
	}
	if f.audit == nil {
		return tr.audit(ctx, got)
	}
	committed, err = f.audit(ctx, tr, got)
	if err != nil {
		err = fmt.Errorf("told %v: %w", got, err)
	}
	return committed, err
}

// settle waits until the server has done what it heard of, where the audit goes
// by what it finds. held says that the key was not to be had until the silent
// connection broke: see pgcut.Cut.Unsynced.
func (tr *trial) settle(ctx context.Context, cut *pgcut.Cut) (held bool, err error) {
	stays := cut.Point.Mode == pgcut.Silence
	if stays && cut.Unsynced {
		var locks int
		if err := tr.pool.QueryRow(ctx, `SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
			WHERE locktype = 'advisory' AND application_name = $1`, tr.name).Scan(&locks); err != nil {
			return false, err
		}
		held, stays = locks > 0, false
		tr.cutter.Close() // as the operating system does in the end
	}
	if stays || tr.variant.flow.audit == nil {
		return held, nil
	}
	tr.cutter.Close()
	for {
		var left int
		if err := tr.pool.QueryRow(ctx, `SELECT count(*) FROM pg_stat_activity WHERE application_name = $1`, tr.name).Scan(&left); err != nil || left == 0 {
			return held, err
		}
	}
}

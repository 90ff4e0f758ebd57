//go:build unix

package chaos_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
	"github.com/samecommit/samecommit/internal/pgcut"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
	"github.com/samecommit/samecommit/txhelper"
)

// The calls of a history.
const (
	verbDo        = "Do"
	verbDoTx      = "DoTx"
	verbBegin     = "Begin"
	verbBeginMany = "BeginMany"
	verbGet       = "Get"
)

const (
	loadIdleTimeout    = 400 * time.Millisecond
	loadCommitTimeout  = 300 * time.Millisecond
	loadResolveTimeout = 2 * time.Second
	// callTimeout ends a call that hangs.
	callTimeout = 15 * time.Second
	// lasting is the scope of keys whose answers outlive the run, and brief
	// that of keys whose answers do not.
	lasting, brief = "lasting", "brief"
	// briefTTL is longer than a lost commit is looked for.
	briefTTL  = loadCommitTimeout + loadResolveTimeout + 200*time.Millisecond
	batchSize = 3
)

var (
	levels    = []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable}
	execModes = []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
		pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
	}
	errInjected = errors.New("chaos: the operation failed, as it was told to")
)

// load is many workers in several processes that share a database and keys.
type load struct {
	t         *testing.T
	seed      uint64
	server    *server
	began     time.Time
	processes []*process
	workers   []*worker
	calls     atomic.Int64 // for each key one
	// The workers stop when there are as many calls as target, or over is set.
	target int64
	over   atomic.Bool
	// offset is what to add to the database's clock to get this process's.
	offset time.Duration

	mu        sync.Mutex
	ambiguous []string // effects whose COMMIT's reply was lost
}

// process is what a process has to itself: a pool, and clients with their gates.
type process struct {
	load   *load
	id     int
	cutter *pgcut.Cutter
	// pool is that of pgx, or db that of database/sql.
	pool    *pgxpool.Pool
	db      *sql.DB
	callers []caller // by level
}

// caller makes calls of one isolation level.
type caller interface {
	do(ctx context.Context, c *call, wait time.Duration, runs *attempt, end ending, cancel func()) error
	get(ctx context.Context, c *call) error
	// inOwnTx makes the others, in a transaction of its own.
	inOwnTx(ctx context.Context, calls []*call, wait time.Duration, runs *attempt, end ending, cancel func()) error
	sweep(ctx context.Context) error
}

// callerOn is a caller with a store for transactions of this type.
type callerOn[TTx any] struct {
	*load
	client *idempotency.Client[TTx]
	insert func(ctx context.Context, tx TTx, key idempotency.Key, effect string) error
	// begin calls fn in a transaction, and commits it.
	begin func(ctx context.Context, fn func(ctx context.Context, tx TTx) error) error
}

// newLoad makes the processes and their workers, and what they write to.
func newLoad(t *testing.T, s *server, seed uint64, processes int) *load {
	t.Helper()
	l := &load{t: t, seed: seed, server: s}
	setup := l.connect(t.Context())
	defer func() { _ = setup.Close(t.Context()) }()
	if _, err := setup.Exec(t.Context(), `CREATE TABLE effects (scope text NOT NULL, id text NOT NULL, effect text NOT NULL);
		CREATE INDEX ON effects (effect)`); err != nil {
		t.Fatal(err)
	}
	l.began = time.Now()
	// The error is at most half of the round trip, which a busy machine makes long
	// now and then.
	for trip := time.Duration(clockMargin) + 1; trip > time.Duration(clockMargin); {
		var theirs time.Time
		sent := time.Now()
		if err := setup.QueryRow(t.Context(), `SELECT clock_timestamp()`).Scan(&theirs); err != nil {
			t.Fatal(err)
		}
		trip = time.Since(sent)
		l.offset = sent.Add(trip / 2).Sub(theirs)
	}
	for id := range processes {
		p := l.newProcess(id, execModes[(uint64(id)+seed)%uint64(len(execModes))], id >= processesOnPgx)
		l.processes = append(l.processes, p)
		for range workersPerEach {
			n := len(l.workers)
			l.workers = append(l.workers, &worker{process: p, id: n, random: rand.New(rand.NewPCG(seed, uint64(n)))})
		}
	}
	return l
}

func (l *load) newProcess(id int, mode pgx.QueryExecMode, onSQL bool) *process {
	l.t.Helper()
	p := &process{load: l, id: id, cutter: &pgcut.Cutter{}}
	config := l.server.config.Copy()
	config.MaxConns = 8
	config.ConnConfig.DefaultQueryExecMode = mode
	config.ConnConfig.Tracer = commitTracer{l}
	config.ConnConfig.ConnectTimeout = 2 * time.Second
	// Callers' own transactions need what the store sets for its own.
	config.ConnConfig.RuntimeParams["idle_in_transaction_session_timeout"] = fmt.Sprint(loadIdleTimeout.Milliseconds())
	config.ConnConfig.RuntimeParams["application_name"] = "chaos"
	if err := p.cutter.Install(&config.ConnConfig.Config); err != nil {
		l.t.Fatal(err)
	}
	if onSQL {
		p.db = stdlib.OpenDB(*config.ConnConfig)
		p.db.SetMaxOpenConns(int(config.MaxConns))
		p.db.SetMaxIdleConns(int(config.MaxConns))
	} else {
		var err error
		if p.pool, err = pgxpool.NewWithConfig(l.t.Context(), config); err != nil {
			l.t.Fatal(err)
		}
	}
	for _, level := range levels {
		config := &pgxstore.Config{
			TxOptions: pgx.TxOptions{IsoLevel: level}, IdleTimeout: loadIdleTimeout,
			CommitTimeout: loadCommitTimeout, ResolveTimeout: loadResolveTimeout,
		}
		if onSQL {
			p.callers = append(p.callers, &callerOn[*sql.Tx]{
				l, newClient(l.t, newSQLStore(l.t, p.db, config)), insertOnSQL,
				func(ctx context.Context, fn func(ctx context.Context, tx *sql.Tx) error) error {
					return beginOnSQL(ctx, p.db, level, fn)
				},
			})
			continue
		}
		options := &txhelper.Options{TxOptions: config.TxOptions, CommitTimeout: loadCommitTimeout}
		p.callers = append(p.callers, &callerOn[pgx.Tx]{
			l, newClient(l.t, bench.NewStore(l.t, p.pool, config)), insert,
			func(ctx context.Context, fn func(ctx context.Context, tx pgx.Tx) error) error {
				return txhelper.Run(ctx, p.pool, options, fn)
			},
		})
	}
	return p
}

// commitTracer notes the effects whose COMMIT's reply was lost.
type commitTracer struct{ load *load }

type (
	attemptKey struct{} // *attempt of the call
	commitKey  struct{} // in the batch that commits, the effects of its attempt
)

func (commitTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}
func (commitTracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (commitTracer) TraceBatchStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchStartData) context.Context {
	if queries := data.Batch.QueuedQueries; len(queries) > 0 && queries[len(queries)-1].SQL == "commit" {
		var effects []string
		if a, ok := ctx.Value(attemptKey{}).(*attempt); ok {
			effects = slices.Clone(a.effects) // the next attempt may begin before this commit ends
		}
		return context.WithValue(ctx, commitKey{}, effects)
	}
	return ctx
}

func (commitTracer) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

func (c commitTracer) TraceBatchEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchEndData) {
	effects, _ := ctx.Value(commitKey{}).([]string)
	if data.Err == nil || effects == nil {
		return
	}
	var pgErr *pgconn.PgError
	if errors.As(data.Err, &pgErr) && pgErr.Severity == "ERROR" {
		return
	}
	c.load.mu.Lock()
	defer c.load.mu.Unlock()
	c.load.ambiguous = append(c.load.ambiguous, effects...)
}

// attempt is how often the operation of a call has run, and the effects of the
// last run.
type attempt struct {
	number  int
	effects []string
}

// effect is the row that an operation writes, and its answer: the call and
// which of its runs it was.
func (a *attempt) effect(eid string) string {
	id := fmt.Sprintf("%s#%d", eid, a.number)
	a.effects = append(a.effects, id)
	return id
}

// run begins another run.
func (a *attempt) run() {
	a.number++
	a.effects = nil
}

// eidOf is the call whose effect, or answer, that is.
func eidOf(effect string) string {
	eid, _, _ := strings.Cut(effect, "#")
	return eid
}

func insert(ctx context.Context, tx pgx.Tx, key idempotency.Key, effect string) error {
	_, err := tx.Exec(ctx, `INSERT INTO effects (scope, id, effect) VALUES ($1, $2, $3)`, key.Scope, key.ID, effect)
	return err
}

// ending is how the function of an operation ends.
type ending int

const (
	endsWell ending = iota
	endsFinally
	endsInError
	endsInPanic
	endsCancelled
)

// worker makes one call after another.
type worker struct {
	process *process
	id      int
	random  *rand.Rand
	made    int
	history []*call
	// told is how many calls have ended.
	told atomic.Int64
}

func (w *worker) chance(percent int) bool { return w.random.IntN(100) < percent }

// work makes calls until there are enough of all workers.
func (w *worker) work(ctx context.Context) {
	l := w.process.load
	for ctx.Err() == nil {
		now := l.calls.Load()
		if now >= l.target || l.over.Load() {
			return
		}
		calls := w.next(ctx, now)
		l.calls.Add(int64(len(calls)))
		w.history = append(w.history, calls...)
		w.told.Add(1)
		var down *pgconn.ConnectError
		if calls[0].kind == failed && errors.As(calls[0].err, &down) {
			pause(ctx, 250*time.Millisecond)
		}
	}
}

func pause(ctx context.Context, duration time.Duration) {
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// key chooses a key. Hot ones are those that everybody wants right now; with
// time others become hot, so that there is always one that is new.
func (w *worker) key(now int64) (key idempotency.Key, ttl time.Duration) {
	switch {
	case w.chance(35):
		return idempotency.Key{Scope: lasting, ID: fmt.Sprint("hot ", now/60)}, time.Hour
	case w.chance(20):
		// Each is used for a while, in which its answers expire.
		return idempotency.Key{Scope: brief, ID: fmt.Sprint(now/8000, " ", w.random.IntN(40))}, briefTTL
	}
	return idempotency.Key{Scope: lasting, ID: fmt.Sprint("cold ", now/1000, " ", w.random.IntN(300))}, time.Hour
}

// next makes one call.
func (w *worker) next(ctx context.Context, now int64) []*call {
	verb, number := verbDo, 1
	switch n := w.random.IntN(100); {
	case n < 15:
		verb = verbDoTx
	case n < 30:
		verb = verbBegin
	case n < 38:
		verb, number = verbBeginMany, batchSize
	case n < 55:
		verb = verbGet
	}
	var calls []*call
	for range number {
		w.made++
		c := &call{verb: verb, process: w.process.id, worker: w.id, eid: fmt.Sprintf("%d-%d", w.id, w.made), fingerprint: "a"}
		for c.key.ID == "" || slices.ContainsFunc(calls, func(other *call) bool { return other.key == c.key }) {
			c.key, c.ttl = w.key(now)
		}
		if w.chance(3) {
			c.fingerprint = "b"
		}
		calls = append(calls, c)
	}
	end := endsWell
	switch n := w.random.IntN(100); {
	case n < 4:
		end = endsFinally
	case n < 7:
		end = endsInError
	case n < 9:
		end = endsInPanic
	case n < 12:
		end = endsCancelled
	}
	wait := idempotency.NoWait
	if verb != verbBeginMany && w.chance(50) {
		wait = time.Duration(w.random.IntN(200)+1) * time.Millisecond
	}
	cancelAfter := callTimeout
	if w.chance(4) {
		cancelAfter = time.Duration(w.random.IntN(8000)) * time.Microsecond
		for _, c := range calls {
			c.hurried = true
		}
	}
	w.process.make(ctx, calls, w.random.IntN(len(levels)), wait, cancelAfter, end)
	return calls
}

// make makes a call, and writes down when and what came of it.
func (p *process) make(ctx context.Context, calls []*call, level int, wait, cancelAfter time.Duration, end ending) {
	runs := &attempt{}
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, attemptKey{}, runs), cancelAfter)
	defer cancel()
	start := time.Since(p.load.began)
	var err error
	defer func() {
		if recovered := recover(); recovered != nil {
			if recovered != any(errInjected) {
				panic(recovered)
			}
			err = errInjected
		}
		end := time.Since(p.load.began)
		for _, c := range calls {
			c.start, c.end = int64(start), int64(end)
			c.ended(err)
		}
	}()
	caller, c := p.callers[level], calls[0]
	switch c.verb {
	case verbDo:
		err = caller.do(ctx, c, wait, runs, end, cancel)
	case verbGet:
		err = caller.get(ctx, c)
	default:
		err = caller.inOwnTx(ctx, calls, wait, runs, end, cancel)
	}
}

func (l *callerOn[TTx]) inOwnTx(ctx context.Context, calls []*call, wait time.Duration, runs *attempt, end ending, cancel func()) error {
	return l.begin(ctx, func(ctx context.Context, tx TTx) error {
		for _, c := range calls {
			c.kind, c.by, c.err = "", "", nil
		}
		runs.run()
		switch c := calls[0]; c.verb {
		case verbDoTx:
			return l.doTx(ctx, tx, c, wait, runs, end, cancel)
		case verbBegin:
			return l.beginOne(ctx, tx, c, wait, runs, end, cancel)
		default:
			return l.beginMany(ctx, tx, calls, runs, end, cancel)
		}
	})
}

// ended notes how the call ended. What it executed in a transaction is its
// answer only if that has committed.
func (c *call) ended(err error) {
	if c.kind != "" && (c.kind != executed || err == nil) {
		return
	}
	c.kind, c.by, c.err = kindOf(err), "", err
	// Do has to say so itself, whatever it wraps.
	var ambiguous *txhelper.AmbiguousCommitError
	if c.verb != verbDo && errors.As(err, &ambiguous) {
		c.kind = unknown
	}
	if c.verb == verbBeginMany && c.kind == inProgress {
		c.kind = failed // some key of the batch was, nobody knows which
	}
}

func (c *call) params(wait time.Duration) idempotency.Params {
	return idempotency.Params{Key: c.key, Fingerprint: idempotency.FingerprintOf(c.fingerprint), TTL: c.ttl, Wait: wait}
}

// kindOf says what an error told, about a call that got no answer.
func kindOf(err error) kind {
	switch {
	case errors.Is(err, idempotency.ErrOutcomeUnknown):
		return unknown
	case errors.Is(err, idempotency.ErrInProgress):
		return inProgress
	case errors.Is(err, idempotency.ErrFingerprintMismatch):
		return mismatch
	case errors.Is(err, idempotency.ErrNotFound):
		return notFound
	}
	return failed
}

// operate is the function of an operation.
func (l *callerOn[TTx]) operate(ctx context.Context, tx TTx, key idempotency.Key, effect string, end ending, cancel func()) (string, error) {
	if err := l.insert(ctx, tx, key, effect); err != nil {
		return "", err
	}
	switch end {
	case endsFinally:
		return "", idempotency.Final(&refusal{ID: effect})
	case endsInError:
		return "", errInjected
	case endsInPanic:
		panic(errInjected)
	case endsCancelled:
		cancel()
	}
	return effect, nil
}

// answered notes an answer. Whose it is decides whether the call executed.
func (l *load) answered(c *call, effect string, final bool, record *idempotency.Record) {
	c.by, c.final, c.kind = eidOf(effect), final, replayed
	if c.by == c.eid {
		c.kind = executed
	}
	c.created = int64(record.CreatedAt.Add(l.offset).Sub(l.began))
	c.expires = int64(record.ExpiresAt.Add(l.offset).Sub(l.began))
}

// answeredBy notes what was recorded.
func (l *load) answeredBy(c *call, record *idempotency.Record) error {
	var effect string
	final := record.Response.Type == finalType
	target := any(&effect)
	if final {
		target = &refusal{}
	}
	if err := json.Unmarshal(record.Response.Body, target); err != nil {
		return err
	}
	if final {
		effect = target.(*refusal).ID
	}
	l.answered(c, effect, final, record)
	return nil
}

const finalType = idempotency.TypeErrorPrefix + "refusal"

func (l *callerOn[TTx]) do(ctx context.Context, c *call, wait time.Duration, runs *attempt, end ending, cancel func()) error {
	result, err := idempotency.Do(ctx, l.client, c.params(wait), func(ctx context.Context, tx TTx) (string, error) {
		runs.run()
		return l.operate(ctx, tx, c.key, runs.effect(c.eid), end, cancel)
	})
	return l.result(c, result, err)
}

func (l *callerOn[TTx]) sweep(ctx context.Context) error {
	_, err := l.client.DeleteExpired(ctx, 2)
	return err
}

func (l *load) result(c *call, result idempotency.Result[string], err error) error {
	var final *refusal
	if errors.As(err, &final) && result.Record != nil {
		l.answered(c, final.ID, true, result.Record)
		return nil
	}
	if err != nil {
		return err
	}
	l.answered(c, result.Value, false, result.Record)
	// The model does not allow another than that of the effect.
	if c.kind = executed; result.Replayed {
		c.kind = replayed
	}
	return nil
}

func (l *callerOn[TTx]) get(ctx context.Context, c *call) error {
	record, err := l.client.Get(ctx, c.key)
	if err != nil {
		return err
	}
	if record.State != idempotency.Completed {
		l.t.Errorf("Get found a record that is %v", record.State)
	}
	// Get compares no fingerprints.
	c.fingerprint = fingerprints[string(record.Fingerprint.Bytes())]
	return l.answeredBy(c, record)
}

var fingerprints = map[string]string{
	string(idempotency.FingerprintOf("a").Bytes()): "a",
	string(idempotency.FingerprintOf("b").Bytes()): "b",
}

// A call in a transaction of its caller's has an answer of its own only once
// that has committed: until then c.kind is left open.

func (l *callerOn[TTx]) doTx(ctx context.Context, tx TTx, c *call, wait time.Duration, runs *attempt, end ending, cancel func()) error {
	result, err := idempotency.DoTx(ctx, l.client, tx, c.params(wait), func(ctx context.Context, tx TTx) (string, error) {
		return l.operate(ctx, tx, c.key, runs.effect(c.eid), end, cancel)
	})
	if err != nil {
		return err
	}
	answer, err := result.Answer()
	return l.result(c, answer, err)
}

func (l *callerOn[TTx]) beginOne(ctx context.Context, tx TTx, c *call, wait time.Duration, runs *attempt, end ending, cancel func()) error {
	verbs := l.client.WithTx(tx)
	outcome, err := verbs.Begin(ctx, c.params(wait))
	if err != nil {
		return err
	}
	switch outcome.State {
	case idempotency.Completed:
		return l.answeredBy(c, outcome.Record)
	case idempotency.InProgress:
		c.kind = inProgress
		return nil
	}
	effect := runs.effect(c.eid)
	if _, err := l.operate(ctx, tx, c.key, effect, end, cancel); err != nil {
		return err
	}
	record, err := verbs.Complete(ctx, outcome.Claim, response(effect))
	if err != nil {
		return err
	}
	return l.answeredBy(c, record)
}

func (l *callerOn[TTx]) beginMany(ctx context.Context, tx TTx, calls []*call, runs *attempt, end ending, cancel func()) error {
	params := make([]idempotency.Params, 0, len(calls))
	for _, c := range calls {
		params = append(params, c.params(0))
	}
	batch, err := l.client.WithTx(tx).BeginMany(ctx, params)
	if err != nil {
		return err
	}
	for i, item := range batch.Items {
		c := calls[i]
		switch {
		case item.Err != nil:
			c.kind, c.err = kindOf(item.Err), item.Err
		case item.State == idempotency.InProgress:
			c.kind = inProgress
		case item.State == idempotency.Completed:
			if err := l.answeredBy(c, item.Record); err != nil {
				return err
			}
		default:
			effect := runs.effect(c.eid)
			if _, err := l.operate(ctx, tx, c.key, effect, end, cancel); err != nil {
				return err
			}
			item.Response = response(effect)
		}
	}
	if err := batch.Complete(ctx); err != nil {
		return err
	}
	for i, item := range batch.Items {
		if item.State == idempotency.New {
			if err := l.answeredBy(calls[i], item.Record); err != nil {
				return err
			}
		}
	}
	return nil
}

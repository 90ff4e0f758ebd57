package interleavings_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
)

var (
	errScripted      = errors.New("the function fails, as its script says")
	errScriptedFinal = errors.New("the function fails for good, as its script says")
)

// scriptedSession is one of the two sides of a schedule: a pool and a client of
// its own, as another process would have. It writes its name as effect and as
// answer.
type scriptedSession struct {
	name   string
	level  pgx.TxIsoLevel
	admin  *pgxpool.Pool
	pool   *pgxpool.Pool
	store  *pgxstore.Store
	client *idempotency.Client[pgx.Tx]

	// The rest is of one schedule.
	key   idempotency.Key
	steps []scriptStep
	// running yields the outcome of the step under way; nil between steps.
	running chan string
	// due counts steps that the schedule has reached while one was under way.
	due      int
	waited   bool
	outcomes []string
	// acknowledged is the answer that this session was told to be recorded.
	acknowledged string

	tx    pgx.Tx
	claim *idempotency.Claim
	batch *idempotency.Batch
	// Of Do and RunHeld: the function is entered, told how to end, the call returns, all is over.
	entered  chan pgx.Tx
	ending   chan error
	returned chan string
	done     chan struct{}
}

// scriptStep does one thing and returns what became of it: "" where that goes
// without saying, "-" where there was nothing to do.
type scriptStep func(ctx context.Context, s *scriptedSession) string

// scripts are what one session can do, step by step. A caller here goes on
// after every error, since what must not commit must not depend on its manners.
var scripts = map[string][]scriptStep{
	"transaction":          {open, begin, complete, commit},
	"other request":        {open, beginOther, complete, commit},
	"roll back":            {open, begin, complete, rollback},
	"killed":               {open, begin, complete, kill},
	"savepoint undone":     {open, beginAndUndo, begin, commit},
	"completion forgotten": {open, begin, write, commit},
	"DoTx":                 {open, doTx, commit},
	"batch":                {open, beginBatch(2), completeBatch, commit},
	"large batch":          {open, beginBatch(101), completeBatch, commit},
	"Do":                   {doBegin, doWrite, doEnd(nil)},
	"Do fails":             {doBegin, doWrite, doEnd(errScripted)},
	"Do fails for good":    {doBegin, doWrite, doEnd(idempotency.Final(errScriptedFinal))},
	"Do killed":            {doBegin, doWrite, doKill, doEnd(nil)},
	"lease":                {leaseBegin, leaseExtend, leaseComplete},
	"lease released":       {leaseBegin, leaseExtend, leaseRelease},
	"lease suspended":      {leaseBegin, leaseStep, leaseSuspend},
	"holder":               {open, completeHeld, commit},
	"holder steps":         {open, stepHeld, commit},
	"holder runs":          {heldBegin, doWrite, doEnd(nil)},
	"holder runs, killed":  {heldBegin, doWrite, doKill, doEnd(nil)},
	"sweep":                {sweep},
	"sweep in transaction": {open, sweep, commit},
	"look":                 {open, look, look, commit},
}

func (s *scriptedSession) params() idempotency.Params {
	return idempotency.Params{Key: s.key, Fingerprint: scriptedFingerprint, Wait: idempotency.NoWait}
}

func (s *scriptedSession) response() *idempotency.Response {
	return scriptedResponse(s.name)
}

func scriptedResponse(name string) *idempotency.Response {
	body, _ := json.Marshal(name) // a string has nothing that cannot be encoded
	return &idempotency.Response{Type: "json:string", Body: body}
}

// open begins a transaction and takes its snapshot.
func open(ctx context.Context, s *scriptedSession) string {
	tx, err := s.pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: s.level})
	if err == nil {
		s.tx = tx
		_, err = tx.Exec(ctx, `SELECT 1`)
	}
	return unlessFine(err)
}

func begin(ctx context.Context, s *scriptedSession) string { return s.begin(ctx, s.params()) }

func beginOther(ctx context.Context, s *scriptedSession) string {
	p := s.params()
	p.Fingerprint = idempotency.FingerprintOf("another request")
	return s.begin(ctx, p)
}

func (s *scriptedSession) begin(ctx context.Context, p idempotency.Params) string {
	return s.begun(s.client.WithTx(s.tx).Begin(ctx, p))
}

func (s *scriptedSession) begun(outcome *idempotency.Outcome, err error) string {
	if err != nil {
		return errorWord(err)
	}
	s.claim = outcome.Claim
	if s.claim != nil && s.claim.Resumed {
		return fmt.Sprintf("%s, attempt %d with %d steps", outcome.State, s.claim.Attempt, len(s.claim.Steps))
	}
	if outcome.State == idempotency.Completed {
		return s.replayed(outcome.Record)
	}
	return outcome.State.String()
}

func (s *scriptedSession) replayed(record *idempotency.Record) string {
	var by string
	if err := json.Unmarshal(record.Response.Body, &by); err != nil {
		return err.Error()
	}
	s.acknowledged = by
	return "replays " + by
}

func beginAndUndo(ctx context.Context, s *scriptedSession) string {
	outer := s.tx
	defer func() { s.tx, s.claim = outer, nil }()
	var err error
	if s.tx, err = outer.Begin(ctx); err != nil {
		return errorWord(err)
	}
	word := begin(ctx, s)
	acknowledged := s.acknowledged
	if s.claim != nil {
		word += ", " + complete(ctx, s)
	}
	s.acknowledged = acknowledged
	if err := s.tx.Rollback(ctx); err != nil {
		return word + ", undone: " + errorWord(err)
	}
	return word + ", undone"
}

func write(ctx context.Context, s *scriptedSession) string {
	if s.claim == nil {
		return "-"
	}
	return fine("writes", s.write(ctx, s.tx))
}

func (s *scriptedSession) write(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, `INSERT INTO effects (name, by) VALUES ($1, $2)`, s.key.ID, s.name)
	return err
}

// complete writes the effect and completes.
func complete(ctx context.Context, s *scriptedSession) string {
	if s.claim == nil {
		return "-"
	}
	if err := s.write(ctx, s.tx); err != nil {
		return errorWord(err)
	}
	_, err := s.client.WithTx(s.tx).Complete(ctx, s.claim, s.response())
	return fine("completes", err)
}

// completeHeld completes the lease that the schedule starts with.
func completeHeld(ctx context.Context, s *scriptedSession) string {
	s.claim = &idempotency.Claim{Key: s.key, ID: heldClaimID, Attempt: 1, TTL: time.Hour}
	return complete(ctx, s)
}

// stepHeld adds a step to the lease that the schedule starts with. It is no
// completion, so s has no claim to acknowledge.
func stepHeld(ctx context.Context, s *scriptedSession) string {
	held := &idempotency.Claim{Key: s.key, ID: heldClaimID, Attempt: 1, TTL: time.Hour, LockedUntil: time.Now()}
	return fine("steps", s.store.WithTx(s.tx).AddStep(ctx, held, s.step()))
}

func commit(ctx context.Context, s *scriptedSession) string {
	err := s.tx.Commit(ctx)
	if err == nil && s.claim != nil {
		s.acknowledged = s.name
	}
	return fine("commits", err)
}

func rollback(ctx context.Context, s *scriptedSession) string {
	return fine("rolls back", s.tx.Rollback(ctx))
}

func kill(ctx context.Context, s *scriptedSession) string {
	err := s.kill(ctx, s.tx)
	s.tx.Rollback(ctx) // gives the connection back; there is nobody to roll back
	return fine("killed", err)
}

// kill ends the backend of tx and waits until it is gone.
func (s *scriptedSession) kill(ctx context.Context, tx pgx.Tx) error {
	pid := tx.Conn().PgConn().PID()
	_, err := s.admin.Exec(ctx, `SELECT pg_terminate_backend($1)`, pid)
	for there := true; err == nil && there; {
		err = s.admin.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)`, pid).Scan(&there)
	}
	return err
}

func doTx(ctx context.Context, s *scriptedSession) string {
	result, err := idempotency.DoTx(ctx, s.client, s.tx, s.params(), func(ctx context.Context, tx pgx.Tx) (string, error) {
		return s.name, s.write(ctx, tx)
	})
	if err != nil {
		return errorWord(err)
	}
	answer, err := result.Answer()
	switch {
	case err != nil:
		return errorWord(err)
	case answer.Replayed:
		return s.replayed(answer.Record)
	}
	s.claim = &idempotency.Claim{} // so that commit acknowledges
	return "runs"
}

func beginBatch(size int) scriptStep {
	return func(ctx context.Context, s *scriptedSession) string {
		all := make([]idempotency.Params, size)
		for i := range all {
			all[i] = s.params()
			if i > 0 {
				all[i].Key.ID += fmt.Sprintf("/%s/%03d", s.name, i)
			}
		}
		batch, err := s.client.WithTx(s.tx).BeginMany(ctx, all)
		if err != nil {
			return errorWord(err)
		}
		s.batch = batch
		for i, item := range batch.Items {
			if item.State == idempotency.New {
				item.Response = s.response()
			} else if i > 0 {
				return fmt.Sprintf("item %d: %v, %v", i, item.State, item.Err)
			}
		}
		item := batch.Items[0]
		switch {
		case item.Err != nil:
			return errorWord(item.Err)
		case item.State == idempotency.Completed:
			return s.replayed(item.Record)
		}
		return item.State.String()
	}
}

func completeBatch(ctx context.Context, s *scriptedSession) string {
	if s.batch == nil {
		return "-"
	}
	if s.batch.Items[0].State == idempotency.New {
		s.claim = &idempotency.Claim{} // so that commit acknowledges
		if err := s.write(ctx, s.tx); err != nil {
			return errorWord(err)
		}
	}
	return fine("completes", s.batch.Complete(ctx))
}

// scriptedFunc is a function that writes the session's effect.
type scriptedFunc func(ctx context.Context, tx pgx.Tx) (string, error)

func (s *scriptedSession) do(ctx context.Context, fn scriptedFunc) (idempotency.Result[string], error) {
	return idempotency.Do(ctx, s.client, s.params(), fn)
}

// runHeld runs under the lease that the schedule starts with.
func (s *scriptedSession) runHeld(ctx context.Context, fn scriptedFunc) (result idempotency.Result[string], err error) {
	held := &idempotency.Claim{Key: s.key, ID: heldClaimID, Attempt: 1, TTL: time.Hour, LockedUntil: time.Now()}
	result.Record, err = s.store.RunHeld(ctx, held, func(ctx context.Context, tx pgx.Tx) (idempotency.Answer, error) {
		name, err := fn(ctx, tx)
		return idempotency.Answer{Response: scriptedResponse(name)}, err
	})
	return result, err
}

func doBegin(ctx context.Context, s *scriptedSession) string { return s.enter(ctx, s.do) }

func heldBegin(ctx context.Context, s *scriptedSession) string { return s.enter(ctx, s.runHeld) }

// enter makes a call and returns once its function is entered, or it returns.
func (s *scriptedSession) enter(ctx context.Context, call func(ctx context.Context, fn scriptedFunc) (idempotency.Result[string], error)) string {
	s.entered, s.ending, s.returned, s.done = make(chan pgx.Tx, 1), make(chan error, 1), make(chan string, 1), make(chan struct{})
	go func() {
		defer close(s.done)
		runs := 0
		var ending error
		result, err := call(ctx, func(ctx context.Context, tx pgx.Tx) (string, error) {
			if runs++; runs > 1 {
				return s.name, errors.Join(s.write(ctx, tx), ending)
			}
			s.entered <- tx
			ending = <-s.ending
			return s.name, ending
		})
		again := ""
		if runs > 1 {
			again = fmt.Sprintf(" in run %d", runs)
		}
		var final *idempotency.FinalError
		switch {
		case errors.As(err, &final):
			s.returned <- "final error" + again
		case errors.Is(err, errScripted):
			s.returned <- "fails" + again
		case err != nil:
			s.returned <- errorWord(err) + again
		case result.Replayed:
			s.returned <- s.replayed(result.Record) + again
		default:
			s.acknowledged = s.name
			s.returned <- "executed" + again
		}
	}()
	select {
	case s.tx = <-s.entered:
		return "runs"
	case word := <-s.returned:
		s.ending = nil
		return word
	}
}

func doWrite(ctx context.Context, s *scriptedSession) string {
	if s.ending == nil {
		return "-"
	}
	return fine("writes", s.write(ctx, s.tx))
}

func doKill(ctx context.Context, s *scriptedSession) string {
	if s.ending == nil {
		return "-"
	}
	return fine("killed", s.kill(ctx, s.tx))
}

func doEnd(ending error) scriptStep {
	return func(_ context.Context, s *scriptedSession) string {
		if s.ending == nil {
			return "-"
		}
		s.ending <- ending
		<-s.done
		return <-s.returned
	}
}

func leaseBegin(ctx context.Context, s *scriptedSession) string {
	return s.begun(s.store.Begin(ctx, &idempotency.BeginParams{
		Key: s.key, Fingerprint: scriptedFingerprint, TTL: time.Hour, Lease: time.Hour,
	}))
}

func leaseExtend(ctx context.Context, s *scriptedSession) string {
	if s.claim == nil {
		return "-"
	}
	_, err := s.store.Extend(ctx, s.claim, 2*time.Hour)
	return fine("extends", err)
}

func leaseStep(ctx context.Context, s *scriptedSession) string {
	if s.claim == nil {
		return "-"
	}
	return fine("steps", s.store.AddStep(ctx, s.claim, s.step()))
}

func (s *scriptedSession) step() *idempotency.StepRecord {
	return &idempotency.StepRecord{Name: "step of " + s.name, Arguments: idempotency.NoFingerprint, Response: s.response()}
}

func leaseSuspend(ctx context.Context, s *scriptedSession) string {
	if s.claim == nil {
		return "-"
	}
	return fine("suspends", s.store.Suspend(ctx, s.claim))
}

func leaseRelease(ctx context.Context, s *scriptedSession) string {
	if s.claim == nil {
		return "-"
	}
	return fine("releases", s.store.Release(ctx, s.claim))
}

// leaseComplete writes the effect and completes in one transaction.
func leaseComplete(ctx context.Context, s *scriptedSession) string {
	if s.claim == nil {
		return "-"
	}
	if word := open(ctx, s); word != "" {
		return word
	}
	return complete(ctx, s) + ", " + commit(ctx, s)
}

func sweep(ctx context.Context, s *scriptedSession) string {
	store := s.store
	if s.tx != nil {
		var err error
		if store, err = pgxstore.New(s.tx, nil); err != nil {
			return errorWord(err)
		}
	}
	deleted, err := store.DeleteExpired(ctx, 0)
	if err != nil {
		return errorWord(err)
	}
	return fmt.Sprintf("sweeps %d", deleted)
}

func look(ctx context.Context, s *scriptedSession) string {
	record, err := s.client.WithTx(s.tx).Get(ctx, s.key)
	switch {
	case err != nil:
		return errorWord(err)
	case record.State == idempotency.Completed:
		return s.replayed(record)
	}
	return record.State.String()
}

// fine returns word where err is nil, and otherwise what err is.
func fine(word string, err error) string {
	if err != nil {
		return errorWord(err)
	}
	return word
}

func unlessFine(err error) string { return fine("", err) }

// errorWord says in a word what a caller can tell about err.
func errorWord(err error) string {
	var pgErr *pgconn.PgError
	isServers := errors.As(err, &pgErr)
	for _, known := range []struct {
		word string
		err  error
	}{
		{"unknown", idempotency.ErrOutcomeUnknown},
		{"in progress", idempotency.ErrInProgress},
		{"mismatch", idempotency.ErrFingerprintMismatch},
		{"nested", idempotency.ErrNested},
		{"step changed", idempotency.ErrStepChanged},
		{"claim lost", idempotency.ErrClaimLost},
		{"aborted", idempotency.ErrTxAborted},
		{"not found", idempotency.ErrNotFound},
		{"commit undone", pgx.ErrTxCommitRollback},
	} {
		if errors.Is(err, known.err) {
			return known.word
		}
	}
	switch {
	case isServers && errors.Is(err, idempotency.ErrSerializationFailure):
		return "serialization failure " + pgErr.Code
	case isServers && pgErr.ConstraintName == "idempotency_keys_completed_before_commit":
		return "refused by the guard"
	case isServers && pgErr.Code == "57P01":
		return "connection lost"
	case isServers:
		return pgErr.Code
	}
	return err.Error()
}

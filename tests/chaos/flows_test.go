//go:build unix

package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/txhelper"
)

// flow is something that a caller does with a key.
type flow struct {
	name string
	// everyLevel asks for all isolation levels and not the default only.
	everyLevel bool
	// everyMode asks for all exec modes and not the two that differ most.
	everyMode bool
	// ownTx says that its transaction is the caller's.
	ownTx bool
	// statements says that each of its statements commits by itself.
	statements bool
	// cold has the flow open its connection.
	cold bool
	// alone allows no two trials at once, and has a database of its own.
	alone bool
	// commits says that some cuts must leave it open whether it has committed.
	commits bool
	// prepare makes what the flow finds, over good connections.
	prepare func(ctx context.Context, tr *trial) error
	run     func(ctx context.Context, tr *trial) answer
	// audit is trial.audit where it is nil.
	audit func(ctx context.Context, tr *trial, got answer) (committed bool, err error)
	// answers are those that are allowed beside failed and unknown.
	answers []kind
}

func do(ctx context.Context, tr *trial, params idempotency.Params, fn func(context.Context, pgx.Tx) (string, error)) answer {
	result, err := idempotency.Do(ctx, tr.cutClient, params, fn)
	return answerOf(result.Value, result.Replayed, err)
}

func doNew(ctx context.Context, tr *trial) answer {
	return do(ctx, tr, tr.params(), tr.operation)
}

// record lets the key be completed before the flow.
func record(ctx context.Context, tr *trial) error {
	tr.recorded = tr.key + " recorded"
	_, err := idempotency.Do(ctx, tr.client, tr.params(), func(ctx context.Context, tx pgx.Tx) (string, error) {
		return tr.recorded, tr.effect(ctx, tx, tr.recorded)
	})
	return err
}

// expire leaves an answer that has expired, without its effect: another epoch.
func expire(ctx context.Context, tr *trial) error {
	params := tr.params()
	params.TTL = time.Microsecond
	_, err := idempotency.Do(ctx, tr.client, params, func(context.Context, pgx.Tx) (string, error) { return "expired", nil })
	return err
}

// hold lets another transaction hold the key during the flow.
func hold(ctx context.Context, tr *trial) error {
	var err error
	if tr.holder, err = tr.pool.Begin(ctx); err != nil {
		return err
	}
	outcome, err := tr.client.WithTx(tr.holder).Begin(ctx, tr.params())
	if err == nil {
		tr.claim = outcome.Claim
	}
	return err
}

func auditHeld(ctx context.Context, tr *trial, got answer) (bool, error) {
	defer func() { _ = tr.holder.Rollback(ctx) }()
	tr.recorded = tr.key + " recorded"
	if err := tr.effect(ctx, tr.holder, tr.recorded); err != nil {
		return false, err
	}
	if _, err := tr.client.WithTx(tr.holder).Complete(ctx, tr.claim, response(tr.recorded)); err != nil {
		return false, err
	}
	if err := tr.holder.Commit(ctx); err != nil {
		return false, err
	}
	return tr.audit(ctx, got)
}

// ownAnswer is answerOf for a transaction of the caller's.
func ownAnswer(id string, err error) answer {
	var ambiguous *txhelper.AmbiguousCommitError
	if errors.As(err, &ambiguous) {
		return answer{kind: unknown, err: err}
	}
	return answerOf(id, false, err)
}

// inOwnTx is a caller's transaction around fn. The answer holds once it has
// committed.
func inOwnTx(ctx context.Context, tr *trial, fn func(ctx context.Context, tx pgx.Tx) (idempotency.TxResult[string], error)) answer {
	done, err := txhelper.RunValue(ctx, tr.behind, tr.options, fn)
	if err != nil {
		return ownAnswer("", err)
	}
	result, err := done.Answer()
	return answerOf(result.Value, result.Replayed, err)
}

func doTx(ctx context.Context, tr *trial) answer {
	return inOwnTx(ctx, tr, func(ctx context.Context, tx pgx.Tx) (idempotency.TxResult[string], error) {
		return idempotency.DoTx(ctx, tr.cutClient, tx, tr.params(), tr.operation)
	})
}

func beginAndComplete(ctx context.Context, tr *trial) answer {
	id, err := txhelper.RunValue(ctx, tr.behind, tr.options, func(ctx context.Context, tx pgx.Tx) (string, error) {
		verbs := tr.cutClient.WithTx(tx)
		outcome, err := verbs.Begin(ctx, tr.params())
		if err != nil {
			return "", err
		}
		if outcome.State != idempotency.New {
			return "", idempotency.ErrInProgress
		}
		id, err := tr.operation(ctx, tx)
		if err != nil {
			return "", err
		}
		_, err = verbs.Complete(ctx, outcome.Claim, response(id))
		return id, err
	})
	return ownAnswer(id, err)
}

// keys are those of a batch, the trial's own first.
func (tr *trial) keys() []string { return []string{tr.key, tr.key + " second", tr.key + " third"} }

// of is the trial as one of another key, with the runs that it had.
func (tr *trial) of(key string) *trial {
	other := *tr
	other.key, other.runs = key, nil
	for _, run := range tr.runs {
		other.runs = append(other.runs, effectRun{key + strings.TrimPrefix(run.id, tr.key), run.beforeCut})
	}
	return &other
}

func beginMany(ctx context.Context, tr *trial) answer {
	id, err := txhelper.RunValue(ctx, tr.behind, tr.options, func(ctx context.Context, tx pgx.Tx) (string, error) {
		var params []idempotency.Params
		for _, key := range tr.keys() {
			params = append(params, tr.of(key).params())
		}
		batch, err := tr.cutClient.WithTx(tx).BeginMany(ctx, params)
		if err != nil {
			return "", err
		}
		id, err := tr.operation(ctx, tx)
		if err != nil {
			return "", err
		}
		for i, item := range batch.Items {
			if item.State != idempotency.New {
				return "", idempotency.ErrInProgress
			}
			itemID := item.Key.ID + strings.TrimPrefix(id, tr.key)
			if i > 0 {
				if err := tr.of(item.Key.ID).effect(ctx, tx, itemID); err != nil {
					return "", err
				}
			}
			item.Response = response(itemID)
		}
		return id, batch.Complete(ctx)
	})
	return ownAnswer(id, err)
}

// auditMany checks every key of the batch, and that all of them or none have
// been completed.
func auditMany(ctx context.Context, tr *trial, got answer) (committed bool, err error) {
	for i, key := range tr.keys() {
		of := answer{kind: got.kind, id: key + strings.TrimPrefix(got.id, tr.key), err: got.err}
		done, err := tr.of(key).audit(ctx, of)
		if err == nil && i > 0 && done != committed {
			err = fmt.Errorf("the batch is completed in part: %q: %t", key, done)
		}
		if err != nil {
			return committed, err
		}
		committed = done
	}
	return committed, nil
}

// response is what Do would record of the id.
func response(id string) *idempotency.Response {
	return &idempotency.Response{Type: "json:string", Body: []byte(`"` + id + `"`)}
}

var flows = []*flow{
	{name: "Do-new", everyLevel: true, everyMode: true, commits: true, run: doNew, answers: []kind{executed}},
	{name: "Do-new-connection", cold: true, commits: true, run: doNew, answers: []kind{executed}},
	{name: "Do-replay", everyLevel: true, prepare: record, run: doNew, answers: []kind{replayed}},
	{
		name: "Do-in-progress", everyLevel: true, prepare: hold,
		run: func(ctx context.Context, tr *trial) answer {
			params := tr.params()
			params.Wait = idempotency.NoWait
			return do(ctx, tr, params, tr.operation)
		},
		audit: auditHeld, answers: []kind{inProgress},
	},
	{
		name: "Do-mismatch", everyLevel: true, prepare: record,
		run: func(ctx context.Context, tr *trial) answer {
			params := tr.params()
			params.Fingerprint = idempotency.FingerprintOf("another request")
			return do(ctx, tr, params, tr.operation)
		},
		answers: []kind{mismatch},
	},
	{
		name: "Do-final-error", everyLevel: true, commits: true,
		run: func(ctx context.Context, tr *trial) answer {
			return do(ctx, tr, tr.params(), func(ctx context.Context, tx pgx.Tx) (string, error) {
				id, err := tr.operation(ctx, tx)
				if err != nil {
					return "", err
				}
				return "", idempotency.Final(&refusal{ID: id})
			})
		},
		answers: []kind{refused},
	},
	{name: "Do-expired", everyLevel: true, commits: true, prepare: expire, run: doNew, answers: []kind{executed}},
	{name: "DoTx-new", ownTx: true, everyLevel: true, commits: true, run: doTx, answers: []kind{executed}},
	{name: "DoTx-replay", ownTx: true, prepare: record, run: doTx, answers: []kind{replayed}},
	{name: "Begin-Complete", ownTx: true, everyLevel: true, commits: true, run: beginAndComplete, answers: []kind{executed}},
	{name: "BeginMany-Complete", ownTx: true, everyLevel: true, commits: true, run: beginMany, audit: auditMany, answers: []kind{executed}},
	{name: "sqlstore-Do", everyLevel: true, commits: true, run: doOnSQL, answers: []kind{executed}},
	{name: "sqlstore-Do-replay", prepare: record, run: doOnSQL, answers: []kind{replayed}},
	{name: "sqlstore-DoTx", ownTx: true, commits: true, run: doTxOnSQL, answers: []kind{executed}},
	{name: "lease-claim", statements: true, commits: true, run: claimLease, audit: auditClaim, answers: []kind{executed}},
	{name: "lease-extend", statements: true, commits: true, prepare: leased, run: extendLease, audit: auditExtend, answers: []kind{executed}},
	{name: "lease-step", statements: true, commits: true, prepare: leased, run: addStep, audit: auditStep, answers: []kind{executed}},
	{name: "lease-step-in-tx", ownTx: true, everyLevel: true, commits: true, prepare: leased, run: addStepInTx, audit: auditStep, answers: []kind{executed}},
	{name: "lease-suspend", statements: true, commits: true, prepare: leased, run: suspendLease, audit: auditSuspend, answers: []kind{executed}},
	{name: "lease-complete", statements: true, commits: true, prepare: leasedEffect, run: completeLease, audit: auditComplete, answers: []kind{executed}},
	{name: "lease-complete-in-tx", ownTx: true, everyLevel: true, commits: true, prepare: leased, run: completeLeaseInTx, audit: auditCompleteInTx, answers: []kind{executed}},
	{name: "lease-run", everyLevel: true, commits: true, prepare: leased, run: runHeld, audit: auditRunHeld, answers: []kind{executed}},
	{name: "DoExternal", commits: true, run: doExternal, audit: auditExternal, answers: []kind{executed}},
	{name: "lease-release", statements: true, commits: true, prepare: leased, run: releaseLease, audit: auditRelease, answers: []kind{executed}},
	{name: "lease-takeover", statements: true, commits: true, prepare: abandoned, run: claimLease, audit: auditTakeover, answers: []kind{executed}},
	{name: "sweep", statements: true, alone: true, commits: true, prepare: litter, run: sweep, audit: auditSweep, answers: []kind{executed}},
}

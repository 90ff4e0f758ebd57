package pgxstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/samecommit/samecommit/db"
	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/txhelper"
)

// maxHints is the largest batch that takes an advisory lock for each key. The
// server's lock table is finite: by default it has 64 places for every
// connection that it allows.
const maxHints = 100

// batchLockTimeout bounds each wait for another open transaction that has
// inserted a key without a hint, as only a batch over maxHints does.
const batchLockTimeout = 100 * time.Millisecond

// longestBatchLockTimeout is what it grows to after waits for something else, so
// that a batch gets on where each of those takes long.
const longestBatchLockTimeout = time.Second

var _ idempotency.BatchVerbs = (*verbs)(nil)

// batch is one BeginMany. Its keys share a claim id, by which it knows its rows.
type batch struct {
	store   *Store
	tx      pgx.Tx
	params  []*idempotency.BeginParams
	results []idempotency.BeginResult
	claimID idempotency.ClaimID
	hints   bool
	// seen is the row of each key at the last look that left it undecided.
	seen []*row
}

// BeginMany claims the keys as part of the transaction. See
// idempotency.BatchVerbs.
func (v *verbs) BeginMany(ctx context.Context, params []*idempotency.BeginParams) ([]idempotency.BeginResult, error) {
	for _, p := range params {
		if err := p.ValidateTx(); err != nil {
			return nil, err
		}
	}
	if err := v.check(); err != nil {
		return nil, err
	}
	b := &batch{
		store: v.store, tx: v.tx, params: params, claimID: idempotency.NewClaimID(), hints: len(params) <= maxHints,
		results: make([]idempotency.BeginResult, len(params)), seen: make([]*row, len(params)),
	}
	var wanted []int
	for i, p := range params {
		if runKey(v.tx) == p.Key {
			b.results[i].Err = &idempotency.KeyError{Key: p.Key, Err: idempotency.ErrNested}
			continue
		}
		wanted = append(wanted, i)
	}
	if err := b.begin(ctx, wanted); err != nil {
		v.abortHalf(ctx, err)
		return nil, v.explainMany("begin many", lostBeforeCommit(err))
	}
	return b.results, nil
}

// abortHalf keeps a foreignTx from committing whose flight was sent one by one, and may
// have ended between two of its statements: settings of ours would stay.
func (v *verbs) abortHalf(ctx context.Context, err error) {
	_, foreign := v.tx.(foreignTx)
	_, running := errors.AsType[*idempotency.InProgressError](err)
	if foreign && !running {
		v.abort(ctx)
	}
}

// begin inserts, once, what has no row. It is the only step that waits, and it
// does so in ascending order, before the batch has any other row: all that
// follows, out of that order, waits for nobody.
func (b *batch) begin(ctx context.Context, wanted []int) error {
	inserted, err := b.insert(ctx, wanted)
	if err != nil {
		return err
	}
	if inserted == int64(len(wanted)) {
		for _, i := range wanted {
			b.claimed(i, 1, false)
		}
		return nil
	}
	wanted, err = b.look(ctx, wanted)
	for range maxClaimRounds {
		if err != nil || len(wanted) == 0 {
			return err
		}
		if err = b.reclaim(ctx, wanted); err == nil {
			wanted, err = b.look(ctx, wanted)
		}
	}
	if err != nil {
		return err
	}
	for _, i := range wanted {
		b.results[i].Outcome = &idempotency.Outcome{State: idempotency.InProgress}
	}
	return nil
}

// insert claims the keys that have no row, and returns how many. It is one
// flight, unless it waited too long for something else than another's key: for the
// lock to make the table larger, which many want at once on a busy server, or for a
// change of the table to end. Then it tries again.
func (b *batch) insert(ctx context.Context, wanted []int) (inserted int64, err error) {
	columns := b.columns(wanted)
	for timeout := batchLockTimeout; ; timeout = min(2*timeout, longestBatchLockTimeout) {
		inserted, err = b.tryInsert(ctx, columns, timeout)
		if sqlState(err) != codeLockTimeout {
			return inserted, err
		}
		// Without arguments pgx uses the simple protocol: one flight for both.
		if _, err := b.tx.Exec(ctx, "ROLLBACK TO SAVEPOINT samecommit_batch; RELEASE SAVEPOINT samecommit_batch"); err != nil {
			return 0, err
		}
		if waitedForKey(err) {
			return 0, &idempotency.InProgressError{RetryAfter: time.Second}
		}
	}
}

func (b *batch) tryInsert(ctx context.Context, columns keyColumns, timeout time.Duration) (inserted int64, err error) {
	queries := b.store.queries
	flight := &pgx.Batch{}
	flight.Queue("SAVEPOINT samecommit_batch")
	_ = queries.KeyBeginMany(ctx, txhelper.Queue(flight, nil), &db.KeyBeginManyParams{
		ClaimID: uuid(b.claimID), LockTimeout: fmt.Sprintf("%dms", timeout.Milliseconds()),
	})
	txhelper.QueueStep(flight, func(q txhelper.Querier) (err error) {
		inserted, err = queries.KeyClaimMany(ctx, q, &db.KeyClaimManyParams{
			ClaimID: uuid(b.claimID), Scopes: columns.scopes, IDs: columns.ids,
			Fingerprints: columns.fingerprints, LockIDs: columns.lockIDs, Hints: b.hints,
		})
		return err
	})
	_ = queries.KeyClaimedMany(ctx, txhelper.Queue(flight, nil))
	flight.Queue("RELEASE SAVEPOINT samecommit_batch")
	err = b.tx.SendBatch(ctx, flight).Close()
	return inserted, err
}

// waitedForKey reports whether a lock timeout ended the wait for the transaction
// that has inserted the same key. The error's context then names the table or its
// index, in every language; that of other waits is empty.
func waitedForKey(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && strings.Contains(pgErr.Where, "idempotency_keys")
}

// look judges each key by its row, in a statement of its own as in claim, and
// returns those that are to be had, as far as the row tells.
func (b *batch) look(ctx context.Context, wanted []int) (undecided []int, err error) {
	columns := b.columns(wanted)
	var found []*db.KeyGetManyRow
	err = b.store.sendByIndex(ctx, b.tx, func(q txhelper.Querier) (err error) {
		found, err = b.store.queries.KeyGetMany(ctx, q, &db.KeyGetManyParams{
			Scopes: columns.scopes, IDs: columns.ids, LockIDs: columns.lockIDs,
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	rows := make([]*db.KeyGetManyRow, len(wanted))
	for _, one := range found {
		rows[one.Place-1] = one
	}
	for place, i := range wanted {
		if !b.judge(i, rows[place]) {
			undecided = append(undecided, i)
		}
	}
	return undecided, nil
}

// judge decides one key by its row, as claim does, and reports whether it could.
func (b *batch) judge(i int, found *db.KeyGetManyRow) bool {
	result, key := &b.results[i], b.params[i].Key
	inProgress := &idempotency.Outcome{State: idempotency.InProgress}
	if found == nil {
		result.Outcome = inProgress
		return true
	}
	now := &row{key: key, KeyGetRow: &db.KeyGetRow{
		ClaimID: found.ClaimID, Attempt: found.Attempt, Fingerprint: found.Fingerprint,
		Response: found.Response, ResponseType: found.ResponseType, CreatedAt: found.CreatedAt, UpdatedAt: found.UpdatedAt,
		LockedUntil: found.LockedUntil, ExpiresAt: found.ExpiresAt, Unfinished: found.Unfinished, Steps: found.Steps, ReadAt: found.ReadAt,
	}}
	switch {
	case now.ClaimID == uuid(b.claimID):
		b.claimed(i, now.Attempt, b.seen[i] != nil && !b.seen[i].completed())
		return true
	case now.unfinished():
		result.Err = unfinishedError(key, found.Own)
		return true
	}
	result.Outcome, result.Err = now.outcome(b.params[i])
	if result.Outcome == nil && result.Err == nil && now.same(b.seen[i]) {
		result.Outcome = inProgress // another transaction is at work on it
	}
	b.seen[i] = now
	return result.Outcome != nil || result.Err != nil
}

func (b *batch) claimed(i int, attempt int32, resumed bool) {
	params := b.params[i]
	b.results[i].Outcome = &idempotency.Outcome{State: idempotency.New, Claim: &idempotency.Claim{
		Key: params.Key, ID: b.claimID, Attempt: int(attempt), TTL: params.TTL, Resumed: resumed,
	}}
}

// reclaim claims the keys whose rows are as they were seen. The next look tells
// which it got.
func (b *batch) reclaim(ctx context.Context, wanted []int) error {
	columns := b.columns(wanted)
	claimIDs := make([]pgtype.UUID, len(wanted))
	expiresAts, lockedUntils := make([]pgtype.Timestamptz, len(wanted)), make([]pgtype.Timestamptz, len(wanted))
	for place, i := range wanted {
		seen := b.seen[i]
		claimIDs[place], expiresAts[place], lockedUntils[place] = seen.ClaimID, seen.ExpiresAt, seen.LockedUntil
	}
	return b.store.sendByIndex(ctx, b.tx, func(q txhelper.Querier) error {
		_, err := b.store.queries.KeyReclaimMany(ctx, q, &db.KeyReclaimManyParams{
			ClaimID: uuid(b.claimID), Scopes: columns.scopes, IDs: columns.ids,
			Fingerprints: columns.fingerprints, LockIDs: columns.lockIDs, Hints: b.hints,
			SeenClaimIDs: claimIDs, SeenExpiresAts: expiresAts, SeenLockedUntils: lockedUntils,
		})
		return err
	})
}

// keyColumns are keys as arrays of columns.
type keyColumns struct {
	scopes, ids  []string
	fingerprints [][]byte
	lockIDs      []int64
}

func (b *batch) columns(wanted []int) keyColumns {
	var c keyColumns
	for _, i := range wanted {
		params := b.params[i]
		c.scopes, c.ids = append(c.scopes, params.Key.Scope), append(c.ids, params.Key.ID)
		c.fingerprints = append(c.fingerprints, params.Fingerprint.Bytes())
		c.lockIDs = append(c.lockIDs, lockID(params.Key))
	}
	return c
}

// CompleteMany records the responses as part of the transaction. See
// idempotency.BatchVerbs.
func (v *verbs) CompleteMany(ctx context.Context, claims []*idempotency.Claim, responses []*idempotency.Response) ([]*idempotency.Record, error) {
	params := &db.KeyCompleteManyParams{}
	var refused error
	for i, claim := range claims {
		if err := responses[i].Validate(); err != nil {
			return nil, err
		}
		if err := claim.ValidateComplete(); err != nil {
			claim, refused = noClaim, err
		}
		params.Scopes, params.IDs = append(params.Scopes, claim.Key.Scope), append(params.IDs, claim.Key.ID)
		params.ClaimIDs = append(params.ClaimIDs, uuid(claim.ID))
		params.Responses = append(params.Responses, responses[i].Body)
		params.ResponseTypes = append(params.ResponseTypes, responses[i].Type)
		params.TTLMicroseconds = append(params.TTLMicroseconds, claim.TTL.Microseconds())
	}
	if err := v.check(); err != nil {
		return nil, err
	}
	var done []*db.KeyCompleteManyRow
	err := v.store.sendByIndex(ctx, v.tx, func(q txhelper.Querier) (err error) {
		done, err = v.store.queries.KeyCompleteMany(ctx, q, params)
		return err
	})
	if err != nil {
		v.abort(ctx)
	}
	if refused != nil {
		return nil, refused
	}
	if sqlState(err) == codeDivisionByZero {
		return nil, fmt.Errorf("%w: one of a batch: roll the transaction back", idempotency.ErrClaimLost)
	}
	if err != nil {
		return nil, v.explainMany("complete many", lostBeforeCommit(err))
	}
	records := make([]*idempotency.Record, len(claims))
	for _, one := range done {
		i := one.Place - 1
		completed := &row{key: claims[i].Key, KeyGetRow: &db.KeyGetRow{
			ClaimID: uuid(claims[i].ID), Attempt: one.Attempt, Fingerprint: one.Fingerprint,
			Response: responses[i].Body, ResponseType: responses[i].Type,
			CreatedAt: one.CreatedAt, UpdatedAt: one.UpdatedAt, ExpiresAt: one.ExpiresAt,
		}}
		if records[i], err = completed.record(); err != nil {
			return nil, err
		}
	}
	return records, nil
}

// explainMany is explain for a statement about many keys.
func (v *verbs) explainMany(doing string, err error) error {
	var inProgress *idempotency.InProgressError
	if errors.As(err, &inProgress) {
		return err
	}
	return explainWithoutKey(doing, v.immediate(err))
}

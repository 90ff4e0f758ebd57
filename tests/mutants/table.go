package main

// Files that mutants change.
const (
	query           = "queries/idempotency_keys.sql#" // and the statement's name
	schema          = "migrations/00001_create_idempotency_keys.sql"
	runFile         = "idempotency/pgxstore/run.go"
	resolveFile     = "idempotency/pgxstore/resolve.go"
	heldFile        = "idempotency/pgxstore/runheld.go"
	verbsFile       = "idempotency/pgxstore/verbs.go"
	batchFile       = "idempotency/pgxstore/batch.go"
	recordFile      = "idempotency/pgxstore/record.go"
	storeFile       = "idempotency/pgxstore/store.go"
	sweepFile       = "idempotency/pgxstore/sweep.go"
	errorFile       = "idempotency/pgxstore/error.go"
	unavailableFile = "idempotency/pgxstore/unavailable.go"
	gateFile        = "idempotency/gate.go"
	txFile          = "txhelper/transaction.go"
	kitFile         = "idempotency/idempotencytest/statement.go"
	budgetFile      = "idempotency/budget.go"
	redisScripts    = "idempotency/redisstore/scripts/"
	httpFolder      = "idempotency/httpidem"
	mongoFolder     = "idempotency/mongostore"
	mongoFile       = mongoFolder + "/store.go"
	sqlFolder       = "idempotency/sqlstore"
)

// contract is where pgxstore runs the suite of stores with transactions.
const contract = "TestTransactionContract/read committed/"

// What is broken on purpose, by subject. Left out, because nothing of the kind
// exists here: headers, leases that are extended in the background, reads from
// replicas, fencing numbers, a synchronous_commit of our own. Left out, because no result could differ: a lock id
// of 32 bits, as the lock is only a hint; pgx's SafeToRetry, which says no to
// the commit that we send. Left out, because a test would need the server to
// crash between COMMIT and its write to disk: resolving by transaction id.
var table = []mutant{
	// The claim.
	{
		name: "the last of two rivals overwrites the answer", breaks: once,
		edits: []edit{{query + "KeyInsertCompleted", "RETURNING", "ON CONFLICT (scope, id) DO UPDATE SET response = EXCLUDED.response RETURNING"}},
		test:  "TestUniqueIndexDecidesWithoutTheLock",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "the loser of a race commits its effect", breaks: together,
		edits: []edit{{query + "KeyInsertCompleted", "RETURNING", "ON CONFLICT (scope, id) DO NOTHING RETURNING"}},
		test:  "TestUniqueIndexDecidesWithoutTheLock",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "no row after a lost race means new", breaks: once,
		edits: []edit{{verbsFile, "if seen == nil {\n\t\t\treturn &idempotency.Outcome{State: idempotency.InProgress}, nil", "if seen == nil {\n\t\t\treturn claimed(1, pgtype.Timestamptz{}), nil"}},
		test:  "TestRunningDuplicateIsInProgress",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "Begin does not expect a rival's row", breaks: unstuck,
		edits: []edit{{query + "KeyClaim", "ON CONFLICT (scope, id) DO NOTHING\n", ""}},
		test:  "TestSingleKeyBesideALargeBatch",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "Do does not look before it runs", breaks: noRerun,
		edits: []edit{{runFile, "\t\tif look {\n", "\t\tif look && r.claimID[0] == 0 && r.claimID[1] == 0 {\n"}},
		test:  "TestDoRunsOnceInEveryExecMode",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "Do ignores that the key is locked", breaks: bounded,
		edits: []edit{{runFile, "if !lock.Locked {", "if !lock.Locked && lock.ReadOnly {"}},
		test:  "TestRunningDuplicateIsInProgress",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "Do waits for the lock on its connection", breaks: bounded,
		edits: []edit{
			{query + "KeyTryLock", "pg_try_advisory_xact_lock(", "EXISTS (SELECT FROM pg_advisory_xact_lock("},
			{query + "KeyTryLock", ") AS locked", ")) AS locked"},
		},
		test: "TestRunningDuplicateIsInProgress",
		pkg:  "idempotency/pgxstore",
	},
	{
		name: "an expired row is replaced, whatever it became", breaks: once,
		edits: []edit{{query + "KeyReplaceCompleted", "THEN 1 ELSE 0 END", "THEN 1 ELSE 1 END"}},
		test:  "TestUniqueIndexDecidesWithoutTheLock/also when an expired row is replaced",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "an abandoned row is known by its claim id alone", breaks: once,
		edits: []edit{
			{query + "KeyReplaceCompleted", "k.expires_at IS NOT DISTINCT FROM sqlc.narg('seen_expires_at')::timestamptz", "sqlc.narg('seen_expires_at')::timestamptz IS NULL IS NOT NULL"},
			{query + "KeyReplaceCompleted", "k.locked_until IS NOT DISTINCT FROM sqlc.narg('seen_locked_until')::timestamptz", "sqlc.narg('seen_locked_until')::timestamptz IS NULL IS NOT NULL"},
		},
		test: "TestUniqueIndexDecidesWithoutTheLock/a zombie's completion under the same claim id",
		pkg:  "idempotency/pgxstore",
	},
	{
		name: "a lock pins the key for a bystander", breaks: bounded,
		edits: []edit{{query + "KeyClaim", "WHEN EXISTS", "WHEN false AND EXISTS"}},
		test:  "TestBystanderDoesNotPinTheKey",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a retry in the transaction that failed", breaks: unstuck,
		edits: []edit{{"txhelper/run.go", "\t\tattempts = 1 //", "\t\tattempts = 2 //"}},
		test:  "TestRunOnEveryDB",
		pkg:   "txhelper",
	},
	{
		name: "a serialization failure is not noticed", breaks: once,
		edits: []edit{{"txhelper/tx.go", "\tif IsRetryable(err) {", "\tif IsRetryable(err) && tx.parent == tx {"}},
		test:  "TestIgnoredSerializationFailureRunsAgain",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "Do runs where nothing can be written", breaks: honest,
		edits: []edit{{runFile, "if lock.ReadOnly {", "if lock.ReadOnly && !lock.Locked {"}},
		test:  "TestReadOnlyTransaction",
		pkg:   "idempotency/pgxstore",
	},

	{
		name: "a row that a trigger suppressed counts as written", breaks: together,
		edits: []edit{{query + "KeyInsertCompleted", "coalesce((SELECT one FROM written), 'a trigger or rule kept the row from being written')", "coalesce((SELECT one FROM written), '1')"}},
		test:  "TestRowThatIsNotWrittenCommitsNothing",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a replaced row that a trigger suppressed counts as written", breaks: together,
		edits: []edit{{query + "KeyReplaceCompleted", "coalesce((SELECT one FROM written), 'a trigger or rule kept the row from being written')", "coalesce((SELECT one FROM written), '1')"}},
		test:  "TestRowThatIsNotWrittenCommitsNothing",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "the answer goes to whatever table is found", breaks: once,
		edits: []edit{{query + "KeyInsertCompleted", "(':' || 'idempotency_keys'::regclass::oid::text || ':')", "':'"}},
		test:  "TestFunctionThatHidesTheTable",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "keys are kept in a temporary table", breaks: once,
		edits: []edit{{query + "KeyTryLock", "WHEN pg_my_temp_schema() = 0 THEN", "WHEN pg_my_temp_schema() >= 0 THEN"}},
		test:  "TestTemporaryTableInFrontOfTheTable",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "an immediate guard looks like an ended transaction", breaks: honest,
		edits: []edit{{"idempotency/pgxstore/guard.go", "txStatus(v.tx) == 'E'", "txStatus(v.tx) == 'T'"}},
		test:  "TestConstraintsMadeImmediate",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "an open completion of a lease takes no hint", breaks: bounded,
		edits: []edit{{query + "KeyComplete", "pg_try_advisory_xact_lock(@lock_id::bigint # 'idempotency_keys'::regclass::oid::bigint) IS NOT NULL", "@lock_id::bigint IS NOT NULL"}},
		test:  "TestLeasedCompletionThatIsStillOpen",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a nested call through another client runs", breaks: honest,
		edits: []edit{{query + "KeyClaim", "concat(':', @lock_id::bigint, ';')) > 0", "concat(':', @lock_id::bigint, ';')) < 0"}},
		test:  "TestNestedCallOfAnotherClientOnAWrappedTransaction",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "the server's default isolation is not asked for", breaks: everywhere,
		edits: []edit{{runFile, "if lookInside && lock.Serializable &&", "if lookInside && lock.ReadOnly && lock.Serializable &&"}},
		test:  "TestServerWhoseDefaultIsSerializable",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "keys may be translated", breaks: once,
		edits: []edit{{errorFile, `case "", "UTF8", "SQL_ASCII":`, `case "", "UTF8", "SQL_ASCII", "LATIN1":`}},
		test:  "TestConnectionThatTranslatesKeys",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a refused row comes out in the error", breaks: secret,
		edits: []edit{{errorFile, `bare.Detail, bare.Where, bare.InternalQuery = "", "", ""`, `bare.Where, bare.InternalQuery = "", ""`}},
		test:  "TestErrorOfARefusedRowHoldsNoRow",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a batch may read the whole table to claim", breaks: bounded,
		edits: []edit{{query + "KeyBeginMany", "THEN 'off' END", "THEN 'on' END"}, {query + "KeyClaimMany", "WHEN (SELECT true FROM idempotency_keys AS k WHERE k.scope = wanted.scope AND k.id = wanted.id) THEN", "WHEN EXISTS (SELECT FROM idempotency_keys AS k WHERE k.scope = wanted.scope AND k.id = wanted.id) THEN"}},
		test:  "TestNoStatementReadsTheWholeTable/force_generic_plan, narrow",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "an emptied table gives its pages back", breaks: bounded,
		edits: []edit{{schema, "    vacuum_truncate = false,\n", ""}},
		test:  "TestNoStatementReadsTheWholeTable/auto, emptied",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "autovacuum comes to a table of a few rows", breaks: bounded,
		edits: []edit{{schema, "autovacuum_analyze_threshold = 1000", "autovacuum_analyze_threshold = 50"}},
		test:  "TestNoStatementReadsTheWholeTable/auto, emptied",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a statement about many rows may read the whole table", breaks: bounded,
		edits: []edit{{query + "PlanByIndex", "current_setting('enable_seqscan'), true) IS NOT NULL\n            THEN 'off' END", "current_setting('enable_seqscan'), true) IS NOT NULL\n            THEN 'on' END"}},
		test:  "TestNoStatementReadsTheWholeTable/force_generic_plan, narrow",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a sweep may sort all that has expired", breaks: bounded,
		edits: []edit{{query + "PlanByIndex", "current_setting('enable_bitmapscan'), true) IS NOT NULL\n            THEN 'off' END", "current_setting('enable_bitmapscan'), true) IS NOT NULL\n            THEN 'on' END"}},
		test:  "TestSweepReadsEachRowOnce",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a sweep leaves its settings with the caller's transaction", breaks: neutral,
		edits: []edit{{query + "PlanAsBefore", "set_config('enable_seqscan', current_setting('samecommit.enable_seqscan'), true)", "set_config('enable_seqscan', current_setting('enable_seqscan'), true)"}},
		test:  "TestBatchBesideALargeOne",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a sweep walks over what it has deleted", breaks: bounded,
		edits: []edit{{sweepFile, "s.sweep.end(until)", "s.sweep.end(map[bool]time.Time{}[until.IsZero()])"}},
		test:  "TestSweepReadsEachRowOnce",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a sweep does not come back for what it left", breaks: retention,
		edits: []edit{{sweepFile, "older, _, err := s.deleteExpired(ctx, time.Time{}, limit-deleted)", "older := 0"}},
		test:  "TestSweepComesBackForWhatItLeft",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a row may be in two states", breaks: everywhere,
		edits: []edit{{schema, "num_nonnulls(expires_at, locked_until, unfinished) = 1", "num_nonnulls(expires_at, locked_until, unfinished) >= 1"}},
		test:  "TestSchemaRefuses",
		pkg:   "migrations",
	},
	{
		name: "a lease or an answer may never end", breaks: everywhere,
		edits: []edit{{schema, "CHECK (isfinite(VALUE))", "CHECK (isfinite(VALUE) IS NOT NULL OR VALUE IS NULL)"}},
		test:  "TestSchemaRefuses",
		pkg:   "migrations",
	},

	{
		name: "a TTL that the database takes for zero is accepted", breaks: once,
		edits: []edit{{"idempotency/params.go", "if ttl < time.Microsecond {", "if ttl <= 0 {"}},
		test:  "TestNewClientRefusesWhatCannotWork/TTL too short", pkg: "idempotency",
	},
	{
		name: "the context of a finished operation holds its key", breaks: honest,
		edits: []edit{{"idempotency/nesting.go", "func() { h.running.Store(false) }", "func() { h.running.Store(true) }"}},
		test:  "TestContextOfAnOperationThatHasReturned", pkg: "idempotency",
	},

	// The key and the request.
	{
		name: "the scope is left out of the look", breaks: apart,
		edits: []edit{{query + "KeyGet", "scope = @scope::text", "@scope::text IS NOT NULL"}},
		test:  "TestAnotherScopesKeyIsNeverVisible",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "the scope is left out of the primary key", breaks: apart,
		edits: []edit{
			{schema, "PRIMARY KEY (scope, id)", "PRIMARY KEY (id)"},
			{query + "KeyClaim", "ON CONFLICT (scope, id)", "ON CONFLICT (id)"},
		},
		test: "TestStoreContract/the same id in two scopes is two keys",
	},
	{
		name: "the scope is left out of the lock", breaks: apart,
		edits: []edit{{"idempotency/key.go", "appendParts(buf[:0], k.Scope, k.ID)", "appendParts(buf[:0], k.ID)"}},
		test:  "TestAnotherScopesKeyIsNeverVisible",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "tables of two schemas share a lock", breaks: apart,
		edits: []edit{{query + "KeyTryLock", " # 'idempotency_keys'::regclass::oid::bigint", ""}},
		test:  "TestSchemasDoNotShareKeys",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "fingerprint without lengths", breaks: sameRequest,
		edits: []edit{{"idempotency/key.go", "\t\tbuf = binary.BigEndian.AppendUint64(buf, uint64(len(part)))\n", "\t\tbuf = binary.BigEndian.AppendUint64(buf, 0)[:len(buf)]\n"}},
		test:  "TestFingerprintOf", pkg: "idempotency",
	},
	{
		name: "another request gets the answer", breaks: sameRequest,
		edits: []edit{{"idempotency/record.go", "case !params.Fingerprint.Matches(r.Fingerprint):", "case r.State == InProgress && !params.Fingerprint.Matches(r.Fingerprint):"}},
		test:  contract + "run never executes for another fingerprint",
	},
	{
		name: "another request gets the answer in memory", breaks: sameRequest,
		edits: []edit{{gateFile, "if !params.Fingerprint.Matches(answer.Fingerprint) {", "if answer.Response == nil {"}},
		test:  "TestSharedAnswerIsForTheSameRequest", pkg: "idempotency",
	},
	{
		name: "a key is printed", breaks: secret,
		edits: []edit{{"idempotency/key.go", "io.WriteString(state, k.String())", "io.WriteString(state, k.Scope+k.ID)"}},
		test:  "TestErrorsHoldNoKeyAndNoBody",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a key is written in JSON", breaks: secret,
		edits: []edit{{"idempotency/key.go", "return []byte(k.String()), nil", "return []byte(k.Scope + k.ID), nil"}},
		test:  "TestLogsHoldNoSecret", pkg: "idempotency",
	},
	{
		name: "a key is read back from its hash", breaks: once,
		edits: []edit{{"idempotency/key.go", "func (k *Key) UnmarshalText([]byte) error {\n", "func (k *Key) UnmarshalText(text []byte) error {\n\tif k.ID = string(text); k.ID != \"\" {\n\t\treturn nil\n\t}\n"}},
		test:  "TestKeyIsNotReadFromItsHash", pkg: "idempotency",
	},
	{
		name: "an answer is written in JSON", breaks: secret,
		edits: []edit{{"idempotency/record.go", "Response *Response `json:\"-\"`", "Response *Response"}},
		test:  "TestLogsHoldNoSecret", pkg: "idempotency",
	},
	{
		name: "the secret of a config is printed", breaks: secret,
		edits: []edit{{"idempotency/secret.go", "io.WriteString(state, s.summary())", "io.WriteString(state, string(s))"}},
		test:  "TestLogsHoldNoSecret", pkg: "idempotency",
	},
	{
		name: "the store has the id that a secret should hide", breaks: secret,
		edits: []edit{{"idempotency/settings.go", "Key: s.storedKey(params.Key)", "Key: params.Key"}},
		test:  "TestKeySecret", pkg: "idempotency",
	},
	{
		name: "the digits in a log are not those of the digest", breaks: honest,
		edits: []edit{{"idempotency/key.go", "digest[:8]", "digest[8:16]"}},
		test:  "TestKeyPrintsItsDigest", pkg: "idempotency",
	},
	{
		name: "a key may have any length", breaks: honest,
		edits: []edit{{"idempotency/key.go", "case len(part) > MaxKeyLength:", "case len(part) > 100*MaxKeyLength:"}},
		test:  "TestBadInputIsRefusedBeforeAnySQL",
		pkg:   "idempotency/pgxstore",
	},

	// Completion.
	{
		name: "a claim without a TTL is completed", breaks: once,
		edits: []edit{{"idempotency/record.go", "validateTTL(\"Claim.TTL\", c.TTL)", "validateTTL(\"Claim.TTL\", max(c.TTL, DefaultTTL))"}},
		test:  "TestStore/completing a claim without a TTL is an error and leaves the claim", pkg: "idempotency/memstore",
	},
	{
		name: "the transaction of a refused claim commits", breaks: together,
		edits: []edit{{verbsFile, "\t\tclaim = noClaim\n", "\t\treturn nil, refused\n"}},
		test:  contract + "completing a claim without a TTL cannot commit",
	},
	{
		name: "the transaction of a batch with a refused claim commits", breaks: together,
		edits: []edit{{batchFile, "claim, refused = noClaim, err", "return nil, err"}},
		test:  "TestCompleteWithoutAClaimCannotCommit/no TTL of many",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a completion without a row goes unnoticed", breaks: together,
		edits: []edit{{query + "KeyComplete", "1 / count(*)", "count(*)"}},
		test:  "TestCompleteWithoutAClaimCannotCommit",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "one lost claim of a batch goes unnoticed", breaks: together,
		edits: []edit{{query + "KeyCompleteMany", "count(*) = cardinality(", "count(*) <= cardinality("}},
		test:  contract + "a batch whose claim is lost cannot commit",
	},
	{
		name: "completion by key, without the claim id", breaks: fenced,
		edits: []edit{{query + "KeyComplete", "claim_id = @claim_id", "@claim_id::uuid IS NOT NULL"}},
		test:  contract + "a leased claim that was taken over cannot commit an effect",
	},
	{
		name: "completion of what is completed", breaks: faithful,
		edits: []edit{{query + "KeyComplete", "AND expires_at IS NULL", ""}},
		test:  "TestStoreContract/completing twice is an error and keeps the first answer",
	},
	{
		name: "the work's transaction is not asked for", breaks: together,
		edits: []edit{{query + "KeyInsertCompleted", "ELSE CAST(concat('the work began in another transaction, or at another table, than ', current_setting('samecommit.claim_ids', true)) AS integer)", "ELSE 2"}},
		test:  "TestEndingTheTransactionInsideDo",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "the mark outlives its transaction", breaks: together,
		edits: []edit{{query + "KeyTryLock", "';'\n        ),\n        true", "';'\n        ),\n        false"}},
		test:  "TestEndingTheTransactionInsideDo",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "an inner Do takes the outer one's mark", breaks: together,
		edits: []edit{{query + "KeyTryLock", "            current_setting('samecommit.claim_ids', true),\n", ""}},
		test:  "TestStoreInsideATransactionThatRollsBack",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "no guard against a forgotten completion", breaks: together,
		edits: []edit{{schema, ",\n    CONSTRAINT idempotency_keys_completed_before_commit FOREIGN KEY (unfinished)\n        REFERENCES idempotency_unfinished (id)\n        DEFERRABLE INITIALLY DEFERRED", ""}},
		test:  "TestForgottenCompletionCannotCommit",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "memory has no guard against it either", breaks: together,
		edits: []edit{{"idempotency/memstore/tx.go", "if record.State == idempotency.InProgress && record.LockedUntil.IsZero() {", "if record.State == idempotency.InProgress && record.Response != nil {"}},
		test:  "TestStoreTx/a forgotten completion cannot commit", pkg: "idempotency/memstore",
	},

	// Commit.
	{
		name: "acknowledged, though the commit failed", breaks: keeps,
		edits: []edit{{runFile, "\tif err == nil {\n\t\treturn r.finished", "\tif r.writeErr == nil {\n\t\treturn r.finished"}},
		test:  "TestDeferredConstraintFailsTheCommit",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a constraint of the caller's looks like a lost race", breaks: honest,
		edits: []edit{
			{runFile, "\tcase r.writeErr == nil:\n\t\treturn err // of the commit itself\n", ""},
		},
		test: "TestDeferredConstraintFailsTheCommit",
		pkg:  "idempotency/pgxstore",
	},
	{
		name: "an aborted transaction is acknowledged", breaks: keeps,
		edits: []edit{
			{txFile, "if t.conn.PgConn().TxStatus() == 'E' {", "if t.conn.PgConn().TxStatus() == 'e' {"},
			{txFile, "\t\treturn pgx.ErrTxCommitRollback\n", "\t\treturn nil\n"},
		},
		test: "TestRunRefusesToCommit",
		pkg:  "txhelper",
	},
	{
		name: "a lost reply means committed", breaks: keeps,
		edits: []edit{{runFile, "\t\treturn r.resolve(ctx, ambiguous, sent)\n", "\t\t_, _ = ambiguous, sent\n\t\treturn r.finished(response, written), nil\n"}},
		test:  "TestLostReplyToCommitIsResolved/not committed",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a lost reply means not committed", breaks: honest,
		edits: []edit{{runFile, "\t\treturn r.resolve(ctx, ambiguous, sent)\n", "\t\t_, _ = ambiguous, sent\n\t\treturn r.afterFailure(ctx, errTryAgain)\n"}},
		test:  "TestCommitThatIsStillAtWorkIsWaitedFor",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "what a lost reply left need not be on the standby", breaks: keeps,
		edits: []edit{{resolveFile, "\t\t_ = r.store.queries.ConfirmDurable(ctx, txhelper.Queue(batch, nil))\n", ""}},
		test:  "TestSyncStandby/the waiting backend is terminated",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "ConfirmReplays confirms nothing", breaks: keeps,
		edits: []edit{{resolveFile, "found.ReadAt.Time.Sub(found.UpdatedAt.Time) >= r.store.confirmReplays", "r.store.confirmReplays >= 0"}},
		test:  "TestSyncStandby/a replay",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a commit that takes too long is cancelled", breaks: keeps,
		edits: []edit{{txFile, "\tif t.borrowed.Conn() == nil {\n\t\treturn t.commitInTime", "\tif t.conn != nil {\n\t\treturn t.commitInTime"}},
		test:  "TestCommitIsAbandonedNotCancelled",
		pkg:   "txhelper",
	},
	{
		name: "what breaks the connection runs until the tries are over", breaks: once,
		edits: []edit{{unavailableFile, "const maxLeftNothing = 2", "const maxLeftNothing = 8"}},
		test:  "TestCommitThatLeavesNothing/twice",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a quiet function runs again", breaks: honest,
		edits: []edit{{unavailableFile, "pgErr.Code == codeIdleInTransaction && endsSession(pgErr)", "pgErr.Code == codeIdleInTransaction && !endsSession(pgErr)"}},
		test:  "TestQuietFunctionRunsOnce",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a longer idle timeout than PostgreSQL knows", breaks: honest,
		edits: []edit{{storeFile, "\ttimeout = min(timeout, longestIdleTimeout)\n", ""}},
		test:  "TestIdleTimeoutLongerThanPostgreSQLKnows",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "Do does not wait for a server", breaks: unstuck,
		edits: []edit{{unavailableFile, "\tif err == nil || !s.canReconnect() || !heals(err) {", "\tif err == nil || !s.canReconnect() || heals(err) {"}},
		test:  "TestDoWaitsForAServer/that refuses connections",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "Do waits for a password to become right", breaks: bounded,
		edits: []edit{{unavailableFile, "\t\t\tif !isServerTrouble(pgErr) {\n\t\t\t\treturn false\n\t\t\t}\n", ""}},
		test:  "TestDoDoesNotWaitForWhatDoesNotHeal",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "an error of the function is the store's", breaks: honest,
		edits: []edit{{runFile, "\t\ttransaction.Rollback(ctx)\n\t\treturn r.afterFailure(ctx, err)", "\t\ttransaction.Rollback(ctx)\n\t\treturn r.afterFailure(ctx, r.explain(err))"}},
		test:  "TestFunctionsErrorIsNotUnavailable",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a lost connection is nobody's trouble", breaks: honest,
		edits: []edit{{unavailableFile, "errors.Is(err, txhelper.ErrConnectionLost) || errors.Is(err, txhelper.ErrLostBeforeCommit) {\n\t\treturn true", "errors.Is(err, txhelper.ErrConnectionLost) {\n\t\treturn true"}},
		test:  "TestLostConnectionIsUnavailable",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a transaction that cannot commit has no name", breaks: honest,
		edits: []edit{{errorFile, "case errors.Is(err, txhelper.ErrAborted), errors.Is(err, txhelper.ErrRowsOpen):", "case err == nil:"}},
		test:  "TestFunctionThatLeavesItsTransactionUnusable",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a pooler is not named", breaks: honest,
		edits: []edit{{errorFile, `strings.Contains(pgErr.Message, "stmtcache_")`, `strings.Contains(pgErr.Message, "stmtcached_")`}},
		test:  "TestPreparedStatementThatIsGone",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a mistake in a savepoint of txhelper's has no name", breaks: honest,
		edits: []edit{{errorFile, ", errors.Is(err, txhelper.ErrOwned) && !errors.Is(err, idempotency.ErrOwned):", ":"}},
		test:  "TestTransactThatCannotCommit/a commit in a savepoint of txhelper's",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a transaction without a key runs again and again without a connection", breaks: bounded,
		edits: []edit{{"idempotency/pgxstore/transact.go", "return &leftNothingError{cause: err}", "return err"}},
		test:  "TestTransactThatLosesItsConnection/each time",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a nil pool is taken for one", breaks: honest,
		edits: []edit{{"idempotency/pgxstore/store.go", "value.Kind() == reflect.Pointer && value.IsNil()", "value.Kind() == reflect.Map && value.IsNil()"}},
		test:  "TestNewRefusesWhatCannotWork",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a failure that a savepoint undid runs the function again", breaks: neutral,
		edits: []edit{{"txhelper/tx.go", "\t\t\ttx.shared.forget(tx)\n", ""}},
		test:  "TestRunForgetsAFailureThatWasRolledBack",
		pkg:   "txhelper",
	},
	{
		name: "BEGIN and COMMIT of the caller's own are ignored", breaks: honest,
		edits: []edit{{txFile, `t.options.TxOptions.BeginQuery != "" || t.options.TxOptions.CommitQuery != ""`, `t.options.TxOptions.BeginQuery != t.options.TxOptions.BeginQuery`}},
		test:  "TestOpenRefusesQueriesOfItsCaller",
		pkg:   "txhelper",
	},
	{
		name: "a lost reply is settled by a look alone", breaks: honest,
		edits: []edit{{resolveFile, "case lock.Locked && !lock.ReadOnly:", "case found == nil || lock.Locked:"}},
		test:  "TestCommitThatIsStillAtWorkIsWaitedFor",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a lost reply is settled by a standby", breaks: honest,
		edits: []edit{{resolveFile, "case lock.Locked && !lock.ReadOnly:", "case lock.Locked:"}},
		test:  "TestLostReplyIsNotResolvedByAStandby",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a lost commit runs again though its answer may have expired", breaks: honest,
		edits: []edit{{resolveFile, "time.Since(sent) < r.params.TTL", "time.Since(sent) >= 0"}},
		test:  "TestLostReplyToACommitThatExpired",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "its own commit looks like another's", breaks: honest,
		edits: []edit{{resolveFile, "case found.completed() && found.ClaimID == uuid(r.claimID):", "case found != nil && found.ClaimID == uuid(r.claimID) && found.LockedUntil.Valid:"}},
		test:  "TestLostReplyToCommitIsResolved/committed",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "unknown is reported as failed", breaks: honest,
		edits: []edit{{resolveFile, `fmt.Errorf("%w: call again with the same key: %w", idempotency.ErrOutcomeUnknown, cause)`, `fmt.Errorf("call again with the same key: %w", cause)`}},
		test:  "TestUnresolvedCommitIsSettledByTheNextCall",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "failed is reported as unknown", breaks: honest,
		edits: []edit{{"txhelper/error.go", `return severity == "ERROR" &&`, `return severity == "LOG" &&`}},
		test:  "TestRunEnds",
		pkg:   "txhelper",
	},
	{
		name: "a FATAL reply to COMMIT is taken for definite", breaks: honest,
		edits: []edit{{"txhelper/error.go", `return severity == "ERROR" &&`, `return severity != "" &&`}},
		test:  "TestRunOnAConnectionEndedInCommit",
		pkg:   "txhelper",
	},
	{
		name: "a lost commit is run again, if that is asked for", breaks: once,
		edits: []edit{{"txhelper/run.go", "if _, ambiguous := errors.AsType[*AmbiguousCommitError](err); ambiguous || !withDefaults.Retryable(err) {", "if _, ambiguous := errors.AsType[*AmbiguousCommitError](err); ambiguous && attempt > 1 || !withDefaults.Retryable(err) {"}},
		test:  "TestLostReplyThroughAWrappedPool",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "the caller's cancellation interrupts COMMIT", breaks: honest,
		edits: []edit{{txFile, "\tctx = context.WithoutCancel(ctx)\n\tbatch", "\tbatch"}},
		test:  "TestCommitOutlivesItsCaller",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a lost connection fails a fresh call", breaks: honest,
		edits: []edit{{txFile, "if t.conn.IsClosed() && ctx.Err() == nil {", "if t.conn.IsClosed() && ctx.Err() != nil {"}},
		test:  "TestConnectionLostBeforeBeginIsReplaced",
		pkg:   "idempotency/pgxstore",
	},

	// Whoever ends the transaction.
	{
		name: "a function commits the transaction of Do", breaks: together,
		edits: []edit{{"txhelper/tx.go", "\tif tx.parent != nil {\n\t\treturn tx.Note(tx.Tx.Commit(ctx))", "\tif tx.parent != tx {\n\t\treturn tx.Note(tx.Tx.Commit(ctx))"}},
		test:  "TestRunRefusesToCommit",
		pkg:   "txhelper",
	},
	{
		name: "no rollback after a panic", breaks: neutral,
		edits: []edit{
			{runFile, "\tdefer transaction.Rollback(ctx)\n\n\tif lookInside", "\tdone := true\n\tdefer func() {\n\t\tif done {\n\t\t\ttransaction.Rollback(ctx)\n\t\t}\n\t}()\n\n\tif lookInside"},
			{runFile, "\tanswer, err := r.call(ctx, transaction, fn)\n", "\tdone = false\n\tanswer, err := r.call(ctx, transaction, fn)\n\tdone = true\n"},
		},
		test: "TestGoexitAndPanicFreeTheKey",
		pkg:  "idempotency/pgxstore",
	},
	{
		name: "rollback under the cancelled context", breaks: neutral,
		edits: []edit{{txFile, "ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.options.RollbackTimeout)", "ctx, cancel := context.WithTimeout(ctx, t.options.RollbackTimeout)"}},
		test:  "TestRunWithACancelledContext",
		pkg:   "txhelper",
	},
	{
		name: "a connection is not given back", breaks: neutral,
		edits: []edit{{txFile, "\tdefer t.borrowed.Release()\n", "\tif t.nested {\n\t\tdefer t.borrowed.Release()\n\t}\n"}},
		test:  "TestGoexitAndPanicFreeTheKey",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a key may be begun inside its own Do", breaks: honest,
		edits: []edit{{"idempotency/nesting.go", "if h.settings == s && h.key == key &&", "if h.settings == nil && h.key == key &&"}},
		test:  "TestNestedDoOnTheSameKey",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a key may be begun on its own Do's transaction", breaks: once,
		edits: []edit{{verbsFile, "if runKey(v.tx) == params.Key {", "if runKey(v.tx).ID == params.Key.Scope {"}},
		test:  "TestNestedBeginOnTheOperationsTransaction",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a batch may have its own Do's key", breaks: once,
		edits: []edit{{batchFile, "if runKey(v.tx) == p.Key {", "if runKey(v.tx).ID == p.Key.Scope {"}},
		test:  "TestBatchOwnAndStrayKeys",
		pkg:   "idempotency/pgxstore",
	},

	// The answer.
	{
		name: "a codec is named error", breaks: honest,
		edits: []edit{{"idempotency/codec.go", "case name+typeSeparator == TypeErrorPrefix, name == TypeNone,", "case name == TypeNone,"}},
		test:  "TestNewClientRefusesWhatCannotWork/codec error", pkg: "idempotency",
	},
	{
		name: "a type has a name that no record can have", breaks: noRerun,
		edits: []edit{{"idempotency/codec.go", "case name == \"\" || !isText(name):", "case name == \"\":"}},
		test:  "TestResultTypes/a name that could not be recorded is refused before anything runs",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a final error loses its reason", breaks: faithful,
		edits: []edit{{"idempotency/final.go", "if fmt.Sprint(recorded) != fmt.Sprint(found) {", "if recorded == nil {"}},
		test:  "TestFinalErrorThatItsCodecChanges", pkg: "idempotency",
	},
	{
		name: "an error beside a final one is dropped", breaks: honest,
		edits: []edit{{"idempotency/final.go", "\t\t\tif mark == nil {\n\t\t\t\treturn nil\n\t\t\t}\n", ""}},
		test:  "TestFinalJoinedWithAnotherError", pkg: "idempotency",
	},
	{
		name: "an unlisted final error is the business error, too", breaks: honest,
		edits: []edit{{"idempotency/final.go", "nothing was recorded of the %T: add", "nothing was recorded of the %w: add"}},
		test:  "TestUnlistedFinalErrorSaysWhatToList", pkg: "idempotency",
	},
	{
		name: "a tracer is not told that the function did not return", breaks: honest,
		edits: []edit{{"idempotency/operation.go", "o.state, replayed, err = 0, false, ErrNotReturned", "o.state, replayed = 0, false"}},
		test:  "TestTracerOfAFunctionThatDoesNotReturn", pkg: "idempotency",
	},
	{
		name: "jsonb instead of bytes", breaks: faithful,
		edits: []edit{
			{schema, "    response bytea,", "    response jsonb,"},
			{query + "KeyInsertCompleted", "        @response::bytea,", "        convert_from(@response::bytea, 'UTF8')::jsonb,"},
			{query + "KeyGet", "    response,", "    convert_to(response::text, 'UTF8')::bytea AS response,"},
		},
		test: "TestResultTypes/bytes and raw JSON are untouched",
		pkg:  "idempotency/pgxstore",
	},
	{
		name: "the effect of a final error stays", breaks: together,
		edits: []edit{{"idempotency/final.go", "Body: body}, UndoWrites: true}", "Body: body}, UndoWrites: false}"}},
		test:  "TestFinalErrorIsRecordedOnce",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a final error that is not listed is recorded", breaks: honest,
		edits: []edit{{"idempotency/final.go", "\treturn Answer{}, &KeyError{Key: key, Err: fmt.Errorf(\"%w: nothing was recorded", "\tif true {\n\t\treturn Answer{&Response{Type: TypeErrorPrefix + \"other\"}, true}, nil\n\t}\n\treturn Answer{}, &KeyError{Key: key, Err: fmt.Errorf(\"%w: nothing was recorded"}},
		test:  "TestUnlistedFinalErrorRollsBackAndSaysSo",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a call whose reply was lost says that it did not run", breaks: honest,
		edits: []edit{{"idempotency/pgxstore/resolve.go", "Record: record, Executed: true}", "Record: record}"}},
		test:  "TestLostReplyToCommitIsResolved/committed",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a transaction without a key runs again after a lost commit", breaks: once,
		edits: []edit{{"idempotency/pgxstore/transact.go", "return fmt.Errorf(\"%w: %w\", idempotency.ErrOutcomeUnknown, err)", "return fmt.Errorf(\"%w: %w\", idempotency.ErrOutcomeUnknown, &leftNothingError{cause: err})"}},
		test:  "TestTransactThatLosesTheReplyToItsCommit/committed",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a transaction without a key may be idle for ever", breaks: unstuck,
		edits: []edit{{"idempotency/pgxstore/transact.go", "if s.idleSetting.Valid {", "if s.idleSetting.Valid && batch == nil {"}},
		test:  "TestFlightsAndStatements",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "the configuration tells the secret", breaks: secret,
		edits: []edit{{"idempotency/settings.go", "s.KeySecret = nil", "_ = s"}},
		test:  "TestConfigOfAClient", pkg: "idempotency",
	},
	{
		name: "an answer that nobody can read is committed", breaks: faithful,
		edits: []edit{{"idempotency/do.go", "if a.givenErr != nil && !isFinal(a.givenErr) {", "if a.givenErr != nil && isFinal(a.givenErr) && answer.Response == nil {"}},
		test:  "TestAnswerThatCannotBeReadBackRollsBack",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "the first caller is told of another expiry than the next", breaks: faithful,
		edits: []edit{{runFile, "r.params.TTL.Truncate(time.Microsecond)", "r.params.TTL.Truncate(1)"}},
		test:  contract + "run executes once and replays",
	},
	{
		name: "any type is decoded from the answer", breaks: faithful,
		edits: []edit{{"idempotency/codec.go", "if response.Type != c.typeName {", "if response.Type == \"\" {"}},
		test:  "TestResultTypes",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "an answer of any size is recorded", breaks: bounded,
		edits: []edit{{"idempotency/settings.go", "answer.Response.validateSize(s.MaxResponseSize)", "answer.Response.validateSize(1 << 30)"}},
		test:  "TestResponseOverTheLimitRollsBack",
		pkg:   "idempotency/pgxstore",
	},

	// The gate.
	{
		name: "every duplicate asks the store", breaks: bounded,
		edits: []edit{{gateFile, "turn: !q.asking}", "turn: true}"}},
		test:  "TestDuplicatesOfOneProcessShareOneAnswer", pkg: "idempotency",
	},
	{
		name: "in progress, by evidence older than the call", breaks: noRerun,
		edits: []edit{{gateFile, "if over && q.lookedAt.After(p.came) {", "if over && !q.lookedAt.IsZero() {"}},
		test:  "TestInProgressIsNoOlderThanTheCall", pkg: "idempotency",
	},
	{
		name: "nobody is woken when the key is freed", breaks: bounded,
		edits: []edit{{gateFile, "} else if p.ran {", "} else if p.ran && p.turn {"}},
		test:  "TestNextInLineRunsWhenTheKeyIsFreed", pkg: "idempotency",
	},
	{
		name: "duplicates share a record", breaks: faithful,
		edits: []edit{{gateFile, "Record: answer.share()}", "Record: answer}"}},
		test:  "TestDuplicatesOfOneProcessShareOneAnswer", pkg: "idempotency",
	},
	{
		name: "a call and its duplicates share the bytes of its answer", breaks: faithful,
		edits: []edit{{gateFile, "record.Clone(), goodAt, true", "record, goodAt, true"}},
		test:  "TestDuplicatesOfOneProcessShareOneAnswer", pkg: "idempotency",
	},
	{
		name: "each duplicate copies the answer", breaks: bounded,
		edits: []edit{{gateFile, "Record: answer.share()}", "Record: answer.Clone()}"}},
		test:  "TestSharedAnswerIsNotCopied", pkg: "idempotency",
	},
	{
		name: "any number of duplicates decode an answer at once", breaks: bounded,
		edits: []edit{{budgetFile, "for b.used.Load()+size > b.max {", "for size > b.max {"}},
		test:  "TestSharedAnswersHaveABudget/room for two", pkg: "idempotency",
	},
	{
		name: "an answer that is larger than the budget is never shared", breaks: unstuck,
		edits: []edit{{budgetFile, "size := min(int64(bytes), b.max)", "size := int64(bytes)"}},
		test:  "TestSharedAnswersHaveABudget/less than one", pkg: "idempotency",
	},
	{
		name: "the end of a wait walks the line", breaks: bounded,
		edits: []edit{{gateFile, "\tp.queue.line.Remove(p.place)\n", "\tfor place := p.queue.line.Front(); place != nil; place = place.Next() {\n\t}\n\tp.queue.line.Remove(p.place)\n"}},
		test:  "TestEndOfAWaitCostsTheSameInACrowd", pkg: "idempotency",
	},
	{
		name: "every look wakes everybody who waits", breaks: bounded,
		edits: []edit{{gateFile, "\tif !over {\n", "\tif false {\n"}},
		test:  "TestWaitsEndingTogether/cancelled", pkg: "idempotency",
	},
	{
		name: "the last to come is the next", breaks: bounded,
		edits: []edit{{gateFile, "p.queue.line.PushBack(p)", "p.queue.line.PushFront(p)"}},
		test:  "TestTurnsAreInTheOrderOfTheCalls", pkg: "idempotency",
	},
	{
		name: "any number of duplicates may wait", breaks: bounded,
		edits: []edit{{gateFile, "if waiters >= int64(g.maxWaiters) {", "if waiters < 0 {"}},
		test:  "TestMoreWaitersThanAllowed", pkg: "idempotency",
	},
	{
		name: "those who have left count as waiting", breaks: neutral,
		edits: []edit{{gateFile, "\tp.queue.gate.waiters.Add(-1)\n", ""}},
		test:  "TestMoreWaitersThanAllowed", pkg: "idempotency",
	},
	{
		name: "a call that runs keeps its turn", breaks: bounded,
		edits: []edit{{gateFile, "\tp.ran = true\n\tp.giveTurn()\n", "\tp.ran = true\n"}},
		test:  "TestWaitEndsInTime", pkg: "idempotency",
	},
	{
		name: "an answer is shared with a call that came after it", breaks: retention,
		edits: []edit{{gateFile, "\tif p.came.After(q.goodAt) {\n", "\tif q.goodAt.IsZero() {\n"}},
		test:  "TestSharedAnswerIsNoOlderThanTheCall", pkg: "idempotency",
	},
	{
		name: "an answer is shared past row-level security", breaks: apart,
		edits: []edit{{gateFile, "\tif q.gate.perCaller {\n", "\tif false {\n"}},
		test:  "TestRowLevelSecurityWallsOffWaitingCalls",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "schemas chosen by settings wait for each other", breaks: apart,
		edits: []edit{{gateFile, "wanted.namespace, err = g.namespace(ctx)", "_, err = g.namespace(ctx)"}},
		test:  "TestSchemasOfSettingsDoNotWaitForEachOther",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "the settings of a request part its duplicates", breaks: bounded,
		edits: []edit{{"idempotency/pgxstore/setting.go", `lower == "search_path" || lower == "role"`, `lower != ""`}},
		test:  "TestStormOfDuplicates/in one process, each with settings",
	},
	{
		name: "a reason to ask again is lost", breaks: unstuck,
		edits: []edit{{gateFile, "make(chan struct{}, 1)", "make(chan struct{})"}},
		test:  "TestReasonToAskAgainIsNotLost", pkg: "idempotency",
	},

	// Batches.
	{
		name: "a batch in the order of its params", breaks: unstuck,
		edits: []edit{{"idempotency/batch.go", "return cmp.Or(strings.Compare(a.Key.Scope, b.Key.Scope), strings.Compare(a.Key.ID, b.Key.ID))", "return cmp.Or(strings.Compare(a.Key.Scope, b.Key.Scope), 0*strings.Compare(a.Key.ID, b.Key.ID))"}},
		test:  "TestOverlappingBatchesDoNotDeadlock",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a key twice in a batch is claimed twice", breaks: once,
		edits: []edit{{"idempotency/batch.go", "\t\tif item.repeats != nil {\n\t\t\tcontinue\n\t\t}\n\t\tfirsts", "\t\titem.repeats = nil\n\t\tfirsts"}},
		test:  contract + "a batch keeps the order of its params and gives repeats the first answer",
	},
	{
		name: "a batch waits for rows that others hold", breaks: bounded,
		edits: []edit{{query + "KeyReclaimMany", "SKIP LOCKED", ""}},
		test:  "TestBatchAgainstRivalsForExpiredKeys",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "whoever waits for the table is said to wait for a key", breaks: honest,
		edits: []edit{{batchFile, "if waitedForKey(err) {", "if waitedForKey(err) || b.hints {"}},
		test:  "TestBatchThatWaitsForTheTable",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a batch leaves its lock_timeout behind", breaks: neutral,
		edits: []edit{{query + "KeyClaimedMany", "'samecommit.lock_timeout'", "'lock_timeout'"}},
		test:  "TestBatchBesideALargeOne",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a batch's lock_timeout outlives its transaction", breaks: neutral,
		edits: []edit{{query + "KeyBeginMany", "THEN @lock_timeout::text END,\n        true", "THEN @lock_timeout::text END,\n        false"}},
		test:  "TestBatchSettingsEndWithTheTransaction",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a batch that waited too long aborts its caller", breaks: unstuck,
		edits: []edit{
			{batchFile, `flight.Queue("SAVEPOINT samecommit_batch")`, `flight.Queue("SELECT 1")`},
			{batchFile, `flight.Queue("RELEASE SAVEPOINT samecommit_batch")`, `flight.Queue("SELECT 1")`},
			{batchFile, `"ROLLBACK TO SAVEPOINT samecommit_batch; RELEASE SAVEPOINT samecommit_batch"`, `""`},
		},
		test: "TestBatchBesideALargeOne",
		pkg:  "idempotency/pgxstore",
	},
	{
		name: "a large batch takes a lock for each key", breaks: bounded,
		edits: []edit{{batchFile, "const maxHints = 100\n", "const maxHints = 1_000_000\n"}},
		test:  "TestBatchOfTenThousandKeys",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a large batch ignores the locks of others", breaks: bounded,
		edits: []edit{{query + "KeyClaimMany", "ELSE wanted.lock_id NOT IN", "ELSE wanted.lock_id IS NOT NULL OR wanted.lock_id NOT IN"}},
		test:  "TestBatchOfTenThousandKeys",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a replayed batch takes locks", breaks: bounded,
		edits: []edit{{query + "KeyClaimMany", "WHEN (SELECT true", "WHEN (SELECT false"}},
		test:  "TestBatchReplayWritesNothing",
		pkg:   "idempotency/pgxstore",
	},

	// Settings.
	{
		name: "settings outlive their transaction", breaks: apart,
		edits: []edit{{query + "SetLocal", "true", "false"}},
		test:  "TestRowLevelSecurityRecipe",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "the idle timeout outlives its transaction", breaks: neutral,
		edits: []edit{{query + "KeyTryLock", "current_setting('idle_in_transaction_session_timeout')),\n        true", "current_setting('idle_in_transaction_session_timeout')),\n        false"}},
		test:  "TestIdleTimeoutEndsWithTheTransaction",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "no idle timeout", breaks: unstuck,
		edits: []edit{{storeFile, "\tif timeout < 0 {\n", "\tif timeout > -2 {\n"}},
		test:  "TestIdleTimeoutEndsWithTheTransaction",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "the sweep is sent without settings", breaks: apart,
		edits: []edit{{sweepFile, "\tqueue(batch)\n", "\tqueue(&pgx.Batch{})\n"}},
		test:  "TestSweepUnderRowLevelSecurity",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "Get is sent without settings", breaks: apart,
		edits: []edit{{storeFile, "record, found = s.get(ctx, q, key)", "record, found = (&Store{queries: s.queries}).get(ctx, q.(*settingQuerier).base.(sender), key)"}},
		test:  "TestRowLevelSecurityRecipe",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "the look after a failure is sent without settings", breaks: apart,
		edits: []edit{{runFile, "\tfound, err := r.store.lookUpAlone(ctx, r.params.Key)\n", "\tfound, err := (&Store{db: r.store.db, direct: r.store.direct, queries: r.store.queries}).lookUpAlone(ctx, r.params.Key)\n"}},
		test:  "TestRowLevelSecurityRecipe",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "the look before SERIALIZABLE is sent without settings", breaks: apart,
		edits: []edit{{runFile, "r.seen, err = r.store.lookUpAlone(ctx, r.params.Key)", "r.seen, err = (&Store{db: r.store.db, direct: r.store.direct, queries: r.store.queries}).lookUpAlone(ctx, r.params.Key)"}},
		test:  "TestRowLevelSecurityRecipe",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a refused setting is printed", breaks: secret,
		edits: []edit{{"idempotency/pgxstore/setting.go", "its value and the right to set it\", name, pgErr.Code)", "its value and the right to set it: %s\", name, pgErr.Code, pgErr.Message)"}},
		test:  "TestRefusedSettingIsNamedWithoutItsValue",
		pkg:   "idempotency/pgxstore",
	},

	// Leases and clocks.
	{
		name: "a completion that was not sent lets the work commit", breaks: fenced,
		edits: []edit{{verbsFile, "txStatus(v.tx) != 'T'", "txStatus(v.tx) == 'T'"}},
		test:  "TestCompletionThatWasNotSentCannotCommit",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a lease is taken over, whatever it became", breaks: fenced,
		edits: []edit{
			{query + "KeyReclaim", "claim_id = @seen_claim_id::uuid", "@seen_claim_id::uuid IS NOT NULL"},
			{query + "KeyReclaim", "expires_at IS NOT DISTINCT FROM sqlc.narg('seen_expires_at')::timestamptz", "sqlc.narg('seen_expires_at')::timestamptz IS NULL IS NOT NULL"},
			{query + "KeyReclaim", "locked_until IS NOT DISTINCT FROM sqlc.narg('seen_locked_until')::timestamptz", "sqlc.narg('seen_locked_until')::timestamptz IS NULL IS NOT NULL"},
		},
		test: "TestTakeoverComparesTheRow",
		pkg:  "idempotency/pgxstore",
	},
	{
		name: "a lease that ends now is still held", breaks: unstuck,
		edits: []edit{{"idempotency/record.go", "r.LockedUntil.After(now)", "!r.LockedUntil.Before(now)"}},
		test:  "TestLeaseOfHours", pkg: "idempotency/memstore",
	},
	{
		name: "a lease does not hold", breaks: fenced,
		edits: []edit{{"idempotency/record.go", "r.LockedUntil.After(now)", "r.LockedUntil.Before(now)"}},
		test:  "TestStoreContract/new then in progress then completed replay",
	},
	{
		name: "an unfinished key reads as free", breaks: honest,
		edits: []edit{{recordFile, "return r != nil && r.Unfinished.Valid", "return r != nil && r.Unfinished.Valid && r.ExpiresAt.Valid"}},
		test:  contract + "an own key begun again is nested",
	},
	{
		name: "a lease of no time", breaks: fenced,
		edits: []edit{{"idempotency/beginparams.go", "case lease < time.Millisecond:", "case lease < 0:"}},
		test:  "TestStoreContract/bad parameters are refused by name",
	},
	{
		name: "leases end by the program's clock", breaks: fenced,
		edits: []edit{{recordFile, "return record.Judge(params, r.ReadAt.Time)", "return record.Judge(params, time.Now())"}},
		test:  "TestDatabasesClockDecides",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "answers expire by the program's clock", breaks: retention,
		edits: []edit{{recordFile, "r.ExpiresAt.Time.After(r.ReadAt.Time)", "r.ExpiresAt.Time.After(time.Now())"}},
		test:  "TestDatabasesClockDecides",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a look at the time the transaction began", breaks: retention,
		edits: []edit{{query + "KeyGet", "statement_timestamp()::timestamptz AS read_at", "now()::timestamptz AS read_at"}},
		test:  "TestTimeOfALongTransaction",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "the TTL counts from the transaction's begin", breaks: retention,
		edits: []edit{{query + "KeyComplete", "statement_timestamp() + @ttl", "now() + @ttl"}},
		test:  "TestTimeOfALongTransaction",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "the holder's deadline is after the lease's", breaks: fenced,
		edits: []edit{{verbsFile, "claim.Deadline = start.Add(params.Lease)", "claim.Deadline = start.Add(params.Lease + time.Minute)"}},
		test:  "TestStoreContract/the holder's deadline is counted from before the claim",
	},

	// Expiry and the sweep.
	{
		name: "an expired answer replays", breaks: retention,
		edits: []edit{{"idempotency/record.go", "case r == nil || r.Expired(now) || r.State", "case r == nil || r.State"}},
		test:  "TestTimeOfALongTransaction",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "an expired answer can be read", breaks: retention,
		edits: []edit{{recordFile, "return r.completed() && r.ExpiresAt.Time.After(r.ReadAt.Time)", "return r.completed()"}},
		test:  "TestDatabasesClockDecides",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "the sweep deletes what is in progress", breaks: retention,
		edits: []edit{
			{query + "KeyDeleteExpired", "WHERE k.expires_at < statement_timestamp()\n            AND k.expires_at >= ", "WHERE coalesce(k.expires_at, k.locked_until) < statement_timestamp()\n            AND coalesce(k.expires_at, k.locked_until) >= "},
			{query + "KeyDeleteExpired", "        AND expires_at < statement_timestamp()\n", ""},
		},
		test: "TestStoreContract/delete expired keeps live answers and keys in progress",
	},
	{
		name: "the sweep deletes live answers", breaks: retention,
		edits: []edit{
			{query + "KeyDeleteExpired", "WHERE k.expires_at < statement_timestamp()", "WHERE k.expires_at > '-infinity'"},
			{query + "KeyDeleteExpired", "        AND expires_at < statement_timestamp()\n", ""},
		},
		test: "TestStoreContract/delete expired keeps live answers and keys in progress",
	},
	{
		name: "the sweep takes everything at once", breaks: bounded,
		edits: []edit{{query + "KeyDeleteExpired", "LIMIT @max_rows", "LIMIT 1000 * @max_rows::integer"}},
		test:  "TestStoreContract/delete expired takes the oldest first and honours its limit",
	},
	{
		name: "the sweep takes the youngest first", breaks: retention,
		edits: []edit{{query + "KeyDeleteExpired", "ORDER BY k.expires_at", "ORDER BY k.expires_at DESC"}},
		test:  "TestStoreContract/delete expired takes the oldest first and honours its limit",
	},
	{
		name: "the sweep waits for a row that is claimed again", breaks: bounded,
		edits: []edit{{query + "KeyDeleteExpired", "SKIP LOCKED", ""}},
		test:  "TestSweepLeavesLockedRowsAlone",
		pkg:   "idempotency/pgxstore",
	},

	// The schema.
	{
		name: "UNLOGGED", breaks: keeps,
		edits: []edit{{schema, "CREATE TABLE idempotency_keys (", "CREATE UNLOGGED TABLE idempotency_keys ("}},
		test:  "TestSchemaSurvivesCrashesAndUpgrades",
		pkg:   "migrations",
	},
	{
		name: "keys in the collation of the database", breaks: once,
		edits: []edit{{schema, `idempotency_name AS text COLLATE "C"`, `idempotency_name AS text`}},
		test:  "TestSchemaSurvivesCrashesAndUpgrades",
		pkg:   "migrations",
	},
	{
		name: "an index on what every write changes", breaks: bounded,
		edits: []edit{{schema, "ON idempotency_keys (expires_at)\n", "ON idempotency_keys (expires_at, updated_at)\n"}},
		test:  "TestSchemaGolden",
		pkg:   "migrations",
	},
	{
		name: "the guard acts before the commit", breaks: everywhere,
		edits: []edit{{schema, "DEFERRABLE INITIALLY DEFERRED", "NOT DEFERRABLE"}},
		test:  "TestUnfinishedRowCannotCommit",
		pkg:   "migrations",
	},
	{
		name: "migrations run beside each other", breaks: upgrade,
		edits: []edit{{"migrations/migrate.go", "\t\tgoose.WithSessionLocker(locker),\n", "\t\tgoose.WithVerbose(locker == nil),\n"}},
		test:  "TestMigrateUpTakesTurns",
		pkg:   "migrations",
	},
	{
		name: "a search_path without a schema goes unsaid", breaks: honest,
		edits: []edit{{"migrations/schema.go", "\tcase p.created == \"\":", "\tcase p.created == \"\" && p.temporary:"}},
		test:  "TestMigrateWithoutASchema",
		pkg:   "migrations",
	},
	{
		name: "an empty table in front of the one with the keys", breaks: once,
		edits: []edit{{"migrations/schema.go", "\tcase p.keys != \"\" && p.keys != p.created:", "\tcase p.keys != \"\" && p.created == \"\":"}},
		test:  "TestMigrateUpInFrontOfATable/made by the application",
		pkg:   "migrations",
	},
	{
		name: "tables in front of the version table", breaks: once,
		edits: []edit{{"migrations/schema.go", "\tcase p.version != \"\":", "\tcase p.version != \"\" && p.created == \"\":"}},
		test:  "TestMigrateUpInFrontOfAVersionTable",
		pkg:   "migrations",
	},
	{
		name: "a temporary table passes for the real one", breaks: once,
		edits: []edit{{"migrations/schema.go", "\tcase p.temporary:", "\tcase p.temporary && p.created == \"\":"}},
		test:  "TestMigrateUpBehindATemporaryTable",
		pkg:   "migrations",
	},
	{
		name: "migrations share the application's table", breaks: upgrade,
		edits: []edit{{"migrations/migrate.go", "goose.WithTableName(VersionTable)", "goose.WithTableName(goose.DefaultTablename)"}},
		test:  "TestMigrateLeavesTheApplicationsGooseAlone",
		pkg:   "migrations",
	},

	// The test kit.
	{
		name: "statements are told apart by their values", breaks: honest,
		edits: []edit{{kitFile, "text := withoutValues(message.Statement)", "text := message.Statement"}},
		test:  "TestKitPassesCorrectHandlers/another order",
		pkg:   "idempotency/idempotencytest",
	},
	{
		name: "what hooks send is cut", breaks: honest,
		edits: []edit{{kitFile, "\tif message.Starting {", "\tif message.Starting && message.Type == 0 {"}},
		test:  "TestKitKeepsThePoolsSettings",
		pkg:   "idempotency/idempotencytest",
	},
	{
		name: "nobody asks for a key that is gone", breaks: honest,
		edits: []edit{{"idempotency/idempotencytest/run.go", "if n := r.effects(t, key); !n.all(r.want()) {\n\t\tt.Errorf(\"idempotencytest: %s after a call", "if n := r.effects(t, key); n.least() < 1 {\n\t\tt.Errorf(\"idempotencytest: %s after a call"}},
		test:  "TestKitFindsMistakes/a key that is forgotten",
		pkg:   "idempotency/idempotencytest",
	},
	{
		name: "a kind of effect that is missing passes", breaks: together,
		edits: []edit{{"idempotency/idempotencytest/run.go", "case n.least() < r.want():", "case n.most() < r.want():"}},
		test:  "TestKitFindsMistakes/one of two effects beside the transaction",
		pkg:   "idempotency/idempotencytest",
	},
	{
		name: "another request continues leased work", breaks: sameRequest,
		edits: []edit{{"idempotency/record.go", "case !params.Fingerprint.Matches(r.Fingerprint):", "case r.State == Completed && !params.Fingerprint.Matches(r.Fingerprint):"}},
		test:  "TestStoreContract/a leased key refuses another request",
	},
	{
		name: "a suspended attempt counts", breaks: unstuck,
		edits: []edit{{"idempotency/record.go", "case r.isOf(id) || r.Suspended():", "case r.isOf(id):"}},
		test:  "TestStoreContract/a suspended key is taken over at once, as the same attempt",
	},
	{
		name: "attempts are not bounded", breaks: bounded,
		edits: []edit{{"idempotency/record.go", "case params.MaxAttempts > 0 &&", "case params.MaxAttempts < 0 &&"}},
		test:  "TestStoreContract/attempts are bounded",
	},
	{
		name: "a claim without a lease continues leased work", breaks: once,
		edits: []edit{{"idempotency/record.go", "case params.Lease == 0 && (", "case params.Lease < 0 && ("}},
		test:  contract + "a claim without a lease does not continue leased work",
	},
	{
		name: "a claim begun again with its own id is a rival", breaks: unstuck,
		edits: []edit{{"idempotency/record.go", "\tcase r.isOf(params.ClaimID):\n", ""}},
		test:  "TestStoreContract/a claim begun again with its own id is the same one",
	},
	{
		name: "a zombie adds a step", breaks: fenced,
		edits: []edit{{query + "KeyAddStep", "claim_id = @claim_id::uuid", "@claim_id::uuid IS NOT NULL"}},
		test:  "TestStoreContract/a step of a lost claim is refused",
	},
	{
		name: "a step is recorded twice", breaks: once,
		edits: []edit{{query + "KeyAddStep", "('name', @name::text)", "('name', concat(@name::text, ' '))"}},
		test:  "TestStoreContract/the first step of a name stays",
	},
	{
		name: "a step undoes a suspension", breaks: unstuck,
		edits: []edit{{query + "KeyAddStep", "WHEN locked_until = updated_at THEN updated_at", "WHEN false THEN updated_at"}},
		test:  "TestStoreContract/a step of a suspended key leaves it suspended",
	},
	{
		name: "the effect of a zombie's step commits", breaks: together,
		edits: []edit{{"idempotency/pgxstore/verbs.go", "\t\tv.abort(ctx)\n\t}\n\treturn err\n", "\t\t_ = ctx\n\t}\n\treturn err\n"}},
		test:  contract + "a step of a lost claim cannot commit",
	},
	{
		name: "a step that came meanwhile is passed over by a transaction", breaks: once,
		edits: []edit{{query + "KeyReclaim", "AND (steps IS NULL OR sqlc.narg('lease')::interval IS NOT NULL)", ""}},
		test:  "TestStepBesideATakeover/Begin in a transaction beside a step",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a step that came meanwhile is passed over by a batch", breaks: once,
		edits: []edit{
			{query + "KeyReclaimMany", "OR k.steps IS NOT NULL THEN false", "THEN false"},
			{query + "KeyReclaimMany", "AND k.steps IS NULL;", ";"},
		},
		test: "TestStepBesideATakeover/BeginMany beside a step",
		pkg:  "idempotency/pgxstore",
	},
	{
		name: "a step that came meanwhile is passed over by Do", breaks: once,
		edits: []edit{{query + "KeyReplaceCompleted", "AND k.steps IS NULL", ""}},
		test:  "TestStepBesideATakeover/Do beside a step",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a takeover forgets a step that came meanwhile", breaks: once,
		edits: []edit{{"idempotency/pgxstore/verbs.go", "parseSteps(again.Steps)", "parseSteps(seen.Steps)"}},
		test:  "TestStepBesideATakeover/Begin under a lease beside a step",
		pkg:   "idempotency/pgxstore",
	},
	{
		name: "a failure deletes what has done something", breaks: once,
		edits: []edit{{"idempotency/lease.go", "\tif acted {\n", "\tif acted && false {\n"}},
		test:  "TestDoLeasedContinues", pkg: "idempotency",
	},
	{
		name: "only a later attempt may have run", breaks: honest,
		edits: []edit{{"idempotency/step.go", "MayHaveRun: lease.first.Resumed", "MayHaveRun: lease.first.Attempt > 1"}},
		test:  "TestDoLeasedContinues", pkg: "idempotency",
	},
	{
		name: "a step that nobody asks for is passed over", breaks: honest,
		edits: []edit{{"idempotency/doleased.go", "\t\terr = lease.finish()\n", "\t\t_ = lease.finish()\n"}},
		test:  "TestChangedSteps", pkg: "idempotency",
	},
	{
		name: "renewal gives up at the first error", breaks: unstuck,
		edits: []edit{{"idempotency/lease.go", "pause = length / 10", "pause = length"}},
		test:  "TestLeaseIsRenewed", pkg: "idempotency",
	},
	{
		name: "late is lost", breaks: unstuck,
		edits: []edit{{"idempotency/doleased.go", "\tif err == nil {\n\t\terr = lease.finish()", "\tif err == nil {\n\t\terr = context.Cause(inside)\n\t}\n\tif err == nil {\n\t\terr = lease.finish()"}},
		test:  "TestLeaseThatCannotBeRenewed", pkg: "idempotency",
	},
	{
		name: "a lost reply to a completion is an unknown outcome", breaks: honest,
		edits: []edit{{"idempotency/lease.go", "case getErr == nil && found.ClaimID == l.first.ID && found.State == Completed:", "case getErr == nil && found.ClaimID == l.first.ID && found.State == New:"}},
		test:  "TestRepliesOfLeasedWorkAreLost/Complete", pkg: "idempotency",
	},
	{
		name: "a lost reply to a claim is asked for under another id", breaks: unstuck,
		edits: []edit{
			{"idempotency/doleased.go", "\t\toutcome, err := o.client.store.Begin(ctx, &o.begin)", "\t\to.begin.ClaimID = NewClaimID()\n\t\toutcome, err := o.client.store.Begin(ctx, &o.begin)"},
		},
		test: "TestRepliesOfLeasedWorkAreLost/Begin", pkg: "idempotency",
	},
	{
		name: "a step starts after the lease's end", breaks: once,
		edits: []edit{{"idempotency/step.go", "case !time.Now().Before(l.deadline):", "case time.Now().IsZero():"}},
		test:  "TestLeaseThatCannotBeRenewed", pkg: "idempotency",
	},
	{
		name: "work that hangs is renewed for ever", breaks: unstuck,
		edits: []edit{{"idempotency/doleased.go", "lease.end(lease.keyError(ErrHoldExceeded))", "_ = lease.keyError(ErrHoldExceeded)"}},
		test:  "TestMaxHold", pkg: "idempotency",
	},
	{
		name: "a step starts after the function has returned", breaks: once,
		edits: []edit{{"idempotency/step.go", "case l.over != nil:", "case l.over != nil && l.first == nil:"}},
		test:  "TestStepAfterTheFunctionHasReturned", pkg: "idempotency",
	},
	{
		name: "a claim that was given up stays", breaks: unstuck,
		edits: []edit{{"idempotency/doleased.go", "_ = o.client.store.Suspend(ctx, &Claim{Key: o.begin.Key, ID: o.begin.ClaimID})", "_ = ctx"}},
		test:  "TestClaimThatIsGivenUp/by its caller", pkg: "idempotency",
	},
	{
		name: "a renewal waits for one answer until the end", breaks: unstuck,
		edits: []edit{{"idempotency/lease.go", "max(length/6, MinLease/6)", "max(length, MinLease/6)"}},
		test:  "TestRenewalThatHangs", pkg: "idempotency",
	},
	{
		name: "steps of another program pass for a refusal", breaks: sameRequest,
		edits: []edit{{"idempotency/lease.go", "if l.changed != nil {", "if l.changed != nil && l.first == nil {"}},
		test:  "TestChangedStepsThatAreSwallowed", pkg: "idempotency",
	},
	{
		name: "a late extension undoes a suspension", breaks: unstuck,
		edits: []edit{{query + "KeyExtend", "locked_until <> updated_at", "locked_until IS NOT NULL"}},
		test:  "TestStoreContract/a late extension does not undo a suspension",
	},
	{
		name: "who compares nothing makes leased work anybody's", breaks: sameRequest,
		edits: []edit{{"idempotency/record.go", "r.State == InProgress && params.Lease > 0 &&", "r.State == Completed && params.Lease > 0 &&"}},
		test:  "TestStoreContract/who compares nothing leaves leased work its request",
	},
	{
		name: "a lost claim still runs", breaks: fenced,
		edits: []edit{{heldFile, "if lost = errors.Is(err, pgx.ErrNoRows); lost {", "if errors.Is(err, pgx.ErrNoRows) {"}},
		test:  contract + "run held does not execute under a lost claim",
	},
	{
		name: "leased work is committed beside who is at work", breaks: bounded,
		edits: []edit{{heldFile, "\t\t\t_ = r.store.queries.KeyLock(ctx, txhelper.Queue(batch, nil), &db.KeyLockParams{LockID: lockID(r.claim.Key)})\n", ""}},
		test:  "TestRunHeldWaitsForWhoIsAtWork", pkg: "idempotency/pgxstore",
	},
	{
		name: "leased work commits what another transaction has done", breaks: together,
		edits: []edit{{heldFile, "\t\t_ = r.store.queries.KeyCheckBegan(ctx, txhelper.Queue(batch, nil), &db.KeyCheckBeganParams{ClaimID: uuid(r.claim.ID)})\n", ""}},
		test:  "TestEndingTheTransactionInsideDoExternal", pkg: "idempotency/pgxstore",
	},
	{
		name: "a refusal of leased work commits its writes", breaks: together,
		edits: []edit{{heldFile, "if answer.UndoWrites {", "if answer.UndoWrites && lost {"}, {heldFile, "\tanswer, err := r.call(ctx, transaction, fn)\n", "\tlost := false\n\tanswer, err := r.call(ctx, transaction, fn)\n"}},
		test:  contract + "run held undoes the writes and records the response",
	},
	{
		name: "a refusal is recorded over writes that are committed", breaks: together,
		edits: []edit{{runFile, "says(err, beganText) && !says(err, uuid(r.claimID).String()) {\n\t\treturn txhelper.ErrEnded", "says(err, beganText) && !says(err, uuid(r.claimID).String()) {\n\t\treturn nil"}},
		test:  "TestRawCommitBeforeAnError", pkg: "idempotency/pgxstore",
	},
	{
		name: "a commit that left nothing passes for one of leased work", breaks: together,
		edits: []edit{{resolveFile, "case found.completed() && found.ClaimID", "case found != nil && found.ClaimID"}},
		test:  "TestLostReplyToCommitIsResolved/DoExternal, not committed", pkg: "idempotency/pgxstore",
	},
	{
		name: "a lease is renewed while its transaction has the row", breaks: unstuck,
		edits: []edit{{"idempotency/doleased.go", "\t\tstop() // a renewal would wait for the row of the key\n", ""}},
		test:  "TestDoExternalDoesNotRenewWhileItCommits", pkg: "idempotency",
	},
	{
		name: "work that somebody is at is listed as abandoned", breaks: honest,
		edits: []edit{{query + "KeyListAbandoned", "\n    AND locked_until <= statement_timestamp()", ""}},
		test:  "TestStoreContract/list abandoned finds what nobody is at, oldest first",
	},
	{
		name: "each renewal leaves an entry in an index", breaks: bounded,
		edits: []edit{{schema, "WHERE expires_at IS NULL AND unfinished IS NULL;", "WHERE locked_until IS NOT NULL;"}},
		test:  "TestRenewalIsAHeapOnlyUpdate", pkg: "idempotency/pgxstore",
	},

	// Redis.
	{
		name: "Redis: a claim overwrites who has come meanwhile", breaks: fenced,
		edits: []edit{{redisScripts + "take.lua", "redis.sha1hex(value) ~= ARGV[1]", "false"}},
		test:  "TestStore/of concurrent takeovers of an ended lease one gets the claim", pkg: "idempotency/redisstore",
	},
	{
		name: "Redis: a zombie changes the record", breaks: fenced,
		edits: []edit{{redisScripts + "prelude.lua", "fields[2] ~= 'leased' or fields[3] ~= claim", "fields[2] ~= 'leased'"}},
		test:  "TestStore/a step of a lost claim is refused", pkg: "idempotency/redisstore",
	},
	{
		name: "Redis: a completion does not know itself", breaks: honest,
		edits: []edit{{redisScripts + "complete.lua", "fields[4] == ARGV[2] and", "false and"}},
		test:  "TestLostReplies/Complete, 3 retries", pkg: "idempotency/redisstore",
	},
	{
		name: "Redis: any completion knows itself", breaks: fenced,
		edits: []edit{{redisScripts + "complete.lua", "fields[4] == ARGV[2] and", "true and"}},
		test:  "TestSecondCompletionIsRefused", pkg: "idempotency/redisstore",
	},
	{
		name: "Redis: what has begun cannot end in a full memory", breaks: unstuck,
		edits: []edit{{redisScripts + "complete.lua", "redis.call('PERSIST', key)\n", ""}},
		test:  "TestFullMemory", pkg: "idempotency/redisstore",
	},
	{
		name: "Redis: a claim that no replica has is new", breaks: fenced,
		edits: []edit{{"idempotency/redisstore/store.go", "found.claimed != nil && !replicated", "found.claimed != nil && !replicated && own.TTL == 0"}},
		test:  "TestFailover/waited for", pkg: "idempotency/redisstore",
	},
	{
		name: "Redis: a policy that evicts passes", breaks: honest,
		edits: []edit{{"idempotency/redisstore/check.go", "policy != \"noeviction\"", "policy == \"\""}},
		test:  "TestCheck", pkg: "idempotency/redisstore",
	},
	{
		name: "Redis: the client's text chooses the node", breaks: secret,
		edits: []edit{{"idempotency/redisstore/store.go", "return s.config.Prefix + base64", "return s.config.Prefix + key.ID + base64"}},
		test:  "TestRedisKey", pkg: "idempotency/redisstore",
	},
	{
		name: "MongoDB: a takeover overwrites who has come meanwhile", breaks: fenced,
		edits: []edit{{mongoFile, "		{Key: \"claim\", Value: binaryClaim(before.ClaimID)},\n		{Key: \"v\", Value: version},\n", ""}},
		test:  "TestStore/of concurrent takeovers of an ended lease one gets the claim", pkg: mongoFolder,
	},
	{
		name: "MongoDB: a zombie changes the record", breaks: fenced,
		edits: []edit{{mongoFile, "		{Key: \"claim\", Value: binaryClaim(claim.ID)},\n		{Key: \"state\"", "		{Key: \"state\""}},
		test:  "TestStore/a step of a lost claim is refused", pkg: mongoFolder,
	},
	{
		name: "MongoDB: a completed record is completed again", breaks: keeps,
		edits: []edit{{mongoFile, "		{Key: \"state\", Value: stateLeased},\n	}, more...)", "	}, more...)"}},
		test:  "TestStore/completing twice is an error and keeps the first answer", pkg: mongoFolder,
	},
	{
		name: "MongoDB: a key that is taken is new again", breaks: once,
		edits: []edit{{mongoFile, "{Key: \"_id\", Value: newID(own.Key)}, {Key: \"v\", Value: int64(0)}}", "{Key: \"_id\", Value: newID(own.Key)}}"}},
		test:  "TestStore/concurrent begins of one key give one claim", pkg: mongoFolder,
	},
	{
		name: "MongoDB: the caller's client decides how safe a write is", breaks: keeps,
		edits: []edit{{mongoFile, "SetWriteConcern(writeconcern.Majority()).", "SetWriteConcern(writeconcern.W1())."}},
		test:  "TestCommandsAreOfAMajority", pkg: mongoFolder,
	},
	{
		name: "MongoDB: an answer goes before its expiry", breaks: retention,
		edits: []edit{{mongoFolder + "/sweep.go", "if completed.GC.Time().Sub(want).Abs() <= gcTolerance {", "if completed.GC > 0 {"}},
		test:  "TestTimeOfDeletion", pkg: mongoFolder,
	},
	{
		name: "MongoDB: what runs may be deleted", breaks: retention,
		edits: []edit{{mongoFile, ", {Key: \"gc\", Value: \"\"},", ","}},
		test:  "TestRunningKeyIsNeverDeleted", pkg: mongoFolder,
	},
	{
		name: "MongoDB: a late extension undoes a suspension", breaks: unstuck,
		edits: []edit{{mongoFile, "held(claim, bson.E{Key: \"suspended\", Value: bson.D{{Key: \"$exists\", Value: false}}}), bson.D{", "held(claim), bson.D{"}},
		test:  "TestStore/a late extension does not undo a suspension", pkg: mongoFolder,
	},
	{
		name: "MongoDB: a step that is there is a claim lost", breaks: honest,
		edits: []edit{{mongoFile, "if err == nil && !recorded {", "if err == nil && !recorded && claim == nil {"}},
		test:  "TestStore/the first step of a name stays", pkg: mongoFolder,
	},
	{
		name: "MongoDB: an error has the server's words", breaks: secret,
		edits: []edit{{mongoFolder + "/error.go", "	answered := &serverError{doing: doing, codes", "	answered := &serverError{doing: doing + err.Error(), codes"}},
		test:  "TestErrorsKeepTheKey", pkg: mongoFolder,
	},
	{
		name: "MongoDB: work without its answer may commit", breaks: together,
		edits: []edit{{mongoFolder + "/session.go", "if err != nil && v.session != nil", "if err == nil && v.session != nil"}},
		test:  "TestErrorEndsTheTransaction", pkg: mongoFolder,
	},
	{
		name: "MongoDB: the session of a context is used", breaks: noRerun,
		edits: []edit{{mongoFolder + "/session.go", "return mongo.NewSessionContext(ctx, nil) }", "return ctx }"}},
		test:  "TestVerbsOutsideOfTransactions", pkg: mongoFolder,
	},
	{
		name: "MongoDB: the longest lease has ended", breaks: fenced,
		edits: []edit{{mongoFolder + "/document.go", "	whole := int64(duration / time.Millisecond)\n", "	whole := int64((duration + time.Millisecond - 1) / time.Millisecond)\n"}},
		test:  "TestStore/a lease and a TTL as long as can be are kept", pkg: mongoFolder,
	},
	{
		name: "HTTP: the key is free after a 4xx", breaks: noRerun,
		edits: []edit{{httpFolder + "/outcome.go", "	return Record\n", "	return Release\n"}},
		test:  "TestStatusDecides/HTTP 1.1", pkg: httpFolder,
	},
	{
		name: "HTTP: a cookie is recorded", breaks: secret,
		edits: []edit{{httpFolder + "/message.go", "\"Vary\",\n}", "\"Vary\", \"Set-Cookie\",\n}"}},
		test:  "TestHeadersOfAReplay/HTTP 1.1", pkg: httpFolder,
	},
	{
		name: "HTTP: the scope is left out", breaks: apart,
		edits: []edit{{httpFolder + "/middleware.go", "strings.Clone(scope), ID", "strings.Clone(m.Header), ID"}},
		test:  "TestScopes", pkg: httpFolder,
	},
	{
		name: "HTTP: the key is the request's own text", breaks: apart,
		edits: []edit{{httpFolder + "/middleware.go", "ID: strings.Clone(key)", "ID: key"}},
		test:  "TestTextOfARequestIsNotKept", pkg: httpFolder,
	},
	{
		name: "HTTP: the fingerprint has no body", breaks: sameRequest,
		edits: []edit{{httpFolder + "/fingerprint.go", "string(digest[:]))", "string(digest[:0]))"}},
		test:  "TestAnotherRequestIsRefused/HTTP 1.1", pkg: httpFolder,
	},
	{
		name: "HTTP: a rerun gets a consumed body", breaks: once,
		edits: []edit{{httpFolder + "/middleware.go", "	request := withBody(c.request.Clone(ctx), c.body)\n", "	request := withBody(c.request.Clone(ctx), c.body)\n	c.body = nil\n"}},
		test:  "TestHandlersThatDeadlock", pkg: httpFolder,
	},
	{
		name: "HTTP: the answer goes out before the commit", breaks: keeps,
		edits: []edit{{httpFolder + "/middleware.go", "	c.last = answer\n", "	c.last = answer\n	answer.send(c.outside, c.request, c.ReplayedHeader)\n"}},
		test:  "TestSuccessThatCannotCommit", pkg: httpFolder,
	},
	{
		name: "HTTP: a run that was undone answers for itself", breaks: honest,
		edits: []edit{{httpFolder + "/middleware.go", "	case outcome.Executed:\n", "	case outcome.Executed || c.last != nil:\n"}},
		test:  "TestAnswerOfAnotherCall", pkg: httpFolder,
	},
	{
		name: "HTTP: a lost commit is told as nothing done", breaks: honest,
		edits: []edit{{httpFolder + "/problem.go", "	if errors.Is(err, idempotency.ErrOutcomeUnknown) { // also", "	if errors.Is(err, idempotency.ErrOutcomeUnknown) && !errors.Is(err, errTimeout) { // also"}},
		test:  "TestTimeoutOfACommit", pkg: httpFolder,
	},
	{
		name: "HTTP: a form of the fingerprint's leaves files", breaks: bounded,
		edits: []edit{{httpFolder + "/config.go", "			defer removeFiles(request)\n", ""}},
		test:  "TestFilesOfAForm", pkg: httpFolder,
	},
	{
		name: "HTTP: a handler that wrote nothing has answered 200", breaks: honest,
		edits: []edit{{httpFolder + "/writer.go", "		return nil, errNothingWritten\n", "		w.status, w.sent = http.StatusOK, w.Header().Clone()\n"}},
		test:  "TestHandlersThatFail/wrote nothing", pkg: httpFolder,
	},
	{
		name: "HTTP: a replay looks like a fresh answer", breaks: honest,
		edits: []edit{{httpFolder + "/middleware.go", "header.Set(c.ReplayedHeader, \"true\")", "header.Del(c.ReplayedHeader)"}},
		test:  "TestHeadersOfAReplay/HTTP 1.1", pkg: httpFolder,
	},
	{
		name: "HTTP: the client's goodbye ends the work", breaks: unstuck,
		edits: []edit{{httpFolder + "/config.go", "if !s.StopWithClient {", "if s.StopWithClient && s.Timeout < 0 {"}},
		test:  "TestClientThatGivesUp/StopWithClient false/HTTP 1.1", pkg: httpFolder,
	},
	{
		name: "HTTP: bodies that wait are not bounded", breaks: bounded,
		edits: []edit{{httpFolder + "/body.go", "> s.of.most {", "> s.of.most && size < 0 {"}},
		test:  "TestMaxBodies", pkg: httpFolder,
	},
	{
		name: "HTTP client: a 409 is asked for again", breaks: honest,
		edits: []edit{{httpFolder + "/retry.go", "		return running\n", "		return running || response != nil\n"}},
		test:  "TestShouldRetryResponses", pkg: httpFolder,
	},
	{
		name: "HTTP client: each try has a key of its own", breaks: once,
		edits: []edit{{httpFolder + "/transport.go", "			try.Header.Set(name, made)\n", "			try.Header.Set(name, NewKey())\n"}},
		test:  "TestTransportSendsOneKeyForAllTries", pkg: httpFolder,
	},
	{
		name: "HTTP client: retries have no budget", breaks: bounded,
		edits: []edit{{httpFolder + "/budget.go", "	if (b.missing+9)/10 >= size {", "	if (b.missing+9)/10 >= 100*size {"}},
		test:  "TestTransportBudget", pkg: httpFolder,
	},

	// database/sql.
	{
		name: "sqlstore: a function's Commit is not refused", breaks: honest,
		edits: []edit{{sqlFolder + "/lenttx.go", "return e.tx.Commit(context.Background())", "return nil"}},
		test:  "TestMisuseInsideDo/Commit ignored", pkg: sqlFolder,
	},
	{
		name: "sqlstore: a function's Rollback is not refused", breaks: together,
		edits: []edit{{sqlFolder + "/lenttx.go", "return e.tx.Rollback(context.Background())", "return nil"}},
		test:  "TestMisuseInsideDo/Rollback ignored", pkg: sqlFolder,
	},
	{
		name: "sqlstore: the caller's context ends the lent transaction", breaks: honest,
		edits: []edit{{sqlFolder + "/lenttx.go", "db.BeginTx(context.WithoutCancel(ctx), nil)", "db.BeginTx(ctx, nil)"}},
		test:  "TestCancelDoesNotRollBackBehindTheFunction", pkg: sqlFolder,
	},
	{
		name: "sqlstore: a broken connection goes back to the pool", breaks: neutral,
		edits: []edit{{sqlFolder + "/lender.go", "return driver.ErrBadConn // the pool drops it", "return nil"}},
		test:  "TestBrokenConnectionLeavesThePool", pkg: sqlFolder,
	},
	{
		name: "sqlstore: rows may stay open in Do", breaks: honest,
		edits: []edit{{sqlFolder + "/lenttx.go", "if l.openRows.Load() > 0 {", "if l.openRows.Load() > 1000 {"}},
		test:  "TestMisuseInsideDo/rows left open", pkg: sqlFolder,
	},
	{
		name: "sqlstore: a failure that rows meet is forgotten", breaks: honest,
		edits: []edit{{sqlFolder + "/lentrows.go", "!errors.Is(err, io.EOF) {", "errors.Is(err, io.EOF) {"}, {sqlFolder + "/lentrows.go", "return r.tx.Note(r.Rows.Close())", "return r.Rows.Close()"}},
		test:  "TestSwallowedSerializationFailureRunsAgain/Rows.Next", pkg: sqlFolder,
	},
	{
		name: "sqlstore: a failure that a prepared statement meets is forgotten", breaks: honest,
		edits: []edit{{sqlFolder + "/lenttx.go", "execer.ExecContext(ctx, args)\n\t\treturn s.tx.Note(err)", "execer.ExecContext(ctx, args)\n\t\treturn err"}},
		test:  "TestSwallowedSerializationFailureRunsAgain/a prepared statement's Exec", pkg: sqlFolder,
	},
	{
		name: "sqlstore: open rows look like a lost connection", breaks: honest,
		edits: []edit{{sqlFolder + "/callertx.go", "	}\n	return txhelper.ErrRowsOpen\n", "	}\n	return txhelper.ErrLostBeforeCommit\n"}},
		test:  "TestMisuseInsideDoTx/rows left open", pkg: sqlFolder,
	},
	{
		name: "sqlstore: what rows keep from being undone is committed", breaks: together,
		edits: []edit{{sqlFolder + "/callertx.go", "return conn.Close(ctx)", "return nil"}},
		test:  "TestErrorWithRowsOpenUndoesTheWrites", pkg: sqlFolder,
	},
	{
		name: "sqlstore: another driver gets statements", breaks: honest,
		edits: []edit{{"idempotency/pgxstore/verbs.go", "	if err := foreign.Look(checkEncoding); err != nil {\n", "	if err := foreign.Look(checkEncoding); err != nil && v.looked.Load() {\n"}},
		test:  "TestOtherDriver/strict", pkg: sqlFolder,
	},
}

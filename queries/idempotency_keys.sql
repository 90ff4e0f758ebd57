-- The protocol that these statements serve is in docs/design.md, part "What the
-- database does". Time is the database's, per statement: now() would be the
-- start of the transaction, long before a claim that waited.

-- name: KeyTryLock :one
-- A hint that saves waiting and wasted work, never the truth. The table's oid
-- keeps apart the tables of two schemas, wherever search_path finds this one.
-- Whether a write can follow is told before the work is done. The claim id is
-- left with this transaction, so that KeyInsertCompleted and
-- KeyReplaceCompleted can tell that it is still the same one. It is appended,
-- for a Run inside the transaction of another.
SELECT
    pg_try_advisory_xact_lock(@lock_id::bigint # 'idempotency_keys'::regclass::oid::bigint) AS locked,
    current_setting('transaction_read_only')::boolean AS read_only,
    set_config(
        'samecommit.claim_ids',
        concat(current_setting('samecommit.claim_ids', true), ' ', @claim_id::uuid),
        true
    ) AS claim_ids,
    set_config(
        'idle_in_transaction_session_timeout',
        coalesce(sqlc.narg('idle_timeout')::text, current_setting('idle_in_transaction_session_timeout')),
        true
    ) AS idle_timeout;

-- name: KeyGet :one
SELECT
    status,
    claim_id,
    attempt,
    fingerprint,
    response,
    response_type,
    created_at,
    updated_at,
    locked_until,
    expires_at,
    unfinished,
    statement_timestamp()::timestamptz AS read_at
FROM idempotency_keys
WHERE scope = @scope
    AND id = @id;

-- name: KeyInsertCompleted :one
-- No ON CONFLICT: the loser of a race must raise (23505), so that the server
-- skips the COMMIT behind this statement. A status that is no number (22P02)
-- means that the transaction which did the work has already ended.
INSERT INTO idempotency_keys (
    scope,
    id,
    status,
    claim_id,
    attempt,
    fingerprint,
    response,
    response_type,
    created_at,
    updated_at,
    expires_at
) VALUES (
    @scope,
    @id,
    CAST(CASE WHEN strpos(current_setting('samecommit.claim_ids', true), (@claim_id::uuid)::text) > 0
        THEN '2' ELSE 'the transaction that did the work has ended' END AS smallint),
    @claim_id,
    1,
    @fingerprint,
    @response,
    @response_type::text,
    statement_timestamp(),
    statement_timestamp(),
    statement_timestamp() + @ttl::interval
)
RETURNING
    created_at,
    updated_at,
    expires_at::timestamptz AS expires_at;

-- name: KeyReplaceCompleted :one
-- The row that was seen had expired, or its lease had. If it has changed since,
-- the division by zero (22012) makes the server skip the COMMIT behind this
-- statement. claim_id alone would not do: completion and extension keep it.
INSERT INTO idempotency_keys AS k (
    scope,
    id,
    status,
    claim_id,
    attempt,
    fingerprint,
    response,
    response_type,
    created_at,
    updated_at,
    expires_at
) VALUES (
    @scope,
    @id,
    CAST(CASE WHEN strpos(current_setting('samecommit.claim_ids', true), (@claim_id::uuid)::text) > 0
        THEN '2' ELSE 'the transaction that did the work has ended' END AS smallint),
    @claim_id,
    @attempt,
    @fingerprint,
    @response,
    @response_type::text,
    statement_timestamp(),
    statement_timestamp(),
    statement_timestamp() + @ttl::interval
)
ON CONFLICT (scope, id) DO UPDATE SET
    status = EXCLUDED.status / CASE
        WHEN k.claim_id = @seen_claim_id::uuid
            AND k.status = @seen_status::smallint
            AND k.locked_until IS NOT DISTINCT FROM sqlc.narg('seen_locked_until')::timestamptz
        THEN 1 ELSE 0 END,
    claim_id = EXCLUDED.claim_id,
    attempt = EXCLUDED.attempt,
    fingerprint = EXCLUDED.fingerprint,
    response = EXCLUDED.response,
    response_type = EXCLUDED.response_type,
    created_at = EXCLUDED.created_at,
    updated_at = EXCLUDED.updated_at,
    locked_until = NULL,
    expires_at = EXCLUDED.expires_at,
    unfinished = NULL
RETURNING
    created_at,
    updated_at,
    expires_at::timestamptz AS expires_at;

-- name: KeyClaim :one
-- Claims a key that has no row. The lock is tried only where no row is visible:
-- otherwise a bystander's open transaction would pin the key. No row back means
-- that a row is there, or that another transaction is at work.
INSERT INTO idempotency_keys (
    scope,
    id,
    status,
    claim_id,
    attempt,
    fingerprint,
    created_at,
    updated_at,
    locked_until,
    unfinished
)
SELECT
    @scope,
    @id,
    1,
    @claim_id::uuid,
    1,
    @fingerprint::bytea,
    statement_timestamp(),
    statement_timestamp(),
    statement_timestamp() + sqlc.narg('lease')::interval,
    CASE WHEN sqlc.narg('lease')::interval IS NULL THEN 1 END
WHERE CASE
    WHEN EXISTS (SELECT FROM idempotency_keys AS k WHERE k.scope = @scope AND k.id = @id) THEN false
    ELSE pg_try_advisory_xact_lock(@lock_id::bigint # 'idempotency_keys'::regclass::oid::bigint)
END
ON CONFLICT (scope, id) DO NOTHING
RETURNING
    attempt,
    created_at,
    updated_at,
    locked_until;

-- name: KeyReclaim :one
-- Claims a key whose row was seen expired, or whose lease was. No row back
-- means that the row has changed since, or that another transaction holds it.
UPDATE idempotency_keys
SET
    status = 1,
    claim_id = @claim_id::uuid,
    attempt = CASE WHEN status = 1 THEN attempt + 1 ELSE 1 END,
    fingerprint = @fingerprint::bytea,
    response = NULL,
    response_type = NULL,
    created_at = statement_timestamp(),
    updated_at = statement_timestamp(),
    locked_until = statement_timestamp() + sqlc.narg('lease')::interval,
    expires_at = NULL,
    unfinished = CASE WHEN sqlc.narg('lease')::interval IS NULL THEN 1 END
WHERE scope = @scope
    AND id = @id
    AND claim_id = @seen_claim_id::uuid
    AND status = @seen_status::smallint
    AND locked_until IS NOT DISTINCT FROM sqlc.narg('seen_locked_until')::timestamptz
    AND pg_try_advisory_xact_lock(@lock_id::bigint # 'idempotency_keys'::regclass::oid::bigint)
RETURNING
    attempt,
    created_at,
    updated_at,
    locked_until;

-- name: KeyComplete :one
-- A claim that is no longer held divides by zero (22012), which aborts the
-- transaction: a caller that ignores the error cannot commit the effect alone.
WITH completed AS (
    UPDATE idempotency_keys
    SET
        status = 2,
        response = @response,
        response_type = @response_type::text,
        updated_at = statement_timestamp(),
        locked_until = NULL,
        expires_at = statement_timestamp() + @ttl::interval,
        unfinished = NULL
    WHERE scope = @scope
        AND id = @id
        AND claim_id = @claim_id
        AND status = 1
    RETURNING
        attempt,
        fingerprint,
        created_at,
        updated_at,
        expires_at
)
SELECT
    (1 / count(*))::integer AS completed,
    coalesce(max(attempt), 0)::integer AS attempt,
    coalesce((array_agg(fingerprint))[1], '')::bytea AS fingerprint,
    coalesce(max(created_at), '-infinity')::timestamptz AS created_at,
    coalesce(max(updated_at), '-infinity')::timestamptz AS updated_at,
    coalesce(max(expires_at), '-infinity')::timestamptz AS expires_at
FROM completed;

-- name: KeyExtend :one
UPDATE idempotency_keys
SET
    updated_at = statement_timestamp(),
    locked_until = statement_timestamp() + @lease::interval
WHERE scope = @scope
    AND id = @id
    AND claim_id = @claim_id
    AND status = 1
    AND locked_until IS NOT NULL
RETURNING locked_until;

-- name: KeyRelease :execrows
DELETE FROM idempotency_keys
WHERE scope = @scope
    AND id = @id
    AND claim_id = @claim_id
    AND status = 1
    AND locked_until IS NOT NULL;

-- name: KeyIsOwn :one
-- Whether this very transaction began the key: then it holds the lock, which
-- KeyClaim and KeyReclaim took with the row and a savepoint gives up with it, or
-- has the claim id that KeyBeginMany left. An unfinished row with neither has
-- slipped past the guard, with triggers off.
SELECT (
    coalesce(strpos(current_setting('samecommit.claim_ids', true), (@claim_id::uuid)::text), 0) > 0
    OR EXISTS (
        SELECT
        FROM pg_catalog.pg_locks
        WHERE locktype = 'advisory'
            AND pid = pg_backend_pid()
            AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
            AND classid = (((@lock_id::bigint # 'idempotency_keys'::regclass::oid::bigint) >> 32) & 4294967295)::oid
            AND objid = ((@lock_id::bigint # 'idempotency_keys'::regclass::oid::bigint) & 4294967295)::oid
            AND objsubid = 1
    )
)::boolean AS own;

-- name: KeyDeleteExpired :execrows
-- SKIP LOCKED: a row that somebody is claiming again is not waited for. In a
-- WITH, because a subquery could be run once per row and so exceed its LIMIT.
-- The condition is repeated outside, where the row is read again under its lock.
WITH expired AS MATERIALIZED (
    SELECT
        scope,
        id
    FROM idempotency_keys
    WHERE status = 2
        AND expires_at < statement_timestamp()
    ORDER BY expires_at
    LIMIT @max_rows
    FOR UPDATE
    SKIP LOCKED
)
DELETE FROM idempotency_keys AS k
USING expired
WHERE k.scope = expired.scope
    AND k.id = expired.id
    AND k.status = 2
    AND k.expires_at < statement_timestamp();

-- name: KeyBeginMany :exec
-- Goes before KeyClaimMany in one savepoint. The claim id is left with the
-- transaction and, like the rows, given up with a savepoint: so that KeyGetMany
-- knows the batch's own keys. The inner set_config keeps the lock_timeout for
-- KeyClaimedMany, before the outer one replaces it.
SELECT
    set_config(
        'samecommit.claim_ids',
        concat(current_setting('samecommit.claim_ids', true), ' ', @claim_id::uuid),
        true
    ) AS claim_ids,
    set_config(
        'lock_timeout',
        CASE WHEN set_config('samecommit.lock_timeout', current_setting('lock_timeout'), true) IS NOT NULL
            THEN @lock_timeout::text END,
        true
    ) AS lock_timeout;

-- name: KeyClaimMany :execrows
-- KeyClaim for many keys under one claim id, in ascending order: with ON
-- CONFLICT it waits for another open transaction that has inserted a key without
-- taking the hint, and where all wait in one order none waits in a circle.
-- Without hints of its own, as one lock each would fill the lock table, a batch
-- leaves alone what others hold a hint for.
INSERT INTO idempotency_keys (
    scope,
    id,
    status,
    claim_id,
    attempt,
    fingerprint,
    created_at,
    updated_at,
    unfinished
)
SELECT
    wanted.scope,
    wanted.id,
    1,
    @claim_id::uuid,
    1,
    wanted.fingerprint,
    statement_timestamp(),
    statement_timestamp(),
    1
FROM (
    SELECT
        unnest(@scopes::text[]) AS scope,
        unnest(@ids::text[]) AS id,
        unnest(@fingerprints::bytea[]) AS fingerprint,
        unnest(@lock_ids::bigint[]) # 'idempotency_keys'::regclass::oid::bigint AS lock_id,
        generate_subscripts(@ids::text[], 1) AS place
) AS wanted
WHERE CASE
    WHEN EXISTS (SELECT FROM idempotency_keys AS k WHERE k.scope = wanted.scope AND k.id = wanted.id) THEN false
    WHEN @hints::boolean THEN pg_try_advisory_xact_lock(wanted.lock_id)
    ELSE wanted.lock_id NOT IN (
        SELECT (classid::bigint << 32) | objid::bigint
        FROM pg_catalog.pg_locks
        WHERE locktype = 'advisory'
            AND objsubid = 1
            AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
            AND pid IS DISTINCT FROM pg_backend_pid()
    )
END
ORDER BY wanted.place
ON CONFLICT (scope, id) DO NOTHING;

-- name: KeyClaimedMany :exec
SELECT set_config('lock_timeout', current_setting('samecommit.lock_timeout'), true);

-- name: KeyGetMany :many
-- place counts from 1. own is as in KeyIsOwn.
SELECT
    wanted.place::integer AS place,
    k.status,
    k.claim_id,
    k.attempt,
    k.fingerprint,
    k.response,
    k.response_type,
    k.created_at,
    k.updated_at,
    k.locked_until,
    k.expires_at,
    k.unfinished,
    statement_timestamp()::timestamptz AS read_at,
    (CASE WHEN k.unfinished IS NOT NULL THEN
        coalesce(strpos(current_setting('samecommit.claim_ids', true), k.claim_id::text), 0) > 0
        OR wanted.lock_id IN (
            SELECT (classid::bigint << 32) | objid::bigint
            FROM pg_catalog.pg_locks
            WHERE locktype = 'advisory'
                AND objsubid = 1
                AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
                AND pid = pg_backend_pid()
        )
    ELSE false END)::boolean AS own
FROM (
    SELECT
        unnest(@scopes::text[]) AS scope,
        unnest(@ids::text[]) AS id,
        unnest(@lock_ids::bigint[]) # 'idempotency_keys'::regclass::oid::bigint AS lock_id,
        generate_subscripts(@ids::text[], 1) AS place
) AS wanted
INNER JOIN idempotency_keys AS k
    ON k.scope = wanted.scope AND k.id = wanted.id;

-- name: KeyReclaimMany :execrows
-- KeyReclaim for many keys under one claim id. It waits for nobody: a row that
-- another transaction has locked is left alone. The condition is repeated
-- outside, where the row is read again under its lock. No lease is year 1, Go's
-- zero time: arrays of sqlc's have no NULLs.
WITH seen AS (
    SELECT
        unnest(@scopes::text[]) AS scope,
        unnest(@ids::text[]) AS id,
        unnest(@fingerprints::bytea[]) AS fingerprint,
        unnest(@lock_ids::bigint[]) # 'idempotency_keys'::regclass::oid::bigint AS lock_id,
        unnest(@seen_claim_ids::uuid[]) AS claim_id,
        unnest(@seen_statuses::smallint[]) AS status,
        nullif(unnest(@seen_locked_untils::timestamptz[]), '0001-01-01 00:00:00+00') AS locked_until
),

taken AS MATERIALIZED (
    SELECT
        seen.scope,
        seen.id,
        seen.fingerprint,
        seen.claim_id,
        seen.status,
        seen.locked_until
    FROM seen
    INNER JOIN idempotency_keys AS k
        ON k.scope = seen.scope AND k.id = seen.id
    WHERE CASE
        WHEN k.claim_id <> seen.claim_id OR k.status <> seen.status OR k.locked_until IS DISTINCT FROM seen.locked_until THEN false
        WHEN @hints::boolean THEN pg_try_advisory_xact_lock(seen.lock_id)
        ELSE seen.lock_id NOT IN (
            SELECT (classid::bigint << 32) | objid::bigint
            FROM pg_catalog.pg_locks
            WHERE locktype = 'advisory'
                AND objsubid = 1
                AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
                AND pid IS DISTINCT FROM pg_backend_pid()
        )
    END
    FOR UPDATE OF k
    SKIP LOCKED
)

UPDATE idempotency_keys AS k
SET
    status = 1,
    claim_id = @claim_id::uuid,
    attempt = CASE WHEN k.status = 1 THEN k.attempt + 1 ELSE 1 END,
    fingerprint = taken.fingerprint,
    response = NULL,
    response_type = NULL,
    created_at = statement_timestamp(),
    updated_at = statement_timestamp(),
    locked_until = NULL,
    expires_at = NULL,
    unfinished = 1
FROM taken
WHERE k.scope = taken.scope
    AND k.id = taken.id
    AND k.claim_id = taken.claim_id
    AND k.status = taken.status
    AND k.locked_until IS NOT DISTINCT FROM taken.locked_until;

-- name: KeyCompleteMany :many
-- KeyComplete for many claims: it divides by zero unless every row was updated.
-- LEFT JOIN, so that it does where none was.
WITH answers AS (
    SELECT
        unnest(@scopes::text[]) AS scope,
        unnest(@ids::text[]) AS id,
        unnest(@claim_ids::uuid[]) AS claim_id,
        unnest(@responses::bytea[]) AS response,
        unnest(@response_types::text[]) AS response_type,
        unnest(@ttl_microseconds::bigint[]) * interval '1 microsecond' AS ttl,
        generate_subscripts(@ids::text[], 1) AS place
),

completed AS (
    UPDATE idempotency_keys AS k
    SET
        status = 2,
        response = answers.response,
        response_type = answers.response_type,
        updated_at = statement_timestamp(),
        locked_until = NULL,
        expires_at = statement_timestamp() + answers.ttl,
        unfinished = NULL
    FROM answers
    WHERE k.scope = answers.scope
        AND k.id = answers.id
        AND k.claim_id = answers.claim_id
        AND k.status = 1
    RETURNING
        answers.place,
        k.attempt,
        k.fingerprint,
        k.created_at,
        k.updated_at,
        k.expires_at
)

SELECT
    completed.place::integer AS place,
    completed.attempt::integer AS attempt,
    completed.fingerprint::bytea AS fingerprint,
    completed.created_at::timestamptz AS created_at,
    completed.updated_at::timestamptz AS updated_at,
    completed.expires_at::timestamptz AS expires_at
FROM (
    SELECT 1 / (CASE WHEN count(*) = cardinality(@ids::text[]) THEN 1 ELSE 0 END) AS all_of_them
    FROM completed
) AS checked
LEFT JOIN completed
    ON checked.all_of_them = 1;

-- name: SetLocal :exec
-- To the end of the transaction, so that a pooled connection does not carry it
-- to its next user.
SELECT set_config(@name::text, @value::text, true);

-- name: ConfirmDurable :exec
-- Writes to the log, so that its commit waits for a synchronous standby: once it
-- has committed, so has, on the standby too, whatever was visible before. A
-- transaction that may not wait for one, by its settings, waits all the same: the
-- one that is confirmed may have been told to.
SELECT
    set_config(
        'synchronous_commit',
        CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END,
        true
    ) AS synchronous_commit,
    pg_logical_emit_message(true, 'samecommit', ''::text) AS message;

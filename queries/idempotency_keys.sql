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
-- KeyClaim and KeyReclaim took with the row and a savepoint gives up with it. An
-- unfinished row without the lock has slipped past the guard, with triggers off.
SELECT EXISTS (
    SELECT
    FROM pg_catalog.pg_locks
    WHERE locktype = 'advisory'
        AND pid = pg_backend_pid()
        AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
        AND classid = (((@lock_id::bigint # 'idempotency_keys'::regclass::oid::bigint) >> 32) & 4294967295)::oid
        AND objid = ((@lock_id::bigint # 'idempotency_keys'::regclass::oid::bigint) & 4294967295)::oid
        AND objsubid = 1
) AS own;

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

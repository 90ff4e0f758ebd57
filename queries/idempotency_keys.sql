-- The protocol that these statements serve is in docs/design.md, part "What the
-- database does". Time is the database's, per statement: now() would be the
-- start of the transaction, long before a claim that waited.
--
-- The state of a row is which one of expires_at (completed), locked_until
-- (leased) and unfinished (begun in a transaction) is set.
--
-- Where a statement must fail on purpose, so that the server skips what is
-- behind it in the same flight, it casts a text that is no number (22P02), which
-- says why, or divides by zero (22012).
--
-- Results are cast to the types behind our domains: each schema has domains of its
-- own, and a prepared statement may not change the types of its result with
-- search_path (0A000).
--
-- The table's oid as text, with the colons around it, is in parentheses so that
-- the planner makes one constant of it.

-- name: KeyTryLock :one
-- A hint that saves waiting and wasted work, never the truth. The table's oid
-- keeps apart the tables of two schemas, wherever search_path finds this one.
-- Whether a write can follow is told before the work is done. A temporary table
-- of that name would end with the session, and its keys with it.
--
-- The claim id, the table and the lock are left with this transaction, so that
-- KeyInsertCompleted and KeyReplaceCompleted can tell that it is still the same
-- one and finds the same table, and KeyClaim that the key is this transaction's
-- own. They are appended, for a Run inside the transaction of another.
SELECT
    pg_try_advisory_xact_lock(@lock_id::bigint # 'idempotency_keys'::regclass::oid::bigint) AS locked,
    (current_setting('transaction_read_only') = 'on')::boolean AS read_only,
    (current_setting('transaction_isolation') = 'serializable')::boolean AS serializable,
    (CASE WHEN pg_my_temp_schema() = 0 THEN false
        ELSE to_regclass('pg_temp.idempotency_keys') IS NOT NULL END)::boolean AS temporary,
    (set_config(
        'samecommit.claim_ids',
        concat(
            current_setting('samecommit.claim_ids', true),
            @claim_id::uuid, (':' || 'idempotency_keys'::regclass::oid::text || ':'), @lock_id::bigint, ';'
        ),
        true
    ) IS NOT NULL)::boolean AS marked,
    (set_config(
        'idle_in_transaction_session_timeout',
        coalesce(sqlc.narg('idle_timeout')::text, current_setting('idle_in_transaction_session_timeout')),
        true
    ) IS NOT NULL)::boolean AS bounded;

-- name: KeyGet :one
SELECT
    claim_id,
    attempt::integer AS attempt,
    fingerprint::bytea AS fingerprint,
    response,
    coalesce(response_type, '')::text AS response_type,
    created_at,
    updated_at,
    expires_at::timestamptz AS expires_at,
    locked_until::timestamptz AS locked_until,
    unfinished,
    steps,
    statement_timestamp()::timestamptz AS read_at
FROM idempotency_keys
WHERE scope = @scope::text
    AND id = @id::text;

-- name: KeyInsertCompleted :one
-- No ON CONFLICT: the loser of a race must raise (23505), so that the server
-- skips the COMMIT behind this statement. So must a trigger that keeps the row
-- from being written, which is no error by itself. RETURNING reads a column, so
-- that a policy which would hide the row refuses it.
WITH written AS (
    INSERT INTO idempotency_keys (
        scope,
        id,
        claim_id,
        attempt,
        fingerprint,
        response,
        response_type,
        created_at,
        updated_at,
        expires_at
    ) VALUES (
        @scope::text,
        @id::text,
        @claim_id::uuid,
        CASE
            WHEN strpos(current_setting('samecommit.claim_ids', true), (@claim_id::uuid)::text || (':' || 'idempotency_keys'::regclass::oid::text || ':')) > 0 THEN 1
            ELSE CAST(concat('the work began in another transaction, or at another table, than ', current_setting('samecommit.claim_ids', true)) AS integer)
        END,
        @fingerprint::bytea,
        @response::bytea,
        @response_type::text,
        statement_timestamp(),
        statement_timestamp(),
        statement_timestamp() + @ttl::interval
    )
    RETURNING CASE WHEN attempt IS NOT NULL THEN '1' END AS one
)

SELECT
    CAST(coalesce((SELECT one FROM written), 'a trigger or rule kept the row from being written') AS integer) AS written,
    statement_timestamp()::timestamptz AS created_at;

-- name: KeyReplaceCompleted :one
-- The row that was seen had expired, or its lease had. If it has changed since,
-- the division by zero makes the server skip the COMMIT behind this statement.
-- claim_id alone would not do: completion and extension keep it.
WITH written AS (
    INSERT INTO idempotency_keys AS k (
        scope,
        id,
        claim_id,
        attempt,
        fingerprint,
        response,
        response_type,
        created_at,
        updated_at,
        expires_at
    ) VALUES (
        @scope::text,
        @id::text,
        @claim_id::uuid,
        CASE
            WHEN strpos(current_setting('samecommit.claim_ids', true), (@claim_id::uuid)::text || (':' || 'idempotency_keys'::regclass::oid::text || ':')) > 0 THEN @attempt::integer
            ELSE CAST(concat('the work began in another transaction, or at another table, than ', current_setting('samecommit.claim_ids', true)) AS integer)
        END,
        @fingerprint::bytea,
        @response::bytea,
        @response_type::text,
        statement_timestamp(),
        statement_timestamp(),
        statement_timestamp() + @ttl::interval
    )
    ON CONFLICT (scope, id) DO UPDATE SET
        claim_id = EXCLUDED.claim_id,
        attempt = EXCLUDED.attempt / CASE
            WHEN k.claim_id = @seen_claim_id::uuid
                AND k.expires_at IS NOT DISTINCT FROM sqlc.narg('seen_expires_at')::timestamptz
                AND k.locked_until IS NOT DISTINCT FROM sqlc.narg('seen_locked_until')::timestamptz
                AND k.steps IS NULL
            THEN 1 ELSE 0 END,
        fingerprint = EXCLUDED.fingerprint,
        response = EXCLUDED.response,
        response_type = EXCLUDED.response_type,
        created_at = EXCLUDED.created_at,
        updated_at = EXCLUDED.updated_at,
        expires_at = EXCLUDED.expires_at,
        locked_until = NULL,
        unfinished = NULL
    RETURNING CASE WHEN attempt IS NOT NULL THEN '1' END AS one
)

SELECT
    CAST(coalesce((SELECT one FROM written), 'a trigger or rule kept the row from being written') AS integer) AS written,
    statement_timestamp()::timestamptz AS created_at;

-- name: KeyLock :exec
-- Goes before KeyTryLock, for who must have the hint: it waits for a rival that is at
-- work since the lease has ended.
SELECT pg_advisory_xact_lock(@lock_id::bigint # 'idempotency_keys'::regclass::oid::bigint);

-- name: KeyHold :one
-- Goes behind KeyTryLock, whose hint keeps others from waiting for the row that
-- this one locks. The lease may have ended: only the claim id decides.
SELECT true AS held
FROM idempotency_keys
WHERE scope = @scope::text
    AND id = @id::text
    AND claim_id = @claim_id::uuid
    AND locked_until IS NOT NULL
FOR NO KEY UPDATE;

-- name: KeyCheckBegan :exec
-- Goes before KeyComplete, in one flight. As in KeyInsertCompleted: the work must
-- have been done in the transaction that KeyTryLock was in, and at its table.
SELECT
    CASE
        WHEN strpos(current_setting('samecommit.claim_ids', true), (@claim_id::uuid)::text || (':' || 'idempotency_keys'::regclass::oid::text || ':')) > 0 THEN 1
        ELSE CAST(concat('the work began in another transaction, or at another table, than ', current_setting('samecommit.claim_ids', true)) AS integer)
    END AS began;

-- name: KeyClaim :one
-- Claims a key that has no row. The lock is tried only where no row is visible:
-- otherwise a bystander's open transaction would pin the key. No row back means
-- that a row is there, or that another transaction is at work. Inside a Run of
-- the same key it raises: the lock would not tell, as it is this session's own.
INSERT INTO idempotency_keys (
    scope,
    id,
    claim_id,
    attempt,
    fingerprint,
    created_at,
    updated_at,
    locked_until,
    unfinished
)
SELECT
    @scope::text,
    @id::text,
    @claim_id::uuid,
    1,
    @fingerprint::bytea,
    statement_timestamp(),
    statement_timestamp(),
    statement_timestamp() + sqlc.narg('lease')::interval,
    CASE WHEN sqlc.narg('lease')::interval IS NULL THEN 1 END
WHERE CASE
    WHEN EXISTS (SELECT FROM idempotency_keys AS k WHERE k.scope = @scope::text AND k.id = @id::text) THEN false
    WHEN strpos(current_setting('samecommit.claim_ids', true), concat(':', @lock_id::bigint, ';')) > 0
        THEN CAST(concat('this transaction already runs under the key', @lock_id::bigint) AS boolean)
    ELSE pg_try_advisory_xact_lock(@lock_id::bigint # 'idempotency_keys'::regclass::oid::bigint)
END
ON CONFLICT (scope, id) DO NOTHING
RETURNING
    attempt::integer AS attempt,
    locked_until::timestamptz AS locked_until;

-- name: KeyReclaim :one
-- Claims a key whose row was seen expired, or whose lease was. No row back
-- means that the row has changed since, or that another transaction holds it.
-- Steps can have come since; a claim without a lease does not take them over.
UPDATE idempotency_keys
SET
    claim_id = @claim_id::uuid,
    attempt = @attempt::integer,
    fingerprint = @fingerprint::bytea,
    response = NULL,
    response_type = NULL,
    created_at = statement_timestamp(),
    updated_at = statement_timestamp(),
    expires_at = NULL,
    locked_until = statement_timestamp() + sqlc.narg('lease')::interval,
    unfinished = CASE WHEN sqlc.narg('lease')::interval IS NULL THEN 1 END
WHERE scope = @scope::text
    AND id = @id::text
    AND claim_id = @seen_claim_id::uuid
    AND expires_at IS NOT DISTINCT FROM sqlc.narg('seen_expires_at')::timestamptz
    AND locked_until IS NOT DISTINCT FROM sqlc.narg('seen_locked_until')::timestamptz
    AND (steps IS NULL OR sqlc.narg('lease')::interval IS NOT NULL)
    AND pg_try_advisory_xact_lock(@lock_id::bigint # 'idempotency_keys'::regclass::oid::bigint)
RETURNING
    attempt::integer AS attempt,
    locked_until::timestamptz AS locked_until,
    steps;

-- name: KeyComplete :one
-- A claim that is no longer held divides by zero, which aborts the transaction:
-- a caller that ignores the error cannot commit the effect alone. The hint is
-- taken too, whether or not it is to be had: until a transaction that completes
-- a lease has ended, others would wait for its row.
WITH completed AS (
    UPDATE idempotency_keys
    SET
        response = @response::bytea,
        response_type = @response_type::text,
        updated_at = statement_timestamp(),
        expires_at = statement_timestamp() + @ttl::interval,
        locked_until = NULL,
        unfinished = NULL,
        steps = NULL
    WHERE scope = @scope::text
        AND id = @id::text
        AND claim_id = @claim_id::uuid
        AND expires_at IS NULL
        AND pg_try_advisory_xact_lock(@lock_id::bigint # 'idempotency_keys'::regclass::oid::bigint) IS NOT NULL
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
    max(created_at)::timestamptz AS created_at,
    max(updated_at)::timestamptz AS updated_at,
    max(expires_at)::timestamptz AS expires_at
FROM completed;

-- name: Abort :exec
-- For a completion that was never sent, as its context had ended: the transaction
-- must not commit without it.
SELECT 1 / 0;

-- name: KeyExtend :one
-- Not a lease that was suspended: an extension that comes late must not undo that.
UPDATE idempotency_keys
SET
    updated_at = statement_timestamp(),
    locked_until = statement_timestamp() + @lease::interval
WHERE scope = @scope::text
    AND id = @id::text
    AND claim_id = @claim_id::uuid
    AND locked_until <> updated_at
RETURNING locked_until::timestamptz AS locked_until;

-- name: KeyAddStep :execrows
-- The first step of a name stays. A lease that ends when its row last changed is
-- one that was suspended, so a step must neither make it one nor undo it. The hint
-- is taken as in KeyComplete.
UPDATE idempotency_keys
SET
    steps = CASE
        WHEN steps @> jsonb_build_array(jsonb_build_object('name', @name::text)) THEN steps
        ELSE coalesce(steps, '[]') || jsonb_build_array(
            (@step::text)::jsonb
            || jsonb_build_object('recorded_at', (extract(epoch FROM statement_timestamp()) * 1000000)::bigint)
        )
    END,
    updated_at = CASE
        WHEN locked_until = updated_at THEN updated_at
        WHEN locked_until = statement_timestamp() THEN statement_timestamp() + interval '1 microsecond'
        ELSE statement_timestamp()
    END
WHERE scope = @scope::text
    AND id = @id::text
    AND claim_id = @claim_id::uuid
    AND locked_until IS NOT NULL
    AND pg_try_advisory_xact_lock(@lock_id::bigint # 'idempotency_keys'::regclass::oid::bigint) IS NOT NULL;

-- name: KeySuspend :execrows
UPDATE idempotency_keys
SET
    updated_at = statement_timestamp(),
    locked_until = statement_timestamp()
WHERE scope = @scope::text
    AND id = @id::text
    AND claim_id = @claim_id::uuid
    AND locked_until IS NOT NULL;

-- name: KeyRelease :execrows
DELETE FROM idempotency_keys
WHERE scope = @scope::text
    AND id = @id::text
    AND claim_id = @claim_id::uuid
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

-- name: PlanByIndex :exec
-- Goes before a statement about many rows, in one flight. Its plan, made while
-- the table was small, may be kept while the table grows: one that reads the
-- whole table is therefore never made, nor one that reads and sorts all that has
-- expired. PlanAsBefore follows, for the statements of the caller's own.
SELECT
    set_config(
        'enable_seqscan',
        CASE WHEN set_config('samecommit.enable_seqscan', current_setting('enable_seqscan'), true) IS NOT NULL
            THEN 'off' END,
        true
    ) AS enable_seqscan,
    set_config(
        'enable_bitmapscan',
        CASE WHEN set_config('samecommit.enable_bitmapscan', current_setting('enable_bitmapscan'), true) IS NOT NULL
            THEN 'off' END,
        true
    ) AS enable_bitmapscan;

-- name: PlanAsBefore :exec
SELECT
    set_config('enable_seqscan', current_setting('samecommit.enable_seqscan'), true) AS enable_seqscan,
    set_config('enable_bitmapscan', current_setting('samecommit.enable_bitmapscan'), true) AS enable_bitmapscan;

-- name: KeyDeleteExpired :one
-- SKIP LOCKED: a row that somebody is claiming again is not waited for. By ctid:
-- a join could read all that has expired, each time. In an array, because a
-- subquery could be run once per row and so exceed its LIMIT. The condition is
-- repeated outside, where the row is read again under its lock.
--
-- Deleted rows stay in the index until a vacuum. Reading begins at expired_after,
-- where the last call ended, so that they are not walked over again.
WITH deleted AS (
    DELETE FROM idempotency_keys
    WHERE ctid = ANY (ARRAY(
        SELECT k.ctid
        FROM idempotency_keys AS k
        WHERE k.expires_at < statement_timestamp()
            AND k.expires_at >= @expired_after::timestamptz
        ORDER BY k.expires_at
        LIMIT @max_rows
        FOR UPDATE
        SKIP LOCKED
    ))
        AND expires_at < statement_timestamp()
    RETURNING expires_at
)

SELECT
    count(*)::bigint AS deleted,
    coalesce(max(expires_at), 'epoch')::timestamptz AS expired_until
FROM deleted;

-- name: KeyListAbandoned :many
-- The first two conditions are the index's: one on locked_until, or one that has it
-- in its condition, would end HOT updates of a lease. after_at alone is for the index.
SELECT
    scope::text AS scope,
    id::text AS id,
    claim_id,
    attempt::integer AS attempt,
    fingerprint::bytea AS fingerprint,
    created_at,
    updated_at,
    locked_until::timestamptz AS locked_until,
    steps
FROM idempotency_keys
WHERE expires_at IS NULL
    AND unfinished IS NULL
    AND locked_until <= statement_timestamp()
    AND created_at >= @after_at::timestamptz
    AND (created_at, scope, id) > (@after_at::timestamptz, @after_scope::text, @after_id::text)
ORDER BY
    created_at,
    idempotency_keys.scope,
    idempotency_keys.id
LIMIT @max_rows;

-- name: KeyBeginMany :exec
-- Goes before KeyClaimMany in one savepoint. The claim id is left with the
-- transaction and, like the rows, given up with a savepoint: so that KeyGetMany
-- knows the batch's own keys. An inner set_config keeps a setting for
-- KeyClaimedMany, before the outer one replaces it. enable_seqscan is as in
-- PlanByIndex.
SELECT
    set_config(
        'samecommit.claim_ids',
        concat(current_setting('samecommit.claim_ids', true), @claim_id::uuid, ';'),
        true
    ) AS claim_ids,
    set_config(
        'lock_timeout',
        CASE WHEN set_config('samecommit.lock_timeout', current_setting('lock_timeout'), true) IS NOT NULL
            THEN @lock_timeout::text END,
        true
    ) AS lock_timeout,
    set_config(
        'enable_seqscan',
        CASE WHEN set_config('samecommit.enable_seqscan', current_setting('enable_seqscan'), true) IS NOT NULL
            THEN 'off' END,
        true
    ) AS enable_seqscan;

-- name: KeyClaimMany :execrows
-- KeyClaim for many keys under one claim id, in ascending order: with ON
-- CONFLICT it waits for another open transaction that has inserted a key without
-- taking the hint, and where all wait in one order none waits in a circle.
-- Without hints of its own, as one lock each would fill the lock table, a batch
-- leaves alone what others hold a hint for. Not EXISTS, which PostgreSQL may
-- answer by reading the whole table into a hash.
INSERT INTO idempotency_keys (
    scope,
    id,
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
    WHEN (SELECT true FROM idempotency_keys AS k WHERE k.scope = wanted.scope AND k.id = wanted.id) THEN false
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
SELECT
    set_config('lock_timeout', current_setting('samecommit.lock_timeout'), true) AS lock_timeout,
    set_config('enable_seqscan', current_setting('samecommit.enable_seqscan'), true) AS enable_seqscan;

-- name: KeyGetMany :many
-- place counts from 1. own is as in KeyIsOwn. Each key is looked up by itself:
-- a join could read the whole table.
SELECT
    wanted.place::integer AS place,
    k.claim_id,
    k.attempt::integer AS attempt,
    k.fingerprint::bytea AS fingerprint,
    k.response,
    coalesce(k.response_type, '')::text AS response_type,
    k.created_at,
    k.updated_at,
    k.expires_at::timestamptz AS expires_at,
    k.locked_until::timestamptz AS locked_until,
    k.unfinished,
    k.steps,
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
CROSS JOIN LATERAL (
    SELECT
        claim_id,
        attempt,
        fingerprint,
        response,
        response_type,
        created_at,
        updated_at,
        expires_at,
        locked_until,
        unfinished,
        steps
    FROM idempotency_keys
    WHERE scope = wanted.scope
        AND id = wanted.id
    LIMIT 1
) AS k;

-- name: KeyReclaimMany :execrows
-- KeyReclaim for many keys under one claim id. It waits for nobody: a row that
-- another transaction has locked is left alone. The condition is repeated
-- outside, where the row is read again under its lock.
WITH seen AS (
    SELECT
        unnest(@scopes::text[]) AS scope,
        unnest(@ids::text[]) AS id,
        unnest(@fingerprints::bytea[]) AS fingerprint,
        unnest(@lock_ids::bigint[]) # 'idempotency_keys'::regclass::oid::bigint AS lock_id,
        unnest(@seen_claim_ids::uuid[]) AS claim_id,
        unnest(@seen_expires_ats::timestamptz[]) AS expires_at,
        unnest(@seen_locked_untils::timestamptz[]) AS locked_until
),

taken AS MATERIALIZED (
    SELECT
        seen.fingerprint,
        seen.claim_id,
        seen.expires_at,
        seen.locked_until,
        (ARRAY(
            SELECT k.ctid
            FROM idempotency_keys AS k
            WHERE k.scope = seen.scope
                AND k.id = seen.id
                AND CASE
                    WHEN k.claim_id <> seen.claim_id
                        OR k.expires_at IS DISTINCT FROM seen.expires_at
                        OR k.locked_until IS DISTINCT FROM seen.locked_until
                        OR k.steps IS NOT NULL THEN false
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
            FOR UPDATE
            SKIP LOCKED
        ))[1] AS found
    FROM seen
)

UPDATE idempotency_keys AS k
SET
    claim_id = @claim_id::uuid,
    attempt = CASE WHEN k.expires_at IS NULL THEN k.attempt + 1 ELSE 1 END,
    fingerprint = taken.fingerprint,
    response = NULL,
    response_type = NULL,
    created_at = statement_timestamp(),
    updated_at = statement_timestamp(),
    expires_at = NULL,
    locked_until = NULL,
    unfinished = 1
FROM taken
WHERE k.ctid = taken.found
    AND k.claim_id = taken.claim_id
    AND k.expires_at IS NOT DISTINCT FROM taken.expires_at
    AND k.locked_until IS NOT DISTINCT FROM taken.locked_until
    AND k.steps IS NULL;

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

claimed AS MATERIALIZED (
    SELECT
        answers.claim_id,
        answers.response,
        answers.response_type,
        answers.ttl,
        answers.place,
        (ARRAY(
            SELECT k.ctid
            FROM idempotency_keys AS k
            WHERE k.scope = answers.scope
                AND k.id = answers.id
        ))[1] AS found
    FROM answers
),

completed AS (
    UPDATE idempotency_keys AS k
    SET
        response = claimed.response,
        response_type = claimed.response_type,
        updated_at = statement_timestamp(),
        expires_at = statement_timestamp() + claimed.ttl,
        locked_until = NULL,
        unfinished = NULL,
        steps = NULL
    FROM claimed
    WHERE k.ctid = claimed.found
        AND k.claim_id = claimed.claim_id
        AND k.expires_at IS NULL
    RETURNING
        claimed.place,
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

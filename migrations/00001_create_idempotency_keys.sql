-- +goose Up

-- What is true of one column is said by its type. PostgreSQL reads the text of
-- a table's CHECK again for each statement, and that of a domain once for each
-- connection.

-- COLLATE "C" compares bytes. Under another collation an upgrade of the
-- operating system can reorder the unique index and let a duplicate in.
CREATE DOMAIN idempotency_name AS text COLLATE "C"
    CONSTRAINT idempotency_name_length CHECK (octet_length(VALUE) BETWEEN 1 AND 255);

CREATE DOMAIN idempotency_fingerprint AS bytea
    CONSTRAINT idempotency_fingerprint_length CHECK (octet_length(VALUE) BETWEEN 1 AND 65);

CREATE DOMAIN idempotency_attempt AS integer
    CONSTRAINT idempotency_attempt_positive CHECK (VALUE > 0);

-- A program's clock has no infinity.
CREATE DOMAIN idempotency_end AS timestamptz
    CONSTRAINT idempotency_end_finite CHECK (isfinite(VALUE));

-- A row can never exist here. A row of idempotency_keys that was begun but not
-- completed refers to it, so the transaction that holds such a row cannot
-- commit: see idempotency_keys_completed_before_commit below.
CREATE TABLE idempotency_unfinished (
    id smallint NOT NULL,
    CONSTRAINT idempotency_unfinished_pkey PRIMARY KEY (id),
    CONSTRAINT idempotency_unfinished_always_empty CHECK (false)
);

COMMENT ON TABLE idempotency_unfinished IS
    'Always empty: its foreign key keeps a transaction that began an idempotency key and did not complete it from committing.';

CREATE TABLE idempotency_keys (
    scope idempotency_name NOT NULL,
    id idempotency_name NOT NULL,
    -- Random for every claim. Completion compares it, so a superseded holder
    -- cannot complete; a number from a sequence could repeat after a failover.
    claim_id uuid NOT NULL,
    attempt idempotency_attempt NOT NULL,
    -- A version byte and a digest of the request. Never the request itself.
    fingerprint idempotency_fingerprint NOT NULL,
    -- bytea because jsonb changes bytes: replays must equal the first answer.
    response bytea,
    response_type idempotency_name,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    -- The state of the key is which one of the next three is set.
    -- Completed: when the answer stops replaying. A key in progress never expires.
    expires_at idempotency_end,
    -- In progress under a lease: when the lease ends.
    locked_until idempotency_end,
    -- In progress inside the transaction that began it: 1.
    unfinished smallint,
    -- What leased work has done so far, for whoever continues it: an array, oldest
    -- first. Beside the lease, so that one compare-and-set is about both.
    steps jsonb,
    -- scope first, so that the table can be distributed by scope.
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (scope, id),
    -- One constraint for both: PostgreSQL reads the text of each again for each statement.
    CONSTRAINT idempotency_keys_one_state CHECK (
        num_nonnulls(expires_at, locked_until, unfinished) = 1
        AND (steps IS NULL OR locked_until IS NOT NULL)
    ),
    CONSTRAINT idempotency_keys_completed_has_response CHECK ((expires_at IS NULL) = (response_type IS NULL)),
    CONSTRAINT idempotency_keys_completed_before_commit FOREIGN KEY (unfinished)
        REFERENCES idempotency_unfinished (id)
        DEFERRABLE INITIALLY DEFERRED
)
-- A table of some pages is read by its primary key. One that a vacuum has seen
-- almost empty is read as a whole, by plans that may be kept for a minute while
-- it grows. So autovacuum comes once there are some pages, and they stay. To give
-- the space back, run VACUUM (TRUNCATE) idempotency_keys.
WITH (
    vacuum_truncate = false,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_threshold = 1000
);

COMMENT ON TABLE idempotency_keys IS
    'One row per idempotency key: who claimed it, and the recorded answer once completed. Written by samecommit.';

-- The sweep reads expired rows oldest first. Only completion sets the column,
-- together with the row's other final values, so it costs no HOT update.
CREATE INDEX idempotency_keys_expires_at_idx ON idempotency_keys (expires_at)
    WHERE expires_at IS NOT NULL;

-- Leased work in progress, for who looks for what was left. Neither the column nor
-- the condition changes while a lease is renewed, so it costs no HOT update either.
CREATE INDEX idempotency_keys_leased_created_at_idx ON idempotency_keys (created_at)
    WHERE expires_at IS NULL AND unfinished IS NULL;

-- +goose Down
DROP TABLE idempotency_keys;
DROP TABLE idempotency_unfinished;
DROP DOMAIN idempotency_name;
DROP DOMAIN idempotency_fingerprint;
DROP DOMAIN idempotency_attempt;
DROP DOMAIN idempotency_end;

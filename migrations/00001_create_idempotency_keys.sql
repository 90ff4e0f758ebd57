-- +goose Up

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
    -- COLLATE "C" compares bytes. Under another collation an upgrade of the
    -- operating system can reorder the unique index and let a duplicate in.
    scope text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    -- 1 in progress, 2 completed.
    status smallint NOT NULL,
    -- Random for every claim. Completion compares it, so a superseded holder
    -- cannot complete; a number from a sequence could repeat after a failover.
    claim_id uuid NOT NULL,
    attempt integer NOT NULL,
    -- A version byte and a digest of the request. Never the request itself.
    fingerprint bytea NOT NULL,
    -- bytea because jsonb changes bytes: replays must equal the first answer.
    response bytea,
    response_type text COLLATE "C",
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    -- Set only while a lease holds the key.
    locked_until timestamptz,
    -- Set at completion. An in-progress key never expires.
    expires_at timestamptz,
    -- 1 while begun inside a transaction that has not completed it yet.
    unfinished smallint,
    -- scope first, so that the table can be distributed by scope.
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (scope, id),
    CONSTRAINT idempotency_keys_scope_length CHECK (octet_length(scope) BETWEEN 1 AND 255),
    CONSTRAINT idempotency_keys_id_length CHECK (octet_length(id) BETWEEN 1 AND 255),
    CONSTRAINT idempotency_keys_status_known CHECK (status IN (1, 2)),
    CONSTRAINT idempotency_keys_attempt_positive CHECK (attempt > 0),
    CONSTRAINT idempotency_keys_fingerprint_length CHECK (octet_length(fingerprint) BETWEEN 1 AND 65),
    CONSTRAINT idempotency_keys_response_type_length CHECK (octet_length(response_type) BETWEEN 1 AND 255),
    CONSTRAINT idempotency_keys_completed_has_response CHECK ((status = 2) = (response_type IS NOT NULL)),
    CONSTRAINT idempotency_keys_completed_has_expiry CHECK ((status = 2) = (expires_at IS NOT NULL)),
    CONSTRAINT idempotency_keys_lease_is_in_progress CHECK (status = 1 OR locked_until IS NULL),
    CONSTRAINT idempotency_keys_unfinished_without_lease CHECK ((status = 1 AND locked_until IS NULL) = (unfinished IS NOT NULL)),
    CONSTRAINT idempotency_keys_completed_before_commit FOREIGN KEY (unfinished)
        REFERENCES idempotency_unfinished (id)
        DEFERRABLE INITIALLY DEFERRED
);

COMMENT ON TABLE idempotency_keys IS
    'One row per idempotency key: who claimed it, and the recorded answer once completed. Written by samecommit.';

-- The sweep reads expired rows oldest first. Only completion sets the column,
-- together with the row's other final values, so it costs no HOT update.
CREATE INDEX idempotency_keys_expires_at_idx ON idempotency_keys (expires_at)
    WHERE expires_at IS NOT NULL;

-- +goose Down
DROP TABLE idempotency_keys;
DROP TABLE idempotency_unfinished;

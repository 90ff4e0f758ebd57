-- The schema after every migration, written by:
-- go test ./migrations -run TestSchemaGolden -update
-- Do not edit.

CREATE DOMAIN idempotency_attempt AS integer
    CONSTRAINT idempotency_attempt_positive CHECK ((VALUE > 0));

CREATE DOMAIN idempotency_end AS timestamp with time zone
    CONSTRAINT idempotency_end_finite CHECK (isfinite(VALUE));

CREATE DOMAIN idempotency_fingerprint AS bytea
    CONSTRAINT idempotency_fingerprint_length CHECK (((octet_length(VALUE) >= 1) AND (octet_length(VALUE) <= 65)));

CREATE DOMAIN idempotency_name AS text COLLATE "C"
    CONSTRAINT idempotency_name_length CHECK (((octet_length(VALUE) >= 1) AND (octet_length(VALUE) <= 255)));

CREATE TABLE idempotency_keys (
    scope idempotency_name NOT NULL,
    id idempotency_name NOT NULL,
    claim_id uuid NOT NULL,
    attempt idempotency_attempt NOT NULL,
    fingerprint idempotency_fingerprint NOT NULL,
    response bytea,
    response_type idempotency_name,
    created_at timestamp with time zone NOT NULL,
    updated_at timestamp with time zone NOT NULL,
    expires_at idempotency_end,
    locked_until idempotency_end,
    unfinished smallint,
    steps jsonb
) WITH (
    vacuum_truncate=false,
    autovacuum_vacuum_threshold=1000,
    autovacuum_analyze_threshold=1000
);

ALTER TABLE idempotency_keys
    ADD CONSTRAINT idempotency_keys_completed_has_response CHECK (((expires_at IS NULL) = (response_type IS NULL)));

ALTER TABLE idempotency_keys
    ADD CONSTRAINT idempotency_keys_one_state CHECK (((num_nonnulls(expires_at, locked_until, unfinished) = 1) AND ((steps IS NULL) OR (locked_until IS NOT NULL))));

ALTER TABLE idempotency_keys
    ADD CONSTRAINT idempotency_keys_pkey PRIMARY KEY (scope, id);

ALTER TABLE idempotency_keys
    ADD CONSTRAINT idempotency_keys_completed_before_commit FOREIGN KEY (unfinished) REFERENCES idempotency_unfinished(id) DEFERRABLE INITIALLY DEFERRED;

CREATE INDEX idempotency_keys_expires_at_idx ON public.idempotency_keys USING btree (expires_at) WHERE (expires_at IS NOT NULL);

CREATE INDEX idempotency_keys_leased_created_at_idx ON public.idempotency_keys USING btree (created_at) WHERE ((expires_at IS NULL) AND (unfinished IS NULL));

COMMENT ON TABLE idempotency_keys IS 'One row per idempotency key: who claimed it, and the recorded answer once completed. Written by samecommit.';

CREATE TABLE idempotency_unfinished (
    id smallint NOT NULL
);

ALTER TABLE idempotency_unfinished
    ADD CONSTRAINT idempotency_unfinished_always_empty CHECK (false);

ALTER TABLE idempotency_unfinished
    ADD CONSTRAINT idempotency_unfinished_pkey PRIMARY KEY (id);

COMMENT ON TABLE idempotency_unfinished IS 'Always empty: its foreign key keeps a transaction that began an idempotency key and did not complete it from committing.';

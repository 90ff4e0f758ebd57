-- The schema after every migration, written by:
-- go test ./tests -run TestSchemaGolden -update
-- Do not edit.

CREATE TABLE idempotency_keys (
    scope text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    status smallint NOT NULL,
    claim_id uuid NOT NULL,
    attempt integer NOT NULL,
    fingerprint bytea NOT NULL,
    response bytea,
    response_type text COLLATE "C",
    created_at timestamp with time zone NOT NULL,
    updated_at timestamp with time zone NOT NULL,
    locked_until timestamp with time zone,
    expires_at timestamp with time zone,
    unfinished smallint
);

ALTER TABLE idempotency_keys
    ADD CONSTRAINT idempotency_keys_attempt_positive CHECK ((attempt > 0));

ALTER TABLE idempotency_keys
    ADD CONSTRAINT idempotency_keys_completed_has_expiry CHECK (((status = 2) = (expires_at IS NOT NULL)));

ALTER TABLE idempotency_keys
    ADD CONSTRAINT idempotency_keys_completed_has_response CHECK (((status = 2) = (response_type IS NOT NULL)));

ALTER TABLE idempotency_keys
    ADD CONSTRAINT idempotency_keys_fingerprint_length CHECK (((octet_length(fingerprint) >= 1) AND (octet_length(fingerprint) <= 65)));

ALTER TABLE idempotency_keys
    ADD CONSTRAINT idempotency_keys_id_length CHECK (((octet_length(id) >= 1) AND (octet_length(id) <= 255)));

ALTER TABLE idempotency_keys
    ADD CONSTRAINT idempotency_keys_lease_is_in_progress CHECK (((status = 1) OR (locked_until IS NULL)));

ALTER TABLE idempotency_keys
    ADD CONSTRAINT idempotency_keys_pkey PRIMARY KEY (scope, id);

ALTER TABLE idempotency_keys
    ADD CONSTRAINT idempotency_keys_response_type_length CHECK (((octet_length(response_type) >= 1) AND (octet_length(response_type) <= 255)));

ALTER TABLE idempotency_keys
    ADD CONSTRAINT idempotency_keys_scope_length CHECK (((octet_length(scope) >= 1) AND (octet_length(scope) <= 255)));

ALTER TABLE idempotency_keys
    ADD CONSTRAINT idempotency_keys_status_known CHECK ((status = ANY (ARRAY[1, 2])));

ALTER TABLE idempotency_keys
    ADD CONSTRAINT idempotency_keys_unfinished_without_lease CHECK ((((status = 1) AND (locked_until IS NULL)) = (unfinished IS NOT NULL)));

ALTER TABLE idempotency_keys
    ADD CONSTRAINT idempotency_keys_completed_before_commit FOREIGN KEY (unfinished) REFERENCES idempotency_unfinished(id) DEFERRABLE INITIALLY DEFERRED;

CREATE INDEX idempotency_keys_expires_at_idx ON public.idempotency_keys USING btree (expires_at) WHERE (expires_at IS NOT NULL);

COMMENT ON TABLE idempotency_keys IS 'One row per idempotency key: who claimed it, and the recorded answer once completed. Written by samecommit.';

CREATE TABLE idempotency_unfinished (
    id smallint NOT NULL
);

ALTER TABLE idempotency_unfinished
    ADD CONSTRAINT idempotency_unfinished_always_empty CHECK (false);

ALTER TABLE idempotency_unfinished
    ADD CONSTRAINT idempotency_unfinished_pkey PRIMARY KEY (id);

COMMENT ON TABLE idempotency_unfinished IS 'Always empty: its foreign key keeps a transaction that began an idempotency key and did not complete it from committing.';

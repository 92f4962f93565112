-- Layout 1. A message's row is written once; where it lies is said by a small row elsewhere that names it, so a claim
-- moves some 60 bytes, however large the message is. Times are whole microseconds since 1970 by the server's clock.
CREATE TABLE celeriac_layout (version integer NOT NULL);
CREATE TABLE celeriac_state (name text COLLATE "C" PRIMARY KEY, value bigint NOT NULL);
CREATE SEQUENCE celeriac_ids;
CREATE TABLE celeriac_queues (name text COLLATE "C" PRIMARY KEY);
CREATE TABLE celeriac_messages (
    id bigint PRIMARY KEY,
    queue text COLLATE "C" NOT NULL,
    priority integer NOT NULL,
    blob bytea NOT NULL
);
-- To compress is the caller's choice (task_compression); here it would be paid at each write.
ALTER TABLE celeriac_messages ALTER COLUMN blob SET STORAGE EXTERNAL;
CREATE TABLE celeriac_ready (
    queue text COLLATE "C" NOT NULL,
    priority integer NOT NULL,
    position bigint NOT NULL,
    id bigint NOT NULL,
    size integer NOT NULL,
    PRIMARY KEY (queue, priority, position, id)
);
CREATE TABLE celeriac_inflight (
    id bigint PRIMARY KEY,
    epoch text COLLATE "C" NOT NULL,
    claim bigint NOT NULL,
    position bigint NOT NULL
);
CREATE TABLE celeriac_schedule (
    queue text COLLATE "C" NOT NULL,
    due bigint NOT NULL,
    id bigint NOT NULL,
    PRIMARY KEY (queue, due, id)
);
CREATE TABLE celeriac_parked (
    queue text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    turn bigint NOT NULL,
    id bigint NOT NULL,
    position bigint NOT NULL,
    PRIMARY KEY (queue, key, turn)
);
CREATE TABLE celeriac_dead (
    queue text COLLATE "C" NOT NULL,
    died bigint NOT NULL,
    id bigint NOT NULL,
    reason text NOT NULL,
    PRIMARY KEY (queue, died, id)
);
CREATE TABLE celeriac_workers (
    epoch text COLLATE "C" PRIMARY KEY,
    expires bigint NOT NULL,
    running bigint[] NOT NULL
) WITH (fillfactor = 50);
-- Who wants to be told of new messages (kind w), documents (r) or notices (n). After a crash of the server nobody waits.
CREATE UNLOGGED TABLE celeriac_waiting (
    name text COLLATE "C" PRIMARY KEY,
    kind text NOT NULL,
    queues text[] COLLATE "C" NOT NULL,
    until bigint NOT NULL
) WITH (fillfactor = 50);
CREATE TABLE celeriac_published (publish_id text COLLATE "C" PRIMARY KEY, until bigint NOT NULL);
CREATE INDEX ON celeriac_published (until);
CREATE TABLE celeriac_cancelled (id bytea PRIMARY KEY, until bigint NOT NULL);
CREATE TABLE celeriac_notices (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    exchange text NOT NULL,
    routing_key text NOT NULL,
    payload bytea NOT NULL,
    at bigint NOT NULL
);
CREATE TABLE celeriac_results (
    id text COLLATE "C" PRIMARY KEY,
    state text NOT NULL,
    expires bigint,
    document bytea NOT NULL
);
ALTER TABLE celeriac_results ALTER COLUMN document SET STORAGE EXTERNAL;
CREATE INDEX ON celeriac_results (expires);
CREATE TABLE celeriac_groups (id text COLLATE "C" PRIMARY KEY, expires bigint, document bytea NOT NULL);
CREATE INDEX ON celeriac_groups (expires);
CREATE TABLE celeriac_chords (
    id text COLLATE "C" PRIMARY KEY,
    size bigint,
    more bigint NOT NULL DEFAULT 0,
    counted bigint NOT NULL DEFAULT 0,
    holder text NOT NULL DEFAULT '',
    held_until bigint NOT NULL DEFAULT 0,
    lifetime bigint,
    moved bigint NOT NULL,
    expires bigint
) WITH (fillfactor = 70);
CREATE INDEX ON celeriac_chords (moved) WHERE holder <> 'done';
CREATE INDEX ON celeriac_chords (expires);
CREATE TABLE celeriac_chord_bodies (id text COLLATE "C" PRIMARY KEY, body bytea NOT NULL, members bytea NOT NULL);
CREATE TABLE celeriac_chord_parts (
    chord text COLLATE "C" NOT NULL,
    member text COLLATE "C" NOT NULL,
    position bigint,
    entry bytea NOT NULL,
    PRIMARY KEY (chord, member)
);
CREATE TABLE celeriac_chord_added (
    chord text COLLATE "C" NOT NULL,
    member text COLLATE "C" NOT NULL,
    PRIMARY KEY (chord, member)
);
-- Messages for another broker that were left in a transaction of the user's.
CREATE TABLE celeriac_outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    envelope text NOT NULL,
    error text
);
INSERT INTO celeriac_state VALUES
    ('cancel_version', 0), ('tidied', 0), ('vacuumed', 0), ('identity', (random() * 9e15)::bigint);
-- Rows of these live for seconds: without this they would be swept once a fifth of a large table is dead.
DO $$
DECLARE hot text;
BEGIN
    FOREACH hot IN ARRAY ARRAY['messages', 'ready', 'inflight', 'schedule', 'waiting', 'results', 'chord_parts', 'outbox'] LOOP
        EXECUTE format(
            'ALTER TABLE celeriac_%s SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000, '
            'autovacuum_vacuum_cost_delay = 0, autovacuum_vacuum_insert_scale_factor = 0.05, '
            'autovacuum_analyze_scale_factor = 0.2)', hot);
    END LOOP;
END $$;

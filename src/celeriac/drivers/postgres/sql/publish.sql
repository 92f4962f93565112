CREATE FUNCTION celeriac_1_now() RETURNS bigint LANGUAGE sql VOLATILE AS
$$ SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint $$;

-- Wake who waits for messages of these queues. To notify holds a lock of the whole database until the commit, so it is
-- done only where somebody waits, or where the commit may come late (always).
CREATE FUNCTION celeriac_1_ring(p_queues text[], p_always boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF p_always OR EXISTS (
        SELECT 1 FROM celeriac_waiting
        WHERE kind = 'w' AND until > celeriac_1_now() AND queues && p_queues COLLATE "C"
    ) THEN
        PERFORM pg_notify('celeriac_work', left(q, 1000)) FROM (SELECT DISTINCT unnest(p_queues) AS q) AS names;
    END IF;
END $$;

-- Take messages in. p_publish_ids: of those that are to be known for p_kept seconds, so that a second one is dropped;
-- p_names: the queues, each once.
CREATE FUNCTION celeriac_1_publish(
    p_queues text[], p_priorities integer[], p_dues bigint[], p_blobs bytea[], p_publish_ids text[], p_kept integer[],
    p_names text[], p_always boolean
) RETURNS void LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET jit = off SET search_path FROM CURRENT AS $$
DECLARE
    v_now bigint := celeriac_1_now();
    v_fresh text[];
BEGIN
    -- Not where the commit may come late: all others who name the same new queue would wait for it.
    IF NOT p_always THEN
        INSERT INTO celeriac_queues
        SELECT u.name FROM unnest(p_names) AS u (name)
        WHERE NOT EXISTS (SELECT 1 FROM celeriac_queues AS known WHERE known.name = u.name COLLATE "C")
        ORDER BY u.name ON CONFLICT DO NOTHING;
    END IF;
    IF p_publish_ids IS NOT NULL THEN
        WITH fresh AS (
            INSERT INTO celeriac_published AS known
            SELECT u.publish_id, v_now + u.kept * bigint '1000000'
            FROM unnest(p_publish_ids, p_kept) AS u (publish_id, kept)
            WHERE u.publish_id IS NOT NULL ORDER BY u.publish_id
            ON CONFLICT (publish_id) DO UPDATE SET until = excluded.until WHERE known.until <= v_now
            RETURNING publish_id
        )
        SELECT coalesce(array_agg(publish_id), '{}') INTO v_fresh FROM fresh;
    END IF;
    WITH incoming AS MATERIALIZED (
        SELECT nextval('celeriac_ids') AS id, u.queue, u.priority, u.due, u.blob, v_now + u.place AS position
        FROM unnest(p_queues, p_priorities, p_dues, p_blobs, p_publish_ids) WITH ORDINALITY
            AS u (queue, priority, due, blob, publish_id, place)
        WHERE u.publish_id IS NULL OR u.publish_id = ANY (v_fresh)
    ), kept AS (
        INSERT INTO celeriac_messages SELECT id, queue, priority, blob FROM incoming
    ), timed AS (
        INSERT INTO celeriac_schedule SELECT queue, due, id FROM incoming WHERE due IS NOT NULL
    )
    INSERT INTO celeriac_ready SELECT queue, priority, position, id, octet_length(blob) FROM incoming
    WHERE due IS NULL;
    PERFORM celeriac_1_ring(p_names, p_always);
END $$;

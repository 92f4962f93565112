-- Prolong a lease and mark what runs. stood: it had not been taken away.
CREATE FUNCTION celeriac_1_renew(p_epoch text, p_lease bigint, p_running bigint[], OUT stood boolean, OUT now bigint)
LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    now := celeriac_1_now();
    INSERT INTO celeriac_workers AS w VALUES (p_epoch, now + p_lease, p_running)
    ON CONFLICT (epoch) DO UPDATE SET expires = excluded.expires, running = excluded.running
    RETURNING xmax <> 0 INTO stood;
END $$;

-- Put what an epoch holds, but for what is known, back to where it was. Returns how many.
CREATE FUNCTION celeriac_1_give_back(p_epoch text, p_known_ids bigint[], p_known_claims bigint[]) RETURNS bigint
LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
DECLARE
    v_count bigint;
    v_queues text[];
BEGIN
    PERFORM pg_advisory_xact_lock(1667591269, hashtext(p_epoch));
    WITH gone AS (
        DELETE FROM celeriac_inflight AS f WHERE f.epoch = p_epoch COLLATE "C" AND NOT EXISTS (
            SELECT 1 FROM unnest(p_known_ids, p_known_claims) AS k (id, claim) WHERE k.id = f.id AND k.claim = f.claim
        ) RETURNING f.id, f.position
    ), back AS (
        INSERT INTO celeriac_ready SELECT m.queue, m.priority, g.position, g.id, octet_length(m.blob)
        FROM gone AS g JOIN celeriac_messages AS m ON m.id = g.id RETURNING queue
    )
    SELECT count(*), array_agg(DISTINCT queue) INTO v_count, v_queues FROM back;
    IF v_count > 0 THEN
        PERFORM celeriac_1_ring(v_queues, false);
    END IF;
    RETURN v_count;
END $$;

-- Say for some microseconds that somebody waits: for messages (w) of queues, documents (r), notices (n) of exchanges.
CREATE FUNCTION celeriac_1_wait(p_name text, p_kind text, p_queues text[], p_time bigint) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    INSERT INTO celeriac_waiting VALUES (p_name, p_kind, p_queues, celeriac_1_now() + p_time)
    ON CONFLICT (name) DO UPDATE SET queues = excluded.queues, until = excluded.until;
END $$;

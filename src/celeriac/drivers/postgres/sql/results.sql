-- Store documents of different ids. One of p_guarded never takes the place of a SUCCESS. p_deadline: nothing later than
-- that. Who waits for one of them is told its id.
CREATE FUNCTION celeriac_1_store(
    p_ids text[], p_states text[], p_expires double precision[], p_documents bytea[], p_guarded text[], p_deadline bigint
) RETURNS boolean LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET jit = off SET search_path FROM CURRENT AS $$
DECLARE
    v_now bigint := celeriac_1_now();
BEGIN
    IF v_now > p_deadline THEN
        RETURN false;
    END IF;
    INSERT INTO celeriac_results AS old (id, state, expires, document)
    SELECT u.id, u.state, v_now + (u.expires * 1000000)::bigint, u.document
    FROM unnest(p_ids, p_states, p_expires, p_documents) AS u (id, state, expires, document) ORDER BY u.id
    ON CONFLICT (id) DO UPDATE
    SET state = excluded.state, expires = excluded.expires, document = excluded.document
    WHERE p_guarded IS NULL OR old.state <> 'SUCCESS' OR old.expires <= v_now OR NOT excluded.id = ANY (p_guarded);
    IF EXISTS (SELECT 1 FROM celeriac_waiting WHERE kind = 'r' AND until > v_now) THEN
        -- a notification holds less than 8,000 bytes
        PERFORM pg_notify('celeriac_results', CASE
            WHEN max(octet_length(id)) <= 64 AND NOT bool_or(id LIKE '%,%') THEN string_agg(id, ',') ELSE '' END)
        FROM unnest(p_ids) WITH ORDINALITY AS u (id, place) GROUP BY place / 100;
    END IF;
    RETURN true;
END $$;

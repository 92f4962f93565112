-- As publish, for a caller's own connection and transaction, whatever its driver: a JSON list of envelopes. p_identity:
-- that of the database which the workers look into.
CREATE FUNCTION celeriac_1_enqueue(p_envelopes text, p_identity bigint) RETURNS void LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    IF p_identity <> (SELECT value FROM celeriac_state WHERE name = 'identity') THEN
        RAISE EXCEPTION 'this connection leads to another database than broker_url';
    END IF;
    PERFORM celeriac_1_publish(
        array_agg(queue ORDER BY place), array_agg(priority ORDER BY place), array_agg(due ORDER BY place),
        array_agg(decode(blob, 'base64') ORDER BY place), array_agg(publish_id ORDER BY place),
        array_agg(kept ORDER BY place), array_agg(DISTINCT queue), true
    )
    FROM ROWS FROM (json_to_recordset(p_envelopes::json)
        AS (queue text, priority integer, due bigint, blob text, publish_id text, kept integer)) WITH ORDINALITY
        AS u (queue, priority, due, blob, publish_id, kept, place);
END $$;

-- Leave envelopes for a relay to send to another broker.
CREATE FUNCTION celeriac_1_leave(p_envelopes text) RETURNS void LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO celeriac_outbox (envelope)
    SELECT e.value::text FROM json_array_elements(p_envelopes::json) WITH ORDINALITY AS e (value, place) ORDER BY place;
    PERFORM pg_notify('celeriac_outbox', '');
END $$;

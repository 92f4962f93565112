-- One turn of a worker: settle what is finished, store, publish, claim what is wanted. Rows: the deliveries (place of
-- the queue in p_queues, id, message), at last (-1, null, JSON of what is to be known).
--
-- The shared lock keeps others from taking away what this epoch holds in the middle of it (celeriac_1_give_back).
CREATE FUNCTION celeriac_1_cycle(
    p_epoch text, p_lease bigint, p_durable boolean, p_queues text[], p_want integer, p_room bigint,
    p_keys text[], p_key_counts integer[], p_claim bigint,
    p_ack_ns integer[], p_ack_ids bigint[], p_ack_claims bigint[],
    p_other_ns integer[], p_other_ids bigint[], p_other_claims bigint[], p_other_kinds integer[],
    p_other_dues bigint[], p_other_texts text[], p_other_blobs bytea[], p_ring text[],
    p_store_ns integer[], p_store_ids text[], p_store_states text[], p_store_expires double precision[],
    p_store_documents bytea[], p_guarded text[],
    p_pub_ns integer[], p_pub_queues text[], p_pub_priorities integer[], p_pub_dues bigint[], p_pub_blobs bytea[],
    p_pub_ids text[], p_pub_kept integer[], p_pub_names text[]
) RETURNS TABLE (o_queue integer, o_id bigint, o_blob bytea) LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET enable_bitmapscan = off SET jit = off SET search_path FROM CURRENT AS $$
DECLARE
    v_now bigint;
    v_got bigint[];
    v_lost integer[] := '{}';
    v_position bigint;
    v_due bigint;
    v_expires bigint;
    v_queues text[] := p_queues;
    v_counts integer[];
    v_rows bigint;
    v_claimed bigint := 0;
    v_full boolean;
    v_more boolean := false;
    v_until bigint;
    v_armed boolean := false;
    r record;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(1667591269, hashtext(p_epoch));
    v_now := celeriac_1_now();
    IF NOT p_durable THEN
        -- A claim that a crash of the server takes back is only run again: that is not worth a flush.
        PERFORM set_config('synchronous_commit', 'off', true);
    END IF;

    -- Settle
    IF p_ack_ids IS NOT NULL THEN
        WITH gone AS (
            DELETE FROM celeriac_inflight AS f USING unnest(p_ack_ids, p_ack_claims) AS u (id, claim)
            WHERE f.id = u.id AND f.claim = u.claim AND f.epoch = p_epoch COLLATE "C" RETURNING f.id
        ), over AS (
            DELETE FROM celeriac_messages WHERE id IN (SELECT id FROM gone)
        )
        SELECT coalesce(array_agg(id), '{}') INTO v_got FROM gone;
        IF cardinality(v_got) < cardinality(p_ack_ids) THEN
            SELECT array_agg(u.n) INTO v_lost FROM unnest(p_ack_ns, p_ack_ids) AS u (n, id) WHERE NOT u.id = ANY (v_got);
        END IF;
    END IF;
    IF p_other_ids IS NOT NULL THEN
        FOR r IN
            SELECT * FROM unnest(p_other_ns, p_other_ids, p_other_claims, p_other_kinds, p_other_dues, p_other_texts,
                p_other_blobs) AS u (n, id, claim, kind, due, words, blob)
        LOOP
            DELETE FROM celeriac_inflight AS f
            WHERE f.id = r.id AND f.claim = r.claim AND f.epoch = p_epoch COLLATE "C" RETURNING f.position INTO v_position;
            IF NOT FOUND THEN
                v_lost := v_lost || r.n;
                CONTINUE;
            END IF;
            IF r.blob IS NOT NULL THEN
                UPDATE celeriac_messages SET blob = r.blob WHERE id = r.id;
            END IF;
            IF r.kind IN (1, 2) THEN  -- back to the head, or to the tail
                IF r.kind = 2 THEN
                    v_position := celeriac_1_now();
                END IF;
                INSERT INTO celeriac_ready SELECT queue, priority, v_position, id, octet_length(blob)
                FROM celeriac_messages WHERE id = r.id;
            ELSIF r.kind = 3 THEN
                INSERT INTO celeriac_schedule SELECT queue, r.due, id FROM celeriac_messages WHERE id = r.id;
            ELSIF r.kind = 4 THEN
                INSERT INTO celeriac_parked SELECT queue, r.words, nextval('celeriac_ids'), id, v_position
                FROM celeriac_messages WHERE id = r.id;
            ELSE
                INSERT INTO celeriac_dead SELECT queue, v_now, id, r.words FROM celeriac_messages WHERE id = r.id;
            END IF;
        END LOOP;
        IF p_ring IS NOT NULL THEN
            PERFORM celeriac_1_ring(p_ring, false);
        END IF;
    END IF;
    IF p_store_ids IS NOT NULL THEN
        IF v_lost <> '{}' THEN
            SELECT array_agg(u.id), array_agg(u.state), array_agg(u.expires), array_agg(u.document)
            INTO p_store_ids, p_store_states, p_store_expires, p_store_documents
            FROM unnest(p_store_ns, p_store_ids, p_store_states, p_store_expires, p_store_documents)
                AS u (n, id, state, expires, document)
            WHERE NOT u.n = ANY (v_lost);
        END IF;
        PERFORM celeriac_1_store(p_store_ids, p_store_states, p_store_expires, p_store_documents, p_guarded, NULL);
    END IF;
    IF p_pub_queues IS NOT NULL THEN
        IF v_lost <> '{}' THEN
            SELECT array_agg(u.queue ORDER BY place), array_agg(u.priority ORDER BY place),
                array_agg(u.due ORDER BY place), array_agg(u.blob ORDER BY place), array_agg(u.i ORDER BY place),
                array_agg(u.kept ORDER BY place)
            INTO p_pub_queues, p_pub_priorities, p_pub_dues, p_pub_blobs, p_pub_ids, p_pub_kept
            FROM unnest(p_pub_ns, p_pub_queues, p_pub_priorities, p_pub_dues, p_pub_blobs, p_pub_ids, p_pub_kept)
                WITH ORDINALITY AS u (n, queue, priority, due, blob, i, kept, place)
            WHERE NOT u.n = ANY (v_lost);
        END IF;
        PERFORM celeriac_1_publish(
            p_pub_queues, p_pub_priorities, p_pub_dues, p_pub_blobs, p_pub_ids, p_pub_kept, p_pub_names, false);
    END IF;

    -- Who claims has a lease: without one nobody would ever give back what it claims.
    SELECT expires INTO v_expires FROM celeriac_workers WHERE epoch = p_epoch COLLATE "C";
    IF v_expires IS NULL OR v_expires <= v_now THEN
        INSERT INTO celeriac_workers VALUES (p_epoch, v_now + p_lease, '{}')
        ON CONFLICT (epoch) DO UPDATE SET expires = excluded.expires;
    END IF;

    -- What is due goes before all that was published: its position is below theirs.
    v_due := celeriac_1_next_due(p_queues);
    IF v_due <= v_now THEN
        WITH due AS (
            DELETE FROM celeriac_schedule WHERE ctid = ANY (ARRAY(
                SELECT s.place FROM unnest(p_queues) AS q CROSS JOIN LATERAL (
                    SELECT ctid AS place FROM celeriac_schedule WHERE queue = q COLLATE "C" AND due <= v_now
                    ORDER BY due, id LIMIT 2000 FOR UPDATE SKIP LOCKED
                ) AS s
            )) RETURNING queue, due, id
        )
        INSERT INTO celeriac_ready SELECT d.queue, m.priority, d.due - 1152921504606846976, d.id, octet_length(m.blob)
        FROM due AS d JOIN celeriac_messages AS m ON m.id = d.id;
        v_due := celeriac_1_next_due(p_queues);
    END IF;

    -- Claim
    IF p_keys IS NOT NULL THEN
        FOR r IN SELECT * FROM unnest(p_keys, p_key_counts) AS u (key, number) LOOP
            RETURN QUERY
            WITH picked AS MATERIALIZED (
                SELECT p.* FROM unnest(p_queues) WITH ORDINALITY AS q (name, place) CROSS JOIN LATERAL (
                    SELECT ctid AS spot, id, position, turn FROM celeriac_parked
                    WHERE queue = q.name COLLATE "C" AND key = r.key COLLATE "C"
                    ORDER BY turn LIMIT r.number FOR UPDATE SKIP LOCKED
                ) AS p ORDER BY q.place, p.turn LIMIT r.number
            ), gone AS (
                DELETE FROM celeriac_parked WHERE ctid = ANY (ARRAY(SELECT spot FROM picked))
            ), flying AS (
                INSERT INTO celeriac_inflight SELECT id, p_epoch, p_claim, position FROM picked
            )
            SELECT array_position(p_queues, m.queue), p.id, m.blob FROM picked AS p
            JOIN celeriac_messages AS m ON m.id = p.id ORDER BY p.turn;
        END LOOP;
    END IF;
    IF p_want > 0 THEN
        v_counts := ARRAY[p_want];
        IF cardinality(p_queues) <> 1 THEN
            -- How many from each: the more urgent first; among equals one queue after the other.
            SELECT array_agg(name), array_agg(number) INTO v_queues, v_counts FROM (
                SELECT name, count(*)::integer AS number FROM (
                    SELECT q.name, q.place, h.priority,
                        row_number() OVER (PARTITION BY q.place, h.priority ORDER BY h.position, h.id) AS rank
                    FROM unnest(p_queues) WITH ORDINALITY AS q (name, place) CROSS JOIN LATERAL (
                        SELECT priority, position, id FROM celeriac_ready WHERE queue = q.name COLLATE "C"
                        ORDER BY priority, position, id LIMIT p_want
                    ) AS h ORDER BY h.priority, rank, q.place LIMIT p_want
                ) AS heads GROUP BY name
            ) AS shares;
        END IF;
        RETURN QUERY
        WITH picked AS MATERIALIZED (
            SELECT q.place, h.* FROM unnest(v_queues, v_counts) WITH ORDINALITY AS q (name, number, place)
            CROSS JOIN LATERAL (
                SELECT ctid AS spot, priority, position, id, size FROM celeriac_ready WHERE queue = q.name COLLATE "C"
                ORDER BY priority, position, id LIMIT q.number FOR UPDATE SKIP LOCKED
            ) AS h
        ), turned AS (
            SELECT *, row_number() OVER (PARTITION BY place, priority ORDER BY position, id) AS rank FROM picked
        ), taken AS MATERIALIZED (
            SELECT * FROM (
                SELECT *, sum(size) OVER (ORDER BY priority, rank, place) - size AS before FROM turned
            ) AS sized WHERE before < p_room
        ), gone AS (
            DELETE FROM celeriac_ready WHERE ctid = ANY (ARRAY(SELECT spot FROM taken))
        ), flying AS (
            INSERT INTO celeriac_inflight SELECT id, p_epoch, p_claim, position FROM taken
        )
        SELECT array_position(p_queues, m.queue), t.id, m.blob FROM taken AS t
        JOIN celeriac_messages AS m ON m.id = t.id ORDER BY t.priority, t.rank, t.place;
        GET DIAGNOSTICS v_claimed = ROW_COUNT;
        v_full := v_claimed >= p_want;
        IF v_claimed > 0 THEN
            v_more := EXISTS (
                SELECT 1 FROM unnest(p_queues) AS q CROSS JOIN LATERAL (
                    SELECT 1 FROM celeriac_ready WHERE queue = q COLLATE "C" ORDER BY priority, position, id LIMIT 1
                ) AS h
            );
        END IF;
        -- Say whether we are to be told of new messages. Armed: that stood before we looked, so none can be missed.
        SELECT until INTO v_until FROM celeriac_waiting AS w
        WHERE w.name = p_epoch COLLATE "C" AND w.queues = p_queues COLLATE "C";
        IF v_more OR v_full THEN
            IF v_until > 0 THEN
                UPDATE celeriac_waiting SET until = 0 WHERE name = p_epoch COLLATE "C";
            END IF;
        ELSE
            v_armed := coalesce(v_until > v_now, false);
            IF v_until IS NULL OR v_until < v_now + 30000000 THEN
                INSERT INTO celeriac_waiting VALUES (p_epoch, 'w', p_queues, v_now + 60000000)
                ON CONFLICT (name) DO UPDATE SET queues = excluded.queues, until = excluded.until;
            END IF;
        END IF;
    END IF;
    RETURN QUERY SELECT -1, NULL::bigint, convert_to(json_build_object(
        'now', v_now, 'due', v_due, 'more', v_more, 'armed', v_armed, 'lost', v_lost,
        'cancelled', (SELECT value FROM celeriac_state WHERE name = 'cancel_version')
    )::text, 'UTF8');
END $$;

CREATE FUNCTION celeriac_1_next_due(p_queues text[]) RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT min(s.due) FROM unnest(p_queues) AS q CROSS JOIN LATERAL (
        SELECT due FROM celeriac_schedule WHERE queue = q COLLATE "C" ORDER BY due LIMIT 1
    ) AS s
$$;

-- Those of these completions whose in-flight entries are ours, locked until the end of the transaction.
CREATE FUNCTION celeriac_1_fence(p_epoch text, p_ids bigint[], p_claims bigint[]) RETURNS bigint[] LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(1667591269, hashtext(p_epoch));
    RETURN ARRAY(
        SELECT f.id FROM unnest(p_ids, p_claims) AS u (id, claim) JOIN celeriac_inflight AS f ON f.id = u.id
        WHERE f.claim = u.claim AND f.epoch = p_epoch COLLATE "C"
    );
END $$;

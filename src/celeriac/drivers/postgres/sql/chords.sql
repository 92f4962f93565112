-- A chord's row, locked; made where nothing is known of it yet, or no more.
CREATE FUNCTION celeriac_1_chord_made(p_group text, p_now bigint, p_unopened bigint) RETURNS celeriac_chords
LANGUAGE plpgsql AS $$
DECLARE
    v_chord celeriac_chords;
BEGIN
    LOOP
        SELECT * INTO v_chord FROM celeriac_chords WHERE id = p_group FOR UPDATE;
        IF FOUND AND (v_chord.expires IS NULL OR v_chord.expires > p_now) THEN
            RETURN v_chord;
        ELSIF FOUND THEN
            DELETE FROM celeriac_chords WHERE id = p_group;
            DELETE FROM celeriac_chord_bodies WHERE id = p_group;
            DELETE FROM celeriac_chord_parts WHERE chord = p_group;
            DELETE FROM celeriac_chord_added WHERE chord = p_group;
        END IF;
        INSERT INTO celeriac_chords (id, lifetime, moved, expires)
        VALUES (p_group, p_unopened, p_now, p_now + p_unopened) ON CONFLICT DO NOTHING;
    END LOOP;
END $$;

-- Write a chord down; the time until it is forgotten begins anew, that of its structure too.
CREATE FUNCTION celeriac_1_chord_moved(p_chord celeriac_chords, p_now bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE celeriac_chords SET size = p_chord.size, more = p_chord.more, counted = p_chord.counted,
        holder = p_chord.holder, held_until = p_chord.held_until, lifetime = p_chord.lifetime, moved = p_now,
        expires = p_now + p_chord.lifetime
    WHERE id = p_chord.id;
    UPDATE celeriac_groups SET expires = p_now + p_chord.lifetime WHERE id = p_chord.id;
END $$;

CREATE FUNCTION celeriac_1_chord_open(
    p_groups text[], p_sizes bigint[], p_bodies bytea[], p_members bytea[], p_structures bytea[], p_lifetimes bigint[],
    p_unopened bigint
) RETURNS void LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
DECLARE
    v_now bigint := celeriac_1_now();
    v_chord celeriac_chords;
    r record;
BEGIN
    FOR r IN
        SELECT * FROM unnest(p_groups, p_sizes, p_bodies, p_members, p_structures, p_lifetimes) WITH ORDINALITY
            AS u (id, size, body, members, structure, lifetime, place) ORDER BY id, place
    LOOP
        v_chord := celeriac_1_chord_made(r.id, v_now, p_unopened);
        IF v_chord.holder = 'done' THEN
            DELETE FROM celeriac_chord_added WHERE chord = r.id;
        END IF;
        v_chord.size := r.size;
        v_chord.holder := '';
        v_chord.held_until := 0;
        v_chord.lifetime := r.lifetime;
        PERFORM celeriac_1_chord_moved(v_chord, v_now);
        INSERT INTO celeriac_chord_bodies VALUES (r.id, r.body, r.members)
        ON CONFLICT (id) DO UPDATE SET body = excluded.body, members = excluded.members;
        IF r.structure <> '' THEN
            INSERT INTO celeriac_groups VALUES (r.id, v_now + r.lifetime, r.structure)
            ON CONFLICT (id) DO UPDATE SET expires = excluded.expires, document = excluded.document;
        END IF;
    END LOOP;
END $$;

CREATE FUNCTION celeriac_1_chord_add(p_group text, p_members text[], p_unopened bigint) RETURNS void LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
DECLARE
    v_now bigint := celeriac_1_now();
    v_chord celeriac_chords := celeriac_1_chord_made(p_group, v_now, p_unopened);
    v_new bigint;
BEGIN
    IF v_chord.holder <> 'done' THEN
        INSERT INTO celeriac_chord_added SELECT p_group, unnest(p_members) ON CONFLICT DO NOTHING;
        GET DIAGNOSTICS v_new = ROW_COUNT;
        v_chord.more := v_chord.more + v_new;
        PERFORM celeriac_1_chord_moved(v_chord, v_now);
    END IF;
END $$;

-- Count members, each once. For each: is its chord complete and held by its token?
CREATE FUNCTION celeriac_1_chord_count(
    p_groups text[], p_members text[], p_positions bigint[], p_entries bytea[], p_bodies bytea[], p_tokens text[],
    p_hold bigint, p_unopened bigint
) RETURNS boolean[] LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
DECLARE
    v_now bigint := celeriac_1_now();
    v_chord celeriac_chords;
    v_new bigint;
    v_held boolean[] := array_fill(false, ARRAY[cardinality(p_groups)]);
    r record;
BEGIN
    -- A chord is read and written once for all its members here: each version of its row would be looked at again.
    FOR r IN
        SELECT *, lead(id) OVER (ORDER BY id, place) AS following
        FROM unnest(p_groups, p_members, p_positions, p_entries, p_bodies, p_tokens) WITH ORDINALITY
            AS u (id, member, position, entry, body, token, place) ORDER BY id, place
    LOOP
        IF v_chord.id IS DISTINCT FROM r.id THEN
            v_chord := celeriac_1_chord_made(r.id, v_now, p_unopened);
        END IF;
        IF v_chord.holder <> 'done' THEN
            INSERT INTO celeriac_chord_parts VALUES (r.id, r.member, r.position, r.entry) ON CONFLICT DO NOTHING;
            GET DIAGNOSTICS v_new = ROW_COUNT;
            IF v_chord.counted = 0 THEN
                INSERT INTO celeriac_chord_bodies VALUES (r.id, r.body, '[]') ON CONFLICT DO NOTHING;
            END IF;
            v_chord.counted := v_chord.counted + v_new;
            IF v_chord.counted >= v_chord.size + v_chord.more
                AND (v_chord.held_until <= v_now OR v_chord.holder IN ('', r.token))
            THEN
                v_chord.holder := r.token;
                v_chord.held_until := v_now + p_hold;
                v_held[r.place] := true;
            END IF;
            IF r.following IS DISTINCT FROM r.id THEN
                PERFORM celeriac_1_chord_moved(v_chord, v_now);
            END IF;
        END IF;
    END LOOP;
    RETURN v_held;
END $$;

-- End chords. For each: was it the token's to end?
CREATE FUNCTION celeriac_1_chord_fire(p_groups text[], p_tokens text[], p_done bigint) RETURNS boolean[]
LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
DECLARE
    v_now bigint := celeriac_1_now();
    v_chord celeriac_chords;
    v_mine boolean[] := array_fill(false, ARRAY[cardinality(p_groups)]);
    v_until bigint;
    r record;
BEGIN
    FOR r IN
        SELECT * FROM unnest(p_groups, p_tokens) WITH ORDINALITY AS u (id, token, place) ORDER BY id, place
    LOOP
        SELECT * INTO v_chord FROM celeriac_chords
        WHERE id = r.id AND (expires IS NULL OR expires > v_now) FOR UPDATE;
        CONTINUE WHEN NOT FOUND OR v_chord.holder = 'done';
        IF v_chord.held_until > v_now AND v_chord.holder <> '' THEN
            CONTINUE WHEN v_chord.holder <> r.token;
        ELSE
            CONTINUE WHEN v_chord.size IS NULL;
        END IF;
        v_mine[r.place] := true;
        v_until := v_now + greatest(p_done, v_chord.lifetime);
        IF v_chord.lifetime IS NULL THEN
            v_until := NULL;
        END IF;
        DELETE FROM celeriac_chord_parts WHERE chord = r.id;
        UPDATE celeriac_chords SET size = NULL, more = 0, counted = 0, moved = v_now, expires = v_until,
            holder = 'done', held_until = 0 WHERE id = r.id;
    END LOOP;
    RETURN v_mine;
END $$;

CREATE FUNCTION celeriac_1_chord_hold(p_group text, p_token text, p_hold bigint) RETURNS boolean LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
DECLARE
    v_now bigint := celeriac_1_now();
    v_chord celeriac_chords;
BEGIN
    SELECT * INTO v_chord FROM celeriac_chords
    WHERE id = p_group AND (expires IS NULL OR expires > v_now) AND holder <> 'done' AND counted >= size + more
        AND (held_until <= v_now OR holder IN ('', p_token)) FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    v_chord.holder := p_token;
    v_chord.held_until := v_now + p_hold;
    PERFORM celeriac_1_chord_moved(v_chord, v_now);
    RETURN true;
END $$;

-- Chords that are not done and have not moved for long; they are kept longer.
CREATE FUNCTION celeriac_1_chord_standing(p_idle bigint, p_limit integer) RETURNS text[] LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
DECLARE
    v_now bigint := celeriac_1_now();
    v_groups text[];
BEGIN
    SELECT coalesce(array_agg(id ORDER BY moved, id), '{}') INTO v_groups FROM (
        SELECT id, moved FROM celeriac_chords
        WHERE moved <= v_now - p_idle AND holder <> 'done' AND (expires IS NULL OR expires > v_now)
        ORDER BY moved, id LIMIT p_limit
    ) AS still;
    IF v_groups <> '{}' THEN
        PERFORM set_config('synchronous_commit', 'off', true);
        UPDATE celeriac_chords SET expires = v_now + lifetime WHERE id = ANY (v_groups);
        UPDATE celeriac_groups AS g SET expires = v_now + c.lifetime FROM celeriac_chords AS c
        WHERE g.id = c.id AND c.id = ANY (v_groups);
    END IF;
    RETURN v_groups;
END $$;

-- Chords, in the database that is selected: Celery's keys, with the meaning that its workers give them, and what only we
-- keep. Others, Celery's workers too, may count members of the same chord and carry it on: whoever holds `.c` does.
--   celery-taskset-meta-<group>   .j entries (zset: place in the header; or a list)  .d members that were counted  .s size
--                                 .t how many were added later  .c who holds it, then 'done'  and, bare, the structure
--   celeriac:1:chord:<group>      hash: body, members, size, expires, and `+` before each member that was added later
--   celeriac:1:chords             zset: when each moved last
-- `now` is the server's clock. What `wrong` has let pass can be carried out: nothing ends in the middle.
local function chords(prefix, now)
  local call, try = redis.call, redis.pcall
  local movements = prefix .. 'celeriac:1:chords'
  local self = {}
  -- Within one script, of each chord: its keys, whether they were looked at, and whether its time was begun anew.
  local known, looked, touched, state = {}, {}, {}, {}

  local function keys(group)
    if known[group] then return known[group] end
    local name = prefix .. 'celery-taskset-meta-' .. group
    known[group] = {
      entries = name .. '.j', seen = name .. '.d', size = name .. '.s', more = name .. '.t', holder = name .. '.c',
      structure = name, own = prefix .. 'celeriac:1:chord:' .. group,
    }
    return known[group]
  end

  -- The text of an error when a key holds something else than one of two kinds.
  function self.misfit(key, kind, other)
    local held = try('TYPE', key)
    if held.err then return held.err .. ' (' .. key .. ')' end
    if held.ok == 'none' or held.ok == kind or held.ok == other then return nil end
    return 'WRONGTYPE a ' .. held.ok .. ' (' .. key .. ')'
  end

  local function no_number(key)
    local err = self.misfit(key, 'string')
    if err then return err end
    local value = call('GET', key)
    if value and not tonumber(value) then return 'WRONGTYPE no number (' .. key .. ')' end
  end

  -- The text of an error when a key of a chord is not as it should be.
  function self.wrong(group)
    if looked[group] then return nil end
    local k = keys(group)
    local err = self.misfit(k.entries, 'zset', 'list') or self.misfit(k.seen, 'set') or self.misfit(k.holder, 'string')
      or no_number(k.size) or no_number(k.more) or self.misfit(k.own, 'hash') or self.misfit(movements, 'zset')
    looked[group] = not err
    return err
  end

  local function complete(k)
    local size = call('GET', k.size)
    if not size then return false end
    local counted = call('TYPE', k.entries).ok == 'list' and call('LLEN', k.entries) or call('ZCARD', k.entries)
    return counted >= size + (call('GET', k.more) or 0)
  end

  -- Begin the time anew after which the data is forgotten. Celery's producers write down no number: theirs have what
  -- their size has left, at least a day.
  local function renew(k)
    local seconds = call('HGET', k.own, 'expires')
    if not seconds then
      local left = call('TTL', k.size)
      seconds = left == -1 and '' or math.max(left, 86400)
    end
    for _, key in ipairs({ k.entries, k.seen, k.size, k.more, k.structure, k.own }) do
      if seconds == '' then call('PERSIST', key) else call('EXPIRE', key, seconds) end
    end
  end

  local function moved(group, k)
    if touched[group] then return end
    touched[group] = true
    call('ZADD', movements, now, group)
    renew(k)
  end

  -- What counting needs to know of a chord, read once in a script: many members are counted in one.
  local function stands(group, k)
    local found = state[group]
    if found then return found end
    local size = call('GET', k.size)
    local kind = call('TYPE', k.entries).ok
    found = {
      holder = call('HEXISTS', k.own, 'done') == 1 and 'done' or call('GET', k.holder), kind = kind,
      size = size and size + (call('GET', k.more) or 0),
      counted = kind == 'none' and 0 or call(kind == 'list' and 'LLEN' or 'ZCARD', k.entries),
    }
    state[group] = found
    return found
  end

  local function added(k)
    local found = {}
    for _, field in ipairs(call('HKEYS', k.own)) do
      if field:byte(1) == 43 then found[#found + 1] = field:sub(2) end
    end
    return found
  end

  function self.open(group, size, body, members, structure, expires)
    local k = keys(group)
    touched[group], state[group] = nil, nil
    call('DEL', k.holder)
    call('SET', k.size, size)
    if structure ~= '' then call('SET', k.structure, structure) end
    if call('HDEL', k.own, 'done') == 1 then
      for _, member in ipairs(added(k)) do call('HDEL', k.own, '+' .. member) end
    end
    call('HSET', k.own, 'body', body, 'members', members, 'size', size, 'expires', expires)
    moved(group, k)
  end

  -- A member, `task id:index`, that is waited for too: once, whoever adds it again.
  function self.add(group, member)
    local k = keys(group)
    if call('GET', k.holder) == 'done' or call('HEXISTS', k.own, 'done') == 1 then return end
    state[group] = nil
    if call('HSETNX', k.own, '+' .. member, '') == 1 then call('INCR', k.more) end
    moved(group, k)
  end

  -- Count a member, `task id:index`, once. True when the chord is complete and the token holds it now.
  function self.count(group, member, index, entry, body, token, ordered, hold)
    local k = keys(group)
    local now_is = stands(group, k)
    if now_is.holder == 'done' then return false end
    if call('SISMEMBER', k.seen, member) == 0 then
      local new = 1
      if now_is.kind == 'list' or now_is.kind == 'none' and ordered ~= '1' then
        now_is.kind = 'list'
        call('RPUSH', k.entries, entry)
      else
        now_is.kind = 'zset'
        -- One task with one result at two places of a header: JSON does not mind a space, and so they are two.
        -- At the same place it is one that a peer before 5.7 has counted, which writes no `.d`.
        new = call('ZADD', k.entries, 'NX', index, entry)
        while new == 0 and entry:byte(1) == 91 and tonumber(call('ZSCORE', k.entries, entry)) ~= tonumber(index) do
          entry = entry .. ' '
          new = call('ZADD', k.entries, 'NX', index, entry)
        end
      end
      call('SADD', k.seen, member)
      now_is.counted = now_is.counted + new
    end
    if body ~= '' and not now_is.bodied then
      now_is.bodied = true
      call('HSETNX', k.own, 'body', body)
    end
    moved(group, k)
    if now_is.holder and now_is.holder ~= token or not now_is.size or now_is.counted < now_is.size then return false end
    now_is.holder = token
    call('SET', k.holder, token, 'PX', hold)
    return true
  end

  function self.hold(group, token, hold)
    local k = keys(group)
    local holder = call('GET', k.holder)
    if holder and holder ~= token or not complete(k) then return false end
    state[group] = nil
    call('SET', k.holder, token, 'PX', hold)
    moved(group, k)
    return true
  end

  function self.may_fire(group, token)
    local k = keys(group)
    local holder = call('GET', k.holder)
    return holder == token or not holder and call('EXISTS', k.size) == 1
  end

  function self.fire(group, seconds)
    local k = keys(group)
    touched[group], state[group] = nil, nil
    call('DEL', k.entries, k.seen, k.size, k.more)
    call('ZREM', movements, group)
    local kept = call('HGET', k.own, 'expires')
    if kept then call('HSET', k.own, 'done', '1') end
    if kept and kept ~= '' then call('EXPIRE', k.own, kept) end
    if not kept then call('DEL', k.own) end
    call('SET', k.holder, 'done', 'EX', seconds)
  end

  -- { group, holder, size, body, members, added, structure, idle, entries, counted }; of one that is done the first six;
  -- false: there is none.
  -- A peer that ended it before 5.7 has deleted at least the size.
  function self.look(group)
    local k = keys(group)
    local holder = call('GET', k.holder)
    local own = call('HMGET', k.own, 'body', 'members', 'size', 'done')
    if holder == 'done' or own[4] then return { group, 'done', 0, own[1] or '', own[2] or '', added(k) } end
    local size = call('GET', k.size)
    local kind = call('TYPE', k.entries).ok
    if not size and (own[3] or kind == 'none' and call('EXISTS', k.more) == 0) then return false end
    local structure = try('GET', k.structure)
    local since = call('ZSCORE', movements, group)
    return {
      group, holder or '', size and size + (call('GET', k.more) or 0) or 0, own[1] or '', own[2] or '',
      added(k), type(structure) == 'string' and structure or '', tostring(since and now - since or 0),
      call(kind == 'list' and 'LRANGE' or 'ZRANGE', k.entries, 0, -1), call('SMEMBERS', k.seen),
    }
  end

  -- Those that have not moved for so many seconds, the oldest first. What is over without us is struck off.
  function self.standing(idle, limit)
    local found, passed = {}, 0
    while #found < limit do
      local groups = call('ZRANGEBYSCORE', movements, '-inf', now - idle, 'LIMIT', passed, limit - #found)
      if #groups == 0 then break end
      for _, group in ipairs(groups) do
        local wrong = self.wrong(group)
        local chord = not wrong and self.look(group)
        if wrong then
          passed = passed + 1
        elseif chord and chord[2] ~= 'done' then
          passed = passed + 1
          found[#found + 1] = chord
          renew(keys(group))
        else
          call('DEL', keys(group).own)
          call('ZREM', movements, group)
        end
      end
    end
    return found
  end

  return self
end

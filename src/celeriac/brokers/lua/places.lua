-- How messages are put into the private places of a queue. Each returns nil, or the text of an error; then it did nothing.

-- The ready list of a queue and a priority step.
local function ready(prefix, queue, sep, step)
  if step == '0' then return prefix .. queue end
  return prefix .. queue .. sep .. step
end

-- What the base name of a queue's private keys is.
local function base_of(prefix, queue)
  return prefix .. 'celeriac:1:{' .. queue .. '}:'
end

-- Into the durable schedule. The doorbell `due` is rung only for a new earliest one, so that waiting workers sleep on
-- while later ones come.
local function schedule(base, id, due, blob)
  local r = redis.pcall('HSET', base .. 'scheduled', id, blob)
  if type(r) == 'table' then return r.err end
  r = redis.pcall('ZADD', base .. 'schedule', due, id)
  if type(r) == 'table' then
    redis.call('HDEL', base .. 'scheduled', id)
    return r.err
  end
  if redis.call('ZRANGE', base .. 'schedule', 0, 0)[1] == id then redis.call('SET', base .. 'due', due) end
end

-- To the dead letters: an id in a sorted set by time, the reason (as a netstring) and the message in a hash. Over the cap
-- (0: none) the oldest go.
local function bury(base, id, now, reason, blob, cap)
  local r = redis.pcall('ZADD', base .. 'dead', now, id)
  if type(r) == 'table' then return r.err end
  r = redis.pcall('HSET', base .. 'letters', id, #reason .. ':' .. reason .. blob)
  if type(r) == 'table' then
    redis.call('ZREM', base .. 'dead', id)
    return r.err
  end
  if cap > 0 then
    local over = redis.call('ZCARD', base .. 'dead') - cap
    if over > 0 then
      local old = redis.call('ZPOPMIN', base .. 'dead', over)
      for n = 1, #old, 2 do redis.call('HDEL', base .. 'letters', old[n]) end
    end
  end
end

-- To the end of the list of a limit key. The step goes with it, so that it comes back with its priority.
local function park(base, key, step, blob)
  local list = base .. 'parked:' .. key
  local r = redis.pcall('LPUSH', list, step .. ':' .. blob)
  if type(r) == 'table' then return r.err end
  r = redis.pcall('SADD', base .. 'parkings', key)
  if type(r) == 'table' then
    redis.call('LPOP', list)
    return r.err
  end
end

-- Step and message of a parked entry.
local function unpark(entry)
  local colon = entry:find(':', 1, true)
  if not colon then return '0', entry end
  return entry:sub(1, colon - 1), entry:sub(colon + 1)
end

-- Reason and message of a dead letter.
local function open_letter(letter)
  local colon = letter:find(':', 1, true)
  local size = colon and tonumber(letter:sub(1, colon - 1)) or 0
  colon = colon or 0
  return letter:sub(colon + 1, colon + size), letter:sub(colon + size + 1)
end

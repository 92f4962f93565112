-- Move up to 100 private messages of a queue back to its ready lists, where any peer finds them. After places.lua.
-- ARGV 1 key prefix  2 separator  3 queue  4 'schedule', or 'parked'  5 the limit key
-- Gives how many were moved, and how many were looked at.
local prefix, sep, queue = ARGV[1], ARGV[2], ARGV[3]
local base = base_of(prefix, queue)
local moved = 0
if ARGV[4] == 'schedule' then
  local ids = redis.call('ZRANGE', base .. 'schedule', 0, 99)
  for n = 1, #ids do
    local message = redis.call('HGET', base .. 'scheduled', ids[n])
    if message then
      redis.call('LPUSH', ready(prefix, queue, sep, ids[n]:match('%.(%d+)$') or '0'), message)
      moved = moved + 1
    end
    redis.call('ZREM', base .. 'schedule', ids[n])
    redis.call('HDEL', base .. 'scheduled', ids[n])
  end
  return { moved, #ids }
end
-- the newest first, each to the head: the oldest is served first then, as it would have been
local list = base .. 'parked:' .. ARGV[5]
for n = 1, 100 do
  local entry = redis.call('LINDEX', list, 0)
  if not entry then break end
  local step, message = unpark(entry)
  redis.call('RPUSH', ready(prefix, queue, sep, step), message)
  redis.call('LPOP', list)
  moved = moved + 1
end
if redis.call('EXISTS', list) == 0 then redis.call('SREM', base .. 'parkings', ARGV[5]) end
return { moved, moved }

-- Put scheduled messages or dead letters to the tails of their ready lists. After places.lua.
-- ARGV 1 key prefix  2 separator  3 queue  4 'schedule' or 'dead'  then (id, '' or '=' and what takes its place) each
-- Gives how many.
local prefix, sep, queue, set = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local base = base_of(prefix, queue)
local hash = base .. (set == 'dead' and 'letters' or 'scheduled')
local count = 0
for i = 5, #ARGV, 2 do
  local message = redis.call('HGET', hash, ARGV[i])
  if message then
    if set == 'dead' then message = select(2, open_letter(message)) end
    if ARGV[i + 1] ~= '' then message = ARGV[i + 1]:sub(2) end
    redis.call('LPUSH', ready(prefix, queue, sep, ARGV[i]:match('%.(%d+)$') or '0'), message)
    count = count + 1
  end
  redis.call('ZREM', base .. set, ARGV[i])
  redis.call('HDEL', hash, ARGV[i])
end
return count

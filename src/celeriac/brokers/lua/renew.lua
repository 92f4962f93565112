-- Prolong a lease and note what runs. After lease.lua.
-- ARGV 1 key prefix  2 epoch  3 lease  4 run id of the server  5 receipts that run, one a line  6 seconds to keep them
--      then the queues: who gives back looks only into those that are known, and a flush forgets them
-- Gives 1, or 0 when the lease had ended.
local private = ARGV[1] .. 'celeriac:1:'
local now, lease = clock(), tonumber(ARGV[3])
local ended = has_ended(private, ARGV[2], now)
redis.call('ZADD', private .. 'workers', now + lease, ARGV[2])
if ARGV[5] == '' then
  redis.call('DEL', private .. 'running:' .. ARGV[2])
else
  redis.call('SET', private .. 'running:' .. ARGV[2], ARGV[5], 'EX', ARGV[6])
end
for i = 7, #ARGV do redis.call('SADD', private .. 'queues', ARGV[i]) end
is_young(private, ARGV[4], now, lease)
return ended and 0 or 1

-- Forget a worker that holds nothing any more. After places.lua, lease.lua.
-- ARGV 1 key prefix  2 epoch  3 '1': only when its lease has ended   then the queues
-- Gives 1 when it is forgotten.
local private = ARGV[1] .. 'celeriac:1:'
if ARGV[3] == '1' and not has_ended(private, ARGV[2], clock()) then return 0 end
for i = 4, #ARGV do
  if redis.call('EXISTS', base_of(ARGV[1], ARGV[i]) .. 'inflight:' .. ARGV[2]) == 1 then return 0 end
end
redis.call('ZREM', private .. 'workers', ARGV[2])
redis.call('DEL', private .. 'running:' .. ARGV[2])
return 1

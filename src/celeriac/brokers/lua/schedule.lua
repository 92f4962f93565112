-- Put messages into the schedules of their queues. After places.lua.
-- ARGV 1 key prefix   then (queue, id, due, message) each
-- Gives how many, or the layout's number with a minus when it is newer than we know: then nothing was done.
local layout = redis.call('GET', ARGV[1] .. 'celeriac:1:layout')
if layout and tonumber(layout) > 1 then return -layout end
for i = 2, #ARGV, 4 do
  local err = schedule(base_of(ARGV[1], ARGV[i]), ARGV[i + 1], ARGV[i + 2], ARGV[i + 3])
  if err then return redis.error_reply(err) end
end
return (#ARGV - 1) / 4

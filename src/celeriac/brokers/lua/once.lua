-- Publish messages that somebody else may publish again: one whose publish id was seen within a day is dropped. After
-- places.lua.
-- ARGV 1 key prefix   then (publish id, list or, for the schedule, queue, id in the schedule or '', due, message) each
-- Gives how many were new, or the layout's number with a minus when it is newer than we know: then nothing was done.
local private = ARGV[1] .. 'celeriac:1:'
local layout = redis.call('GET', private .. 'layout')
if layout and tonumber(layout) > 1 then return -layout end
local fresh = 0
for i = 2, #ARGV, 5 do
  local mark = private .. 'once:' .. ARGV[i]
  if redis.call('SET', mark, 1, 'NX', 'EX', 86400) then
    local err
    if ARGV[i + 2] == '' then
      local r = redis.pcall('LPUSH', ARGV[i + 1], ARGV[i + 4])
      if type(r) == 'table' then err = r.err end
    else
      err = schedule(base_of(ARGV[1], ARGV[i + 1]), ARGV[i + 2], ARGV[i + 3], ARGV[i + 4])
    end
    if err then
      redis.call('DEL', mark)
      return redis.error_reply(err)
    end
    fresh = fresh + 1
  end
end
return fresh

-- Return in-flight messages to the heads of their lists, the last one given to be served first. After places.lua, lease.lua.
-- ARGV 1 key prefix  2 separator  3 epoch  4 queue  5 '1': only when the lease of the epoch has ended
--      then (tag, '' or '=' and what takes the message's place) each
-- Gives how many, and the text of the last error; -1 when the lease lives again.
local prefix = ARGV[1]
local private = prefix .. 'celeriac:1:'
if ARGV[5] == '1' and not has_ended(private, ARGV[3], clock()) then return { -1, '' } end
local hash = base_of(prefix, ARGV[4]) .. 'inflight:' .. ARGV[3]
local count, err = 0, ''
for i = 6, #ARGV, 2 do
  local message = redis.call('HGET', hash, ARGV[i])
  if message then
    if ARGV[i + 1] ~= '' then message = ARGV[i + 1]:sub(2) end
    local list = ready(prefix, ARGV[4], ARGV[2], ARGV[i]:match('%.(%d+)$') or '0')
    local r = redis.pcall('RPUSH', list, message)
    if type(r) == 'table' then
      err = r.err .. ' (' .. list .. ')'
    else
      redis.call('HDEL', hash, ARGV[i])
      count = count + 1
    end
  end
end
return { count, err }

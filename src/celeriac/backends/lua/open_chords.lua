-- Open chords: all, or none when a key of one is not as it should be. After chord.lua.
-- ARGV 1 key prefix   then (group, size, body, members, structure or '', seconds until it is forgotten or '') each
local time = redis.call('TIME')
local book = chords(ARGV[1], time[1] + time[2] / 1000000)
for i = 2, #ARGV, 6 do
  local err = book.wrong(ARGV[i])
  if err then return redis.error_reply(err) end
end
for i = 2, #ARGV, 6 do book.open(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[i + 5]) end
return 1

-- More members of a chord, each once. After chord.lua.
-- ARGV 1 key prefix  2 group   then `task id:index` each
local time = redis.call('TIME')
local book = chords(ARGV[1], time[1] + time[2] / 1000000)
local err = book.wrong(ARGV[2])
if err then return redis.error_reply(err) end
for i = 3, #ARGV do book.add(ARGV[2], ARGV[i]) end
return 1
